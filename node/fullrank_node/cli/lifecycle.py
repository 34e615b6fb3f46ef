"""Starts and ends the daemon of a home. Started means: its control socket answers; ended: its process is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import typer

from fullrank_node.cli.options import require_node
from fullrank_node.cli.render import clean
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_full
from fullrank_node.home import Home, RunInfo

START_TIMEOUT_S = 180.0
"""Importing the network library alone takes 4 to 10 s, and several times that on a machine short of processors."""

STOP_TIMEOUT_S = 60.0
"""A worker may be in the middle of a durable write; the daemon itself ends within a second."""

POLL_S = 0.1
"""How long the start of a daemon goes unnoticed; its end is noticed at once."""

ANSWER_TIMEOUT_S = 5.0

TAIL_LINES = 30
"""Lines of output that explain a failed start: a traceback, or an error with a list of bad rows."""

TAIL_BYTES_PER_LINE = 400
"""Of a log that is read from its end: longer lines are rare, and then fewer are shown."""

OUTPUT_NAME = "daemon.out"
"""What a daemon in the background prints beside its log, in the folder of the logs; begun anew by each start."""


def command_line(home: Home) -> list[str]:
    """How the daemon's process is started. -P: nothing in the current directory can pose as a library."""
    return [sys.executable, "-P", "-m", "fullrank_node.daemon", "--home", str(home.path)]


def start_in_background(home: Home) -> int:
    """Starts the daemon in a session of its own and waits until it answers; returns its process id.

    Raises:
        NodeError: No node is set up, one already runs, or it ended while starting (with its own reason).
    """
    require_startable(home)
    home.logs_dir.mkdir(mode=0o700, exist_ok=True)
    output = home.logs_dir / OUTPUT_NAME
    with output.open("wb") as file:
        process = subprocess.Popen(
            command_line(home), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait_for_answer(home, process, output)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return process.pid


def run_in_foreground(home: Home) -> None:
    """Becomes the daemon: same process id, so service managers and Ctrl-C reach it directly."""
    require_startable(home)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*command_line(home), "--foreground"])  # noqa: S606


def require_startable(home: Home) -> None:
    """Raises NodeError where a start is bound to fail, before the seconds that loading the libraries takes."""
    from fullrank_node.config import load_config

    require_node(home)
    load_config(home.config_file)
    if home.is_locked():
        run = home.read_run()
        raise NodeError(
            f"the daemon of {home.path} is already running" + (f" (process {run.pid})" if run else ""),
            hint="See `fullrank status`; `fullrank stop` ends it.",
        )


def stop(home: Home) -> RunInfo:
    """Ends the daemon and waits until its process is gone.

    Raises:
        NodeError: None is running, or it does not end.
    """
    import psutil

    from fullrank_node.api.client import not_running

    run = home.read_run()
    if run is None:
        if home.is_locked():
            raise NodeError("the daemon is just starting", hint="Try again in some seconds.", exit_code=ExitCode.RETRY)
        raise not_running(home)
    try:
        process = psutil.Process(run.pid)
        _ask_to_stop(home, run)
        process.wait(timeout=STOP_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired as error:
        raise NodeError(
            f"the daemon (process {run.pid}) has not ended within {STOP_TIMEOUT_S:.0f} s",
            hint=f"Wait and see `fullrank logs`, or end it by force with `kill -9 {run.pid}`: nothing whole is lost.",
            exit_code=ExitCode.RETRY,
        ) from error
    return run


def answers(home: Home) -> bool:
    """Whether the daemon of a home answers on its control socket."""
    from fullrank_node.api.client import connect

    try:
        with connect(home, timeout_s=ANSWER_TIMEOUT_S) as client:
            client.status()
    except NodeError:
        return False
    return True


def tail(path: Path, *, lines: int) -> list[str]:
    """The last lines of a text file, without control characters; none where there is no file."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL_BYTES_PER_LINE * lines))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [clean(line, limit=TAIL_BYTES_PER_LINE) for line in text.splitlines()[-lines:]] if lines else []


def _ask_to_stop(home: Home, run: RunInfo) -> None:
    from fullrank_node.api.client import connect

    try:
        with connect(home, timeout_s=ANSWER_TIMEOUT_S) as client:
            client.stop()
    except NodeError:
        # A daemon too busy or too broken to answer still ends in order on a signal.
        try:
            os.kill(run.pid, signal.SIGTERM)
        except ProcessLookupError:
            return


def _wait_for_answer(home: Home, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            code = process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            run = home.read_run()
            if run is not None and run.pid == process.pid and answers(home):
                return
        else:
            raise _failed_start(home, code, output)
    raise NodeError(
        f"the daemon (process {process.pid}) has not answered within {START_TIMEOUT_S:.0f} s; it may still be starting",
        hint="See `fullrank logs`; `fullrank status` tells when it answers.",
        exit_code=ExitCode.RETRY,
    )


def _failed_start(home: Home, code: int, output: Path) -> NodeError:
    """The daemon's own reason: it ends its output with "error: …" and "hint: …"."""
    lines = tail(output, lines=TAIL_LINES) or tail(home.log_file, lines=TAIL_LINES)
    starts = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    said = "\n".join(lines[starts[-1] :]) if starts else ""
    reason, _, hint = said.removeprefix("error: ").partition("\nhint: ")
    for line in () if starts else lines:
        typer.echo(f"  {line}", err=True)
    if code == ExitCode.DISK and not reason:  # There was no room for saying so.
        return disk_full(home.path)
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return NodeError(
        reason or f"the daemon ended while starting ({ending})",
        hint=hint or f"The log is {home.log_file}; `fullrank doctor` checks the machine.",
        exit_code=ExitCode(code) if code in set(ExitCode) - {ExitCode.OK} else ExitCode.ERROR,
    )
