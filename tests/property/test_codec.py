"""Any canonical delta survives its encoding, and no bytes do more harm than a refusal."""

import struct
import tracemalloc
from dataclasses import dataclass

import numpy as np
import zstandard
from hostile_frames import LARGEST_BLOCK, MAGIC, block, frame, skippable
from hypothesis import example, given
from hypothesis import strategies as st

from fullrank_protocol.codec import CODEC_PACKED, decode, encode, most_memory
from fullrank_protocol.delta import Delta, Part, quantize_dense, quantize_low_rank, validate
from fullrank_protocol.errors import ProtocolError
from fullrank_protocol.genesis import Limits, Module, ModuleKind

LIMITS = Limits(max_delta_bytes=5_000, min_scale_exponent=-30, max_scale_exponent=10, max_checkpoint_bytes=10_000)


@dataclass(frozen=True, kw_only=True)
class Rules:
    modules: tuple[Module, ...] = (
        Module(name="a", kind=ModuleKind.LINEAR, out_features=5, in_features=3),
        Module(name="b", kind=ModuleKind.DENSE, out_features=7, in_features=1),
        Module(name="c", kind=ModuleKind.LINEAR, out_features=2, in_features=9),
    )
    max_rank: int = 6
    codecs: tuple[int, ...] = (CODEC_PACKED,)
    limits: Limits = LIMITS


RULES = Rules()


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    """Whatever comes out of rounding random factors of wildly different sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    stochastic = draw(st.booleans())
    parts: list[Part] = []
    for module in RULES.modules:
        size = 10.0 ** draw(st.integers(-8, 2))
        bits = draw(st.integers(2, 8))
        if module.kind == ModuleKind.DENSE:
            dense = quantize_dense(
                module.name,
                rng.normal(size=module.out_features) * size,
                bits=bits,
                rng=rng,
                stochastic=stochastic,
                limits=RULES.limits,
            )
            parts += [] if dense is None else [dense]
            continue
        rank = draw(st.integers(0, RULES.max_rank))
        seeded = draw(st.booleans())
        parts.append(
            quantize_low_rank(
                module.name,
                rng.normal(size=(module.out_features, rank)) * size,
                None if seeded else rng.standard_cauchy(size=(rank, module.in_features)),
                bits_b=bits,
                bits_a=draw(st.integers(2, 8)),
                scale=draw(st.sampled_from([1.0, -0.37, 1e-3])),
                rng=rng,
                stochastic=stochastic,
                limits=RULES.limits,
            )
        )
    return Delta.of(parts)


@given(deltas())
def test_a_delta_comes_back_from_its_bytes(delta: Delta) -> None:
    if not delta.parts:
        return
    validate(delta, RULES)
    assert decode(encode(delta, RULES), RULES, CODEC_PACKED) == delta


@given(st.binary(max_size=200), st.integers(0, 3))
@example(b"", 1)
def test_any_bytes_are_a_delta_or_a_refusal(data: bytes, codec: int) -> None:
    decode_or_refuse(data, codec)


@given(deltas(), st.data())
def test_damaged_bytes_are_a_delta_or_a_refusal(delta: Delta, data: st.DataObject) -> None:
    if not delta.parts:
        return
    damaged = bytearray(encode(delta, RULES))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(damaged), CODEC_PACKED)


@given(deltas(), st.data())
def test_damage_below_the_compression_is_a_delta_or_a_refusal(delta: Delta, data: st.DataObject) -> None:
    if not delta.parts:
        return
    whole = encode(delta, RULES)
    head = 4 + 9 * len(delta.parts)
    body = bytearray(zstandard.ZstdDecompressor().decompress(whole[head:]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(whole[:head] + zstandard.ZstdCompressor().compress(bytes(body)), CODEC_PACKED)


@given(deltas(), deltas(), st.data())
def test_two_deltas_spliced_are_a_delta_or_a_refusal(one: Delta, other: Delta, data: st.DataObject) -> None:
    if not (one.parts and other.parts):
        return
    first, second = encode(one, RULES), encode(other, RULES)
    until = data.draw(st.integers(0, len(first)))
    since = data.draw(st.integers(0, len(second)))
    decode_or_refuse(first[:until] + second[since:], CODEC_PACKED)
    heads, more_heads = 4 + 9 * len(one.parts), 4 + 9 * len(other.parts)
    decode_or_refuse(first[:heads] + second[more_heads:], CODEC_PACKED)
    decode_or_refuse(first + second[more_heads:], CODEC_PACKED)


HEADS = st.lists(
    st.builds(
        lambda *fields: struct.pack("<IBBBH", *fields),
        st.integers(0, 3) | st.just(0xFFFFFFFF),
        st.integers(0, 3),
        st.sampled_from([0, 2, 3, 4, 8, 255]),
        st.sampled_from([0, 0, 2, 4, 8]),
        st.integers(1, 6) | st.sampled_from([0, 7, 0xFFFF]),
    ),
    min_size=1,
    max_size=3,
)

FRAMES = st.builds(
    frame,
    st.lists(
        st.builds(
            block,
            st.integers(0, 3),
            st.binary(max_size=40),
            st.integers(0, 40) | st.sampled_from([LARGEST_BLOCK, LARGEST_BLOCK + 1, (1 << 21) - 1]),
            last=st.booleans(),
        ),
        max_size=6,
    ),
    content_size=st.integers(0, 200) | st.integers(0, (1 << 64) - 1),
    window_log=st.none() | st.integers(10, 41),
    dictionary=st.sampled_from([0, 0, 0, 1]),
    checksum=st.sampled_from([b"", b"", b"", b"four"]),
    reserved=st.sampled_from([False, False, False, True]),
    magic=st.sampled_from([MAGIC, MAGIC, MAGIC, MAGIC - 1]),
)

BESIDE = st.sampled_from([b"", b"", b"", skippable(b""), skippable(b"", size=0xFFFFFFFF), skippable(bytes(9)), b"\0"])


@given(HEADS, FRAMES, BESIDE, BESIDE, st.booleans())
def test_frames_that_no_compressor_writes_are_a_delta_or_a_refusal(
    heads: list[bytes], content: bytes, before: bytes, behind: bytes, twice: bool
) -> None:
    blob = struct.pack("<I", len(heads)) + b"".join(heads) + before + content * (1 + twice) + behind
    decode_or_refuse(blob, CODEC_PACKED)


@given(deltas(), st.sampled_from([None, 10, 17, 27]), st.integers(-2, 2), BESIDE, BESIDE)
def test_a_stated_size_that_lies_is_refused(
    delta: Delta, window_log: int | None, lie: int, before: bytes, behind: bytes
) -> None:
    """The same content in blocks as they are: refused but where it states its size and stands alone."""
    if not delta.parts:
        return
    whole = encode(delta, RULES)
    heads = 4 + 9 * len(delta.parts)
    body = zstandard.ZstdDecompressor().decompress(whole[heads:])
    content = frame(block(0, body, len(body), last=True), content_size=len(body) + lie, window_log=window_log)
    found = decode_or_refuse(whole[:heads] + before + content + behind, CODEC_PACKED)
    assert found == (delta if (lie, before, behind) == (0, b"", b"") else None)


def decode_or_refuse(data: bytes, codec: int) -> Delta | None:
    tracemalloc.start()
    try:
        delta = decode(data, RULES, codec)
    except ProtocolError:
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most_memory(RULES)
    validate(delta, RULES)
    assert decode(encode(delta, RULES), RULES, CODEC_PACKED) == delta
    return delta
