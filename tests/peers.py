"""Real peers on loopback for tests: a p2pd each, in the test's own event loop."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from swarms import id_of, key_of

from fullrank_node.blob_store import BlobStore
from fullrank_node.network.limits import TransferLimits
from fullrank_node.network.peer import PeerNetwork
from fullrank_node.network.settings import LOOPBACK_LISTEN, NetworkSettings
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.identity import libp2p_identity_file
from fullrank_protocol.limits import CHUNK_BYTES
from fullrank_protocol.wire import peer_pb2

SWARM = id_of("swarm")

FAST = TransferLimits(
    open_timeout_s=3.0, header_timeout_s=3.0, idle_timeout_s=1.0, window_s=1.0, min_bytes_per_s=1 << 10
)
"""Nobody here is far away: who says nothing for a second is frozen."""


class Node:
    """A peer that remembers what it was asked and answers `Received` to everything."""

    def __init__(self, name: str, directory: Path, *, swarm: bytes = SWARM, **settings: Any) -> None:
        self.name = name
        self.asked: list[tuple[bytes, peer_pb2.Request]] = []
        self.changes: list[tuple[bytes, bool]] = []
        self.members: set[bytes] = set()  # Empty: this node treats everybody as a stranger, itself too.
        self.answer_with = peer_pb2.Response(received=peer_pb2.Received(num_new=7))
        home = directory / name
        home.mkdir(exist_ok=True)
        self.signing_key = key_of(name)
        identity = home / "identity.p2p"
        identity.write_bytes(libp2p_identity_file(self.signing_key.seed, self.signing_key.public_key))
        self.store = WatchedStore(home / "blobs")
        self.cache = home / "peers.json"
        given: dict[str, Any] = {"listen": LOOPBACK_LISTEN, "transfers": FAST, "dial_timeout_s": 3.0}
        given |= settings
        self.network = PeerNetwork(
            key=self.signing_key,
            swarm=swarm,
            identity_path=identity,
            inbound=self,
            settings=NetworkSettings(**given),
            peer_cache_path=self.cache,
            is_member=lambda key: key in self.members,
            on_peer=lambda key, connected: self.changes.append((key, connected)),
        )

    @property
    def key(self) -> bytes:
        return self.signing_key.public_key

    @property
    def p2pd_pid(self) -> int:
        generation = self.network._generation
        assert generation is not None
        return int(generation.p2p._child.pid)

    def connected_to(self, *others: "Node") -> bool:
        return {other.key for other in others} <= {info.key for info in self.network.peers()}

    # What the network asks of a node.

    async def handle(self, peer: bytes, request: peer_pb2.Request) -> peer_pb2.Response:
        self.asked.append((peer, request))
        return self.answer_with

    def blobs(self) -> "WatchedStore":
        return self.store


class WatchedStore(BlobStore):
    """Remembers which chunks were read, and can be told to lie."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.chunks_read: list[int] = []
        self.spoil: Callable[[int, bytes], bytes] = lambda _, data: data
        self.hashes: Sequence[bytes] | None = None

    def header(self, blob_id: bytes) -> tuple[int, list[bytes]]:
        num_bytes, hashes = super().header(blob_id)
        return num_bytes, hashes if self.hashes is None else list(self.hashes)

    def read_chunk(self, blob_id: bytes, index: int) -> bytes:
        self.chunks_read.append(index)
        _, hashes = BlobStore.header(self, blob_id)
        assert index < len(hashes)
        with self.path(blob_id).open("rb") as file:
            file.seek(index * CHUNK_BYTES)
            return self.spoil(index, file.read(CHUNK_BYTES))


def some_bytes(num_bytes: int, name: str = "blob") -> bytes:
    """Bytes that do not repeat from chunk to chunk."""
    return hashlib.shake_128(name.encode()).digest(num_bytes)


def put_blob(node: Node, *, num_bytes: int = 3 * CHUNK_BYTES + 5, name: str = "blob") -> BlobRef:
    """Puts a blob of four chunks into a node's store."""
    return node.store.put_bytes(some_bytes(num_bytes, name))


async def until(condition: Callable[[], Any], *, timeout_s: float = 20.0) -> None:
    """Returns as soon as `condition` holds; fails the test when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of several processes.
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """Starts nodes together and closes them all."""
    try:
        await asyncio.gather(*(node.network.start() for node in nodes))
        yield
    finally:
        await asyncio.gather(*(node.network.close() for node in nodes))


async def connect(node: Node, *others: Node) -> None:
    """Dials `others` from `node` and waits until both ends know."""
    for other in others:
        await node.network.connect(other.network.addresses()[0])
    await until(lambda: all(other.connected_to(node) for other in others))
