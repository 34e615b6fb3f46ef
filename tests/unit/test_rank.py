"""Ranks of an update, on matrices whose ranks are known."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from fullrank_node.model.rank import (
    EffectiveRankReport,
    effective_rank,
    measure_rank,
    noise_control,
    rank_of_change,
    rank_of_update,
    spread,
)

RNG = np.random.default_rng(7)


def low_rank(out_features: int, in_features: int, rank: int) -> np.ndarray:
    return RNG.standard_normal((out_features, rank)) @ RNG.standard_normal((rank, in_features))


def test_equal_singular_values_make_all_ranks_equal() -> None:
    found = rank_of_update("w", 3.0 * np.eye(5, 8))

    assert (found.numerical, found.full) == (5, 5)
    assert found.stable == pytest.approx(5)
    assert found.effective == pytest.approx(5)
    assert found.norm == pytest.approx(3 * 5**0.5)


def test_one_large_value_lowers_stable_and_effective_rank_but_not_the_numerical_one() -> None:
    found = rank_of_update("w", np.diag([4.0, 2.0, 2.0]))

    assert found.numerical == 3
    assert found.stable == pytest.approx((16 + 4 + 4) / 16)
    # Shares 1/2, 1/4, 1/4: entropy 1.5 bits.
    assert found.effective == pytest.approx(2**1.5)


def test_no_update_has_rank_zero() -> None:
    found = rank_of_update("w", np.zeros((4, 6)))

    assert (found.numerical, found.stable, found.effective, found.norm) == (0, 0, 0, 0)
    assert effective_rank(np.zeros(3)) == 0


def test_rounding_of_float32_weights_is_not_counted_as_rank() -> None:
    before = RNG.standard_normal((96, 64)).astype(np.float32)
    after = before
    for _ in range(4):
        after = (after.astype(np.float64) + 1e-3 * low_rank(96, 64, 2)).astype(np.float32)

    assert rank_of_change("w", before, after, num_rounds=4).numerical == 8
    assert rank_of_update("w", after.astype(np.float64) - before).numerical == 64


def test_a_report_is_the_mean_over_linear_modules() -> None:
    modules = [SimpleNamespace(name=f"w{i}", out_features=4, in_features=4) for i in range(5)]
    modules.append(SimpleNamespace(name="norm", out_features=4, in_features=1))

    def after(name: str) -> np.ndarray:
        return np.diag([1.0] * (1 + int(name[1]) % 2) + [0.0] * (3 - int(name[1]) % 2)).astype(np.float32)

    report = measure_rank(modules, lambda _: np.zeros((4, 4), np.float32), after)

    assert [module.numerical for module in report.modules] == [1, 2, 1, 2, 1]
    assert report.numerical == pytest.approx(1.4)
    assert report.effective == pytest.approx(1.4)
    assert report.to_json()["full"] == 4


def test_no_modules_make_an_empty_report() -> None:
    assert EffectiveRankReport(modules=()).effective == 0


def test_random_deltas_fill_the_matrix_round_by_round() -> None:
    ranks = noise_control([(32, 32), (16, 48)], [[2, 2]] * 12)

    assert len(ranks) == 12
    assert 3 < ranks[0] <= 4
    assert all(later > earlier for earlier, later in pairwise(ranks))
    assert ranks[-1] > 14
    assert noise_control([(32, 32), (16, 48)], [[2, 2]] * 12) == ranks


def test_random_deltas_that_keep_their_rows_gain_no_rank_within_a_period() -> None:
    kept = noise_control([(64, 64)], [[3]] * 4, period_rounds=2)

    assert kept[1] < 3.01 < kept[2]


def test_norms_decide_how_much_a_random_delta_counts() -> None:
    even = noise_control([(64, 64)], [[4, 4]])
    uneven = noise_control([(64, 64)], [[4, 4]], norms_per_round=[[1.0, 0.01]])

    assert uneven[0] < 5 < 7 < even[0]
    with pytest.raises(ValueError, match="one norm a rank"):
        noise_control([(64, 64)], [[4, 4]], norms_per_round=[[1.0]])


def test_a_sample_keeps_both_ends() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(5, 1) == [0]
