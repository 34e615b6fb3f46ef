"""The clock, the network and the nodes of a simulated swarm: one seed, no real time, no real input or output."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from simulation.invariants import Checker
from simulation.node import SimulatedNode, key_of
from swarms import fixed_rule, small_training

from fullrank_protocol import genesis_defaults
from fullrank_protocol.codec import CODEC_PACKED
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.genesis import Genesis, create_genesis
from fullrank_protocol.wire import objects_pb2 as wire

START_MS = 1_760_000_000_000
WINDOW_MS = 10_000
LARGE = 8
"""From this many nodes on, time is coarser and authors alone pass their objects on."""

CONNECTION_MS = 20_000
"""To a process that stands still for longer, messages are lost: its connections break."""

__all__ = ["START_MS", "WINDOW_MS", "Network", "World", "key_of", "make_genesis"]


def make_genesis(*, founders: int, window_ms: int = WINDOW_MS, stall_slots: int = 64) -> Genesis:
    """A swarm whose first nodes are all founders and certifiers, and whose first is the root."""
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
        timing=wire.Timing(slot_window_ms=window_ms, grace_ms=window_ms // 10, stall_slots=stall_slots),
        training=small_training(),
        rule=fixed_rule(),
        limits=genesis_defaults.default_limits(),
        membership=wire.MembershipPolicy(
            policy=wire.INVITE, root_keys=[keys[0].public_key], root_threshold=1, founders=public
        ),
    )
    return create_genesis(keys[0], message)


@dataclass
class Network:
    """How messages fare now.

    Attributes:
        loss: Share of messages that vanish.
        duplicates: Share of messages that come twice.
        max_delay_ms: Longest time a message takes; whatever is shorter may overtake.
        groups: Group by node number; empty when everybody reaches everybody.
        blocked: (from, to) pairs of one-way trouble.
    """

    loss: float = 0.0
    duplicates: float = 0.0
    max_delay_ms: int = 300
    groups: dict[int, int] = field(default_factory=dict)
    blocked: set[tuple[int, int]] = field(default_factory=set)


class World:
    """Everything there is."""

    def __init__(self, genesis: Genesis, *, seed: int, size: int = 0) -> None:
        self.genesis = genesis
        self.random = random.Random(seed)
        self.now_ms = genesis.created_at_ms
        self.nodes: list[SimulatedNode] = []
        self.network = Network()
        self.faulty_blobs: dict[bytes, Rule] = {}
        self.transfer_ms = 0
        self.num_events = 0
        self.relays = size < LARGE
        self.quantum_ms = 50 if size < LARGE else 200
        self.tick_ms = 500 if size < LARGE else 1_000
        self.compare_ms = 2_000 if size < LARGE else 5_000
        self.story: list[tuple[int, str]] | None = None
        self.checker = Checker(self)
        self._by_key: dict[bytes, SimulatedNode] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # ---- time ------------------------------------------------------------------------------------

    def at(self, delay_ms: int, act: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._queue, (self.now_ms + max(delay_ms, 1), next(self._order), act))

    def delay(self) -> int:
        """Milliseconds that something takes."""
        return 5 + int(self.random.random() * (self.network.max_delay_ms - 4))

    def run(self, slots: float) -> None:
        """Let time pass."""
        end_ms = self.now_ms + int(slots * self.genesis.timing.slot_window_ms)
        while self._queue and self._queue[0][0] <= end_ms:
            self.now_ms, _, act = heapq.heappop(self._queue)
            act()
        self.now_ms = end_ms

    @property
    def slot(self) -> int:
        """The slot that is running by the world's clock."""
        return self.genesis.slot_at(self.now_ms)

    def note(self, text: str) -> None:
        """A line of the story, where one is told."""
        if self.story is not None:
            self.story.append((self.now_ms - self.genesis.created_at_ms, text))

    # ---- nodes -----------------------------------------------------------------------------------

    def add(
        self, number: int, *, certifies: bool = True, trains: bool = True, kind: type[SimulatedNode] = SimulatedNode
    ) -> SimulatedNode:
        """A new node, started."""
        node = kind(self, number, certifies=certifies, trains=trains)
        self.nodes.append(node)
        self._by_key[node.key.public_key] = node
        node.start()
        return node

    def node_of(self, key: bytes) -> SimulatedNode | None:
        """The node with that key, if it is one of ours."""
        return self._by_key.get(key)

    def honest(self) -> Iterable[SimulatedNode]:
        """Nodes that keep to the protocol."""
        return (node for node in self.nodes if node.is_honest)

    # ---- network ---------------------------------------------------------------------------------

    def partition(self, *groups: Sequence[SimulatedNode]) -> None:
        """Only nodes of one group reach each other from now on; nodes named nowhere reach nobody."""
        self.split({node.number: group for group, nodes in enumerate(groups, 1) for node in nodes})

    def split(self, groups: dict[int, int]) -> None:
        """The same by number: the group of each node."""
        self.network.groups = groups
        self.checker.splits.begin(groups, slot=self.slot, nodes=self.nodes)

    def unite(self) -> None:
        """Every group reaches every other again."""
        self.checker.splits.end(slot=self.slot, nodes=self.nodes)
        self.network.groups = {}

    def heal(self) -> None:
        """Everybody reaches everybody, quickly."""
        self.unite()
        self.network = Network()
        self.transfer_ms = 0

    def reaches(self, sender: SimulatedNode, receiver: SimulatedNode) -> bool:
        """Whether a message can pass now, in this direction."""
        network = self.network
        if not network.groups and not network.blocked:
            return True
        if network.groups:
            mine = network.groups.get(sender.number)
            if mine is None or mine != network.groups.get(receiver.number):
                return False
        return (sender.number, receiver.number) not in network.blocked

    def can_ask(self, asker: SimulatedNode, other: SimulatedNode) -> bool:
        """Whether a question gets an answer."""
        return (
            other.is_up
            and other.paused_until_ms <= self.now_ms
            and self.reaches(asker, other)
            and self.reaches(other, asker)
        )

    def send(self, sender: SimulatedNode, receiver: SimulatedNode, envelope: Envelope) -> None:
        """One message on one link, with all that can happen to it."""
        if not receiver.is_up or envelope.id in receiver.state.known or not self.reaches(sender, receiver):
            return
        if receiver.paused_until_ms > self.now_ms + CONNECTION_MS:
            return
        network = self.network
        if network.loss and self.random.random() < network.loss:
            return
        receiver.expect(self.delay(), sender, envelope)
        if network.duplicates and self.random.random() < network.duplicates:
            receiver.expect(self.delay() + self.delay(), sender, envelope)

    def broadcast(self, sender: SimulatedNode, envelope: Envelope) -> None:
        """Push an object to everybody who can be reached."""
        for node in self.nodes:
            if node is not sender:
                self.send(sender, node, envelope)

    def fetch(self, asker: SimulatedNode, ids: tuple[bytes, ...]) -> None:
        """Objects by id, each from one neighbour that has it."""
        first = self.random.randrange(len(self.nodes))
        order = [node for node in self.nodes[first:] + self.nodes[:first] if node is not asker]
        for object_id in ids:
            for node in order:
                found = node.disk.objects.get(object_id)
                if found is not None and self.can_ask(asker, node) and node.serves(found[0], asker):
                    self.at(self.delay(), lambda node=node, found=found: self.send(node, asker, found[0]))  # type: ignore[misc]
                    break

    def has_provider(self, asker: SimulatedNode, blob: bytes, author: bytes) -> bool:
        """Whether its author or some other neighbour serves this delta to the asker now."""
        first = self._by_key.get(author)
        if first is not None and first is not asker and self._gives(first, asker, blob):
            return True
        return any(self._gives(node, asker, blob) for node in self.nodes if node is not asker)

    def _gives(self, node: SimulatedNode, asker: SimulatedNode, blob: bytes) -> bool:
        return node.serves_blob(blob, asker) and self.can_ask(asker, node)
