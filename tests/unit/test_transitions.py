"""The table of states and transitions is the one in the protocol's text, and the machine keeps to it."""

from pathlib import Path
from typing import Any

import pytest
from simulation.faults import draw_plan
from simulation.hostile import HostileNode
from simulation.scenario import run

from fullrank_protocol import intake
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.round_state import Candidate, DeltaStatus
from fullrank_protocol.transitions import CHECKPOINT, CONTRIBUTION, OUTSIDE, diagram, is_listed

TEXT = (Path(__file__).parents[2] / "protocol" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [CONTRIBUTION, CHECKPOINT], ids=["contribution", "checkpoint"])
def test_the_diagram_in_the_text_is_drawn_from_the_table(table: Any) -> None:
    assert f"```mermaid\n{diagram(table)}\n```" in TEXT


def test_the_states_of_a_contribution_are_those_of_the_machine() -> None:
    states = {arrow.before for arrow in CONTRIBUTION} | {arrow.after for arrow in CONTRIBUTION}
    assert states - {OUTSIDE} == {status.value for status in DeltaStatus}


def test_the_machine_makes_listed_transitions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, str]] = set()

    class Watched(Candidate):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "status":
                before = self.status.value if hasattr(self, "status") else OUTSIDE
                seen.add(("delta " + before, value.value))
            super().__setattr__(name, value)

    place, judge = Tree.add, Tree.set_verdict
    names = {None: "open", True: "holds", False: "refused"}

    def add(tree: Tree, checkpoint: Any) -> Any:
        placed = place(tree, checkpoint)
        seen.add((OUTSIDE, names[tree.nodes[checkpoint.id].verdict]))
        return placed

    def set_verdict(tree: Tree, checkpoint: bytes, *, holds: bool) -> None:
        seen.add((names[tree.nodes[checkpoint].verdict], names[holds]))
        judge(tree, checkpoint, holds=holds)

    monkeypatch.setattr(intake, "Candidate", Watched)
    monkeypatch.setattr(Tree, "add", add)
    monkeypatch.setattr(Tree, "set_verdict", set_verdict)
    for seed in range(8):
        assert not run(draw_plan(seed, 4, hostile=seed != 1), hostile=HostileNode).failure
    for before, after in seen:
        if before.startswith("delta "):
            before = before.removeprefix("delta ")
            assert before == after or is_listed(CONTRIBUTION, before, after), (before, after)
        else:
            assert is_listed(CHECKPOINT, before, after), (before, after)
    assert ("delta checking", "unavailable") in seen
    assert ("open", "refused") in seen
