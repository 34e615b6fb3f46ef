"""Snapshots: a final checkpoint's weights as the difference from the base's, for those who arrive late (section 12).

A `Snapshot` is a hint: a member says that a blob holds the weights of a checkpoint. Nothing is believed
of it; the weights that come out must have exactly the digest that the checkpoint carries.

The blob, codec 1, everything little-endian: the modules in the order of the genesis, each cut in row-major order
into tiles of 2^18 numbers (the last one shorter), and per tile:

    number of bytes of the frame    4 bytes
    one zstd frame that states its content size: the 32 bits of each number XOR those of the base's number,
    as four planes, the lowest bytes of all numbers first

(XOR and not the difference: W0 + float32(W - W0) is not W in one entry of six hundred. Planes, because a changed
weight keeps its sign and exponent: on bfloat16 bases that moved by 0.1, 1 and 5 % the blob takes 0.60, 0.67 and
0.75 of the weights' size, without planes 0.72, 0.79 and 0.85.)
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from fullrank_protocol.blob import BlobRef
from fullrank_protocol.canonical import check_id, check_range
from fullrank_protocol.envelope import Envelope, decode_payload, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.limits import MAX_SLOT
from fullrank_protocol.parts import ModuleShape
from fullrank_protocol.wire import objects_pb2 as wire

Float32Array = npt.NDArray[np.float32]

SNAPSHOT_CODEC_XOR = 1

TILE_ELEMENTS = 1 << 18
"""Numbers in one frame: 1 MiB, so that neither side ever holds more than a few of them."""

_LENGTH = struct.Struct("<I")
_LEVEL = 1
"""Levels 2 and 3 gain nothing on planes of noise and take up to three times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A member says that a blob holds a checkpoint's weights.

    Attributes:
        author: Who says so.
        checkpoint: Id of the checkpoint.
        slot: Its slot.
        blob: Where the bytes are.
        codec: Their form.
        envelope: The signed object itself.
    """

    author: bytes
    checkpoint: bytes
    slot: int
    blob: BlobRef
    codec: int
    envelope: Envelope = field(repr=False)

    @property
    def id(self) -> bytes:
        """Id of the signed object."""
        return self.envelope.id


class Reader(Protocol):
    """A source of bytes, such as an open file."""

    def read(self, num_bytes: int, /) -> bytes:
        """The next bytes; fewer only at the end."""


def make_snapshot(
    key: SigningKey, *, swarm: bytes, checkpoint: bytes, slot: int, blob: BlobRef, codec: int = SNAPSHOT_CODEC_XOR
) -> Envelope:
    """Signs the hint."""
    message = wire.Snapshot(checkpoint=checkpoint, slot=slot, blob=blob.to_wire(), codec=codec)
    return seal(key, swarm=swarm, type=wire.SNAPSHOT, message=message)


def open_snapshot(envelope: Envelope, genesis: Genesis) -> Snapshot:
    """Checks a hint as far as it goes without the chain.

    Raises:
        RejectError: SCHEMA, SLOT, SIZE or CODEC.
    """
    message = decode_payload(envelope, wire.Snapshot)
    if message.codec != SNAPSHOT_CODEC_XOR:
        raise RejectError(Rule.CODEC, f"found snapshot codec {message.codec}, required {SNAPSHOT_CODEC_XOR}")
    blob = BlobRef.from_wire(message.blob, what="snapshot")
    check_range(
        blob.num_bytes,
        1,
        max_snapshot_bytes(genesis.modules),
        what="the number of bytes of the snapshot",
        rule=Rule.SIZE,
    )
    return Snapshot(
        author=envelope.public_key,
        checkpoint=check_id(message.checkpoint, what="the snapshot's checkpoint"),
        slot=check_range(message.slot, 1, MAX_SLOT, what="the snapshot's slot", rule=Rule.SLOT),
        blob=blob,
        codec=message.codec,
        envelope=envelope,
    )


# ---- bytes ---------------------------------------------------------------------------------------


def num_elements(module: ModuleShape) -> int:
    """Numbers of one module."""
    return module.out_features * module.in_features


def tile_sizes(module: ModuleShape) -> Iterator[int]:
    """Numbers in each tile of a module."""
    total = num_elements(module)
    for start in range(0, total, TILE_ELEMENTS):
        yield min(TILE_ELEMENTS, total - start)


def max_snapshot_bytes(modules: Iterable[ModuleShape]) -> int:
    """Bytes that a snapshot can take at most."""
    total = 0
    for module in modules:
        whole, rest = divmod(num_elements(module), TILE_ELEMENTS)
        total += whole * (_LENGTH.size + _frame_bound(TILE_ELEMENTS))
        total += _LENGTH.size + _frame_bound(rest) if rest else 0
    return total


def encode_tile(before: Float32Array, after: Float32Array) -> bytes:
    """One tile of the blob, length and frame, from as many numbers of the base and of the checkpoint."""
    bits = before.astype("<f4", copy=False).view("<u4") ^ after.astype("<f4", copy=False).view("<u4")
    planes = np.ascontiguousarray(bits.view(np.uint8).reshape(-1, 4).T)
    frame = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(planes.tobytes())
    return _LENGTH.pack(len(frame)) + frame


def decode_tile(frame: bytes, before: Float32Array) -> Float32Array:
    """The checkpoint's numbers from one frame and the base's numbers; allocates no more than they take.

    Raises:
        RejectError: CODEC, whatever the bytes.
    """
    num_bytes = 4 * before.size
    try:
        stated = zstandard.get_frame_parameters(frame)
        if stated.content_size != num_bytes or stated.dict_id != 0:
            raise RejectError(
                Rule.CODEC, f"found a frame stated to hold {stated.content_size} bytes, required {num_bytes}"
            )
        raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=num_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RejectError(Rule.CODEC, f"a frame of the snapshot is malformed: {error}") from error
    if len(raw) != num_bytes:
        raise RejectError(Rule.CODEC, f"found {len(raw)} unpacked bytes, required {num_bytes}")
    bits = np.ascontiguousarray(np.frombuffer(raw, dtype=np.uint8).reshape(4, -1).T).view("<u4").reshape(-1)
    after: Float32Array = (bits ^ before.astype("<f4", copy=False).view("<u4")).view("<f4")
    return after


def encode_module(module: ModuleShape, before: Float32Array, after: Float32Array) -> Iterator[bytes]:
    """The tiles of one module; both arrays flat and of its size, mapped files for instance."""
    if not before.size == after.size == num_elements(module):
        raise ValueError(f"{module.name}: found {before.size} and {after.size} numbers")
    start = 0
    for size in tile_sizes(module):
        yield encode_tile(before[start : start + size], after[start : start + size])
        start += size


def decode_module(source: Reader, module: ModuleShape, before: Float32Array) -> Iterator[Float32Array]:
    """The new numbers of one module, tile by tile; reads exactly its part of the source.

    Raises:
        RejectError: CODEC, whatever the bytes.
    """
    start = 0
    for size in tile_sizes(module):
        head = source.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise RejectError(Rule.CODEC, f"{module.name}: the snapshot ends before number {start}")
        (length,) = _LENGTH.unpack(head)
        if not 1 <= length <= _frame_bound(size):
            raise RejectError(
                Rule.CODEC, f"{module.name}: found a frame of {length} bytes, required 1 to {_frame_bound(size)}"
            )
        frame = source.read(length)
        if len(frame) < length:
            raise RejectError(Rule.CODEC, f"{module.name}: found {len(frame)} bytes of a frame of {length}")
        yield decode_tile(frame, before[start : start + size])
        start += size


def check_end(source: Reader) -> None:
    """Passes when nothing follows the last module.

    Raises:
        RejectError: CODEC.
    """
    if source.read(1):
        raise RejectError(Rule.CODEC, "found at least 1 byte behind the snapshot's last module, 0 required")


def _frame_bound(size: int) -> int:
    """Bytes that the frame of a tile may take: zstd's own bound for bytes that do not compress, and its headers."""
    return 4 * size + 4 * size // 256 + 128


# ---- the choice ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A snapshot that may be taken.

    Attributes:
        slot: Of its checkpoint.
        num_bytes: Bytes of it that are not here yet.
    """

    slot: int
    num_bytes: int


def fewest_bytes(
    missing: Sequence[tuple[int, float]], offers: Sequence[Offer], *, last_resort: bool = False
) -> Offer | None:
    """How to arrive at the head with the fewest bytes to fetch; None: by replay.

    Args:
        missing: Slot and bytes to fetch of each checkpoint that is not verified here, in any order; infinite bytes
            where a delta is not to be had.
        offers: Snapshots of final ones among these checkpoints.
        last_resort: Take a snapshot only where the replay is impossible.

    Returns:
        The best offer. Among equals replay wins, for it believes nobody, and then the newest offer.
    """
    replay = sum(num_bytes for _, num_bytes in missing)
    best, best_bytes = None, replay
    for offer in sorted(offers, key=lambda offer: -offer.slot):
        total = offer.num_bytes + sum(num_bytes for slot, num_bytes in missing if slot > offer.slot)
        if total < best_bytes:
            best, best_bytes = offer, total
    return best if math.isinf(replay) or not last_resort else None
