"""The child's end of a supervised child process: read calls, answer them, never outlive the parent.

`child_main` opens the pipes and imports the module that was asked for; that module calls `serve`.
Frames are a 4-byte little-endian length and a JSON object, on two pipes of their own: libraries print
to standard output, and it is joined to standard error, which ends up in the daemon's log.

    call      {"id": 7, "method": "check_delta", "params": {…}}
    progress  {"id": 7, "progress": {…}}
    answer    {"id": 7, "result": {…}}   or   {"id": 7, "error": {"kind": …, "detail": …}}
"""

import ctypes
import json
import os
import queue
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from fullrank_node.errors import NodeError
from fullrank_protocol.errors import IgnoreError, RejectError

MAX_FRAME_BYTES = 64 << 20
"""Largest frame either way. A manifest takes about 150 bytes a tensor, so this is room for 400,000 tensors."""

LENGTH = struct.Struct("<I")

_PR_SET_PDEATHSIG = 1

Params = dict[str, Any]


class Progress:
    """Tells the parent how far the call has come: `progress(step=3, of=20, loss=2.5)`."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send

    def __call__(self, **fields: Any) -> None:
        """Sends the fields to the caller's `on_progress`."""
        self._send(fields)


Handler = Callable[[Params, Progress], Mapping[str, Any]]


class _Pipes:
    """Both pipes, and the thread that reads calls and ends the process when the parent is gone."""

    def __init__(self, *, calls: BinaryIO, answers: BinaryIO) -> None:
        self.queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._calls = calls
        self._answers = answers
        threading.Thread(target=self._read, name="calls", daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Writes one frame; a parent that is gone ends the process."""
        data = json.dumps(message).encode()
        if len(data) > MAX_FRAME_BYTES:
            raise ValueError(f"an answer of {len(data)} bytes, at most {MAX_FRAME_BYTES} allowed")
        try:
            self._answers.write(LENGTH.pack(len(data)) + data)
            self._answers.flush()
        except BrokenPipeError:
            os._exit(0)

    def _read(self) -> None:
        while True:
            header = self._calls.read(LENGTH.size)
            if len(header) < LENGTH.size:
                os._exit(0)
            (length,) = LENGTH.unpack(header)
            data = self._calls.read(length)
            if len(data) < length:
                os._exit(0)
            self.queue.put(json.loads(data))


_pipes: _Pipes | None = None


def open_pipes(*, calls_fd: int, answers_fd: int, parent_pid: int) -> None:
    """Ties this process to its parent; called once, by `child_main`, before anything heavy is imported."""
    global _pipes  # noqa: PLW0603 - one parent per process
    die_with_parent(parent_pid)
    for descriptor in (calls_fd, answers_fd):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - its signature
    _pipes = _Pipes(calls=os.fdopen(calls_fd, "rb"), answers=os.fdopen(answers_fd, "wb"))


def die_with_parent(parent_pid: int) -> None:
    """Asks Linux to kill this process when its parent dies, however it dies; elsewhere the closed pipe tells.

    To Linux the parent is the thread that started the child: children belong to loops of main threads.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(0)


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answers calls one after the other until the parent is gone. Never returns.

    Args:
        handlers: Per method a function of (params, progress) that returns what JSON can carry. A RejectError,
            IgnoreError or NodeError raised by it is raised again in the parent; anything else is a ChildFailedError.
    """
    if _pipes is None:
        raise SystemExit("this module is a child process of the daemon: see fullrank_node.child")
    while True:
        call = _pipes.queue.get()
        _pipes.send({"id": call["id"], **_answer(handlers, call, _pipes)})


def _answer(handlers: Mapping[str, Handler], call: dict[str, Any], pipes: _Pipes) -> dict[str, Any]:
    progress = Progress(lambda fields: pipes.send({"id": call["id"], "progress": fields}))
    try:
        return {"result": dict(handlers[call["method"]](call["params"], progress))}
    except RejectError as error:
        return {"error": {"kind": "reject", "rule": int(error.rule), "detail": error.detail}}
    except IgnoreError as error:
        return {"error": {"kind": "ignore", "detail": error.detail}}
    except NodeError as error:
        detail = {"detail": str(error), "hint": error.hint, "exit_code": int(error.exit_code)}
        return {"error": {"kind": "node", **detail}}
    except Exception as error:  # noqa: BLE001 - the process boundary: a bug here must not lose the next call
        traceback.print_exc()
        return {"error": {"kind": "internal", "detail": f"{type(error).__name__}: {error}"}}
