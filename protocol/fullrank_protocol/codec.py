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

A packed array holds two's complement integers q of b = 2, 4 or 8 bits, from the lowest bits of the first byte on;
unused bits of the last byte are zero. q stands for the integer q * 2^(8 - b). Integers of 3 bits travel as 4, of
5 to 7 as 8: within bytes they line up, and entropy coding takes the difference back (measured on Gaussian
factors, bits an entry: 3 bits 1.8 instead of 2.3, 5 bits 4.2 instead of 4.7).
"""

import struct
from dataclasses import dataclass

import numpy as np
import zstandard

from fullrank_protocol.delta import validate
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parts import Delta, DeltaRules, Dense, Int8Array, LowRank, ModuleShape, Part

CODEC_PACKED = 1

_FORM_SENT = 0
_FORM_SEEDED = 1
_FORM_DENSE = 2

_WIDTHS = (2, 4, 8)

_COUNT = struct.Struct("<I")
_HEAD = struct.Struct("<IBBBH")

_COMPRESSION = zstandard.ZstdCompressionParameters.from_level(
    3, strategy=zstandard.STRATEGY_FAST, min_match=7, target_length=0, write_content_size=True
)
"""Entropy coding with hardly any search for repetitions, which factors do not have and which cost the entropy
coder its statistics: within 5 % of the entropy at every width, where levels 3 to 15 lose up to 20 %."""


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
        size += _packed_size(self.rank * self.module.out_features, self.width_b)
        if self.form == _FORM_SENT:
            size += _packed_size(self.rank * self.module.in_features, self.width_a)
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
    body: list[bytes] = []
    for part in delta.parts:
        head, content = _encode_part(part, index_of[part.module])
        heads.append(head)
        body.append(content)
    raw = b"".join(body)
    _check_size("unpacked delta", len(raw), rules)
    frame = zstandard.ZstdCompressor(compression_params=_COMPRESSION).compress(raw)
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
    raw = _decompress(data[offset:], num_bytes)
    parts: list[Part] = []
    at = 0
    for head in heads:
        end = at + head.num_bytes()
        parts.append(_decode_part(head, raw[at:end]))
        at = end
    delta = Delta(parts=tuple(parts))
    validate(delta, rules)
    return delta


def _check_size(what: str, num_bytes: int, rules: DeltaRules) -> None:
    if num_bytes > rules.limits.max_delta_bytes:
        raise RejectError(
            Rule.SIZE, f"{what}: found {num_bytes} bytes, required at most {rules.limits.max_delta_bytes}"
        )


def _encode_part(part: Part, index: int) -> tuple[bytes, bytes]:
    if isinstance(part, Dense):
        width = _width_needed(part.values_O)
        head = _HEAD.pack(index, _FORM_DENSE, width, 0, 1)
        return head, struct.pack("<Bh", part.scale_mantissa, part.scale_exponent) + _pack(part.values_O, width)
    width_b = _width_needed(part.B_OR)
    content = [
        np.array(part.scale_mantissa_R, dtype="<u1").tobytes(),
        np.array(part.scale_exponent_R, dtype="<i2").tobytes(),
    ]
    if part.row_R is not None:
        content += [np.array(part.row_R, dtype="<u2").tobytes(), _pack(part.B_OR.T, width_b)]
        return _HEAD.pack(index, _FORM_SEEDED, width_b, 0, part.rank), b"".join(content)
    if part.A_RI is None:
        raise ValueError(f"{part.module}: found neither A nor seeded rows")
    width_a = _width_needed(part.A_RI)
    content += [_pack(part.B_OR.T, width_b), _pack(part.A_RI, width_a)]
    return _HEAD.pack(index, _FORM_SENT, width_b, width_a, part.rank), b"".join(content)


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
        if width_b not in _WIDTHS or width_a not in (_WIDTHS if form == _FORM_SENT else (0,)):
            raise RejectError(Rule.CODEC, f"found widths {width_b} and {width_a} in form {form}, required 2, 4 or 8")
        most = 1 if form == _FORM_DENSE else rules.max_rank
        if not 1 <= rank <= most:
            raise RejectError(Rule.RANK, f"found rank {rank}, required 1 to {most}")
        heads.append(_Head(module=rules.modules[index], form=form, width_b=width_b, width_a=width_a, rank=rank))
    return heads, end


def _decompress(frame: bytes, num_bytes: int) -> bytes:
    """Decompress one frame of exactly `num_bytes` that fills `frame`; no more than that is ever allocated."""
    try:
        stated = zstandard.get_frame_parameters(frame)
        if stated.content_size != num_bytes or stated.dict_id != 0:
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


def _decode_part(head: _Head, raw: bytes) -> Part:
    rank, module = head.rank, head.module
    mantissas = tuple(raw[:rank])
    exponents = tuple(np.frombuffer(raw, dtype="<i2", count=rank, offset=rank).tolist())
    at = 3 * rank
    rows: tuple[int, ...] | None = None
    if head.form == _FORM_SEEDED:
        rows = tuple(np.frombuffer(raw, dtype="<u2", count=rank, offset=at).tolist())
        at += 2 * rank
    end = at + _packed_size(rank * module.out_features, head.width_b)
    B_RO = _unpack(raw[at:end], rank * module.out_features, head.width_b).reshape(rank, module.out_features)
    if head.form == _FORM_DENSE:
        return Dense(module=module.name, values_O=B_RO[0], scale_mantissa=mantissas[0], scale_exponent=exponents[0])
    A_RI: Int8Array | None = None
    if head.form == _FORM_SENT:
        A_RI = _unpack(raw[end:], rank * module.in_features, head.width_a).reshape(rank, module.in_features)
    return LowRank(
        module=module.name,
        B_OR=B_RO.T,
        A_RI=A_RI,
        scale_mantissa_R=mantissas,
        scale_exponent_R=exponents,
        row_R=rows,
    )


def _packed_size(num_entries: int, width: int) -> int:
    return (num_entries * width + 7) // 8


def _width_needed(integers: Int8Array) -> int:
    """Least width whose packed values stand for `integers`, which reach 64 and so need at least two bits."""
    used = int(np.bitwise_or.reduce(integers.view(np.uint8), axis=None))
    return next(width for width in _WIDTHS if used % (1 << (8 - width)) == 0)


def _pack(integers: Int8Array, width: int) -> bytes:
    flat = np.ascontiguousarray(integers).reshape(-1).view(np.uint8)
    entries = 8 // width
    padded = np.pad(flat, (0, -len(flat) % entries)).reshape(-1, entries)
    octets = np.zeros(len(padded), dtype=np.uint8)
    for place in range(entries):
        octets |= padded[:, place] >> np.uint8(8 - width * (place + 1))
    return octets.tobytes()


def _unpack(packed: bytes, num_entries: int, width: int) -> Int8Array:
    octets = np.frombuffer(packed, dtype=np.uint8)
    entries = 8 // width
    # The b bits of q in the highest places of a byte are q * 2^(8 - b) in two's complement.
    highest = np.uint8(0xFF << (8 - width) & 0xFF)
    spread = np.empty((len(octets), entries), dtype=np.uint8)
    for place in range(entries):
        spread[:, place] = (octets << np.uint8(8 - width * (place + 1))) & highest
    flat = spread.reshape(-1)
    if flat[num_entries:].any():
        raise RejectError(
            Rule.CODEC, f"found set bits behind the {num_entries} entries of a packed array, required zeros"
        )
    return flat[:num_entries].view(np.int8)
