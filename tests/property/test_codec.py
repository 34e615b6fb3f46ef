"""Any canonical delta survives its encoding, and no bytes do more harm than a refusal."""

from dataclasses import dataclass

import numpy as np
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from fullrank_protocol.codec import CODEC_PACKED, decode, encode
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


def decode_or_refuse(data: bytes, codec: int) -> None:
    try:
        delta = decode(data, RULES, codec)
    except ProtocolError:
        return
    validate(delta, RULES)
    assert decode(encode(delta, RULES), RULES, CODEC_PACKED) == delta
