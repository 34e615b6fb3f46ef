"""A supervised child process: heavy work outside the daemon's loop, and nothing left behind when it dies.

The parent calls methods by name and gets answers, progress, or the error that the child raised. A child
that died is started again by the next call. It sits in a session of its own, so that Ctrl-C in a terminal
reaches the daemon alone, and it ends with the daemon, also when that is killed (see `child_side`).
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from fullrank_node.child_side import LENGTH, MAX_FRAME_BYTES, Handler, Params, Progress, serve
from fullrank_node.errors import ExitCode, NodeError
from fullrank_protocol.errors import IgnoreError, RejectError, Rule

__all__ = ["ChildDiedError", "ChildFailedError", "ChildProcess", "Handler", "Params", "Progress", "serve"]

OnProgress = Callable[[dict[str, Any]], None]

_CLOSE_GRACE_S = 2.0
"""How long a child may take to notice the closed pipe before it is killed; it needs milliseconds."""

_READ_AHEAD_BYTES = 1 << 20
"""How much of an answer is taken from the pipe before it is asked for."""

_MAX_LINE_BYTES = 4096
"""Longest line of a child's output that is logged whole."""

_KEPT_LINES = 20
"""Last lines of output shown with the error when a child dies."""


class ChildDiedError(Exception):
    """The child ended before it answered; the next call starts a new one.

    Attributes:
        returncode: As in subprocess; negative is a signal. -9 without our doing usually means: out of memory.
    """

    def __init__(self, message: str, *, returncode: int | None) -> None:
        super().__init__(message)
        self.returncode = returncode


class ChildFailedError(Exception):
    """The child's own code raised something unforeseen: a bug, named in its detail; the log has its traceback."""


class ChildProcess:
    """One child process, started by the first call and again after it died."""

    def __init__(
        self,
        module: str,
        *,
        environment: Mapping[str, str] | None = None,
        nice: int = 0,
        logger: logging.Logger | None = None,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        """Describes the child; nothing is started yet.

        Args:
            module: Dotted name of a module that calls `serve` when run.
            environment: Variables set on top of this process's own, such as OMP_NUM_THREADS.
            nice: Added to this process's niceness.
            logger: Takes the child's output line by line; by default one named after the module.
            max_frame_bytes: Largest call or answer; a child that exceeds it is killed.
        """
        self.module = module
        self.environment = dict(environment or {})
        self.nice = nice
        self._logger = logger or logging.getLogger(module)
        self._max_frame_bytes = max_frame_bytes
        self._running: _Running | None = None
        self._starting = asyncio.Lock()
        self._next_id = 0

    async def __aenter__(self) -> "ChildProcess":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def pid(self) -> int | None:
        """Process id while the child runs."""
        return None if self._running is None or self._running.is_dead else self._running.process.pid

    async def start(self) -> None:
        """Starts the child if it does not run, so that the first call need not wait for imports."""
        await self._alive()

    async def call(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
        kill_on_cancel: bool = False,
    ) -> dict[str, Any]:
        """Calls a method of the child; concurrent calls are answered one after the other.

        Args:
            method: Name of a handler.
            params: What JSON can carry.
            on_progress: Called in the loop with each progress message.
            timeout_s: The child is killed when it has not answered after this long.
            kill_on_cancel: Cancelling this call kills the child; otherwise its work goes on unheard.

        Raises:
            RejectError: Raised by the handler (a peer's fault).
            IgnoreError: Raised by the handler.
            NodeError: Raised by the handler (for the operator).
            ChildFailedError: Anything else raised by the handler.
            ChildDiedError: The child died.
            TimeoutError: No answer in time.
        """
        running = await self._alive()
        self._next_id += 1
        call_id = self._next_id
        data = json.dumps({"id": call_id, "method": method, "params": dict(params)}).encode()
        if len(data) > self._max_frame_bytes:
            raise ValueError(f"a call of {len(data)} bytes, at most {self._max_frame_bytes} allowed")
        try:
            async with asyncio.timeout(timeout_s):
                return _result(await running.request(call_id, data, on_progress))
        except TimeoutError:
            await running.kill()
            raise
        except asyncio.CancelledError:
            if kill_on_cancel:
                await running.kill()
            raise

    async def kill(self) -> None:
        """Kills the child and its own children now; calls in flight fail with ChildDiedError."""
        if self._running is not None:
            await self._running.kill()

    async def close(self) -> None:
        """Ends the child: by closing its pipe, or by force when that does not help."""
        async with self._starting:
            running, self._running = self._running, None
        if running is not None:
            await running.close()

    async def _alive(self) -> "_Running":
        async with self._starting:
            if self._running is not None and self._running.is_dead:
                await self._running.closed()
                self._running = None
            if self._running is None:
                self._running = await _spawn(self)
            return self._running


class _Running:
    """One life of a child."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        reader: asyncio.StreamReader,
        reader_transport: asyncio.ReadTransport,
        writer: asyncio.StreamWriter,
        owner: ChildProcess,
    ) -> None:
        self.process = process
        self.is_dead = False
        self._reader = reader
        self._reader_transport = reader_transport
        self._writer = writer
        self._owner = owner
        self._waiting: dict[int, tuple[asyncio.Future[dict[str, Any]], OnProgress | None]] = {}
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._life = asyncio.create_task(self._live(), name=f"child {owner.module}")

    async def request(self, call_id: int, data: bytes, on_progress: OnProgress | None) -> dict[str, Any]:
        """Sends one call and waits for its answer."""
        if self.is_dead:
            raise self._died()
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = future, on_progress
        try:
            with contextlib.suppress(ConnectionError):
                self._writer.write(LENGTH.pack(len(data)) + data)
                await self._writer.drain()
            return await future
        finally:
            self._waiting.pop(call_id, None)

    async def kill(self) -> None:
        """Kills the whole process group and waits until it is gone."""
        self._signal(signal.SIGKILL)
        await self.closed()

    async def close(self) -> None:
        """Closes the calls' pipe, which ends the child; kills it after a grace."""
        self.is_dead = True
        self._writer.close()
        done, _ = await asyncio.wait([self._life], timeout=_CLOSE_GRACE_S)
        if not done:
            self._signal(signal.SIGKILL)
        await self.closed()

    async def closed(self) -> None:
        """Waits until the child is gone and everything of it is closed."""
        await asyncio.shield(self._life)

    def _signal(self, number: signal.Signals) -> None:
        self.is_dead = True
        if self.process.returncode is None:
            # The child leads its own group, so its own children (data loaders, say) go with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    async def _live(self) -> None:
        output = asyncio.create_task(self._log_output())
        try:
            await self._read_answers()
        finally:
            self.is_dead = True
            self._writer.close()
            self._reader_transport.close()
            if self.process.returncode is None and not await self._ends_by_itself():
                self._signal(signal.SIGKILL)
            await self.process.wait()
            # Grandchildren may hold the output open; what the child itself wrote is here by now.
            await asyncio.wait([output], timeout=_CLOSE_GRACE_S)
            output.cancel()
            for future, _ in self._waiting.values():
                if not future.done():
                    future.set_exception(self._died())

    async def _ends_by_itself(self) -> bool:
        try:
            async with asyncio.timeout(_CLOSE_GRACE_S):
                await self.process.wait()
        except TimeoutError:
            return False
        return True

    async def _read_answers(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                if length > self._owner._max_frame_bytes:
                    self._owner._logger.error("an answer of %d bytes is too large: killing the child", length)
                    self._signal(signal.SIGKILL)
                    return
                self._deliver(json.loads(await self._reader.readexactly(length)))

    def _deliver(self, message: dict[str, Any]) -> None:
        future, on_progress = self._waiting.get(message["id"], (None, None))
        if future is None or future.done():
            return
        if "progress" in message:
            if on_progress is not None:
                on_progress(message["progress"])
        else:
            future.set_result(message)

    async def _log_output(self) -> None:
        rest = b""
        while self.process.stdout and (data := await self.process.stdout.read(1 << 16)):
            # Progress bars of libraries rewrite their line with a carriage return.
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            self._log(lines)
        self._log([rest])

    def _log(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            text = line[:_MAX_LINE_BYTES].decode(errors="replace").rstrip()
            if text:
                self._last_lines.append(text)
                self._owner._logger.info("%s", text)

    def _died(self) -> ChildDiedError:
        code = self.process.returncode
        reason = "was ended" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        last = f"; its last words: {self._last_lines[-1]}" if self._last_lines else ""
        return ChildDiedError(f"the child process {self._owner.module} {reason}{last}", returncode=code)


async def _spawn(owner: ChildProcess) -> _Running:
    """Opens the pipes first, so that nothing can be cancelled between the child's start and its supervision."""
    loop = asyncio.get_running_loop()
    calls_read, calls_write = os.pipe()
    answers_read, answers_write = os.pipe()
    reader = asyncio.StreamReader(limit=_READ_AHEAD_BYTES)
    reader_transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(answers_read, "rb", buffering=0)
    )
    writer_transport, writer_protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(calls_write, "wb", buffering=0)
    )
    writer = asyncio.StreamWriter(writer_transport, writer_protocol, None, loop)
    arguments = [owner.module, str(calls_read), str(answers_write), str(os.getpid()), str(owner.nice)]
    try:
        process = await asyncio.create_subprocess_exec(
            # -P: a file in the working directory must not shadow a library.
            *(sys.executable, "-P", "-m", "fullrank_node.child_main", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(calls_read, answers_write),
            start_new_session=True,
            env={**os.environ, **owner.environment},
        )
    except BaseException:
        writer.close()
        reader_transport.close()
        raise
    finally:
        os.close(calls_read)
        os.close(answers_write)
    return _Running(process, reader=reader, reader_transport=reader_transport, writer=writer, owner=owner)


def _result(message: dict[str, Any]) -> dict[str, Any]:
    if "result" in message:
        return dict(message["result"])
    error = message["error"]
    detail = str(error["detail"])
    match error["kind"]:
        case "reject":
            raise RejectError(Rule(error["rule"]), detail)
        case "ignore":
            raise IgnoreError(detail)
        case "node":
            raise NodeError(detail, hint=error["hint"], exit_code=ExitCode(error["exit_code"]))
    raise ChildFailedError(detail)
