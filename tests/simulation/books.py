"""The checker's own books: what a chain of checkpoints says, read from the checkpoints alone.

Written from protocol sections 4, 5 and 8, and shares no rule with `chain`, `membership` and `fork_choice`. Of records
it knows what the simulator makes: one root key, an invited swarm, no tree of an invite revoked.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace

from simulation.node import digest_after

from fullrank_protocol.chain import Mark
from fullrank_protocol.checkpoint import Checkpoint, contributions
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import MESSAGE_OF_TYPE
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.membership import ALL_ROLES, ROLE_CERTIFY, ROLE_CONTRIBUTE
from fullrank_protocol.vote import Vote
from fullrank_protocol.wire import objects_pb2 as wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who may do what after a checkpoint.

    Attributes:
        roles: Of every member.
        shut_out: Keys revoked or excluded.
        certifiers: Who votes.
        changed: The newest checkpoint that changed the certifiers, or the genesis.
        by_root: Certifiers that the root's records in this very checkpoint removed.
    """

    roles: Mapping[bytes, int]
    shut_out: frozenset[bytes]
    certifiers: frozenset[bytes]
    changed: Mark
    by_root: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Account:
    """The books after one checkpoint.

    Attributes:
        parent: Id of the checkpoint before; the genesis is its own.
        applied: Contributions in the model.
        pairs: (member, base checkpoint) of contributions decided on.
        justified: The only source of a vote for this checkpoint.
        final: The newest checkpoint whose finality carried votes show.
        second: The second newest.
        sets: The certifiers that count for this checkpoint: those at `final`, and those at `second`.
        retired: Who had gone in a stall, with the newest slot of it.
        voters: Who voted for an ancestor above `final`, by valid votes that the chain carries.
        strays: Votes that this checkpoint carries and that do not count.
    """

    here: Mark
    parent: bytes
    round: int
    digest: bytes
    applied: frozenset[bytes]
    pairs: frozenset[tuple[bytes, bytes]]
    standing: Standing
    justified: Mark
    final: Mark
    second: Mark
    sets: tuple[frozenset[bytes], frozenset[bytes]]
    retired: Mapping[bytes, int]
    voters: Mapping[bytes, frozenset[bytes]]
    strays: tuple[Vote, ...] = ()


class Books:
    """Accounts of all checkpoints, and all votes that were ever cast.

    Attributes:
        accounts: By checkpoint id.
    """

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        here = Mark(slot=0, checkpoint=genesis.swarm)
        founders = frozenset(genesis.membership.founders)
        standing = Standing(
            roles=dict.fromkeys(founders, ALL_ROLES), shut_out=frozenset(), certifiers=founders, changed=here
        )
        self.accounts = {
            here.checkpoint: Account(
                here=here,
                parent=here.checkpoint,
                round=0,
                digest=bytes(32),
                applied=frozenset(),
                pairs=frozenset(),
                standing=standing,
                justified=here,
                final=here,
                second=here,
                sets=(founders, founders),
                retired={},
                voters={},
            )
        }
        self._cast: dict[tuple[Mark, Mark], set[bytes]] = {}

    # ---- votes -----------------------------------------------------------------------------------

    def cast(self, voter: bytes, source: Mark, target: Mark) -> None:
        """A vote has been signed."""
        self._cast.setdefault((source, target), set()).add(voter)

    def finalises(self, target: Account, source: Mark) -> bool:
        """Whether the votes cast for `target` make `source`, in the slot before it, final."""
        is_next = target.justified == source and target.here.slot == source.slot + 1
        return is_next and _is_quorum(self._cast.get((source, target.here), frozenset()), target)

    # ---- checkpoints -----------------------------------------------------------------------------

    def open(self, checkpoint: Checkpoint) -> Account:
        """The account of a checkpoint whose parent has one."""
        if (known := self.accounts.get(checkpoint.id)) is not None:
            return known
        parent = self.accounts[checkpoint.parent]
        decided = contributions(checkpoint)
        standing = _enact(parent.standing, checkpoint)
        retired = parent.retired
        if self._is_stalled(parent, checkpoint):
            gone = (parent.sets[0] | parent.sets[1]) - standing.certifiers
            retired = {**retired, **dict.fromkeys(gone, checkpoint.slot)}
        justified, final, second, voters, strays = self._count(parent, checkpoint.votes)
        account = self.accounts[checkpoint.id] = Account(
            here=Mark(slot=checkpoint.slot, checkpoint=checkpoint.id),
            parent=checkpoint.parent,
            round=parent.round + bool(checkpoint.accepted),
            digest=_digest(parent.digest, checkpoint),
            applied=parent.applied.union(accepted.contribution.id for accepted in checkpoint.accepted),
            pairs=parent.pairs.union((each.member, each.base_checkpoint) for each in decided),
            standing=standing,
            justified=justified,
            final=final,
            second=second,
            sets=(self._set_at(final, retired), self._set_at(second, retired)),
            retired=retired,
            voters=voters,
            strays=strays,
        )
        return account

    def breaches(self, checkpoint: Checkpoint) -> Iterator[str]:
        """The rules that a checkpoint with an account breaks, each as the end of a sentence about it.

        Raises:
            KeyError: The base of a contribution has no account.
        """
        parent, account = self.accounts[checkpoint.parent], self.accounts[checkpoint.id]
        if checkpoint.proposer not in parent.standing.certifiers:
            yield "whose proposer is no certifier"
        if checkpoint.round != account.round:
            yield "whose round is wrong"
        if checkpoint.model_digest != account.digest:
            yield "whose digest is wrong"
        if account.strays:
            yield "which carries a vote that does not count"
        decided = contributions(checkpoint)
        pairs = {(each.member, each.base_checkpoint) for each in decided}
        if len(pairs) < len(decided) or pairs & parent.pairs:
            yield "which counts a contribution a second time"
        for contribution in decided:
            yield from self._breaches_of(contribution, parent)
        yield from self._breaches_of_change(parent, account, checkpoint)

    def _breaches_of(self, contribution: Contribution, parent: Account) -> Iterator[str]:
        base = self.accounts[contribution.base_checkpoint]
        if not parent.standing.roles.get(contribution.member, 0) & ROLE_CONTRIBUTE:
            yield "which counts a contribution of somebody who is no member"
        if contribution.base_slot != base.here.slot:
            yield "which counts a contribution that is not of the slot that it says"
        staleness = parent.round - self._newest_common(base, parent).round
        if staleness > self._genesis.rule.max_staleness_rounds:
            yield f"which counts a contribution that is {staleness} rounds old"

    def _breaches_of_change(self, parent: Account, account: Account, checkpoint: Checkpoint) -> Iterator[str]:
        before, after = parent.standing.certifiers, account.standing.certifiers
        if not after:
            yield "which leaves no certifier"
        if before == after:
            return
        is_alone = len(before ^ after) == 1 and parent.standing.changed.slot <= parent.final.slot
        if not is_alone and not (self._is_stalled(parent, checkpoint) and before ^ after == account.standing.by_root):
            yield "which changes the certifiers too much or too soon"

    def _is_stalled(self, parent: Account, checkpoint: Checkpoint) -> bool:
        return checkpoint.slot - parent.final.slot >= self._genesis.timing.stall_slots

    def _newest_common(self, a: Account, b: Account) -> Account:
        while a is not b:
            if a.here.slot >= b.here.slot:
                a = self.accounts[a.parent]
            else:
                b = self.accounts[b.parent]
        return a

    def _count(
        self, parent: Account, votes: tuple[Vote, ...]
    ) -> tuple[Mark, Mark, Mark, Mapping[bytes, frozenset[bytes]], tuple[Vote, ...]]:
        """Justified, final, second, voters and strays after a child of `parent` that carries these votes."""
        targets: dict[bytes, Account] = {}
        ancestor = parent
        while ancestor.here.slot > parent.final.slot:
            targets[ancestor.here.checkpoint] = ancestor
            ancestor = self.accounts[ancestor.parent]
        voters = {target: parent.voters[target] for target in targets if target in parent.voters}
        strays, touched = [], set()
        for vote in votes:
            target, before = targets.get(vote.target), voters.get(vote.target, frozenset())
            if target is None or vote.voter in before or not _is_valid(vote, target):
                strays.append(vote)
            else:
                voters[vote.target] = before | {vote.voter}
                touched.add(vote.target)
        justified, finals = parent.justified, {parent.final, parent.second}
        for target in (targets[each] for each in touched):
            if _is_quorum(voters[target.here.checkpoint], target):
                justified = max(justified, target.here)
                if target.justified.slot + 1 == target.here.slot:
                    finals.add(target.justified)
        final, second, *_ = [*sorted(finals, reverse=True), min(finals)]
        return justified, final, second, voters, tuple(strays)

    def _set_at(self, mark: Mark, retired: Mapping[bytes, int]) -> frozenset[bytes]:
        certifiers = self.accounts[mark.checkpoint].standing.certifiers
        gone = {key for key in certifiers if retired.get(key, -1) > mark.slot} if retired else ()
        return certifiers.difference(gone)


def _is_valid(vote: Vote, target: Account) -> bool:
    source = Mark(slot=vote.source_slot, checkpoint=vote.source)
    is_of_set = vote.voter in target.sets[0] or vote.voter in target.sets[1]
    return source == target.justified and vote.target_slot == target.here.slot and is_of_set


def _is_quorum(voters: Set[bytes], target: Account) -> bool:
    return all(3 * len(certifiers & voters) > 2 * len(certifiers) for certifiers in target.sets)


def _digest(parent_digest: bytes, checkpoint: Checkpoint) -> bytes:
    if not checkpoint.accepted:
        return parent_digest
    ids = tuple(accepted.contribution.id for accepted in checkpoint.accepted)
    return digest_after(parent_digest, ids, tuple(accepted.weight for accepted in checkpoint.accepted))


def _enact(standing: Standing, checkpoint: Checkpoint) -> Standing:
    """What the records and the evidence of a checkpoint change."""
    if not checkpoint.records and not checkpoint.evidence:
        return replace(standing, by_root=frozenset())
    roles, shut_out, certifiers = dict(standing.roles), set(standing.shut_out), set(standing.certifiers)
    by_root: set[bytes] = set()
    for record in checkpoint.records:
        author = record.public_key
        match MESSAGE_OF_TYPE[record.type].FromString(record.payload):
            case wire.Admission() as admission:
                roles[author] = roles.get(author, 0) | admission.roles
            case wire.TakeUp() if roles.get(author, 0) & ROLE_CERTIFY:
                certifiers.add(author)
            case wire.Leave() as leave:
                certifiers.discard(author)
                if not leave.certifier_role_only:
                    roles.pop(author, None)
            case wire.Revocation() as revocation:
                by_root |= certifiers & {revocation.subject}
                certifiers.discard(revocation.subject)
                roles.pop(revocation.subject, None)
                shut_out.add(revocation.subject)
            case wire.Retirement() as retirement:
                by_root |= certifiers & {retirement.certifier}
                certifiers.discard(retirement.certifier)
            case wire.Readmission() as readmission:
                roles[readmission.member] = readmission.roles
                shut_out.discard(readmission.member)
    for piece in checkpoint.evidence:
        roles.pop(piece.accused, None)
        certifiers.discard(piece.accused)
        shut_out.add(piece.accused)
    is_changed = certifiers != standing.certifiers
    return Standing(
        roles=roles,
        shut_out=frozenset(shut_out),
        certifiers=frozenset(certifiers),
        changed=Mark(slot=checkpoint.slot, checkpoint=checkpoint.id) if is_changed else standing.changed,
        by_root=frozenset(by_root),
    )
