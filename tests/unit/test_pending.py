"""How much of a node's own delta on the way it expects to be merged."""

import pytest

from fullrank_node.training.pending import Pending


def share(*, num_averaged: int, num_late: int, rank: int = 32, in_features: int = 128) -> float:
    pending = Pending(deltas=(), num_averaged=num_averaged, num_late=num_late)
    return pending.expected_share(rank=rank, in_features=in_features)


def test_a_node_alone_expects_all_of_its_delta() -> None:
    assert share(num_averaged=1, num_late=0) == 1.0
    assert share(num_averaged=1, num_late=1) == 1.0


def test_where_nobody_else_is_late_it_expects_its_own_weight_in_the_mean() -> None:
    assert share(num_averaged=8, num_late=0) == pytest.approx(1 / 8)


def test_where_all_are_late_it_expects_of_the_others_what_its_a_sees_of_theirs() -> None:
    assert share(num_averaged=8, num_late=8) == pytest.approx(1 / 8 + 7 / 8 / 4)
    assert share(num_averaged=8, num_late=4) == pytest.approx(1 / 8 + 7 / 8 / 8)
    assert share(num_averaged=8, num_late=8, rank=2) == pytest.approx(1 / 8 + 7 / 8 / 64)
    assert share(num_averaged=8, num_late=8, rank=128) == pytest.approx(1.0)
