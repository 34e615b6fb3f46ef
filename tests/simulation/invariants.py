"""What must hold whatever happens, checked as it happens and only where something changed.

The checker sees all nodes at once and is told what they do. It keeps its own books (`books`) of every chain, of the
chain of final checkpoints and of who voted for what, and trusts no node's own view of any of them.
"""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from simulation.books import Account, Books
from simulation.splits import Kept, Splits

from fullrank_protocol import round_io
from fullrank_protocol.chain import Mark
from fullrank_protocol.checkpoint import contributions
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.vote import Vote
from fullrank_protocol.wire import objects_pb2 as wire

if TYPE_CHECKING:
    from simulation.node import SimulatedNode
    from simulation.world import World


class Violation(AssertionError):  # noqa: N818 - reads as what it is
    """Something happened that must never happen."""


MAX_EXCLUSION_SLOTS = 16
"""After healing, certifiers known to have offended are excluded one by one, with at most as many slots between.

Mostly it takes up to four: each waits until the change of the certifiers before it is final.
"""


class Checker:
    """Watches one world.

    Attributes:
        expects_conflicts: With a third or more of hostile certifiers, conflicts are allowed; only evidence and
            alarms are demanded then.
        trained_by_honest: Ids of the contributions that honest nodes made.
        conflicts: Pairs of final checkpoints that contradict each other.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self.expects_conflicts = False
        self.trained_by_honest: dict[bytes, int] = {}
        self.conflicts: list[tuple[bytes, bytes]] = []
        self.accused_keys: set[bytes] = set()
        self.splits = Splits()
        self.final_chain: list[Mark] = [Mark(slot=0, checkpoint=world.genesis.swarm)]
        self._final_ids = {world.genesis.swarm}
        self._books = Books(world.genesis)
        self._final_of: dict[int, Mark] = {}
        self._votes: dict[int, list[tuple[Mark, Mark]]] = {}
        self._verified: set[bytes] = set()

    # ---- told by the nodes -----------------------------------------------------------------------

    def observe(self, node: "SimulatedNode") -> None:
        """What is final has a quorum and only grows, and no two nodes contradict each other.

        Told whenever a node has dealt with the events that came together, and with those that they caused.
        """
        if not node.is_honest or not node.is_up:
            return
        final = node.state.tree.final
        before = self._final_of.get(node.number)
        if final == before:
            return
        self._final_of[node.number] = final
        if before is not None and final.slot < before.slot and not self.expects_conflicts:
            self._fail(f"{node} went back from final slot {before.slot} to {final.slot}")
        if final.checkpoint not in self._final_ids:
            self._check_quorum(node, final)
            self._extend_final_chain(node, final)

    def cast(self, voter: bytes, source: Mark, target: Mark) -> None:
        """A vote exists, whoever signed it."""
        self._books.cast(voter, source, target)

    def voted(self, node: "SimulatedNode", source: Mark, target: Mark) -> None:
        """A certifier's signature is about to exist: it must not offend against any earlier one."""
        self.cast(node.key.public_key, source, target)
        if not node.is_honest:
            return
        earlier = self._votes.setdefault(node.number, [])
        for old_source, old_target in earlier:
            if (old_source, old_target) == (source, target):
                continue
            if _is_offence((source, target), (old_source, old_target)):
                self._fail(
                    f"{node} votes {source.slot}>{target.slot} after {old_source.slot}>{old_target.slot}: an offence"
                )
        earlier.append((source, target))

    def accused(self, node: "SimulatedNode", action: round_io.SignEvidence) -> None:
        """Evidence is made against the hostile only."""
        self.accused_keys.add(action.first.voter)
        if self._is_honest(action.first.voter) and node.is_honest:
            self._fail(f"{node} finds evidence against an honest certifier")

    def verified(self, node: "SimulatedNode", action: round_io.Verified) -> None:
        """What an honest node holds for right is right; an honest proposer's checkpoint is never refused."""
        if not node.is_honest:
            return
        checkpoint = node.state.tree.nodes[action.checkpoint].checkpoint
        assert checkpoint is not None
        if action.holds:
            self._check_checkpoint(node, checkpoint.id)
        elif self._is_honest(checkpoint.proposer):
            self._fail(f"{node} refuses an honest checkpoint of slot {checkpoint.slot}: it {action.detail}")

    def dropped(self, node: "SimulatedNode", action: round_io.Drop) -> None:
        """Honest checkpoints and votes break no rule."""
        envelope = action.envelope
        if not node.is_honest or action.rule is None or not self._is_honest(envelope.public_key):
            return
        if envelope.type in (wire.CHECKPOINT, wire.VOTE) and action.rule is not Rule.PARENT:
            self._fail(f"{node} drops an honest {envelope.type} by rule {action.rule.name}: it {action.detail}")

    def trained(self, node: "SimulatedNode", envelope: Envelope) -> None:
        """An honest node has made a delta."""
        if node.is_honest:
            self.trained_by_honest[envelope.id] = self.world.slot
            self.splits.trained(node, envelope.id)

    # ---- asked at the end ------------------------------------------------------------------------

    def check_agreement(self, *, final_slot: int) -> None:
        """After healing: honest nodes have one head, and what came since `final_slot` is final again."""
        if found := self.disagreement(final_slot=final_slot):
            self._fail(found)

    def check_heads(self) -> None:
        """All honest nodes have one head."""
        if found := self.different_heads():
            self._fail(found)

    def disagreement(self, *, final_slot: int) -> str:
        """What `check_agreement` would fail with; empty when all is well."""
        for node in self._honest():
            found = node.state.tree.final.slot
            if found < final_slot:
                return f"{node} has final slot {found}, required is {final_slot}"
        return self.different_heads()

    def different_heads(self) -> str:
        """Who has another head than the others, and so another digest; empty when nobody has."""
        nodes = self._honest()
        longest = max((node.state.tree for node in nodes), key=lambda tree: tree.head().slot)
        head = longest.head()
        chain = {state.id for state in (head, longest.lookup(head.parent or b"")) if state is not None}
        others = [node for node in nodes if node.state.tree.head().id not in chain]
        if others:  # A node may be one checkpoint behind the newest: a message is on its way.
            return f"{others[0]} has head slot {others[0].state.tree.head().slot}, others have {head.slot}"
        return ""

    def _honest(self) -> "list[SimulatedNode]":
        return [node for node in self.world.honest() if node.is_up]

    def check_kept(self) -> tuple[int, int]:
        """No final contribution is lost: every honest head holds whatever was accepted at any final checkpoint.

        Returns:
            How many honest contributions are final, of how many made.
        """
        final = self._books.accounts[self.final_chain[-1].checkpoint].applied
        for node in self._honest():
            if lost := final - self._head(node).applied:
                self._fail(f"the head of {node} has lost {len(lost)} contributions that were final")
        return len(final & self.trained_by_honest.keys()), len(self.trained_by_honest)

    def offenders(self) -> frozenset[bytes]:
        """Hostile certifiers of whom some honest node knows two valid votes that are an offence."""
        keys = {node.key.public_key for node in self.world.nodes if not node.is_honest}
        return frozenset(key for key in keys if any(_knows_offence(node, key) for node in self._honest()))

    def check_excluded(self, offenders: frozenset[bytes], *, since_slot: int) -> None:
        """Nothing but changes of the certifiers since a slot keeps these offenders from being excluded."""
        if found := self.at_large(offenders, since_slot=since_slot):
            self._fail(found)

    def at_large(self, offenders: frozenset[bytes], *, since_slot: int) -> str:
        """What `check_excluded` would fail with; empty when all is well."""
        last_slot = max(since_slot, self.world.slot - MAX_EXCLUSION_SLOTS)
        for node in self._honest():
            standing = self._head(node).standing
            left = offenders - standing.shut_out
            unknown = left - {piece.accused for piece in node.state.evidence.values()}
            if unknown:
                return f"{node} has no evidence against {len(unknown)} certifiers, whose offence is known"
            if left and standing.changed.slot <= last_slot:
                return f"{node} follows a chain without the exclusion of {len(left)} certifiers, whose offence is known"
        return ""

    def kept_of_splits(self) -> list[Kept]:
        """What is kept of the lighter side's training, for every partition that has healed."""
        tip = self._books.accounts[self.final_chain[-1].checkpoint]
        return self.splits.kept({mark.checkpoint: mark.slot for mark in self.final_chain}, tip.applied)

    # ---- inside ----------------------------------------------------------------------------------

    def _extend_final_chain(self, node: "SimulatedNode", final: Mark) -> None:
        top = self.final_chain[-1]
        new: list[Mark] = []
        state = node.state.tree.state(final.checkpoint)
        while state.slot > top.slot:
            new.append(state.here)
            assert state.parent is not None
            state = node.state.tree.state(state.parent)
        if state.id != top.checkpoint:
            self.conflicts.append((top.checkpoint, final.checkpoint))
            if not self.expects_conflicts:
                self._fail(f"{node} holds slot {final.slot} for final, which contradicts final slot {top.slot}")
            return
        self.final_chain.extend(reversed(new))
        self._final_ids.update(mark.checkpoint for mark in new)

    def _check_quorum(self, node: "SimulatedNode", final: Mark) -> None:
        """Votes that were cast make a new final checkpoint final."""
        children = (self._account(node, child) for child in node.state.tree.nodes[final.checkpoint].children)
        if not any(self._books.finalises(child, final) for child in children):
            self._fail(f"{node} holds slot {final.slot} for final without a quorum for it")

    def _check_checkpoint(self, node: "SimulatedNode", checkpoint_id: bytes) -> None:
        """What an honest node has recomputed keeps every rule, by the books of its chain."""
        if checkpoint_id in self._verified:
            return
        self._verified.add(checkpoint_id)
        self._account(node, checkpoint_id)
        checkpoint = node.state.tree.nodes[checkpoint_id].checkpoint
        assert checkpoint is not None
        for contribution in contributions(checkpoint):
            self._account(node, contribution.base_checkpoint)
        breaches = list(self._books.breaches(checkpoint))
        if any(accepted.contribution.blob.id in self.world.faulty_blobs for accepted in checkpoint.accepted):
            breaches.append("which holds a faulty delta")
        if any(self._is_honest(piece.accused) for piece in checkpoint.evidence):
            breaches.append("which excludes an honest certifier")
        if breaches:
            self._fail(f"{node} accepts slot {checkpoint.slot}, {breaches[0]}")

    def _head(self, node: "SimulatedNode") -> Account:
        return self._account(node, node.state.tree.head().id)

    def _account(self, node: "SimulatedNode", checkpoint_id: bytes) -> Account:
        """The account of a checkpoint that a node knows; opened with those before it, where nobody verified them."""
        unopened = []
        while checkpoint_id not in self._books.accounts:
            checkpoint = node.state.tree.nodes[checkpoint_id].checkpoint
            assert checkpoint is not None
            unopened.append(checkpoint)
            checkpoint_id = checkpoint.parent
        for checkpoint in reversed(unopened):
            checkpoint_id = self._books.open(checkpoint).here.checkpoint
        return self._books.accounts[checkpoint_id]

    def _is_honest(self, key: bytes) -> bool:
        node = self.world.node_of(key)
        return node is not None and node.is_honest

    def _fail(self, text: str) -> None:
        self.world.note(f"VIOLATION: {text}")
        raise Violation(f"at slot {self.world.slot}: {text}")


def _is_offence(one: tuple[Mark, Mark], other: tuple[Mark, Mark]) -> bool:
    """Whether two different votes, each (source, target), break the rule for certifiers."""
    (inner_source, inner), (outer_source, outer) = sorted((one, other), key=lambda vote: vote[1].slot)
    return inner.slot == outer.slot or outer_source.slot < inner_source.slot


def _knows_offence(node: "SimulatedNode", voter: bytes) -> bool:
    """In order of targets, an offence shows between neighbours."""
    votes = [known.votes[voter] for known in node.state.tree.nodes.values() if voter in known.votes]
    votes.sort(key=lambda vote: vote.target_slot)
    pairs: Iterable[tuple[Vote, Vote]] = itertools.pairwise(votes)
    return any(a.target_slot == b.target_slot or b.source_slot < a.source_slot for a, b in pairs)
