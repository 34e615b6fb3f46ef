"""p2pd and the DHT node on it, kept alive: started, watched, replaced with the same identity and port.

p2pd's death is masked by hivemind (stores still say True, calls hang): the child itself is awaited,
which shows it within milliseconds (measured). Imports hivemind: only `PeerNetwork.start` brings this in.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P, P2PDaemonError

from fullrank_node.addresses import is_loopback
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.network.control import Control, key_of_peer_id
from fullrank_node.network.dht import Directory
from fullrank_node.network.listening import SocketDirectory, choose_ports, port_taken, probe_port
from fullrank_node.network.settings import NetworkSettings

logger = logging.getLogger(__name__)

StreamHandler = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Answers one stream of the peer with that key."""

MakeDirectory = Callable[[P2P], Awaitable[Directory]]

_STOP_TIMEOUT_S = 3.0
_SETTLE_S = 0.3
"""Ctrl-C reaches p2pd too: a node that is told to stop by it must not start another first."""

_MAX_BACKOFF_S = 15.0


@dataclass(frozen=True, slots=True)
class Generation:
    """One running p2pd and what lives on it."""

    p2p: Any
    control: Control
    directory: Directory
    listening: tuple[str, ...]


class Supervisor:
    """Keeps one p2pd running."""

    def __init__(
        self,
        *,
        identity_path: Path,
        settings: NetworkSettings,
        ports: tuple[int, ...],
        protocol: str,
        handler: StreamHandler,
        make_directory: MakeDirectory,
    ) -> None:
        """Initialises.

        Args:
            identity_path: The 68-byte file that p2pd reads.
            settings: Where to listen.
            ports: Ports of the last start, tried first where `settings.listen` says 0.
            protocol: Name of the stream protocol.
            handler: Answers streams.
            make_directory: Puts a DHT node on a p2pd.
        """
        self.current: Generation | None = None
        self.listen: tuple[str, ...] = ()
        self._identity_path = identity_path
        self._settings = settings
        self._remembered_ports = ports
        self._protocol = protocol
        self._handler = handler
        self._make_directory = make_directory
        self._sockets = SocketDirectory(settings.runtime_dir)
        self._sick = asyncio.Event()

    async def start(self) -> Generation:
        """Starts p2pd for the first time.

        Raises:
            NodeError: A port is taken, or p2pd does not start.
        """
        self._sockets.create()
        try:
            self.listen = (
                () if self._settings.no_listen else choose_ports(self._settings.listen, self._remembered_ports)
            )
            self.current = await self._create()
        except BaseException:
            self._sockets.remove()
            raise
        return self.current

    def report_sick(self) -> None:
        """p2pd runs but does not answer: have it replaced."""
        self._sick.set()

    async def run(self, *, on_down: Callable[[], None], on_up: Callable[[Generation], None]) -> None:
        """Replaces p2pd whenever it dies; runs until cancelled."""
        while True:
            generation = self.current
            if generation is not None:
                await self._wait_for_death(generation)
                self.current = None
                on_down()
                await asyncio.sleep(_SETTLE_S)
                logger.warning("The network process (p2pd) is gone; starting another with the same identity and port")
                await self._destroy(generation, frozen=self._sick.is_set())
            self.current = await self._recreate(generation)
            on_up(self.current)

    async def close(self) -> None:
        """Ends p2pd and removes its sockets."""
        generation, self.current = self.current, None
        if generation is not None:
            await self._destroy(generation)
        self._sockets.remove()

    async def _wait_for_death(self, generation: Generation) -> None:
        self._sick.clear()
        waits = [
            asyncio.ensure_future(generation.p2p._child.wait()),
            asyncio.ensure_future(self._sick.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _recreate(self, before: Generation | None) -> Generation:
        pause_s = 0.2
        while True:
            try:
                generation = await self._create()
            except NodeError as error:
                logger.warning("The network process did not start again: %s; trying in %.0f s", error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _MAX_BACKOFF_S)
                continue
            if before is not None:
                generation.directory.adopt_storage(before.directory)
            logger.info("The network process runs again")
            return generation

    async def _create(self) -> Generation:
        for base in self.listen:
            probe_port(base)
        made: list[P2P] = []
        try:
            # Its own timeout ends with p2pd's first line; a p2pd that stalls after it would be waited for without end.
            async with asyncio.timeout(2 * self._settings.start_timeout_s):
                p2p = await self._create_p2p(made)
            control = Control(Path(p2p._daemon_listen_maddr["unix"]))
            _watch_tasks(p2p)
            async with asyncio.timeout(self._settings.start_timeout_s):
                directory = await self._make_directory(p2p)
                await p2p.add_binary_stream_handler(self._protocol, self._on_stream)
                listening = await control.identify()
        except BaseException as error:
            for p2p in made:
                await _end(p2p)
            if isinstance(error, P2PDaemonError | TimeoutError):
                raise _start_failed(str(error), self.listen) from error
            raise
        return Generation(p2p, control, directory, tuple(listening))

    async def _create_p2p(self, made: list[P2P]) -> P2P:
        local_only = all(is_loopback(base) for base in self.listen)

        class Contained(P2P):  # type: ignore[misc] # hivemind is untyped.
            """Keeps its sockets where only this user can reach them, and leaves a trace when its start fails."""

            _UNIX_SOCKET_PREFIX = f"/unix{self._sockets.path}/"

            def __init__(self) -> None:
                super().__init__()
                made.append(self)

        settings = self._settings
        return await Contained.create(
            identity_path=str(self._identity_path),
            check_if_identity_free=False,
            host_maddrs=list(self.listen) or None,
            announce_maddrs=list(settings.announce) or None,
            no_listen=settings.no_listen,
            dht_mode="client" if settings.no_listen else "server",
            auto_nat=not local_only,
            nat_port_map=not local_only,
            startup_timeout=settings.start_timeout_s,
        )

    async def _on_stream(self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = key_of_peer_id(info.peer_id.to_bytes())
        if key is None:
            writer.close()
            return
        await self._handler(key, reader, writer)

    async def _destroy(self, generation: Generation, *, frozen: bool = False) -> None:
        alive = generation.p2p._child.returncode is None and not frozen
        await generation.directory.close(alive=alive)
        await _end(generation.p2p, patient=not frozen)


def _watch_tasks(p2p: Any) -> None:
    """Has somebody look at how hivemind's own tasks end: they break when p2pd dies, which is seen elsewhere."""

    def look(task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.debug("The connection to p2pd broke: %s", task.exception())

    for task in (p2p._client.control._read_task, p2p._client.control._write_task):
        task.add_done_callback(look)


async def _end(p2p: Any, *, patient: bool = True) -> None:
    """Ends a p2pd, one that is frozen too."""
    p2p._terminate()
    child = p2p._child
    if child is None:
        return
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S if patient else 0):
            await child.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _start_failed(reason: str, listen: tuple[str, ...]) -> NodeError:
    if "address already in use" in reason:
        return port_taken(", ".join(listen))
    return NodeError(
        f"the network process (p2pd) does not start: {reason[:300] or 'no answer in time'}",
        hint="`fullrank doctor` checks what it needs.",
        exit_code=ExitCode.ERROR,
    )
