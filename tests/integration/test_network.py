"""Real p2pd processes on loopback, several peers in one event loop."""

import asyncio
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import SWARM, Node, connect, put_blob, running, some_bytes, until
from swarms import id_of

from fullrank_node.errors import NodeError
from fullrank_node.network.asking import ask
from fullrank_node.network.frames import encode_frame, read_message
from fullrank_node.network.interface import BlobUnavailable, NetworkError, OtherSwarm, PeerFailure, PeerUnreachable
from fullrank_node.network.serving import stream_protocol
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.envelope import Envelope, open_envelope
from fullrank_protocol.limits import CHUNK_BYTES
from fullrank_protocol.vote import make_vote
from fullrank_protocol.wire import peer_pb2

GET_CHAIN = peer_pb2.Request(get_chain=peer_pb2.GetChain(after_slot=3))


def vote_of(node: Node, *, slot: int = 5) -> Envelope:
    return make_vote(
        node.signing_key, swarm=SWARM, source=id_of("a"), source_slot=1, target=id_of("b"), target_slot=slot
    )


async def raw_answer(asker: Node, answerer: Node, data: bytes) -> peer_pb2.Response:
    """What a peer answers to bytes that no honest node sends."""
    reader, writer = await asker.network._open_stream_now(answerer.key)
    try:
        writer.write(data)
        size = int.from_bytes(await reader.readexactly(4), "little")
        return peer_pb2.Response.FromString(await reader.readexactly(size))
    finally:
        writer.close()


def frame(request: peer_pb2.Request) -> bytes:
    data = request.SerializeToString()
    return len(data).to_bytes(4, "little") + data


# ---- requests --------------------------------------------------------------------------------------


async def test_a_peer_answers_and_knows_who_asked(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        response = await bob.network.request(ada.key, GET_CHAIN, timeout_s=5)
        assert response.received.num_new == 7
        asker, request = ada.asked[-1]
        assert asker == bob.key
        assert request.get_chain.after_slot == 3
        assert [info.key for info in bob.network.peers()] == [ada.key]
        assert bob.network.peers()[0].outbound
        assert ada.changes == [(bob.key, True)]
        assert bob.network.traffic().bytes_up > 0


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A short path, with what a killed process left in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        Path(short, "fullrank-net-999999999-abcd").mkdir()
        yield Path(short)


def modes_in(directory: Path) -> dict[str, str]:
    return {path.name[:13]: oct(path.stat().st_mode & 0o777) for path in directory.iterdir()}


async def test_the_network_leaves_nothing_behind(tmp_path: Path, runtime: Path) -> None:
    ada = Node("ada", tmp_path, runtime_dir=runtime)
    async with running(ada):
        pid = ada.p2pd_pid
        assert modes_in(runtime) == {"fullrank-net-": "0o700"}  # Only this user may reach p2pd's socket.
    assert modes_in(runtime) == {}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_what_no_honest_peer_sends_is_refused_with_a_reason(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        wrong_version = peer_pb2.Request(protocol_version=2, swarm=SWARM, get_genesis=peer_pb2.GetGenesis())
        refused = (await raw_answer(bob, ada, frame(wrong_version))).failure
        assert refused.code == peer_pb2.Failure.WRONG_VERSION
        assert refused.protocol_version == 1
        wrong_swarm = peer_pb2.Request(protocol_version=1, swarm=id_of("other"), get_genesis=peer_pb2.GetGenesis())
        refused = (await raw_answer(bob, ada, frame(wrong_swarm))).failure
        assert refused.code == peer_pb2.Failure.WRONG_SWARM
        too_large = (6 << 20).to_bytes(4, "little")  # Refused before any of it came: bytes left unread break a stream.
        refused = (await raw_answer(bob, ada, too_large)).failure
        assert refused.code == peer_pb2.Failure.TOO_LARGE
        assert "6291456 bytes" in refused.detail
        refused = (await raw_answer(bob, ada, b"\x03\x00\x00\x00\xff\xff\xff")).failure
        assert refused.code == peer_pb2.Failure.MALFORMED
        asks_nothing = peer_pb2.Request(protocol_version=1, swarm=SWARM)
        refused = (await raw_answer(bob, ada, frame(asks_nothing))).failure
        assert refused.code == peer_pb2.Failure.MALFORMED
        assert ada.asked == []
        assert (await bob.network.request(ada.key, GET_CHAIN, timeout_s=5)).received.num_new == 7


async def test_a_peer_of_another_version_is_named_as_such(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    refusal = peer_pb2.Response(failure=peer_pb2.Failure(code=peer_pb2.Failure.WRONG_VERSION, protocol_version=2))

    async def serve(_peer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader, peer_pb2.Request, max_bytes=1000)  # Closed unread, a stream may break instead.
        writer.write(encode_frame(refusal))
        await writer.drain()
        writer.close()

    ada.network._server.serve = serve
    async with running(ada, bob):
        address = ada.network.addresses()[0]
        with pytest.raises(PeerFailure, match="peer speaks protocol 2, this node 1") as caught:
            await bob.network.connect(address)
        assert caught.value.protocol_version == 2
        assert bob.network.peers() == []
        assert bob.network.connection_errors() == {address: "peer speaks protocol 2, this node 1"}


async def test_a_peer_of_another_swarm_is_no_peer(tmp_path: Path) -> None:
    ada, eve = Node("ada", tmp_path), Node("eve", tmp_path, swarm=id_of("other swarm"))
    async with running(ada, eve):
        with pytest.raises(PeerUnreachable, match="does not serve this swarm"):
            await eve.network.connect(ada.network.addresses()[0])
        assert eve.network.peers() == ada.network.peers() == []
        await until(lambda: isinstance(eve.network.refusal(), OtherSwarm))  # When she has said so twice.
        assert ada.network.refusal() is None
        with pytest.raises(PeerUnreachable, match="own address"):
            await ada.network.connect(ada.network.addresses()[0])
        with pytest.raises(PeerUnreachable, match="peer id"):
            await ada.network.connect("/ip4/127.0.0.1/tcp/4001")


async def test_a_silent_peer_costs_a_timeout_and_delays_nobody(tmp_path: Path) -> None:
    ada, bob, cyd = Node("ada", tmp_path), Node("bob", tmp_path), Node("cyd", tmp_path)
    async with running(ada, bob, cyd):
        await connect(ada, bob, cyd)
        os.kill(bob.p2pd_pid, signal.SIGSTOP)
        try:
            for i in range(40):
                await ada.network.broadcast([b"envelope %d" % i, bytes(100_000)])
            await until(lambda: b"envelope 39" in [e for _, r in cyd.asked for e in r.offer.envelopes])
            with pytest.raises(PeerUnreachable, match="no answer"):
                await ada.network.request(bob.key, GET_CHAIN, timeout_s=0.5)
        finally:
            os.kill(bob.p2pd_pid, signal.SIGCONT)
        await until(lambda: b"envelope 39" in [e for _, r in bob.asked for e in r.offer.envelopes])


# ---- getting connected -----------------------------------------------------------------------------


async def test_a_dead_first_address_costs_nothing(tmp_path: Path) -> None:
    gone, ada = Node("gone", tmp_path), Node("ada", tmp_path)
    async with running(gone):
        dead = gone.network.addresses()[0]
    async with running(ada):
        bob = Node("bob", tmp_path, bootstrap=(dead, *ada.network.addresses()))
        async with running(bob):
            await until(lambda: bob.connected_to(ada), timeout_s=5)
            await until(lambda: bob.network.connection_errors() == {dead: "nothing listens there"})


async def test_a_node_that_finds_nobody_says_why_and_goes_on_trying(tmp_path: Path) -> None:
    ada = Node("ada", tmp_path)
    async with running(ada):
        address = ada.network.addresses()[0]
    bob = Node("bob", tmp_path, bootstrap=(address,))
    async with running(bob):
        await until(lambda: bob.network.connection_errors())
        assert bob.network.peers() == []
        assert bob.network.connection_errors() == {address: "nothing listens there"}
        again = Node("ada", tmp_path)
        async with running(again):
            assert again.network.addresses() == [address]  # The port of the last start.
            await until(lambda: bob.connected_to(again))
            assert bob.network.connection_errors() == {}


async def test_who_met_through_a_founder_stays_connected_without_it(tmp_path: Path) -> None:
    ada = Node("ada", tmp_path)
    bob, cyd = Node("bob", tmp_path), Node("cyd", tmp_path)
    async with running(bob, cyd):
        async with running(ada):
            await connect(bob, ada)
            await connect(cyd, ada)
            await until(lambda: bob.connected_to(cyd) and cyd.connected_to(bob))
        await until(lambda: not bob.connected_to(ada) and not cyd.connected_to(ada))
        assert (await bob.network.request(cyd.key, GET_CHAIN, timeout_s=5)).received.num_new == 7
        late = Node("late", tmp_path, bootstrap=tuple(bob.network.addresses()))
        async with running(late):
            await until(lambda: late.connected_to(bob, cyd))
        remembers = Node("late", tmp_path)  # No link at all: the cache is enough.
        async with running(remembers):
            await until(lambda: remembers.connected_to(bob, cyd))


async def test_a_taken_port_is_the_operators_to_solve(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ada = Node("ada", tmp_path, listen=(f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}",))
        with pytest.raises(NodeError, match="another program listens") as caught:
            await ada.network.start()
        assert "[network] listen" in caught.value.hint
        await ada.network.close()
    bob = Node("bob", tmp_path)
    async with running(bob):
        port = bob.network.addresses()[0].split("/")[4]
        cyd = Node("cyd", tmp_path, listen=(f"/ip4/127.0.0.1/tcp/{port}",))
        with pytest.raises(NodeError, match="another program listens"):
            await cyd.network.start()  # p2pd itself would share the port with another p2pd.
        await cyd.network.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_p2pd_is_replaced_at_the_same_address(tmp_path: Path, how: signal.Signals) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        before = ada.network.addresses()
        old_pid = ada.p2pd_pid
        os.kill(old_pid, how)
        if how == signal.SIGSTOP:  # The real thing takes three unanswered questions.
            assert ada.network._supervisor is not None
            ada.network._supervisor.report_sick()
        await until(lambda: (bob.key, False) in ada.changes)
        await until(lambda: ada.network._generation is not None and ada.p2pd_pid != old_pid)
        assert ada.network.addresses() == before
        await until(lambda: ada.connected_to(bob) and bob.connected_to(ada))
        assert (await bob.network.request(ada.key, GET_CHAIN, timeout_s=5)).received.num_new == 7
        assert (await ada.network.request(bob.key, GET_CHAIN, timeout_s=5)).received.num_new == 7
        with pytest.raises(ProcessLookupError):
            os.kill(old_pid, 0)


# ---- blobs -----------------------------------------------------------------------------------------


async def test_a_blob_arrives_whole(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        for num_bytes in (0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5):
            ref = put_blob(ada, num_bytes=num_bytes)
            await bob.network.fetch_blob(ref, providers=[ada.key], blobs=bob.store)
            assert bob.store.path(ref.id).read_bytes() == some_bytes(num_bytes)
        absent = BlobRef(id=id_of("absent"), num_bytes=3)
        with pytest.raises(BlobUnavailable, match="is not here"):
            await bob.network.fetch_blob(absent, providers=[ada.key], blobs=bob.store)


async def test_only_missing_chunks_are_fetched(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        ref = put_blob(ada)
        _, hashes = ada.store.header(ref.id)
        with bob.store.writer(ref, hashes) as interrupted:
            for index in (1, 3):
                interrupted.write_chunk(index, ada.store.read_chunk(ref.id, index))
        ada.store.chunks_read.clear()
        await bob.network.fetch_blob(ref, providers=[ada.key], blobs=bob.store)
        assert bob.store.has(ref.id)
        assert 3 not in ada.store.chunks_read
        assert 2 * CHUNK_BYTES < bob.network.traffic().bytes_down < 2 * CHUNK_BYTES + 2000


async def test_a_truncated_blob_goes_on_at_the_next_provider(tmp_path: Path) -> None:
    ada, bob, cyd = Node("ada", tmp_path), Node("bob", tmp_path), Node("cyd", tmp_path)
    async with running(ada, bob, cyd):
        await connect(cyd, ada, bob)
        ref = put_blob(ada)
        put_blob(bob)

        def dies_at_two(index: int, data: bytes) -> bytes:
            if index == 2:
                raise KeyError("gone")
            return data

        ada.store.spoil = dies_at_two
        await cyd.network.fetch_blob(ref, providers=[ada.key, bob.key], blobs=cyd.store)
        assert cyd.store.path(ref.id).read_bytes() == some_bytes(ref.num_bytes)
        assert set(bob.store.chunks_read) == {2, 3}
        assert cyd.network.banned() == {}


async def test_a_killed_sender_leaves_a_truncated_blob_that_is_noticed(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        ref = put_blob(ada)

        def is_killed(index: int, data: bytes) -> bytes:
            if index == 1:
                os.kill(ada.p2pd_pid, signal.SIGKILL)
            return data

        ada.store.spoil = is_killed
        with pytest.raises(BlobUnavailable):
            await bob.network.fetch_blob(ref, providers=[ada.key], blobs=bob.store)
        assert not bob.store.has(ref.id)
        ada.store.spoil = lambda _, data: data
        await until(lambda: (ada.key, False) in bob.changes)
        await until(lambda: bob.connected_to(ada) and ada.connected_to(bob))
        await bob.network.fetch_blob(ref, providers=[ada.key], blobs=bob.store)
        assert bob.store.has(ref.id)


async def test_who_sends_a_wrong_chunk_is_not_asked_again(tmp_path: Path) -> None:
    eve, bob, cyd = Node("eve", tmp_path), Node("bob", tmp_path), Node("cyd", tmp_path)
    async with running(eve, bob, cyd):
        await connect(cyd, eve, bob)
        ref = put_blob(eve)
        put_blob(bob)
        eve.store.spoil = lambda index, data: bytes(len(data)) if index == 1 else data
        await cyd.network.fetch_blob(ref, providers=[eve.key], blobs=cyd.store)  # Bob is connected and has it.
        assert cyd.store.path(ref.id).read_bytes() == some_bytes(ref.num_bytes)
        assert list(cyd.network.banned()) == [eve.key]
        assert set(bob.store.chunks_read) == {1, 2, 3}
        only_eve_has = put_blob(eve, name="another")
        eve.store.chunks_read.clear()
        with pytest.raises(BlobUnavailable):
            await cyd.network.fetch_blob(only_eve_has, providers=[eve.key], blobs=cyd.store)
        assert eve.store.chunks_read == []


async def test_who_sends_a_wrong_header_is_not_asked_again(tmp_path: Path) -> None:
    eve, cyd = Node("eve", tmp_path), Node("cyd", tmp_path)
    async with running(eve, cyd):
        await connect(cyd, eve)
        ref = put_blob(eve)
        eve.store.hashes = [id_of("not a chunk")] * 4
        with pytest.raises(BlobUnavailable, match="wrong bytes") as caught:
            await cyd.network.fetch_blob(ref, providers=[eve.key], blobs=cyd.store)
        assert "chunk hashes" in caught.value.reasons[eve.key]
        assert list(cyd.network.banned()) == [eve.key]


async def test_a_frozen_provider_is_left_for_another(tmp_path: Path) -> None:
    ada, bob, cyd = Node("ada", tmp_path), Node("bob", tmp_path), Node("cyd", tmp_path)
    async with running(ada, bob, cyd):
        await connect(cyd, ada, bob)
        ref = put_blob(ada)
        put_blob(bob)

        def freezes(index: int, data: bytes) -> bytes:
            if index == 1:
                time.sleep(2.5)  # In the thread that reads the disk: its loop goes on.
            return data

        ada.store.spoil = freezes
        began = asyncio.get_running_loop().time()
        await cyd.network.fetch_blob(ref, providers=[ada.key, bob.key], blobs=cyd.store)
        assert asyncio.get_running_loop().time() - began < 2.5
        assert cyd.store.has(ref.id)


async def test_fetches_of_one_blob_at_a_time_move_its_bytes_once(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        ref = put_blob(ada)
        fetches = [bob.network.fetch_blob(ref, providers=[ada.key], blobs=bob.store) for _ in range(5)]
        await asyncio.gather(*fetches)
        assert ada.store.chunks_read == [0, 1, 2, 3]


# ---- nodes that nobody can dial --------------------------------------------------------------------


async def test_a_node_that_nobody_can_dial_serves_what_it_has(tmp_path: Path) -> None:
    ada = Node("ada", tmp_path)
    async with running(ada):
        hidden = [
            Node(name, tmp_path, no_listen=True, bootstrap=tuple(ada.network.addresses())) for name in ("bob", "cyd")
        ]
        bob, cyd = hidden
        async with running(*hidden):
            await until(lambda: ada.connected_to(bob, cyd) and bob.connected_to(ada) and cyd.connected_to(ada))
            assert bob.network.addresses() == []
            assert (await ada.network.request(bob.key, GET_CHAIN, timeout_s=5)).received.num_new == 7
            ref = put_blob(bob)
            await ada.network.fetch_blob(ref, providers=[bob.key], blobs=ada.store)
            # Two that cannot reach each other meet at one who can be reached, and who has fetched it.
            await cyd.network.fetch_blob(ref, providers=[bob.key], blobs=cyd.store)
            assert cyd.store.path(ref.id).read_bytes() == some_bytes(ref.num_bytes)
            await bob.network.publish("vote", 5, vote_of(bob))
            await until_found(ada, "vote", 5, [vote_of(bob).encode()])


async def test_what_ends_the_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = Node("ada", tmp_path)
    monkeypatch.setattr("fullrank_node.network.discovery.Discovery.run", fails)
    await ada.network.start()
    with pytest.raises(ExceptionGroup) as caught:
        await ada.network.wait_closed()
    assert caught.value.subgroup(ZeroDivisionError)
    await ada.network.close()


async def fails(_: object) -> None:
    raise ZeroDivisionError("a bug")


# ---- the DHT ---------------------------------------------------------------------------------------


async def until_found(node: Node, kind: str, slot: int, expected: list[bytes]) -> None:
    async with asyncio.timeout(20):
        while sorted(await node.network.lookup(kind, slot)) != sorted(expected):  # noqa: ASYNC110 - the DHT tells nobody.
            await asyncio.sleep(0.05)


async def test_hints_are_found_by_everybody(tmp_path: Path) -> None:
    nodes = ada, bob, cyd = Node("ada", tmp_path), Node("bob", tmp_path), Node("cyd", tmp_path)
    async with running(*nodes):
        await connect(bob, ada)
        await connect(cyd, ada)
        for node in nodes:
            await node.network.publish("vote", 5, vote_of(node))
        for node in nodes:
            await until_found(node, "vote", 5, [vote_of(author).encode() for author in nodes])
            assert await node.network.lookup("vote", 6) == []
        open_envelope((await ada.network.lookup("vote", 5))[0], swarm=SWARM)
        with pytest.raises(ValueError, match="own objects"):
            await ada.network.publish("vote", 5, vote_of(bob))
        with pytest.raises(ValueError, match="does not belong"):
            await ada.network.publish("checkpoint", 5, vote_of(ada))
        # Later hints of one kind and slot replace earlier ones.
        newer = make_vote(
            ada.signing_key, swarm=SWARM, source=id_of("a"), source_slot=1, target=id_of("c"), target_slot=5
        )
        await ada.network.publish("vote", 5, newer)
        await until_found(cyd, "vote", 5, [newer.encode(), vote_of(bob).encode(), vote_of(cyd).encode()])


async def test_a_dht_node_stores_no_forged_and_no_replayed_record(tmp_path: Path) -> None:
    from hivemind.dht.routing import DHTID
    from hivemind.p2p import PeerID

    from fullrank_node.network.control import peer_id_bytes
    from fullrank_node.network.records import Audience, Kind, encode_body, pack_binary, place_of, sign_record

    ada, eve = Node("ada", tmp_path), Node("eve", tmp_path)
    async with running(ada, eve):
        await connect(eve, ada)
        generation = eve.network._generation
        assert generation is not None
        protocol = generation.directory._node.protocol
        victim = PeerID(peer_id_bytes(ada.key))
        expires = time.time() + 60

        async def offer(*, dht_id: bytes, author: bytes, value: bytes, expiration: float = expires) -> bool:
            """What ada says to a store request made by hand."""
            answer = await protocol.call_store(
                victim, [DHTID.from_bytes(dht_id)], [value], [expiration], subkeys=[author]
            )
            return bool(answer and answer[0])

        place = place_of(Kind.VOTE, 5, Audience.OTHERS, eve.key)
        good = sign_record(
            eve.signing_key,
            dht_id=place.dht_id(SWARM),
            subkey=pack_binary(eve.key),
            value=pack_binary(encode_body(place, vote_of(eve))),
            expiration_s=expires,
        )
        elsewhere = place_of(Kind.VOTE, 6, Audience.OTHERS, eve.key)
        assert not await offer(dht_id=elsewhere.dht_id(SWARM), author=eve.key, value=good)
        assert not await offer(dht_id=place.dht_id(SWARM), author=ada.key, value=good)
        assert not await offer(dht_id=place.dht_id(SWARM), author=eve.key, value=good, expiration=expires + 1)
        assert not await offer(dht_id=place.dht_id(SWARM), author=eve.key, value=good, expiration=float("inf"))
        assert not await offer(dht_id=place.dht_id(SWARM), author=eve.key, value=good[:-1] + b"!")
        assert ada.network._rules.num_refused >= 5
        assert await ada.network.lookup("vote", 5) == []
        assert await offer(dht_id=place.dht_id(SWARM), author=eve.key, value=good)
        assert await ada.network.lookup("vote", 5) == [vote_of(eve).encode()]
        # Members' dictionaries are for members, and ada knows that eve is none.
        ada.members = {ada.key}
        place = place_of(Kind.VOTE, 5, Audience.MEMBERS, eve.key)
        stranger = sign_record(
            eve.signing_key,
            dht_id=place.dht_id(SWARM),
            subkey=pack_binary(eve.key),
            value=pack_binary(encode_body(place, vote_of(eve))),
            expiration_s=expires,
        )
        assert not await offer(dht_id=place.dht_id(SWARM), author=eve.key, value=stranger)
        ada.members.add(eve.key)
        assert await offer(dht_id=place.dht_id(SWARM), author=eve.key, value=stranger)
        assert await ada.network.lookup("vote", 5) == [vote_of(eve).encode()] * 2
        place = place_of(Kind.VOTE, 5, Audience.OTHERS, eve.key)
        # A plain value without subkey would wipe out the whole dictionary.
        plain = await protocol.call_store(
            victim, [DHTID.from_bytes(place.dht_id(SWARM))], [pack_binary(b"mine now")], [expires + 30]
        )
        assert plain == [False]
        assert await ada.network.lookup("vote", 5) == [vote_of(eve).encode()] * 2


async def test_hints_survive_the_death_of_p2pd(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        await ada.network.publish("vote", 5, vote_of(ada))
        await until_found(bob, "vote", 5, [vote_of(ada).encode()])
        for node in (bob, ada):
            pid = node.p2pd_pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda node=node, pid=pid: node.network._generation is not None and node.p2pd_pid != pid)
        await until(lambda: ada.connected_to(bob) and bob.connected_to(ada))
        await until_found(bob, "vote", 5, [vote_of(ada).encode()])


async def test_what_this_node_asks_fits_what_others_accept(tmp_path: Path) -> None:
    ada, bob = Node("ada", tmp_path), Node("bob", tmp_path)
    async with running(ada, bob):
        await connect(bob, ada)
        stream = await bob.network._open_stream_now(ada.key)
        largest = peer_pb2.Request(offer=peer_pb2.Offer(envelopes=[bytes(4 << 20)]))
        assert (await ask(stream, bob.network._prepare(largest))).received.num_new == 7
        stream[1].close()
        with pytest.raises(ValueError, match="at most"):
            await bob.network.request(
                ada.key, peer_pb2.Request(offer=peer_pb2.Offer(envelopes=[bytes(6 << 20)])), timeout_s=5
            )
        assert stream_protocol(SWARM) == f"fullrank/1/{SWARM.hex()[:16]}"
        ada.answer_with = peer_pb2.Response(objects=peer_pb2.Objects(envelopes=[bytes(9 << 20)]))
        with pytest.raises(NetworkError, match="at most"):
            await bob.network.request(ada.key, GET_CHAIN, timeout_s=5)
