"""Deltas as bytes: few bits, then entropy coding (protocol section 6, "compression").

Codec 1, everything little-endian:

    number of parts                      4 bytes
    per part, ascending by module index:
        index into the genesis' modules  4 bytes
        form                             1 byte: 0 A sent, 1 A seeded, 2 dense
        width of an entry of B           1 byte: 2, 4 or 8 bits
        width of an entry of A           1 byte: 2, 4 or 8 bits when A is sent, else 0
        rank                             2 bytes; 1 for a dense part
    one zstd frame that states its content size, holding per part:
        scale mantissas                  1 byte each
        scale exponents                  2 bytes each, signed
        seeded rows                      2 bytes each, form 1 only
        B, component after component     packed
        A, component after component     packed, form 0 only

How integers are packed is told in `packing`. Those of 3 bits travel as 4, of 5 to 7 as 8: within bytes they line up,
and entropy coding takes the difference back (measured on Gaussian factors, bits an entry: 3 bits 1.8 instead of 2.3,
5 bits 4.2 instead of 4.7).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from fullrank_protocol.delta import validate
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.packing import WIDTHS, Octets, pack, packed_size, unpack, width_needed
from fullrank_protocol.parts import KIND_DENSE, Delta, DeltaRules, Dense, Int8Array, LowRank, ModuleShape, Part

CODEC_PACKED = 1

Buffer = bytes | memoryview

_FORM_SENT = 0
_FORM_SEEDED = 1
_FORM_DENSE = 2

_COUNT = struct.Struct("<I")
_HEAD = struct.Struct("<IBBBH")

COMPRESSION = zstandard.ZstdCompressionParameters.from_level(
    3, strategy=zstandard.STRATEGY_FAST, min_match=7, target_length=0, write_content_size=True
)
"""Entropy coding with hardly any search for repetitions, which factors do not have and which cost the entropy
coder its statistics: within 1 % of the entropy for ternary integers, 5 % at every width, where levels 3 to 15 lose up
to 20 %."""

_COMPONENT_BYTES = 256
"""A component's scale, row number and largest entry as Python's numbers, also while they are compared."""

_PART_BYTES = 2048
"""The Python objects of a part, with its entry of the header."""

_WORKING_BYTES = 1 << 20
"""What decoding takes beside, whatever the shapes: blocks being spread or looked at, and zstd's own tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """One part's entry in the header."""

    module: ModuleShape
    form: int
    width_b: int
    width_a: int
    rank: int

    def num_bytes(self) -> int:
        """Size of the part in the unpacked frame."""
        size = self.rank * (5 if self.form == _FORM_SEEDED else 3)
        size += packed_size(self.rank * self.module.out_features, self.width_b)
        if self.form == _FORM_SENT:
            size += packed_size(self.rank * self.module.in_features, self.width_a)
        return size


def encode(delta: Delta, rules: DeltaRules, codec: int = CODEC_PACKED) -> bytes:
    """Encode a canonical delta with the least widths that hold its integers.

    Raises:
        RejectError: when `delta` breaks a rule of the genesis, SIZE when it is too large.
        ValueError: `codec` is unknown.
    """
    if codec != CODEC_PACKED:
        raise ValueError(f"found codec {codec}, required {CODEC_PACKED}")
    validate(delta, rules)
    index_of = {module.name: index for index, module in enumerate(rules.modules)}
    heads: list[bytes] = []
    body: list[Buffer] = []
    for part in delta.parts:
        head, content = _encode_part(part, index_of[part.module])
        heads.append(head)
        body += content
    raw = b"".join(body)
    _check_size("unpacked delta", len(raw), rules)
    frame = zstandard.ZstdCompressor(compression_params=COMPRESSION).compress(raw)
    encoded = b"".join((_COUNT.pack(len(heads)), *heads, frame))
    _check_size("encoded delta", len(encoded), rules)
    return encoded


def decode(data: bytes, rules: DeltaRules, codec: int) -> Delta:
    """Decode and validate; seeded factors are left to `delta.expand`.

    Sizes are known from the header before anything is unpacked, and bounded by the genesis.

    Raises:
        RejectError: CODEC, SIZE, or a rule of `delta.validate`, whatever the bytes.
    """
    if codec != CODEC_PACKED or codec not in rules.codecs:
        raise RejectError(Rule.CODEC, f"found codec {codec}, required one of {sorted(rules.codecs)}")
    _check_size("encoded delta", len(data), rules)
    heads, offset = _decode_heads(data, rules)
    num_bytes = sum(head.num_bytes() for head in heads)
    _check_size("unpacked delta", num_bytes, rules)
    raw = _decompress(memoryview(data)[offset:], num_bytes)
    octets = np.frombuffer(raw, dtype=np.uint8)
    parts: list[Part] = []
    at = 0
    for head in heads:
        part, at = _decode_part(head, raw, octets, at)
        parts.append(part)
    delta = Delta(parts=tuple(parts))
    validate(delta, rules)
    return delta


def most_memory(rules: DeltaRules) -> int:
    """Most bytes that decoding holds at a time beside the encoded delta, whatever the bytes of that are.

    They are the unpacked frame (or what zstd has of it, twice, before it finds one cut short), the integers, one each
    byte, and a few rows of them while they are checked.
    """
    most = rules.limits.max_delta_bytes
    integers = components = widest = 0
    for module in rules.modules:
        dense = module.kind == KIND_DENSE
        integers += module.out_features if dense else rules.max_rank * (module.out_features + module.in_features)
        components += 1 if dense else rules.max_rank
        widest = max(widest, module.out_features, module.in_features)
    # At least two bits hold an integer, and three bytes a component's scale.
    held = most + max(most, min(integers, 4 * most)) + 4 * widest
    return held + _COMPONENT_BYTES * min(components, most // 3) + _PART_BYTES * len(rules.modules) + _WORKING_BYTES


def _check_size(what: str, num_bytes: int, rules: DeltaRules) -> None:
    if num_bytes > rules.limits.max_delta_bytes:
        raise RejectError(
            Rule.SIZE, f"{what}: found {num_bytes} bytes, required at most {rules.limits.max_delta_bytes}"
        )


def _encode_part(part: Part, index: int) -> tuple[bytes, Sequence[Buffer]]:
    """One entry of the header, and what the frame holds for it."""
    if isinstance(part, Dense):
        values = _flat(part.values_O)
        width = width_needed(values)
        scale = struct.pack("<Bh", part.scale_mantissa, part.scale_exponent)
        return _HEAD.pack(index, _FORM_DENSE, width, 0, 1), (scale, pack(values, width).data)
    rank = part.rank
    scales = struct.pack(f"<{rank}B{rank}h", *part.scale_mantissa_R, *part.scale_exponent_R)
    B_RO = _flat(part.B_OR.T)
    width_b = width_needed(B_RO)
    packed_b = pack(B_RO, width_b).data
    if part.row_R is not None:
        rows = struct.pack(f"<{rank}H", *part.row_R)
        return _HEAD.pack(index, _FORM_SEEDED, width_b, 0, rank), (scales, rows, packed_b)
    if part.A_RI is None:
        raise ValueError(f"{part.module}: found neither A nor seeded rows")
    A_RI = _flat(part.A_RI)
    width_a = width_needed(A_RI)
    return _HEAD.pack(index, _FORM_SENT, width_b, width_a, rank), (scales, packed_b, pack(A_RI, width_a).data)


def _decode_heads(data: bytes, rules: DeltaRules) -> tuple[list[_Head], int]:
    if len(data) < _COUNT.size:
        raise RejectError(Rule.CODEC, f"found {len(data)} bytes, required at least {_COUNT.size}")
    (count,) = _COUNT.unpack_from(data)
    if not 1 <= count <= len(rules.modules):
        raise RejectError(Rule.CODEC, f"found {count} parts, required 1 to {len(rules.modules)}")
    end = _COUNT.size + count * _HEAD.size
    if len(data) < end:
        raise RejectError(Rule.CODEC, f"found {len(data)} bytes, required at least {end} for {count} parts")
    heads: list[_Head] = []
    before = -1
    for index, form, width_b, width_a, rank in _HEAD.iter_unpack(data[_COUNT.size : end]):
        if not before < index < len(rules.modules):
            raise RejectError(
                Rule.CODEC, f"found module index {index}, required above {before} and below {len(rules.modules)}"
            )
        before = index
        if form not in (_FORM_SENT, _FORM_SEEDED, _FORM_DENSE):
            raise RejectError(Rule.CODEC, f"found form {form}, required 0, 1 or 2")
        if width_b not in WIDTHS or width_a not in (WIDTHS if form == _FORM_SENT else (0,)):
            raise RejectError(Rule.CODEC, f"found widths {width_b} and {width_a} in form {form}, required 2, 4 or 8")
        most = 1 if form == _FORM_DENSE else rules.max_rank
        if not 1 <= rank <= most:
            raise RejectError(Rule.RANK, f"found rank {rank}, required 1 to {most}")
        heads.append(_Head(module=rules.modules[index], form=form, width_b=width_b, width_a=width_a, rank=rank))
    return heads, end


def _decompress(frame: memoryview, num_bytes: int) -> bytes:
    """Decompress one frame of exactly `num_bytes` that fills `frame`; no more than that is ever allocated."""
    try:
        stated = zstandard.get_frame_parameters(frame)
        if stated.dict_id != 0:
            raise RejectError(Rule.CODEC, f"found a frame for dictionary {stated.dict_id}, required one without")
        if stated.content_size != num_bytes:
            raise RejectError(
                Rule.CODEC,
                f"found a frame of {stated.content_size} bytes, required {num_bytes} for this swarm's shapes",
            )
        raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=num_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RejectError(Rule.CODEC, f"the delta's zstd frame is malformed: {error}") from error
    if len(raw) != num_bytes:
        raise RejectError(Rule.CODEC, f"found {len(raw)} unpacked bytes, required {num_bytes}")
    return raw


def _decode_part(head: _Head, raw: bytes, octets: Octets, at: int) -> tuple[Part, int]:
    """The part that begins at `at`, and where it ends; `octets` are the bytes of `raw`."""
    rank, module = head.rank, head.module
    scales = struct.unpack_from(f"<{rank}B{rank}h", raw, at)
    mantissas, exponents = scales[:rank], scales[rank:]
    at += 3 * rank
    rows: tuple[int, ...] | None = None
    if head.form == _FORM_SEEDED:
        rows = struct.unpack_from(f"<{rank}H", raw, at)
        at += 2 * rank
    end = at + packed_size(rank * module.out_features, head.width_b)
    flat = unpack(octets[at:end], rank * module.out_features, head.width_b)
    if head.form == _FORM_DENSE:
        return Dense(module=module.name, values_O=flat, scale_mantissa=mantissas[0], scale_exponent=exponents[0]), end
    B_OR = flat.reshape(rank, module.out_features).T
    A_RI: Int8Array | None = None
    if head.form == _FORM_SENT:
        at, end = end, end + packed_size(rank * module.in_features, head.width_a)
        A_RI = unpack(octets[at:end], rank * module.in_features, head.width_a).reshape(rank, module.in_features)
    part = LowRank(
        module=module.name,
        B_OR=B_OR,
        A_RI=A_RI,
        scale_mantissa_R=mantissas,
        scale_exponent_R=exponents,
        row_R=rows,
    )
    return part, end


def _flat(integers: Int8Array) -> Octets:
    """The integers in row-major order, seen as bytes; not copied where they lie so."""
    return np.ascontiguousarray(integers).reshape(-1).view(np.uint8)
