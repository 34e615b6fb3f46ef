"""Frames, bounds on what a peer may take, and blobs over streams in memory."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from swarms import id_of, key_of

from fullrank_node.blob_store import BlobStore
from fullrank_node.errors import NodeError
from fullrank_node.network.asking import ask, check_response, request_peer
from fullrank_node.network.blobs import BlobFetcher, SpeedGate, TooSlowError, runs_of
from fullrank_node.network.frames import (
    FrameTooLargeError,
    MalformedFrameError,
    batches,
    check_request,
    encode_frame,
    failure,
    read_message,
)
from fullrank_node.network.interface import BlobUnavailable, PeerFailure, PeerUnreachable
from fullrank_node.network.limits import Quota, RateLimiter, StreamLimits, Traffic, TransferLimits
from fullrank_node.network.serving import StreamServer
from fullrank_protocol.limits import CHUNK_BYTES
from fullrank_protocol.wire import peer_pb2

SWARM = id_of("swarm")
ADA, BOB, CYD = (key_of(name).public_key for name in ("ada", "bob", "cyd"))
QUICK = TransferLimits(idle_timeout_s=0.2, window_s=0.1, header_timeout_s=1.0, open_timeout_s=1.0)


def reader_of(data: bytes, *, ends: bool = True) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    if ends:
        reader.feed_eof()
    return reader


# ---- frames ----------------------------------------------------------------------------------------


def test_a_frame_is_a_little_endian_length_and_a_message() -> None:
    request = peer_pb2.Request(protocol_version=1, get_chain=peer_pb2.GetChain(after_slot=3))
    assert encode_frame(request).hex() == "06000000" + "0801" + "4a02" + "0803"


async def test_a_frame_is_read_back() -> None:
    request = peer_pb2.Request(protocol_version=1, offer=peer_pb2.Offer(envelopes=[bytes(1 << 20)]))
    assert await read_message(reader_of(encode_frame(request)), peer_pb2.Request, max_bytes=2 << 20) == request


async def test_a_frame_too_large_is_refused_before_it_is_read() -> None:
    reader = reader_of((1 << 31).to_bytes(4, "little"), ends=False)  # Reading on would wait for ever.
    with pytest.raises(FrameTooLargeError, match="2147483648 bytes was announced, at most 100"):
        await read_message(reader, peer_pb2.Request, max_bytes=100)


async def test_a_frame_cut_short_or_broken_is_an_error() -> None:
    frame = encode_frame(peer_pb2.Request(protocol_version=1, swarm=SWARM))
    for length in (0, 3, 4, len(frame) - 1):
        with pytest.raises(asyncio.IncompleteReadError):
            await read_message(reader_of(frame[:length]), peer_pb2.Request, max_bytes=100)
    with pytest.raises(MalformedFrameError, match="3 bytes are no request"):
        await read_message(reader_of(b"\x03\x00\x00\x00\xff\xff\xff"), peer_pb2.Request, max_bytes=100)


def test_a_request_is_refused_for_its_version_first_and_its_swarm_second() -> None:
    request = peer_pb2.Request(protocol_version=2, swarm=id_of("other"))

    def code() -> int:
        refusal = check_request(request, swarm=SWARM)
        return refusal.failure.code if refusal is not None else 0

    assert code() == peer_pb2.Failure.WRONG_VERSION
    request.protocol_version = 1
    assert code() == peer_pb2.Failure.WRONG_SWARM
    request.swarm = SWARM
    assert code() == peer_pb2.Failure.MALFORMED
    request.get_genesis.SetInParent()
    assert code() == 0


def test_refusals_reach_people_as_sentences() -> None:
    wrong = peer_pb2.Response(failure=peer_pb2.Failure(code=peer_pb2.Failure.WRONG_VERSION, protocol_version=2))
    with pytest.raises(PeerFailure, match=r"^peer speaks protocol 2, this node 1$") as caught:
        check_response(wrong)
    assert caught.value.code == peer_pb2.Failure.WRONG_VERSION
    with pytest.raises(PeerFailure, match="another swarm"):
        check_response(failure(peer_pb2.Failure.WRONG_SWARM, "go away"))
    with pytest.raises(PeerFailure, match="peer refused: it is late"):
        check_response(failure(peer_pb2.Failure.BUSY, "it is late"))
    with pytest.raises(PeerFailure, match="peer refused: not_found"):
        check_response(failure(peer_pb2.Failure.NOT_FOUND, ""))
    with pytest.raises(PeerFailure, match="does not know"):
        check_response(peer_pb2.Response())


def test_offers_are_divided_by_size_in_order() -> None:
    assert list(batches([b"aaa", b"bb", b"c", b"dddddd", b"e"], max_bytes=5)) == [
        [b"aaa", b"bb"],
        [b"c"],
        [b"dddddd"],
        [b"e"],
    ]
    assert list(batches([], max_bytes=5)) == []


def test_runs_of_missing_chunks() -> None:
    assert runs_of([]) == []
    assert runs_of([0, 1, 2]) == [(0, 3)]
    assert runs_of([3, 4, 7]) == [(3, 2), (7, 1)]


# ---- what a peer may take --------------------------------------------------------------------------


def test_a_quota_bounds_each_peer_and_all_together() -> None:
    quota = Quota(per_peer=2, total=3)
    with quota.use(ADA) as first, quota.use(ADA) as second, quota.use(ADA) as third:
        assert (first, second, third) == (True, True, False)
        with quota.use(BOB) as fourth, quota.use(CYD) as fifth:
            assert (fourth, fifth) == (True, False)
    with quota.use(ADA, 2) as again:
        assert again


def test_a_rate_limit_allows_a_burst_and_then_a_steady_rate() -> None:
    now = 0.0
    limiter = RateLimiter(per_second=2, burst=3, now=lambda: now)
    assert [limiter.allow(ADA) for _ in range(4)] == [True, True, True, False]
    assert limiter.allow(BOB)
    now = 0.5
    assert [limiter.allow(ADA) for _ in range(2)] == [True, False]
    limiter.forget(ADA)
    assert limiter.allow(ADA)


# ---- streams in memory -----------------------------------------------------------------------------


class Peers:
    """Stream servers by key, joined by Unix socket pairs instead of libp2p."""

    def __init__(self, directory: Path) -> None:
        self.stores: dict[bytes, Any] = {}
        self.servers: dict[bytes, StreamServer] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.seen: list[bytes] = []
        self.num_streams = 0
        self.shut_out: dict[bytes, str] = {}
        self._directory = directory

    def add(self, key: bytes, *, limits: StreamLimits | None = None) -> BlobStore:
        store = BlobStore(self._directory / key.hex()[:8])
        self.stores[key] = store
        self.servers[key] = StreamServer(
            swarm=SWARM,
            inbound=_Answers(store),
            limits=limits or StreamLimits(),
            on_alive=self.seen.append,
            traffic=Traffic(),
            refusal_of=self.shut_out.get,
        )
        return store

    async def open_stream(self, key: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if key not in self.servers:
            raise PeerUnreachable("no address of the peer is known")
        self.num_streams += 1
        ours, theirs = await _pair()
        task = asyncio.ensure_future(self.servers[key].serve(CYD, *theirs))
        self.tasks.add(task)
        return ours

    def fetcher(self, *, limits: TransferLimits = QUICK) -> BlobFetcher:
        return BlobFetcher(
            own_key=CYD,
            open_stream=self.open_stream,
            prepare=prepare,
            connected=lambda: list(self.servers),
            limits=limits,
            traffic=Traffic(),
        )


class _Answers:
    def __init__(self, store: BlobStore) -> None:
        self._store = store

    async def handle(self, peer: bytes, request: peer_pb2.Request) -> peer_pb2.Response:
        if request.WhichOneof("body") == "get_chain":
            raise ZeroDivisionError("a bug")
        return peer_pb2.Response(received=peer_pb2.Received(num_new=1))

    def blobs(self) -> BlobStore:
        return self._store


def prepare(request: peer_pb2.Request) -> peer_pb2.Request:
    request.protocol_version, request.swarm = 1, SWARM
    return request


async def _pair() -> Any:
    left, right = socket.socketpair()
    return await asyncio.open_unix_connection(sock=left), await asyncio.open_unix_connection(sock=right)


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[Peers]:
    made = Peers(tmp_path)
    yield made
    for server in made.servers.values():
        await server.close()
    await asyncio.gather(*made.tasks)


async def test_a_peer_with_too_many_streams_is_told_so(peers: Peers) -> None:
    peers.add(ADA, limits=StreamLimits(streams_per_peer=1))
    silent = await peers.open_stream(ADA)
    await asyncio.sleep(0)
    offer = peer_pb2.Request(offer=peer_pb2.Offer())
    with pytest.raises(PeerFailure, match="too many requests"):
        await request_peer(peers.open_stream, ADA, prepare(offer), timeout_s=5)
    silent[1].close()


async def test_who_is_shut_out_is_told_why_before_its_request_is_read(peers: Peers) -> None:
    peers.add(ADA)
    peers.shut_out[CYD] = "shut out for 60 s more: sent rubbish"
    for request in (peer_pb2.Request(offer=peer_pb2.Offer()), peer_pb2.Request(get_blob=peer_pb2.GetBlob())):
        with pytest.raises(PeerFailure, match="takes nothing from this node: shut out for 60 s more: sent rubbish"):
            await request_peer(peers.open_stream, ADA, prepare(request), timeout_s=5)
    assert peers.seen == []
    del peers.shut_out[CYD]
    await request_peer(peers.open_stream, ADA, prepare(peer_pb2.Request(offer=peer_pb2.Offer())), timeout_s=5)
    assert peers.seen == [CYD]


async def test_a_bug_in_answering_ends_one_stream_and_is_logged(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    peers.add(ADA)
    with pytest.raises(PeerUnreachable, match="ended before the answer"):
        await request_peer(
            peers.open_stream, ADA, prepare(peer_pb2.Request(get_chain=peer_pb2.GetChain())), timeout_s=5
        )
    assert "ZeroDivisionError" in caplog.text
    offer = prepare(peer_pb2.Request(offer=peer_pb2.Offer()))
    assert (await request_peer(peers.open_stream, ADA, offer, timeout_s=5)).received.num_new == 1


async def test_a_peer_that_stops_in_mid_request_is_given_up(peers: Peers) -> None:
    peers.add(ADA, limits=StreamLimits(frame_timeout_s=0.1))
    reader, writer = await peers.open_stream(ADA)
    writer.write(b"\x64\x00\x00\x00only this")
    assert await reader.read() == b""
    writer.close()


async def test_which_blobs_a_peer_has(peers: Peers) -> None:
    ref = peers.add(ADA).put_bytes(b"some blob")
    request = prepare(peer_pb2.Request(has_blobs=peer_pb2.HasBlobs(ids=[ref.id, id_of("absent")])))
    response = await request_peer(peers.open_stream, ADA, request, timeout_s=5)
    assert list(response.blobs_present.present) == [True, False]
    assert peers.seen == [CYD]
    too_many = prepare(peer_pb2.Request(has_blobs=peer_pb2.HasBlobs(ids=[ref.id] * 4097)))
    with pytest.raises(PeerFailure, match="at most 4096"):
        await request_peer(peers.open_stream, ADA, too_many, timeout_s=5)


async def test_chunks_asked_for_are_sent_and_no_others(peers: Peers) -> None:
    data = bytes(CHUNK_BYTES) + bytes([1]) * CHUNK_BYTES + b"tail"
    ref = peers.add(ADA).put_bytes(data)

    async def ask_for(first: int, count: int) -> tuple[peer_pb2.Response, bytes]:
        stream = await peers.open_stream(ADA)
        body = peer_pb2.GetBlob(id=ref.id, first_chunk=first, num_chunks=count)
        try:
            response = await ask(stream, prepare(peer_pb2.Request(get_blob=body)))
            return response, await stream[0].read()
        finally:
            stream[1].close()

    header, content = await ask_for(1, 1)
    assert header.blob_header.num_bytes == len(data)
    assert content == bytes([1]) * CHUNK_BYTES
    assert (await ask_for(1, 0))[1] == data[CHUNK_BYTES:]
    assert (await ask_for(3, 0))[1] == b""
    for first, count in ((4, 0), (2, 2), (0, 4), (2**32 - 1, 2**32 - 1)):
        with pytest.raises(PeerFailure, match="has 3 chunks"):
            await ask_for(first, count)


async def test_a_blob_is_fetched_from_whoever_has_it(peers: Peers, tmp_path: Path) -> None:
    peers.add(ADA)
    ref = peers.add(BOB).put_bytes(b"held by bob alone")
    own = BlobStore(tmp_path / "own")
    await peers.fetcher().fetch(ref, providers=[CYD, id_of("unknown"), ADA], blobs=own)
    assert own.read(ref.id) == b"held by bob alone"


async def test_every_peers_reason_is_told_when_nobody_has_it(peers: Peers, tmp_path: Path) -> None:
    peers.add(ADA)
    ref = BlobStore(tmp_path / "elsewhere").put_bytes(b"lost")
    with pytest.raises(BlobUnavailable) as caught:
        await peers.fetcher().fetch(ref, providers=[ADA, BOB], blobs=BlobStore(tmp_path / "own"))
    assert "is not here" in caught.value.reasons[ADA]
    assert caught.value.reasons[BOB] == "no address of the peer is known"


async def test_a_provider_that_is_busy_is_asked_again(peers: Peers, tmp_path: Path) -> None:
    """It answers one request at a time, and another one is being made."""
    ref = peers.add(ADA, limits=StreamLimits(streams_per_peer=1)).put_bytes(b"wanted")
    other = await peers.open_stream(ADA)
    own = BlobStore(tmp_path / "own")
    fetcher = peers.fetcher(limits=TransferLimits(busy_pause_s=0.01))
    fetch = asyncio.ensure_future(fetcher.fetch(ref, providers=[ADA], blobs=own))
    while peers.num_streams < 4:  # noqa: ASYNC110 - asked, and asked again.
        await asyncio.sleep(0.01)
    assert not fetch.done()
    other[1].close()
    await fetch
    assert own.read(ref.id) == b"wanted"


async def test_a_provider_that_stays_busy_is_given_up_with_its_reason(peers: Peers, tmp_path: Path) -> None:
    ref = peers.add(ADA, limits=StreamLimits(streams_per_peer=0)).put_bytes(b"wanted")
    fetcher = peers.fetcher(limits=TransferLimits(busy_pause_s=0.01, busy_timeout_s=0.1))
    with pytest.raises(BlobUnavailable, match="too many requests at a time"):
        await fetcher.fetch(ref, providers=[ADA], blobs=BlobStore(tmp_path / "own"))


async def test_a_provider_of_many_small_blobs_is_not_asked_too_often(peers: Peers, tmp_path: Path) -> None:
    """More blobs than it answers at once: whoever paces itself is never told that it is busy."""
    blobs = peers.add(ADA, limits=StreamLimits(requests_per_second=400, burst=20))
    refs = [blobs.put_bytes(bytes([number])) for number in range(60)]
    fetcher = peers.fetcher(limits=TransferLimits(requests_per_second=200, burst=10))
    own = BlobStore(tmp_path / "own")
    await asyncio.gather(*(fetcher.fetch(ref, providers=[ADA], blobs=own) for ref in refs))
    assert own.ids() == sorted(ref.id for ref in refs)
    assert peers.num_streams == len(refs)


async def test_a_slow_provider_is_left_for_a_quicker_one_and_used_when_it_is_the_only_one(
    peers: Peers, tmp_path: Path
) -> None:
    data = bytes(2 * CHUNK_BYTES)
    ref = peers.add(ADA).put_bytes(data)
    dripping = _Dripping(peers, ADA, pause_s=0.05)
    limits = TransferLimits(idle_timeout_s=1, window_s=0.1, min_bytes_per_s=1 << 30, min_bytes_per_s_alone=1 << 10)
    fetcher = BlobFetcher(
        own_key=CYD,
        open_stream=dripping.open_stream,
        prepare=prepare,
        connected=lambda: [ADA],
        limits=limits,
        traffic=Traffic(),
    )
    own = BlobStore(tmp_path / "own")
    await fetcher.fetch(ref, providers=[ADA], blobs=own)
    assert own.has(ref.id)
    assert dripping.num_streams >= 2  # Once in a hurry, once with patience.


class _Dripping:
    """Passes a peer's bytes on in small pieces with pauses."""

    def __init__(self, peers: Peers, key: bytes, *, pause_s: float) -> None:
        self.num_streams = 0
        self._peers = peers
        self._key = key
        self._pause_s = pause_s

    async def open_stream(self, key: bytes) -> Any:
        self.num_streams += 1
        source, sink = await self._peers.open_stream(key)
        slow = asyncio.StreamReader()

        async def drip() -> None:
            while piece := await source.read(64 << 10):
                slow.feed_data(piece)
                await asyncio.sleep(self._pause_s / 10)
            slow.feed_eof()

        self._peers.tasks.add(asyncio.ensure_future(drip()))
        return slow, sink


async def test_silence_and_slowness_are_told_apart() -> None:
    reader = asyncio.StreamReader()
    gate = SpeedGate(reader, limits=QUICK, min_bytes_per_s=1000)
    with pytest.raises(PeerUnreachable, match="sent nothing"):
        await gate.read_exactly(10)
    gate = SpeedGate(reader, limits=QUICK, min_bytes_per_s=1000)
    drip = asyncio.ensure_future(_feed(reader, pieces=20, pause_s=0.02))
    with pytest.raises(TooSlowError, match="at least 1000 required"):
        await gate.read_exactly(100)
    await drip
    with pytest.raises(PeerUnreachable, match="truncated"):
        await SpeedGate(reader_of(b"abc"), limits=QUICK, min_bytes_per_s=1).read_exactly(10)


async def _feed(reader: asyncio.StreamReader, *, pieces: int, pause_s: float) -> None:
    for _ in range(pieces):
        reader.feed_data(b"x")
        await asyncio.sleep(pause_s)


async def test_a_full_disk_is_the_operators_trouble_and_nobody_elses(
    peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = peers.add(ADA).put_bytes(bytes(10))
    own = BlobStore(tmp_path / "own")

    def full(*_: Any) -> Any:
        raise NodeError("no space left")

    monkeypatch.setattr(own, "writer", full)
    fetcher = peers.fetcher()
    with pytest.raises(NodeError, match="no space left"):
        await fetcher.fetch(ref, providers=[ADA], blobs=own)
    assert fetcher.banned == {}


async def test_a_cancelled_fetch_lets_go_of_its_file_only_when_the_disk_is_done(peers: Peers, tmp_path: Path) -> None:
    ref = peers.add(ADA).put_bytes(bytes(CHUNK_BYTES + 1))
    own = BlobStore(tmp_path / "own")
    order: list[str] = []
    writing = asyncio.Event()
    loop = asyncio.get_running_loop()
    make_writer: Callable[..., Any] = own.writer

    def watched(*arguments: Any) -> Any:
        writer = make_writer(*arguments)
        write, close = writer.write_chunk, writer.close

        def slow_write(index: int, data: bytes) -> None:
            loop.call_soon_threadsafe(writing.set)
            time.sleep(0.1)
            write(index, data)
            order.append("written")

        def watched_close() -> None:
            order.append("closed")
            close()

        writer.write_chunk, writer.close = slow_write, watched_close
        return writer

    own.writer = watched
    fetch = asyncio.ensure_future(peers.fetcher().fetch(ref, providers=[ADA], blobs=own))
    await writing.wait()
    fetch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await fetch
    assert order == ["written", "closed"]
    own.writer = make_writer
    await peers.fetcher().fetch(ref, providers=[ADA], blobs=own)
    assert own.read(ref.id) == bytes(CHUNK_BYTES + 1)
