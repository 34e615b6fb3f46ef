"""The control service: one Unix socket, a token, health and reflection.

The socket lies in a directory of mode 0700 and every call but the health check carries the token, so
neither another user nor a web page that reaches local sockets can steer the node.
"""

import asyncio
import contextlib
import hmac
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fullrank_node.api import control_pb2 as wire
from fullrank_node.api import control_pb2_grpc, failures, last_status
from fullrank_node.api.access_token import METADATA_KEY
from fullrank_node.api.view import NodeView
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import MAX_SOCKET_PATH_BYTES
from fullrank_protocol.errors import ProtocolError

SERVICE = wire.DESCRIPTOR.services_by_name["Control"].full_name

MAX_REQUEST_BYTES = 64 << 10
"""The largest request is a name and a few numbers; the default of 4 MiB would only serve mischief."""

MAX_CONCURRENT_CALLS = 32
"""A person's commands and a dashboard; each call holds memory in the daemon's loop."""

REMEMBER_INTERVAL_S = 30.0
"""How old the last known state in the home may be after a kill: small beside a round, and one small write."""

REMEMBER_TIMEOUT_S = 2.0
"""A status comes from memory; a node that cannot give one any more must still be able to end."""

STOP_GRACE_S = 1.0
"""Lets the reply to `stop` reach the command that asked for it."""

_PUBLIC_PREFIX = "/grpc.health.v1.Health/"
_LOG = logging.getLogger(__name__)

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


class ControlServer:
    """Serves a NodeView on a Unix socket until stopped."""

    def __init__(self, view: NodeView, socket_path: Path | str, token: str, *, remember: Path | None = None) -> None:
        """Prepares the service; nothing is opened before `start`.

        Args:
            view: The node.
            socket_path: Where the socket will be; its directory exists and is private.
            token: What callers must present.
            remember: File for the last known status, which `fullrank status` shows while no daemon runs.
        """
        self._view = view
        self._socket_path = Path(socket_path)
        self._token = token
        self._remember_path = remember
        self._remembering: asyncio.Task[None] | None = None
        self._server: Any = None
        self._health: Any = None

    async def start(self) -> None:
        """Opens the socket and answers from then on.

        Raises:
            NodeError: The path is too long for a Unix socket, or cannot be bound.
        """
        _check_socket_path(self._socket_path)
        server = grpc.aio.server(
            interceptors=(_TokenInterceptor(self._token),),
            options=(("grpc.max_receive_message_length", MAX_REQUEST_BYTES),),
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        control_pb2_grpc.add_ControlServicer_to_server(_Servicer(self._view), server)  # type: ignore[no-untyped-call]
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # Its stubs are older.
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            server.add_insecure_port(f"unix:{self._socket_path}")
        except RuntimeError as error:
            raise NodeError(
                f"the control socket {self._socket_path} cannot be opened: {error}",
                hint="Check that its directory exists and can be written to; `fullrank doctor` tells more.",
            ) from error
        await server.start()
        self._socket_path.chmod(0o600)
        for service in (SERVICE, ""):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        if self._remember_path is not None:
            self._remembering = asyncio.create_task(self._remember_regularly(), name="remember status")

    async def stop(self) -> None:
        """Remembers the last status, lets running calls end, and removes the socket. Safe to call twice."""
        remembering, self._remembering = self._remembering, None
        server, self._server = self._server, None
        try:
            if remembering is not None:
                remembering.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await remembering
                await self.remember()
        finally:
            if server is not None:
                await self._health.enter_graceful_shutdown()
                await server.stop(STOP_GRACE_S)
            self._socket_path.unlink(missing_ok=True)

    async def remember(self) -> None:
        """Writes the present status into the home, for `fullrank status` after the daemon's end."""
        if self._remember_path is None:
            return
        try:
            async with asyncio.timeout(REMEMBER_TIMEOUT_S):
                status = await self._view.status(wire.StatusRequest())
            last_status.write(self._remember_path, status)
        except (NodeError, OSError) as error:
            # A convenience for people, so it may fail (TimeoutError is an OSError): a full disk is reported elsewhere.
            _LOG.warning("cannot remember the status: %s", error)

    async def _remember_regularly(self) -> None:
        while True:
            await asyncio.sleep(REMEMBER_INTERVAL_S)
            await self.remember()


def _check_socket_path(path: Path) -> None:
    num_bytes = len(os.fsencode(path))
    if num_bytes > MAX_SOCKET_PATH_BYTES:
        raise NodeError(
            f"the control socket's path has {num_bytes} bytes; {MAX_SOCKET_PATH_BYTES} is the most a system allows",
            hint="Set XDG_RUNTIME_DIR or TMPDIR to a short, writable directory.",
            exit_code=ExitCode.CONFIG,
        )


class _Servicer:
    """The generated service's method names, each answered by the view."""

    def __init__(self, view: NodeView) -> None:
        self.Status = _answered(view.status)
        self.History = _answered(view.history)
        self.Peers = _answered(view.peers)
        self.Members = _answered(view.members)
        self.Invite = _answered(view.invite)
        self.Revoke = _answered(view.revoke)
        self.Retire = _answered(view.retire)
        self.Adopt = _answered(view.adopt)
        self.LeaveSwarm = _answered(view.leave_swarm)
        self.Pause = _answered(view.pause)
        self.Resume = _answered(view.resume)
        self.Finish = _answered(view.finish)
        self.Stop = _answered(view.stop)


def _answered(method: Callable[[_Request], Awaitable[_Reply]]) -> Callable[[_Request, Any], Awaitable[_Reply]]:
    """A gRPC handler: errors with a cure travel as ControlFailure, our own mistakes as UNKNOWN with a log entry."""

    async def handle(request: _Request, context: Any) -> _Reply:
        try:
            return await method(request)
        except NodeError as error:
            failure = error
        except ProtocolError as error:
            failure = NodeError(error.detail, exit_code=ExitCode.PROTOCOL)
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(failure), failures.to_metadata(failure))
        raise AssertionError("abort always raises")

    return handle


class _TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # Not generic when it runs.
    """Refuses calls without the token before a request is even read."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        presented = dict(details.invocation_metadata or ()).get(METADATA_KEY, "")
        presented = presented if isinstance(presented, bytes) else str(presented).encode()
        allowed = details.method.startswith(_PUBLIC_PREFIX) or hmac.compare_digest(presented, self._expected)
        return await continuation(details) if allowed else _REFUSAL


async def _refuse(_request: Any, context: Any) -> Any:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the call carries no valid token")


_REFUSAL = grpc.unary_unary_rpc_method_handler(_refuse)
