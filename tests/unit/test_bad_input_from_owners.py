"""What an owner gets wrong is said in a sentence, with a cure and its exit code, and nothing is left behind.

Here is what needs no daemon; `tests/integration/test_bad_input.py` has the rest.
"""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chains import NEVER_MS, key
from loop_swarm import LoopNode, loop_swarm, make_genesis
from peers import until
from swarms import WINDOW_MS, id_of, key_of, seed_of

from fullrank_node import daemon
from fullrank_node.admission import WARNING, offer_admission
from fullrank_node.cli import main
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_full
from fullrank_node.founding import fetch_genesis
from fullrank_node.home import Home
from fullrank_node.network.interface import NetworkError, OtherSwarm, PeerFailure, PeerInfo
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.link import Link
from fullrank_protocol.membership import ALL_ROLES, make_grant, make_revocation
from fullrank_protocol.wire import peer_pb2

LINK = f"fullrank:{'7f' * 32}?invite={'01' * 32}"


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No command of a test sees the developer's own node or settings."""
    for name in [name for name in os.environ if name.startswith("FULLRANK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FULLRANK_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A daemon sets up logging for its whole process: what it set up is taken down again."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [each for each in root.handlers if each not in before]:
        root.removeHandler(handler)
        handler.close()
    for handler in [each for each in before if each not in root.handlers]:
        root.addHandler(handler)


# ---- links and data --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["join"], ["pull", "-o", "model"], ["verify"]])
@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("fulrank:12", "fullrank:"),
        (LINK.replace("7f", "zz"), "64"),
        (LINK + "&peer=here", "'here' is not a multiaddress"),
        (LINK + "&peer=/ip4/192.0.2.1/tcp/4001", "'/ip4/192.0.2.1/tcp/4001' does not end in /p2p/ and a peer id"),
    ],
)
def test_a_wrong_link_names_what_is_wrong_with_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str], link: str, words: str
) -> None:
    assert main.run([command[0], link, *command[1:]]) == ExitCode.USAGE
    shown = capsys.readouterr()
    assert words in shown.err
    assert "hint:" in shown.err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("notes.txt", ["holds no model that `fullrank pull` wrote", "there is no fullrank.json in it"]),
        ("genesis.bin", ["is the home of a node", "fullrank verify --home"]),
        (None, ["no swarm's link, and there is no such directory"]),
    ],
)
def test_verifying_what_nobody_pulled_says_what_it_is_and_what_to_do_instead(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str | None, words: list[str]
) -> None:
    place = tmp_path / "place"
    if file is not None:
        place.mkdir()
        (place / file).write_bytes(b"")
    assert main.run(["verify", str(place)]) == ExitCode.USAGE
    shown = capsys.readouterr()
    assert all(word in shown.err for word in [str(place), "hint:", *words]), shown.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b'{"text": "fine"\n', ["line 1"]),
        (b'{"prompt": "no answer"}\n{"text": 7}\n', ["line 1", "line 2"]),
        (b'{"text": "\xfa"}\n', ["line 1", "UTF-8"]),
        (None, ["there is no"]),
    ],
    ids=["empty", "no json", "no text", "no utf-8", "missing"],
)
def test_data_that_cannot_be_used_is_named_with_its_lines_before_anything_is_set_up(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert main.run(["join", LINK, "--data", str(path), "--yes"]) == ExitCode.CONFIG
    shown = capsys.readouterr()
    assert str(path) in shown.err
    assert all(word in shown.err for word in words), shown.err
    assert not (tmp_path / "home" / "identity.key").exists()


# ---- full disks ------------------------------------------------------------------------------------


def test_a_daemon_that_finds_its_disk_full_says_so_and_exits_with_its_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(daemon, "run", no_room)
    assert daemon.main(["--home", str(tmp_path / "home")]) == ExitCode.DISK
    assert f"error: no space left on the disk that holds {tmp_path / 'home'}\n" in capsys.readouterr().err


def test_the_last_words_of_a_daemon_may_be_lost_but_not_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            """Nothing was written."""

    async def no_room(home: Home, _config: object) -> None:
        raise disk_full(home.path)

    monkeypatch.setattr(daemon, "run", no_room)
    monkeypatch.setattr("sys.stderr", Full())
    assert daemon.main(["--home", str(tmp_path / "home")]) == ExitCode.DISK


# ---- peers that one meets while joining ------------------------------------------------------------


class OnePeer:
    """A network with one peer, which answers as told."""

    def __init__(self, answer: peer_pb2.Response | NetworkError) -> None:
        self.answer = answer

    def peers(self) -> Sequence[PeerInfo]:
        return [PeerInfo(key=key("ada"))]

    async def request(self, *_: object, **__: object) -> peer_pb2.Response:
        if isinstance(self.answer, NetworkError):
            raise self.answer
        return self.answer


async def joining(answer: peer_pb2.Response | NetworkError) -> NodeError:
    network: Any = OnePeer(answer)
    with pytest.raises(NodeError) as caught:
        await fetch_genesis(network, Link(swarm=id_of("swarm")), progress=lambda *_, **__: None)
    return caught.value


async def test_a_peer_of_another_protocol_version_is_named_as_such() -> None:
    failure = PeerFailure(
        "peer speaks protocol 2, this node 1", code=peer_pb2.Failure.WRONG_VERSION, protocol_version=2
    )
    error = await joining(failure)
    assert error.exit_code == ExitCode.PROTOCOL
    assert "peer speaks protocol 2, this node 1" in str(error)
    assert error.hint == "Install a newer fullrank that speaks the swarm's protocol."


class Strangers:
    """A network in which everybody answers, and nobody is a peer."""

    def __init__(self, failure: NetworkError) -> None:
        self.failure = failure

    def peers(self) -> Sequence[PeerInfo]:
        return []

    def refusal(self) -> NetworkError:
        return self.failure

    def connection_errors(self) -> dict[str, str]:
        return {"/ip4/192.0.2.1/tcp/4001": str(self.failure)}


@pytest.mark.parametrize(
    ("strangers", "words", "hint", "code"),
    [
        (
            Strangers(OtherSwarm("the peer does not serve this swarm")),
            "nobody of the link's swarm is there: /ip4/192.0.2.1/tcp/4001: the peer does not serve this swarm",
            "ask for its link",
            ExitCode.NO_PEERS,
        ),
        (
            Strangers(
                PeerFailure(
                    "peer speaks protocol 2, this node 1", code=peer_pb2.Failure.WRONG_VERSION, protocol_version=2
                )
            ),
            "no peer can be talked to: /ip4/192.0.2.1/tcp/4001: peer speaks protocol 2, this node 1",
            "Install a newer fullrank",
            ExitCode.PROTOCOL,
        ),
    ],
    ids=["swarm", "version"],
)
async def test_where_everybody_is_of_another_swarm_or_version_nobody_is_waited_for(
    strangers: Any, words: str, hint: str, code: ExitCode
) -> None:
    with pytest.raises(NodeError) as caught:
        await fetch_genesis(strangers, Link(swarm=id_of("swarm")), progress=lambda *_, **__: None)
    assert words in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.exit_code == code


async def test_a_peer_that_sends_another_genesis_is_not_believed() -> None:
    other = make_genesis("ada")
    error = await joining(peer_pb2.Response(objects=peer_pb2.Objects(envelopes=[other.envelope.encode()])))
    assert f"the genesis has id {other.swarm.hex()}, {id_of('swarm').hex()} required" in str(error)


async def test_a_peer_that_sends_nothing_is_said_to() -> None:
    assert "could not be fetched" in str(await joining(peer_pb2.Response()))


# ---- invites ---------------------------------------------------------------------------------------


def grant(ada: LoopNode, **fields: Any) -> Envelope:
    given: dict[str, Any] = {"roles": ALL_ROLES, "count": 1, "not_after_ms": NEVER_MS}
    return make_grant(key_of("ada"), swarm=ada.genesis.swarm, invite_key=key("invite"), **(given | fields))


def offer(node: LoopNode) -> str:
    """Try to become a member by the invite; what the owner is told."""
    offer_admission(node.runner, invite_seed=seed_of("invite"), certify=True, name=node.name)
    return node.runner.warnings.get(WARNING, "")


CURE = "; ask a founder for a new invite (`fullrank invite`) and join with it into a new --home"


async def test_an_invite_that_is_used_up_lets_nobody_in_and_says_so(tmp_path: Path) -> None:
    """Yas and zoe both hold it and race for its only place; the one whom the chain left out reads why."""
    async with loop_swarm(tmp_path, make_genesis("ada"), "ada", "yas", "zoe") as swarm:
        ada, yas, zoe = swarm.nodes
        assert offer(yas) == "waiting to see the invite's grant on the chain"
        ada.runner.submit(grant(ada))
        await until(lambda: all(node.runner.state.records for node in swarm.nodes))
        swarm.hub.alone.add(key("zoe"))
        assert offer(yas) == ""
        assert offer(zoe) == ""
        await until(lambda: len(ada.runner.state.records) == 2)
        swarm.clock.time_ms = swarm.genesis.slot_end_ms(1)
        await until(lambda: yas.head.members.is_member(key("yas")))
        swarm.hub.alone.clear()
        await until(lambda: zoe.head == yas.head)
        assert offer(yas) == ""
        assert offer(zoe) == "this node was not admitted: the invite is used up (1 of 1 admitted)" + CURE


async def test_an_invite_that_has_expired_lets_nobody_in_and_says_when(tmp_path: Path) -> None:
    """Slots begin at 1000 s of 1970 and take one second; the invite ends with slot 4."""
    async with loop_swarm(tmp_path, make_genesis("ada"), "ada", "zoe") as swarm:
        ada, zoe = swarm.nodes
        ada.runner.submit(grant(ada, not_after_ms=swarm.genesis.slot_end_ms(4)))
        await swarm.next_slot()
        swarm.clock.time_ms += 10 * WINDOW_MS
        assert offer(zoe) == "this node was not admitted: the invite expired at 1970-01-01 00:16 UTC" + CURE


async def test_an_invite_that_was_revoked_lets_nobody_in_and_says_so(tmp_path: Path) -> None:
    async with loop_swarm(tmp_path, make_genesis("ada"), "ada", "zoe") as swarm:
        ada, zoe = swarm.nodes
        ada.runner.submit(grant(ada))
        await swarm.next_slot()
        revocation = make_revocation(
            key_of("ada"), swarm=swarm.genesis.swarm, subject=key("invite"), issued_at_ms=swarm.clock.time_ms
        )
        ada.runner.submit(revocation)
        await swarm.next_slot()
        assert offer(zoe) == "this node was not admitted: the invite was revoked" + CURE


async def test_a_member_is_told_nothing(tmp_path: Path) -> None:
    async with loop_swarm(tmp_path, make_genesis("ada"), "ada", "zoe") as swarm:
        ada, zoe = swarm.nodes
        ada.runner.submit(grant(ada))
        await until(lambda: bool(zoe.runner.state.records))
        assert offer(zoe) == ""
        await until(lambda: len(ada.runner.state.records) == 2)
        await swarm.next_slot()
        assert zoe.head.members.is_member(key("zoe"))
        assert offer(zoe) == ""
