"""The table of states and transitions is the one in the protocol's text, and the machine makes these and no others."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chains import Story, swarm_with
from machines import Machine, only
from simulation.faults import draw_plan
from simulation.hostile import HostileNode
from simulation.scenario import run
from swarms import id_of, key_of

from fullrank_protocol import round as machine_of_a_slot
from fullrank_protocol import round_io as io
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.errors import Rule
from fullrank_protocol.round import step_all
from fullrank_protocol.round_state import DeltaStatus, RoundState
from fullrank_protocol.snapshot import make_snapshot
from fullrank_protocol.transitions import CHECKPOINT, CONTRIBUTION, OUTSIDE, Transition, diagram

TEXT = (Path(__file__).parents[2] / "protocol" / "README.md").read_text(encoding="utf-8")

FOUR = ("ada", "bob", "cyd", "dan")

Arrow = tuple[str, str, str]
"""Of what, from, to."""


def arrows(name: str, table: tuple[Transition, ...]) -> set[Arrow]:
    return {(name, arrow.before, arrow.after) for arrow in table}


LISTED = arrows("contribution", CONTRIBUTION) | arrows("checkpoint", CHECKPOINT)


# ---- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [CONTRIBUTION, CHECKPOINT], ids=["contribution", "checkpoint"])
def test_the_diagram_in_the_text_is_drawn_from_the_table(table: Any) -> None:
    assert f"```mermaid\n{diagram(table)}\n```" in TEXT
    assert len({(arrow.before, arrow.after) for arrow in table}) == len(table)


def test_the_states_of_a_contribution_are_those_of_the_machine() -> None:
    states = {arrow.before for arrow in CONTRIBUTION} | {arrow.after for arrow in CONTRIBUTION}
    assert states - {OUTSIDE} == {status.value for status in DeltaStatus}


# ---- what a machine does -----------------------------------------------------------------------------


def states_of(state: RoundState) -> dict[tuple[str, bytes], str]:
    """The state of everything that a node knows, read from what it holds."""
    found = {("contribution", each): candidate.status.value for each, candidate in state.candidates.items()}
    for each, node in state.tree.nodes.items():
        if node.checkpoint is not None:
            found["checkpoint", each] = state_of_checkpoint(state, each, verdict=node.verdict)
    return found


def state_of_checkpoint(state: RoundState, checkpoint: bytes, *, verdict: bool | None) -> str:
    """Open, left behind or beside while it is not judged; it is in one place only."""
    places = {"open": state.unverified, "left_behind": state.left_behind, "beside": state.arrival.beside}
    held = [name for name, place in places.items() if checkpoint in place]
    if verdict is None:
        (name,) = held
        return name
    assert not held, f"is judged and still {held}"
    return "holds" if verdict else "refused"


class Watch:
    """Compares what every machine holds after each of its actions with what it held before."""

    def __init__(self) -> None:
        self.seen: set[Arrow] = set()
        self._known: dict[int, tuple[RoundState, dict[tuple[str, bytes], str]]] = {}  # The state, so that ids last.

    def watched(self, actions_of: Callable[..., Iterator[io.Action]]) -> Callable[..., Iterator[io.Action]]:
        def watched(state: RoundState, *arguments: Any) -> Iterator[io.Action]:
            self.look(state)
            for action in actions_of(state, *arguments):
                self.look(state)
                yield action
            self.look(state)

        return watched

    def look(self, state: RoundState) -> None:
        after = states_of(state)
        _, before = self._known.get(id(state), (state, after))
        self._known[id(state)] = (state, after)
        for what, each in before.keys() | after.keys():
            one, other = before.get((what, each), OUTSIDE), after.get((what, each), OUTSIDE)
            if one != other:
                self.seen.add((what, one, other))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watches every machine of the test, simulated ones too."""
    watch = Watch()
    for name in ("_handle", "_duties"):
        monkeypatch.setattr(machine_of_a_slot, name, watch.watched(getattr(machine_of_a_slot, name)))
    return watch


def branches_below_what_is_final() -> None:
    """One that was open when another became final, and one that comes afterwards; three of four vote for both."""
    tale = Story(swarm_with(*FOUR))
    machine = Machine(tale, "reader", certifies=False)
    machine.at(12, 500)
    slow = tale.contribution("dan")
    machine.verdicts[slow.id] = None
    open_one = tale.grow(tale.genesis, slot=3, by="dan", accepted=[slow])
    ours = tale.line(tale.genesis, (1, 2), "ada bob cyd")
    machine.receive(open_one, *ours, *tale.votes("ada bob cyd", ours[-1]))
    assert machine.final == 1
    theirs = tale.round_of(tale.genesis, slot=5, by="bob")
    above = tale.grow(theirs, slot=6, by="bob", votes=tale.votes("ada bob dan", theirs))
    machine.receive(theirs, above)
    assert machine.state.left_behind.keys() == {open_one.id, theirs.id, above.id}
    only(io.Alarm, machine.receive(*tale.votes("ada bob dan", above)))
    assert not machine.state.left_behind


def branches_below_a_snapshot() -> None:
    """One left behind before, one open when the snapshot is taken, and one that comes afterwards."""
    tale = Story(swarm_with("ada", "bob"))
    line = [tale.genesis]
    for slot in range(1, 9):
        votes = tale.votes("ada bob", line[-1]) if slot > 1 else []
        blob = BlobRef(id=id_of(f"delta of slot {slot}"), num_bytes=50)
        accepted = [tale.contribution("ada", line[-1], blob=blob)]
        line.append(tale.grow(line[-1], slot=slot, accepted=accepted, votes=votes))
    left, open_one = (tale.round_of(line[number], slot=20 + number) for number in (0, 4))
    late = tale.round_of(open_one, slot=25)
    machine = Machine(tale, "zoe")
    machine.at(30)
    machine.receive(*line[1:4], left)
    assert machine.final == 1
    machine.feed(io.CatchingUp())
    blob = BlobRef(id=id_of("snapshot"), num_bytes=120)
    hint = make_snapshot(key_of("ada"), swarm=tale.swarm.id, checkpoint=line[6].id, slot=6, blob=blob)
    machine.receive(line[4], open_one, *line[5:], hint)
    only(io.FetchSnapshot, machine.feed(io.Synced()))
    machine.feed(io.SnapshotApplied(checkpoint=line[6].id))
    machine.receive(late)
    assert machine.state.arrival.beside == {left.id, open_one.id, late.id}


def a_merge_that_fails_here() -> None:
    """The disk may have lost a blob."""
    tale = Story(swarm_with(*FOUR))
    machine = Machine(tale, "bob", by_hand=True)
    mine = tale.contribution("ada")
    machine.at(2)
    machine.receive(tale.grow(tale.genesis, slot=1, by="cyd", accepted=[mine]))
    merge = only(io.Merge, machine.feed(io.DeltaChecked(contribution_id=mine.id)))
    machine.feed(io.MergeFailed(key=merge.key, rule=None, detail="no space left"))


def deltas_that_come_too_late() -> None:
    """One is being fetched, one is not to be had, one is faulty; then more rounds are final than a delta may be old."""
    tale = Story(swarm_with(*FOUR))
    machine = Machine(tale, "reader", certifies=False)
    machine.at(12, 500)
    faulty, silent, missing = (tale.contribution(name) for name in ("bob", "cyd", "dan"))
    machine.verdicts = {
        faulty.id: io.DeltaChecked(contribution_id=faulty.id, rule=Rule.RANK, detail="is too high"),
        silent.id: None,
        missing.id: io.DeltaUnavailable(contribution_id=missing.id),
    }
    machine.receive(faulty, silent, missing)
    only(io.CheckDelta, machine.at(16))
    machine.receive(tale.checkpoint(tale.genesis, slot=1, by="dan", accepted=[faulty]))
    line = [tale.round_of(tale.genesis, slot=1)]
    for slot in range(2, 8):
        line.append(tale.round_of(line[-1], slot=slot, votes=tale.votes("ada bob cyd", line[-1])))
    machine.receive(*line)
    assert machine.final == 5
    assert not {faulty.id, silent.id, missing.id} & machine.state.candidates.keys()


def test_the_machine_makes_every_listed_transition_and_no_other(watch: Watch) -> None:
    branches_below_what_is_final()
    branches_below_a_snapshot()
    a_merge_that_fails_here()
    deltas_that_come_too_late()
    assert watch.seen == LISTED


def test_it_makes_no_other_under_random_faults_either(watch: Watch) -> None:
    """Four nodes each, and with a hostile certifier in most."""
    for seed in range(4):
        assert not run(draw_plan(seed, 4, hostile=seed != 1), hostile=HostileNode).failure
    assert watch.seen <= LISTED


def test_an_answer_that_comes_twice_changes_nothing(watch: Watch) -> None:
    """A delta that was withdrawn and offered again is asked for twice."""
    tale = Story(swarm_with(*FOUR))
    machine = Machine(tale, "bob")
    mine = tale.contribution("ada")
    machine.at(2)
    machine.receive(mine)
    machine.feed(io.DeltaUnavailable(contribution_id=mine.id))
    machine.feed(io.DeltaChecked(contribution_id=mine.id, rule=Rule.RANK, detail="is too high"))
    assert machine.state.candidates[mine.id].status is DeltaStatus.READY
    assert watch.seen <= LISTED


def test_what_is_open_keeps_its_children_open_also_when_another_branch_becomes_final_at_that_moment(
    watch: Watch,
) -> None:
    """Votes that make another branch final, a child, and that its parent's delta is faulty: all of it at once."""
    tale = Story(swarm_with(*FOUR))
    machine = Machine(tale, "reader", certifies=False, by_hand=True)
    machine.at(12, 500)
    faulty = tale.contribution("dan")
    parent = tale.grow(tale.genesis, slot=3, by="dan", accepted=[faulty])
    child = tale.grow(parent, slot=4)
    ours = tale.line(tale.genesis, (1, 2), "ada bob cyd")
    machine.receive(parent, *ours)
    arriving = [*tale.votes("ada bob cyd", ours[-1]), tale.tree.nodes[child.id].checkpoint]
    events: list[io.Event] = [io.ObjectReceived(envelope=each.envelope) for each in arriving if each is not None]
    events.append(io.DeltaChecked(contribution_id=faulty.id, rule=Rule.RANK, detail="is too high"))
    step_all(machine.state, events, machine.now_ms)
    assert machine.final == 1
    assert machine.state.tree.nodes[child.id].verdict is False
    assert ("checkpoint", "open", "refused") in watch.seen
    assert watch.seen <= LISTED
