"""One node in virtual time: carries out what its round machine asks, on a disk that can fail at any write.

Signing, membership, votes, fork choice and proposals are the real ones. Two things are stood in for,
because the machine never looks inside them: a delta is a hash, and merging is hashing.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fullrank_protocol import round_io
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.chain import Mark
from fullrank_protocol.codec import CODEC_PACKED
from fullrank_protocol.contribution import make_contribution
from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.errors import Rule
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.membership import make_take_up
from fullrank_protocol.round import restore, step_all
from fullrank_protocol.round_state import RoundState, new_state
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import make_evidence, make_refusal, make_vote
from fullrank_protocol.wire import objects_pb2 as wire

if TYPE_CHECKING:
    from simulation.world import World

LISTEN_MS = 10_000
"""How long a restarted certifier listens for its own earlier votes, as the daemon does."""

MAX_REPEATED_VOTES = 16
"""Newest own votes sent again at a start, as the daemon does."""

BLOB_TIMEOUT_MS = 1_000
"""After this, a blob that nobody serves counts as unavailable for now."""

BASE_DIGEST = bytes(32)


Arrival = tuple[int, "SimulatedNode | None", Envelope | bytes]
"""In which life of the node it was sent or asked for, by whom, and a message or the id of a contribution."""


class Killed(Exception):  # noqa: N818 - not an error: an event of the simulation
    """The node died at a durable write."""


@dataclass
class Disk:
    """What survives a kill.

    Attributes:
        objects: Envelopes with their slots, in order of arrival; `store` adds them.
        ids_of_slot: Their ids by slot.
        votes: The durable vote record.
        believed: Checkpoints taken by a snapshot.
        adopted: The root's choice that the owner adopted.
        blobs: Ids of the deltas here.
        num_writes: Durable writes so far.
    """

    objects: dict[bytes, tuple[Envelope, int]] = field(default_factory=dict)
    ids_of_slot: dict[int, list[bytes]] = field(default_factory=dict)
    votes: list[Envelope] = field(default_factory=list)
    verdicts: dict[bytes, bool] = field(default_factory=dict)
    believed: set[bytes] = field(default_factory=set)
    adopted: bytes | None = None
    blobs: set[bytes] = field(default_factory=set)
    num_writes: int = 0

    def store(self, envelope: Envelope, slot: int) -> None:
        """Keep an object that is not here yet."""
        self.objects[envelope.id] = (envelope, slot)
        self.ids_of_slot.setdefault(slot, []).append(envelope.id)


class SimulatedNode:
    """A runner of one round machine.

    Attributes:
        skew_ms: How far this node's clock is ahead of the world's.
        paused_until_ms: Stopped like a process under SIGSTOP until then.
        kill_after_writes: Durable writes until the node dies; None for never.
        torn: The write at which it dies is lost.
        disk_full: Every durable write fails, and the node dies of it.
    """

    is_honest = True

    def __init__(self, world: "World", number: int, *, certifies: bool = True, trains: bool = True) -> None:
        self.world = world
        self.number = number
        self.key: SigningKey = key_of(number)
        self.certifies = certifies
        self.trains = trains
        self.disk = Disk()
        self.is_up = False
        self.life = 0
        self.skew_ms = 0
        self.paused_until_ms = 0
        self.kill_after_writes: int | None = None
        self.torn = False
        self.disk_full = False
        self.finals: list[bytes] = []
        self.alarms: list[round_io.Alarm] = []
        self.state: RoundState
        self._events: deque[round_io.Event] = deque()
        self._draining = False
        self._due: dict[int, list[Arrival]] = {}

    # ---- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or go on from the disk after a kill."""
        self.is_up = True
        self.life += 1
        self.kill_after_writes = None
        self._events.clear()
        self.state = new_state(
            self.world.genesis,
            key=self.key.public_key,
            base_digest=BASE_DIGEST,
            wants_certify=self.certifies,
            trains=self.trains,
        )
        stored = [envelope for envelope, _ in self.disk.objects.values()]
        restore(
            self.state,
            iter([*stored, *self.disk.votes]),
            self.disk.verdicts,
            self.now_ms(),
            believed=frozenset(self.disk.believed),
            adopted=self.disk.adopted,
        )
        if self.state.own_votes:
            self.state.listen_until_ms = self.now_ms() + LISTEN_MS
        for vote in self.disk.votes[-MAX_REPEATED_VOTES:]:
            self.world.broadcast(self, vote)
        self.world.note(f"{self} starts")
        self._tick(self.life)
        self._compare_inventories(self.life)

    def kill(self) -> None:
        """Lose everything but the disk."""
        if self.is_up:
            self.world.note(f"{self} dies")
        self.is_up = False
        self._events.clear()

    def now_ms(self) -> int:
        """What this node's clock shows."""
        return self.world.now_ms + self.skew_ms

    def later(self, delay_ms: int, act: Callable[[], None]) -> None:
        """Do something in this life of the node only; a stopped process does it when it goes on."""
        life = self.life

        def run() -> None:
            if not self.is_up or self.life != life:
                return
            if self.paused_until_ms > self.world.now_ms:
                self.world.at(self.paused_until_ms - self.world.now_ms, run)
            else:
                act()

        self.world.at(delay_ms, run)

    def __str__(self) -> str:
        return f"node {self.number}"

    def _tick(self, life: int) -> None:
        if self.life == life:
            self.feed(round_io.Tick())
            self.later(self.world.tick_ms, lambda: self._tick(life))

    # ---- events in -------------------------------------------------------------------------------

    def feed(self, *events: round_io.Event) -> None:
        """Hand the machine events and carry its actions out; those may cause further events."""
        if not self.is_up:
            return
        self._events.extend(events)
        if self._draining:
            return
        self._draining = True
        try:
            while self._events:
                batch = list(self._events)
                self._events.clear()
                self.world.num_events += len(batch)
                _, actions = step_all(self.state, batch, self.now_ms())
                for action in actions:
                    self._carry_out(action)
        except Killed:
            self.kill()
        finally:
            self._draining = False
        self.world.checker.observe(self)

    def receive(self, envelope: Envelope) -> None:
        """An object of our own, or one that a test hands in."""
        self.feed(round_io.ObjectReceived(envelope=envelope))

    def expect(self, delay_ms: int, sender: "SimulatedNode | None", arrival: Envelope | bytes) -> None:
        """A message, or without a sender a delta of a contribution, arrives after a while.

        What arrives in the same quantum of time is taken in together.
        """
        quantum = self.world.quantum_ms
        at_ms = ((self.world.now_ms + delay_ms) // quantum + 1) * quantum
        if (due := self._due.get(at_ms)) is None:
            due = self._due[at_ms] = []
            self.world.at(at_ms - self.world.now_ms, lambda: self._take_in(at_ms))
        due.append((self.life, sender, arrival))

    def _take_in(self, at_ms: int) -> None:
        if self.is_up and self.paused_until_ms > self.world.now_ms:
            self.world.at(self.paused_until_ms - self.world.now_ms, lambda: self._take_in(at_ms))
            return
        due = self._due.pop(at_ms)
        if not self.is_up:
            return
        events: list[round_io.Event] = []
        for life, sender, arrival in due:
            if isinstance(arrival, Envelope):
                if arrival.id not in self.state.known and (sender is None or self.world.reaches(sender, self)):
                    events.append(round_io.ObjectReceived(envelope=arrival))
            elif life == self.life and (candidate := self.state.candidates.get(arrival)) is not None:
                blob = candidate.contribution.blob.id
                self.disk.blobs.add(blob)
                rule = self.world.faulty_blobs.get(blob)
                detail = "" if rule is None else "is faulty"
                events.append(round_io.DeltaChecked(contribution_id=arrival, rule=rule, detail=detail))
        if events:
            self.feed(*events)

    def _compare_inventories(self, life: int) -> None:
        """Ask one neighbour for what is missing here, as the daemon's exchange does."""
        if self.life != life:
            return
        self.later(self.world.compare_ms, lambda: self._compare_inventories(life))
        others = [node for node in self.world.nodes if node is not self and self.world.can_ask(self, node)]
        if others:
            other = self.world.random.choice(others)
            missing = other.missing_for(self)
            delay = self.world.delay() + self.world.delay()

            def take() -> None:
                self.feed(*(round_io.ObjectReceived(envelope=envelope) for envelope in missing), round_io.Synced())

            self.later(delay, take)

    def missing_for(self, asker: "SimulatedNode") -> list[Envelope]:
        """The chain that the asker lacks, then other objects of recent slots."""
        known = asker.state.known
        found: dict[bytes, Envelope] = {}
        theirs, mine = asker.state.tree, self.state.tree
        if mine.head().id not in theirs.nodes and mine.head().slot > theirs.head().slot + 1:
            for node in mine.chain(mine.head().id, above_slot=theirs.final.slot):
                assert node.checkpoint is not None
                found[node.checkpoint.id] = node.checkpoint.envelope
        for slot in sorted(self.disk.ids_of_slot):
            if slot >= theirs.final.slot - 4:
                for object_id in self.disk.ids_of_slot[slot]:
                    if object_id not in known:
                        found[object_id] = self.disk.objects[object_id][0]
        return [envelope for envelope in found.values() if self.serves(envelope, asker)]

    def serves(self, envelope: Envelope, asker: "SimulatedNode") -> bool:
        """Whether the node gives an object to a neighbour that asks; an honest one always does."""
        return True

    def serves_blob(self, blob: bytes, asker: "SimulatedNode") -> bool:
        """The same for a delta."""
        return blob in self.disk.blobs

    # ---- actions out -----------------------------------------------------------------------------

    def _write(self, write: Callable[[], None]) -> None:
        """Something durable happens; the node may die right before or after it."""
        if self.disk_full:
            self.world.note(f"{self} finds its disk full")
            raise Killed
        if self.kill_after_writes is not None:
            self.kill_after_writes -= 1
            if self.kill_after_writes < 0:
                if not self.torn:
                    write()
                raise Killed
        self.disk.num_writes += 1
        write()

    def _carry_out(self, action: round_io.Action) -> None:  # noqa: C901 - one flat table
        swarm = self.world.genesis.swarm
        match action:
            case round_io.Keep(envelope=envelope, slot=slot):
                self.keep(envelope, slot)
            case round_io.Drop():
                self.world.checker.dropped(self, action)
            case round_io.FetchObjects(ids=ids):
                self.world.fetch(self, ids)
            case round_io.CheckDelta():
                self._check_delta(action)
            case round_io.Merge():
                self.later(self.world.delay(), lambda: self.feed(self.merge(action)))
            case round_io.SignCheckpoint(checkpoint=message):
                self.publish_checkpoint(message)
            case round_io.CastVote():
                self.cast_vote(action)
            case round_io.SignRefusal(checkpoint=checkpoint, rule=rule, detail=detail):
                self.receive(make_refusal(self.key, swarm=swarm, checkpoint=checkpoint, rule=rule, detail=detail))
            case round_io.SignEvidence(first=first, second=second):
                self.world.checker.accused(self, action)
                self.receive(make_evidence(self.key, swarm=swarm, one=first, other=second))
            case round_io.SignTakeUp():
                self.receive(make_take_up(self.key, swarm=swarm, issued_at_ms=self.now_ms()))
            case round_io.Verified(checkpoint=checkpoint, believed=True):
                self._write(lambda: self.disk.believed.add(checkpoint))
            case round_io.Verified(checkpoint=checkpoint, holds=holds):
                self.world.checker.verified(self, action)
                self._write(lambda: self.disk.verdicts.update({checkpoint: holds}))
            case round_io.Finalised(final=final):
                self.finals.append(final.checkpoint)
                self._write(lambda: None)
            case round_io.Train():
                self.later(max(action.deadline_ms - self.now_ms(), 0), lambda: self._trained(action))
            case round_io.Alarm():
                self.alarms.append(action)
                self.world.note(f"{self} raises the alarm")
            case round_io.Settled():
                self._write(lambda: setattr(self.disk, "adopted", self.state.adopting))
                self.world.note(f"{self} goes on from the root's choice")
            case round_io.Adopt():
                self._write(lambda: None)

    def keep(self, envelope: Envelope, slot: int) -> None:
        """Store durably, then pass on."""
        is_new = envelope.id not in self.disk.objects
        if is_new:
            self._write(lambda: self.disk.store(envelope, slot))
        if self.world.relays or envelope.public_key == self.key.public_key:
            self.world.broadcast(self, envelope)

    def publish_checkpoint(self, message: wire.Checkpoint) -> None:
        """Sign a checkpoint and take it in; the machine asks to keep it, which passes it on."""
        self.receive(seal(self.key, swarm=self.world.genesis.swarm, type=wire.CHECKPOINT, message=message))

    def cast_vote(self, action: round_io.CastVote) -> None:
        """Record durably, then let the signature leave; a node that dies right after the record sends it later."""
        vote = self.signed_vote(action.source, action.target)

        def record() -> None:
            self.disk.votes.append(vote)
            self.world.checker.voted(self, action.source, action.target)

        self._write(record)
        self.receive(vote)

    def signed_vote(self, source: Mark, target: Mark) -> Envelope:
        """The vote as it travels."""
        return make_vote(
            self.key,
            swarm=self.world.genesis.swarm,
            source=source.checkpoint,
            source_slot=source.slot,
            target=target.checkpoint,
            target_slot=target.slot,
        )

    def _check_delta(self, action: round_io.CheckDelta) -> None:
        blob, contribution_id = action.blob.id, action.contribution.id
        if blob not in self.disk.blobs and not self.world.has_provider(self, blob, action.contribution.member):
            unavailable = round_io.DeltaUnavailable(contribution_id=contribution_id)
            self.later(BLOB_TIMEOUT_MS, lambda: self.feed(unavailable))
            return

        self.expect(self.world.delay() + self.world.transfer_ms, None, contribution_id)

    def merge(self, action: round_io.Merge) -> round_io.Merged | round_io.MergeFailed:
        """Weights by staleness; the digest is a hash over the parent's and everything added."""
        if any(entry.contribution.blob.id not in self.disk.blobs for entry in action.entries):
            return round_io.MergeFailed(key=action.key, rule=None, detail="a blob is lost")
        weights = tuple(Scaled.of(1.0 / (len(action.entries) * (1 + entry.staleness))) for entry in action.entries)
        parent_digest = self.state.tree.state(action.key.parent).model_digest or BASE_DIGEST
        return round_io.Merged(
            key=action.key,
            weights=weights,
            update_norm=Scaled.of(1.0),
            model_digest=digest_after(parent_digest, action.key.contribution_ids, weights),
        )

    def _trained(self, action: round_io.Train) -> None:
        envelope = self.contribution(action)
        self.world.checker.trained(self, envelope)
        self.receive(envelope)
        self.feed(round_io.TrainingEnded(base=action.base.checkpoint, produced=True))

    def contribution(self, action: round_io.Train, *, faulty: Rule | None = None) -> Envelope:
        """A delta on the disk and its signed manifest."""
        seed = self.key.public_key + action.base.checkpoint + self.life.to_bytes(4, "little") + bytes([faulty or 0])
        blob = BlobRef(id=hashlib.sha256(seed).digest(), num_bytes=100)
        self.disk.blobs.add(blob.id)
        if faulty is not None:
            self.world.faulty_blobs[blob.id] = faulty
        return make_contribution(
            self.key,
            swarm=self.world.genesis.swarm,
            base_checkpoint=action.base.checkpoint,
            base_slot=action.base.slot,
            blob=blob,
            codec=CODEC_PACKED,
            num_tokens=1000,
            num_steps=10,
            loss_first_micro=2,
            loss_last_micro=1,
            created_at_ms=self.now_ms(),
        )


def key_of(number: int) -> SigningKey:
    """The key of the node with this number."""
    return SigningKey.from_seed(hashlib.sha256(b"simulated node" + number.to_bytes(4, "little")).digest())


def digest_after(parent_digest: bytes, contribution_ids: tuple[bytes, ...], weights: tuple[Scaled, ...]) -> bytes:
    """The stand-in for exact arithmetic: any difference in parent, deltas or weights gives another digest."""
    hasher = hashlib.sha256(parent_digest)
    for contribution_id, weight in zip(contribution_ids, weights, strict=True):
        hasher.update(contribution_id + weight.mantissa.to_bytes(2, "little") + (weight.exponent + 512).to_bytes(2))
    return hasher.digest()
