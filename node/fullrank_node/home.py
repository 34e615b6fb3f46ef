"""Where a node keeps its things, and who may use them at a time.

Everything of one node lies in one directory, its home. A running daemon holds an exclusive lock on
it and describes itself in `run.json`. The control socket lies elsewhere, because a Unix socket path
ends at 107 characters (measured) and homes may be deep.
"""

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_errors, remove_temporary_files, write_atomically

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux: sun_path has 108 bytes with its final zero."""

SOCKET_NAME = "control.sock"

_RUNTIME_PREFIX = "fullrank-"
_LOCK_ATTEMPTS = 20
_LOCK_PAUSE_S = 0.02
"""A command asking "is the daemon running?" holds the lock for an instant: a starting daemon outwaits it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """How to reach the daemon that runs on a home.

    Attributes:
        pid: Process id of the daemon.
        socket: Unix socket of the control service.
        token_file: File (0600) with the token that every control call carries.
        started_at_ms: When the daemon started.
    """

    pid: int
    socket: str
    token_file: str
    started_at_ms: int


class Home:
    """The directory of one node, by the names of what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    @classmethod
    def resolve(cls, flag: Path | None = None, *, environment: Mapping[str, str] = os.environ) -> "Home":
        """The home meant by `--home`, else by FULLRANK_HOME, else the user's own data directory."""
        if flag is not None:
            return cls(flag)
        if named := environment.get("FULLRANK_HOME"):
            return cls(Path(named))
        return cls(Path(platformdirs.user_data_dir("fullrank", appauthor=False)))

    def __repr__(self) -> str:
        return f"Home({str(self.path)!r})"

    @property
    def config_file(self) -> Path:
        """What the owner set (TOML)."""
        return self.path / "config.toml"

    @property
    def identity_file(self) -> Path:
        """The node's secret key, readable by its owner alone."""
        return self.path / "identity.key"

    @property
    def genesis_file(self) -> Path:
        """The genesis envelope of the swarm this node belongs to."""
        return self.path / "genesis.bin"

    @property
    def state_file(self) -> Path:
        """The database of everything received and decided."""
        return self.path / "state.db"

    @property
    def blobs_dir(self) -> Path:
        """Files named by their content."""
        return self.path / "blobs"

    @property
    def masters_dir(self) -> Path:
        """Float32 masters of the adapted tensors."""
        return self.path / "masters"

    @property
    def logs_dir(self) -> Path:
        """Log files."""
        return self.path / "logs"

    @property
    def log_file(self) -> Path:
        """The daemon's log."""
        return self.logs_dir / "daemon.log"

    @property
    def run_file(self) -> Path:
        """How to reach the running daemon."""
        return self.path / "run.json"

    @property
    def token_file(self) -> Path:
        """The control service's token."""
        return self.path / "control.token"

    @property
    def peers_file(self) -> Path:
        """Addresses of peers seen before: any of them is an entrance."""
        return self.path / "peers.json"

    @property
    def work_dir(self) -> Path:
        """Scratch space of the child processes; emptied by nobody but its users."""
        return self.path / "work"

    @property
    def lock_file(self) -> Path:
        """Held exclusively by the daemon; contains its process id."""
        return self.path / "lock"

    def exists(self) -> bool:
        """Whether a node was set up here."""
        return self.identity_file.exists()

    def create(self) -> None:
        """Makes the directories that are missing, readable by the owner alone.

        Raises:
            NodeError: The place cannot be written, or is no directory.
        """
        try:
            with disk_errors(self.path):
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                for directory in (self.blobs_dir, self.masters_dir, self.logs_dir, self.work_dir):
                    directory.mkdir(mode=0o700, exist_ok=True)
                remove_temporary_files(self.path)
        except PermissionError as error:
            raise NodeError(
                f"cannot write to the home {self.path}: {error.strerror}",
                hint="Choose another place with --home DIR or FULLRANK_HOME.",
                exit_code=ExitCode.PERMISSION,
            ) from error
        except (FileExistsError, NotADirectoryError) as error:
            raise NodeError(
                f"the home {self.path} is not a directory",
                hint="Choose another place with --home DIR or FULLRANK_HOME.",
                exit_code=ExitCode.CONFIG,
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds this home alone; the lock ends with the process, however it ends.

        Raises:
            NodeError: Another process holds it ("daemon already running").
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(descriptor, fcntl.LOCK_EX):
                pid = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").strip()
                raise NodeError(
                    f"daemon already running on {self.path}" + (f" (pid {pid})" if pid else ""),
                    hint="Use `fullrank status`, or stop it with `fullrank stop`.",
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether some process holds this home now."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def write_run(self, info: RunInfo) -> None:
        """Announces the running daemon to the commands."""
        write_atomically(self.run_file, json.dumps(asdict(info), indent=2).encode() + b"\n")

    def read_run(self) -> RunInfo | None:
        """How to reach the daemon; None if none runs, also where a killed one left its `run.json`."""
        info = self._recorded_run()
        if info is None or not _is_alive(info.pid) or not self.is_locked():
            return None
        return info

    def clear_run(self) -> None:
        """Removes `run.json` and the runtime directory that it names (ours, or a killed daemon's)."""
        info = self._recorded_run()
        if info is not None:
            _remove_runtime_dir(Path(info.socket).parent)
        self.run_file.unlink(missing_ok=True)

    def make_runtime_dir(self, *, environment: Mapping[str, str] = os.environ) -> Path:
        """A fresh directory (0700) short enough for Unix sockets; `clear_run` removes it.

        Raises:
            NodeError: No directory of this system is short enough.
        """
        places = [environment.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]  # noqa: S108 - mkdtemp is private
        for place in places:
            if not place or not os.access(place, os.W_OK | os.X_OK):
                continue
            longest = len(os.fsencode(str(Path(place) / f"{_RUNTIME_PREFIX}xxxxxxxx" / SOCKET_NAME)))
            if longest <= MAX_SOCKET_PATH_BYTES:
                return Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX, dir=place))
        raise NodeError(
            f"no directory for the control socket: its path may have {MAX_SOCKET_PATH_BYTES} bytes at most",
            hint="Set XDG_RUNTIME_DIR or TMPDIR to a short, writable directory.",
            exit_code=ExitCode.CONFIG,
        )

    def _recorded_run(self) -> RunInfo | None:
        try:
            fields = json.loads(self.run_file.read_bytes())
            return RunInfo(
                pid=int(fields["pid"]),
                socket=str(fields["socket"]),
                token_file=str(fields["token_file"]),
                started_at_ms=int(fields["started_at_ms"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def _try_lock(descriptor: int, kind: int) -> bool:
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _LOCK_ATTEMPTS:
                time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_runtime_dir(path: Path) -> None:
    """Deletes a runtime directory, after checking that it is one of ours (the name comes from a file)."""
    try:
        found = path.lstat()
    except OSError:
        return
    if path.name.startswith(_RUNTIME_PREFIX) and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
        shutil.rmtree(path, ignore_errors=True)
