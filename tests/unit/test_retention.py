"""Which blobs go when a disk limit asks for room (protocol section 10)."""

import pytest

from fullrank_node.config import Config, LimitsSection
from fullrank_node.keeping import disk_limit_bytes
from fullrank_node.retention import Holdings, Plan, is_snapshot_due, plan_removal

DELTAS = {b"slot 1": 1, b"slot 2": 2, b"slot 3": 3, b"slot 4": 4}
SIZES = dict.fromkeys([*DELTAS, b"pending", b"snapshot", b"base", b"stray"], 10)
"""Eight blobs of ten bytes."""

NEEDED = frozenset({b"pending", b"snapshot", b"base"})


def holdings(*, covered_slot: int = 2, snapshot_bytes: int = 10) -> Holdings:
    return Holdings(
        sizes=SIZES,
        needed=NEEDED,
        decided=DELTAS,
        covered_slot=covered_slot,
        snapshot_bytes=snapshot_bytes,
    )


@pytest.mark.parametrize(
    ("held", "limit_bytes", "plan"),
    [
        # An archive, or a limit that is not reached: nothing goes.
        (holdings(), None, Plan()),
        (holdings(), 80, Plan()),
        # What nobody names goes first, and a tenth of the limit becomes free.
        (holdings(), 79, Plan(remove=(b"stray",))),
        (holdings(), 77, Plan(remove=(b"stray",))),
        # Then the oldest below the snapshot.
        (holdings(), 75, Plan(remove=(b"stray", b"slot 1"))),
        (holdings(), 60, Plan(remove=(b"stray", b"slot 1", b"slot 2"))),
        # Above the snapshot nothing goes, but a new one would help.
        (holdings(), 40, Plan(remove=(b"stray", b"slot 1", b"slot 2"), makes_snapshot=True, over_bytes=10)),
        # Not where it takes as much as it lets go.
        (holdings(snapshot_bytes=20), 40, Plan(remove=(b"stray", b"slot 1", b"slot 2"), over_bytes=10)),
        # Without a snapshot no delta goes.
        (holdings(covered_slot=0), 69, Plan(remove=(b"stray",), makes_snapshot=True, over_bytes=1)),
        (holdings(covered_slot=0, snapshot_bytes=99), 69, Plan(remove=(b"stray",), over_bytes=1)),
        # With everything covered, what is needed stays whatever the limit says.
        (
            holdings(covered_slot=4),
            5,
            Plan(remove=(b"stray", b"slot 1", b"slot 2", b"slot 3", b"slot 4"), over_bytes=25),
        ),
    ],
)
def test_only_what_nobody_needs_from_this_node_goes(held: Holdings, limit_bytes: int | None, plan: Plan) -> None:
    assert plan_removal(held, limit_bytes=limit_bytes) == plan


def test_a_snapshot_is_due_when_it_spares_a_newcomer_bytes() -> None:
    assert not is_snapshot_due(delta_bytes=99, snapshot_bytes=100)
    assert not is_snapshot_due(delta_bytes=100, snapshot_bytes=100)
    assert is_snapshot_due(delta_bytes=101, snapshot_bytes=100)


@pytest.mark.parametrize(
    ("archive", "disk_gb", "limit"),
    [(True, None, None), (False, None, 50_000_000_000), (True, 2.0, 2_000_000_000), (False, 0.5, 500_000_000)],
)
def test_an_archive_has_no_limit_but_the_one_that_its_owner_sets(
    archive: bool, disk_gb: float | None, limit: int | None
) -> None:
    assert disk_limit_bytes(Config(archive=archive, limits=LimitsSection(disk_gb=disk_gb))) == limit
