"""Places what arrives: into the tree, among the candidates, records and votes, or aside (protocol sections 5 and 13).

An object whose base, parent, target or grant is not known yet is parked under what it waits for, and
taken up again when that arrives. A faulty one is dropped with the rule it breaks.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

from fullrank_protocol.chain import (
    check_base_slot,
    check_contributor,
    contribution_staleness,
    second_contribution,
)
from fullrank_protocol.checkpoint import Checkpoint, contributions
from fullrank_protocol.contribution import open_contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.fork_choice import Offence
from fullrank_protocol.left_behind import is_left_behind, open_up
from fullrank_protocol.limits import ID_BYTES, MAX_REFUSALS
from fullrank_protocol.membership import ROOT_TYPES, open_record
from fullrank_protocol.parking import STRANGERS
from fullrank_protocol.records import check_invitation, root_action_id
from fullrank_protocol.round_io import Action, Drop, FetchObjects, Keep, SignEvidence
from fullrank_protocol.round_state import (
    ANY_HEAD,
    ASK_AGAIN_MS,
    MAX_ASKED,
    MAX_ASKED_FOR_ONE,
    MAX_RECORDS_OF_ONE,
    MAX_REFUSED,
    Candidate,
    RoundState,
    note_if_beside,
    offer,
)
from fullrank_protocol.snapshot import open_snapshot
from fullrank_protocol.verifying import carried
from fullrank_protocol.vote import Vote, open_choice, open_evidence, open_refusal, open_vote
from fullrank_protocol.wire import objects_pb2 as wire
from fullrank_protocol.worth import HereError, ParkedError, place


def receive(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    """Place one object where it belongs, park it, or say why not; then what waited for it, and for that."""
    due = deque([envelope])
    while due:  # Not by recursion: whoever sends a long chain backwards must not break the stack.
        arrived: list[bytes] = []
        yield from _receive_one(state, due.popleft(), now_ms, arrived)
        for waited_for in arrived:
            due.extend(state.parked.pop(waited_for))


def release(state: RoundState, waited_for: bytes, now_ms: int) -> Iterator[Action]:
    """Take up again what waited for something that is here now."""
    for envelope in state.parked.pop(waited_for):
        yield from receive(state, envelope, now_ms)


def _receive_one(state: RoundState, envelope: Envelope, now_ms: int, arrived: list[bytes]) -> Iterator[Action]:
    if state.has(envelope.id):
        return
    handler = _HANDLERS.get(envelope.type)
    if handler is None:
        detail = f"is of type {envelope.type}, which nobody keeps"
        yield Drop(envelope=envelope, rule=Rule.SCHEMA, detail=detail, blames_sender=True)
        return
    try:
        actions = list(handler(state, envelope, now_ms))
    except ParkedError as parked:
        yield from _park(state, parked.waits_for, envelope, now_ms)
        return
    except RejectError as error:
        _remember_refused(state, envelope.id)
        blames_sender = not isinstance(error, HereError)
        yield Drop(envelope=envelope, rule=error.rule, detail=error.detail, blames_sender=blames_sender)
        return
    except IgnoreError as error:
        yield Drop(envelope=envelope, rule=None, detail=error.detail)
        return
    state.known.add(envelope.id)
    state.asked.pop(envelope.id, None)
    arrived += [envelope.id, ANY_HEAD] if _HANDLERS[envelope.type] is _receive_record else [envelope.id]
    yield from actions


@contextlib.contextmanager
def _as_things_stand() -> Iterator[None]:
    try:
        yield
    except RejectError as error:
        raise HereError(error.rule, error.detail) from error


def _remember_refused(state: RoundState, object_id: bytes) -> None:
    """Not to look at it again; only the newest, or whoever signs rubbish could fill the memory."""
    state.known.add(object_id)
    state.refused[object_id] = None
    if len(state.refused) > MAX_REFUSED:
        oldest = next(iter(state.refused))
        del state.refused[oldest]
        state.known.discard(oldest)


def _park(state: RoundState, waits_for: bytes, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    """Set an object aside; what it refers to is asked for unless a stranger says so, or somebody who says much."""
    owner = _owner(state, envelope.public_key)
    is_here = state.parked.add(envelope, waits_for=waits_for, owner=owner)
    if len(state.asked) > MAX_ASKED:
        state.asked = {each: retry_ms for each, retry_ms in state.asked.items() if each in state.parked}
    is_asked_for = owner != STRANGERS and state.parked.num_of(owner) <= MAX_ASKED_FOR_ONE
    if is_here and len(waits_for) == ID_BYTES and is_asked_for:
        yield from ask(state, [waits_for], now_ms)


def _owner(state: RoundState, key: bytes) -> bytes:
    """Whose share of the room for parked objects one of this key takes."""
    tree = state.tree
    known = (tree.head().members, tree.state(tree.voted_final.checkpoint).members)
    if any(members.find(key) is not None or key in members.certifiers for members in known):
        return key
    return key if key == state.key or key in state.genesis.membership.root_keys else STRANGERS


def ask(state: RoundState, ids: list[bytes], now_ms: int) -> Iterator[Action]:
    """Ask neighbours for objects, unless they were asked just now."""
    due = [object_id for object_id in ids if state.asked.get(object_id, 0) <= now_ms]
    if due:
        state.asked.update(dict.fromkeys(due, now_ms + ASK_AGAIN_MS))
        yield FetchObjects(ids=tuple(due))


def _receive_contribution(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    contribution = open_contribution(envelope, state.genesis)
    base = state.tree.lookup(contribution.base_checkpoint)
    if base is None:
        raise ParkedError(contribution.base_checkpoint)
    head = state.tree.head()
    with _as_things_stand():
        try:
            check_contributor(contribution, head, genesis=state.genesis)
        except RejectError as error:
            if error.rule is Rule.MEMBERSHIP and not head.members.is_banned(contribution.member):
                raise ParkedError(ANY_HEAD) from error
            raise
    check_base_slot(contribution, base)
    with _as_things_stand():
        contribution_staleness(contribution, head, genesis=state.genesis, lookup=state.tree.lookup)
        if (contribution.member, contribution.base_checkpoint) in state.offered:
            raise second_contribution(contribution)
    offer(state, Candidate(contribution, received_at_ms=now_ms))
    yield Keep(envelope=envelope, slot=max(state.genesis.slot_at(now_ms), 0))


def _receive_checkpoint(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    checkpoint, placed, offences = place(state, envelope, now_ms)
    parent = state.tree.state(checkpoint.parent)
    state.first_seen_ms[checkpoint.id] = now_ms
    if note_if_beside(state, placed):
        pass  # The weights to recompute it from are not here.
    elif is_left_behind(state, parent):
        state.left_behind[checkpoint.id] = now_ms
        _offer_what_counts(state, checkpoint, now_ms)
    else:
        open_up(state, checkpoint, now_ms, now_ms)
    for vote in checkpoint.votes:
        _note_own_vote(state, vote)
    yield from _take_records(state, checkpoint, now_ms)
    for piece in checkpoint.evidence:
        if all(other.accused != piece.accused for other in state.evidence.values()):
            state.evidence[piece.id] = piece
    state.known.update(carried(checkpoint))
    yield Keep(envelope=envelope, slot=checkpoint.slot)
    yield from _report(state, offences)


def _offer_what_counts(state: RoundState, checkpoint: Checkpoint, now_ms: int) -> None:
    """Deltas on a branch that was left may still count on the one that was kept, as stale ones."""
    head = state.tree.head()
    for contribution in contributions(checkpoint):
        try:
            check_contributor(contribution, head, genesis=state.genesis)
            contribution_staleness(contribution, head, genesis=state.genesis, lookup=state.tree.lookup)
        except RejectError:
            continue
        offer(state, Candidate(contribution, received_at_ms=now_ms))


def _take_records(state: RoundState, checkpoint: Checkpoint, now_ms: int) -> Iterator[Action]:
    """If this branch loses, another one must carry them. Choices are heeded by those, too, who see them only here."""
    for record in checkpoint.records:
        state.records.setdefault(record.id, record)
        if record.type == wire.CHOICE:
            yield from receive(state, record, now_ms)


def _receive_vote(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    del now_ms
    vote = open_vote(envelope)
    _note_own_vote(state, vote)
    if state.tree.lookup(vote.target) is None:
        if state.is_no_checkpoint(vote.target):
            raise RejectError(Rule.VOTE, f"names {vote.target.hex()[:12]} as its target, which is no checkpoint")
        raise ParkedError(vote.target)
    offences = state.tree.add_vote(vote)
    yield Keep(envelope=envelope, slot=vote.target_slot)
    yield from _report(state, offences)


def _receive_record(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    message = open_record(envelope, state.genesis)
    head = state.tree.head()
    if isinstance(message, wire.Admission) and (grant := head.members.grants.get(message.grant_id)) is not None:
        check_invitation(envelope, message, invite_key=grant.invite_key)  # Wrong on every chain.
    waiting = sum(record.public_key == envelope.public_key for record in state.records.values())
    if waiting >= MAX_RECORDS_OF_ONE and envelope.type not in ROOT_TYPES:
        raise IgnoreError(f"comes after {waiting} others of its author that wait to be carried")
    slot = max(state.genesis.slot_at(now_ms), head.slot + 1)
    members = head.members
    for record in state.records.values():
        try:
            members = members.apply(record, slot=slot, genesis=state.genesis)
        except RejectError:
            continue
    with _as_things_stand():
        try:
            members.apply(envelope, slot=slot, genesis=state.genesis)
        except RejectError as error:
            if error.rule is Rule.MEMBERSHIP:
                raise ParkedError(ANY_HEAD) from error
            raise
    state.records[envelope.id] = envelope
    yield Keep(envelope=envelope, slot=slot)


def _receive_choice(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    """Heeded when enough root keys have signed the same; of several, the one made last."""
    choice = open_choice(envelope, state.genesis)
    at = state.tree.lookup(choice.checkpoint)
    if at is None:
        raise ParkedError(choice.checkpoint)
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
        raise IgnoreError(
            f"is against {evidence.accused.hex()[:12]}, who {members.why_shut_out(evidence.accused)} already"
        )
    if any(other.accused == evidence.accused for other in state.evidence.values()):
        raise IgnoreError(f"is a second piece against {evidence.accused.hex()[:12]}, 1 is kept")
    with _as_things_stand():
        members.exclude(evidence.accused, offence_slot=evidence.offence_slot)
    state.evidence[envelope.id] = evidence
    yield Keep(envelope=envelope, slot=max(state.genesis.slot_at(now_ms), 0))


def _receive_refusal(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    refusal = open_refusal(envelope)
    del now_ms
    node = state.tree.nodes.get(refusal.checkpoint)
    if node is None:
        raise ParkedError(refusal.checkpoint)
    certifiers = node.state.newest_set | node.state.second_set
    if refusal.certifier not in certifiers:
        author = refusal.certifier.hex()[:12]
        raise RejectError(Rule.MEMBERSHIP, f"is of {author}, none of its checkpoint's {len(certifiers)} certifiers")
    refused_by = state.refused_by.setdefault(refusal.checkpoint, set())
    if refusal.certifier in refused_by:
        author, checkpoint = refusal.certifier.hex()[:12], refusal.checkpoint.hex()[:12]
        raise HereError(Rule.DUPLICATE, f"is a second refusal by {author} of checkpoint {checkpoint}, 1 allowed")
    if len(refused_by) >= MAX_REFUSALS:
        raise HereError(
            Rule.DUPLICATE, f"comes after {len(refused_by)} refusals of its checkpoint, {MAX_REFUSALS} kept"
        )
    refused_by.add(refusal.certifier)
    yield Keep(envelope=envelope, slot=node.state.slot)


def _receive_snapshot(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    del now_ms
    snapshot = open_snapshot(envelope, state.genesis)
    at = state.tree.lookup(snapshot.checkpoint)
    if at is None:
        raise ParkedError(snapshot.checkpoint)
    if at.slot != snapshot.slot:
        raise RejectError(Rule.SLOT, f"says slot {snapshot.slot}, its checkpoint is of slot {at.slot}")
    if not at.members.is_member(snapshot.author):
        raise RejectError(Rule.MEMBERSHIP, f"is of {snapshot.author.hex()[:12]}, no member at that checkpoint")
    newest = state.arrival.snapshots.get(snapshot.author)
    if newest is not None and newest.checkpoint == snapshot.checkpoint:
        author, checkpoint = snapshot.author.hex()[:12], snapshot.checkpoint.hex()[:12]
        raise HereError(Rule.DUPLICATE, f"is a second snapshot of {author} of checkpoint {checkpoint}, 1 allowed")
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
