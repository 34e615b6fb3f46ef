"""The address book, offers to neighbours, and the work of getting connected, without a network."""

import asyncio
import json
import logging
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from peers import until
from swarms import id_of, key_of

from fullrank_node.addresses import host_and_port, is_loopback, parse_address, usefulness
from fullrank_node.errors import NodeError
from fullrank_node.network.connections import Connections
from fullrank_node.network.interface import DialError, NetworkError, OtherSwarm, PeerFailure, PeerUnreachable
from fullrank_node.network.listening import choose_ports, probe_port
from fullrank_node.network.outbox import MAX_QUEUED, Outboxes
from fullrank_node.network.peer_cache import KnownPeer, PeerCache
from fullrank_node.network.probing import probe_all
from fullrank_node.network.publisher import MIN_LIFETIME_MS, Publisher
from fullrank_node.network.records import Audience, Kind, place_of
from fullrank_node.network.settings import NetworkSettings
from fullrank_protocol.hints import make_peer
from fullrank_protocol.identity import peer_id
from fullrank_protocol.wire import peer_pb2

ADA, BOB, CYD = (key_of(name).public_key for name in ("ada", "bob", "cyd"))


def address_of(key: bytes, base: str = "/ip4/192.0.2.1/tcp/4001") -> str:
    return f"{base}/p2p/{peer_id(key)}"


def book(path: Path | None = None) -> PeerCache:
    return PeerCache(path, own_key=ADA, max_pause_s=60)


# ---- addresses -------------------------------------------------------------------------------------


def test_an_address_names_host_port_and_peer() -> None:
    address = parse_address(address_of(BOB))
    assert (address.base, address.key) == ("/ip4/192.0.2.1/tcp/4001", BOB)
    assert str(address) == address_of(BOB)
    assert host_and_port("/dns4/example.org/tcp/4001") == ("dns4", "example.org", 4001)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not end in /p2p/"),
        ("/ip4/192.0.2.1/tcp/4001", "does not end in /p2p/"),
        ("/ip4/192.0.2.1/tcp/4001/p2p/QmFoo", "acceptable peer id"),
        (address_of(BOB, "/ip4/192.0.2.1"), "is no address like"),
        (address_of(BOB, "192.0.2.1:4001"), "is no address like"),
        (address_of(BOB, "/ip4/192.0.2.1/tcp/99999"), "no port"),
        (address_of(BOB, "/ip4/192.0.2/tcp/4001"), "192.0.2"),
        (address_of(BOB, "/dns4/" + "a" * 200 + "/tcp/1"), "at most 200"),
    ],
)
def test_a_wrong_address_is_refused_with_a_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_address(text)


def test_public_addresses_come_before_private_ones_and_loopback_last() -> None:
    bases = ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1", "/ip6/::1/tcp/1", "/dns4/a.org/tcp/1"]
    assert [usefulness(base) for base in bases] == [2, 1, 0, 2, 0]
    assert [is_loopback(base) for base in bases] == [True, False, False, True, False]


def test_ports_are_settled_before_p2pd_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NodeError, match="another program listens"):
            probe_port(f"/ip4/127.0.0.1/tcp/{port}")
        (chosen,) = choose_ports(("/ip4/127.0.0.1/tcp/0",), (port,))  # The last start's port is not to be had.
        assert host_and_port(chosen)[2] not in {0, port}
    assert choose_ports(("/ip4/127.0.0.1/tcp/0",), (port,)) == (f"/ip4/127.0.0.1/tcp/{port}",)
    with pytest.raises(NodeError, match="cannot listen"):
        probe_port("/ip4/192.0.2.1/tcp/4001")


# ---- the address book ------------------------------------------------------------------------------


def test_peers_seen_are_remembered_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    cache = book(path)
    cache.add(address_of(BOB))
    cache.add(address_of(CYD))
    cache.succeeded(BOB, now_ms=1000)
    cache.save(ports=[4001])
    again = book(path)
    assert again.ports == (4001,)
    assert [peer.key for peer in again.due(0, without=())] == [BOB]
    assert json.loads(path.read_text())["peers"] == [{"addresses": [address_of(BOB)], "last_seen_ms": 1000}]


def test_a_peer_that_dialled_us_is_remembered_at_the_address_it_names(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    cache = book(path)
    cache.seen(BOB, now_ms=1_000)  # Connected, but nobody has said yet where it can be dialled.
    cache.add(address_of(BOB))
    cache.seen(BOB, now_ms=100_000)
    cache.save(ports=[4001])
    assert json.loads(path.read_text())["peers"] == [{"addresses": [address_of(BOB)], "last_seen_ms": 100_000}]
    written = path.stat().st_mtime_ns
    cache.seen(BOB, now_ms=100_000 + 59_999)
    cache.save(ports=[4001])
    assert path.stat().st_mtime_ns == written  # A peer that stays is no reason to write all the time.
    cache.seen(BOB, now_ms=100_000 + 60_000)
    cache.save(ports=[4001])
    assert json.loads(path.read_text())["peers"][0]["last_seen_ms"] == 160_000


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ports": [1], "peers": [{"addresses": ["nowhere"]}]}', "\0" * 99])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "peers.json"
    path.write_text(content)
    assert book(path).due(0, without=()) == []
    assert "starts anew" in caplog.text


def test_who_does_not_answer_is_left_in_peace_for_longer_each_time() -> None:
    cache = book()
    cache.add(address_of(BOB), pinned=True)
    pauses = []
    for _ in range(9):
        cache.failed(BOB, "nothing listens there", by_address={}, now_s=100)
        known = cache.known(BOB)
        assert known is not None
        pauses.append(known.next_try_s - 100)
    assert 0.8 <= pauses[0] <= 1.2
    assert 48 <= pauses[-1] <= 72
    assert cache.due(101, without=()) == []
    assert [peer.key for peer in cache.due(200, without=())] == [BOB]
    assert cache.errors(connected=()) == {address_of(BOB): "nothing listens there"}
    assert cache.errors(connected=[BOB]) == {}
    cache.lost(BOB, now_s=300)
    assert [peer.key for peer in cache.due(301, without=())] == [BOB]


def test_each_address_has_its_own_reason() -> None:
    cache = book()
    cache.add(address_of(BOB))
    cache.add(address_of(BOB, "/ip4/10.0.0.1/tcp/1"))
    cache.failed(BOB, "both failed", by_address={"/ip4/10.0.0.1/tcp/1": "no route"}, now_s=0)
    assert cache.errors(connected=()) == {
        address_of(BOB): "both failed",
        address_of(BOB, "/ip4/10.0.0.1/tcp/1"): "no route",
    }


def test_the_address_book_stays_small_and_keeps_what_matters() -> None:
    cache = book()
    assert cache.add(address_of(ADA)) is None  # Our own.
    cache.add(address_of(BOB), pinned=True)
    cache.add(address_of(CYD))
    cache.succeeded(CYD, now_ms=5)
    for number in range(3000):
        cache.add(address_of(key_of(f"stranger {number}").public_key))
    assert len(cache.due(0, without=())) == 2048
    assert cache.known(BOB)
    assert cache.known(CYD)
    for number in range(20):
        cache.add(address_of(BOB, f"/ip4/192.0.2.{number}/tcp/1"))
    known = cache.known(BOB)
    assert known is not None
    assert list(known.bases)[-1] == "/ip4/192.0.2.19/tcp/1"
    assert len(known.bases) == 8


# ---- dialling --------------------------------------------------------------------------------------


async def test_a_probe_tells_who_listens() -> None:
    with socket.socket() as listener, socket.socket() as other:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        other.bind(("127.0.0.1", 0))
        alive, dead = (f"/ip4/127.0.0.1/tcp/{s.getsockname()[1]}" for s in (listener, other))
        assert (await probe_all([alive, dead], timeout_s=5))[alive] == ""
        assert await probe_all([dead], timeout_s=5) == {dead: "nothing listens there"}
        assert await probe_all(["/ip4/127.0.0.1/udp/1/quic"], timeout_s=5) == {"/ip4/127.0.0.1/udp/1/quic": ""}


class FakeDialer:
    """p2pd as the connections see it."""

    def __init__(self) -> None:
        self.open: dict[bytes, list[str]] = {}
        self.dials: list[bytes] = []
        self.hung_up: list[bytes] = []
        self.down = False

    async def list_peers(self) -> dict[bytes, list[str]]:
        if self.down:
            raise PeerUnreachable("p2pd is down")
        return dict(self.open)

    async def connect(self, key: bytes, addresses: list[str], *, timeout_s: float) -> None:
        self.dials.append(key)
        self.open[key] = addresses

    async def disconnect(self, key: bytes) -> None:
        self.hung_up.append(key)
        self.open.pop(key)


class Bench:
    """Connections over a fake p2pd; `refusals` says whose greeting fails."""

    def __init__(self) -> None:
        self.dialer = FakeDialer()
        self.refusals: dict[bytes, NetworkError] = {}
        self.changes: list[tuple[bytes, bool]] = []
        self.sick = 0
        self.shut_out: dict[bytes, str] = {}
        self.cache = book()
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections = Connections(
            cache=self.cache,
            settings=NetworkSettings(),
            clock=self,
            dialer=lambda: self.dialer,
            greet=self.greet,
            spawn=self.spawn,
            on_peer=lambda key, connected: self.changes.append((key, connected)),
            on_sick=self.count_sick,
            refusal_of=self.shut_out.get,
        )

    def now_ms(self) -> int:
        return 1000

    def count_sick(self) -> None:
        self.sick += 1

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        return task

    async def greet(self, key: bytes) -> float:
        if key in self.refusals:
            raise self.refusals[key]
        return 2.5

    def reachable(self, key: bytes) -> KnownPeer:
        """A peer at an address that a probe by TCP cannot judge."""
        known = self.cache.add(address_of(key, "/ip4/192.0.2.1/udp/1/quic"))
        assert known is not None
        return known


async def test_a_peer_counts_once_it_has_answered() -> None:
    bench = Bench()
    await bench.connections.connect(bench.reachable(BOB))
    assert bench.changes == [(BOB, True)]
    (info,) = bench.connections.infos()
    assert (info.key, info.outbound, info.latency_ms) == (BOB, True, 2.5)
    await bench.connections.connect(bench.reachable(BOB))
    assert bench.dialer.dials == [BOB]


async def test_a_peer_of_another_version_is_hung_up_on() -> None:
    bench = Bench()
    bench.refusals[BOB] = PeerFailure("peer speaks protocol 2, this node 1", code=3)
    with pytest.raises(PeerFailure, match="protocol 2"):
        await bench.connections.connect(bench.reachable(BOB))
    assert bench.dialer.hung_up == [BOB]
    assert bench.changes == []
    assert list(bench.cache.errors(connected=()).values()) == ["peer speaks protocol 2, this node 1"]


@pytest.mark.parametrize(
    "error",
    [
        OtherSwarm("the peer does not serve this swarm"),
        PeerFailure("peer speaks protocol 2, this node 1", code=peer_pb2.Failure.WRONG_VERSION),
    ],
    ids=["swarm", "version"],
)
async def test_who_says_twice_that_it_will_never_be_a_peer_is_believed(error: NetworkError) -> None:
    bench = Bench()
    bench.refusals[BOB] = error
    for times in (1, 2):
        assert bench.connections.refusals() == {}
        with pytest.raises(type(error)):
            await bench.connections.connect(bench.reachable(BOB))
        assert len(bench.dialer.hung_up) == times
    assert bench.connections.refusals() == {BOB: error}
    bench.refusals[BOB] = PeerUnreachable("no answer within 10 s")  # It starts again, perhaps as another one.
    with pytest.raises(PeerUnreachable):
        await bench.connections.connect(bench.reachable(BOB))
    assert bench.connections.refusals() == {}


async def test_an_address_where_nobody_listens_never_reaches_p2pd() -> None:
    bench = Bench()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        known = bench.cache.add(address_of(BOB, f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}"))
        assert known is not None
        with pytest.raises(DialError, match="nothing listens there"):
            await bench.connections.connect(known)
    assert bench.dialer.dials == []


async def test_those_who_dial_us_count_too_and_the_lost_are_noticed() -> None:
    bench = Bench()
    polls = asyncio.ensure_future(bench.connections.run_polls())
    bench.dialer.open[BOB] = ["/ip4/192.0.2.1/tcp/5"]
    bench.dialer.open[CYD] = []
    bench.refusals[CYD] = PeerUnreachable("the peer does not serve this swarm")
    await seen(bench, lambda: BOB in bench.connections)
    assert CYD not in bench.connections
    del bench.dialer.open[BOB]
    await seen(bench, lambda: BOB not in bench.connections)
    assert bench.changes == [(BOB, True), (BOB, False)]
    known = bench.cache.add(address_of(CYD))
    bench.connections.alive(CYD)  # It asked something valid.
    assert bench.changes[-1] == (CYD, True)
    assert known is not None
    assert known.last_seen_ms == bench.now_ms()
    bench.dialer.down = True
    await seen(bench, lambda: bench.sick == 1)
    assert CYD in bench.connections
    bench.connections.reset()
    assert bench.changes[-1] == (CYD, False)
    polls.cancel()
    await asyncio.gather(polls, return_exceptions=True)


async def test_who_asks_before_it_is_greeted_is_greeted_all_the_same_to_know_its_round_trip() -> None:
    bench = Bench()
    bench.connections.alive(BOB)
    assert [info.latency_ms for info in bench.connections.infos()] == [None]
    bench.dialer.open[BOB] = ["/ip4/192.0.2.1/tcp/5"]
    polls = asyncio.ensure_future(bench.connections.run_polls())
    await seen(bench, lambda: [info.latency_ms for info in bench.connections.infos()] == [2.5])
    assert bench.changes == [(BOB, True)]
    polls.cancel()
    await asyncio.gather(polls, return_exceptions=True)


async def test_who_is_shut_out_is_hung_up_on_and_neither_dialled_nor_greeted_until_it_is_over() -> None:
    bench = Bench()
    polls = asyncio.ensure_future(bench.connections.run_polls())
    bench.dialer.open[BOB] = []
    await seen(bench, lambda: BOB in bench.connections)
    bench.shut_out[BOB] = "shut out for 60 s more: sent rubbish"
    await seen(bench, lambda: bench.dialer.hung_up == [BOB])
    assert BOB not in bench.connections
    with pytest.raises(PeerUnreachable, match="the peer is shut out for 60 s more: sent rubbish"):
        await bench.connections.connect(bench.reachable(BOB))
    assert bench.dialer.dials == []
    bench.dialer.open[BOB] = []  # It comes back by itself.
    await seen(bench, lambda: bench.dialer.hung_up == [BOB, BOB])
    assert bench.changes == [(BOB, True), (BOB, False)]
    del bench.shut_out[BOB]
    await bench.connections.connect(bench.reachable(BOB))
    assert BOB in bench.connections
    polls.cancel()
    await asyncio.gather(polls, return_exceptions=True)


async def seen(bench: Bench, condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            bench.connections.doubt()  # Poll now.
            await asyncio.sleep(0)


# ---- offers ----------------------------------------------------------------------------------------


async def test_a_slow_peer_delays_nobody_and_loses_its_oldest_offers() -> None:
    received: dict[bytes, list[bytes]] = {BOB: [], CYD: []}
    thawed = asyncio.Event()
    tasks = []

    async def ask(peer: bytes, request: peer_pb2.Request, _timeout_s: float) -> peer_pb2.Response:
        if peer == BOB:
            await thawed.wait()
        received[peer] += request.offer.envelopes
        return peer_pb2.Response()

    def spawn(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        tasks.append(asyncio.ensure_future(work))
        return tasks[-1]

    outboxes = Outboxes(ask, spawn=spawn)
    outboxes.open(BOB)
    outboxes.open(CYD)
    for number in range(MAX_QUEUED + 10):
        outboxes.put([b"%d" % number])
        await asyncio.sleep(0)
    await until(lambda: len(received[CYD]) == MAX_QUEUED + 10)
    thawed.set()
    await until(lambda: received[BOB][-1:] == [b"%d" % (MAX_QUEUED + 9)])
    assert len(received[BOB]) <= MAX_QUEUED + 2
    outboxes.close(BOB)
    outboxes.close(CYD)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_why_a_peer_refused_what_it_was_offered_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refused = [peer_pb2.RefusedObject(id=CYD, rule=16, detail="is no certifier\nfor this") for _ in range(50)]
    tasks = []

    async def ask(peer: bytes, request: peer_pb2.Request, _timeout_s: float) -> peer_pb2.Response:
        return peer_pb2.Response(received=peer_pb2.Received(refused=refused))

    def spawn(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        tasks.append(asyncio.ensure_future(work))
        return tasks[-1]

    outboxes = Outboxes(ask, spawn=spawn)
    outboxes.open(BOB)
    outboxes.put([b"vote"])
    await until(lambda: caplog.records)
    outboxes.close(BOB)
    await asyncio.gather(*tasks, return_exceptions=True)
    words = f"Peer {BOB.hex()[:8]} refused {CYD.hex()[:12]} by rule VOTE: is no certifier for this"
    assert [record.getMessage() for record in caplog.records] == [words] * 16


# ---- renewing records ------------------------------------------------------------------------------


class MovableClock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms


async def test_records_are_renewed_at_half_their_life_and_only_while_they_matter() -> None:
    clock = MovableClock()
    began_ms = clock.ms
    stored: list[tuple[float, bool]] = []
    works = False

    async def store(_key: bytes, _body: bytes, expiration_s: float) -> bool:
        stored.append((expiration_s - began_ms / 1000, works))
        return works

    publisher = Publisher(store, swarm=id_of("swarm"), clock=clock, slot_window_ms=300_000)
    peer = make_peer(key_of("ada"), swarm=id_of("swarm"), addresses=[], issued_at_ms=began_ms)
    run = asyncio.ensure_future(publisher.run())

    async def stores_after(ms: int) -> int:
        clock.ms = began_ms + ms
        before = len(stored)
        publisher._wake.set()
        for _ in range(10):
            await asyncio.sleep(0)
        return len(stored) - before

    publisher.put(place_of(Kind.PEER, 0, Audience.OTHERS, ADA), peer)
    assert await stores_after(0) == 1
    assert await stores_after(4_000) == 0
    works = True
    assert await stores_after(5_000) == 1  # Nobody took it: again soon.
    assert stored[-1] == (1205.0, True)  # Four slots of 300 s.
    assert await stores_after(600_000) == 0
    assert await stores_after(605_000) == 1
    publisher.renew_all()
    assert await stores_after(605_001) == 1
    assert await stores_after(1_200_001) == 0  # It no longer matters.
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert MIN_LIFETIME_MS == 120_000
