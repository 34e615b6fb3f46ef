"""A daemon that kills itself at a named point, as a power cut would: `python tests/crashing_daemon.py POINT HOME`.

The program under test knows nothing of this. It runs as it is, but for one method that is wrapped here, in the
daemon or in its worker, and sends SIGKILL before or after what it does.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINT_VARIABLE = "CRASH_AT"
"""Tells the worker, which is a process of its own, at which point to die."""

SAYS_VARIABLE = "CRASH_SAYS"
"""File that tells afterwards at which point the end came: a worker's own output would die with the daemon."""

SAYS_NAME = "killed-at"

WORKER_POINTS = ("applying", "writing the master weights")

DAEMON_POINTS = (
    "before publishing",
    "after publishing",
    "before proposing",
    "after signing a proposal",
    "before recording a vote",
    "between vote record and vote",
    "adopting a head",
    "between a final checkpoint and collecting files",
)


_dying = threading.Lock()


def die(point: str, *processes: int) -> None:
    """SIGKILL to these processes and this one, having said where; a second thread that gets here waits for its end."""
    _dying.acquire()
    Path(os.environ[SAYS_VARIABLE]).write_text(point)
    for process in (*processes, os.getpid()):
        os.kill(process, signal.SIGKILL)


def wrap(
    owner: Any, name: str, *, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    """Have a method call `before` and `after` with its own arguments."""
    honest = getattr(owner, name)

    @functools.wraps(honest)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if before is not None:
            before(*arguments)
        result = honest(*arguments, **keywords)
        if after is not None:
            after(*arguments)
        return result

    setattr(owner, name, wrapped)


def arm_daemon(point: str) -> None:
    """Wrap what `point` names in the daemon."""
    from fullrank_node.runner import Runner
    from fullrank_node.store import Store
    from fullrank_protocol.wire import objects_pb2 as wire

    def end(*_: object) -> None:
        die(point)

    def end_at(kind: int) -> Callable[..., None]:
        return lambda _, envelope: end() if envelope.type == kind else None

    wraps: dict[str, Callable[[], None]] = {
        "before publishing": lambda: wrap(Runner, "submit", before=end_at(wire.CONTRIBUTION)),
        "after publishing": lambda: end_when_asked_for_the_delta(end),
        "before proposing": lambda: wrap(Runner, "submit", before=end_at(wire.CHECKPOINT)),
        # Stored; sending it has not begun.
        "after signing a proposal": lambda: wrap(Runner, "submit", after=end_at(wire.CHECKPOINT)),
        "before recording a vote": lambda: wrap(Store, "record_vote", before=end),
        "between vote record and vote": lambda: wrap(Store, "record_vote", after=end),
        "adopting a head": lambda: wrap(Store, "set_head", before=end),
        "between a final checkpoint and collecting files": lambda: wrap(Store, "set_final", after=end),
        **dict.fromkeys(WORKER_POINTS, lambda: replace_worker(point)),
    }
    wraps[point]()


def end_when_asked_for_the_delta(end: Callable[[], None]) -> None:
    """Another node asks for an own delta: it has the contribution."""
    from fullrank_node.blob_store import BlobStore
    from fullrank_node.runner import Runner
    from fullrank_protocol.wire import objects_pb2 as wire

    published: list[bytes] = []

    def note(_: Runner, envelope: Any) -> None:
        if envelope.type == wire.CONTRIBUTION:
            published.append(wire.Contribution.FromString(envelope.payload).blob.id)

    wrap(Runner, "submit", before=note)
    wrap(BlobStore, "read_chunk", before=lambda _, blob, __: end() if blob in published else None)


def replace_worker(point: str) -> None:
    """Have the daemon start this module as its worker."""
    from fullrank_node.child import ChildProcess

    os.environ[POINT_VARIABLE] = point
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    honest = ChildProcess.__init__

    def here(process: ChildProcess, module: str, **options: Any) -> None:
        honest(process, "crashing_daemon" if module == "fullrank_node.worker" else module, **options)

    ChildProcess.__init__ = here  # type: ignore[assignment, method-assign]


def arm_worker(point: str) -> None:
    """Wrap what `point` names in the worker; it takes the daemon with it."""
    from fullrank_node.model import master

    def end(*_: object) -> None:
        die(point, os.getppid())

    if point == "applying":
        wrap(master.MasterStore, "apply", before=end)
        return
    written: list[Path] = []

    def end_at_the_third(file: Any, path: Path) -> None:
        written.append(path)
        if len(written) == 3:
            file.truncate(file.tell() // 2)
            end()

    wrap(master, "replace_with", before=end_at_the_third)


def main() -> int:
    """Run the daemon, or its worker."""
    if len(sys.argv) == 1:
        from fullrank_node import worker

        arm_worker(os.environ[POINT_VARIABLE])
        worker.main()
        return 0
    point, home = sys.argv[1:]
    from fullrank_node import daemon

    os.environ[SAYS_VARIABLE] = str(Path(home) / SAYS_NAME)
    arm_daemon(point)
    return daemon.main(["--home", home])


if __name__ == "__main__":
    sys.exit(main())
