"""What a chain of checkpoints says, read from the chain alone (protocol sections 4, 5, 7 and 8).

`ChainState` is a pure function of the checkpoints from the genesis up to and including one of
them: members, certifiers, which checkpoints its carried votes justify and finalise, which
contributions it has used. Two nodes that hold the same chain hold the same state. Votes that no
checkpoint carries yet are not looked at here; `fork_choice` counts them for a reader.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from types import MappingProxyType

from fullrank_protocol.checkpoint import Checkpoint, CheckpointKind
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.genesis import Genesis, Policy
from fullrank_protocol.membership import ROLE_CONTRIBUTE, Members, initial_members
from fullrank_protocol.vote import Vote
from fullrank_protocol.weights import PastUpdate, past_update
from fullrank_protocol.wire import objects_pb2 as wire


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Mark:
    """A checkpoint on a chain; ordered by slot, then id."""

    slot: int
    checkpoint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """The swarm's state after one checkpoint.

    Attributes:
        here: The checkpoint itself.
        parent: Its parent's id; None for the genesis.
        round: Normal checkpoints up to and including this one.
        depth: Checkpoints of any kind up to and including this one.
        last_normal: The newest normal checkpoint, or the genesis.
        members: Members, certifiers and invites.
        justified: The highest ancestor that carried votes justify: the source of a vote for `here`.
        final: The newest checkpoint whose finality carried votes show.
        final_before: The second newest.
        newest_set: Certifiers at `final`; a vote for `here` counts in this set ...
        second_set: ... and in this one, the certifiers at `final_before`.
        certifier_change: The newest checkpoint that changed the certifier set, or the genesis.
        retired: Who was no certifier any more when this chain was stalled, with the slot: they count in no set of an
            older checkpoint. Kept until both sets are newer.
        voters: For every ancestor above `final` with carried votes: who voted.
        used: (member, base checkpoint) of contributions already decided on, with the round of the
            common ancestor, kept while another contribution on that base could still come.
        updates: Full norms and breadths of the newest updates, oldest first.
        model_digest: Digest of the shared model after this checkpoint; empty for the genesis.
    """

    here: Mark
    parent: bytes | None
    round: int
    depth: int
    last_normal: Mark
    members: Members
    justified: Mark
    final: Mark
    final_before: Mark
    newest_set: frozenset[bytes]
    second_set: frozenset[bytes]
    certifier_change: Mark
    retired: Mapping[bytes, int]
    voters: Mapping[bytes, frozenset[bytes]]
    used: Mapping[tuple[bytes, bytes], int]
    updates: tuple[PastUpdate, ...]
    model_digest: bytes

    @property
    def id(self) -> bytes:
        """Id of the checkpoint."""
        return self.here.checkpoint

    @property
    def slot(self) -> int:
        """Slot of the checkpoint."""
        return self.here.slot


Lookup = Callable[[bytes], ChainState | None]
"""From a checkpoint id to its state; None where it is not known."""


def genesis_state(genesis: Genesis) -> ChainState:
    """State before the first checkpoint: slot 0, justified and final by definition."""
    here = Mark(slot=0, checkpoint=genesis.swarm)
    members = initial_members(genesis)
    return ChainState(
        here=here,
        parent=None,
        round=0,
        depth=0,
        last_normal=here,
        members=members,
        justified=here,
        final=here,
        final_before=here,
        newest_set=members.certifiers,
        second_set=members.certifiers,
        certifier_change=here,
        retired=MappingProxyType({}),
        voters=MappingProxyType({}),
        used=MappingProxyType({}),
        updates=(),
        model_digest=b"",
    )


def extend(parent: ChainState, checkpoint: Checkpoint, *, genesis: Genesis, lookup: Lookup) -> ChainState:
    """The state after `checkpoint`, which must follow `parent`.

    Checks everything but the numbers: weights, norm and digest need the deltas themselves.

    Raises:
        RejectError: The checkpoint breaks a rule.
        IgnoreError: It names a base checkpoint that is not known here yet.
    """
    _check_place(parent, checkpoint)
    used = _use_contributions(parent, checkpoint, genesis=genesis, lookup=lookup)
    members = parent.members
    at_once: frozenset[bytes] = frozenset()
    for record in checkpoint.records:
        before, members = members, members.apply(record, slot=checkpoint.slot, genesis=genesis)
        at_once |= removed_at_once(parent, record, before, members, slot=checkpoint.slot, genesis=genesis)
    for evidence in checkpoint.evidence:
        members = members.exclude(evidence.accused, offence_slot=evidence.offence_slot)
    here = Mark(slot=checkpoint.slot, checkpoint=checkpoint.id)
    change = parent.certifier_change
    if members.certifiers != parent.members.certifiers:
        check_certifier_change(parent, members, at_once=at_once)
        change = here
    is_normal = checkpoint.kind == CheckpointKind.NORMAL
    updates = (*parent.updates, _update_of(parent, checkpoint, genesis)) if is_normal else parent.updates
    state = replace(
        parent,
        here=here,
        parent=parent.id,
        round=checkpoint.round,
        depth=parent.depth + 1,
        last_normal=here if is_normal else parent.last_normal,
        members=members,
        certifier_change=change,
        retired=_retire(parent, members, slot=checkpoint.slot, genesis=genesis),
        used=used,
        updates=updates[-genesis.rule.trailing_rounds :] if genesis.rule.trailing_rounds else (),
        model_digest=checkpoint.model_digest,
    )
    return _carry_votes(state, checkpoint.votes, lookup=lookup)


def _update_of(parent: ChainState, checkpoint: Checkpoint, genesis: Genesis) -> PastUpdate:
    weights = [accepted.weight for accepted in checkpoint.accepted]
    return past_update(weights, checkpoint.update_norm, genesis.rule, parent.updates)


def is_stalled(at: ChainState, *, slot: int, genesis: Genesis) -> bool:
    """Whether finality has been missing for so long that those who are no certifiers any more count no longer."""
    return slot - at.final.slot >= genesis.timing.stall_slots


def removed_at_once(
    parent: ChainState, record: Envelope, before: Members, after: Members, *, slot: int, genesis: Genesis
) -> frozenset[bytes]:
    """The certifier whom the root removes by this record in a stalled chain, however many others with it."""
    if record.type not in (wire.RETIREMENT, wire.REVOCATION) or not is_stalled(parent, slot=slot, genesis=genesis):
        return frozenset()
    return before.certifiers - after.certifiers


def _retire(parent: ChainState, members: Members, *, slot: int, genesis: Genesis) -> Mapping[bytes, int]:
    if not is_stalled(parent, slot=slot, genesis=genesis):
        return parent.retired
    gone = (parent.newest_set | parent.second_set) - members.certifiers
    return MappingProxyType({**parent.retired, **dict.fromkeys(gone, slot)})


def check_certifier_change(parent: ChainState, members: Members, *, at_once: frozenset[bytes] = frozenset()) -> None:
    """The certifier set changes by one, and only once the previous change is final (section 8).

    Larger or faster steps have a schedule in which two quorums do not overlap. What the root removes from a stalled
    chain may be more, and comes alone.

    Raises:
        RejectError: With `Rule.CERTIFIERS`.
    """
    changed = members.certifiers ^ parent.members.certifiers
    if at_once:
        if changed != at_once:
            raise RejectError(
                Rule.CERTIFIERS,
                f"changes the certifier set by {len(changed)} keys, required are exactly the {len(at_once)} "
                "that the root removes from a stalled chain",
            )
        return
    if len(changed) > 1:
        raise RejectError(Rule.CERTIFIERS, f"changes the certifier set by {len(changed)} keys, 1 is allowed")
    if not members.certifiers:
        raise RejectError(Rule.CERTIFIERS, "leaves 0 certifiers, at least 1 required")
    if changed and parent.certifier_change.slot > parent.final.slot:
        raise RejectError(
            Rule.CERTIFIERS,
            f"changes the certifier set while the change of slot {parent.certifier_change.slot} is not final "
            f"(newest final slot {parent.final.slot})",
        )


def contribution_staleness(
    contribution: Contribution, parent: ChainState, *, genesis: Genesis, lookup: Lookup
) -> tuple[int, int]:
    """How many rounds old a contribution is for a child of `parent`, and the round it counts from.

    Raises:
        RejectError: With `Rule.SLOT` or `Rule.STALE`.
        IgnoreError: Its base checkpoint is not known here.
    """
    base = lookup(contribution.base_checkpoint)
    if base is None:
        raise IgnoreError(f"base checkpoint {contribution.base_checkpoint.hex()[:12]} is not known")
    check_base_slot(contribution, base)
    oldest = parent.round - genesis.rule.max_staleness_rounds
    ancestor = common_ancestor(base, parent, lookup=lookup, oldest_round=oldest)
    staleness = parent.round - ancestor.round
    if staleness > genesis.rule.max_staleness_rounds:
        raise RejectError(
            Rule.STALE, f"is {staleness} rounds old, at most {genesis.rule.max_staleness_rounds} are accepted"
        )
    return staleness, ancestor.round


def check_base_slot(contribution: Contribution, base: ChainState) -> None:
    """Refuses a contribution that names another slot than its base has.

    Raises:
        RejectError: With `Rule.SLOT`.
    """
    if base.slot != contribution.base_slot:
        raise RejectError(Rule.SLOT, f"says base slot {contribution.base_slot}, its base is of slot {base.slot}")


def check_contributor(contribution: Contribution, parent: ChainState, *, genesis: Genesis) -> bool:
    """Whether the author may contribute to a child of `parent`; True for a stranger in an open swarm.

    Raises:
        RejectError: With `Rule.MEMBERSHIP` or `Rule.DUPLICATE`.
    """
    author = contribution.member
    if (author, contribution.base_checkpoint) in parent.used:
        raise second_contribution(contribution)
    if parent.members.may(author, ROLE_CONTRIBUTE):
        return False
    if genesis.membership.policy == Policy.OPEN and not parent.members.is_banned(author):
        return True
    raise RejectError(Rule.MEMBERSHIP, f"is by {author.hex()[:12]}, who {parent.members.why_shut_out(author)}")


def second_contribution(contribution: Contribution) -> RejectError:
    """What is said of another contribution of one member on one base: one is allowed."""
    author, base = contribution.member.hex()[:12], contribution.base_checkpoint.hex()[:12]
    return RejectError(Rule.DUPLICATE, f"is a second contribution of {author} on base {base}, 1 allowed")


def is_ancestor(mark: Mark, of: ChainState, *, lookup: Lookup) -> bool:
    """Whether `mark` lies on the chain that ends in `of` (a checkpoint is its own ancestor)."""
    state: ChainState | None = of
    while state is not None and state.slot > mark.slot:
        state = lookup(state.parent) if state.parent is not None else None
    return state is not None and state.id == mark.checkpoint


def common_ancestor(a: ChainState, b: ChainState, *, lookup: Lookup, oldest_round: int = 0) -> ChainState:
    """The newest checkpoint on both chains; where its round is below `oldest_round`, some checkpoint of such a round.

    Whoever asks only about the newest rounds need not walk back to the genesis for everything that refers to it.
    """
    while a.id != b.id:
        older_round = a if a.round < b.round else b
        if older_round.round < oldest_round:
            return older_round
        older = a if a.slot >= b.slot else b
        assert older.parent is not None
        step = lookup(older.parent)
        assert step is not None
        if older is a:
            a = step
        else:
            b = step
    return a


def has_quorum(voters: Set[bytes], state: ChainState) -> bool:
    """More than two thirds of both certifier sets that count for `state` (Casper FFG with stitching)."""
    return all(
        3 * len(voters) > 2 * len(certifiers) and 3 * len(voters & certifiers) > 2 * len(certifiers)
        for certifiers in (state.newest_set, state.second_set)
    )


def check_vote(vote: Vote, target: ChainState) -> None:
    """A vote's source and slots follow from its target; only certifiers of the target's sets vote.

    Raises:
        RejectError: With `Rule.VOTE`.
    """
    if vote.target_slot != target.slot:
        raise RejectError(Rule.VOTE, f"says target slot {vote.target_slot}, its target is of slot {target.slot}")
    source = target.justified
    if (vote.source, vote.source_slot) != (source.checkpoint, source.slot):
        raise RejectError(
            Rule.VOTE,
            f"names source {vote.source.hex()[:12]} of slot {vote.source_slot}, "
            f"its target's justified ancestor is {source.checkpoint.hex()[:12]} of slot {source.slot}",
        )
    if vote.voter not in target.newest_set and vote.voter not in target.second_set:
        raise RejectError(Rule.VOTE, f"{vote.voter.hex()[:12]} is no certifier for this target")


def check_proposer(proposer: bytes, parent: ChainState) -> None:
    """Only certifiers at its parent sign a checkpoint.

    Raises:
        RejectError: With `Rule.MEMBERSHIP`.
    """
    if proposer not in parent.members.certifiers:
        raise RejectError(Rule.MEMBERSHIP, f"proposer {proposer.hex()[:12]} is no certifier")


def _check_place(parent: ChainState, checkpoint: Checkpoint) -> None:
    if checkpoint.parent != parent.id:
        raise RejectError(Rule.PARENT, f"names parent {checkpoint.parent.hex()[:12]}, {parent.id.hex()[:12]} required")
    if checkpoint.slot <= parent.slot:
        raise RejectError(Rule.SLOT, f"has slot {checkpoint.slot}, its parent has {parent.slot}")
    is_normal = checkpoint.kind == CheckpointKind.NORMAL
    if checkpoint.round != parent.round + is_normal:
        raise RejectError(Rule.ROUND, f"says round {checkpoint.round}, required is {parent.round + is_normal}")
    check_proposer(checkpoint.proposer, parent)
    if checkpoint.kind == CheckpointKind.CORRECTION:
        raise RejectError(
            Rule.POLICY,
            f"is of kind {checkpoint.kind} ({checkpoint.kind.name}), rule version 1 allows 1 (NORMAL) and 2 (EMPTY)",
        )
    if not is_normal and parent.model_digest and checkpoint.model_digest != parent.model_digest:
        found, required = checkpoint.model_digest.hex()[:12], parent.model_digest.hex()[:12]
        raise RejectError(
            Rule.DIGEST, f"accepts 0 contributions and says digest {found}, its parent's {required} required"
        )


def _use_contributions(
    parent: ChainState, checkpoint: Checkpoint, *, genesis: Genesis, lookup: Lookup
) -> Mapping[tuple[bytes, bytes], int]:
    """The parent's used contributions with this checkpoint's, less those too old to matter."""
    if len(checkpoint.accepted) > genesis.rule.max_contributions:
        raise RejectError(
            Rule.SIZE, f"accepts {len(checkpoint.accepted)} contributions, at most {genesis.rule.max_contributions}"
        )
    used = dict(parent.used)
    num_strangers = 0
    decided = [accepted.contribution for accepted in checkpoint.accepted]
    for contribution in [*decided, *(refused.contribution for refused in checkpoint.refused)]:
        is_stranger = check_contributor(contribution, parent, genesis=genesis)
        _, from_round = contribution_staleness(contribution, parent, genesis=genesis, lookup=lookup)
        key = (contribution.member, contribution.base_checkpoint)
        if key in used:
            raise second_contribution(contribution)
        used[key] = from_round
        num_strangers += is_stranger
    if num_strangers > max_strangers(genesis):
        raise RejectError(
            Rule.POLICY, f"holds {num_strangers} contributions of strangers, {max_strangers(genesis)} fit"
        )
    oldest = checkpoint.round - genesis.rule.max_staleness_rounds
    return MappingProxyType({key: from_round for key, from_round in used.items() if from_round >= oldest})


def max_strangers(genesis: Genesis) -> int:
    """Places for strangers in one checkpoint of an open swarm (section 4)."""
    return genesis.rule.open_share_micro * genesis.rule.max_contributions // 1_000_000


def _carry_votes(state: ChainState, votes: tuple[Vote, ...], *, lookup: Lookup) -> ChainState:
    """Count the votes that a checkpoint carries for its ancestors; move justified and final on."""
    assert state.parent is not None
    parent = lookup(state.parent)
    assert parent is not None
    voters = dict(state.voters)
    touched: dict[bytes, ChainState] = {}
    for vote in votes:
        mark = Mark(slot=vote.target_slot, checkpoint=vote.target)
        if mark.slot <= parent.final.slot:
            raise RejectError(Rule.VOTE, f"carries a vote for slot {mark.slot}, final is {parent.final.slot} already")
        if not is_ancestor(mark, parent, lookup=lookup):
            raise RejectError(Rule.VOTE, f"carries a vote for {vote.target.hex()[:12]}, which is not its ancestor")
        target = lookup(vote.target)
        assert target is not None
        check_vote(vote, target)
        before = voters.get(vote.target, frozenset())
        if vote.voter in before:
            raise RejectError(Rule.DUPLICATE, f"carries a second vote of {vote.voter.hex()[:12]} for one target")
        voters[vote.target] = before | {vote.voter}
        touched[vote.target] = target
    justified, finals = state.justified, {state.final, state.final_before}
    for target in touched.values():
        if not has_quorum(voters[target.id], target):
            continue
        justified = max(justified, target.here)
        if target.justified.slot + 1 == target.slot:
            finals.add(target.justified)
    final, *rest = sorted(finals, reverse=True)
    final_before = rest[0] if rest else final
    retired = {key: slot for key, slot in state.retired.items() if slot > final_before.slot}
    return replace(
        state,
        justified=justified,
        final=final,
        final_before=final_before,
        newest_set=_set_at(final, retired, lookup),
        second_set=_set_at(final_before, retired, lookup),
        retired=MappingProxyType(retired),
        voters=MappingProxyType({t: who for t, who in voters.items() if _slot_of(t, lookup) > final.slot}),
    )


def _set_at(mark: Mark, retired: Mapping[bytes, int], lookup: Lookup) -> frozenset[bytes]:
    """The certifiers at a checkpoint, without those who were no more when the chain was stalled after it."""
    state = lookup(mark.checkpoint)
    assert state is not None
    return state.members.certifiers - {key for key, slot in retired.items() if slot > mark.slot}


def _slot_of(checkpoint: bytes, lookup: Lookup) -> int:
    state = lookup(checkpoint)
    assert state is not None
    return state.slot
