"""Inner products of deltas: the exact value, rounded once (protocol section 7)."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from fullrank_protocol import limits
from fullrank_protocol.delta import Delta, Dense, LowRank
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Module, ModuleKind
from fullrank_protocol.gram import gram, require_norm, squared_norm
from fullrank_protocol.parts import components

MODULES = (
    Module(name="down", kind=ModuleKind.LINEAR, out_features=4, in_features=6),
    Module(name="norm", kind=ModuleKind.DENSE, out_features=5, in_features=1),
    Module(name="up", kind=ModuleKind.LINEAR, out_features=3, in_features=2),
)


def low_rank(module: str, B, A, mantissas, exponents) -> LowRank:  # type: ignore[no-untyped-def]
    return LowRank(
        module=module,
        B_OR=np.array(B, np.int8),
        A_RI=np.array(A, np.int8),
        scale_mantissa_R=tuple(mantissas),
        scale_exponent_R=tuple(exponents),
    )


def random_delta(rng: np.random.Generator, *, lowest: int = -30, highest: int = 5) -> Delta:
    parts: list[LowRank | Dense] = []
    for module in MODULES:
        if rng.random() < 0.25:
            continue
        rank = int(rng.integers(1, 5))
        mantissas = 2 * rng.integers(0, 8, size=rank) + 1
        exponents = rng.integers(lowest, highest + 1, size=rank)
        if module.kind == ModuleKind.DENSE:
            values = rng.integers(-127, 128, size=module.out_features).astype(np.int8)
            parts.append(
                Dense(
                    module=module.name,
                    values_O=values,
                    scale_mantissa=int(mantissas[0]),
                    scale_exponent=int(exponents[0]),
                )
            )
        else:
            parts.append(
                low_rank(
                    module.name,
                    rng.integers(-127, 128, size=(module.out_features, rank)),
                    rng.integers(-127, 128, size=(rank, module.in_features)),
                    mantissas.tolist(),
                    exponents.tolist(),
                )
            )
    return Delta(parts=tuple(parts))


def dense_matrix(part: LowRank | Dense) -> list[Fraction]:
    """All entries of what a part stands for, exactly."""
    one = components(part)
    return [
        sum(
            (
                int(one.B_OR[o, k])
                * int(one.A_RI[k, i])
                * int(one.mantissa_R[k])
                * Fraction(2) ** int(one.exponent_R[k])
                for k in range(len(one.mantissa_R))
            ),
            Fraction(0),
        )
        for o in range(one.B_OR.shape[0])
        for i in range(one.A_RI.shape[1])
    ]


def exact_inner_product(first: Delta, second: Delta) -> Fraction:
    others = {part.module: dense_matrix(part) for part in second.parts}
    return sum(
        (
            a * b
            for part in first.parts
            if part.module in others
            for a, b in zip(dense_matrix(part), others[part.module], strict=True)
        ),
        Fraction(0),
    )


def test_the_norm_of_one_component_by_hand() -> None:
    # 3 / 2 * (64, 0, 0)^T (1, 100): squared norm 9 / 4 * 4096 * 10001.
    delta = Delta(parts=(low_rank("up", [[64], [0], [0]], [[1, 100]], [3], [-1]),))
    assert squared_norm(delta, MODULES) == 9 / 4 * 4096 * 10001


@pytest.mark.parametrize("seed", range(8))
def test_every_entry_is_the_exact_value_rounded_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = [random_delta(rng) for _ in range(5)]
    found = gram(deltas, MODULES)
    for i in range(5):
        for j in range(5):
            assert found[i][j] == float(exact_inner_product(deltas[i], deltas[j]))


def test_vectors_longer_than_float32_can_count_lose_nothing() -> None:
    # 127^2 * 3001 is odd and above 2^25.
    module = Module(name="long", kind=ModuleKind.LINEAR, out_features=3001, in_features=2)
    part = low_rank("long", np.full((3001, 1), 127), [[0, 127]], [1], [0])
    assert squared_norm(Delta(parts=(part,)), (module,)) == float(127**2 * 3001 * 127**2)


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_bits_that_all_entries_lack_are_made_up_for(bits: int) -> None:
    rng = np.random.default_rng(bits)
    most = 127 >> bits
    B_OR, A_RI = rng.integers(-most, most + 1, (4, 3)), rng.integers(-127, 128, (3, 6))
    small = Delta(parts=(low_rank("down", B_OR, A_RI, [1, 3, 5], [0, -3, 2]),))
    large = Delta(parts=(low_rank("down", B_OR << bits, A_RI, [1, 3, 5], [0, -3, 2]),))
    assert gram([large], MODULES)[0][0] == 4.0**bits * gram([small], MODULES)[0][0]
    assert gram([small, large], MODULES)[0][1] == 2.0**bits * gram([small], MODULES)[0][0]


def test_more_components_than_one_block_holds_are_all_counted() -> None:
    rng = np.random.default_rng(9)
    deltas, matrices = [], []
    for rank in (600, 500, 1100, 30, 900):
        B_OR, A_RI = rng.integers(-127, 128, (4, rank)), rng.integers(-127, 128, (rank, 6))
        mantissas = 2 * rng.integers(0, 8, rank) + 1
        exponents = rng.integers(0, 3, rank)
        deltas.append(Delta(parts=(low_rank("down", B_OR, A_RI, mantissas.tolist(), exponents.tolist()),)))
        matrices.append((B_OR * (mantissas << exponents)) @ A_RI)
    found = gram(deltas, MODULES)
    for i, first in enumerate(matrices):
        for j, second in enumerate(matrices):
            assert found[i][j] == float(sum(int(a) * int(b) for a, b in zip(first.flat, second.flat, strict=True)))


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(6)
    deltas = [random_delta(rng) for _ in range(7)]
    with ThreadPoolExecutor(3) as pool:
        assert gram(deltas, MODULES, each=pool.map) == gram(deltas, MODULES)


def test_exponents_far_apart_lose_nothing() -> None:
    # (2^40 x + 2^-64 y) . (2^40 x - 2^-64 y) with |x| = |y|: the small square decides the last bits.
    big, small = [[127], [0], [0]], [[0], [127], [0]]
    columns = np.concatenate([np.array(small), np.array(big)], axis=1)
    rows = [[1, 0], [1, 0]]
    plus = Delta(parts=(low_rank("up", columns, rows, [1, 1], [-64, 40]),))
    minus = Delta(parts=(low_rank("up", columns, [[-1, 0], [1, 0]], [1, 1], [-64, 40]),))
    assert gram([plus, minus], MODULES)[0][1] == float(127**2 * (Fraction(2) ** 80 - Fraction(2) ** -128))
    tiny = Delta(parts=(low_rank("up", [[127], [0], [0]], [[1, 0]], [1], [-64]),))
    assert squared_norm(tiny, MODULES) == 127**2 * 2.0**-128


def test_the_matrix_is_symmetric_and_permutes_with_the_deltas() -> None:
    rng = np.random.default_rng(3)
    deltas = [random_delta(rng) for _ in range(6)]
    found = np.array(gram(deltas, MODULES))
    assert np.array_equal(found, found.T)
    order = [4, 2, 0, 5, 1, 3]
    permuted = np.array(gram([deltas[i] for i in order], MODULES))
    assert np.array_equal(permuted, found[np.ix_(order, order)])


def test_the_order_of_components_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    part = low_rank(
        "down",
        rng.integers(-127, 128, (4, 6)),
        rng.integers(-127, 128, (6, 6)),
        [1, 3, 5, 7, 9, 11],
        [0, -9, 3, 3, -20, 0],
    )
    assert part.A_RI is not None
    order = [5, 1, 0, 3, 2, 4]
    shuffled = low_rank("down", part.B_OR[:, order], part.A_RI[order], [11, 3, 1, 7, 5, 9], [0, -9, 0, 3, 3, -20])
    other = random_delta(rng)
    assert gram([Delta(parts=(part,)), other], MODULES) == gram([Delta(parts=(shuffled,)), other], MODULES)


def test_deltas_without_a_common_module_are_orthogonal() -> None:
    first = Delta(parts=(low_rank("up", [[64], [0], [0]], [[64, 0]], [1], [0]),))
    second = Delta(parts=(Dense(module="norm", values_O=np.full(5, 64, np.int8), scale_mantissa=1, scale_exponent=0),))
    assert gram([first, second], MODULES) == [[64.0**4, 0.0], [0.0, 5 * 64.0**2]]
    assert gram([], MODULES) == []


def test_components_that_cancel_exactly_have_zero_norm() -> None:
    delta = Delta(parts=(low_rank("up", [[64, -64], [1, -1], [2, -2]], [[64, 3], [64, 3]], [1, 1], [0, 0]),))
    with pytest.raises(RejectError) as caught:
        require_norm(delta, MODULES)
    assert caught.value.rule == Rule.ZERO_NORM
    other = Delta(parts=(low_rank("up", [[64], [0], [0]], [[64, 0]], [1], [0]),))
    assert require_norm(other, MODULES) == 64.0**4


def test_the_largest_integers_of_many_components_stay_exact() -> None:
    module = Module(name="wide", kind=ModuleKind.LINEAR, out_features=1000, in_features=1000)
    part = low_rank("wide", np.full((1000, 300), 127), np.full((300, 1000), -127), [15] * 300, [0] * 300)
    assert squared_norm(Delta(parts=(part,)), (module,)) == float((15 * 300 * 127 * 127) ** 2 * 1000 * 1000)


def test_the_bounds_of_a_genesis_keep_integers_within_64_bits() -> None:
    assert 127**4 * limits.MAX_ELEMENTS < 2**63
    assert 127**2 * limits.MAX_ELEMENTS < 2**53
    assert (limits.MAX_RANK**2) * 15**2 * 2**32 + 2**62 < 2**63
