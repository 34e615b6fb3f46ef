"""Certifiers that break the rules wherever that could hurt, together less than a third (protocol section 14).

Each runs the real machine, so it knows all that an honest node knows, and lies on top of it. What it does at
each chance is drawn from the world's seed; the kinds of mischief are methods, so that a story can name them.
"""

from typing import TYPE_CHECKING

from simulation.node import SimulatedNode

from fullrank_protocol import round_io
from fullrank_protocol.chain import Mark
from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.errors import Rule
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import make_evidence
from fullrank_protocol.wire import objects_pb2 as wire

if TYPE_CHECKING:
    from simulation.world import World

MISCHIEF_MS = 2_500
"""Time between two chances for mischief outside its own turns."""

STYLES = ("votes", "proposals", "withholding", "everything")
"""What a hostile node lies about. Who casts votes that offend is soon excluded, so most must lie otherwise."""


class HostileNode(SimulatedNode):
    """Lies with probability; tells everybody something else."""

    is_honest = False

    def __init__(self, world: "World", number: int, *, certifies: bool = True, trains: bool = True) -> None:
        super().__init__(world, number, certifies=certifies, trains=trains)
        self.withheld: dict[bytes, frozenset[int]] = {}
        self.style = world.random.choice(STYLES)

    def start(self) -> None:
        super().start()
        self._plan_mischief(self.life)

    def _plan_mischief(self, life: int) -> None:
        if self.life == life:
            self.later(self.world.random.randint(1, 2 * MISCHIEF_MS), lambda: self._mischief(life))

    def _mischief(self, life: int) -> None:
        chance = self.world.random.random()
        if chance < 0.45:
            if self.style in ("votes", "everything"):
                self._vote_for_anything()
        elif chance < 0.7:
            if self.style in ("proposals", "everything"):
                self._propose_anything()
        elif chance < 0.8:
            self._accuse_falsely()
        self._plan_mischief(life)

    # ---- withholding -----------------------------------------------------------------------------

    def serves(self, envelope: Envelope, asker: SimulatedNode) -> bool:
        """Gives its own objects only to those whom it chose."""
        chosen = self.withheld.get(envelope.id)
        return chosen is None or asker.number in chosen

    def serves_blob(self, blob: bytes, asker: SimulatedNode) -> bool:
        chosen = self.withheld.get(blob)
        return super().serves_blob(blob, asker) and (chosen is None or asker.number in chosen)

    def some_nodes(self) -> frozenset[int]:
        """A random part of the swarm."""
        share = self.world.random.random()
        return frozenset(node.number for node in self.world.nodes if self.world.random.random() < share)

    def whisper(self, envelope: Envelope, chosen: frozenset[int]) -> None:
        """Send an object to some only."""
        self.withheld[envelope.id] = chosen
        self.disk.store(envelope, self.world.slot)
        for node in self.world.nodes:
            if node is not self and node.number in chosen:
                self.world.send(self, node, envelope)

    def keep(self, envelope: Envelope, slot: int) -> None:
        if envelope.public_key == self.key.public_key and envelope.id in self.withheld:
            return
        super().keep(envelope, slot)

    # ---- votes -----------------------------------------------------------------------------------

    def signed_vote(self, source: Mark, target: Mark) -> Envelope:
        """Nothing holds it back once it is signed."""
        self.world.checker.cast(self.key.public_key, source, target)
        return super().signed_vote(source, target)

    def cast_vote(self, action: round_io.CastVote) -> None:
        """Sometimes votes as it should, sometimes in secret, sometimes late or not at all."""
        chance = self.world.random.random()
        if chance < 0.4 or self.style in ("votes", "proposals"):
            super().cast_vote(action)
        elif chance < 0.7:
            vote = self.signed_vote(action.source, action.target)
            self.whisper(vote, self.some_nodes())
        elif chance < 0.85:
            self.later(
                self.world.random.randint(5_000, 40_000),
                lambda: self.receive(self.signed_vote(action.source, action.target)),
            )

    def _vote_for_anything(self) -> None:
        """Double votes, surround votes, votes for rubbish: any targets, with the source that fits or another."""
        tree = self.state.tree
        states = [node.state for node in tree.nodes.values() if node.checkpoint is not None]
        if not states:
            return
        for _ in range(self.world.random.randint(1, 3)):
            target = self.world.random.choice(states[-8:])
            source = target.justified
            if self.world.random.random() < 0.2:
                source = self.world.random.choice([tree.root, *states]).here
            if source.slot >= target.slot:
                continue
            vote = self.signed_vote(source, target.here)
            self.world.note(f"{self} votes {source.slot}>{target.slot} for anything")
            if self.world.random.random() < 0.5:
                self.whisper(vote, self.some_nodes())
            else:
                self.world.broadcast(self, vote)

    def _accuse_falsely(self) -> None:
        """Evidence out of two honest votes that are no offence, which must be refused."""
        tree = self.state.tree
        votes = [vote for node in list(tree.nodes.values())[-4:] for vote in tree.votes_for(node.state.id)]
        pairs = [(a, b) for a in votes for b in votes if a.id < b.id and a.voter == b.voter]
        if pairs:
            one, other = self.world.random.choice(pairs)
            message = wire.Evidence(first=one.envelope.encode(), second=other.envelope.encode())
            evidence = seal(self.key, swarm=self.world.genesis.swarm, type=wire.EVIDENCE, message=message)
            self.world.broadcast(self, evidence)

    # ---- checkpoints -----------------------------------------------------------------------------

    def publish_checkpoint(self, message: wire.Checkpoint) -> None:
        """At its turn: honest, silent, several different ones for different nodes, or rubbish."""
        chance = self.world.random.random()
        if chance < 0.25 or self.style == "votes":
            super().publish_checkpoint(message)
        elif chance < 0.4:
            self.world.note(f"{self} keeps silent at its turn")
        elif chance < 0.7:
            self._equivocate(message)
        else:
            self._publish_rubbish(message)

    def _propose_anything(self) -> None:
        """Out of turn, on any parent, for any slot."""
        states = [node.state for node in self.state.tree.nodes.values()][-6:]
        parent = self.world.random.choice(states)
        slot = self.world.slot - self.world.random.choice([-1, 0, 1, 1, 2, 3])
        if slot <= parent.slot:
            return
        message = wire.Checkpoint(
            kind=wire.EMPTY,
            parent=parent.id,
            slot=slot,
            round=parent.round,
            model_digest=parent.model_digest or bytes(32),
            update_norm=Scaled(mantissa=0, exponent=0).to_wire(),
        )
        for _ in range(self.world.random.choice([1, 1, 2, 7])):
            message.model_digest = self.world.random.choice(
                [message.model_digest, message.model_digest, self.world.random.randbytes(32)]
            )
            self.world.note(f"{self} proposes out of turn for slot {slot} on slot {parent.slot}")
            self.whisper(self._sealed(message), self.some_nodes())

    def _equivocate(self, message: wire.Checkpoint) -> None:
        """One version with everything, others with less, each for some."""
        versions = [message]
        for _ in range(self.world.random.choice([1, 1, 5])):
            other = wire.Checkpoint()
            other.CopyFrom(message)
            carried = list(other.votes)
            del other.votes[:]
            other.votes.extend(vote for vote in carried if self.world.random.random() < 0.5)
            versions.append(other)
        self.world.note(f"{self} equivocates with {len(versions)} checkpoints of slot {message.slot}")
        for version in versions:
            envelope = self._sealed(version)
            if self.world.random.random() < 0.5:
                self.whisper(envelope, self.some_nodes())
            else:
                self.world.broadcast(self, envelope)

    def _publish_rubbish(self, message: wire.Checkpoint) -> None:
        """A wrong digest, weight, norm, round, kind, or votes that were never cast for an ancestor."""
        random = self.world.random
        what = random.choice(["digest", "weight", "norm", "round", "votes", "parent", "refused", "twice"])
        if what == "digest":
            message.model_digest = random.randbytes(32)
        elif what == "weight" and message.accepted:
            random.choice(message.accepted).weight.mantissa ^= 1
        elif what == "norm":
            message.update_norm.exponent += 1
        elif what == "round":
            message.round += 1
        elif what == "votes" and message.votes:
            message.votes.append(message.votes[0])
        elif what == "parent":
            message.parent = random.randbytes(32)
        elif what == "refused" and len(message.accepted) > 1:
            victim = message.accepted.pop()
            message.refused.add(contribution=victim.contribution, rule=Rule.ZERO_NORM, detail="is said to be faulty")
        elif what == "twice" and message.accepted:
            message.accepted.add().CopyFrom(message.accepted[-1])
        self.world.note(f"{self} proposes rubbish ({what}) for slot {message.slot}")
        envelope = self._sealed(message)
        self.world.broadcast(self, envelope)
        if self.style in ("votes", "everything"):
            self._vote_for_rubbish(message, envelope)

    def _vote_for_rubbish(self, message: wire.Checkpoint, envelope: Envelope) -> None:
        parent = self.state.tree.lookup(message.parent)
        if parent is not None and parent.justified.slot < message.slot:
            self.world.broadcast(
                self, self.signed_vote(parent.justified, Mark(slot=message.slot, checkpoint=envelope.id))
            )

    def _sealed(self, message: wire.Checkpoint) -> Envelope:
        return seal(self.key, swarm=self.world.genesis.swarm, type=wire.CHECKPOINT, message=message)

    # ---- deltas ----------------------------------------------------------------------------------

    def contribution(self, action: round_io.Train, *, faulty: Rule | None = None) -> Envelope:
        """Sound, faulty, or with a blob that only some can have."""
        chance = self.world.random.random()
        if chance < 0.3:
            faulty = Rule.ZERO_NORM
        envelope = super().contribution(action, faulty=faulty)
        if chance > 0.6:
            message = wire.Contribution.FromString(envelope.payload)
            self.withheld[message.blob.id] = self.some_nodes()
        return envelope

    def _carry_out(self, action: round_io.Action) -> None:
        if isinstance(action, round_io.SignEvidence) and action.first.voter == self.key.public_key:
            return  # Does not accuse itself.
        if isinstance(action, round_io.SignEvidence):
            self.receive(make_evidence(self.key, swarm=self.world.genesis.swarm, one=action.first, other=action.second))
            return
        super()._carry_out(action)
