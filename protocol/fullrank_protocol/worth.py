"""Which checkpoints are opened, and when: what a hostile signer can make this node do is bounded (protocol section 5).

A checkpoint may hold thousands of signatures. So its own fields are read first; only a certifier at its parent is
heard, a few times a slot, and not about branches on which nothing can count any more.
"""

from typing import NoReturn

from fullrank_protocol.chain import ChainState, check_proposer, common_ancestor, is_ancestor
from fullrank_protocol.checkpoint import Checkpoint, Place, contributions, open_checkpoint, open_place
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.fork_choice import Node, Offence
from fullrank_protocol.limits import CLOCK_TOLERANCE_MS
from fullrank_protocol.proposing import opens_ms
from fullrank_protocol.round_state import FUTURE, RoundState
from fullrank_protocol.wire import objects_pb2 as wire

MAX_CHECKPOINTS_PER_TURN = 4
"""Checkpoints of one proposer for one slot that are looked at, and of one proposer that are refused in one slot of
this clock: an honest one makes a single one, which is not refused."""

MAX_CHECKPOINTS_FAR_BESIDE = 1
"""The same where nothing can count any more: somebody cut off makes one for each slot, and may have made it final."""


class ParkedError(Exception):
    """An object refers to something that is not here yet."""

    def __init__(self, waits_for: bytes) -> None:
        super().__init__()
        self.waits_for = waits_for


class HereError(RejectError):
    """Refused as things stand here; elsewhere they may stand otherwise, and who passed it on is not to blame."""


def place(state: RoundState, envelope: Envelope, now_ms: int) -> tuple[Checkpoint, ChainState, list[Offence]]:
    """Opens a checkpoint and places it in the tree.

    Returns:
        The checkpoint, the state after it, and the offences that its votes complete.

    Raises:
        ParkedError: Its time has not come, or what it refers to is not here.
        RejectError: It breaks a rule that needs no recomputation.
        IgnoreError: There is too much of its signer already, or it branches off where nothing can come of it.
    """
    found = open_place(envelope, state.genesis)
    ends_ms = state.genesis.slot_end_ms(found.slot) - CLOCK_TOLERANCE_MS
    if _is_early(state, ends_ms, now_ms):
        _hold(state, envelope, ends_ms)
    parent = state.tree.nodes.get(found.parent)
    if parent is None:
        if state.is_no_checkpoint(found.parent):
            raise RejectError(Rule.PARENT, f"names {found.parent.hex()[:12]} as its parent, which is no checkpoint")
        raise ParkedError(found.parent)
    _check_worth(state, envelope, found, parent, now_ms)
    turn = state.in_turn.setdefault((found.slot, envelope.public_key), set())
    turn.add(envelope.id)
    try:
        checkpoint = open_checkpoint(envelope, state.genesis)
        _wait_for_bases_and_turn(state, checkpoint, parent, now_ms)
        return checkpoint, *state.tree.add(checkpoint)
    except RejectError:
        turn.discard(envelope.id)
        state.num_refused[envelope.public_key] += 1
        raise


def _wait_for_bases_and_turn(state: RoundState, checkpoint: Checkpoint, parent: Node, now_ms: int) -> None:
    for contribution in contributions(checkpoint):
        if state.tree.lookup(contribution.base_checkpoint) is None:
            raise ParkedError(contribution.base_checkpoint)
    opens = opens_ms(checkpoint, parent.state, genesis=state.genesis)
    if _is_early(state, opens, now_ms):
        state.tree.follow(checkpoint)  # What can be refused is refused at once.
        _hold(state, checkpoint.envelope, opens)


def _is_early(state: RoundState, due_ms: int, now_ms: int) -> bool:
    """Whether a checkpoint is ahead of this clock. What this node kept was not: then its clock was set back."""
    return due_ms > now_ms and not state.is_restoring


def _hold(state: RoundState, checkpoint: Envelope, due_ms: int) -> NoReturn:
    """Keep a checkpoint ahead of this clock until its time; only a certifier's, or anybody could fill the memory."""
    if checkpoint.public_key not in state.tree.head().members.certifiers:
        proposer = checkpoint.public_key.hex()[:12]
        raise IgnoreError(f"is ahead of this clock, and its proposer {proposer} is no certifier known here")
    state.future_due_ms = min(state.future_due_ms, due_ms)
    raise ParkedError(FUTURE)


def _check_worth(state: RoundState, envelope: Envelope, found: Place, parent: Node, now_ms: int) -> None:
    proposer = envelope.public_key
    if parent.verdict is False:
        raise HereError(Rule.PARENT, f"follows {found.parent.hex()[:12]}, which was refused")
    check_proposer(proposer, parent.state)
    if state.is_restoring:  # What this node kept was worth it, in whatever order it comes back.
        return
    slot = state.genesis.slot_at(now_ms)
    if slot != state.num_refused_slot:
        state.num_refused_slot = slot
        state.num_refused.clear()
    others = state.in_turn.get((found.slot, proposer), set()) - {envelope.id}
    most = MAX_CHECKPOINTS_FAR_BESIDE if _is_far_beside(state, parent.state) else MAX_CHECKPOINTS_PER_TURN
    if len(others) >= most:
        excess = f"comes after {len(others)} others of its proposer and slot"
    elif state.num_refused[proposer] >= MAX_CHECKPOINTS_PER_TURN:
        excess = f"comes after {state.num_refused[proposer]} of its proposer that were refused in this slot"
    else:
        return
    if not _is_referred_to(state, envelope):
        raise IgnoreError(excess)


def _is_far_beside(state: RoundState, parent: ChainState) -> bool:
    """Whether a child of `parent` cannot become the head here, nor be the base of a delta that still counts."""
    tree = state.tree
    if tree.conflict is not None or is_ancestor(tree.final, parent, lookup=tree.lookup):
        return False
    head = tree.head()
    oldest = head.round - state.genesis.rule.max_staleness_rounds
    return common_ancestor(parent, head, lookup=tree.lookup, oldest_round=oldest).round < oldest


def _is_referred_to(state: RoundState, checkpoint: Envelope) -> bool:
    """Whether another certifier's vote or checkpoint waits for this one, or for one that waits for this one.

    Then it may be what the swarm builds on.
    """
    certifiers = state.tree.head().members.certifiers - {checkpoint.public_key}
    seen = {checkpoint.id}
    open_ids = [checkpoint.id]
    while open_ids:
        for waiting in state.parked.waiting_for(open_ids.pop()):
            if waiting.public_key in certifiers:
                return True
            if waiting.type == wire.CHECKPOINT and waiting.id not in seen:
                seen.add(waiting.id)
                open_ids.append(waiting.id)
    return False
