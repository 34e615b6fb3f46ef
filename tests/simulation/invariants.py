"""What must hold whatever happens, checked after every event and only where something changed.

The checker sees all nodes at once and is told what they do. It keeps its own account of the chain of
final checkpoints and of who voted for what, and trusts no node's own view of either.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.splits import Kept, Splits

from fullrank_protocol import round_io
from fullrank_protocol.chain import Mark
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire

if TYPE_CHECKING:
    from simulation.node import SimulatedNode
    from simulation.world import World


class Violation(AssertionError):  # noqa: N818 - reads as what it is
    """Something happened that must never happen."""


@dataclass(frozen=True, slots=True)
class Account:
    """The checker's own books after one checkpoint that an honest node has recomputed."""

    digest: bytes
    applied: frozenset[bytes]
    pairs: frozenset[tuple[bytes, bytes]]


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
        self._final_of: dict[int, tuple[int, Mark]] = {}
        self._votes: dict[int, list[tuple[Mark, Mark]]] = {}
        self._accounts = {world.genesis.swarm: Account(bytes(32), frozenset(), frozenset())}
        self._honest_keys: set[bytes] = set()

    # ---- told by the nodes -----------------------------------------------------------------------

    def observe(self, node: "SimulatedNode") -> None:
        """After every event: the node's final checkpoint only grows, and no two nodes contradict each other."""
        if not node.is_honest or not node.is_up:
            return
        final = node.state.tree.final
        life, before = self._final_of.get(node.number, (node.life, final))
        if (life, final) == (node.life, before) and node.number in self._final_of:
            return
        self._final_of[node.number] = (node.life, final)
        if life == node.life and final.slot < before.slot and not self.expects_conflicts:
            self._fail(f"{node} went back from final slot {before.slot} to {final.slot}")
        self._extend_final_chain(node, final)

    def voted(self, node: "SimulatedNode", source: Mark, target: Mark) -> None:
        """A certifier's signature is about to exist: it must not offend against any earlier one."""
        if not node.is_honest:
            return
        earlier = self._votes.setdefault(node.number, [])
        for old_source, old_target in earlier:
            if (old_source, old_target) == (source, target):
                continue
            doubles = old_target.slot == target.slot
            surrounds = source.slot < old_source.slot and old_target.slot < target.slot
            surrounded = old_source.slot < source.slot and target.slot < old_target.slot
            if doubles or surrounds or surrounded:
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
            self._open_account(node, checkpoint)
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
        """No final contribution is lost; returns how many honest contributions are final, of how many made."""
        tip = self._accounts[self.final_chain[-1].checkpoint]
        for mark in self.final_chain:
            account = self._accounts.get(mark.checkpoint)
            if account is not None and not account.applied <= tip.applied:
                self._fail(f"accepted and final work of slot {mark.slot} was lost")
        kept = sum(contribution_id in tip.applied for contribution_id in self.trained_by_honest)
        return kept, len(self.trained_by_honest)

    def kept_of_splits(self) -> list[Kept]:
        """What is kept of the lighter side's training, for every partition that has healed."""
        tip = self._accounts[self.final_chain[-1].checkpoint]
        return self.splits.kept({mark.checkpoint: mark.slot for mark in self.final_chain}, tip.applied)

    # ---- inside ----------------------------------------------------------------------------------

    def _extend_final_chain(self, node: "SimulatedNode", final: Mark) -> None:
        top = self.final_chain[-1]
        if final.checkpoint in self._final_ids:
            return
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

    def _open_account(self, node: "SimulatedNode", checkpoint: Checkpoint) -> None:
        """Recompute what a checkpoint does from the checkpoint alone."""
        if checkpoint.id in self._accounts:
            return
        parent = self._accounts[checkpoint.parent]
        applied, pairs = set(parent.applied), set(parent.pairs)
        for accepted in checkpoint.accepted:
            contribution = accepted.contribution
            pair = (contribution.member, contribution.base_checkpoint)
            if contribution.id in applied or pair in pairs:
                self._fail(f"{node} accepts slot {checkpoint.slot}, which counts a contribution a second time")
            if contribution.blob.id in self.world.faulty_blobs:
                self._fail(f"{node} accepts slot {checkpoint.slot}, which holds a faulty delta")
            applied.add(contribution.id)
            pairs.add(pair)
        digest = _digest(parent.digest, checkpoint)
        if digest != checkpoint.model_digest:
            self._fail(f"{node} accepts slot {checkpoint.slot}, whose digest is wrong")
        self._accounts[checkpoint.id] = Account(digest, frozenset(applied), frozenset(pairs))

    def _is_honest(self, key: bytes) -> bool:
        node = self.world.node_of(key)
        return node is not None and node.is_honest

    def _fail(self, text: str) -> None:
        self.world.note(f"VIOLATION: {text}")
        raise Violation(f"at slot {self.world.slot}: {text}")


def _digest(parent_digest: bytes, checkpoint: Checkpoint) -> bytes:
    from simulation.node import digest_after

    if not checkpoint.accepted:
        return parent_digest
    ids = tuple(accepted.contribution.id for accepted in checkpoint.accepted)
    weights: tuple[Scaled, ...] = tuple(accepted.weight for accepted in checkpoint.accepted)
    return digest_after(parent_digest, ids, weights)
