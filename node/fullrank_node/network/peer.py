"""A full peer: hivemind's p2pd and DHT node in the caller's own event loop (protocol section 11).

Puts the parts together; each decides one thing. hivemind, which brings torch, is imported by `start`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullrank_node.addresses import dialable, host_and_port
from fullrank_node.clock import Clock, SystemClock
from fullrank_node.errors import NodeError
from fullrank_node.network.asking import Stream, request_peer
from fullrank_node.network.blobs import BlobFetcher
from fullrank_node.network.board import Board
from fullrank_node.network.connections import Connections
from fullrank_node.network.discovery import Discovery
from fullrank_node.network.interface import (
    BlobStore,
    Inbound,
    NetworkError,
    OnPeer,
    PeerInfo,
    PeerUnreachable,
    RefusalOf,
    welcome,
)
from fullrank_node.network.limits import Traffic
from fullrank_node.network.loading import import_hivemind
from fullrank_node.network.outbox import Outboxes
from fullrank_node.network.peer_cache import PeerCache
from fullrank_node.network.publisher import lifetime_ms
from fullrank_node.network.serving import StreamServer, stream_protocol
from fullrank_node.network.settings import NetworkSettings
from fullrank_node.network.validator import DEFAULT_MAX_LIFETIME_MS, RecordRules
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.limits import PROTOCOL_VERSION
from fullrank_protocol.wire import peer_pb2

if TYPE_CHECKING:
    from fullrank_node.network.dht import IsMember
    from fullrank_node.network.supervisor import Generation, Supervisor

logger = logging.getLogger(__name__)

_GREETING_TIMEOUT_S = 10.0
_SAVE_EVERY_S = 10.0


class PeerNetwork:
    """This node among the peers of its swarm; implements `Network`."""

    def __init__(
        self,
        *,
        key: SigningKey,
        swarm: bytes,
        identity_path: Path,
        inbound: Inbound,
        clock: Clock | None = None,
        settings: NetworkSettings | None = None,
        peer_cache_path: Path | None = None,
        on_peer: OnPeer | None = None,
        is_member: "IsMember | None" = None,
        slot_now: Callable[[], int] | None = None,
        refusal_of: RefusalOf = welcome,
    ) -> None:
        """Initialises; `start` does the work.

        Args:
            key: This node's only key.
            swarm: The swarm it belongs to.
            identity_path: The same key as the 68-byte file that p2pd reads.
            inbound: Answers peers.
            clock: The node's clock; None: the machine's.
            settings: What the operator chose.
            peer_cache_path: JSON file of peers seen; None keeps none.
            on_peer: Told when a peer appears or vanishes.
            is_member: Whether a key is a member's, as far as this node knows; decides who may use the members'
                dictionaries on the DHT. None: not known.
            slot_now: The current slot; None while the genesis is not known.
            refusal_of: Why a peer is shut out now; None where it is welcome. Nothing is answered to it, or asked of it.
        """
        self._signing_key = key
        self._swarm = swarm
        self._identity_path = identity_path
        clock = clock or SystemClock()
        self._clock = clock
        self._settings = settings or NetworkSettings()
        self._on_peer = on_peer
        self._is_member = is_member
        window_ms = self._settings.slot_window_ms
        self._rules = RecordRules(
            swarm=swarm,
            clock=clock,
            max_lifetime_ms=lifetime_ms(window_ms) if window_ms else DEFAULT_MAX_LIFETIME_MS,
            slot_now=slot_now,
        )
        self._cache = PeerCache(peer_cache_path, own_key=key.public_key, max_pause_s=self._settings.max_backoff_s)
        self._traffic = Traffic()
        self._server = StreamServer(
            swarm=swarm,
            inbound=inbound,
            limits=self._settings.streams,
            on_alive=self._heard_from,
            traffic=self._traffic,
            refusal_of=refusal_of,
        )
        self._connections = Connections(
            cache=self._cache,
            settings=self._settings,
            clock=clock,
            dialer=lambda: self._generation.control if self._generation else None,
            greet=self._greet,
            spawn=self._spawn,
            on_peer=self._peer_changed,
            refusal_of=refusal_of,
            on_sick=lambda: self._supervisor.report_sick() if self._supervisor else None,
        )
        self._outboxes = Outboxes(self._ask, spawn=self._spawn)
        self._fetcher = BlobFetcher(
            own_key=key.public_key,
            open_stream=self._open_stream,
            prepare=self._prepare,
            connected=self._connections.quickest,
            limits=self._settings.transfers,
            traffic=self._traffic,
        )
        self._board = Board(
            own_key=key.public_key,
            swarm=swarm,
            clock=clock,
            slot_window_ms=window_ms,
            is_member=is_member,
            directory=lambda: self._generation.directory if self._generation else None,
        )
        self._supervisor: Supervisor | None = None
        self._group: asyncio.TaskGroup | None = None
        self._main: asyncio.Task[None] | None = None
        self._addresses: list[str] = []

    @property
    def key(self) -> bytes:
        """This node's public key."""
        return self._signing_key.public_key

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens and begins to look for peers; returns without waiting for one.

        Raises:
            NodeError: The port is taken, an address is wrong, or p2pd does not start.
        """
        for address in self._settings.bootstrap:
            self._add_bootstrap(address)
        supervisor, make_directory = await asyncio.to_thread(import_hivemind)
        self._supervisor = supervisor(
            identity_path=self._identity_path,
            settings=self._settings,
            ports=self._cache.ports,
            protocol=stream_protocol(self._swarm),
            handler=self._server.serve,
            make_directory=lambda p2p: make_directory(
                p2p,
                key=self._signing_key,
                swarm=self._swarm,
                rules=self._rules,
                is_member=self._is_member,
                client=self._settings.no_listen,
            ),
        )
        ready, go = asyncio.Event(), asyncio.Event()
        self._main = asyncio.create_task(self._run(self._supervisor, ready, go))
        await ready.wait()  # From its first moment p2pd may bring in streams, which need somewhere to live.
        try:
            generation = await self._supervisor.start()
        except BaseException:
            await self.close()
            raise
        self._note_addresses(generation)
        self._save_cache()
        go.set()
        logger.info("Listening at %s", ", ".join(self._addresses) or "no address: nobody can dial this node")

    async def close(self) -> None:
        """Leaves; nothing of the network is left running."""
        await self._server.close()
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait([self._main])
        self._connections.reset()
        if self._supervisor is not None:
            await self._supervisor.close()
            self._save_cache()
            self._supervisor = None

    async def wait_closed(self) -> None:
        """Returns when the network has been closed; raises what ended it if that was anything else."""
        if self._main is None:
            return
        await asyncio.wait([self._main])
        if not self._main.cancelled() and (error := self._main.exception()) is not None:
            raise error

    async def _run(self, supervisor: "Supervisor", ready: asyncio.Event, go: asyncio.Event) -> None:
        discovery = Discovery(
            key=self._signing_key,
            swarm=self._swarm,
            settings=self._settings,
            clock=self._clock,
            cache=self._cache,
            addresses=self.addresses,
            publish=self.publish,
            lookup=self.lookup,
            meet_again=lambda: self._board.meet_again(self._connections.quickest()),
            num_peers=lambda: len(self._connections.quickest()),
        )
        async with asyncio.TaskGroup() as group:
            self._group = group
            ready.set()
            await go.wait()
            group.create_task(supervisor.run(on_down=self._connections.reset, on_up=self._came_back))
            group.create_task(self._connections.run_polls())
            group.create_task(self._connections.run_dials())
            group.create_task(self._board.run())
            group.create_task(discovery.run())
            group.create_task(self._save_cache_often())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        if self._group is None:
            raise ValueError("the network has not been started")
        return self._group.create_task(work)

    # ---- peers -----------------------------------------------------------------------------------

    def addresses(self) -> list[str]:
        """Multiaddresses at which this node can be dialled; empty when nobody can."""
        return list(self._addresses)

    async def connect(self, address: str) -> bytes:
        """Connects to the peer at `address`; its key.

        Raises:
            NetworkError: Not an address, or nobody of this swarm answers there.
        """
        try:
            known = self._cache.add(address)
        except ValueError as error:
            raise PeerUnreachable(str(error)) from error
        if known is None:
            raise PeerUnreachable("this is our own address")
        await self._connections.connect(known)
        return known.key

    def peers(self) -> list[PeerInfo]:
        """Peers connected now that belong to this swarm and speak this version."""
        return self._connections.infos()

    def connection_errors(self) -> dict[str, str]:
        """Why there is no connection yet, per address that is being tried."""
        return self._cache.errors(connected=self._connections.quickest())

    def refusal(self) -> NetworkError | None:
        """Why to wait for nobody: all known peers are there, and of another swarm or version."""
        refusals, known = self._connections.refusals(), self._cache.keys()
        return next(iter(refusals.values())) if known and known <= refusals.keys() else None

    def banned(self) -> dict[bytes, str]:
        """Peers that sent wrong blob bytes in this session, and what was wrong."""
        return dict(self._fetcher.banned)

    # ---- asking and telling ----------------------------------------------------------------------

    async def request(self, peer: bytes, request: peer_pb2.Request, *, timeout_s: float) -> peer_pb2.Response:
        """Asks a peer; fills in version and swarm.

        Raises:
            PeerFailure: The peer refused; `code` says why.
            PeerUnreachable: No answer within `timeout_s`.
        """
        response = await request_peer(self._open_stream, peer, self._prepare(request), timeout_s=timeout_s)
        self._traffic.add(up=request.ByteSize(), down=response.ByteSize())
        self._connections.alive(peer)
        return response

    async def broadcast(self, envelopes: Sequence[bytes]) -> None:
        """Offers objects to every connected peer; returns at once."""
        self._outboxes.put(envelopes)

    async def fetch_blob(self, ref: BlobRef, *, providers: Sequence[bytes], blobs: BlobStore) -> None:
        """Brings a blob into `blobs`, from `providers` first and then from any connected peer that has it.

        Raises:
            BlobUnavailable: Nobody had it; what has arrived is kept.
            NodeError: The disk is full.
        """
        await self._fetcher.fetch(ref, providers=providers, blobs=blobs)

    async def publish(self, kind: str, slot: int, envelope: Envelope) -> None:
        """Puts a hint of this node's own on the DHT and renews it while it matters; returns at once.

        Raises:
            ValueError: Not a kind, not a type that belongs under it, or signed by another key.
        """
        self._board.publish(kind, slot, envelope)

    async def lookup(self, kind: str, slot: int) -> list[bytes]:
        """Envelopes found on the DHT, to be verified again; empty when there are none or the DHT fails."""
        return await self._board.lookup(kind, slot)

    def traffic(self) -> Traffic:
        """Bytes of requests, answers and blobs so far; the DHT's own few are not counted."""
        return self._traffic

    # ---- between the parts -----------------------------------------------------------------------

    @property
    def process_id(self) -> int | None:
        """Process id of p2pd; None while it is being replaced."""
        generation = self._generation
        return int(generation.p2p._child.pid) if generation is not None else None

    @property
    def _generation(self) -> "Generation | None":
        return self._supervisor.current if self._supervisor is not None else None

    def _prepare(self, request: peer_pb2.Request) -> peer_pb2.Request:
        request.protocol_version = PROTOCOL_VERSION
        request.swarm = self._swarm
        return request

    async def _ask(self, peer: bytes, request: peer_pb2.Request, timeout_s: float) -> peer_pb2.Response:
        return await self.request(peer, request, timeout_s=timeout_s)

    async def _open_stream(self, peer: bytes) -> Stream:
        if peer not in self._connections and (known := self._cache.known(peer)) is not None:
            with contextlib.suppress(NetworkError):  # p2pd may know another way.
                await self._connections.connect(known)
        return await self._open_stream_now(peer)

    async def _open_stream_now(self, peer: bytes) -> Stream:
        generation = self._generation
        if generation is None:
            raise PeerUnreachable("the network process (p2pd) of this node is starting again")
        try:
            return await generation.control.open_stream(
                peer, stream_protocol(self._swarm), timeout_s=self._settings.dial_timeout_s
            )
        except PeerUnreachable:
            self._connections.doubt()
            raise

    async def _greet(self, peer: bytes) -> float:
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        request = self._prepare(peer_pb2.Request(has_blobs=peer_pb2.HasBlobs()))
        await request_peer(self._open_stream_now, peer, request, timeout_s=_GREETING_TIMEOUT_S)
        return (loop.time() - asked_s) * 1000

    def _heard_from(self, peer: bytes) -> None:
        self._connections.alive(peer)

    def _peer_changed(self, peer: bytes, connected: bool) -> None:  # noqa: FBT001 - the interface's own order.
        if connected:
            self._outboxes.open(peer)
            self._spawn(self._board.meet(peer))
        else:
            self._outboxes.close(peer)
            self._server.forget(peer)
        if self._on_peer is not None:
            self._on_peer(peer, connected)

    def _came_back(self, generation: "Generation") -> None:
        self._note_addresses(generation)
        self._board.renew_all()

    def _note_addresses(self, generation: "Generation") -> None:
        self._addresses = dialable(self._settings.announce or generation.listening, key=self.key)

    def _add_bootstrap(self, address: str) -> None:
        try:
            self._cache.add(address, pinned=True)
        except ValueError as error:
            raise NodeError(f"cannot use the peer address {address!r}: {error}") from error

    async def _save_cache_often(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            self._save_cache()

    def _save_cache(self) -> None:
        listen = self._supervisor.listen if self._supervisor is not None else ()
        self._cache.save(ports=[host_and_port(base)[2] for base in listen] or self._cache.ports)
