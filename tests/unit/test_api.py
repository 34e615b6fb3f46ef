"""The control service: who may call it, how failures reach a person, and what it leaves behind."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fake_node
import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fullrank_node.api import access_token, client, last_status
from fullrank_node.api import control_pb2 as wire
from fullrank_node.api import server as server_module
from fullrank_node.api.server import MAX_REQUEST_BYTES, SERVICE, ControlServer
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home
from fullrank_protocol.errors import RejectError, Rule

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    fake_node.set_up(home)
    return home


@pytest.fixture
async def view(home: Home) -> AsyncIterator[fake_node.FakeNode]:
    view = fake_node.FakeNode()
    async with fake_node.serving(home, view):
        yield view


def socket_of(home: Home) -> Path:
    run = home.read_run()
    assert run is not None
    return Path(run.socket)


async def ask(home: Home, name: str, **arguments: Any) -> Any:
    """Calls one method of a client, outside the loop that serves it."""

    def call() -> Any:
        with client.connect(home) as connection:
            return getattr(connection, name)(**arguments)

    return await asyncio.to_thread(call)


async def failure(home: Home, name: str, **arguments: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await ask(home, name, **arguments)
    return caught.value


@pytest.mark.parametrize(
    ("name", "arguments", "request_sent"),
    [
        ("status", {}, wire.StatusRequest()),
        ("history", {"round": 0, "limit": 5}, wire.HistoryRequest(round=0, limit=5)),
        ("history", {}, wire.HistoryRequest()),
        ("peers", {}, wire.PeersRequest()),
        ("members", {}, wire.MembersRequest()),
        (
            "invite",
            {"count": 3, "valid_for_ms": 9, "certify": True},
            wire.InviteRequest(count=3, valid_for_ms=9, certify=True),
        ),
        (
            "revoke",
            {"subject": "slow-heron", "whole_tree": True},
            wire.RevokeRequest(subject="slow-heron", whole_tree=True),
        ),
        (
            "retire",
            {"subjects": ["dan", "eve"], "preview": True},
            wire.RetireRequest(subjects=["dan", "eve"], preview=True),
        ),
        ("adopt", {"checkpoint": "29292929", "preview": False}, wire.AdoptRequest(checkpoint="29292929")),
        ("leave_swarm", {"certifier_role_only": True}, wire.LeaveSwarmRequest(certifier_role_only=True)),
        ("pause", {"for_ms": 60_000}, wire.PauseRequest(for_ms=60_000)),
        ("resume", {}, wire.ResumeRequest()),
        ("finish", {}, wire.FinishRequest()),
        ("stop", {}, wire.StopRequest()),
    ],
)
async def test_every_method_reaches_the_node(
    home: Home, view: fake_node.FakeNode, name: str, arguments: dict[str, Any], request_sent: Any
) -> None:
    await ask(home, name, **arguments)
    assert view.asked == [request_sent]


async def test_the_reply_arrives_as_the_node_gave_it(home: Home, view: fake_node.FakeNode) -> None:
    assert await ask(home, "status") == view.status_reply


async def test_a_failure_arrives_with_hint_and_exit_code(home: Home, view: fake_node.FakeNode) -> None:
    view.failure = NodeError("die Platte ist voll: überall", hint="Räum auf.", exit_code=ExitCode.DISK)
    error = await failure(home, "history")
    assert (str(error), error.hint, error.exit_code) == ("die Platte ist voll: überall", "Räum auf.", ExitCode.DISK)


async def test_a_broken_protocol_rule_arrives_as_such(home: Home, view: fake_node.FakeNode) -> None:
    view.failure = RejectError(Rule.RECORD, "the grant has expired")
    error = await failure(home, "revoke", subject="x", whole_tree=False)
    assert (str(error), error.exit_code) == ("the grant has expired", ExitCode.PROTOCOL)


async def test_a_mistake_of_ours_points_to_the_log(home: Home, view: fake_node.FakeNode) -> None:
    view.failure = KeyError("oops")
    error = await failure(home, "peers")
    assert "UNKNOWN" in str(error)
    assert "fullrank logs" in error.hint


async def test_a_wrong_token_is_refused(home: Home, view: fake_node.FakeNode) -> None:
    access_token.create_token(home.token_file)
    error = await failure(home, "status")
    assert error.exit_code == ExitCode.PERMISSION
    assert view.asked == []


async def test_a_token_that_others_can_read_is_not_used(home: Home, view: fake_node.FakeNode) -> None:
    home.token_file.chmod(0o644)
    error = await failure(home, "status")
    assert error.exit_code == ExitCode.PERMISSION
    assert "0644" in str(error)


async def test_a_node_that_does_not_answer_in_time_is_reported(home: Home, view: fake_node.FakeNode) -> None:
    view.silent = True

    def call() -> None:
        with client.connect(home, timeout_s=0.2) as connection:
            connection.status()

    with pytest.raises(NodeError) as caught:
        await asyncio.to_thread(call)
    assert caught.value.exit_code == ExitCode.RETRY
    view.silent = False


async def test_a_daemon_that_is_gone_is_reported_with_the_command_that_helps(home: Home) -> None:
    error = await failure(home, "status")
    assert error.exit_code == ExitCode.NO_PEERS
    assert "fullrank start" in error.hint


async def test_a_home_without_a_node_is_reported_with_the_command_that_helps(tmp_path: Path) -> None:
    error = await failure(Home(tmp_path / "nowhere"), "status")
    assert error.exit_code == ExitCode.NO_PEERS
    assert "fullrank join" in error.hint


# ---- other clients -----------------------------------------------------------------------------


@pytest.fixture
async def channel(home: Home, view: fake_node.FakeNode) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"unix:{socket_of(home)}") as channel:
        yield channel


def credentials(home: Home) -> tuple[tuple[str, str], ...]:
    return access_token.metadata(access_token.read_token(home.token_file))


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer "),), (("authorization", "Bearer 00"),)])
async def test_a_call_without_the_token_never_reaches_the_node(
    channel: Any, view: fake_node.FakeNode, metadata: tuple[tuple[str, str], ...]
) -> None:
    call = channel.unary_unary(f"/{SERVICE}/Stop", response_deserializer=wire.StopReply.FromString)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=metadata)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert view.asked == []


async def test_health_is_answered_without_the_token(channel: Any) -> None:
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def _services(channel: Any, metadata: tuple[tuple[str, str], ...]) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    replies = [reply async for reply in stub.ServerReflectionInfo(iter([request]), metadata=metadata)]
    return [service.name for service in replies[0].list_services_response.service]


async def test_reflection_names_the_service_to_those_with_the_token(channel: Any, home: Home) -> None:
    assert SERVICE in await _services(channel, credentials(home))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _services(channel, ())
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_an_oversize_request_is_refused_before_it_is_parsed(
    channel: Any, home: Home, view: fake_node.FakeNode
) -> None:
    call = channel.unary_unary(f"/{SERVICE}/Revoke", response_deserializer=wire.RevokeReply.FromString)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\x0a" * (MAX_REQUEST_BYTES + 1), metadata=credentials(home))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert view.asked == []


# ---- what lies on the disk ---------------------------------------------------------------------


async def test_socket_and_token_are_for_their_owner_alone(home: Home, view: fake_node.FakeNode) -> None:
    for path in (socket_of(home), home.token_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket_of(home).parent.stat().st_mode) == 0o700


async def test_a_stopped_server_leaves_no_socket_and_remembers_the_last_status(home: Home) -> None:
    view = fake_node.FakeNode()
    async with fake_node.serving(home, view) as server:
        assert socket_of(home).exists()
        await server.stop()
        assert not socket_of(home).exists()
    remembered = last_status.read(home.path / last_status.FILE_NAME)
    assert remembered is not None
    assert remembered.status == view.status_reply


async def test_a_node_that_cannot_give_its_status_any_more_can_still_be_stopped(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REMEMBER_TIMEOUT_S", 0.01)
    view = fake_node.FakeNode()
    view.silent = True
    async with fake_node.serving(home, view) as server:
        await server.stop()
        assert not socket_of(home).exists()


def test_a_damaged_memory_of_the_last_status_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "status.bin").write_bytes(b"\xff\xff\xff")
    assert last_status.read(tmp_path / "status.bin") is None
    assert last_status.read(tmp_path / "missing.bin") is None


async def test_a_socket_path_that_no_system_allows_is_refused_with_a_cure(tmp_path: Path) -> None:
    server = ControlServer(fake_node.FakeNode(), tmp_path / ("x" * 120), "token")
    with pytest.raises(NodeError, match="107") as caught:
        await server.start()
    assert "TMPDIR" in caught.value.hint


async def test_every_start_draws_another_token(tmp_path: Path) -> None:
    first = access_token.create_token(tmp_path / "token")
    second = access_token.create_token(tmp_path / "token")
    assert first != second
    assert access_token.read_token(tmp_path / "token") == second


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts" / "make_control"), str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHON": sys.executable})
    made = tmp_path / "fullrank_node" / "api"
    for name in ("control_pb2.py", "control_pb2.pyi", "control_pb2_grpc.py"):
        present = ROOT / "node" / "fullrank_node" / "api" / name
        assert present.read_bytes() == (made / name).read_bytes(), "run scripts/make_control"
