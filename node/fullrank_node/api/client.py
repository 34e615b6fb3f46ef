"""Asks the running daemon, and turns every way of getting no answer into a sentence with a cure.

Synchronous on purpose: a command asks once and prints, and asyncio would cost its start-up time.
"""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import grpc

from fullrank_node.api import access_token, control_pb2_grpc, failures
from fullrank_node.api import control_pb2 as wire
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home

CALL_TIMEOUT_S = 10.0
"""The daemon answers from memory in milliseconds; on a machine short of processors, in a few seconds."""

MAX_REPLY_BYTES = 16 << 20
"""A long history of a large swarm; above, the limits of the requests should have cut it."""

_Reply = TypeVar("_Reply")


def connect(home: Home, *, timeout_s: float = CALL_TIMEOUT_S) -> "ControlClient":
    """A client of the daemon that runs on `home`.

    Raises:
        NodeError: No daemon runs there, or its token cannot be read.
    """
    run = home.read_run()
    if run is None:
        raise not_running(home)
    token = access_token.read_token(Path(run.token_file))
    return ControlClient(run.socket, token, timeout_s=timeout_s)


def not_running(home: Home) -> NodeError:
    """The error of every command that needs a daemon where none runs."""
    if home.exists():
        return NodeError(
            f"no daemon is running on {home.path}", hint="Start it with `fullrank start`.", exit_code=ExitCode.NO_PEERS
        )
    return NodeError(
        f"there is no node at {home.path}",
        hint="Set one up with `fullrank join LINK` or `fullrank create`, or name another home with --home DIR.",
        exit_code=ExitCode.NO_PEERS,
    )


class ControlClient:
    """One connection to a daemon; a context manager.

    Every method raises NodeError when the daemon refuses, fails or does not answer.
    """

    def __init__(self, socket_path: Path | str, token: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket_path}",
            options=(("grpc.max_receive_message_length", MAX_REPLY_BYTES), ("grpc.enable_http_proxy", 0)),
        )
        self._stub = control_pb2_grpc.ControlStub(self._channel)  # type: ignore[no-untyped-call]  # Generated.
        self._metadata = access_token.metadata(token)
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def status(self) -> wire.StatusReply:
        """What the node is doing and why."""
        return self._call(self._stub.Status, wire.StatusRequest(), wire.StatusReply)

    def history(self, *, round: int | None = None, limit: int = 0) -> wire.HistoryReply:  # noqa: A002
        """Rounds and own contributions, or one round in full."""
        return self._call(self._stub.History, wire.HistoryRequest(round=round, limit=limit), wire.HistoryReply)

    def peers(self) -> wire.PeersReply:
        """Connected and known peers."""
        return self._call(self._stub.Peers, wire.PeersRequest(), wire.PeersReply)

    def members(self) -> wire.MembersReply:
        """Members and invites."""
        return self._call(self._stub.Members, wire.MembersRequest(), wire.MembersReply)

    def invite(self, *, count: int, valid_for_ms: int, certify: bool) -> wire.InviteReply:
        """A new link that admits `count` members."""
        request = wire.InviteRequest(count=count, valid_for_ms=valid_for_ms, certify=certify)
        return self._call(self._stub.Invite, request, wire.InviteReply)

    def revoke(self, subject: str, *, whole_tree: bool, preview: bool = False) -> wire.RevokeReply:
        """Takes rights away from a member or an invite, or with `preview` tells from whom."""
        request = wire.RevokeRequest(subject=subject, whole_tree=whole_tree, preview=preview)
        return self._call(self._stub.Revoke, request, wire.RevokeReply)

    def retire(self, subjects: Sequence[str], *, preview: bool) -> wire.RetireReply:
        """Takes certifiers out of the count, or with `preview` tells what that would do."""
        request = wire.RetireRequest(subjects=subjects, preview=preview)
        return self._call(self._stub.Retire, request, wire.RetireReply)

    def adopt(self, checkpoint: str, *, preview: bool) -> wire.AdoptReply:
        """Chooses or follows one of two conflicting checkpoints, or with `preview` tells what that would do."""
        request = wire.AdoptRequest(checkpoint=checkpoint, preview=preview)
        return self._call(self._stub.Adopt, request, wire.AdoptReply)

    def leave_swarm(self, *, certifier_role_only: bool) -> wire.LeaveSwarmReply:
        """Leaves the swarm, or only the certifiers."""
        request = wire.LeaveSwarmRequest(certifier_role_only=certifier_role_only)
        return self._call(self._stub.LeaveSwarm, request, wire.LeaveSwarmReply)

    def pause(self, *, for_ms: int = 0) -> wire.PauseReply:
        """Stops training, for a time or until resumed."""
        return self._call(self._stub.Pause, wire.PauseRequest(for_ms=for_ms), wire.PauseReply)

    def resume(self) -> wire.ResumeReply:
        """Trains again."""
        return self._call(self._stub.Resume, wire.ResumeRequest(), wire.ResumeReply)

    def finish(self) -> wire.FinishReply:
        """Ends the daemon after the current delta."""
        return self._call(self._stub.Finish, wire.FinishRequest(), wire.FinishReply)

    def stop(self) -> wire.StopReply:
        """Ends the daemon."""
        return self._call(self._stub.Stop, wire.StopRequest(), wire.StopReply)

    def _call(self, method: Any, request: Any, _reply_class: type[_Reply]) -> _Reply:
        try:
            reply = method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _explained(error, self._timeout_s) from error
        return cast(_Reply, reply)


def _explained(error: Any, timeout_s: float) -> NodeError:
    """What a failed call means to a person."""
    if (sent := failures.from_metadata(error.trailing_metadata())) is not None:
        return sent
    code = error.code()
    if code == grpc.StatusCode.UNAVAILABLE:
        return NodeError(
            f"the daemon does not answer: {error.details()}",
            hint="See `fullrank logs`, then `fullrank stop` and `fullrank start`.",
            exit_code=ExitCode.NO_PEERS,
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return NodeError(
            "the daemon refused the token in its home",
            hint="Restart it: `fullrank stop`, then `fullrank start`.",
            exit_code=ExitCode.PERMISSION,
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return NodeError(
            f"the daemon did not answer within {timeout_s:g} s",
            hint="Try again; if it stays silent, see `fullrank logs` and restart it.",
            exit_code=ExitCode.RETRY,
        )
    return NodeError(
        f"the daemon failed to answer ({code.name}): {error.details()}",
        hint="See `fullrank logs`.",
    )
