"""Recomputes what others propose: deltas checked, merged here, compared bit for bit (protocol sections 5 to 7)."""

from collections.abc import Iterator

from fullrank_protocol.chain import ChainState, contribution_staleness
from fullrank_protocol.checkpoint import Checkpoint, CheckpointKind, contributions
from fullrank_protocol.errors import Rule
from fullrank_protocol.limits import MAX_REFUSALS
from fullrank_protocol.membership import ROLE_CONTRIBUTE
from fullrank_protocol.proposing import digest_of, turn_of
from fullrank_protocol.round_io import (
    Action,
    CheckDelta,
    Merge,
    Merged,
    MergeEntry,
    MergeFailed,
    MergeKey,
    SignRefusal,
    Verified,
)
from fullrank_protocol.round_state import ASK_AGAIN_MS, DeltaStatus, RoundState, is_held
from fullrank_protocol.wire import objects_pb2 as wire


def check_deltas(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Have every new contribution's blob fetched and decoded; ask again for one that was not to be had."""
    for candidate in list(state.unchecked.values()):
        pauses = candidate.status is DeltaStatus.UNAVAILABLE and now_ms < candidate.retry_at_ms
        if pauses or is_held(state, candidate.contribution, now_ms):
            continue
        base = state.tree.lookup(candidate.contribution.base_checkpoint)
        if base is not None:
            candidate.status = DeltaStatus.CHECKING
            contribution = candidate.contribution
            del state.unchecked[contribution.id]
            yield CheckDelta(contribution=contribution, blob=contribution.blob, base_round=base.round)


def verify_checkpoints(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Recompute every checkpoint whose parent holds, oldest first."""
    progress = True
    while progress:
        progress = False
        for checkpoint in unverified(state):
            if state.tree.nodes[checkpoint.parent].verdict and checkpoint.id not in state.arrival.held:
                yield from _verify(state, checkpoint, now_ms)
                progress = progress or checkpoint.id not in state.unverified


def unverified(state: RoundState) -> list[Checkpoint]:
    """Checkpoints in the tree that are not recomputed here yet, in the order in which they came."""
    nodes = (state.tree.nodes[checkpoint_id] for checkpoint_id in state.unverified)
    return [node.checkpoint for node in nodes if node.checkpoint is not None]


def _verify(state: RoundState, checkpoint: Checkpoint, now_ms: int) -> Iterator[Action]:
    parent = state.tree.state(checkpoint.parent)
    key = merge_key(checkpoint)
    verdict = _judge_contributions(state, checkpoint)
    if verdict is not None:
        yield from refuse(state, checkpoint, key, *verdict)
        return
    if any(
        state.candidates[c.id].status not in (DeltaStatus.READY, DeltaStatus.REFUSED) for c in contributions(checkpoint)
    ):
        return
    if checkpoint.kind == CheckpointKind.EMPTY:
        expected = digest_of(state, parent)
        if checkpoint.model_digest == expected:
            yield from _accept(state, checkpoint, key)
        else:
            detail = f"says digest {checkpoint.model_digest.hex()[:12]}, its parent has {expected.hex()[:12]}"
            yield from refuse(state, checkpoint, key, Rule.DIGEST, detail)
        return
    if (merged := state.merges.get(key)) is None:
        yield from merge(state, parent, key, now_ms)
    elif (mismatch := judge_numbers(checkpoint, merged)) is not None:
        yield from refuse(state, checkpoint, key, *mismatch)
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
            return (
                Rule.POLICY,
                f"refuses {refused.contribution.id.hex()[:12]} by rule {refused.rule.name}, found {found}",
            )
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


def refuse(state: RoundState, checkpoint: Checkpoint, key: MergeKey, rule: Rule, detail: str) -> Iterator[Action]:
    """A checkpoint does not hold: say so, as a certifier with an early turn also to others."""
    state.tree.set_verdict(checkpoint.id, holds=False)
    for refused_id in [i for i in state.unverified if state.tree.nodes[i].verdict is False]:
        del state.unverified[refused_id]
    yield Verified(checkpoint=checkpoint.id, holds=False, key=key, detail=detail)
    parent = state.tree.state(checkpoint.parent)
    turn = turn_of(state.key, parent, swarm=state.genesis.swarm, slot=checkpoint.slot)
    if turn is not None and turn < MAX_REFUSALS:
        yield SignRefusal(checkpoint=checkpoint.id, slot=checkpoint.slot, rule=rule, detail=detail)


def merge(state: RoundState, parent: ChainState, key: MergeKey, now_ms: int) -> Iterator[Action]:
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
    yield Merge(key=key, entries=tuple(entries), trailing=parent.updates)


def merge_failed(state: RoundState, event: MergeFailed, now_ms: int) -> Iterator[Action]:
    """A merge could not be made: for a reason that everybody finds, or for one of this node alone."""
    if event.rule is None:
        state.merging[event.key] = now_ms + ASK_AGAIN_MS
        for contribution_id in event.key.contribution_ids:
            candidate = state.candidates.get(contribution_id)
            if candidate is not None and candidate.status is DeltaStatus.READY:
                candidate.status = DeltaStatus.WAITING  # Its blob may have been lost on this disk: look again.
                state.unchecked[contribution_id] = candidate
    else:
        state.merging.pop(event.key, None)
        for checkpoint in unverified(state):
            if checkpoint.accepted and merge_key(checkpoint) == event.key:
                yield from refuse(state, checkpoint, event.key, event.rule, event.detail)
    if state.proposal is not None and state.proposal.key == event.key:
        state.proposal = None


def carried(checkpoint: Checkpoint) -> list[bytes]:
    """Ids of everything that came inside a checkpoint, and need not come by itself any more; choices are looked at."""
    return [
        *(contribution.id for contribution in contributions(checkpoint)),
        *(vote.id for vote in checkpoint.votes),
        *(record.id for record in checkpoint.records if record.type != wire.CHOICE),
        *(piece.id for piece in checkpoint.evidence),
    ]


def merge_key(checkpoint: Checkpoint) -> MergeKey:
    """The merge that a checkpoint claims."""
    return MergeKey(
        parent=checkpoint.parent,
        contribution_ids=tuple(accepted.contribution.id for accepted in checkpoint.accepted),
    )
