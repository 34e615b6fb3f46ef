"""Rounding trained factors: canonical whatever the floats, and close to them."""

from dataclasses import dataclass

import numpy as np
import pytest

from fullrank_protocol.delta import Delta, quantize_dense, quantize_low_rank, to_float, validate
from fullrank_protocol.genesis import Limits, Module, ModuleKind

LIMITS = Limits(max_delta_bytes=10_000, min_scale_exponent=-40, max_scale_exponent=0, max_checkpoint_bytes=10_000)


@dataclass(frozen=True, kw_only=True)
class Rules:
    modules: tuple[Module, ...] = (
        Module(name="m", kind=ModuleKind.LINEAR, out_features=20, in_features=30),
        Module(name="norm", kind=ModuleKind.DENSE, out_features=20, in_features=1),
    )
    max_rank: int = 8
    codecs: tuple[int, ...] = (1,)
    limits: Limits = LIMITS


def factors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(20, 6)) * 1e-3, rng.normal(size=(6, 30)) * 0.1


def quantized(B_OR, A_RI, *, bits=8, scale=1.0, stochastic=False, seed=0):  # type: ignore[no-untyped-def]
    return quantize_low_rank(
        "m",
        B_OR,
        A_RI,
        bits_b=bits,
        bits_a=bits,
        scale=scale,
        rng=np.random.default_rng(seed),
        stochastic=stochastic,
        limits=LIMITS,
    )


@pytest.mark.parametrize("stochastic", [False, True])
def test_eight_bits_are_within_one_step_of_every_column_and_row(stochastic: bool) -> None:
    B_OR, A_RI = factors()
    for k in range(6):
        column, row = B_OR[:, [k]], A_RI[[k]]
        part = quantized(column, row, stochastic=stochastic)
        step_b = np.abs(column).max() / 127 * 9 / 8  # A scale of four bits is at most 1/8 above the ideal one.
        step_a = np.abs(row).max() / 127
        steps = 1.0 if stochastic else 0.5
        bound = steps * (step_b * np.abs(row) + np.abs(column) * step_a + step_b * step_a)
        assert (np.abs(to_float(part) - column @ row) <= bound).all()


def test_the_scale_is_folded_in_with_its_sign() -> None:
    B_OR, A_RI = factors()
    assert np.array_equal(to_float(quantized(B_OR, A_RI, scale=4.0)), 4 * to_float(quantized(B_OR, A_RI)))
    assert np.array_equal(to_float(quantized(B_OR, A_RI, scale=-1.0)), -to_float(quantized(B_OR, A_RI)))
    assert quantized(B_OR, A_RI, scale=0.0).rank == 0


def test_a_seeded_a_leaves_b_alone_to_be_rounded() -> None:
    B_OR, _ = factors()
    part = quantized(B_OR, None, scale=1 / np.sqrt(30))
    assert part.A_RI is None
    assert part.row_R == tuple(range(6))
    values = part.B_OR * np.ldexp(np.array(part.scale_mantissa_R, float), part.scale_exponent_R)
    assert np.abs(values - B_OR / np.sqrt(30)).max() <= np.abs(B_OR).max() / np.sqrt(30) / 127 * 9 / 16


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_nearest_integers_err_little_more_than_the_closest_ones_and_cost_fewer_bytes(bits: int) -> None:
    """Scales tried are a tenth apart and have four bits; the closest is looked for here in steps of a hundredth."""
    B_OR = np.random.default_rng(1).normal(size=(512, 8)) * 1e-3
    part = quantized(B_OR, None, bits=bits)
    found = part.B_OR * np.ldexp(np.array(part.scale_mantissa_R, float), part.scale_exponent_R)
    largest = (1 << (bits - 1)) - 1
    closest, least = np.zeros_like(B_OR), np.full(8, np.inf)
    for share in np.arange(0.1, 1.01, 0.01):
        scale_R = np.abs(B_OR).max(axis=0) * share / largest
        rounded = np.clip(np.rint(B_OR / scale_R), -largest, largest) * scale_R
        error_R = np.square(rounded - B_OR).sum(axis=0)
        closest, least = np.where(error_R < least, rounded, closest), np.minimum(error_R, least)
    error_R = np.square(found - B_OR).sum(axis=0)
    assert (error_R <= 1.45 * least).all()
    assert entropy(found) < 0.98 * entropy(closest)


def entropy(values_OR: np.ndarray) -> float:
    """Bits that an entry takes, at least, where each column has a code of its own; the mean."""
    shares = [np.unique(column, return_counts=True)[1] / len(column) for column in values_OR.T]
    return float(np.mean([-(share * np.log2(share)).sum() for share in shares]))


def test_stochastic_rounding_is_right_on_average() -> None:
    B_OR, A_RI = factors()
    mean = np.mean([to_float(quantized(B_OR, A_RI, bits=4, stochastic=True, seed=seed)) for seed in range(400)], axis=0)
    once = to_float(quantized(B_OR, A_RI, bits=4, stochastic=True))
    exact = B_OR @ A_RI
    assert np.linalg.norm(mean - exact) < 0.1 * np.linalg.norm(once - exact)


def test_the_same_generator_state_gives_the_same_integers() -> None:
    B_OR, A_RI = factors()
    assert quantized(B_OR, A_RI, stochastic=True, seed=5) == quantized(B_OR, A_RI, stochastic=True, seed=5)
    assert quantized(B_OR, A_RI, stochastic=True, seed=5) != quantized(B_OR, A_RI, stochastic=True, seed=6)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_the_integers_have_as_many_bits_as_asked_for(bits: int) -> None:
    part = quantized(*factors(), bits=bits, stochastic=True)
    assert part.A_RI is not None
    for integers in (part.B_OR, part.A_RI):
        assert (integers % (1 << (8 - bits)) == 0).all()
        assert np.abs(integers.astype(int)).max() <= ((1 << (bits - 1)) - 1) << (8 - bits)


@pytest.mark.parametrize("bits", [1, 9])
def test_other_numbers_of_bits_are_our_own_mistake(bits: int) -> None:
    with pytest.raises(ValueError, match="required 2 to 8"):
        quantized(*factors(), bits=bits)


def test_components_that_are_zero_are_left_out() -> None:
    B_OR, A_RI = factors()
    B_OR[:, 1] = 0
    A_RI[4] = 0
    assert quantized(B_OR, A_RI).rank == 4
    assert quantized(B_OR, None).row_R == (0, 2, 3, 4, 5)
    assert quantized(np.zeros((20, 6)), A_RI).rank == 0


def test_equal_components_become_one_of_twice_the_scale() -> None:
    B_OR, A_RI = factors()
    four = quantized(np.repeat(B_OR[:, :1], 4, axis=1), np.repeat(A_RI[:1], 4, axis=0))
    one = quantized(B_OR[:, :1], A_RI[:1])
    assert four.rank == 1
    assert np.array_equal(to_float(four), 4 * to_float(one))
    assert quantized(np.repeat(B_OR[:, :1], 3, axis=1), np.repeat(A_RI[:1], 3, axis=0)).rank == 2


def test_what_lies_below_the_smallest_scale_is_left_out_and_above_the_largest_refused() -> None:
    B_OR, A_RI = factors()
    assert quantized(B_OR * 1e-30, A_RI).rank == 0
    assert quantized(B_OR * 1e-300, A_RI * 1e-300).rank == 0
    assert quantized(B_OR * 5e-321, A_RI * 1e30).rank == 0
    for huge in (1e12, 1e300):
        with pytest.raises(ValueError, match="required at most 0"):
            quantized(B_OR * huge, A_RI)
    # A huge and a tiny factor that balance each other are an ordinary product.
    balanced = to_float(quantized(B_OR * 1e200, A_RI * 1e-200))
    assert np.allclose(balanced, B_OR @ A_RI, atol=np.abs(B_OR @ A_RI).max() / 20)


def test_at_the_smallest_scale_what_can_still_be_said_is_said() -> None:
    smallest = 2.0**-40
    ranks = set()
    for size in np.geomspace(20, 500, 40):
        part = quantized(np.full((20, 1), size * smallest), None)
        ranks.add(part.rank)
        if part.rank:
            validate(Delta(parts=(part,)), Rules())
            assert np.abs(
                part.B_OR * 2.0 ** part.scale_exponent_R[0] * part.scale_mantissa_R[0] - size * smallest
            ).max() <= (size * smallest / 64)
    assert ranks == {0, 1}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(wrong: float) -> None:
    B_OR, A_RI = factors()
    with pytest.raises(ValueError, match="not finite"):
        quantized(B_OR, A_RI, scale=wrong)
    A_RI[0, 0] = wrong
    with pytest.raises(ValueError, match="not finite"):
        quantized(B_OR, A_RI)


def test_factors_that_do_not_fit_each_other_are_refused() -> None:
    B_OR, A_RI = factors()
    with pytest.raises(ValueError, match="required 6"):
        quantized(B_OR, A_RI[:5])
    with pytest.raises(ValueError, match="required a matrix"):
        quantized(B_OR[:, 0], A_RI)


def test_a_dense_change_is_rounded_alike() -> None:
    values = np.linspace(-1e-3, 1e-3, 20)
    part = quantize_dense("norm", values, bits=8, rng=np.random.default_rng(0), stochastic=False, limits=LIMITS)
    assert part is not None
    validate(Delta(parts=(part,)), Rules())
    assert np.abs(to_float(part) - values).max() <= 1e-3 / 127 * 9 / 16
    zero = quantize_dense("norm", values * 0, bits=8, rng=np.random.default_rng(0), stochastic=False, limits=LIMITS)
    assert zero is None
