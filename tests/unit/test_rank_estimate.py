"""The effective rank that `status` tells: which matrices are measured, and how near a sketch comes to the truth."""

from types import SimpleNamespace

import numpy as np
import pytest

from fullrank_node.model.rank import effective_rank, singular_values
from fullrank_node.model.rank_estimate import (
    MAX_ELEMENTS,
    SAMPLE_ERROR,
    SKETCH_ERROR,
    SKETCHED_DIRECTIONS,
    estimated_effective_rank,
    sample_of,
    sketched_effective_rank,
)

SIDE = 2 * SKETCHED_DIRECTIONS


def module(name: str, out_features: int = 64, in_features: int = 32) -> SimpleNamespace:
    return SimpleNamespace(name=name, out_features=out_features, in_features=in_features)


def exact(matrix: np.ndarray) -> float:
    return effective_rank(singular_values(matrix.astype(np.float64)))


def sum_of_products(shape: tuple[int, int], *, count: int, rank: int, spread: float) -> np.ndarray:
    """What merged rounds look like: `count` products of `rank`, of which some components are smaller than others."""
    rng = np.random.default_rng([count, rank])
    total = np.zeros(shape)
    for _ in range(count):
        scale = np.exp(-spread * rng.exponential(size=rank))
        total += (rng.standard_normal((shape[0], rank)) * scale) @ rng.standard_normal((rank, shape[1]))
    return total.astype(np.float32)


# ---- which matrices ----------------------------------------------------------------------------


def test_every_kind_is_sampled_each_at_another_depth() -> None:
    kinds = ("q_proj", "k_proj", "up_proj", "down_proj")
    names = [f"layers.{layer}.{kind}.weight" for layer in range(12) for kind in kinds]
    sample = sample_of([module(name) for name in sorted(names)], at_most=4)

    # Kinds in alphabetical order at 1/8, 3/8, 5/8 and 7/8 of twelve layers; layer 10 stands behind layer 9.
    assert [matrix.name for matrix in sample.matrices] == [
        "layers.1.down_proj.weight",
        "layers.4.k_proj.weight",
        "layers.7.q_proj.weight",
        "layers.10.up_proj.weight",
    ]
    assert sample.num_matrices == 48
    assert {matrix.stands_for for matrix in sample.matrices} == {12}


def test_where_few_kinds_are_there_more_of_each_are_sampled() -> None:
    sample = sample_of([module(f"h.{layer}.{kind}") for layer in range(10) for kind in "ab"], at_most=4)
    assert [matrix.name for matrix in sample.matrices] == ["h.1.a", "h.6.a", "h.3.b", "h.8.b"]


def test_where_many_kinds_are_there_the_rarest_are_left_out() -> None:
    names = ["embed", *(f"h.{layer}.{kind}" for layer in range(3) for kind in "abc")]
    sample = sample_of([module(name) for name in names], at_most=3)
    assert sorted(matrix.name[-1] for matrix in sample.matrices) == ["a", "b", "c"]


def test_a_matrix_counts_for_all_of_its_kind() -> None:
    sample = sample_of([module("embed", 400, 100), *(module(f"h.{layer}", 50, 50) for layer in range(4))], at_most=2)
    assert [matrix.name for matrix in sample.matrices] == ["h.1", "embed"]
    assert sample.mean([10.0, 60.0]) == (4 * 10 + 1 * 60) / 5
    assert sample.full == (4 * 50 + 1 * 100) / 5
    assert sample.relative_error == SAMPLE_ERROR


def test_vectors_have_no_rank_and_huge_matrices_are_left_out() -> None:
    huge = module("huge", MAX_ELEMENTS, 2)
    sample = sample_of([module("norm", 64, 1), huge, module("w")])
    assert [matrix.name for matrix in sample.matrices] == ["w"]
    assert sample.num_matrices == 2
    assert sample_of([huge, module("norm", 64, 1)]).matrices == ()


def test_a_model_that_is_measured_whole_and_exactly_has_no_error() -> None:
    assert sample_of([module("a"), module("b")]).relative_error == 0.0
    assert sample_of([module("a", 4096, 4096)]).relative_error == SKETCH_ERROR


# ---- how near ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_small_matrices_are_measured_exactly(shape: tuple[int, int]) -> None:
    update = sum_of_products(shape, count=3, rank=8, spread=1.0)
    assert estimated_effective_rank(update) == pytest.approx(exact(update), rel=1e-6)


def test_no_update_has_no_rank() -> None:
    assert estimated_effective_rank(np.zeros((8, 6), np.float32)) == 0.0
    assert sketched_effective_rank(np.zeros((SIDE, SIDE), np.float32)) == 0.0


@pytest.mark.parametrize(
    ("count", "rank", "spread"), [(1, 32, 0.0), (12, 32, 2.0), (40, 32, 2.0), (40, 16, 1.0), (20, 128, 1.0)]
)
def test_a_sketch_of_merged_rounds_stays_within_the_stated_error(count: int, rank: int, spread: float) -> None:
    update = sum_of_products((SIDE + 256, SIDE), count=count, rank=rank, spread=spread)
    assert sketched_effective_rank(update) == pytest.approx(exact(update), rel=SKETCH_ERROR)


@pytest.mark.parametrize("law", ["equal", "one large", "1/n", "1/sqrt(n)", "exp(-n)"])
def test_a_sketch_of_given_singular_values_stays_within_the_stated_error(law: str) -> None:
    rng = np.random.default_rng(3)
    number = np.arange(1, SIDE + 1)
    values = {
        "equal": np.ones(SIDE),
        "one large": np.r_[100.0, np.ones(SIDE - 1)],
        "1/n": 1.0 / number,
        "1/sqrt(n)": number**-0.5,
        "exp(-n)": np.exp(-8.0 * number / SIDE),
    }[law]
    left, right = (np.linalg.qr(rng.standard_normal((SIDE, SIDE)))[0] for _ in range(2))
    found = sketched_effective_rank(((left * values) @ right).astype(np.float32))
    assert found == pytest.approx(effective_rank(values), rel=SKETCH_ERROR)


def test_the_same_update_gives_the_same_figure_whichever_way_it_lies() -> None:
    update = sum_of_products((SIDE, SIDE - 200), count=4, rank=64, spread=1.0)
    assert sketched_effective_rank(update) == sketched_effective_rank(update)
    assert sketched_effective_rank(update.T) == pytest.approx(sketched_effective_rank(update), rel=1e-4)
