"""Runners of several nodes in one event loop: real stores, real workers, real merges; a network in memory, a set clock.

Time stands still until a test moves it, so a slot ends when everything is where the test wants it. Nobody trains:
a test signs the contributions and puts their blobs into the store of whoever serves them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chains import key
from peers import until
from swarms import genesis_message, id_of, key_of

from fullrank_node.api import control_pb2 as control
from fullrank_node.blob_store import BlobStore
from fullrank_node.child import ChildProcess
from fullrank_node.files import write_atomically
from fullrank_node.home import Home
from fullrank_node.masters import Masters
from fullrank_node.merger import Merger
from fullrank_node.model.master import MasterStore, manifest_digest
from fullrank_node.network.asking import check_response
from fullrank_node.network.interface import BlobStore as AnyBlobStore
from fullrank_node.network.interface import BlobUnavailable, Inbound, NetworkError, PeerInfo
from fullrank_node.network.limits import Traffic
from fullrank_node.restoring import restored_state
from fullrank_node.round_lines import contribution_line, switch_line
from fullrank_node.runner import Runner
from fullrank_node.store import Store
from fullrank_protocol.blob import BlobRef, blob_ref
from fullrank_protocol.chain import ChainState
from fullrank_protocol.codec import CODEC_PACKED, encode
from fullrank_protocol.contribution import make_contribution
from fullrank_protocol.delta import Delta, quantize_dense, quantize_low_rank
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import RejectError
from fullrank_protocol.genesis import Genesis, create_genesis
from fullrank_protocol.proposing import proposer_order
from fullrank_protocol.state import canonical_float32
from fullrank_protocol.wire import objects_pb2 as wire
from fullrank_protocol.wire import peer_pb2

SHAPES = {"a": (48, 40), "b": (24, 56), "c": (33,)}
"""Adapted tensors: two matrices and a vector."""


def make_genesis(
    *founders: str, policy: int = wire.INVITE, shapes: Mapping[str, tuple[int, ...]] = SHAPES, **limits: int
) -> Genesis:
    """A swarm over the three tensors, or others; slots take a second of the set clock."""
    message = genesis_message(founders=founders, policy=policy)
    del message.modules[:]
    del message.base.tensors[:]
    for name, shape in shapes.items():
        kind = wire.LINEAR if len(shape) == 2 else wire.DENSE
        message.base.tensors.add(name=name, shape=shape, sha256=id_of(name))
        message.modules.add(name=name, kind=kind, out_features=shape[0], in_features=[*shape, 1][1])
    for field, value in limits.items():
        setattr(message.limits, field, value)
    return create_genesis(key_of("ada"), message)


def some_delta(genesis: Genesis, name: str, *, rank: int = 2, seeded: bool = False, size: float = 0.01) -> Delta:
    """Random factors that depend on the name alone; `seeded` leaves A out (mode B)."""
    rng = np.random.default_rng(list(name.encode()))
    parts: list[Any] = []
    for module in genesis.modules:
        rows, columns = module.out_features, module.in_features
        if columns == 1:
            values = size * rng.normal(size=rows)
            parts.append(quantize_dense(module.name, values, bits=4, rng=rng, stochastic=True, limits=genesis.limits))
            continue
        b, a = size * rng.normal(size=(rows, rank)), None if seeded else rng.normal(size=(rank, columns))
        given: dict[str, Any] = {"bits_b": 4, "bits_a": 4, "scale": 0.5, "stochastic": True}
        parts.append(quantize_low_rank(module.name, b, a, rng=rng, limits=genesis.limits, **given))
    return Delta.of(parts)


class SetClock:
    """A clock that shows what the test set."""

    def __init__(self, now_ms: int) -> None:
        self.time_ms = now_ms

    def now_ms(self) -> int:
        return self.time_ms


class Hub:
    """Where networks in memory meet; everybody reaches everybody unless they are kept apart."""

    def __init__(self) -> None:
        self.networks: dict[bytes, MemoryNetwork] = {}
        self.alone: set[bytes] = set()

    def others(self, me: bytes) -> dict[bytes, "MemoryNetwork"]:
        """Whom a node reaches now, by key."""
        if me in self.alone:
            return {}
        return {other: network for other, network in self.networks.items() if other not in {me, *self.alone}}


class MemoryNetwork:
    """A node's connections to everybody in the hub; blobs travel chunk by chunk and are checked as usual."""

    def __init__(self, name: str, hub: Hub, inbound: Inbound) -> None:
        self.key = key(name)
        self.inbound = inbound
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.fetched: list[bytes] = []  # Blobs that came whole.
        self._hub = hub
        self._tasks: set[asyncio.Task[Any]] = set()
        hub.networks[self.key] = self

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        self._hub.networks.pop(self.key, None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_closed(self) -> None:
        """Never used here."""

    def addresses(self) -> list[str]:
        return []

    async def connect(self, address: str) -> bytes:
        raise NetworkError(f"{address} is no place in memory")

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(key=other) for other in self._hub.others(self.key)]

    def traffic(self) -> Traffic:
        return Traffic()

    def connection_errors(self) -> dict[str, str]:
        return {}

    def refusal(self) -> None:
        """Everybody in the hub is of this swarm."""

    async def request(self, peer: bytes, request: peer_pb2.Request, *, timeout_s: float) -> peer_pb2.Response:
        del timeout_s
        other = self._hub.others(self.key).get(peer)
        if other is None:
            raise NetworkError("nobody there")
        return check_response(await other.inbound.handle(self.key, request))

    async def broadcast(self, envelopes: Sequence[bytes]) -> None:
        offer = peer_pb2.Request(offer=peer_pb2.Offer(envelopes=envelopes))
        for other in self._hub.others(self.key).values():
            task = asyncio.get_running_loop().create_task(other.inbound.handle(self.key, offer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def fetch_blob(self, ref: BlobRef, *, providers: Sequence[bytes], blobs: AnyBlobStore) -> None:
        reasons: dict[bytes, str] = {}
        others = self._hub.others(self.key)
        for provider in dict.fromkeys([*providers, *others]):
            other = others.get(provider)
            if other is None:
                continue
            try:
                self._copy(ref, other, blobs)
            except KeyError:
                reasons[provider] = "does not have it"
            except RejectError as error:
                reasons[provider] = error.detail
            else:
                self.fetched.append(ref.id)
                return
        raise BlobUnavailable(f"nobody has blob {ref.id.hex()[:12]}: {'; '.join(reasons.values())}", reasons=reasons)

    def _copy(self, ref: BlobRef, other: "MemoryNetwork", blobs: AnyBlobStore) -> None:
        theirs = other.inbound.blobs()
        _, hashes = theirs.header(ref.id)
        writer = blobs.writer(ref, hashes)
        try:
            for index in writer.missing():
                writer.write_chunk(index, other.spoil(theirs.read_chunk(ref.id, index)))
            writer.finish()
        finally:
            writer.close()

    async def publish(self, kind: str, slot: int, envelope: Envelope) -> None:
        """There is no DHT in memory."""

    async def lookup(self, kind: str, slot: int) -> list[bytes]:
        del kind, slot
        return []


class LoopNode:
    """One node: its home, its worker, its runner."""

    def __init__(self, name: str, home: Home, genesis: Genesis, clock: SetClock, worker: ChildProcess, threads: int):
        self.name = name
        self.home = home
        self.genesis = genesis
        self.store = Store(home)
        masters = MasterStore(home.masters_dir)
        rng = np.random.default_rng(7)
        manifest = {}
        for module in genesis.modules:
            tensor = rng.normal(size=(module.out_features, module.in_features)).astype(np.float32)
            manifest[module.name] = masters.write(module.name, canonical_float32(tensor, name=module.name))
        self.store.put_manifest(genesis.swarm, manifest)
        merger = Merger(home=home, store=self.store, genesis=genesis, worker=worker, threads=threads)
        state = restored_state(
            genesis, self.store, key=key(name), base_digest=manifest_digest(manifest), now_ms=clock.now_ms()
        )
        self.runner = Runner(
            key=key_of(name),
            genesis=genesis,
            state=state,
            store=self.store,
            merger=merger,
            masters=Masters(store=self.store, merger=merger, files=masters),
            trainer=None,
            clock=clock,
        )
        self.network: MemoryNetwork
        self.life: asyncio.Task[None]

    @property
    def head(self) -> ChainState:
        return self.runner.state.tree.head()

    @property
    def blobs(self) -> BlobStore:
        return self.store.blobs

    async def offered(self, *envelopes: Envelope | bytes, by: str = "mallory") -> int:
        """What the node answers to a peer that offers these: how many were new to it."""
        data = [each if isinstance(each, bytes) else each.encode() for each in envelopes]
        request = peer_pb2.Request(offer=peer_pb2.Offer(envelopes=data))
        return (await self.runner.exchange.handle(key(by), request)).received.num_new

    def contribute(self, delta: Delta | bytes, *, base: ChainState | None = None, **fields: Any) -> Envelope:
        """Sign a contribution of this node with that delta, and hand it to the round machine."""
        data = delta if isinstance(delta, bytes) else encode(delta, self.genesis)
        self.blobs.put_bytes(data)
        envelope = self.contribution(data, base=base, **fields)
        self.runner.submit(envelope)
        return envelope

    def contribution(self, data: bytes, *, base: ChainState | None = None, **fields: Any) -> Envelope:
        """Sign a contribution with that blob, and nothing more."""
        base = base or self.head
        given: dict[str, Any] = {
            "base_checkpoint": base.id,
            "base_slot": base.slot,
            "blob": blob_ref(data),
            "codec": CODEC_PACKED,
            "num_tokens": 1000,
            "num_steps": 10,
            "loss_first_micro": 2_000_000,
            "loss_last_micro": 1_000_000,
            "created_at_ms": self.runner.clock.now_ms(),
        }
        return make_contribution(key_of(self.name), swarm=self.genesis.swarm, **(given | fields))

    def verdict(self, envelope: Envelope) -> tuple[str, str, str]:
        """What `history` on this node shows of a contribution: verdict, rule, detail."""
        for row in self.store.contributions(limit=1000):
            if row.contribution_id == envelope.id:
                line = contribution_line(row, self.runner)
                return line.verdict, line.rule, line.detail
        raise AssertionError("history does not show it")

    def left_branch(self) -> control.SwitchLine:
        """What `history` on this node shows of the one branch that it left."""
        (row,) = self.store.switches()
        return switch_line(row, self.runner)

    def is_ready(self, envelope: Envelope) -> bool:
        """Whether its delta is here and was judged."""
        candidate = self.runner.state.candidates.get(envelope.id)
        return candidate is not None and candidate.status.value in ("ready", "refused")


class LoopSwarm:
    """The nodes, and their common time. They share a worker process, and nothing that it is told."""

    def __init__(self, directory: Path, genesis: Genesis, worker: ChildProcess) -> None:
        self.genesis = genesis
        self.clock = SetClock(genesis.slot_start_ms(1))
        self.nodes: list[LoopNode] = []
        self.hub = Hub()
        self._directory = directory
        self._worker = worker

    @contextlib.asynccontextmanager
    async def node(self, name: str, *, threads: int = 1) -> AsyncIterator[LoopNode]:
        """A node that lives as long as the context; its home stays."""
        home = Home(self._directory / name)
        home.create()
        write_atomically(home.genesis_file, self.genesis.envelope.encode())
        node = LoopNode(name, home, self.genesis, self.clock, self._worker, threads)
        node.network = MemoryNetwork(name, self.hub, node.runner.exchange)
        node.runner.attach(node.network)
        node.life = asyncio.create_task(node.runner.run())
        await asyncio.sleep(0)  # It has begun.
        self.nodes.append(node)
        try:
            yield node
        finally:
            self.nodes.remove(node)
            node.life.cancel()
            await asyncio.gather(node.life, return_exceptions=True)
            await node.network.close()
            node.store.close()

    async def everywhere(self, *envelopes: Envelope) -> None:
        """Wait until every node has these contributions and has judged their deltas."""
        await until(lambda: all(node.is_ready(each) for node in self.nodes for each in envelopes))

    async def next_slot(self) -> ChainState:
        """End the slot, and wait until every node has the same new head and all have voted for it."""
        slot = self.genesis.slot_at(self.clock.time_ms)
        self.clock.time_ms = self.genesis.slot_end_ms(slot)
        await until(lambda: all(node.head.slot == slot for node in self.nodes))
        head = self.nodes[0].head
        await until(lambda: all(node.head == head and self._is_voted(node) for node in self.nodes))
        return head

    def turns(self, slot: int) -> list[LoopNode]:
        """The nodes in the order in which they may propose for a slot, a grace after each other."""
        order = proposer_order(self.nodes[0].head, swarm=self.genesis.swarm, slot=slot)
        return sorted(self.nodes, key=lambda node: order.index(key(node.name)))

    def _is_voted(self, node: LoopNode) -> bool:
        voters = {each.name for each in self.nodes if key(each.name) in node.head.newest_set}
        known = node.runner.state.tree.nodes[node.head.id].voters
        return {key(name) for name in voters} <= known


@contextlib.asynccontextmanager
async def loop_swarm(directory: Path, genesis: Genesis, *names: str) -> AsyncIterator[LoopSwarm]:
    """Nodes of these names, with 1, 2, 1, 2, ... threads for their merges."""
    async with contextlib.AsyncExitStack() as stack:
        swarm = LoopSwarm(directory, genesis, await stack.enter_async_context(ChildProcess("fullrank_node.worker")))
        for number, name in enumerate(names):
            await stack.enter_async_context(swarm.node(name, threads=1 + number % 2))
        yield swarm
