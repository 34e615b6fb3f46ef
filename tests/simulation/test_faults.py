"""Faults one by one, where random ones would say too little: every write, hours of sleep, more than a third hostile."""

import itertools

import pytest
from simulation.node import SimulatedNode, key_of
from simulation.world import World, make_genesis

from fullrank_protocol import chain

HOUR_SLOTS = 360


def swarm(size: int, *, seed: int = 1) -> World:
    world = World(make_genesis(founders=size), seed=seed, size=size)
    for number in range(size):
        world.add(number)
    return world


# ---- kills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [False, True], ids=["right after it", "so that it is lost"])
def test_a_node_may_die_at_any_durable_write_of_three_slots(torn: bool) -> None:
    tried = 0
    for num_writes in itertools.count():
        world = swarm(4)
        world.run(3.2)
        node = world.nodes[1]
        node.torn, node.kill_after_writes = torn, num_writes
        world.run(3)
        if node.is_up:
            break
        node.start()
        world.run(3.3)
        world.checker.check_agreement(final_slot=7)
        assert not any(each.state.evidence for each in world.nodes)
        tried += 1
    assert tried >= 30


# ---- sleep ---------------------------------------------------------------------------------------


def test_a_node_that_slept_for_an_hour_follows_as_fast_as_it_can_merge() -> None:
    """It has 360 rounds to recompute, one after the other, at 0.15 s each in the mean: six slots."""
    world = swarm(4)
    world.run(5)
    sleeper = world.nodes[2]
    head_before = sleeper.state.tree.head().slot
    sleeper.paused_until_ms = world.now_ms + HOUR_SLOTS * 10_000
    world.run(HOUR_SLOTS)
    assert sleeper.state.tree.head().slot == head_before
    assert world.nodes[0].state.tree.head().round > HOUR_SLOTS * 0.9
    world.run(8)
    world.checker.check_agreement(final_slot=world.slot - 4)
    world.run(2.5)
    contributors = {
        accepted.contribution.member
        for node in world.nodes[0].state.tree.chain(world.nodes[0].state.tree.head().id)[-2:]
        if node.checkpoint is not None
        for accepted in node.checkpoint.accepted
    }
    assert sleeper.key.public_key in contributors


def test_a_swarm_that_slept_for_a_night_goes_on_where_it_was() -> None:
    world = swarm(4)
    world.run(5)
    final_before = world.nodes[0].state.tree.final
    round_before = world.nodes[0].state.tree.head().round
    for node in world.nodes:
        node.paused_until_ms = world.now_ms + 8 * HOUR_SLOTS * 10_000
    world.run(8 * HOUR_SLOTS)
    for node in world.nodes:
        assert node.state.tree.head().round <= round_before + 1
    world.run(6)
    world.checker.check_agreement(final_slot=world.slot - 4)
    for node in world.nodes:
        tree = node.state.tree
        assert tree.is_final(tree.state(final_before.checkpoint))
        assert tree.head().round >= round_before + 4


@pytest.mark.parametrize("minutes_early", [1, 60, 10**6])
def test_a_node_that_starts_with_its_clock_set_back_knows_all_it_knew(minutes_early: int) -> None:
    """As small computers without a clock of their own do: at every start it is the same hour, or 1970."""
    world = swarm(4)
    world.run(5)
    node = world.nodes[1]
    node.kill()
    before = node.state
    node.skew_ms = -minutes_early * 60_000
    node.start()
    assert node.state.tree.head().id == before.tree.head().id
    assert node.state.tree.final == before.tree.final
    assert node.state.tree.final.slot >= 1
    world.run(2)
    node.skew_ms = 0
    world.run(4)
    world.checker.check_agreement(final_slot=world.slot - 4)


def test_a_swarm_that_fell_asleep_with_its_votes_divided_goes_on_as_well() -> None:
    world = swarm(2)
    world.run(4)
    world.partition(world.nodes[:1], world.nodes[1:])
    world.run(3)
    heads = {node.state.tree.head().id for node in world.nodes}
    assert len(heads) == 2
    for node in world.nodes:
        assert not node.state.tree.is_justified(node.state.tree.head().id)
        node.paused_until_ms = world.now_ms + HOUR_SLOTS * 10_000
    world.run(HOUR_SLOTS)
    world.heal()
    world.run(10)
    world.checker.check_agreement(final_slot=HOUR_SLOTS)


# ---- a third and more ----------------------------------------------------------------------------


class Twin(SimulatedNode):
    """The key of another node on a second machine: it votes on both sides of a partition."""

    is_honest = False

    def __init__(self, world: World, number: int, *, certifies: bool = True, trains: bool = True) -> None:
        super().__init__(world, number, certifies=certifies, trains=trains)
        self.key = key_of(number % 100)


def divided(size: int, twins: range, *, seed: int) -> tuple[World, list[SimulatedNode]]:
    """A swarm in two halves; the twins' keys vote in both. The honest ones, half of them on each side."""
    world = World(make_genesis(founders=size), seed=seed, size=size)
    world.checker.expects_conflicts = True
    honest = [world.add(number) for number in range(size) if number not in twins]
    left = [world.add(number, kind=Twin) for number in twins]
    right = [world.add(100 + number, kind=Twin) for number in twins]
    world.partition([*honest[::2], *left], [*honest[1::2], *right])
    return world, honest


@pytest.mark.parametrize(("size", "twins"), [(4, range(2, 4)), (7, range(4, 7)), (10, range(6, 10))])
@pytest.mark.parametrize("seed", range(3))
def test_with_more_than_a_third_hostile_a_conflict_leaves_evidence_and_stops_everybody(
    size: int, twins: range, seed: int
) -> None:
    world, honest = divided(size, twins, seed=seed)
    world.run(6)
    ours = [node.state.tree.final for node in honest]
    assert min(final.slot for final in ours) >= 2
    world.heal()
    world.run(4)
    assert world.checker.conflicts
    for node, final in zip(honest, ours, strict=True):
        tree = node.state.tree
        assert len(node.alarms) == 1
        assert chain.is_ancestor(final, tree.state(tree.final.checkpoint), lookup=tree.lookup), "it keeps its own"
        accused = {piece.accused for piece in node.state.evidence.values()}
        assert accused == {key_of(number).public_key for number in twins}
    stopped_at = [node.state.tree.final for node in honest]
    votes = [len(node.disk.votes) for node in honest]
    world.run(4)
    assert [node.state.tree.final for node in honest] == stopped_at
    assert [len(node.disk.votes) for node in honest] == votes


@pytest.mark.parametrize(("size", "twins"), [(4, range(3, 4)), (7, range(5, 7)), (10, range(7, 10))])
def test_with_less_than_a_third_twins_nothing_contradicts_and_the_twins_are_excluded(size: int, twins: range) -> None:
    world, honest = divided(size, twins, seed=1)
    world.checker.expects_conflicts = False
    world.run(6)
    world.heal()
    world.run(14)
    world.checker.check_agreement(final_slot=world.slot - 6)
    assert not any(node.alarms for node in honest)
    excluded = honest[0].state.tree.head().members.excluded
    assert excluded == {key_of(number).public_key for number in twins}


# ---- training kept -------------------------------------------------------------------------------


def cut_off(slots: float) -> tuple[int, int]:
    """One of five is cut off for some slots; how many deltas it made meanwhile, and how many are final in the end."""
    world = swarm(5)
    world.run(4)
    world.partition(world.nodes[:4], world.nodes[4:])
    world.run(slots)
    world.heal()
    world.run(6)
    (split,) = world.checker.kept_of_splits()
    return split.made, split.kept


def test_a_short_partition_costs_nobody_any_training() -> None:
    made, kept = cut_off(2)
    assert made == kept == 2


def test_what_the_lighter_side_trained_before_the_last_rounds_of_a_long_partition_is_lost() -> None:
    """More than three rounds after the fork, everything trained beside the chain is too stale."""
    made, kept = cut_off(7)
    assert made >= 3
    assert kept == 0
