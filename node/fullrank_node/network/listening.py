"""Where p2pd listens and where its control sockets lie: settled before it starts, so that it can be replaced."""

import contextlib
import errno
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

from fullrank_node.addresses import host_and_port, with_port
from fullrank_node.errors import ExitCode, NodeError

MAX_SOCKET_PATH_BYTES = 104
"""Shortest bound on a Unix socket path among the systems that p2pd runs on (macOS; Linux allows 107)."""

_PREFIX = "fullrank-net-"


def port_taken(base: str) -> NodeError:
    """The operator's error when somebody listens at `base` already."""
    return NodeError(
        f"another program listens at {base} already",
        hint="Stop it (is this node running twice?), or name another port in [network] listen; 0 takes any free one.",
        exit_code=ExitCode.CONFIG,
    )


def choose_ports(listen: tuple[str, ...], remembered: tuple[int, ...]) -> tuple[str, ...]:
    """Fixes the ports now, so that a p2pd that replaces this one listens at the same."""
    chosen = []
    for i, base in enumerate(listen):
        _, _, port = host_and_port(base)
        if port == 0 and i < len(remembered):
            with contextlib.suppress(NodeError):
                port = probe_port(with_port(base, remembered[i]))
        chosen.append(with_port(base, port or probe_port(base)))
    return tuple(chosen)


def probe_port(base: str) -> int:
    """The port of `base`, or a free one for 0.

    p2pd shares its port with whoever asks (SO_REUSEPORT): two nodes on one port would both start, and
    get each other's connections. So nobody may listen there when it starts.

    Raises:
        NodeError: Somebody listens there, or the address is not this machine's.
    """
    kind, host, port = host_and_port(base)
    if kind.startswith("dns") or base.split("/")[3] != "tcp":
        return port
    family = socket.AF_INET6 if kind == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except PermissionError as error:
            raise NodeError(
                f"this user may not listen at {base}",
                hint="Ports below 1024 belong to the system: choose a higher one in [network] listen.",
                exit_code=ExitCode.PERMISSION,
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise port_taken(base) from error
            raise NodeError(
                f"cannot listen at {base}: {error.strerror or error}",
                hint="[network] listen must name an address of this machine; /ip4/0.0.0.0/tcp/0 means all of them.",
                exit_code=ExitCode.CONFIG,
            ) from error
        return int(probe.getsockname()[1])


class SocketDirectory:
    """A directory for p2pd's control sockets that only this user may enter.

    Whoever reaches the control socket speaks as this node. Its name carries the process id, so that what killed
    processes left behind is recognised and removed.
    """

    def __init__(self, parent: Path | None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        if len(str(parent)) > MAX_SOCKET_PATH_BYTES - 64:
            parent = Path("/tmp")  # noqa: S108 - the directory made in it is private.
        self._parent = parent
        self.path = parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"

    def create(self) -> None:
        """Makes the directory, and removes those of processes that are gone."""
        for left in self._parent.glob(f"{_PREFIX}*"):
            pid = left.name.removeprefix(_PREFIX).partition("-")[0]
            with contextlib.suppress(FileNotFoundError):  # Somebody else was tidying up.
                if pid.isdigit() and left.stat().st_uid == os.getuid() and not _runs(int(pid)):
                    shutil.rmtree(left, ignore_errors=True)
        try:
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise NodeError(
                f"cannot make the directory {self.path} for the network's sockets: {error.strerror}",
                hint=f"Make {self._parent} writable, or remove {self.path}.",
                exit_code=ExitCode.PERMISSION,
            ) from error

    def remove(self) -> None:
        """Removes the directory with what is left in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
