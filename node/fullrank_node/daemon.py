"""The node daemon: builds the parts, owns the loop, and takes everything down again.

One asyncio loop holds the network, the control service and the round machine's runner. Arithmetic
happens in the worker, training in the trainer, both child processes that end with this one.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from fullrank_node.child import ChildProcess
from fullrank_node.clock import SystemClock
from fullrank_node.config import Config, load_config
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_errors
from fullrank_node.home import Home

log = logging.getLogger(__name__)

LOG_BYTES = 8 << 20
"""Size at which the log file is rotated; one older file is kept."""


async def run(home: Home, config: Config) -> None:
    """Run the node of a home until it is told to stop (signal, or the control service).

    Raises:
        NodeError: The node cannot start or go on.
    """
    from fullrank_node.node import Node

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with home.locked():
        async with _children(config) as (worker, trainer):
            node = Node(home=home, config=config, clock=SystemClock(), worker=worker, trainer=trainer, stop=stop)
            await node.run()


@contextlib.asynccontextmanager
async def _children(config: Config) -> AsyncIterator[tuple[ChildProcess, ChildProcess]]:
    from fullrank_node.training.neighbours import shared_threads

    threads = shared_threads(config.train.threads or config.limits.cpu_threads)
    environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    worker = ChildProcess("fullrank_node.worker", environment=environment, nice=config.limits.nice)
    trainer = ChildProcess("fullrank_node.training.trainer", environment=environment, nice=config.limits.nice)
    async with worker, trainer:
        yield worker, trainer


def set_up_logging(home: Home, config: Config, *, foreground: bool) -> None:
    """Log sentences to the home's log file, which is kept small; in the foreground also to stderr."""
    from logging.handlers import RotatingFileHandler

    home.create()
    handlers: list[logging.Handler] = [RotatingFileHandler(home.log_file, maxBytes=LOG_BYTES, backupCount=1)]
    if foreground:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("fullrank_node").setLevel(config.logging.level.upper())


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m fullrank_node.daemon --home DIR`."""
    parser = argparse.ArgumentParser(prog="fullrank-daemon", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--foreground", action="store_true", help="log to stderr, too")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    home = Home.resolve(options.home)
    if options.until_eof:
        threading.Thread(target=_stop_at_eof, name="standard input", daemon=True).start()
    try:
        config = load_config(home.config_file)
        with disk_errors(home.path):
            set_up_logging(home, config, foreground=options.foreground)
            asyncio.run(run(home, config))
    except NodeError as error:
        log.error("%s. %s", error, error.hint)  # noqa: TRY400 - a sentence, not a traceback
        if not options.foreground:
            # `fullrank start` shows these lines, the last of the output, to whoever started the node.
            with contextlib.suppress(OSError):  # It may be a file on the very disk that is full.
                sys.stderr.write(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return int(error.exit_code)
    except Exception:
        log.exception("The daemon ended by an error of its own.")  # Where `fullrank logs` shows it.
        raise
    return int(ExitCode.OK)


def _stop_at_eof() -> None:
    """End in order when whoever started this daemon is gone, however it went: only it held the pipe's other end."""
    while os.read(0, 1 << 10):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
