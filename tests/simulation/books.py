"""The checker's own books: what a chain of checkpoints says, read from the checkpoints alone.

Written from protocol sections 5 and 8, and shares no rule with `chain` and `fork_choice`; what records change, and
whether they may, is in `standing`. The swarm is an invited one.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from simulation.node import digest_after
from simulation.standing import Standing, enact

from fullrank_protocol.chain import Mark
from fullrank_protocol.checkpoint import Checkpoint, contributions
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.membership import ALL_ROLES, ROLE_CONTRIBUTE
from fullrank_protocol.vote import Vote


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
            roles=dict.fromkeys(founders, ALL_ROLES),
            shut_out=frozenset(),
            certifiers=founders,
            changed=here,
            invites={},
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
        standing = enact(parent.standing, checkpoint, self._genesis)
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
        for why in account.standing.intruders:
            yield f"which admits somebody who {why}"
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
