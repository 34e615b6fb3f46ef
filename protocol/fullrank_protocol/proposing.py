"""Whose turn it is to propose, when, and what a proposal holds (protocol section 5, steps 4 and 5)."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fullrank_protocol.canonical import clip_text
from fullrank_protocol.chain import (
    ChainState,
    check_certifier_change,
    check_contributor,
    contribution_staleness,
    max_strangers,
    removed_at_once,
)
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import ProtocolError, RejectError
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.limits import (
    CLOCK_TOLERANCE_MS,
    MAX_CARRIED_EVIDENCE,
    MAX_CARRIED_RECORDS,
    MAX_CARRIED_REFUSED,
    MAX_CARRIED_VOTES,
    MAX_DETAIL_BYTES,
)
from fullrank_protocol.membership import Members
from fullrank_protocol.round_io import Merged, MergeEntry
from fullrank_protocol.round_state import Candidate, DeltaStatus, RoundState
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import Evidence, Vote
from fullrank_protocol.wire import objects_pb2 as wire

MAX_WAIT_WINDOWS = 3
"""A proposer waits at most this many windows for its head to be justified."""

_ENVELOPE_ROOM = 256
"""Bytes of a checkpoint's envelope beside the payload: swarm, key, signature, numbers and lengths take about 150."""

_FIELD_ROOM = 8
"""Bytes of an object's tag and length inside a checkpoint, rounded up."""

RECORD_ORDER = (
    wire.REVOCATION,
    wire.GRANT,
    wire.ADMISSION,
    wire.READMISSION,
    wire.LEAVE,
    wire.RETIREMENT,
    wire.EJECTION,
    wire.TAKE_UP,
    wire.CHOICE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a proposer would merge now: entries ascend by contribution id."""

    entries: tuple[MergeEntry, ...]
    refused: tuple[Candidate, ...]
    on_the_way: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordChoice:
    """Records that apply now, in order; `waiting` tells that a certifier change waits for finality."""

    records: tuple[Envelope, ...]
    evidence: tuple[Evidence, ...]
    members: Members
    waiting: bool


def draw(swarm: bytes, slot: int, key: bytes) -> bytes:
    """The number by which certifiers take turns, and cohorts are drawn, in a slot; nobody can choose it."""
    return hashlib.sha256(b"fullrank.v1.draw" + swarm + slot.to_bytes(8, "little") + key).digest()


def proposer_order(parent: ChainState, *, swarm: bytes, slot: int) -> list[bytes]:
    """Certifiers in the order of their turns."""
    return list(_turns(swarm, slot, parent.members.certifiers))


def turn_of(key: bytes, parent: ChainState, *, swarm: bytes, slot: int) -> int | None:
    """The turn of a certifier at `parent`, from 0 on; None for others."""
    return _turns(swarm, slot, parent.members.certifiers).get(key)


@functools.lru_cache(maxsize=64)
def _turns(swarm: bytes, slot: int, certifiers: frozenset[bytes]) -> dict[bytes, int]:
    """The turn of each certifier, in order; asked for again at every step until somebody has proposed."""
    order = sorted(certifiers, key=lambda key: draw(swarm, slot, key))
    return {key: turn for turn, key in enumerate(order)}


def opens_ms(checkpoint: Checkpoint, parent: ChainState, *, genesis: Genesis) -> int:
    """Before this time on its own clock, a node does not look at a checkpoint.

    The turn in which its proposer stands at `parent` cannot have come earlier. Otherwise a single certifier could
    close every slot with an empty checkpoint before those whose turn it is have merged anything.
    """
    ended = genesis.slot_end_ms(checkpoint.slot)
    turn = turn_of(checkpoint.proposer, parent, swarm=genesis.swarm, slot=checkpoint.slot)
    if not turn:
        return ended - CLOCK_TOLERANCE_MS
    return ended + min(turn * genesis.timing.grace_ms, genesis.timing.slot_window_ms)


def grace_ms(tree: Tree, head: ChainState) -> int:
    """Time between two turns: doubles with each checkpoint after the newest justified one, up to the window."""
    timing = tree.genesis.timing
    pending = 0
    state = head
    while not tree.is_justified(state.id):
        pending += 1
        assert state.parent is not None
        state = tree.state(state.parent)
    return min(timing.grace_ms << min(pending, 32), timing.slot_window_ms)


def turn_ms(tree: Tree, head: ChainState, *, slot: int, key: bytes, head_seen_ms: int) -> int | None:
    """The earliest time at which `key` may propose a child of `head` for an ended slot; None for non-certifiers.

    A proposer whose head is not justified waits for that, yet not for ever: fetching and
    recomputing that takes longer than a window would otherwise never become final.
    """
    genesis, timing = tree.genesis, tree.genesis.timing
    number = turn_of(key, head, swarm=genesis.swarm, slot=slot)
    if number is None:
        return None
    starts = genesis.slot_end_ms(slot)
    if not tree.is_justified(head.id):
        pending = head.depth - tree.state(tree.final.checkpoint).depth
        patience = min(MAX_WAIT_WINDOWS * timing.slot_window_ms, timing.grace_ms << min(max(pending, 0), 32))
        skipped = (slot - head.slot - 1) * timing.grace_ms // 2
        starts = max(starts, head_seen_ms + patience) + min(skipped, timing.slot_window_ms // 2)
    return starts + number * grace_ms(tree, head)


def choose_contributions(state: RoundState, head: ChainState, *, slot: int) -> Choice:
    """Every ready contribution that fits a child of `head`, cut to the cohort where there are too many."""
    tree, genesis = state.tree, state.genesis
    entries: dict[tuple[bytes, bytes], MergeEntry] = {}
    refused: dict[tuple[bytes, bytes], tuple[Candidate, bool]] = {}
    on_the_way = False
    for contribution_id in sorted(state.candidates):
        candidate = state.candidates[contribution_id]
        contribution = candidate.contribution
        try:
            stranger = check_contributor(contribution, head, genesis=genesis)
            staleness, _ = contribution_staleness(contribution, head, genesis=genesis, lookup=tree.lookup)
        except ProtocolError:
            continue
        pair = (contribution.member, contribution.base_checkpoint)
        if candidate.status is DeltaStatus.REFUSED:
            refused.setdefault(pair, (candidate, stranger))
        elif candidate.status is DeltaStatus.READY:
            entries.setdefault(
                pair,
                MergeEntry(
                    contribution=contribution,
                    staleness=staleness,
                    stranger=stranger,
                    base_round=tree.state(contribution.base_checkpoint).round,
                ),
            )
        elif candidate.status in (DeltaStatus.WAITING, DeltaStatus.CHECKING):
            on_the_way = True
    chosen = _cohort(list(entries.values()), state, slot=slot)
    chosen.sort(key=lambda entry: entry.contribution.id)
    taken = {(e.contribution.member, e.contribution.base_checkpoint) for e in chosen}
    places = max_strangers(genesis) - sum(entry.stranger for entry in chosen)
    rest = [candidate for pair, (candidate, stranger) in refused.items() if pair not in taken and not stranger]
    rest += [candidate for pair, (candidate, stranger) in refused.items() if pair not in taken and stranger][:places]
    rest = sorted(rest[:MAX_CARRIED_REFUSED], key=lambda candidate: candidate.contribution.id)
    return Choice(entries=tuple(chosen), refused=tuple(rest), on_the_way=on_the_way)


def _cohort(entries: list[MergeEntry], state: RoundState, *, slot: int) -> list[MergeEntry]:
    genesis = state.genesis
    by_draw = sorted(entries, key=lambda e: (draw(genesis.swarm, slot, e.contribution.member), e.contribution.id))
    strangers = [entry for entry in by_draw if entry.stranger][: max_strangers(genesis)]
    members = [entry for entry in by_draw if not entry.stranger]
    return members[: genesis.rule.max_contributions - len(strangers)] + strangers


def choose_records(state: RoundState, head: ChainState, *, slot: int) -> RecordChoice:
    """Waiting records that take effect in a child of `head`, one certifier change at most."""
    members = head.members
    taken: list[Envelope] = []
    at_once: frozenset[bytes] = frozenset()
    waiting = False
    order = sorted(state.records.values(), key=lambda r: (RECORD_ORDER.index(r.type), r.id))
    for record in order:
        if len(taken) == MAX_CARRIED_RECORDS:
            waiting = True
            break
        try:
            after = members.apply(record, slot=slot, genesis=state.genesis)
        except RejectError:
            continue
        removed = at_once | removed_at_once(head, record, members, after, slot=slot, genesis=state.genesis)
        if _breaks_certifier_rule(head, after, at_once=removed):
            waiting = True
            continue
        members, at_once = after, removed
        taken.append(record)
    evidence: list[Evidence] = []
    for piece in sorted(state.evidence.values(), key=lambda e: e.id):
        if len(evidence) == MAX_CARRIED_EVIDENCE:
            waiting = True
            break
        try:
            after = members.exclude(piece.accused, offence_slot=piece.offence_slot)
        except RejectError:
            continue
        if _breaks_certifier_rule(head, after, at_once=at_once):
            waiting = True
            continue
        members = after
        evidence.append(piece)
    return RecordChoice(records=tuple(taken), evidence=tuple(evidence), members=members, waiting=waiting)


def _breaks_certifier_rule(head: ChainState, members: Members, *, at_once: frozenset[bytes]) -> bool:
    if members.certifiers == head.members.certifiers:
        return False
    try:
        check_certifier_change(head, members, at_once=at_once)
    except RejectError:
        return True
    return False


def build_checkpoint(
    state: RoundState,
    head: ChainState,
    *,
    slot: int,
    choice: Choice,
    records: RecordChoice,
    merged: Merged | None,
) -> wire.Checkpoint:
    """The unsigned checkpoint: normal with a merge result, otherwise empty."""
    message = wire.Checkpoint(
        kind=wire.NORMAL if merged is not None else wire.EMPTY,
        parent=head.id,
        slot=slot,
        round=head.round + (merged is not None),
        model_digest=merged.model_digest if merged is not None else digest_of(state, head),
        update_norm=(merged.update_norm if merged is not None else Scaled(mantissa=0, exponent=0)).to_wire(),
    )
    if merged is not None:
        for entry, weight in zip(choice.entries, merged.weights, strict=True):
            message.accepted.add(contribution=entry.contribution.envelope.encode(), weight=weight.to_wire())
    for candidate in choice.refused:
        assert candidate.rule is not None
        detail = clip_text(candidate.detail, MAX_DETAIL_BYTES)
        message.refused.add(contribution=candidate.contribution.envelope.encode(), rule=candidate.rule, detail=detail)
    room = state.genesis.limits.max_checkpoint_bytes - _ENVELOPE_ROOM
    while message.refused and message.ByteSize() > room // 2:
        del message.refused[-1]
    room -= message.ByteSize()
    votes, room = _fitting([vote.envelope for vote in votes_to_carry(state.tree, head)], room)
    message.votes.extend(vote.encode() for vote in sorted(votes, key=lambda vote: vote.id))
    carried, room = _fitting(records.records, room)
    message.records.extend(record.encode() for record in carried)
    carried, room = _fitting([piece.envelope for piece in records.evidence], room)
    message.evidence.extend(piece.encode() for piece in carried)
    return message


def _fitting(envelopes: Sequence[Envelope], room: int) -> tuple[Sequence[Envelope], int]:
    """The first envelopes that fit into `room` bytes, and the room left; none once something did not fit."""
    for number, envelope in enumerate(envelopes):
        room -= len(envelope.encode()) + _FIELD_ROOM
        if room < 0:
            return envelopes[:number], -1
    return envelopes, room


def votes_to_carry(tree: Tree, head: ChainState) -> list[Vote]:
    """Votes for checkpoints on the head's chain that no checkpoint on it carries yet, the newest targets first.

    Where there are too many, only those for the newest targets can make anything final.
    """
    votes = [
        vote
        for node in tree.chain(head.id, above_slot=head.final.slot)
        for vote in tree.votes_for(node.state.id)
        if vote.voter not in head.voters.get(node.state.id, frozenset())
    ]
    return sorted(votes, key=lambda vote: (-vote.target_slot, vote.id))[:MAX_CARRIED_VOTES]


def digest_of(state: RoundState, at: ChainState) -> bytes:
    """Model digest after a checkpoint; the genesis' is not in the chain."""
    return at.model_digest or state.base_digest
