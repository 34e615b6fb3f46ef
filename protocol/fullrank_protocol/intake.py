"""Places what arrives: into the tree, among the candidates, records and votes, or aside (protocol sections 5 and 13).

An object whose base, parent, target or grant is not known yet is parked under what it waits for, and
taken up again when that arrives. A faulty one is dropped with the rule it breaks.
"""

from collections.abc import Callable, Iterator
from typing import NoReturn

from fullrank_protocol.chain import check_contributor, contribution_staleness
from fullrank_protocol.checkpoint import Checkpoint, open_checkpoint
from fullrank_protocol.contribution import open_contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.fork_choice import Offence
from fullrank_protocol.limits import CLOCK_TOLERANCE_MS, MAX_REFUSALS
from fullrank_protocol.proposing import opens_ms
from fullrank_protocol.records import root_action_id
from fullrank_protocol.round_io import Action, Drop, FetchObjects, Keep, SignEvidence
from fullrank_protocol.round_state import (
    ANY_HEAD,
    ASK_AGAIN_MS,
    FUTURE,
    MAX_CHECKPOINTS_PER_TURN,
    MAX_PARKED,
    Candidate,
    RoundState,
    note_if_beside,
    offer,
)
from fullrank_protocol.snapshot import open_snapshot
from fullrank_protocol.verifying import carried, contributions
from fullrank_protocol.vote import Vote, open_choice, open_evidence, open_refusal, open_vote
from fullrank_protocol.wire import objects_pb2 as wire


def receive(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    """Place one object where it belongs, park it, or say why not."""
    if envelope.id in state.known:
        return
    handler = _HANDLERS.get(envelope.type)
    if handler is None:
        yield Drop(envelope=envelope, rule=Rule.SCHEMA, detail=f"is of type {envelope.type}, which nobody keeps")
        return
    try:
        actions = list(handler(state, envelope, now_ms))
    except _ParkedError as parked:
        if _park(state, parked.waits_for, envelope) and len(parked.waits_for) == 32:
            yield from ask(state, [parked.waits_for], now_ms)
        return
    except RejectError as error:
        state.known.add(envelope.id)
        yield Drop(envelope=envelope, rule=error.rule, detail=error.detail)
        return
    except IgnoreError as error:
        yield Drop(envelope=envelope, rule=None, detail=error.detail)
        return
    state.known.add(envelope.id)
    state.asked.pop(envelope.id, None)
    yield from actions
    yield from release(state, envelope.id, now_ms)


class _ParkedError(Exception):
    def __init__(self, waits_for: bytes) -> None:
        super().__init__()
        self.waits_for = waits_for


def _park(state: RoundState, waits_for: bytes, envelope: Envelope) -> bool:
    queue = state.parked.setdefault(waits_for, [])
    if any(other.id == envelope.id for other in queue):
        return False
    while state.num_parked >= MAX_PARKED:
        oldest = next(iter(state.parked))
        state.num_parked -= len(state.parked.pop(oldest))
        queue = state.parked.setdefault(waits_for, [])
    queue.append(envelope)
    state.num_parked += 1
    return True


def release(state: RoundState, waited_for: bytes, now_ms: int) -> Iterator[Action]:
    """Take up again what waited for something that is here now."""
    queue = state.parked.pop(waited_for, [])
    state.num_parked -= len(queue)
    for envelope in queue:
        yield from receive(state, envelope, now_ms)


def ask(state: RoundState, ids: list[bytes], now_ms: int) -> Iterator[Action]:
    """Ask neighbours for objects, unless they were asked just now."""
    due = [object_id for object_id in ids if state.asked.get(object_id, 0) <= now_ms]
    if due:
        state.asked.update(dict.fromkeys(due, now_ms + ASK_AGAIN_MS))
        yield FetchObjects(ids=tuple(due))


def _receive_contribution(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    contribution = open_contribution(envelope, state.genesis)
    if state.tree.lookup(contribution.base_checkpoint) is None:
        raise _ParkedError(contribution.base_checkpoint)
    head = state.tree.head()
    try:
        check_contributor(contribution, head, genesis=state.genesis)
    except RejectError as error:
        if error.rule is Rule.MEMBERSHIP and not head.members.is_banned(contribution.member):
            raise _ParkedError(ANY_HEAD) from error
        raise
    contribution_staleness(contribution, head, genesis=state.genesis, lookup=state.tree.lookup)
    if (contribution.member, contribution.base_checkpoint) in state.offered:
        raise RejectError(Rule.DUPLICATE, "is a second contribution of this member on the same base checkpoint")
    offer(state, Candidate(contribution, received_at_ms=now_ms))
    yield Keep(envelope=envelope, slot=max(state.genesis.slot_at(now_ms), 0))


def _receive_checkpoint(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    checkpoint = open_checkpoint(envelope, state.genesis)
    _set_aside_until_due(state, checkpoint, now_ms)
    tree = state.tree
    turn = (checkpoint.slot, checkpoint.proposer)
    if state.num_in_turn.get(turn, 0) >= MAX_CHECKPOINTS_PER_TURN and not _is_referred_to(state, checkpoint):
        raise IgnoreError(f"comes after {MAX_CHECKPOINTS_PER_TURN} others of its proposer and slot")
    placed, offences = tree.add(checkpoint)
    state.num_in_turn[turn] = state.num_in_turn.get(turn, 0) + 1
    state.first_seen_ms[checkpoint.id] = now_ms
    if not note_if_beside(state, placed):
        state.unverified[checkpoint.id] = now_ms
    for contribution in contributions(checkpoint):
        offer(state, Candidate(contribution, received_at_ms=now_ms))
    for vote in checkpoint.votes:
        _note_own_vote(state, vote)
    yield from _take_records(state, checkpoint, now_ms)
    for piece in checkpoint.evidence:
        if all(other.accused != piece.accused for other in state.evidence.values()):
            state.evidence[piece.id] = piece
    state.known.update(carried(checkpoint))
    yield Keep(envelope=envelope, slot=checkpoint.slot)
    yield from _report(state, offences)


def _take_records(state: RoundState, checkpoint: Checkpoint, now_ms: int) -> Iterator[Action]:
    """If this branch loses, another one must carry them. Choices are heeded by those, too, who see them only here."""
    for record in checkpoint.records:
        state.records.setdefault(record.id, record)
        if record.type == wire.CHOICE:
            yield from receive(state, record, now_ms)


def _is_referred_to(state: RoundState, checkpoint: Checkpoint) -> bool:
    """Whether another certifier's vote or checkpoint waits for this one, or for one that waits for this one.

    Then it may be what the swarm builds on.
    """
    certifiers = state.tree.head().members.certifiers - {checkpoint.proposer}
    seen = {checkpoint.id}
    open_ids = [checkpoint.id]
    while open_ids:
        for waiting in state.parked.get(open_ids.pop(), []):
            if waiting.public_key in certifiers:
                return True
            if waiting.type == wire.CHECKPOINT and waiting.id not in seen:
                seen.add(waiting.id)
                open_ids.append(waiting.id)
    return False


def _set_aside_until_due(state: RoundState, checkpoint: Checkpoint, now_ms: int) -> None:
    """Park it until its slot has ended, what it refers to is here, and its proposer's turn has come."""
    ends_ms = state.genesis.slot_end_ms(checkpoint.slot) - CLOCK_TOLERANCE_MS
    if ends_ms > now_ms:
        _hold(state, checkpoint, ends_ms)
    tree = state.tree
    parent = tree.lookup(checkpoint.parent)
    if parent is None:
        raise _ParkedError(checkpoint.parent)
    for contribution in contributions(checkpoint):
        if tree.lookup(contribution.base_checkpoint) is None:
            raise _ParkedError(contribution.base_checkpoint)
    opens = opens_ms(checkpoint, parent, genesis=state.genesis)
    if opens > now_ms:
        tree.follow(checkpoint)  # What can be refused is refused at once.
        _hold(state, checkpoint, opens)


def _hold(state: RoundState, checkpoint: Checkpoint, due_ms: int) -> NoReturn:
    """Keep a checkpoint ahead of this clock until its time; only a certifier's, or anybody could fill the memory."""
    if checkpoint.proposer not in state.tree.head().members.certifiers:
        raise IgnoreError("is ahead of this clock, and its proposer is no certifier known here")
    state.future_due_ms = min(state.future_due_ms, due_ms)
    raise _ParkedError(FUTURE)


def _receive_vote(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    del now_ms
    vote = open_vote(envelope)
    _note_own_vote(state, vote)
    if state.tree.lookup(vote.target) is None:
        raise _ParkedError(vote.target)
    offences = state.tree.add_vote(vote)
    yield Keep(envelope=envelope, slot=vote.target_slot)
    yield from _report(state, offences)


def _receive_record(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    head = state.tree.head()
    slot = max(state.genesis.slot_at(now_ms), head.slot + 1)
    members = head.members
    for record in state.records.values():
        try:
            members = members.apply(record, slot=slot, genesis=state.genesis)
        except RejectError:
            continue
    try:
        members.apply(envelope, slot=slot, genesis=state.genesis)
    except RejectError as error:
        if error.rule is Rule.MEMBERSHIP:
            raise _ParkedError(ANY_HEAD) from error
        raise
    state.records[envelope.id] = envelope
    yield Keep(envelope=envelope, slot=slot)
    yield from release(state, ANY_HEAD, now_ms)


def _receive_choice(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    """Heeded when enough root keys have signed the same; of several, the one made last."""
    choice = open_choice(envelope, state.genesis)
    at = state.tree.lookup(choice.checkpoint)
    if at is None:
        raise _ParkedError(choice.checkpoint)
    if at.slot != choice.slot:
        raise RejectError(Rule.SLOT, f"says slot {choice.slot}, its checkpoint is of slot {at.slot}")
    action = root_action_id(swarm=envelope.swarm, type=envelope.type, payload=envelope.payload)
    signers = state.choices.setdefault(action, set())
    signers.add(choice.root_key)
    if len(signers) >= state.genesis.membership.root_threshold and choice.issued_at_ms > state.chosen_at_ms:
        state.chosen_at_ms = choice.issued_at_ms
        state.tree.choose(at.here)
    state.records[envelope.id] = envelope
    yield Keep(envelope=envelope, slot=max(state.genesis.slot_at(now_ms), 0))


def _receive_evidence(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    evidence = open_evidence(envelope)
    members = state.tree.head().members
    if members.is_banned(evidence.accused):
        raise IgnoreError("is against somebody who is excluded already")
    if any(other.accused == evidence.accused for other in state.evidence.values()):
        raise IgnoreError("is a second piece against the same certifier")
    members.exclude(evidence.accused, offence_slot=evidence.offence_slot)
    state.evidence[envelope.id] = evidence
    yield Keep(envelope=envelope, slot=max(state.genesis.slot_at(now_ms), 0))


def _receive_refusal(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    refusal = open_refusal(envelope)
    del now_ms
    node = state.tree.nodes.get(refusal.checkpoint)
    if node is None:
        raise _ParkedError(refusal.checkpoint)
    if envelope.public_key not in node.state.newest_set | node.state.second_set:
        raise RejectError(Rule.MEMBERSHIP, "is a refusal by somebody who is no certifier")
    refused_by = state.refused_by.setdefault(refusal.checkpoint, set())
    if refusal.certifier in refused_by or len(refused_by) >= MAX_REFUSALS:
        return  # Known from now on, and nothing more.
    refused_by.add(refusal.certifier)
    yield Keep(envelope=envelope, slot=node.state.slot)


def _receive_snapshot(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    del now_ms
    snapshot = open_snapshot(envelope, state.genesis)
    at = state.tree.lookup(snapshot.checkpoint)
    if at is None:
        raise _ParkedError(snapshot.checkpoint)
    if at.slot != snapshot.slot:
        raise RejectError(Rule.SLOT, f"says slot {snapshot.slot}, its checkpoint is of slot {at.slot}")
    if not at.members.is_member(snapshot.author):
        raise RejectError(Rule.MEMBERSHIP, f"is of {snapshot.author.hex()[:12]}, no member at that checkpoint")
    newest = state.arrival.snapshots.get(snapshot.author)
    if newest is not None and newest.checkpoint == snapshot.checkpoint:
        raise RejectError(Rule.DUPLICATE, "is a second snapshot of this member of one checkpoint")
    if snapshot.author in state.arrival.distrusted or (newest is not None and newest.slot > snapshot.slot):
        return
    state.arrival.note(snapshot)
    yield Keep(envelope=envelope, slot=snapshot.slot)


_HANDLERS: dict[int, Callable[[RoundState, Envelope, int], Iterator[Action]]] = {
    wire.CONTRIBUTION: _receive_contribution,
    wire.CHECKPOINT: _receive_checkpoint,
    wire.VOTE: _receive_vote,
    wire.REFUSAL: _receive_refusal,
    wire.EVIDENCE: _receive_evidence,
    wire.GRANT: _receive_record,
    wire.ADMISSION: _receive_record,
    wire.TAKE_UP: _receive_record,
    wire.LEAVE: _receive_record,
    wire.REVOCATION: _receive_record,
    wire.READMISSION: _receive_record,
    wire.RETIREMENT: _receive_record,
    wire.EJECTION: _receive_record,
    wire.CHOICE: _receive_choice,
    wire.SNAPSHOT: _receive_snapshot,
}


def _note_own_vote(state: RoundState, vote: Vote) -> None:
    if vote.voter == state.key:
        state.own_votes[vote.id] = vote
        state.voted_for.add(vote.target)
        state.casting.discard(vote.target)


def _report(state: RoundState, offences: list[Offence]) -> Iterator[Action]:
    accused = {evidence.accused for evidence in state.evidence.values()}
    for offence in offences:
        if offence.first.voter not in accused and not state.tree.head().members.is_banned(offence.first.voter):
            accused.add(offence.first.voter)
            yield SignEvidence(first=offence.first, second=offence.second)
