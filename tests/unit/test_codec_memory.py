"""Decoding takes no more memory than the genesis allows, whatever the bytes (protocol section 6, codec 1).

Everything here is decoded by a process of its own, to which the system gives that much and no more.
"""

import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import bounded_decoding
import numpy as np
import pytest
from bounded_decoding import DECODED, OUT_OF_MEMORY, RULES
from hostile_frames import COMPRESSED, LARGEST_BLOCK, RAW, RESERVED, block, frame, raw, repeated, skippable

from fullrank_protocol.codec import CODEC_PACKED, decode, encode, most_memory
from fullrank_protocol.delta import Delta, Dense, LowRank
from fullrank_protocol.errors import RejectError, Rule

GIBIBYTE = 1 << 30

DENSE, WIDE = RULES.modules


def head(*, rank: int = 64, width: int = 8, index: int = 1, form: int = 1) -> bytes:
    """The header of a delta of one part."""
    return struct.pack("<IIBBBH", 1, index, form, width, 0, rank)


def size(*, rank: int = 64, width: int = 8) -> int:
    """Bytes of that part before they are compressed."""
    return rank * (5 + WIDE.out_features * width // 8)


SIZE = size()

RIGHT = frame(repeated(SIZE), content_size=SIZE)
"""A frame as it has to be, of nothing but zeros."""

LARGEST = Delta(
    parts=(
        LowRank(
            module=WIDE.name,
            B_OR=np.tile(np.array([[64], [-64], [0]], dtype=np.int8), (WIDE.out_features // 3 + 1, 60))[:-2],
            A_RI=None,
            scale_mantissa_R=(1,) * 60,
            scale_exponent_R=(0,) * 60,
            row_R=tuple(range(60)),
        ),
    )
)

BIAS = Delta(
    parts=(
        Dense(
            module=DENSE.name,
            values_O=np.tile(np.array([64, -3], dtype=np.int8), DENSE.out_features // 2),
            scale_mantissa=1,
            scale_exponent=0,
        ),
    )
)

HONEST = {"many components": encode(LARGEST, RULES), "a large dense part": encode(BIAS, RULES)}

LIES_BEFORE_THE_FRAME = {
    "more parts than modules": struct.pack("<I", 0xFFFFFFFF) + bytes(1000),
    "the highest rank that can be written": head(rank=0xFFFF) + RIGHT,
    "more than the genesis allows in all": struct.pack("<I", 2)
    + head(form=2, index=0, rank=1)[4:]
    + head()[4:]
    + frame(repeated(SIZE + DENSE.out_features + 3), content_size=SIZE + DENSE.out_features + 3),
    "a dense part of several components": head(form=2, index=0) + RIGHT,
    "a gibibyte": head() + frame(repeated(GIBIBYTE), content_size=GIBIBYTE),
    "the largest size that can be stated": head() + frame(repeated(SIZE), content_size=(1 << 64) - 3),
    "an unknown size": head() + frame(repeated(SIZE), content_size=(1 << 64) - 1),
    "a size that is an error of zstd": head() + frame(repeated(SIZE), content_size=(1 << 64) - 2),
    "one byte more": head() + frame(repeated(SIZE + 1), content_size=SIZE + 1),
    "one byte less": head() + frame(repeated(SIZE - 1), content_size=SIZE - 1),
    "no bytes": head() + frame(raw(b"", last=True), content_size=0),
    "a skippable frame in front": head() + skippable(b"hide") + RIGHT,
    "a skippable frame of four gibibytes": head() + skippable(b"hide", size=0xFFFFFFFF) + RIGHT,
    "a dictionary": head() + frame(repeated(SIZE), content_size=SIZE, dictionary=7),
    "a window beyond what zstd knows": head() + frame(repeated(SIZE), content_size=SIZE, window_log=41),
    "a format of long ago": head() + frame(repeated(SIZE), content_size=SIZE, magic=0xFD2FB527),
    "a reserved bit": head() + frame(repeated(SIZE), content_size=SIZE, reserved=True),
}
"""What is refused before anything is unpacked."""

LIES_IN_THE_FRAME = {
    "gives four gibibytes": frame(repeated(4 * GIBIBYTE), content_size=SIZE),
    "gives four gibibytes through a window": frame(repeated(4 * GIBIBYTE), content_size=SIZE, window_log=27),
    "gives one byte more": frame(repeated(SIZE + 1), content_size=SIZE),
    "gives one byte less": frame(repeated(SIZE - 1), content_size=SIZE),
    "is cut short": frame(repeated(SIZE)[:-1], content_size=SIZE),
    "is cut short, with the largest window": frame(repeated(SIZE)[:-4], content_size=SIZE, window_log=27),
    "is cut short, with a larger one": frame(repeated(SIZE)[:-4], content_size=SIZE, window_log=31),
    "has nothing behind its head": frame(b"", content_size=SIZE, window_log=27),
    "is followed by itself": RIGHT + RIGHT,
    "is followed by another that gives the rest": frame(repeated(SIZE // 2), content_size=SIZE)
    + frame(repeated(SIZE - SIZE // 2), content_size=SIZE),
    "is followed by a skippable one": RIGHT + skippable(bytes(100)),
    "is followed by the head of a gibibyte": RIGHT + frame(b"", content_size=GIBIBYTE, window_log=27),
    "has a wrong checksum": frame(repeated(SIZE), content_size=SIZE, checksum=b"lies"),
    "has a block of a reserved kind": frame(block(RESERVED, bytes(10), 10, last=True), content_size=SIZE),
    "has a block larger than blocks are": frame(block(RAW, bytes(1000), (1 << 21) - 1, last=True), content_size=SIZE),
    "has nonsense to decompress": frame(block(COMPRESSED, b"\xff" * 1000, 1000, last=True), content_size=SIZE),
    "has a hundred thousand empty blocks": frame(raw(b"") * 100_000 + raw(b"", last=True), content_size=SIZE),
}
"""What zstd has to find out, behind a header that allows the whole size."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deltas")


def outcomes(folder: Path, deltas: Mapping[str, bytes], *, num_bytes: int) -> dict[str, str]:
    for path in folder.iterdir():
        path.unlink()
    for name, data in deltas.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, bounded_decoding.__file__, str(folder), str(num_bytes)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    found: dict[str, str] = json.loads(said.stdout)
    assert found.keys() == deltas.keys()
    return found


def test_the_largest_deltas_decode_with_what_the_genesis_allows(folder: Path) -> None:
    assert set(outcomes(folder, HONEST, num_bytes=most_memory(RULES)).values()) == {DECODED}


def test_with_less_they_do_not_so_the_limit_is_felt(folder: Path) -> None:
    assert set(outcomes(folder, HONEST, num_bytes=4 << 20).values()) == {OUT_OF_MEMORY}


def test_the_bound_is_near_what_the_largest_delta_takes() -> None:
    tracemalloc.start()
    decode(HONEST["many components"], RULES, CODEC_PACKED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    unpacked, integers = size(rank=60, width=2), 60 * WIDE.out_features
    assert unpacked + integers < peak < unpacked + integers + (1 << 20)
    assert peak < most_memory(RULES) < 3 * peak


def test_a_lie_before_the_frame_is_refused_with_no_memory(folder: Path) -> None:
    for data in LIES_BEFORE_THE_FRAME.values():
        tracemalloc.start()
        with pytest.raises(RejectError) as caught:
            decode(data, RULES, CODEC_PACKED)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 << 10
        assert caught.value.rule in (Rule.CODEC, Rule.RANK, Rule.SIZE)
    found = outcomes(folder, LIES_BEFORE_THE_FRAME, num_bytes=4 << 20)
    assert set(found.values()) == {"CODEC", "RANK", "SIZE"}


def test_a_lie_in_the_frame_is_refused_within_the_bound(folder: Path) -> None:
    deltas = {name: head() + lie for name, lie in LIES_IN_THE_FRAME.items()}
    assert all(len(data) < RULES.limits.max_delta_bytes for data in deltas.values())
    found = outcomes(folder, deltas, num_bytes=most_memory(RULES))
    assert set(found.values()) == {"CODEC"}


def test_what_unpacks_to_nothing_of_worth_is_refused_within_the_bound(folder: Path) -> None:
    """Few bytes that give the most integers, all of them zero, or each component larger than it may be."""
    deltas = {
        f"{width} bits of {octet}": head(width=width)
        + frame(repeated(size(width=width), octet), content_size=size(width=width))
        for width in (2, 4, 8)
        for octet in (0, 0x80, 0xFF)
    }
    assert all(len(data) < 2000 for data in deltas.values())
    assert set(outcomes(folder, deltas, num_bytes=most_memory(RULES)).values()) <= {"SCALE", "NON_CANONICAL", "RANK"}


def test_blocks_are_as_large_as_they_may_be() -> None:
    """What is built by hand here is what zstd reads."""
    import zstandard

    unpacked = zstandard.ZstdDecompressor().decompress(
        frame(repeated(LARGEST_BLOCK + 5, 7), content_size=LARGEST_BLOCK + 5)
    )
    assert unpacked == bytes([7]) * (LARGEST_BLOCK + 5)
