"""Many round machines in one process, with a virtual clock, one seed and an in-memory network.

Signing, membership, votes, fork choice and proposals are the real ones. Two things are stood in for,
because the machine never looks inside them: a delta is a hash, and merging is hashing.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fullrank_protocol import genesis_defaults, round_io
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.codec import CODEC_PACKED
from fullrank_protocol.contribution import make_contribution
from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.genesis import Genesis, create_genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.membership import make_take_up
from fullrank_protocol.round import restore, step
from fullrank_protocol.round_state import RoundState, new_state
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import make_evidence, make_refusal, make_vote
from fullrank_protocol.wire import objects_pb2 as wire

START_MS = 1_760_000_000_000
WINDOW_MS = 10_000
TICK_MS = 250


def key_of(number: int) -> SigningKey:
    """The key of the node with this number."""
    return SigningKey.from_seed(hashlib.sha256(b"simulated node" + number.to_bytes(4, "little")).digest())


def make_genesis(*, founders: int, window_ms: int = WINDOW_MS) -> Genesis:
    """A swarm whose first nodes are all founders and certifiers."""
    keys = [key_of(number) for number in range(founders)]
    public = sorted(key.public_key for key in keys)
    module = wire.Module(name="layer.weight", kind=wire.LINEAR, out_features=32, in_features=32)
    tensor = wire.TensorHash(name="layer.weight", shape=[32, 32], sha256=bytes(32))
    message = wire.Genesis(
        name="simulated",
        rule_version=1,
        created_at_ms=START_MS,
        nonce=bytes(16),
        base=wire.BaseModel(tensors=[tensor]),
        modules=[module],
        max_rank=16,
        codecs=[CODEC_PACKED],
        timing=wire.Timing(slot_window_ms=window_ms, grace_ms=window_ms // 10),
        training=genesis_defaults.default_training(),
        rule=genesis_defaults.default_rule(),
        limits=genesis_defaults.default_limits(),
        membership=wire.MembershipPolicy(
            policy=wire.INVITE, root_keys=[keys[0].public_key], root_threshold=1, founders=public
        ),
    )
    return create_genesis(keys[0], message)


@dataclass
class Disk:
    """What survives a kill."""

    objects: dict[bytes, Envelope] = field(default_factory=dict)
    votes: list[Envelope] = field(default_factory=list)
    verdicts: dict[bytes, bool] = field(default_factory=dict)


class SimulatedNode:
    """A runner of one round machine, in virtual time."""

    def __init__(self, world: "World", key: SigningKey, *, certifies: bool = True, trains: bool = True) -> None:
        self.world = world
        self.key = key
        self.certifies = certifies
        self.trains = trains
        self.disk = Disk()
        self.is_up = False
        self.life = 0
        self.finals: list[bytes] = []
        self.dropped: list[round_io.Drop] = []
        self.alarms: list[round_io.Alarm] = []
        self.state: RoundState

    def start(self) -> None:
        """Begin, or go on from the disk after a kill."""
        self.is_up = True
        self.life += 1
        self.state = new_state(
            self.world.genesis,
            key=self.key.public_key,
            base_digest=bytes(32),
            wants_certify=self.certifies,
            trains=self.trains,
        )
        restore(
            self.state, iter([*self.disk.objects.values(), *self.disk.votes]), self.disk.verdicts, self.world.now_ms
        )
        self._tick(self.life)

    def kill(self) -> None:
        """Lose everything but the disk."""
        self.is_up = False

    def feed(self, event: round_io.Event) -> None:
        """Hand the machine an event and carry its actions out."""
        if not self.is_up:
            return
        _, actions = step(self.state, event, self.world.now_ms)
        for action in actions:
            self._carry_out(action)

    def receive(self, envelope: Envelope) -> None:
        """An object from a neighbour."""
        self.feed(round_io.ObjectReceived(envelope=envelope))

    def later(self, delay_ms: int, act: Callable[[], None]) -> None:
        """Do something in this life of the node only."""
        life = self.life
        self.world.at(delay_ms, lambda: act() if self.is_up and self.life == life else None)

    def _tick(self, life: int) -> None:
        if self.is_up and self.life == life:
            self.feed(round_io.Tick())
            self.world.at(TICK_MS, lambda: self._tick(life))

    def _carry_out(self, action: round_io.Action) -> None:  # noqa: C901
        swarm, now_ms = self.world.genesis.swarm, self.world.now_ms
        match action:
            case round_io.Keep(envelope=envelope):
                self.disk.objects[envelope.id] = envelope
                self.world.broadcast(self, envelope)
            case round_io.Drop():
                self.dropped.append(action)
            case round_io.FetchObjects(ids=ids):
                self.world.fetch(self, ids)
            case round_io.CheckDelta(contribution=contribution):
                self.later(
                    self.world.delay(), lambda: self.feed(round_io.DeltaChecked(contribution_id=contribution.id))
                )
            case round_io.Merge(key=key):
                self.later(self.world.delay(), lambda: self.feed(self._merged(key)))
            case round_io.SignCheckpoint(checkpoint=message):
                self.receive(seal(self.key, swarm=swarm, type=wire.CHECKPOINT, message=message))
            case round_io.CastVote(source=source, target=target):
                vote = make_vote(
                    self.key,
                    swarm=swarm,
                    source=source.checkpoint,
                    source_slot=source.slot,
                    target=target.checkpoint,
                    target_slot=target.slot,
                )
                self.disk.votes.append(vote)
                self.receive(vote)
            case round_io.SignRefusal():
                self.receive(
                    make_refusal(
                        self.key, swarm=swarm, checkpoint=action.checkpoint, rule=action.rule, detail=action.detail
                    )
                )
            case round_io.SignEvidence(first=first, second=second):
                self.receive(make_evidence(self.key, swarm=swarm, one=first, other=second))
            case round_io.SignTakeUp():
                self.receive(make_take_up(self.key, swarm=swarm, issued_at_ms=now_ms))
            case round_io.Verified(checkpoint=checkpoint, holds=holds):
                self.disk.verdicts[checkpoint] = holds
            case round_io.Finalised(final=final):
                self.finals.append(final.checkpoint)
            case round_io.Train():
                self.later(max(action.deadline_ms - now_ms, 0), lambda: self._trained(action))
            case round_io.Alarm():
                self.alarms.append(action)
            case round_io.Adopt():
                pass

    def _merged(self, key: round_io.MergeKey) -> round_io.Merged:
        digest = hashlib.sha256(key.parent + b"".join(key.contribution_ids)).digest()
        weight = Scaled.of(1.0 / len(key.contribution_ids))
        return round_io.Merged(
            key=key, weights=(weight,) * len(key.contribution_ids), update_norm=Scaled.of(1.0), model_digest=digest
        )

    def _trained(self, action: round_io.Train) -> None:
        blob = BlobRef(id=hashlib.sha256(self.key.public_key + action.base.checkpoint).digest(), num_bytes=100)
        self.receive(
            make_contribution(
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
                created_at_ms=self.world.now_ms,
            )
        )
        self.feed(round_io.TrainingEnded(base=action.base.checkpoint, produced=True))


class World:
    """The clock, the network and the nodes."""

    def __init__(self, genesis: Genesis, *, seed: int) -> None:
        self.genesis = genesis
        self.random = random.Random(seed)
        self.now_ms = START_MS
        self.nodes: list[SimulatedNode] = []
        self.groups: dict[bytes, int] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(self, key: SigningKey, *, certifies: bool = True, trains: bool = True) -> SimulatedNode:
        """A new node, started."""
        node = SimulatedNode(self, key, certifies=certifies, trains=trains)
        self.nodes.append(node)
        node.start()
        self._compare_inventories(node)
        return node

    def at(self, delay_ms: int, act: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._queue, (self.now_ms + max(delay_ms, 1), next(self._order), act))

    def delay(self) -> int:
        """Milliseconds that something takes."""
        return self.random.randint(5, 300)

    def run(self, slots: int) -> None:
        """Let time pass."""
        end_ms = self.now_ms + slots * self.genesis.timing.slot_window_ms
        while self._queue and self._queue[0][0] <= end_ms:
            self.now_ms, _, act = heapq.heappop(self._queue)
            act()
        self.now_ms = end_ms

    def partition(self, *groups: list[SimulatedNode]) -> None:
        """Only nodes of one group reach each other from now on; nodes named nowhere reach nobody."""
        self.groups = {node.key.public_key: number for number, group in enumerate(groups, 1) for node in group}

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self.groups = {}

    def connected(self, a: SimulatedNode, b: SimulatedNode) -> bool:
        """Whether two nodes reach each other now."""
        if not self.groups:
            return True
        mine = self.groups.get(a.key.public_key)
        return mine is not None and mine == self.groups.get(b.key.public_key)

    def broadcast(self, sender: SimulatedNode, envelope: Envelope) -> None:
        """Push an object to everybody who can be reached."""
        for node in self.nodes:
            if node is not sender and node.is_up and self.connected(sender, node):
                self.at(self.delay(), lambda node=node: node.receive(envelope))  # type: ignore[misc]

    def fetch(self, asker: SimulatedNode, ids: tuple[bytes, ...]) -> None:
        """Objects by id, from whoever has them."""
        for node in self.nodes:
            if node is not asker and node.is_up and self.connected(asker, node):
                for object_id in ids:
                    if (envelope := node.disk.objects.get(object_id)) is not None:
                        self.at(2 * self.delay(), lambda envelope=envelope: asker.receive(envelope))  # type: ignore[misc]

    def _compare_inventories(self, node: SimulatedNode) -> None:
        neighbours = [n for n in self.nodes if n is not node and n.is_up and self.connected(n, node)]
        if node.is_up and neighbours:
            other = self.random.choice(neighbours)
            for envelope in list(other.disk.objects.values()):
                if envelope.id not in node.state.known:
                    node.receive(envelope)
        self.at(2_000, lambda: self._compare_inventories(node))
