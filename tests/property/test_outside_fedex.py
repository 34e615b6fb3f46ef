"""FedEx-LoRA's identity: the exact update is the product of mean factors plus a residual folded into the base.

Source: Raghav Singhal, Kaustubh Ponkshe, Praneeth Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient
Fine-Tuning of Large Language Models", 2024, arXiv:2410.09432. There the server averages the factors of k clients of one
rank and adds to the frozen weights what that misses, mean(B_i A_i) - mean(B_i) mean(A_i), "mean of products minus
product of means", so that every client goes on from W_0 + mean(B_i A_i).

Here the identity is used in the direction that does not compute what it checks. For weights p_i that add up to 1, with
means over p,

    sum p_i B_i A_i - mean(B) mean(A) = sum p_i (B_i - mean(B)) (A_i - mean(A)),

since the mixed terms sum p_i B_i mean(A) and mean(B) sum p_i A_i are both mean(B) mean(A). So FedEx's model is
W + S (mean(B) mean(A) + the right-hand side) with p_i = w_i / S and S the sum of the weights; no product B_i A_i of one
client occurs in it. The swarm never averages a factor: it must come to the same model from the clients' bytes.
"""

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outside_checks import LAYER, FloatArray, float32_bound, genesis_of_layer, rounding_bound, seeds_of

from fullrank_protocol.codec import CODEC_PACKED, decode, encode
from fullrank_protocol.delta import Delta, LowRank, SeedContext, expand, quantize_low_rank
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import apply_tile, canonical_float32, plan_update

Exact = npt.NDArray[np.object_]
"""Fractions."""

CLIENTS = ("ada", "ben", "cyd", "dora")


def received(
    genesis: Genesis, B_OR: FloatArray, A_RI: FloatArray | None, *, drawn_from: SeedContext, bits: int
) -> Delta:
    """What arrives of a client's factors: rounded to the nearest integers, encoded, decoded, seeded A drawn."""
    part = quantize_low_rank(
        LAYER,
        B_OR,
        A_RI,
        bits_b=bits,
        bits_a=bits,
        scale=1.0,
        rng=np.random.default_rng(0),
        stochastic=False,
        limits=genesis.limits,
    )
    return expand(decode(encode(Delta.of([part]), genesis), genesis, CODEC_PACKED), drawn_from, genesis.modules)


def applied(genesis: Genesis, weight_OI: npt.NDArray[np.float32], deltas: list[Delta], weights: list[Scaled]) -> Any:
    """The exact apply; every component must lie on the grid."""
    (planned,) = plan_update(deltas, weights, genesis.modules)
    assert planned[1].num_dropped == 0
    return apply_tile(weight_OI, planned[1], slice(0, len(weight_OI)))


def fedex(B_COR: Any, A_CRI: Any, weights: Any) -> tuple[Any, Any]:
    """The product of the mean factors, and the residual, both times the sum of the weights."""
    total = sum(weights)
    share_C11 = (weights / total)[:, np.newaxis, np.newaxis]
    mean_b, mean_a = (share_C11 * B_COR).sum(axis=0), (share_C11 * A_CRI).sum(axis=0)
    centred = zip(share_C11, B_COR - mean_b, A_CRI - mean_a, strict=True)
    return total * (mean_b @ mean_a), total * sum((share * b) @ a for share, b, a in centred)


def exact_factors(delta: Delta, rank: int) -> tuple[Exact, Exact]:
    """A client's factors as fractions; components that rounding left out are zeros."""
    (part,) = delta.parts
    assert isinstance(part, LowRank)
    assert part.A_RI is not None
    scales = [s * Fraction(2) ** e for s, e in zip(part.scale_mantissa_R, part.scale_exponent_R, strict=True)]
    B_OR = np.full((len(part.B_OR), rank), Fraction(0), dtype=object)
    A_RI = np.full((rank, part.A_RI.shape[1]), Fraction(0), dtype=object)
    for k, scale in enumerate(scales):
        B_OR[:, k] = [scale * int(entry) for entry in part.B_OR[:, k]]
        A_RI[k] = [Fraction(int(entry)) for entry in part.A_RI[k]]
    return B_OR, A_RI


def some_weights(rng: np.random.Generator, count: int) -> list[Scaled]:
    return [Scaled.of(weight) for weight in rng.uniform(0.02, 1.0, size=count)]


seeds = st.integers(0, 2**32)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(seed=seeds, shape=shapes, rank=st.integers(1, 5), clients=st.integers(1, 5), bits=st.integers(2, 8))
def test_the_exact_apply_is_fedex_to_the_last_bit(
    seed: int, shape: tuple[int, int], rank: int, clients: int, bits: int
) -> None:
    """Of the integers that arrive, in fractions: W plus product of means plus residual, rounded to float64 and then to
    float32, is the master.

    Fails if the apply took a weight, a scale, a sign or the pairing of a column with a row wrongly, or rounded a sum
    before it is added to W.
    """
    rng = np.random.default_rng(seed)
    genesis = genesis_of_layer(*shape)
    weights = some_weights(rng, clients)
    deltas = []
    for _ in range(clients):
        sizes = 10.0 ** rng.uniform(-2, 0, size=rank)
        B_OR, A_RI = rng.normal(size=(shape[0], rank)) * sizes, rng.normal(size=(rank, shape[1]))
        deltas.append(received(genesis, B_OR, A_RI, drawn_from=seeds_of(genesis, "ada"), bits=bits))
    before = canonical_float32(rng.normal(size=shape).astype(np.float32))
    found = applied(genesis, before, deltas, weights)

    pairs = [exact_factors(delta, rank) for delta in deltas]
    exact_weights = np.array([Fraction(weight.value()) for weight in weights], dtype=object)
    together, residual = fedex(np.array([b for b, _ in pairs]), np.array([a for _, a in pairs]), exact_weights)
    update = (together + residual).astype(np.float64)
    assert [Fraction(entry) for entry in update.flat] == list((together + residual).flat)  # Nothing was rounded yet.
    expected = canonical_float32((before.astype(np.float64) + update).astype(np.float32))
    assert found.tobytes() == expected.tobytes()


@given(seed=seeds, shape=shapes, rank=st.integers(1, 5), clients=st.integers(1, 5))
def test_the_exact_apply_is_fedex_of_the_floats_up_to_rounding(
    seed: int, shape: tuple[int, int], rank: int, clients: int
) -> None:
    """Of the clients' own floats, eight bits on the way: off by at most what the scales that were sent say.

    Fails if a scale were lost or applied twice, an integer stood for another float than it was rounded from, or the
    bytes for another integer.
    """
    rng = np.random.default_rng(seed)
    genesis = genesis_of_layer(*shape)
    weights = some_weights(rng, clients)
    B_COR, A_CRI = rng.normal(size=(clients, shape[0], rank)), rng.normal(size=(clients, rank, shape[1]))
    own = seeds_of(genesis, "ada")
    deltas = [received(genesis, b, a, drawn_from=own, bits=8) for b, a in zip(B_COR, A_CRI, strict=True)]
    before = canonical_float32(rng.normal(size=shape).astype(np.float32))
    expected = before + sum(fedex(B_COR, A_CRI, np.array([weight.value() for weight in weights])))
    bounds = [w.value() * rounding_bound(delta, LAYER, bits=8) for w, delta in zip(weights, deltas, strict=True)]
    off = np.abs(applied(genesis, before, deltas, weights) - expected)
    assert (off <= np.sum(bounds, axis=0) + float32_bound(np.abs(before) + np.abs(expected))).all()


@given(seed=seeds, shape=shapes, rank=st.integers(1, 5), clients=st.integers(2, 5))
def test_the_residual_is_nothing_where_all_share_one_seeded_a(
    seed: int, shape: tuple[int, int], rank: int, clients: int
) -> None:
    """With one frozen A for all, as in FFA-LoRA, the product of means is all there is, to the last bit.

    Fails if two draws of one seed differed, or a row number named another row.
    """
    rng = np.random.default_rng(seed)
    genesis = genesis_of_layer(*shape)
    weights = some_weights(rng, clients)
    own = seeds_of(genesis, "ada")
    deltas = [
        received(genesis, rng.normal(size=(shape[0], rank)), None, drawn_from=own, bits=4) for _ in range(clients)
    ]
    pairs = [exact_factors(delta, rank) for delta in deltas]
    exact_weights = np.array([Fraction(weight.value()) for weight in weights], dtype=object)
    together, residual = fedex(np.array([b for b, _ in pairs]), np.array([a for _, a in pairs]), exact_weights)
    assert not residual.any()
    before = canonical_float32(rng.normal(size=shape).astype(np.float32))
    expected = canonical_float32((before.astype(np.float64) + together.astype(np.float64)).astype(np.float32))
    assert applied(genesis, before, deltas, weights).tobytes() == expected.tobytes()


@pytest.mark.parametrize("seeded", [False, True])
def test_without_the_residual_own_factors_are_another_model(*, seeded: bool) -> None:
    """The control: clients with own A, sent or seeded, are off the product of means by many times the rounding."""
    rng = np.random.default_rng(2410)
    genesis = genesis_of_layer(9, 7)
    weights = np.full(4, 0.25)
    B_COR = rng.normal(size=(4, 9, 3))
    deltas = [
        received(genesis, b, None if seeded else rng.normal(size=(3, 7)), drawn_from=seeds_of(genesis, name), bits=8)
        for name, b in zip(CLIENTS, B_COR, strict=True)
    ]
    pairs = [exact_factors(delta, 3) for delta in deltas]
    together, _ = fedex(
        np.array([b for b, _ in pairs]).astype(float), np.array([a for _, a in pairs]).astype(float), weights
    )
    before = np.zeros((9, 7), dtype=np.float32)
    found = applied(genesis, before, deltas, [Scaled.of(0.25)] * 4)
    bound = np.mean([rounding_bound(delta, LAYER, bits=8) for delta in deltas], axis=0)
    assert np.abs(found - together).max() > 10 * bound.max()
