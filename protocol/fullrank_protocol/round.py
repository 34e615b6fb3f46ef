"""The round machine: every slot as a node lives it (protocol section 5).

`step(state, event, now_ms)` returns the state and the actions to carry out. It reads no clock,
no network and no disk; the daemon, the simulator and the tests run this very function.

Handlers take in what an event says. Then the duties look at the whole state and emit whatever is
due and not yet under way, so nothing depends on the order of events, and a node that restarts
with the objects from its store goes on where it was.

```
object ──> parked ──(what it refers to arrives)──┐
   └─────> tree / candidates / records / votes <─┘
contribution:  WAITING ─> CHECKING ─> READY | REFUSED | UNAVAILABLE ─(later)─> WAITING
checkpoint:    placed ─> deltas checked ─> merged here ─> holds | refused ─> descendants too
own duty:      adopt head ─> vote ─> finalise ─> propose at our turn ─> train
```
"""

from collections.abc import Callable, Iterator

from fullrank_protocol.chain import ChainState, check_contributor, contribution_staleness
from fullrank_protocol.checkpoint import Checkpoint, CheckpointKind, open_checkpoint
from fullrank_protocol.contribution import Contribution, open_contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.fork_choice import Offence
from fullrank_protocol.genesis import Policy
from fullrank_protocol.limits import CLOCK_TOLERANCE_MS
from fullrank_protocol.membership import ROLE_CERTIFY, ROLE_CONTRIBUTE
from fullrank_protocol.proposing import (
    Choice,
    build_checkpoint,
    choose_contributions,
    choose_records,
    digest_of,
    turn_ms,
)
from fullrank_protocol.round_io import (
    Action,
    Adopt,
    Alarm,
    CastVote,
    CheckDelta,
    DeltaChecked,
    DeltaUnavailable,
    Drop,
    Event,
    FetchObjects,
    Finalised,
    Keep,
    Merge,
    Merged,
    MergeEntry,
    MergeFailed,
    MergeKey,
    ObjectReceived,
    SignCheckpoint,
    SignEvidence,
    SignRefusal,
    SignTakeUp,
    Synced,
    Tick,
    Train,
    TrainingAllowed,
    TrainingEnded,
    Verified,
)
from fullrank_protocol.round_state import (
    ANY_HEAD,
    FUTURE,
    MAX_CACHED_MERGES,
    MAX_CHECKPOINTS_PER_TURN,
    MAX_PARKED,
    Candidate,
    DeltaStatus,
    Proposal,
    RoundState,
)
from fullrank_protocol.vote import Vote, open_evidence, open_refusal, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

ASK_AGAIN_MS = 3_000
"""Pause before the same object or blob is asked for again: a few round trips of the slowest peers."""

MIN_TRAINING_SHARE = 4
"""Training starts only with at least a window divided by this left; less is not worth the overhead."""

DEADLINE_SHARE = 10
"""Training ends a window divided by this before the slot: time to encode, publish and fetch."""


def step(state: RoundState, event: Event, now_ms: int) -> tuple[RoundState, list[Action]]:
    """Take in one event, then do what is due.

    Args:
        state: Changed in place and returned; the caller must not use it elsewhere.
        event: What happened.
        now_ms: This node's clock, milliseconds since the Unix epoch; may be off.
    """
    actions = list(_handle(state, event, now_ms))
    actions.extend(_duties(state, now_ms))
    return state, actions


def restore(state: RoundState, envelopes: Iterator[Envelope], verdicts: dict[bytes, bool], now_ms: int) -> RoundState:
    """Take in the objects of the store, and what had been recomputed, without acting on them."""
    for envelope in envelopes:
        for _ in _receive(state, envelope, now_ms):
            pass
        if (verdict := verdicts.get(envelope.id)) is not None and envelope.id in state.unverified:
            state.tree.set_verdict(envelope.id, holds=verdict)
            del state.unverified[envelope.id]
    head = state.tree.head()
    state.adopted = head.here
    state.finalised = state.tree.final
    _forget_old(state, head)
    return state


# ---- events --------------------------------------------------------------------------------------


def _handle(state: RoundState, event: Event, now_ms: int) -> Iterator[Action]:  # noqa: C901, PLR0912 - one flat table
    match event:
        case Tick():
            yield from _release(state, FUTURE, now_ms)
        case ObjectReceived(envelope=envelope):
            yield from _receive(state, envelope, now_ms)
        case DeltaChecked():
            if (candidate := state.candidates.get(event.contribution_id)) is not None:
                candidate.status = DeltaStatus.READY if event.rule is None else DeltaStatus.REFUSED
                candidate.rule, candidate.detail = event.rule, event.detail
        case DeltaUnavailable(contribution_id=contribution_id):
            if (candidate := state.candidates.get(contribution_id)) is not None:
                candidate.status = DeltaStatus.UNAVAILABLE
                candidate.retry_at_ms = now_ms + ASK_AGAIN_MS
        case Merged():
            state.merging.pop(event.key, None)
            state.merges[event.key] = event
            while len(state.merges) > MAX_CACHED_MERGES:
                state.merges.pop(next(iter(state.merges)))
        case MergeFailed():
            yield from _merge_failed(state, event, now_ms)
        case TrainingEnded(base=base, produced=produced):
            state.training = None
            if produced:
                state.trained_on.add(base)
            else:
                state.train_not_before_ms = now_ms + state.genesis.timing.slot_window_ms // MIN_TRAINING_SHARE
        case TrainingAllowed(allowed=allowed):
            state.trains = allowed
        case Synced():
            state.listen_until_ms = 0


def _merge_failed(state: RoundState, event: MergeFailed, now_ms: int) -> Iterator[Action]:
    if event.rule is None:
        state.merging[event.key] = now_ms + ASK_AGAIN_MS
    else:
        state.merging.pop(event.key, None)
        for checkpoint in _unverified(state):
            if checkpoint.accepted and _merge_key(checkpoint) == event.key:
                yield from _refuse(state, checkpoint, event.key, event.rule, event.detail)
    if state.proposal is not None and state.proposal.key == event.key:
        state.proposal = None


def _receive(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
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
            yield from _ask(state, [parked.waits_for], now_ms)
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
    yield from _release(state, envelope.id, now_ms)


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


def _release(state: RoundState, waited_for: bytes, now_ms: int) -> Iterator[Action]:
    queue = state.parked.pop(waited_for, [])
    state.num_parked -= len(queue)
    for envelope in queue:
        yield from _receive(state, envelope, now_ms)


def _ask(state: RoundState, ids: list[bytes], now_ms: int) -> Iterator[Action]:
    due = [object_id for object_id in ids if state.asked.get(object_id, 0) <= now_ms]
    if due:
        state.asked.update(dict.fromkeys(due, now_ms + ASK_AGAIN_MS))
        yield FetchObjects(ids=tuple(due))


# ---- objects -------------------------------------------------------------------------------------


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
    rivals = (c.contribution for c in state.candidates.values() if c.contribution.member == contribution.member)
    if any(rival.base_checkpoint == contribution.base_checkpoint for rival in rivals):
        raise RejectError(Rule.DUPLICATE, "is a second contribution of this member on the same base checkpoint")
    state.candidates[contribution.id] = Candidate(contribution, received_at_ms=now_ms)
    yield Keep(envelope=envelope, slot=max(state.genesis.slot_at(now_ms), 0))


def _receive_checkpoint(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    checkpoint = open_checkpoint(envelope, state.genesis)
    if state.genesis.slot_end_ms(checkpoint.slot) > now_ms + CLOCK_TOLERANCE_MS:
        raise _ParkedError(FUTURE)
    tree = state.tree
    if tree.lookup(checkpoint.parent) is None:
        raise _ParkedError(checkpoint.parent)
    for contribution in _contributions(checkpoint):
        if tree.lookup(contribution.base_checkpoint) is None:
            raise _ParkedError(contribution.base_checkpoint)
    turn = (checkpoint.slot, checkpoint.proposer)
    if state.num_in_turn.get(turn, 0) >= MAX_CHECKPOINTS_PER_TURN:
        raise RejectError(Rule.DUPLICATE, f"comes after {MAX_CHECKPOINTS_PER_TURN} others of its proposer and slot")
    _, offences = tree.add(checkpoint)
    state.num_in_turn[turn] = state.num_in_turn.get(turn, 0) + 1
    state.unverified[checkpoint.id] = state.first_seen_ms[checkpoint.id] = now_ms
    for contribution in _contributions(checkpoint):
        state.candidates.setdefault(contribution.id, Candidate(contribution, received_at_ms=now_ms))
    for vote in checkpoint.votes:
        _note_own_vote(state, vote)
    state.known.update(_carried(checkpoint))
    yield Keep(envelope=envelope, slot=checkpoint.slot)
    yield from _report(state, offences)


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
    yield from _release(state, ANY_HEAD, now_ms)


def _receive_evidence(state: RoundState, envelope: Envelope, now_ms: int) -> Iterator[Action]:
    evidence = open_evidence(envelope)
    members = state.tree.head().members
    if members.is_banned(evidence.accused):
        raise IgnoreError("is against somebody who is excluded already")
    members.exclude(evidence.accused, offence_slot=evidence.offence_slot)
    if any(other.accused == evidence.accused for other in state.evidence.values()):
        raise IgnoreError("is a second piece against the same certifier")
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
    yield Keep(envelope=envelope, slot=node.state.slot)


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
}


def _note_own_vote(state: RoundState, vote: Vote) -> None:
    if vote.voter == state.key:
        state.own_votes[vote.id] = vote
        state.casting.discard(vote.target)


def _report(state: RoundState, offences: list[Offence]) -> Iterator[Action]:
    accused = {evidence.accused for evidence in state.evidence.values()}
    for offence in offences:
        if offence.first.voter not in accused and not state.tree.head().members.is_banned(offence.first.voter):
            accused.add(offence.first.voter)
            yield SignEvidence(first=offence.first, second=offence.second)


# ---- duties --------------------------------------------------------------------------------------


def _duties(state: RoundState, now_ms: int) -> Iterator[Action]:
    yield from _check_deltas(state, now_ms)
    yield from _verify_checkpoints(state, now_ms)
    yield from _adopt_head(state, now_ms)
    yield from _finalise(state)
    yield from _vote(state, now_ms)
    yield from _propose(state, now_ms)
    yield from _train(state, now_ms)
    yield from _take_up(state, now_ms)
    yield from _ask(state, [i for i, retry in state.asked.items() if retry <= now_ms and i in state.parked], now_ms)


def _check_deltas(state: RoundState, now_ms: int) -> Iterator[Action]:
    for candidate in state.candidates.values():
        if candidate.status is DeltaStatus.UNAVAILABLE and candidate.retry_at_ms <= now_ms:
            candidate.status = DeltaStatus.WAITING
        if candidate.status is not DeltaStatus.WAITING:
            continue
        base = state.tree.lookup(candidate.contribution.base_checkpoint)
        if base is not None:
            candidate.status = DeltaStatus.CHECKING
            contribution = candidate.contribution
            yield CheckDelta(contribution=contribution, blob=contribution.blob, base_round=base.round)


def _verify_checkpoints(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Recompute every checkpoint whose parent holds, oldest first."""
    progress = True
    while progress:
        progress = False
        for checkpoint in _unverified(state):
            if state.tree.nodes[checkpoint.parent].verdict:
                yield from _verify(state, checkpoint, now_ms)
                progress = progress or checkpoint.id not in state.unverified


def _unverified(state: RoundState) -> list[Checkpoint]:
    nodes = (state.tree.nodes[checkpoint_id] for checkpoint_id in state.unverified)
    return [node.checkpoint for node in nodes if node.checkpoint is not None]


def _verify(state: RoundState, checkpoint: Checkpoint, now_ms: int) -> Iterator[Action]:
    parent = state.tree.state(checkpoint.parent)
    key = _merge_key(checkpoint)
    verdict = _judge_contributions(state, checkpoint)
    if verdict is not None:
        yield from _refuse(state, checkpoint, key, *verdict)
        return
    if any(
        state.candidates[c.id].status not in (DeltaStatus.READY, DeltaStatus.REFUSED)
        for c in _contributions(checkpoint)
    ):
        return
    if checkpoint.kind == CheckpointKind.EMPTY:
        expected = digest_of(state, parent)
        if checkpoint.model_digest == expected:
            yield from _accept(state, checkpoint, key)
        else:
            detail = f"says digest {checkpoint.model_digest.hex()[:12]}, its parent has {expected.hex()[:12]}"
            yield from _refuse(state, checkpoint, key, Rule.DIGEST, detail)
        return
    if (merged := state.merges.get(key)) is None:
        yield from _merge(state, parent, key, now_ms)
    elif (mismatch := judge_numbers(checkpoint, merged)) is not None:
        yield from _refuse(state, checkpoint, key, *mismatch)
    else:
        yield from _accept(state, checkpoint, key)


def _judge_contributions(state: RoundState, checkpoint: Checkpoint) -> tuple[Rule, str] | None:
    """The first contribution on which this node disagrees, as far as known."""
    for accepted in checkpoint.accepted:
        candidate = state.candidates[accepted.contribution.id]
        if candidate.status is DeltaStatus.REFUSED:
            assert candidate.rule is not None
            return candidate.rule, f"accepts {candidate.contribution.id.hex()[:12]}, which {candidate.detail}"
    for refused in checkpoint.refused:
        candidate = state.candidates[refused.contribution.id]
        if candidate.status is DeltaStatus.READY or (
            candidate.status is DeltaStatus.REFUSED and candidate.rule != refused.rule
        ):
            found = candidate.rule.name if candidate.rule is not None else "no fault"
            return Rule.POLICY, f"refuses {refused.contribution.id.hex()[:12]} by rule {refused.rule}; found {found}"
    return None


def judge_numbers(checkpoint: Checkpoint, merged: Merged) -> tuple[Rule, str] | None:
    """The first number of a normal checkpoint that differs from what was recomputed, if any."""
    weights = tuple(accepted.weight for accepted in checkpoint.accepted)
    for accepted, theirs, ours in zip(checkpoint.accepted, weights, merged.weights, strict=True):
        if theirs != ours:
            short = accepted.contribution.id.hex()[:12]
            return Rule.WEIGHTS, f"weighs {short} with {theirs.value()}, recomputed {ours.value()}"
    if checkpoint.update_norm != merged.update_norm:
        return Rule.WEIGHTS, f"says norm {checkpoint.update_norm.value()}, recomputed {merged.update_norm.value()}"
    if checkpoint.model_digest != merged.model_digest:
        return (
            Rule.DIGEST,
            f"says digest {checkpoint.model_digest.hex()[:12]}, recomputed {merged.model_digest.hex()[:12]}",
        )
    return None


def _accept(state: RoundState, checkpoint: Checkpoint, key: MergeKey) -> Iterator[Action]:
    state.tree.set_verdict(checkpoint.id, holds=True)
    del state.unverified[checkpoint.id]
    yield Verified(checkpoint=checkpoint.id, holds=True, key=key)


def _refuse(state: RoundState, checkpoint: Checkpoint, key: MergeKey, rule: Rule, detail: str) -> Iterator[Action]:
    state.tree.set_verdict(checkpoint.id, holds=False)
    for refused_id in [i for i in state.unverified if state.tree.nodes[i].verdict is False]:
        del state.unverified[refused_id]
    yield Verified(checkpoint=checkpoint.id, holds=False, key=key, detail=detail)
    node = state.tree.nodes[checkpoint.id]
    if state.key in node.state.newest_set | node.state.second_set:
        yield SignRefusal(checkpoint=checkpoint.id, slot=checkpoint.slot, rule=rule, detail=detail)


def _merge(state: RoundState, parent: ChainState, key: MergeKey, now_ms: int) -> Iterator[Action]:
    """Ask for a merge unless it is under way; a failed one is tried again after a pause."""
    if state.merging.get(key, -1) == 0 or state.merging.get(key, -1) > now_ms:
        return
    state.merging[key] = 0
    entries = []
    for contribution_id in key.contribution_ids:
        contribution = state.candidates[contribution_id].contribution
        staleness, _ = contribution_staleness(contribution, parent, genesis=state.genesis, lookup=state.tree.lookup)
        base = state.tree.state(contribution.base_checkpoint)
        entries.append(
            MergeEntry(
                contribution=contribution,
                staleness=staleness,
                stranger=not parent.members.may(contribution.member, ROLE_CONTRIBUTE),
                base_round=base.round,
            )
        )
    yield Merge(key=key, entries=tuple(entries), trailing_norms=parent.update_norms)


def _adopt_head(state: RoundState, now_ms: int) -> Iterator[Action]:
    head = state.tree.head()
    if head.here == state.adopted:
        return
    state.adopted = head.here
    yield Adopt(head=head.here)
    _forget_old(state, head)
    yield from _release(state, ANY_HEAD, now_ms)


def _forget_old(state: RoundState, head: ChainState) -> None:
    """Drop what no checkpoint after this head can use any more."""
    for record_id in [r for r in state.records if head.members.has_record(r)]:
        del state.records[record_id]
    for evidence_id in [e for e, piece in state.evidence.items() if head.members.is_banned(piece.accused)]:
        del state.evidence[evidence_id]
    final = state.tree.state(state.tree.final.checkpoint)
    in_tree = {contribution.id for open_ in _unverified(state) for contribution in _contributions(open_)}
    for contribution_id, candidate in list(state.candidates.items()):
        if contribution_id in in_tree:
            continue
        try:
            contribution_staleness(candidate.contribution, final, genesis=state.genesis, lookup=state.tree.lookup)
            used = (candidate.contribution.member, candidate.contribution.base_checkpoint) in final.used
        except RejectError:
            used = True
        except IgnoreError:
            used = False
        if used:
            del state.candidates[contribution_id]


def _finalise(state: RoundState) -> Iterator[Action]:
    tree = state.tree
    if tree.conflict is not None:
        if not state.alarmed:
            state.alarmed = True
            yield Alarm(ours=tree.final, theirs=tree.conflict)
        return
    if tree.final != state.finalised:
        state.finalised = tree.final
        yield Finalised(final=tree.final)


def _vote(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Vote for the head, unless that vote would be an offence together with one in our own record."""
    head = state.tree.head()
    if head.parent is None or state.key not in head.newest_set | head.second_set or head.id in state.casting:
        return
    if state.tree.conflict is not None or now_ms < state.listen_until_ms:
        return
    source, target = head.justified, head.here
    for vote in state.own_votes.values():
        if vote.target == target.checkpoint or _would_offend(vote, source_slot=source.slot, target_slot=target.slot):
            return
    state.casting.add(head.id)
    yield CastVote(source=source, target=target)


def _would_offend(vote: Vote, *, source_slot: int, target_slot: int) -> bool:
    if vote.target_slot == target_slot:
        return True
    ours_around = source_slot < vote.source_slot and vote.target_slot < target_slot
    ours_inside = vote.source_slot < source_slot and target_slot < vote.target_slot
    return ours_around or ours_inside


def _propose(state: RoundState, now_ms: int) -> Iterator[Action]:
    if state.proposal is not None:
        yield from _finish_proposal(state)
        return
    tree, genesis = state.tree, state.genesis
    head = tree.head()
    slot = genesis.slot_at(now_ms) - 1
    if slot <= max(head.slot, state.proposed_slot, 0) or tree.conflict is not None:
        return
    if any(tree.is_justified(checkpoint_id) for checkpoint_id in state.unverified):
        return
    seen = state.first_seen_ms.get(head.id, 0)
    turn = turn_ms(tree, head, slot=slot, key=state.key, head_seen_ms=seen)
    if turn is None or now_ms < turn or _has_rival(state, head, slot, now_ms):
        return
    choice = choose_contributions(state, head, slot=slot)
    if choice.on_the_way and now_ms < turn + genesis.timing.grace_ms // 2:
        return
    if choice.entries:
        key = MergeKey(parent=head.id, contribution_ids=tuple(e.contribution.id for e in choice.entries))
        state.proposal = Proposal(slot=slot, parent=head.id, key=key)
        if key not in state.merges:
            yield from _merge(state, head, key, now_ms)
        yield from _finish_proposal(state)
        return
    records = choose_records(state, head, slot=slot)
    normal_open = not tree.is_final(tree.state(head.last_normal.checkpoint))
    change_open = not tree.is_final(tree.state(head.certifier_change.checkpoint))
    if normal_open or change_open or choice.refused or records.records or records.evidence or records.waiting:
        yield from _sign(state, head, slot=slot, choice=choice, merged=None)


def _finish_proposal(state: RoundState) -> Iterator[Action]:
    """Sign once the merge is there; give up when the head moved on or a rival holds meanwhile."""
    proposal = state.proposal
    assert proposal is not None
    head = state.tree.head()
    if head.id != proposal.parent or proposal.slot <= head.slot:
        state.proposal = None
        return
    merged = state.merges.get(proposal.key)
    if merged is None:
        return
    state.proposal = None
    choice = choose_contributions(state, head, slot=proposal.slot)
    by_id = {entry.contribution.id: entry for entry in choice.entries}
    if not all(contribution_id in by_id for contribution_id in proposal.key.contribution_ids):
        return
    entries = tuple(by_id[contribution_id] for contribution_id in proposal.key.contribution_ids)
    choice = Choice(entries=entries, refused=choice.refused, on_the_way=False)
    yield from _sign(state, head, slot=proposal.slot, choice=choice, merged=merged)


def _sign(state: RoundState, head: ChainState, *, slot: int, choice: Choice, merged: Merged | None) -> Iterator[Action]:
    records = choose_records(state, head, slot=slot)
    state.proposed_slot = slot
    yield SignCheckpoint(
        checkpoint=build_checkpoint(state, head, slot=slot, choice=choice, records=records, merged=merged)
    )


def _has_rival(state: RoundState, head: ChainState, slot: int, now_ms: int) -> bool:
    """A checkpoint for this slot on our head that holds, or that came too recently to know."""
    for child in state.tree.nodes[head.id].children:
        node = state.tree.nodes[child]
        young = now_ms - state.first_seen_ms.get(child, 0) < state.genesis.timing.slot_window_ms
        if node.state.slot == slot and (node.verdict or (node.verdict is None and young)):
            return True
    return False


def _train(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Train on the head, once for the same weights, where enough of the slot is left to be worth it."""
    head = state.tree.head()
    if not state.trains or state.training is not None or head.id in state.trained_on:
        return
    total = state.genesis.training.total_rounds
    if (total and head.round >= total) or now_ms < state.train_not_before_ms or not _may_contribute(state, head):
        return
    if _has_contributed(state, head) or _is_behind(state, now_ms) or _expects_new_head(state, head, now_ms):
        return
    window = state.genesis.timing.slot_window_ms
    slot = max(state.genesis.slot_at(now_ms), head.slot + 1)
    deadline = state.genesis.slot_end_ms(slot) - window // DEADLINE_SHARE
    if deadline - now_ms < window // MIN_TRAINING_SHARE:
        return
    state.training = head.here
    yield Train(base=head.here, base_round=head.round, deadline_ms=deadline)


def _has_contributed(state: RoundState, head: ChainState) -> bool:
    """Whether a delta of ours on these very weights was used or waits (empty checkpoints keep the weights)."""
    if (state.key, head.id) in head.used:
        return True
    mine = (c.contribution for c in state.candidates.values() if c.contribution.member == state.key)
    bases = (state.tree.lookup(contribution.base_checkpoint) for contribution in mine)
    return any(base is not None and base.last_normal == head.last_normal for base in bases)


def _expects_new_head(state: RoundState, head: ChainState, now_ms: int) -> bool:
    """Whether a slot has just ended in which something was offered: its checkpoint is worth waiting for.

    Training on the old head would make every delta one round stale, and each stale one delays the next.
    """
    genesis = state.genesis
    slot = genesis.slot_at(now_ms)
    starts_at_ms = genesis.slot_start_ms(slot)
    if head.slot >= slot - 1 or now_ms >= starts_at_ms + genesis.timing.slot_window_ms // MIN_TRAINING_SHARE:
        return False
    return any(
        candidate.received_at_ms < starts_at_ms
        and candidate.status is not DeltaStatus.REFUSED
        and (candidate.contribution.member, candidate.contribution.base_checkpoint) not in head.used
        for candidate in state.candidates.values()
    )


def _is_behind(state: RoundState, now_ms: int) -> bool:
    """Whether a newer head is on its way: one just seen, or one that the certifiers have voted for."""
    head = state.tree.head()
    window = state.genesis.timing.slot_window_ms
    return any(
        state.tree.state(checkpoint_id).slot > head.slot
        and (now_ms - seen_ms < window or state.tree.is_justified(checkpoint_id))
        for checkpoint_id, seen_ms in state.unverified.items()
    )


def _may_contribute(state: RoundState, head: ChainState) -> bool:
    if head.members.may(state.key, ROLE_CONTRIBUTE):
        return True
    return state.genesis.membership.policy == Policy.OPEN and not head.members.is_banned(state.key)


def _take_up(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Ask for the certifier role that our grant holds, once every few slots until it is carried."""
    members = state.tree.head().members
    if not state.wants_certify or state.key in members.certifiers or not members.may(state.key, ROLE_CERTIFY):
        return
    if any(r.type == wire.TAKE_UP and r.public_key == state.key for r in state.records.values()):
        return
    slot = state.genesis.slot_at(now_ms)
    if slot <= state.took_up_slot + 2:
        return
    state.took_up_slot = slot
    yield SignTakeUp()


def _contributions(checkpoint: Checkpoint) -> list[Contribution]:
    return [a.contribution for a in checkpoint.accepted] + [r.contribution for r in checkpoint.refused]


def _carried(checkpoint: Checkpoint) -> list[bytes]:
    """Ids of everything that came inside a checkpoint, and need not come by itself any more."""
    return [
        *(contribution.id for contribution in _contributions(checkpoint)),
        *(vote.id for vote in checkpoint.votes),
        *(record.id for record in checkpoint.records),
        *(piece.id for piece in checkpoint.evidence),
    ]


def _merge_key(checkpoint: Checkpoint) -> MergeKey:
    return MergeKey(
        parent=checkpoint.parent,
        contribution_ids=tuple(accepted.contribution.id for accepted in checkpoint.accepted),
    )
