"""What an owner gets wrong, with a real daemon: a sentence, a cure, an exit code, and the node as whole as before."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from live_swarm import DEADLINE_S, LiveNode, LiveSwarm, now_ms, wait_for_new_final_rounds, wait_until

from fullrank_node.api.client import connect
from fullrank_node.errors import ExitCode

pytestmark = pytest.mark.timeout(600)

SHORT_SLOTS = ("--window", "2")
"""One node alone carries shorter slots than four."""

LIFE_OF_THE_INVITE_MS = 14_000
"""Enough slots for the grant to be carried before it ends."""

_ALMOST_FULL = """
import sys
from fullrank_node import daemon, store
whole = store.open_database
def almost_full(path, *, readonly):
    connection = whole(path, readonly=readonly)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    return connection
store.open_database = almost_full
sys.exit(daemon.main(["--home", sys.argv[1]]))
"""
"""A daemon whose disk has room for two more pages of the database."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSwarm]:
    with LiveSwarm(tmp_path_factory.mktemp("swarm")) as live:
        yield live


@pytest.fixture(scope="module")
def ada(live: LiveSwarm) -> LiveNode:
    """The founder, in the middle of things."""
    ada = live.found("ada", options=SHORT_SLOTS)
    wait_for_new_final_rounds([ada], 1)
    return ada


@pytest.mark.parametrize(
    ("base", "words", "code"),
    [
        ("./no-such-directory", "no-such-directory", ExitCode.CONFIG),
        ("no-such/model", "the base no-such/model is not in the cache and the hub cannot be reached", ExitCode.RETRY),
    ],
)
def test_an_unknown_base_is_named_and_leaves_no_home(live: LiveSwarm, base: str, words: str, code: ExitCode) -> None:
    node = live.node("nobody")
    done = node.fullrank("create", "--base", base, "--name", "x", code=code)
    assert words in done.stderr
    assert "hint: " in done.stderr
    assert not node.home.path.exists()


def test_an_expired_invite_is_told_to_the_joiner_in_its_status(live: LiveSwarm, ada: LiveNode) -> None:
    with connect(ada.home) as client:
        reply = client.invite(count=1, valid_for_ms=LIFE_OF_THE_INVITE_MS, certify=False)
    ends_ms = now_ms() + LIFE_OF_THE_INVITE_MS
    wait_until("the grant is carried", lambda: reply.grant in grants_of(ada), [ada])
    zoe = live.node("zoe")
    wait_until("the invite ends", lambda: now_ms() > ends_ms)
    zoe.fullrank("join", reply.link, "--yes", "--name", "zoe", "--listen", "/ip4/127.0.0.1/tcp/0")
    words = "this node was not admitted: the invite expired at 20"
    told = wait_until("zoe knows", lambda: zoe.status()["reason"].startswith(words) and zoe.status(), [zoe, ada])
    assert told["reason"] in told["warnings"]
    assert "`fullrank invite`" in told["reason"]
    assert told["state"] == "waiting"
    assert not told["member"]
    assert "zoe" not in ada.members()
    zoe.stop()


def grants_of(node: LiveNode) -> set[bytes]:
    """The grants of all invites on the chain."""
    with connect(node.home) as client:
        return {invite.grant for invite in client.members().invites}


def test_who_serves_another_swarm_is_not_waited_for(live: LiveSwarm, ada: LiveNode) -> None:
    other = replace(live.invite(ada), swarm=bytes(range(32)), final=None)
    done = live.node("lost").fullrank("join", str(other), "--yes", code=ExitCode.NO_PEERS)
    assert "nobody of the link's swarm is there" in done.stderr
    assert "the peer does not serve this swarm" in done.stderr
    assert "ask for its link" in done.stderr
    assert not live.nodes["lost"].home.path.exists()


def test_a_second_daemon_on_one_home_is_told_about_the_first(ada: LiveNode) -> None:
    done = ada.fullrank("start", code=ExitCode.ERROR)
    assert "already running" in done.stderr
    assert str(ada.daemon().pid) in done.stderr
    assert ada.status()["running"]


def test_a_full_disk_ends_the_node_with_its_code_and_loses_nothing(live: LiveSwarm, ada: LiveNode) -> None:
    ada.stop()
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ALMOST_FULL, ada.home.path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=live.environment,
        check=False,
    )
    assert done.returncode == ExitCode.DISK, done.stderr
    assert f"error: no space left on the disk that holds {ada.home.state_file}\n" in done.stderr
    assert "hint: Free some space there" in done.stderr
    ada.start()
    wait_for_new_final_rounds([ada], 1)
    assert ada.json("verify")["mismatch"] in (None, "")


def test_a_key_that_others_can_read_is_not_used(ada: LiveNode) -> None:
    if ada.status()["running"]:
        ada.stop()
    ada.home.identity_file.chmod(0o644)
    done = ada.fullrank("start", code=ExitCode.PERMISSION)
    assert "can be read by others (mode 0644, required 0600)" in done.stderr
    assert f"chmod 600 {ada.home.identity_file}" in done.stderr
    ada.home.identity_file.chmod(0o600)


def test_a_taken_port_is_named_with_what_to_do(ada: LiveNode) -> None:
    if ada.status()["running"]:
        ada.stop()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        address = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        ada.fullrank("config", "set", "network.listen", address)
        done = ada.fullrank("start", code=ExitCode.CONFIG)
        assert f"another program listens at {address} already" in done.stderr
    ada.fullrank("start")
    wait_until("the port is used", lambda: address in ada.status()["addresses"][0], [ada])
