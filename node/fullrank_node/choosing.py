"""Which checkpoint a pull takes, and what has to be said about it (protocol section 8).

Without being asked, only what is final. Asked for what is provisional: in a stall the newest checkpoint that more than
two thirds of those certifiers stand behind that are there, and where there is no stall the head, which is a few slots
newer than the final one. Both may still be replaced, and the report says so.
"""

from dataclasses import dataclass
from pathlib import Path

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.people import name_of_member
from fullrank_node.standing import Standing, choice_in_effect, listed, short_id, stall_of, standing_of
from fullrank_protocol.chain import ChainState, Mark
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.provisional import Provisional


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The checkpoint that is pulled.

    Attributes:
        state: The checkpoint.
        standing: How sure it is.
        present: Names of the certifiers that are there; empty where the chain is not stalled.
        missing: Names of those that are not.
        notes: Sentences for whoever pulls.
    """

    state: ChainState
    standing: Standing
    present: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose(tree: Tree, *, number: int | None, provisional: bool, slot: int, believed: Mark | None = None) -> Chosen:
    """What to pull.

    Args:
        tree: Of the node that pulls, or of the node of this home.
        number: That round; None for the newest.
        provisional: Also what is not final yet.
        slot: The open slot.
        believed: Taken by a snapshot: below, no weights are to be had.

    Raises:
        NodeError: There is no such round, or none that is final yet.
    """
    stall = stall_of(tree, slot=slot)
    tip = _tip(tree, stall, provisional=provisional)
    state = _newest(tip, stall) if number is None else _of_round(tree, tip, number, believed=believed)
    standing = standing_of(tree, state, slot=slot)
    members = tree.head().members
    present, missing = (
        tuple(sorted(name_of_member(key, members) for key in keys))
        for keys in ((stall.present, stall.missing) if stall is not None else ((), ()))
    )
    note = _note(tree, state, standing, stall, present=present, missing=missing, is_newest=number is None)
    notes = (note,) if note else ()
    return Chosen(state=state, standing=standing, present=present, missing=missing, notes=notes)


def require_no_conflict(tree: Tree, *, place: Path) -> None:
    """A reader has nothing to go by where two final checkpoints contradict each other, until the root has chosen.

    Raises:
        NodeError: They do.
    """
    if tree.conflict is None:
        return
    ours, theirs = (f"{short_id(mark.checkpoint)} of slot {mark.slot}" for mark in tree.conflict)
    chosen = choice_in_effect(tree)
    hint = "Ask the founder which one the swarm keeps, and pull again when that is decided."
    if chosen is not None:
        hint = f"The founder has chosen {short_id(chosen.checkpoint)}: remove {place} and pull again to follow that."
    raise NodeError(
        f"two final checkpoints contradict each other: {ours}, pulled before, and {theirs}",
        hint=hint,
        exit_code=ExitCode.PROTOCOL,
    )


def _tip(tree: Tree, stall: Provisional | None, *, provisional: bool) -> ChainState:
    if not provisional:
        return tree.state(tree.final.checkpoint)
    if stall is not None and stall.at is not None:
        return tree.state(stall.at.checkpoint)
    return tree.head()


def _newest(tip: ChainState, stall: Provisional | None) -> ChainState:
    if tip.round == 0:
        hint = "Wait for the first rounds, or take the unfinished head with --provisional."
        if stall is not None:
            hint = "Finality is long missing: --provisional takes what the certifiers that are there stand behind."
        raise NodeError("no round of this swarm is final yet", hint=hint, exit_code=ExitCode.RETRY)
    return tip


def _of_round(tree: Tree, tip: ChainState, number: int, *, believed: Mark | None) -> ChainState:
    if number == 0:
        return tree.root
    lowest = believed.slot if believed is not None else 0  # Below, no weights are to be had; empty ones share them.
    states = [node.state for node in tree.chain(tip.id, above_slot=lowest - 1) if node.state.round == number]
    if states:
        return states[0]
    newest_final = tree.state(tree.final.checkpoint).round
    if tip.round > newest_final:
        raise NodeError(f"there is no round {number}: the newest is {tip.round}", exit_code=ExitCode.RETRY)
    hint = "--provisional also takes rounds that are not final." if tree.head().round >= number else ""
    raise NodeError(
        f"round {number} is not final: the newest final round is {newest_final}", hint=hint, exit_code=ExitCode.RETRY
    )


def _note(
    tree: Tree,
    state: ChainState,
    standing: Standing,
    stall: Provisional | None,
    *,
    present: tuple[str, ...],
    missing: tuple[str, ...],
    is_newest: bool,
) -> str:
    """What whoever pulls has to know about how sure the checkpoint is; empty where it is final and nothing newer is."""
    there = f"{len(present)} of {len(present) + len(missing)} certifiers are there; missing: {listed(missing)}."
    if standing is Standing.PROVISIONAL:
        return f"NOT final: provisional, {there} It may still be replaced."
    if standing is Standing.NOT_FINAL and stall is not None:
        return f"NOT final, and not provisional: too few of those there stand behind it. {there}"
    if standing is Standing.NOT_FINAL:
        return "NOT final: the swarm may still go another way."
    head = tree.head()
    if stall is None or not is_newest or head.round == state.round:
        return ""
    newer = tree.state(stall.at.checkpoint).round if stall.at is not None else head.round
    return f"Newer rounds, up to {newer}, are not final: {there} --provisional takes them."
