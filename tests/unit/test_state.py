"""The exact apply and the digest of a model (protocol section 6)."""

import hashlib
import os
import struct
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from fullrank_protocol.delta import Delta, Dense, LowRank, Part
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Module, ModuleKind
from fullrank_protocol.parts import components
from fullrank_protocol.scaled import ZERO, Scaled
from fullrank_protocol.state import (
    ModulePlan,
    Weighted,
    apply_tile,
    canonical_float32,
    grid_exponent,
    model_digest,
    plan_module,
    plan_update,
    tensor_sha256,
)

LINEAR = Module(name="up", kind=ModuleKind.LINEAR, out_features=7, in_features=5)
DENSE = Module(name="norm", kind=ModuleKind.DENSE, out_features=6, in_features=1)
ONE = Scaled.of(1.0)


def part_of(rng: np.random.Generator, module: Module = LINEAR, *, rank: int = 3, spread: int = 12) -> LowRank:
    return LowRank(
        module=module.name,
        B_OR=rng.integers(-127, 128, size=(module.out_features, rank)).astype(np.int8),
        A_RI=rng.integers(-127, 128, size=(rank, module.in_features)).astype(np.int8),
        scale_mantissa_R=tuple((2 * rng.integers(0, 8, size=rank) + 1).tolist()),
        scale_exponent_R=tuple(rng.integers(-20 - spread, -20, size=rank).tolist()),
    )


def weights_of(rng: np.random.Generator, module: Module = LINEAR) -> np.ndarray:
    return canonical_float32(rng.normal(size=(module.out_features, module.in_features)).astype(np.float32) * 0.05)


def applied(weights: np.ndarray, weighted: list[tuple[Part, Scaled]], module: Module = LINEAR, tile: int = 100):  # type: ignore[no-untyped-def]
    plan = plan_module(module, weighted)
    starts = range(0, len(weights), tile)
    return np.concatenate([apply_tile(weights[at : at + tile], plan, slice(at, at + tile)) for at in starts])


def oracle(weights: np.ndarray, weighted: list[tuple[Part, Scaled]]) -> np.ndarray:
    """Section 6 in rational numbers: the grid, what is dropped, and both roundings."""
    terms = []
    bound = Fraction(0)
    for part, weight in weighted:
        one = components(part)
        for k in range(len(one.mantissa_R)):
            scale = (
                weight.mantissa
                * Fraction(2) ** weight.exponent
                * int(one.mantissa_R[k])
                * Fraction(2) ** int(one.exponent_R[k])
            )
            column, row = one.B_OR[:, k].astype(int), one.A_RI[k].astype(int)
            bound += scale * int(np.abs(column).max()) * int(np.abs(row).max())
            terms.append((scale, column.tolist(), row.tolist()))
    exponent = -400
    while Fraction(2) ** exponent < bound:
        exponent += 1
    grid = Fraction(2) ** (exponent - 52)
    kept = [term for term in terms if (term[0] / grid).denominator == 1]
    new = np.empty_like(weights)
    for o in range(weights.shape[0]):
        for i in range(weights.shape[1]):
            change = sum((scale * column[o] * row[i] for scale, column, row in kept), Fraction(0))
            # A float64 sum of two float64 numbers is the exact sum rounded once; so is the cast.
            total = np.float32(float(Fraction(float(weights[o, i])) + change))
            new[o, i] = total if abs(total) >= 2.0**-126 else 0.0
    return new


def test_one_component_by_hand() -> None:
    part = LowRank(
        module="up",
        B_OR=np.array([[64]] + [[0]] * 6, np.int8),
        A_RI=np.array([[1, -2, 64, 0, 0]], np.int8),
        scale_mantissa_R=(3,),
        scale_exponent_R=(-10,),
    )
    weights = np.full((7, 5), 0.5, np.float32)
    new = applied(weights, [(part, Scaled.of(0.5))])
    assert new[0].tolist() == [0.5 + 3 / 32, 0.5 - 6 / 32, 0.5 + 6.0, 0.5, 0.5]
    assert np.array_equal(new[1:], weights[1:])
    assert new.dtype == np.float32


def test_the_grid_lies_52_bits_below_the_next_power_of_two() -> None:
    assert grid_exponent([(1, 0)]) == -52
    assert grid_exponent([(4, 0)]) == 2 - 52
    assert grid_exponent([(5, 0)]) == 3 - 52
    assert grid_exponent([(3, -10), (1, -10)]) == -8 - 52
    assert grid_exponent([(3, -10), (1, -10), (1, -200)]) == -7 - 52
    assert grid_exponent([]) is None
    assert grid_exponent([(0, 7)]) is None


@pytest.mark.parametrize("seed", range(6))
def test_the_result_is_that_of_rational_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = weights_of(rng)
    weighted: list[tuple[Part, Scaled]] = [
        (part_of(rng, rank=int(rng.integers(1, 6)), spread=40), Scaled.of(float(rng.random()))) for _ in range(4)
    ]
    assert np.array_equal(applied(weights, weighted), oracle(weights, weighted))


def test_components_off_the_grid_are_dropped() -> None:
    def one(exponent: int, column: int) -> LowRank:
        B_OR = np.zeros((7, 1), np.int8)
        B_OR[column] = 64
        return LowRank(
            module="up",
            B_OR=B_OR,
            A_RI=np.full((1, 5), 64, np.int8),
            scale_mantissa_R=(1,),
            scale_exponent_R=(exponent,),
        )

    # N is a little above 2^12, so the grid is 2^(13 - 52).
    plan = plan_module(LINEAR, [(one(0, 0), ONE), (one(-39, 1), ONE), (one(-40, 2), ONE)])
    assert plan.grid_exponent == -39
    assert plan.num_dropped == 1
    new = apply_tile(np.zeros((7, 5), np.float32), plan, slice(0, 7))
    assert new[:3, 0].tolist() == [4096.0, 4096 * 2.0**-39, 0.0]


def test_an_even_mantissa_helps_a_component_onto_the_grid() -> None:
    part = LowRank(
        module="up",
        B_OR=np.eye(7, 2, dtype=np.int8) * np.int8(64),
        A_RI=np.full((2, 5), 64, np.int8),
        scale_mantissa_R=(1, 1),
        scale_exponent_R=(-39, 0),
    )
    assert plan_module(LINEAR, [(part, Scaled(mantissa=128, exponent=0))]).num_dropped == 0
    assert plan_module(LINEAR, [(part, Scaled(mantissa=129, exponent=0))]).num_dropped == 1


def test_neither_order_nor_tiles_change_a_byte() -> None:
    rng = np.random.default_rng(11)
    weights = weights_of(rng)
    weighted: list[tuple[Part, Scaled]] = [(part_of(rng, spread=30), Scaled.of(float(rng.random()))) for _ in range(5)]
    expected = applied(weights, weighted).tobytes()
    for tile in (1, 2, 3, 7):
        assert applied(weights, weighted, tile=tile).tobytes() == expected
    for seed in range(5):
        shuffled: list[tuple[Part, Scaled]] = []
        for at in np.random.default_rng(seed).permutation(5):
            part, weight = weighted[at]
            assert isinstance(part, LowRank)
            assert part.A_RI is not None
            order = np.random.default_rng(seed).permutation(part.rank)
            shuffled.append(
                (
                    LowRank(
                        module=part.module,
                        B_OR=part.B_OR[:, order],
                        A_RI=part.A_RI[order],
                        scale_mantissa_R=tuple(part.scale_mantissa_R[k] for k in order),
                        scale_exponent_R=tuple(part.scale_exponent_R[k] for k in order),
                    ),
                    weight,
                )
            )
        assert applied(weights, shuffled).tobytes() == expected


def wide_plan() -> tuple[ModulePlan, np.ndarray]:
    """A module of more elements than are rounded at a time, whose last rows do not change, and its weights."""
    rng = np.random.default_rng(12)
    module = Module(name="wide", kind=ModuleKind.LINEAR, out_features=501, in_features=307)
    B_OR = rng.integers(-127, 128, (501, 9)).astype(np.int8)
    B_OR[-2:] = 0
    part = LowRank(
        module="wide",
        B_OR=B_OR,
        A_RI=rng.integers(-127, 128, (9, 307)).astype(np.int8),
        scale_mantissa_R=tuple((2 * rng.integers(0, 8, 9) + 1).tolist()),
        scale_exponent_R=tuple(rng.integers(-35, -20, 9).tolist()),
    )
    return plan_module(module, [(part, Scaled.of(0.7))]), rng.normal(size=(501, 307)).astype(np.float32)


def test_a_tile_of_many_strips_is_as_its_rows_one_by_one_however_wide_the_plan() -> None:
    plan, weights = wide_plan()
    for one in (plan, plan.widened()):
        rows = [apply_tile(weights[o : o + 1], one, slice(o, o + 1)) for o in range(501)]
        assert apply_tile(weights, one, slice(0, 501)).tobytes() == np.concatenate(rows).tobytes()
    assert plan.widened().A_RI.dtype == np.float64


def test_the_last_strip_is_made_canonical_and_checked_too() -> None:
    plan, weights = wide_plan()
    weights[-1, :3] = (-0.0, -(2.0**-127), 2.0**-126)
    new = apply_tile(weights, plan, slice(0, 501))
    assert new[-1, :3].tobytes() == np.array([0.0, 0.0, 2.0**-126], np.float32).tobytes()
    for bad in (np.inf, -np.inf, np.nan):
        weights[-1, -1] = bad
        with pytest.raises(RejectError) as caught:
            apply_tile(weights, plan, slice(0, 501))
        assert caught.value.rule == Rule.NON_FINITE


THREADED = """
import hashlib
import numpy as np
from fullrank_protocol.delta import LowRank
from fullrank_protocol.genesis import Module, ModuleKind
from fullrank_protocol.gram import gram
from fullrank_protocol.delta import Delta
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import apply_tile, plan_module

rng = np.random.default_rng(0)
module = Module(name="up", kind=ModuleKind.LINEAR, out_features=700, in_features=500)
parts = [
    LowRank(
        module="up",
        B_OR=rng.integers(-127, 128, size=(700, 64)).astype(np.int8),
        A_RI=rng.integers(-127, 128, size=(64, 500)).astype(np.int8),
        scale_mantissa_R=tuple((2 * rng.integers(0, 8, size=64) + 1).tolist()),
        scale_exponent_R=tuple(rng.integers(-35, -20, size=64).tolist()),
    )
    for _ in range(4)
]
weights = (rng.normal(size=(700, 500)) * 0.05).astype(np.float32)
plan = plan_module(module, [(part, Scaled.of(float(rng.random()))) for part in parts])
print(hashlib.sha256(apply_tile(weights, plan, slice(0, 700)).tobytes()).hexdigest())
print(gram([Delta(parts=(part,)) for part in parts], (module,)))
"""


def test_one_and_two_threads_give_the_same_bytes() -> None:
    printed = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", THREADED], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        printed.add(run.stdout)
    assert len(printed) == 1
    assert len(printed.pop().split()[0]) == 64


def test_a_dense_module_changes_entry_by_entry() -> None:
    part = Dense(module="norm", values_O=np.array([64, 0, -1, 2, 3, 127], np.int8), scale_mantissa=1, scale_exponent=-6)
    plan = plan_module(DENSE, [(part, ONE), (part, ONE)])
    flat = np.ones(6, np.float32)
    expected = [3.0, 1.0, 1 - 1 / 32, 1 + 2 / 32, 1 + 3 / 32, 1 + 127 / 32]
    assert apply_tile(flat, plan, slice(0, 6)).tolist() == expected
    assert apply_tile(flat[:, np.newaxis], plan, slice(0, 6)).shape == (6, 1)
    assert apply_tile(flat[:2], plan, slice(4, 6)).tolist() == expected[4:]


def test_taking_a_delta_back_subtracts_it() -> None:
    rng = np.random.default_rng(0)
    part = part_of(rng)
    plan = plan_module(LINEAR, [Weighted(part=part, weight=ONE), Weighted(part=part, weight=ONE, taken_back=True)])
    weights = weights_of(rng)
    assert np.array_equal(apply_tile(weights, plan, slice(0, 7)), weights)
    back = plan_module(LINEAR, [Weighted(part=part, weight=ONE, taken_back=True)])
    forth = plan_module(LINEAR, [(part, ONE)])
    zero = np.zeros((7, 5), np.float32)
    assert np.array_equal(apply_tile(zero, back, slice(0, 7)), -apply_tile(zero, forth, slice(0, 7)) + 0.0)


def test_a_weight_of_zero_changes_neither_grid_nor_weights() -> None:
    rng = np.random.default_rng(0)
    loud, quiet = part_of(rng), part_of(rng)
    weights = weights_of(rng)
    assert plan_module(LINEAR, [(loud, ZERO)]).changes_nothing
    assert np.array_equal(applied(weights, [(loud, ZERO)]), weights)
    assert np.array_equal(applied(weights, [(loud, ZERO), (quiet, ONE)]), applied(weights, [(quiet, ONE)]))


def test_plans_come_for_the_modules_that_change_only() -> None:
    rng = np.random.default_rng(0)
    dense = Dense(module="norm", values_O=np.full(6, 64, np.int8), scale_mantissa=1, scale_exponent=0)
    deltas = [Delta(parts=(part_of(rng),)), Delta(parts=(dense, part_of(rng)))]
    half = Scaled.of(0.5)
    assert [module.name for module, _ in plan_update(deltas, [half, half], (DENSE, LINEAR))] == ["norm", "up"]
    assert [module.name for module, _ in plan_update(deltas, [half, ZERO], (DENSE, LINEAR))] == ["up"]
    assert list(plan_update(deltas, [ZERO, ZERO], (DENSE, LINEAR))) == []
    with pytest.raises(ValueError, match="required 'norm'"):
        plan_module(DENSE, [(part_of(rng), ONE)])


def test_results_too_small_for_normal_numbers_become_zero() -> None:
    part = Dense(
        module="norm", values_O=np.array([-64, 64, 65, -65, 0, 1], np.int8), scale_mantissa=1, scale_exponent=-132
    )
    start = np.array([2.0**-126, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32)
    new = apply_tile(start, plan_module(DENSE, [(part, ONE)]), slice(0, 6))
    assert new.tolist() == [0.0, 2.0**-126, 65 * 2.0**-132, -65 * 2.0**-132, 0.0, 0.0]
    assert not np.signbit(new[[0, 4, 5]]).any()


def test_a_result_that_is_not_finite_is_refused() -> None:
    part = Dense(module="norm", values_O=np.full(6, 127, np.int8), scale_mantissa=15, scale_exponent=120)
    with pytest.raises(RejectError) as caught:
        apply_tile(np.zeros(6, np.float32), plan_module(DENSE, [(part, ONE)]), slice(0, 6))
    assert caught.value.rule == Rule.NON_FINITE


def test_weights_are_brought_into_canonical_form() -> None:
    wild = np.array([[-0.0, 1e-40, -1e-40], [2.0**-126, -(2.0**-126), 1.0]], np.float32)
    tame = canonical_float32(wild)
    assert tame.tolist() == [[0.0, 0.0, 0.0], [2.0**-126, -(2.0**-126), 1.0]]
    assert not np.signbit(tame[0]).any()
    assert np.signbit(wild[0, 0])
    assert canonical_float32(wild.T).flags.c_contiguous
    for number in (np.nan, np.inf):
        with pytest.raises(RejectError) as caught:
            canonical_float32(np.array([number], np.float32))
        assert caught.value.rule == Rule.NON_FINITE
    with pytest.raises(ValueError, match="required float32"):
        canonical_float32(np.zeros(3))  # type: ignore[arg-type]


def test_a_tile_that_does_not_fit_is_our_own_mistake() -> None:
    plan = plan_module(LINEAR, [(part_of(np.random.default_rng(0)), ONE)])
    for tile, rows in (
        (np.zeros((7, 5)), slice(0, 7)),
        (np.zeros((7, 4), np.float32), slice(0, 7)),
        (np.zeros((3, 5), np.float32), slice(5, 8)),
    ):
        with pytest.raises(ValueError, match="found a tile"):
            apply_tile(tile, plan, rows)


def test_a_tensor_is_hashed_as_little_endian_rows() -> None:
    weights = np.array([[1.0, 2.0], [3.0, -4.5]], np.float32)
    expected = hashlib.sha256(struct.pack("<4f", 1.0, 2.0, 3.0, -4.5)).digest()
    assert tensor_sha256(weights) == expected
    assert tensor_sha256(np.asfortranarray(weights)) == expected
    assert tensor_sha256(np.zeros(0, np.float32)) == hashlib.sha256().digest()
    with pytest.raises(ValueError, match="required float32"):
        tensor_sha256(weights.astype(np.float64))


def test_large_tensors_are_hashed_piece_by_piece_to_the_same_hash() -> None:
    weights = np.arange((1 << 22) + 5, dtype=np.float32)
    assert tensor_sha256(weights) == hashlib.sha256(weights.tobytes()).digest()


def test_the_model_digest_covers_names_and_hashes_in_order_of_names() -> None:
    first, second = bytes([1]) * 32, bytes([2]) * 32
    fields = [b"fullrank.v1.model-digest", b"a", first, b"b", second]
    expected = hashlib.sha256(b"".join(struct.pack("<Q", len(field)) + field for field in fields)).digest()
    assert model_digest({"a": first, "b": second}) == expected
    assert model_digest({"b": second, "a": first}) == expected
    assert model_digest({"a": second, "b": first}) != expected
    with pytest.raises(ValueError, match="required a SHA-256"):
        model_digest({"a": b""})
