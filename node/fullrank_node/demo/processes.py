"""The demo's node daemons: real ones, each with a home and a process of its own, and none that outlives the demo.

A daemon holds the reading end of a pipe as its standard input and ends when the demo is gone, however that went.
"""

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home

if TYPE_CHECKING:
    from fullrank_node.api import control_pb2 as wire
    from fullrank_node.api.client import ControlClient

START_TIMEOUT_S = 240.0
"""Importing hivemind and torch takes 4 to 10 s a daemon, and several times that when all start on few cores."""

STOP_TIMEOUT_S = 10.0
"""A daemon ends within a second; a worker in the middle of a durable write needs some more."""

CALL_TIMEOUT_S = 30.0
"""The daemon answers in milliseconds; on a machine short of processors, in seconds."""

DEATH_S = 2.0
"""How long after a broken call the end of a dead process may take to be known."""

POLL_S = 0.2

TAIL_LINES = 12
TAIL_BYTES = 8 << 10

OUTPUT_NAME = "daemon.out"


@dataclass(slots=True, kw_only=True, eq=False)
class DemoNode:
    """One node of the demo.

    Attributes:
        name: Of the node, as its peers see it.
        domain: What its texts are about.
        data: Its texts.
        status: What it said last.
        joined_at_s: Loop time at which its `join` (or `create`) began.
        first_accepted_s: Seconds from then to its first accepted delta; None before.
    """

    name: str
    domain: str
    home: Home
    data: Path
    process: asyncio.subprocess.Process | None = None
    status: "wire.StatusReply | None" = None
    joined_at_s: float = 0.0
    first_accepted_s: float | None = None
    _client: "ControlClient | None" = field(default=None, repr=False)

    async def start(self) -> None:
        """Start the daemon and return when it answers.

        Raises:
            NodeError: It ended, with its reason and the end of its log, or does not answer.
        """
        self.home.logs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = ["-P", "-m", "fullrank_node.daemon", "--home", str(self.home.path), "--until-eof"]
        with (self.home.logs_dir / OUTPUT_NAME).open("wb") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends its nodes in order.
                env=_environment(),
            )
        deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline_s:
            self.require_well()
            run = self.home.read_run()
            if run is not None and run.pid == self.process.pid:
                await self.look()
                if self.status is not None:
                    return
            await asyncio.sleep(POLL_S)
        raise self.failure(f"has not answered within {START_TIMEOUT_S:.0f} s")

    def require_well(self) -> None:
        """Raise the reason for which this node ended, or cannot go on without a person.

        Raises:
            NodeError: With the end of its log.
        """
        if self.process is not None and self.process.returncode is not None:
            code = self.process.returncode
            ending = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise self.failure(f"ended unexpectedly ({ending})")
        if self.status is not None and self._is_troubled(self.status):
            raise self.failure(f"is in trouble: {self.status.reason}")

    async def look(self) -> None:
        """Ask for the status; a node too busy to answer keeps its last one."""
        with contextlib.suppress(NodeError):
            self.status = await asyncio.to_thread(lambda: self.client().status())

    async def ask(self, method: str, **arguments: Any) -> Any:
        """Call a method of the control service.

        Raises:
            NodeError: The node refuses, does not answer, or ended meanwhile, with the end of its log then.
        """
        try:
            return await asyncio.to_thread(lambda: getattr(self.client(), method)(**arguments))
        except NodeError:
            if self.process is not None:  # A broken connection is the first that is heard of a death.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.process.wait(), DEATH_S)
            self.require_well()
            raise

    def client(self) -> "ControlClient":
        """The connection to the daemon; blocks while it is made."""
        from fullrank_node.api.client import connect

        if self._client is None:
            self._client = connect(self.home, timeout_s=CALL_TIMEOUT_S)
        return self._client

    def failure(self, what: str) -> NodeError:
        """An error about this node that ends with the end of its log."""
        lines = _tail(self.home.logs_dir / OUTPUT_NAME) or _tail(self.home.log_file)
        log = "".join(f"\n  | {line}" for line in lines)
        return NodeError(
            f"{self.name} {what}" + (f"; the end of its log:{log}" if log else ""),
            hint="Keep the homes with `fullrank demo --keep DIR` to read the whole logs; `fullrank doctor` checks "
            "the machine.",
            exit_code=ExitCode.ERROR,
        )

    async def stop(self) -> None:
        """End the daemon and everything of it; returns when it is gone, also when it must be killed."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self.process.wait()
            except TimeoutError:
                self._kill()
                await self.process.wait()
        # A killed daemon leaves its own group (p2pd) and its files behind; an orderly end left neither.
        self._kill()
        self.home.clear_run()
        self.process = None

    def _kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @staticmethod
    def _is_troubled(status: "wire.StatusReply") -> bool:
        from fullrank_node.api import control_pb2 as wire

        return status.state == wire.NODE_TROUBLED


def _environment() -> dict[str, str]:
    """This process's own, offline, and without what is meant for the owner's own node (FULLRANK_…)."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("FULLRANK_")}
    return own | {"HF_HUB_OFFLINE": "1"}


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    except FileNotFoundError:
        return []
