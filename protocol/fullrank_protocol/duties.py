"""What a node does by itself: adopt, vote, finalise, propose at its turn, train (protocol sections 5 and 8)."""

from collections.abc import Iterator, Sequence

from fullrank_protocol.chain import ChainState, common_ancestor, contribution_staleness
from fullrank_protocol.checkpoint import contributions
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.errors import IgnoreError, RejectError
from fullrank_protocol.genesis import Policy
from fullrank_protocol.intake import release
from fullrank_protocol.left_behind import leave_behind, look_again
from fullrank_protocol.membership import ROLE_CERTIFY, ROLE_CONTRIBUTE
from fullrank_protocol.proposing import Choice, build_checkpoint, choose_contributions, choose_records, turn_ms
from fullrank_protocol.round_io import (
    Action,
    Adopt,
    Alarm,
    CastVote,
    Finalised,
    Keep,
    Merged,
    MergeKey,
    PendingContribution,
    Settled,
    SignCheckpoint,
    SignTakeUp,
    Train,
)
from fullrank_protocol.round_state import ANY_HEAD, Candidate, DeltaStatus, Proposal, RoundState, offer, withdraw
from fullrank_protocol.verifying import merge, unverified
from fullrank_protocol.vote import Vote
from fullrank_protocol.wire import objects_pb2 as wire

MIN_TRAINING_SHARE = 4
"""Training starts only with at least a window divided by this left; less is not worth the overhead."""

DEADLINE_SHARE = 10
"""Training ends a window divided by this before the slot: time to encode, publish and fetch."""


REMIND_SLOTS = 4
"""Slots between two offers of an own record: neighbours compare inventories of about as many slots only."""


def adopt_head(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Build on the head from now on."""
    head = state.tree.head()
    if head.here == state.adopted:
        return
    state.adopted = head.here
    yield Adopt(head=head.here)
    yield from release(state, ANY_HEAD, now_ms)


def forget_old(state: RoundState) -> None:
    """Drop what no checkpoint after the final one can use any more; a head may still turn out to be a side branch."""
    final = state.tree.state(state.tree.final.checkpoint)
    for record_id in [r for r in state.records if final.members.has_record(r)]:
        del state.records[record_id]
    for evidence_id in [e for e, piece in state.evidence.items() if final.members.is_banned(piece.accused)]:
        del state.evidence[evidence_id]
    in_tree = {contribution.id for open_ in unverified(state) for contribution in contributions(open_)}
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
            withdraw(state, contribution_id)


def adopt_choice(state: RoundState) -> None:
    """Leave the own final checkpoint for the root's choice, where the owner wants it and the choice is verified."""
    tree = state.tree
    if tree.conflict is None or tree.chosen is None or tree.chosen.checkpoint != state.adopting:
        return
    left = tree.state(tree.final.checkpoint)
    if tree.adopt_chosen():
        _offer_again(state, left)


def _offer_again(state: RoundState, left: ChainState) -> None:
    """Contributions of a final history that this node has left may still count on the chosen one, as stale ones."""
    tree = state.tree
    fork = common_ancestor(left, tree.state(tree.final.checkpoint), lookup=tree.lookup)
    for node in tree.chain(left.id, above_slot=fork.slot):
        assert node.checkpoint is not None
        for contribution in contributions(node.checkpoint):
            offer(state, Candidate(contribution, received_at_ms=state.now_ms))


def finalise(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Tell what has become irrevocable; stop and say so when two conflicting checkpoints have, until one is chosen."""
    tree = state.tree
    adopt_choice(state)
    if tree.conflict is not None:
        look_again(state, now_ms)
        if not state.alarmed:
            state.alarmed = True
            yield Alarm(ours=tree.conflict[0], theirs=tree.conflict[1])
        return
    before = state.finalised
    if state.alarmed:
        state.alarmed = False
        before = tree.root.here
        yield Settled(final=tree.final)
    if tree.final != before:
        leave_behind(state, before)
    if tree.final != state.finalised:
        state.finalised = tree.final
        forget_old(state)
        yield Finalised(final=tree.final)


def vote(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Vote for the head, unless that vote would be an offence together with one in our own record."""
    head = state.tree.head()
    if head.parent is None or head.id in state.voted_for or head.id in state.casting:
        return
    if state.key not in head.newest_set | head.second_set:
        return
    if state.tree.conflict is not None or now_ms < state.listen_until_ms:
        return
    source, target = head.justified, head.here
    for vote in state.own_votes.values():
        if _would_offend(vote, source_slot=source.slot, target_slot=target.slot):
            return
    state.casting.add(head.id)
    yield CastVote(source=source, target=target)


def _would_offend(vote: Vote, *, source_slot: int, target_slot: int) -> bool:
    if vote.target_slot == target_slot:
        return True
    ours_around = source_slot < vote.source_slot and vote.target_slot < target_slot
    ours_inside = vote.source_slot < source_slot and target_slot < vote.target_slot
    return ours_around or ours_inside


def propose(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Propose a checkpoint for the slot that has just ended, once it is our turn and nobody has."""
    if state.proposal is not None:
        yield from _finish_proposal(state, now_ms)
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
        yield from _finish_proposal(state, now_ms)
        return
    records = choose_records(state, head, slot=slot)
    normal_open = not tree.is_final(tree.state(head.last_normal.checkpoint))
    change_open = not tree.is_final(tree.state(head.certifier_change.checkpoint))
    if normal_open or change_open or choice.refused or records.records or records.evidence or records.waiting:
        yield from _sign(state, head, slot=slot, choice=choice, merged=None)


def _finish_proposal(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Have it merged, then sign; give up when the head moved on or a rival holds meanwhile."""
    proposal = state.proposal
    assert proposal is not None
    head = state.tree.head()
    if head.id != proposal.parent or proposal.slot <= head.slot:
        state.proposal = None
        return
    merged = state.merges.get(proposal.key)
    if merged is None:
        yield from merge(state, head, proposal.key, now_ms)
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


def train(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Train on the head, once for the same weights, where enough of the slot is left to be worth it."""
    head = state.tree.head()
    if not state.trains or state.training is not None or head.id in state.trained_on:
        return
    total = state.genesis.training.total_rounds
    if (total and head.round >= total) or now_ms < state.train_not_before_ms:
        return
    if _has_contributed(state, head) or _is_behind(state, now_ms) or _expects_new_head(state, head, now_ms):
        return
    window = state.genesis.timing.slot_window_ms
    slot = max(state.genesis.slot_at(now_ms), head.slot + 1)
    deadline = state.genesis.slot_end_ms(slot) - window // DEADLINE_SHARE
    if deadline - now_ms < window // MIN_TRAINING_SHARE or not _may_contribute(state, head, slot=slot):
        return
    state.training = head.here
    num_merged, num_late = _merged_lately(state, head)
    yield Train(
        base=head.here,
        base_round=head.round,
        num_averaged=num_merged,
        num_late=num_late,
        pending=tuple(_pending(state, head)),
        deadline_ms=deadline,
    )


def usual_merge(merges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """What the next merge can be expected to be like: contributions, at least one, and how many of them are late.

    Args:
        merges: The same of the last ones; the mean says more than the newest, for volunteers come and go. Before the
            first one a node can count on nobody but itself.
    """
    if not merges:
        return 1, 0
    merged = sum(num_merged for num_merged, _ in merges)
    late = sum(num_late for _, num_late in merges)
    usual = max(1, round(merged / len(merges)))
    return usual, round(usual * late / merged)


def _merged_lately(state: RoundState, head: ChainState) -> tuple[int, int]:
    """The usual merge on this chain, of as many as its rule looks back on."""
    merges: list[tuple[int, int]] = []
    newest = state.tree.nodes[head.last_normal.checkpoint].checkpoint
    while newest is not None and len(merges) < max(1, state.genesis.rule.trailing_rounds):
        parent = state.tree.state(newest.parent)
        merged = [accepted.contribution for accepted in newest.accepted]
        merges.append((len(merged), sum(_staleness(state, contribution, parent) > 0 for contribution in merged)))
        newest = state.tree.nodes[parent.last_normal.checkpoint].checkpoint
    return usual_merge(merges)


def _pending(state: RoundState, head: ChainState) -> Iterator[PendingContribution]:
    """What this node has sent, and may still be merged after its head, by its age."""
    for contribution_id in sorted(state.candidates):
        candidate = state.candidates[contribution_id]
        contribution = candidate.contribution
        if contribution.member != state.key or candidate.status is DeltaStatus.REFUSED:
            continue
        if (contribution.member, contribution.base_checkpoint) in head.used:
            continue
        try:
            _staleness(state, contribution, head)
        except (RejectError, IgnoreError):
            continue
        base = state.tree.state(contribution.base_checkpoint)
        yield PendingContribution(contribution=contribution, base_round=base.round)


def _staleness(state: RoundState, contribution: Contribution, parent: ChainState) -> int:
    return contribution_staleness(contribution, parent, genesis=state.genesis, lookup=state.tree.lookup)[0]


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


def _may_contribute(state: RoundState, head: ChainState, *, slot: int) -> bool:
    """Whether a delta of ours counts, or will once an admission of ours that is on its way is carried."""
    members = head.members
    if members.may(state.key, ROLE_CONTRIBUTE):
        return True
    if state.genesis.membership.policy == Policy.OPEN and not members.is_banned(state.key):
        return True
    grants = [record for record in state.records.values() if record.type == wire.GRANT]
    own = [r for r in state.records.values() if r.type == wire.ADMISSION and r.public_key == state.key]
    for record in [*grants, *own] if own else []:
        try:
            members = members.apply(record, slot=slot, genesis=state.genesis)
        except RejectError:
            continue
    return members.may(state.key, ROLE_CONTRIBUTE)


def remind(state: RoundState, now_ms: int) -> Iterator[Action]:
    """Offer own records again while no checkpoint carries them: a partition may have kept them from everybody."""
    slot = state.genesis.slot_at(now_ms)
    if slot < state.reminded_slot + REMIND_SLOTS:
        return
    state.reminded_slot = slot
    members = state.tree.head().members
    for record in state.records.values():
        if record.public_key == state.key and not members.has_record(record.id):
            yield Keep(envelope=record, slot=slot)


def take_up(state: RoundState, now_ms: int) -> Iterator[Action]:
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
