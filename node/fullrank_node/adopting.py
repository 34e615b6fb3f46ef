"""Ending a conflict of two final checkpoints: the root chooses one, and owners follow (protocol section 8, "Choice").

At a home with a root key `adopt` signs the choice. At any other it follows the root's choice, once that is known,
which matters only where it means leaving the node's own final checkpoint. A choice may name any checkpoint that one
of the two histories has and the other has not.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.finality_reply import checkpoint_line, conflict_reply
from fullrank_node.people import MIN_DIGITS
from fullrank_node.root_actions import missing_signatures, sign_or_join
from fullrank_node.standing import choice_in_effect, short_id
from fullrank_protocol.chain import ChainState, common_ancestor, is_ancestor
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.vote import make_choice
from fullrank_protocol.wire import objects_pb2

if TYPE_CHECKING:
    from fullrank_node.runner import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adoption:
    """What a request comes to.

    Attributes:
        checkpoint: What is adopted.
        signs: This node's root key signs the choice.
        follows: It is not on the history that this node keeps.
    """

    checkpoint: ChainState
    signs: bool
    follows: bool


def adopt(runner: "Runner", request: wire.AdoptRequest) -> wire.AdoptReply:
    """Choose one of two conflicting histories, or follow the root's choice; or tell what that would do.

    Raises:
        NodeError: The checkpoint is on none of the two histories, or the root has not chosen it.
    """
    tree = runner.state.tree
    conflict = conflict_reply(runner)
    if conflict is None:
        final = tree.state(tree.final.checkpoint)
        note = f"There is no conflict: {short_id(final.id)} of slot {final.slot} is final here, and nothing against it."
        return wire.AdoptReply(note=note)
    plan = _plan(runner, request.checkpoint)
    reply = wire.AdoptReply(
        conflict=conflict,
        checkpoint=checkpoint_line(plan.checkpoint, runner),
        signs=plan.signs,
        follows=plan.follows,
        signatures_needed=runner.genesis.membership.root_threshold,
    )
    if plan.follows:
        _add_what_is_left(reply, runner, plan.checkpoint)
    if request.preview:
        return reply
    notes = []
    chosen = plan.checkpoint
    if plan.signs:
        chosen = _sign(reply, runner, plan.checkpoint)
        notes.append(
            missing_signatures(
                reply.signatures, reply.signatures_needed, command=f"fullrank adopt {short_id(chosen.id)}"
            )
        )
    if plan.follows:
        runner.adopt_choice(chosen.id)
    notes.append(_outcome(runner, chosen))
    reply.note = " ".join(note for note in notes if note)
    return reply


# ---- what is meant -------------------------------------------------------------------------------------


def _plan(runner: "Runner", text: str) -> _Adoption:
    tree = runner.state.tree
    assert tree.conflict is not None
    meant = _resolve(tree, text)
    own = tree.state(tree.conflict[0].checkpoint)
    follows = not is_ancestor(meant.here, own, lookup=tree.lookup)
    is_root = runner.key.public_key in runner.genesis.membership.root_keys
    chosen = choice_in_effect(tree)
    if chosen is not None and follows:  # This node keeps the other one, or the conflict would be over.
        return _Adoption(checkpoint=tree.state(chosen.checkpoint), signs=False, follows=True)
    if is_root:
        return _Adoption(checkpoint=meant, signs=True, follows=follows)
    if chosen is not None:
        raise NodeError(
            f"the founder has not chosen {short_id(meant.id)}: this node cannot keep it alone",
            hint=f"`fullrank adopt {short_id(chosen.checkpoint)}` follows the founder's choice.",
            exit_code=ExitCode.PERMISSION,
        )
    ours, theirs = (short_id(mark.checkpoint) for mark in tree.conflict)
    raise NodeError(
        f"the founder has not chosen yet between {ours} and {theirs}, or the choice has not arrived here",
        hint=f"Tell the founder, who runs `fullrank adopt {ours}` or `fullrank adopt {theirs}`; then try again here.",
        exit_code=ExitCode.RETRY,
    )


def _resolve(tree: Tree, text: str) -> ChainState:
    """The checkpoint meant by the first digits of its id, among those that only one of the two histories has."""
    assert tree.conflict is not None
    ours, theirs = (tree.state(mark.checkpoint) for mark in tree.conflict)
    fork = common_ancestor(ours, theirs, lookup=tree.lookup)
    nodes = [node for tip in (ours, theirs) for node in tree.chain(tip.id, above_slot=fork.slot)]
    wanted = text.strip().lower()
    found = [node.state for node in nodes if node.state.id.hex().startswith(wanted)]
    named = " and ".join(f"{short_id(tip.id)} of slot {tip.slot}" for tip in (ours, theirs))
    hint = f"The conflicting ones are {named}."
    if len(wanted) < MIN_DIGITS or len(found) > 1:
        raise NodeError(f"{text!r} is too short to name one checkpoint", hint=hint, exit_code=ExitCode.USAGE)
    if not found:
        raise NodeError(
            f"{text!r} is no checkpoint of the two histories that conflict", hint=hint, exit_code=ExitCode.USAGE
        )
    return found[0]


# ---- what it costs -------------------------------------------------------------------------------------


def _add_what_is_left(reply: wire.AdoptReply, runner: "Runner", chosen: ChainState) -> None:
    """How much of this node's own history is left behind, and what of its own work is offered again."""
    tree = runner.state.tree
    head, final = tree.head(), tree.state(tree.final.checkpoint)
    fork = common_ancestor(final, chosen, lookup=tree.lookup)
    reply.fork_round = fork.round
    reply.rounds_left = head.round - fork.round
    reply.final_rounds_left = final.round - fork.round
    me = runner.key.public_key
    accepted = (
        entry.contribution
        for node in tree.chain(head.id, above_slot=fork.slot)
        if node.checkpoint is not None
        for entry in node.checkpoint.accepted
    )
    reply.deltas_left = sum(contribution.member == me for contribution in accepted)
    newest = max((each.state for each in tree.nodes.values() if _is_above(tree, each.state, chosen)), key=_by_slot)
    reply.deltas_offered = newest.round - fork.round <= runner.genesis.rule.max_staleness_rounds


def _is_above(tree: Tree, state: ChainState, chosen: ChainState) -> bool:
    return state.slot >= chosen.slot and is_ancestor(chosen.here, state, lookup=tree.lookup)


def _by_slot(state: ChainState) -> int:
    return state.slot


# ---- doing it ------------------------------------------------------------------------------------------


def _sign(reply: wire.AdoptReply, runner: "Runner", meant: ChainState) -> ChainState:
    """Sign the choice, or join one of the same history that another root key has signed; what it names."""
    tree = runner.state.tree
    issued_at_ms = max(runner.clock.now_ms(), runner.state.chosen_at_ms + 1)

    def is_same_history(message: objects_pb2.Choice) -> bool:
        named = tree.lookup(message.checkpoint)
        return named is not None and message.issued_at_ms > runner.state.chosen_at_ms and _one_line(tree, named, meant)

    action = sign_or_join(
        runner,
        objects_pb2.CHOICE,
        about=meant.id,
        says=is_same_history,
        make=lambda: make_choice(
            runner.key, swarm=runner.genesis.swarm, checkpoint=meant.id, slot=meant.slot, issued_at_ms=issued_at_ms
        ),
    )
    reply.signatures = len(action.signers)
    chosen = tree.state(action.message.checkpoint)
    reply.checkpoint.CopyFrom(checkpoint_line(chosen, runner))
    return chosen


def _one_line(tree: Tree, one: ChainState, other: ChainState) -> bool:
    """Whether two checkpoints, both above the fork, are of one history."""
    return is_ancestor(one.here, other, lookup=tree.lookup) or is_ancestor(other.here, one, lookup=tree.lookup)


def _outcome(runner: "Runner", chosen: ChainState) -> str:
    """Where this node is now."""
    tree = runner.state.tree
    if tree.conflict is None:
        return (
            f"The conflict is over: this node goes on from {short_id(tree.final.checkpoint)}, slot {tree.final.slot}."
        )
    if choice_in_effect(tree) is None:
        return ""
    if runner.state.arrival.beside & {node.state.id for node in tree.chain(chosen.id)}:
        return (
            "This node arrived by a snapshot above the fork and cannot recompute the chosen history: join again with "
            "the same identity.key into a new --home."
        )
    return "This node goes over as soon as it has recomputed the chosen history; `fullrank status` shows when."
