"""Deltas as bytes: bounded before anything is unpacked, and refused with a reason (protocol section 6)."""

import struct
from dataclasses import dataclass, replace

import numpy as np
import pytest
import zstandard

from fullrank_protocol.codec import CODEC_PACKED, decode, encode
from fullrank_protocol.delta import Delta, Dense, LowRank
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Limits, Module, ModuleKind

LIMITS = Limits(max_delta_bytes=1000, min_scale_exponent=-20, max_scale_exponent=0, max_checkpoint_bytes=10_000)


@dataclass(frozen=True, kw_only=True)
class Rules:
    modules: tuple[Module, ...] = (
        Module(name="down", kind=ModuleKind.LINEAR, out_features=2, in_features=3),
        Module(name="norm", kind=ModuleKind.DENSE, out_features=3, in_features=1),
        Module(name="up", kind=ModuleKind.LINEAR, out_features=3, in_features=2),
    )
    max_rank: int = 4
    codecs: tuple[int, ...] = (CODEC_PACKED,)
    limits: Limits = LIMITS


RULES = Rules()
SENT = LowRank(
    module="down",
    B_OR=np.array([[64, 100], [0, -127]], dtype=np.int8),
    A_RI=np.array([[-16, 32, 64], [-64, 48, 0]], dtype=np.int8),
    scale_mantissa_R=(3, 1),
    scale_exponent_R=(-10, -9),
)
DENSE = Dense(module="norm", values_O=np.array([64, 0, -64], dtype=np.int8), scale_mantissa=5, scale_exponent=-3)
SEEDED = LowRank(
    module="up",
    B_OR=np.array([[64], [-32], [96]], dtype=np.int8),
    A_RI=None,
    scale_mantissa_R=(15,),
    scale_exponent_R=(-20,),
    row_R=(3,),
)
DELTA = Delta(parts=(SENT, DENSE, SEEDED))

COUNT = struct.pack("<I", 3)
HEADS = (
    struct.pack("<IBBBH", 0, 0, 8, 4, 2),
    struct.pack("<IBBBH", 1, 2, 2, 0, 1),
    struct.pack("<IBBBH", 2, 1, 4, 0, 1),
)
BODY = (
    # down: mantissas, exponents, B in bytes, A in nibbles q = value / 16, the first in the low one.
    bytes([3, 1]) + struct.pack("<hh", -10, -9) + bytes([64, 0, 100, 0x81]) + bytes([0x2F, 0xC4, 0x03])
    # norm: values / 64 as 1, 0, -1 in two bits each.
    + bytes([5]) + struct.pack("<h", -3) + bytes([0b110001])
    # up: mantissa, exponent, row, B / 16 as 4, -2, 6.
    + bytes([15]) + struct.pack("<h", -20) + struct.pack("<H", 3) + bytes([0xE4, 0x06])
)  # fmt: skip


def packed(count: bytes = COUNT, heads: tuple[bytes, ...] = HEADS, body: bytes = BODY) -> bytes:
    return count + b"".join(heads) + zstandard.ZstdCompressor().compress(body)


def refused(data: bytes, *, rules: Rules = RULES, codec: int = CODEC_PACKED) -> Rule:
    with pytest.raises(RejectError) as caught:
        decode(data, rules, codec)
    assert "found" in caught.value.detail or "malformed" in caught.value.detail
    return caught.value.rule


def test_the_layout_is_the_one_described() -> None:
    assert decode(packed(), RULES, CODEC_PACKED) == DELTA
    data = encode(DELTA, RULES)
    assert data[:31] == packed()[:31]
    assert zstandard.ZstdDecompressor().decompress(data[31:]) == BODY


def test_what_is_encoded_comes_back() -> None:
    assert decode(encode(DELTA, RULES), RULES, CODEC_PACKED) == DELTA
    for part in DELTA.parts:
        alone = Delta(parts=(part,))
        assert decode(encode(alone, RULES), RULES, CODEC_PACKED) == alone


def test_only_canonical_deltas_are_encoded() -> None:
    with pytest.raises(RejectError):
        encode(Delta(parts=()), RULES)
    with pytest.raises(RejectError):
        encode(Delta(parts=(replace(SENT, scale_mantissa_R=(2, 1)),)), RULES)
    with pytest.raises(ValueError, match="codec"):
        encode(DELTA, RULES, 2)


def test_a_codec_that_the_genesis_does_not_allow_is_refused() -> None:
    assert refused(packed(), codec=2) == Rule.CODEC
    assert refused(packed(), rules=replace(RULES, codecs=(2,))) == Rule.CODEC


def test_too_many_bytes_are_refused_before_anything_is_read() -> None:
    few = replace(RULES, limits=replace(RULES.limits, max_delta_bytes=30))
    assert refused(b"\xff" * 31, rules=few) == Rule.SIZE
    with pytest.raises(RejectError) as caught:
        encode(DELTA, replace(RULES, limits=replace(RULES.limits, max_delta_bytes=len(encode(DELTA, RULES)) - 1)))
    assert caught.value.rule == Rule.SIZE


def test_few_bytes_that_would_unpack_to_too_many_are_refused_before_unpacking() -> None:
    wide = Module(name="wide", kind=ModuleKind.LINEAR, out_features=1 << 24, in_features=1 << 11)
    rules = replace(RULES, modules=(wide,), max_rank=1024)
    bomb = packed(struct.pack("<I", 1), (struct.pack("<IBBBH", 0, 1, 8, 0, 1024),), bytes(10))
    assert refused(bomb, rules=rules) == Rule.SIZE


def test_a_frame_that_states_or_holds_another_size_is_refused() -> None:
    assert refused(packed(body=BODY[:-1])) == Rule.CODEC
    assert refused(packed(body=BODY + b"\0")) == Rule.CODEC
    unstated = zstandard.ZstdCompressor(write_content_size=False).compress(BODY)
    assert refused(COUNT + b"".join(HEADS) + unstated) == Rule.CODEC
    # A frame of the right stated size with the blocks of a longer one.
    honest = zstandard.ZstdCompressor(write_checksum=False).compress(BODY)
    longer = zstandard.ZstdCompressor(write_checksum=False).compress(BODY + bytes(range(40)))
    assert honest[4] == longer[4] == 0x20  # One byte of content size, single segment.
    assert refused(COUNT + b"".join(HEADS) + longer[:5] + honest[5:6] + longer[6:]) == Rule.CODEC


def test_nothing_may_follow_the_frame() -> None:
    assert refused(packed() + b"\0") == Rule.CODEC
    assert refused(packed() + packed()[31:]) == Rule.CODEC
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"hide"
    assert refused(packed() + skippable) == Rule.CODEC
    assert refused(COUNT + b"".join(HEADS) + skippable + packed()[31:]) == Rule.CODEC


def test_every_truncation_is_refused() -> None:
    data = packed()
    for size in range(len(data)):
        refused(data[:size])


def test_the_number_of_parts_is_between_one_and_the_number_of_modules() -> None:
    assert refused(packed(struct.pack("<I", 0), (), b"")) == Rule.CODEC
    assert refused(packed(struct.pack("<I", 4), (*HEADS, HEADS[2]))) == Rule.CODEC
    assert refused(packed(struct.pack("<I", 0xFFFFFFFF))) == Rule.CODEC


@pytest.mark.parametrize(
    "head",
    [
        (3, 1, 4, 0, 1),  # No such module.
        (1, 1, 4, 0, 1),  # Not ascending.
        (2, 3, 4, 0, 1),  # No such form.
        (2, 1, 3, 0, 1),  # No such width.
        (2, 1, 0, 0, 1),
        (2, 1, 4, 4, 1),  # A seeded part sends no A.
        (2, 0, 4, 0, 1),  # A sent part does.
    ],
)
def test_a_malformed_head_is_refused(head: tuple[int, ...]) -> None:
    assert refused(packed(heads=(*HEADS[:2], struct.pack("<IBBBH", *head)))) == Rule.CODEC


@pytest.mark.parametrize("rank", [0, 5, 0xFFFF])
def test_a_rank_outside_the_genesis_bounds_is_refused(rank: int) -> None:
    assert refused(packed(heads=(*HEADS[:2], struct.pack("<IBBBH", 2, 1, 4, 0, rank)))) == Rule.RANK


def test_a_dense_part_has_rank_one() -> None:
    assert refused(packed(heads=(HEADS[0], struct.pack("<IBBBH", 1, 2, 2, 0, 2), HEADS[2]))) == Rule.RANK


def test_unused_bits_are_zero() -> None:
    at = BODY.index(bytes([0b110001]))
    assert refused(packed(body=BODY[:at] + bytes([0b01110001]) + BODY[at + 1 :])) == Rule.CODEC


def test_decoded_parts_are_checked_like_any_others() -> None:
    assert refused(packed(body=bytes([2]) + BODY[1:])) == Rule.SCALE
    assert refused(packed(body=BODY[:-1] + bytes([0x08]))) == Rule.NON_CANONICAL  # -8 * 16 = -128.
    assert refused(packed(heads=(HEADS[0], struct.pack("<IBBBH", 1, 1, 2, 0, 1), HEADS[2]))) in (Rule.CODEC, Rule.SHAPE)


def test_four_bits_take_about_three_bits_of_entropy() -> None:
    rng = np.random.default_rng(0)
    part = LowRank(
        module="m",
        B_OR=np.clip(np.rint(rng.normal(size=(4096, 4)) * 2), -7, 7).astype(np.int8) * np.int8(16),
        A_RI=None,
        scale_mantissa_R=(1,) * 4,
        scale_exponent_R=(0,) * 4,
        row_R=(0, 1, 2, 3),
    )
    module = Module(name="m", kind=ModuleKind.LINEAR, out_features=4096, in_features=8)
    rules = replace(RULES, modules=(module,), limits=replace(RULES.limits, max_delta_bytes=100_000))
    assert len(encode(Delta(parts=(part,)), rules)) < 4096 * 4 * 3.2 / 8
