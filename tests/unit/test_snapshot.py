"""Snapshots: exact whatever the bits, bounded whatever the bytes, and taken when they are fewer bytes (section 12)."""

import contextlib
import io
import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarms import id_of, key_of, swarm_of

from fullrank_protocol.blob import BlobRef, blob_ref
from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parts import ModuleShape
from fullrank_protocol.snapshot import (
    TILE_ELEMENTS,
    Offer,
    check_end,
    decode_module,
    encode_module,
    fewest_bytes,
    make_snapshot,
    max_snapshot_bytes,
    num_elements,
    open_snapshot,
    tile_sizes,
)
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = swarm_of()
MODULES = SWARM.genesis.modules


def module_of(numbers: int) -> ModuleShape:
    """A dense module of so many numbers."""
    return type(MODULES[0])(name="one.weight", kind=MODULES[0].kind, out_features=numbers, in_features=1)


def bits_of(*patterns: int) -> np.ndarray:
    return np.array(patterns, dtype="<u4").view("<f4")


def decode_all(data: bytes) -> None:
    """Decode a snapshot of the test swarm's modules over a base of zeros."""
    source = io.BytesIO(data)
    for module in MODULES:
        list(decode_module(source, module, np.zeros(num_elements(module), "<f4")))
    check_end(source)


def there_and_back(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    module = module_of(before.size)
    blob = b"".join(encode_module(module, before, after))
    source = io.BytesIO(blob)
    found = np.concatenate([*decode_module(source, module, before), np.zeros(0, "<f4")])
    check_end(source)
    assert len(blob) <= max_snapshot_bytes([module])
    return found


@given(st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 2), min_size=1, max_size=64))
def test_every_bit_pattern_comes_back(pairs: list[tuple[int, int]]) -> None:
    before, after = (bits_of(*side) for side in zip(*pairs, strict=True))
    assert there_and_back(before, after).tobytes() == after.tobytes()


def test_zeros_of_both_signs_extremes_and_infinities_come_back() -> None:
    before = bits_of(0x00000000, 0x80000000, 0x3F800000, 0x00800000, 0x7F7FFFFF, 0x7F800000)
    after = bits_of(0x80000000, 0x00000000, 0x3F800001, 0x00000001, 0xFF7FFFFF, 0xFF800000)
    assert there_and_back(before, after).tobytes() == after.tobytes()


@pytest.mark.parametrize("numbers", [1, TILE_ELEMENTS - 1, TILE_ELEMENTS, TILE_ELEMENTS + 1, 2 * TILE_ELEMENTS + 7])
def test_a_module_is_cut_into_tiles(numbers: int) -> None:
    assert sum(tile_sizes(module_of(numbers))) == numbers
    rng = np.random.default_rng(numbers)
    before = rng.standard_normal(numbers).astype("<f4")
    after = before + rng.standard_normal(numbers).astype("<f4") * np.float32(1e-3)
    assert there_and_back(before, after).tobytes() == after.tobytes()


def test_weights_that_do_not_compress_stay_within_the_bound() -> None:
    rng = np.random.default_rng(5)
    before, after = (rng.integers(0, 2**32, TILE_ELEMENTS + 3, dtype=np.uint32).view("<f4") for _ in range(2))
    assert there_and_back(before, after).tobytes() == after.tobytes()


def test_a_changed_weight_keeps_its_upper_bits_and_so_takes_fewer_than_four_bytes() -> None:
    rng = np.random.default_rng(7)
    before = (rng.standard_normal(TILE_ELEMENTS) * 0.02).astype("<f4")
    after = before + (rng.standard_normal(TILE_ELEMENTS) * 0.0002).astype("<f4")
    assert sum(map(len, encode_module(module_of(TILE_ELEMENTS), before, after))) < 3 * TILE_ELEMENTS


@given(st.binary(max_size=400))
def test_whatever_the_bytes_only_a_refusal_comes_out(data: bytes) -> None:
    with pytest.raises(RejectError):
        decode_all(data)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_bit_is_refused_or_changes_weights_and_nothing_else(place: int, flip: int) -> None:
    module = module_of(64)
    before, after = np.zeros(64, "<f4"), np.arange(64, dtype="<f4")
    blob = bytearray(b"".join(encode_module(module, before, after)))
    blob[place % len(blob)] ^= flip
    with contextlib.suppress(RejectError):
        (found,) = decode_module(io.BytesIO(bytes(blob)), module, before)
        assert found.shape == (64,)


def test_a_frame_that_would_unpack_to_gigabytes_takes_no_memory() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    blob = len(bomb).to_bytes(4, "little") + bomb
    module = module_of(16)
    tracemalloc.start()
    with pytest.raises(RejectError):
        list(decode_module(io.BytesIO(blob), module, np.zeros(16, "<f4")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_stated_length_is_checked_before_it_is_read() -> None:
    class Source:
        asked = 0

        def read(self, num_bytes: int, /) -> bytes:
            self.asked = max(self.asked, num_bytes)
            return b"\xff\xff\xff\x7f"[:num_bytes]

    source = Source()
    with pytest.raises(RejectError, match="found a frame of"):
        list(decode_module(source, module_of(16), np.zeros(16, "<f4")))
    assert source.asked == 4


# ---- the hint --------------------------------------------------------------------------------------


def hint(**fields: object) -> Envelope:
    given = {"checkpoint": id_of("c"), "slot": 3, "blob": blob_ref(b"blob").to_wire(), "codec": 1} | fields
    return seal(key_of("ada"), swarm=SWARM.id, type=wire.SNAPSHOT, message=wire.Snapshot(**given))  # type: ignore[arg-type]


def test_a_hint_reads_back() -> None:
    envelope = make_snapshot(key_of("ada"), swarm=SWARM.id, checkpoint=id_of("c"), slot=3, blob=blob_ref(b"blob"))
    found = open_snapshot(SWARM.opened(envelope), SWARM.genesis)
    assert (found.author, found.checkpoint, found.slot) == (key_of("ada").public_key, id_of("c"), 3)
    assert (found.blob, found.codec, found.id) == (blob_ref(b"blob"), 1, envelope.id)


@pytest.mark.parametrize(
    ("envelope", "rule", "words"),
    [
        (hint(checkpoint=bytes(31)), Rule.SCHEMA, "31 bytes"),
        (hint(slot=0), Rule.SLOT, "snapshot's slot is 0"),
        (hint(codec=2), Rule.CODEC, "codec 2"),
        (hint(blob=BlobRef(id=bytes(32), num_bytes=0).to_wire()), Rule.SIZE, "number of bytes of the snapshot is 0"),
        (hint(blob=BlobRef(id=bytes(32), num_bytes=1 << 20).to_wire()), Rule.SIZE, "number of bytes of the snapshot"),
    ],
)
def test_a_strange_hint_is_refused(envelope: Envelope, rule: Rule, words: str) -> None:
    with pytest.raises(RejectError, match=words) as caught:
        open_snapshot(envelope, SWARM.genesis)
    assert caught.value.rule is rule


# ---- the choice ------------------------------------------------------------------------------------

TEN_ROUNDS: Sequence[tuple[int, float]] = [(slot, 10) for slot in range(1, 11)]


@pytest.mark.parametrize(
    ("missing", "offers", "last_resort", "chosen"),
    [
        (TEN_ROUNDS, [], False, None),
        (TEN_ROUNDS, [Offer(slot=8, num_bytes=70)], False, 8),
        (TEN_ROUNDS, [Offer(slot=8, num_bytes=79)], False, 8),
        (TEN_ROUNDS, [Offer(slot=8, num_bytes=80)], False, None),  # Among equals, the way that believes nobody.
        (TEN_ROUNDS, [Offer(slot=4, num_bytes=20), Offer(slot=8, num_bytes=70)], False, 4),
        (TEN_ROUNDS, [Offer(slot=4, num_bytes=20), Offer(slot=8, num_bytes=20)], False, 8),
        (TEN_ROUNDS, [Offer(slot=4, num_bytes=10), Offer(slot=8, num_bytes=50)], False, 8),  # The newer among equals.
        (TEN_ROUNDS, [Offer(slot=8, num_bytes=0)], False, 8),  # It is here already.
        (TEN_ROUNDS[7:], [Offer(slot=8, num_bytes=70)], False, None),  # Only the newest are missing.
        (TEN_ROUNDS, [Offer(slot=8, num_bytes=1)], True, None),
        ([(1, math.inf), *TEN_ROUNDS[1:]], [Offer(slot=8, num_bytes=9000)], False, 8),
        ([(1, math.inf), *TEN_ROUNDS[1:]], [Offer(slot=8, num_bytes=9000)], True, 8),
        ([*TEN_ROUNDS[:9], (10, math.inf)], [Offer(slot=8, num_bytes=1)], False, None),  # It would not help.
        ([(1, math.inf), (9, math.inf)], [Offer(slot=4, num_bytes=1), Offer(slot=9, num_bytes=99)], True, 9),
    ],
)
def test_the_way_with_the_fewest_bytes_is_taken(
    missing: Sequence[tuple[int, float]], offers: list[Offer], last_resort: bool, chosen: int | None
) -> None:
    found = fewest_bytes(missing, offers, last_resort=last_resort)
    assert (found.slot if found is not None else None) == chosen
