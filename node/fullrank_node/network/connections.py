"""Which peers are connected, and the patient work of getting connected (protocol sections 3 and 9).

A peer counts as connected once it has proved that it serves this swarm in this version: it answered
a greeting, or asked a valid question. Addresses come from the link, the cache, the DHT and other
peers; each is tried in the background, again and again, so that a dead first one costs nothing.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from fullrank_node.clock import Clock
from fullrank_node.network.asking import short
from fullrank_node.network.interface import (
    DialError,
    NetworkError,
    OnPeer,
    OtherSwarm,
    PeerFailure,
    PeerInfo,
    PeerUnreachable,
    RefusalOf,
    welcome,
)
from fullrank_node.network.peer_cache import MAX_KNOWN_PEERS, KnownPeer, PeerCache
from fullrank_node.network.probing import probe_all
from fullrank_node.network.settings import NetworkSettings
from fullrank_protocol.wire import peer_pb2

logger = logging.getLogger(__name__)

MAX_DIALS: Final = 8
"""Attempts to connect at a time."""

_REFUSAL_CODES: Final = (peer_pb2.Failure.WRONG_SWARM, peer_pb2.Failure.WRONG_VERSION)
"""Answers that no patience helps against."""

_REFUSED_AFTER: Final = 2
"""Dials in a row that are refused so until that is believed: a peer that just starts does not serve its swarm yet."""

_POLL_S: Final = 1.0
_LOOK_S: Final = 0.25
_SICK_AFTER: Final = 3
"""Failed questions to p2pd in a row until it is replaced."""


class Dialer(Protocol):
    """The part of p2pd's control that is needed here."""

    async def list_peers(self) -> dict[bytes, list[str]]:
        """Keys and remote addresses of open connections."""

    async def connect(self, key: bytes, addresses: list[str], *, timeout_s: float) -> None:
        """Dials."""

    async def disconnect(self, key: bytes) -> None:
        """Hangs up."""


Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
Greet = Callable[[bytes], Awaitable[float]]
"""Asks a peer whether it serves this swarm; its round trip in milliseconds, or a NetworkError."""


@dataclass(slots=True, kw_only=True)
class _Connected:
    since_s: float
    outbound: bool
    last_seen_ms: int
    latency_ms: float | None = None
    remote: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Stranger:
    """A connection whose greeting was not answered yet."""

    num_failures: int = 0
    next_try_s: float = 0.0
    greeting: bool = False


class Connections:
    """The connected peers of this swarm, and the attempts to have more."""

    def __init__(
        self,
        *,
        cache: PeerCache,
        settings: NetworkSettings,
        clock: Clock,
        dialer: Callable[[], Dialer | None],
        greet: Greet,
        spawn: Spawn,
        on_peer: OnPeer,
        on_sick: Callable[[], None],
        refusal_of: RefusalOf = welcome,
    ) -> None:
        """Initialises.

        Args:
            cache: The address book.
            settings: How many, how long.
            clock: For what people read.
            dialer: p2pd's control; None while there is none.
            greet: Whether a peer serves this swarm.
            spawn: Runs a coroutine for as long as the network lives.
            on_peer: Told when a peer appears or vanishes.
            on_sick: Told when p2pd has stopped answering.
            refusal_of: Why a peer is shut out now. Its connections are ended, and it is not dialled.
        """
        self._cache = cache
        self._settings = settings
        self._clock = clock
        self._dialer = dialer
        self._greet = greet
        self._spawn = spawn
        self._on_peer = on_peer
        self._on_sick = on_sick
        self._refusal_of = refusal_of
        self._table: dict[bytes, _Connected] = {}
        self._strangers: dict[bytes, _Stranger] = {}
        self._dials: dict[bytes, asyncio.Task[None]] = {}
        self._dial_errors: dict[bytes, NetworkError] = {}
        self._num_refusals: Counter[bytes] = Counter()
        self._poll_now = asyncio.Event()

    def __contains__(self, key: bytes) -> bool:
        return key in self._table

    def quickest(self) -> list[bytes]:
        """Connected peers, the quickest first."""
        return sorted(self._table, key=lambda key: self._table[key].latency_ms or float("inf"))

    def infos(self) -> list[PeerInfo]:
        """Connected peers, as people see them."""
        infos = []
        for key, state in self._table.items():
            known = self._cache.known(key)
            infos.append(
                PeerInfo(
                    key=key,
                    addresses=tuple(known.addresses()) if known else tuple(state.remote),
                    outbound=state.outbound,
                    last_seen_ms=state.last_seen_ms,
                    latency_ms=state.latency_ms,
                )
            )
        return infos

    def refusals(self) -> dict[bytes, NetworkError]:
        """Peers that said, at every dial of the newest few, that they are of another swarm or version."""
        return {key: self._dial_errors[key] for key, times in self._num_refusals.items() if times >= _REFUSED_AFTER}

    def alive(self, key: bytes, *, outbound: bool = False, latency_ms: float | None = None) -> None:
        """A peer has shown that it belongs to this swarm."""
        now_ms = self._clock.now_ms()
        self._cache.seen(key, now_ms=now_ms)
        state = self._table.get(key)
        if state is not None:
            if latency_ms is not None:
                self._strangers.pop(key, None)
            state.last_seen_ms = now_ms
            state.latency_ms = latency_ms if latency_ms is not None else state.latency_ms
            return
        now_s = asyncio.get_running_loop().time()
        self._table[key] = _Connected(since_s=now_s, outbound=outbound, last_seen_ms=now_ms, latency_ms=latency_ms)
        self._strangers.pop(key, None)
        logger.info("Connected to peer %s (%d now)", short(key), len(self._table))
        self._on_peer(key, True)  # noqa: FBT003 - the interface's own order.

    def doubt(self) -> None:
        """Something hints that a connection is gone: look now."""
        self._poll_now.set()

    def reset(self) -> None:
        """Every connection is gone with p2pd."""
        for key in list(self._table):
            self._drop(key)
        self._strangers.clear()

    async def connect(self, known: KnownPeer) -> None:
        """Connects now, whatever pause the peer is in.

        Raises:
            NetworkError: It did not work out.
        """
        if known.key in self._table:
            return
        if (why := self._refusal_of(known.key)) is not None:
            raise PeerUnreachable(f"the peer is {why}")
        task = self._dials.get(known.key) or self._begin_dial(known)
        await asyncio.wait([task])  # Shared with the background: it must outlive a caller that gives up.
        if known.key not in self._table:
            raise self._dial_errors.get(known.key) or PeerUnreachable("the connection broke at once")

    async def run_dials(self) -> None:
        """Tries known peers for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._dialer() is None:
                continue
            if len(self._dial_errors) > MAX_KNOWN_PEERS:
                self._dial_errors.clear()
                self._num_refusals.clear()
            now_s = asyncio.get_running_loop().time()
            for known in self._cache.due(now_s, without={*self._table, *self._dials}):
                if len(self._dials) >= MAX_DIALS or (
                    not known.pinned and len(self._table) + len(self._dials) >= self._settings.max_peers
                ):
                    break
                if self._refusal_of(known.key) is None:
                    self._begin_dial(known)

    async def run_polls(self) -> None:
        """Looks for connections that others opened, and for those that are gone, for ever."""
        num_failures = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._poll_now.wait()
            self._poll_now.clear()
            dialer = self._dialer()
            if dialer is None:
                num_failures = 0
                continue
            asked_s = asyncio.get_running_loop().time()
            try:
                open_connections = await dialer.list_peers()
            except NetworkError as error:
                num_failures += 1
                logger.debug("p2pd does not say who is connected: %s", error)
                if num_failures >= _SICK_AFTER:
                    num_failures = 0
                    self._on_sick()
                continue
            num_failures = 0
            self._compare(open_connections, asked_s)

    def _compare(self, open_connections: dict[bytes, list[str]], asked_s: float) -> None:
        for key in [key for key in open_connections if self._refusal_of(key) is not None]:
            del open_connections[key]
            self._spawn(self._hang_up(key))
        for key, state in list(self._table.items()):
            if key in open_connections:
                state.remote = open_connections[key]
            elif state.since_s < asked_s:
                logger.info("Lost peer %s (%d left)", short(key), len(self._table) - 1)
                self._drop(key)
        self._strangers = {key: s for key, s in self._strangers.items() if key in open_connections or s.greeting}
        for key in open_connections:
            known = self._table.get(key)
            if key in self._dials or (known is not None and known.latency_ms is not None):
                continue  # Who asked first is a peer at once, and greeted for the sake of its round trip.
            stranger = self._strangers.setdefault(key, _Stranger())
            if not stranger.greeting and stranger.next_try_s <= asked_s:
                stranger.greeting = True
                self._spawn(self._greet_stranger(key, stranger))

    async def _hang_up(self, key: bytes) -> None:
        dialer = self._dialer()
        if dialer is not None:
            with contextlib.suppress(NetworkError):
                await dialer.disconnect(key)

    def _drop(self, key: bytes) -> None:
        del self._table[key]
        self._cache.lost(key, now_s=asyncio.get_running_loop().time())
        self._on_peer(key, False)  # noqa: FBT003 - the interface's own order.

    async def _greet_stranger(self, key: bytes, stranger: _Stranger) -> None:
        try:
            latency_ms = await self._greet(key)
        except NetworkError as error:
            logger.debug("Peer %s connected, but: %s", short(key), error)
            pause_s = min(2.0**stranger.num_failures, self._settings.max_backoff_s)
            stranger.num_failures += 1
            stranger.next_try_s = asyncio.get_running_loop().time() + pause_s
        else:
            self.alive(key, latency_ms=latency_ms)
        finally:
            stranger.greeting = False

    def _begin_dial(self, known: KnownPeer) -> "asyncio.Task[None]":
        task = self._spawn(self._dial(known))
        self._dials[known.key] = task
        return task

    async def _dial(self, known: KnownPeer) -> None:
        try:
            await self._dial_and_greet(known)
            self._dial_errors.pop(known.key, None)
            self._num_refusals.pop(known.key, None)
        except NetworkError as error:
            self._dial_errors[known.key] = error
            self._num_refusals[known.key] = self._num_refusals[known.key] + 1 if _is_refusal(error) else 0
            now_s = asyncio.get_running_loop().time()
            by_address = error.by_address if isinstance(error, DialError) else {}
            soon = isinstance(error, DialError) and error.again_soon
            self._cache.failed(known.key, str(error), by_address=by_address, now_s=now_s, again_soon=soon)
            logger.debug("No connection to peer %s: %s", short(known.key), error)
        finally:
            del self._dials[known.key]

    async def _dial_and_greet(self, known: KnownPeer) -> None:
        dialer = self._dialer()
        if dialer is None:
            raise PeerUnreachable("the network process (p2pd) of this node is starting again")
        timeout_s = self._settings.dial_timeout_s
        reasons = await probe_all(list(known.bases), timeout_s=timeout_s)
        if all(reasons.values()):
            raise DialError("; ".join(sorted(set(reasons.values()))), by_address=reasons)
        await dialer.connect(known.key, list(known.bases), timeout_s=timeout_s)
        try:
            latency_ms = await self._greet(known.key)
        except (PeerFailure, OtherSwarm):
            await dialer.disconnect(known.key)  # Another swarm or version: nothing to say to each other.
            raise
        self.alive(known.key, outbound=True, latency_ms=latency_ms)
        self._cache.succeeded(known.key, now_ms=self._clock.now_ms())


def _is_refusal(error: NetworkError) -> bool:
    return isinstance(error, OtherSwarm) or (isinstance(error, PeerFailure) and error.code in _REFUSAL_CODES)
