"""Schedules written by hand: what random faults would need very long to hit upon."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from chains import Story, key, swarm_with
from simulation.faults import Fault, Plan, draw_plan
from simulation.hostile import HostileNode
from simulation.invariants import Checker, Violation
from simulation.node import SimulatedNode, key_of
from simulation.scenario import run, tell
from simulation.world import WINDOW_MS, World, make_genesis

from fullrank_protocol import chain
from fullrank_protocol.chain import ChainState
from fullrank_protocol.envelope import seal
from fullrank_protocol.errors import RejectError
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire


def story_of_four() -> Story:
    return Story(swarm_with("ada", "bob", "cid", "dan"))


def change_two(tale: Story) -> list[Any]:
    """Cid and dan step down, eve and fay take up the role: certifiers ada, bob, eve, fay."""
    grant = tale.grant(count=2)
    return [
        grant,
        tale.admission("eve", grant),
        tale.admission("fay", grant),
        tale.leave("cid", certifier_role_only=True),
        tale.leave("dan", certifier_role_only=True),
        tale.take_up("eve"),
        tale.take_up("fay"),
    ]


def two_views(tale: Story, records: list[Any], *, added: str) -> list[tuple[str, ChainState]]:
    """A change of the set in slot 1 is final in the first view and not in the second; who votes for what, in order.

    Both views share slots 1 to 3. Slot 4 carries the votes for slot 2, which make the change final; slot 5 of the
    second view, on slot 3, does not carry them, so the old set goes on counting there.
    """
    change = tale.grow(tale.genesis, slot=1, records=records)
    second = tale.grow(change, slot=2, votes=tale.votes("ada bob cid", change))
    third = tale.grow(second, slot=3)
    for_third = tale.votes("ada bob cid", third)
    fourth = tale.grow(third, slot=4, votes=[*tale.votes("ada bob cid", second), *for_third])
    other = tale.grow(third, slot=5, votes=for_third)
    other_next = tale.grow(other, slot=6, votes=tale.votes("bob cid dan", other))
    assert (fourth.final.slot, other.final.slot) == (1, 0)
    fifth = tale.grow(fourth, slot=5, votes=tale.votes(f"ada bob cid {added}", fourth))
    return [
        (f"ada bob cid {added}", fourth),
        (f"ada {added}", fifth),
        ("bob cid dan", other),
        ("bob cid dan", other_next),
    ]


def view(tale: Story, cast: list[tuple[str, ChainState]], tips: list[ChainState], number: int) -> Any:
    """A node that knows the chains up to some tips and the votes for what is on them."""
    tree = Tree(tale.swarm.genesis)
    for tip in tips:
        for node in tale.tree.chain(tip.id):
            if node.state.id not in tree.nodes:
                assert node.checkpoint is not None
                tree.add(node.checkpoint)
                tree.set_verdict(node.state.id, holds=True)
    for names, target in cast:
        if target.id in tree.nodes:
            for vote in tale.votes(names, target):
                assert not tree.add_vote(vote), "nobody offends"
    return SimpleNamespace(is_honest=True, is_up=True, number=number, life=1, state=SimpleNamespace(tree=tree))


def checker_of(tale: Story, cast: list[tuple[str, ChainState]]) -> Checker:
    world: Any = SimpleNamespace(genesis=tale.swarm.genesis, slot=6, note=lambda text: None)
    checker = Checker(world)
    for names, target in cast:
        for name in names.split():
            checker.cast(key(name), target.justified, target.here)
    return checker


def test_sets_that_change_by_two_let_honest_certifiers_finalise_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "check_certifier_change", lambda parent, members, at_once: None)
    tale = story_of_four()
    cast = two_views(tale, change_two(tale), added="eve fay")
    (_, _), (_, fifth), (_, _), (_, other_next) = cast
    one = view(tale, cast, [fifth], 1)
    two = view(tale, cast, [other_next], 2)
    assert (one.state.tree.final.slot, two.state.tree.final.slot) == (4, 5)
    checker = checker_of(tale, cast)
    checker.observe(one)
    with pytest.raises(Violation, match="contradicts final slot 4"):
        checker.observe(two)


def test_the_rule_that_sets_change_by_one_refuses_that_schedule() -> None:
    tale = story_of_four()
    with pytest.raises(RejectError, match="changes the certifier set by 4 keys, 1 is allowed"):
        two_views(tale, change_two(tale), added="eve fay")


def test_where_sets_change_by_one_the_same_schedule_takes_offences() -> None:
    tale = story_of_four()
    grant = tale.grant(count=1)
    cast = two_views(tale, [grant, tale.admission("eve", grant), tale.take_up("eve")], added="eve")
    (_, _), (_, fifth), (_, _), (_, other_next) = cast
    one = view(tale, cast, [fifth], 1)
    two = view(tale, cast, [other_next], 2)
    assert (one.state.tree.final.slot, two.state.tree.final.slot) == (3, 5)
    checker = checker_of(tale, cast)
    checker.observe(one)
    checker.observe(two)
    checker.observe(view(tale, cast, [fifth, other_next], 3))


def test_a_final_checkpoint_for_which_too_few_have_voted_is_a_violation() -> None:
    tale = story_of_four()
    cast = two_views(tale, [], added="dan")
    (_, _), (_, fifth), (_, _), (_, _) = cast
    one = view(tale, [*cast, ("bob", fifth)], [fifth], 1)
    assert one.state.tree.final.slot == 4
    checker_of(tale, [*cast, ("bob", fifth)]).observe(one)
    with pytest.raises(Violation, match="holds slot 4 for final without a quorum"):
        checker_of(tale, cast).observe(one)


class Twin(SimulatedNode):
    """The key of another node on a second machine: it votes on both sides of a partition."""

    is_honest = False

    def __init__(self, world: World, number: int, *, certifies: bool = True, trains: bool = True) -> None:
        super().__init__(world, number, certifies=certifies, trains=trains)
        self.key = key_of(number % 10)


def test_with_half_of_the_certifiers_hostile_a_conflict_is_loud_and_leaves_evidence() -> None:
    world = World(make_genesis(founders=4), seed=1, size=4)
    world.checker.expects_conflicts = True
    left = [world.add(0), world.add(2, kind=Twin), world.add(3, kind=Twin)]
    right = [world.add(1), world.add(12, kind=Twin), world.add(13, kind=Twin)]
    world.partition(left, right)
    world.run(6)
    honest = [left[0], right[0]]
    ours = [node.state.tree.final for node in honest]
    assert min(final.slot for final in ours) >= 3
    assert ours[0] != ours[1]
    world.heal()
    world.run(4)
    assert world.checker.conflicts
    assert all(len(node.alarms) == 1 for node in honest)
    for node, final in zip(honest, ours, strict=True):
        state = node.state.tree.state(node.state.tree.final.checkpoint)
        assert chain.is_ancestor(final, state, lookup=node.state.tree.lookup), "it keeps its own"
        assert {piece.accused for piece in node.state.evidence.values()} == {
            key_of(2).public_key,
            key_of(3).public_key,
        }


def test_a_hostile_proposer_cannot_hide_what_the_swarm_builds_on_behind_its_other_checkpoints() -> None:
    assert not run(draw_plan(107, 4, hostile=True), hostile=HostileNode).failure


def test_a_failing_plan_tells_a_short_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.node.restore", lambda *args, **fields: None)
    killed = Fault("kill", 5 * WINDOW_MS, 6 * WINDOW_MS, 2)
    pause = Fault("pause", WINDOW_MS, 2 * WINDOW_MS, 1)
    story = tell(Plan(seed=1, size=4, faults=(pause, killed), chaos_slots=10))
    assert "slot 5.00 to 6.00: kill node 2" in story
    assert "pause" not in story
    assert "VIOLATION" in story.splitlines()[-1]


def test_a_failing_seed_ends_with_the_command_that_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.node.restore", lambda *args, **fields: None)
    seeds = (draw_plan(seed, 4, hostile=True) for seed in itertools.count(1))
    failing = next(plan for plan in seeds if run(plan, hostile=HostileNode).failure)
    story = tell(failing, hostile=HostileNode)
    assert story.splitlines()[-1] == (
        f"PYTHONPATH=tests python -m simulation --size 4 --seeds {failing.seed} --hostile --story"
    )


class Hasty(SimulatedNode):
    """A certifier that closes every slot with an empty checkpoint before anybody else can have merged anything."""

    is_honest = False

    def _tick(self, life: int) -> None:
        slot, head = self.world.slot, self.state.tree.head()
        if self.life == life and slot > head.slot:
            message = wire.Checkpoint(
                kind=wire.EMPTY,
                parent=head.id,
                slot=slot,
                round=head.round,
                model_digest=head.model_digest or bytes(32),
                update_norm=Scaled(mantissa=0, exponent=0).to_wire(),
            )
            hasty = seal(self.key, swarm=self.world.genesis.swarm, type=wire.CHECKPOINT, message=message)
            self.disk.store(hasty, slot)
            self.world.broadcast(self, hasty)
        super()._tick(life)


def test_a_certifier_that_never_waits_for_its_turn_takes_only_its_own_turns() -> None:
    world = World(make_genesis(founders=4, window_ms=6 * WINDOW_MS), seed=1, size=4)
    for number in range(4):
        world.add(number, kind=Hasty if number == 3 else SimulatedNode)
    world.run(24)
    tree = world.nodes[0].state.tree
    chain_of_all = [node.checkpoint for node in tree.chain(tree.head().id) if node.checkpoint is not None]
    hasty = [checkpoint for checkpoint in chain_of_all if checkpoint.proposer == world.nodes[3].key.public_key]
    assert len(chain_of_all) >= 22
    assert 0 < len(hasty) < len(chain_of_all) / 2
    assert tree.head().round == len(chain_of_all) - len(hasty)
