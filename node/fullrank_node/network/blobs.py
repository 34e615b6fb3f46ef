"""Fetching blobs: a header that proves the chunk hashes, then raw chunks (protocol section 10).

The asker knows the blob's id, so a wrong header or a wrong chunk shows at once who lied: that peer
is not asked for blobs again in this session. Length is explicit, because a killed sender looks like
the end of the stream. What has arrived stays on disk; the next provider goes on from there.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from fullrank_node.network.asking import OpenStream, ask, request_peer, short
from fullrank_node.network.frames import PIECE_BYTES
from fullrank_node.network.interface import (
    BlobStore,
    BlobUnavailable,
    BlobWriter,
    NetworkError,
    PeerFailure,
    PeerUnreachable,
)
from fullrank_node.network.limits import RateLimiter, Traffic, TransferLimits
from fullrank_protocol.blob import BlobRef, check_header, chunk_size
from fullrank_protocol.errors import RejectError
from fullrank_protocol.wire import peer_pb2

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MAX_ASKED_PEERS = 16
"""Connected peers asked whether they have a blob that no provider gave."""

_HAS_BLOBS_TIMEOUT_S = 5.0


class TooSlowError(PeerUnreachable):
    """The provider sends, but below the speed required while others may be faster."""


class SpeedGate:
    """Reads from a stream, and gives up on one that is silent or too slow."""

    def __init__(self, reader: asyncio.StreamReader, *, limits: TransferLimits, min_bytes_per_s: int) -> None:
        self._reader = reader
        self._limits = limits
        self._min_bytes_per_s = min_bytes_per_s
        self._loop = asyncio.get_running_loop()
        self._window_began = self._loop.time()
        self._window_bytes = 0

    async def read_exactly(self, num_bytes: int) -> bytes:
        """The next `num_bytes`.

        Raises:
            PeerUnreachable: The stream ended, broke, fell silent or is too slow.
        """
        pieces = bytearray()
        while len(pieces) < num_bytes:
            try:
                async with asyncio.timeout(self._limits.idle_timeout_s):
                    piece = await self._reader.read(min(PIECE_BYTES, num_bytes - len(pieces)))
            except TimeoutError as error:
                raise PeerUnreachable(f"sent nothing for {self._limits.idle_timeout_s:g} s") from error
            except OSError as error:
                raise PeerUnreachable(f"the stream broke: {error}") from error
            if not piece:
                raise PeerUnreachable(f"truncated: the stream ended {num_bytes - len(pieces)} bytes before a chunk did")
            pieces += piece
            self._count(len(piece))
        return bytes(pieces)

    def _count(self, num_bytes: int) -> None:
        self._window_bytes += num_bytes
        elapsed_s = self._loop.time() - self._window_began
        if elapsed_s < self._limits.window_s:
            return
        speed = self._window_bytes / elapsed_s
        if speed < self._min_bytes_per_s:
            raise TooSlowError(f"too slow: {speed:.0f} bytes/s, at least {self._min_bytes_per_s} required")
        self._window_began, self._window_bytes = self._loop.time(), 0


class BlobFetcher:
    """Brings blobs here, from whoever has them.

    Attributes:
        banned: Peers that sent a wrong header or chunk, and what was wrong; never asked for blobs again.
    """

    def __init__(
        self,
        *,
        own_key: bytes,
        open_stream: OpenStream,
        prepare: Callable[[peer_pb2.Request], peer_pb2.Request],
        connected: Callable[[], Sequence[bytes]],
        limits: TransferLimits,
        traffic: Traffic,
    ) -> None:
        """Initialises.

        Args:
            own_key: Never asked.
            open_stream: Opens a stream to a peer.
            prepare: Fills in version and swarm.
            connected: Peers to ask beside the providers, the best first.
            limits: Bounds in time and number.
            traffic: Counts what arrives.
        """
        self.banned: dict[bytes, str] = {}
        self._own_key = own_key
        self._open_stream = open_stream
        self._prepare = prepare
        self._connected = connected
        self._limits = limits
        self._traffic = traffic
        self._pace = RateLimiter(per_second=limits.requests_per_second, burst=limits.burst, now=time.monotonic)
        self._transfers = asyncio.Semaphore(limits.concurrent)
        self._locks: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()

    async def fetch(self, ref: BlobRef, *, providers: Sequence[bytes], blobs: BlobStore) -> None:
        """Brings `ref` into `blobs`; a second call for the same blob waits for the first.

        Raises:
            BlobUnavailable: Nobody gave it whole; what arrived is kept.
            NodeError: The disk is full.
        """
        lock = self._locks.setdefault(ref.id, asyncio.Lock())
        async with lock:
            if await asyncio.to_thread(blobs.has, ref.id):
                return
            async with self._transfers:
                await self._fetch(ref, providers, blobs)

    async def _fetch(self, ref: BlobRef, providers: Sequence[bytes], blobs: BlobStore) -> None:
        download = _Download(ref, blobs)
        patient = False
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + self._limits.busy_timeout_s
        try:
            while True:
                before, download.busy = download.num_written, False
                named = self._usable(providers)
                if await self._try_each(named, download, patient=patient):
                    return
                others = await self._holders(ref, self._usable(self._connected(), without=named))
                if await self._try_each(others, download, patient=patient):
                    return
                if download.num_written != before:
                    gives_up_at = loop.time() + self._limits.busy_timeout_s
                elif download.busy and loop.time() < gives_up_at:
                    await asyncio.sleep(self._limits.busy_pause_s)
                    continue
                elif patient or not download.slow:
                    break  # Nobody gave a chunk, and nobody is left who was only slow or busy.
                patient = True
        finally:
            await download.close()
        told = "; ".join(f"peer {short(peer)}: {reason}" for peer, reason in download.reasons.items())
        raise BlobUnavailable(
            f"blob {ref.id.hex()} cannot be had: {told or 'no peer has it'}", reasons=download.reasons
        )

    def _usable(self, peers: Sequence[bytes], *, without: Sequence[bytes] = ()) -> list[bytes]:
        left_out = {self._own_key, *self.banned, *without}
        return [peer for peer in dict.fromkeys(peers) if peer not in left_out]

    async def _holders(self, ref: BlobRef, peers: Sequence[bytes]) -> list[bytes]:
        """Those of `peers` that say they have the blob."""
        request = self._prepare(peer_pb2.Request(has_blobs=peer_pb2.HasBlobs(ids=[ref.id])))

        async def has(peer: bytes) -> bool:
            await self._turn(peer)
            try:
                response = await request_peer(self._open_stream, peer, request, timeout_s=_HAS_BLOBS_TIMEOUT_S)
            except NetworkError:
                return False
            return list(response.blobs_present.present) == [True]

        asked = peers[:MAX_ASKED_PEERS]
        answers = await asyncio.gather(*(has(peer) for peer in asked))
        return [peer for peer, answer in zip(asked, answers, strict=True) if answer]

    async def _turn(self, peer: bytes) -> None:
        """Returns when `peer` may be asked once more: who asks too often is told that the peer is busy."""
        while not self._pace.allow(peer):  # noqa: ASYNC110 - tokens come with time, and nobody tells.
            await asyncio.sleep(1 / self._limits.requests_per_second)

    async def _try_each(self, peers: Sequence[bytes], download: "_Download", *, patient: bool) -> bool:
        """Whether one of `peers` completed the blob."""
        for peer in peers:
            try:
                await self._receive(peer, download, patient=patient)
            except RejectError as error:
                self.banned[peer] = error.detail
                download.reasons[peer] = f"sent wrong bytes: {error.detail}"
                logger.warning("No more blobs from peer %s, which sent wrong bytes: %s", short(peer), error.detail)
            except NetworkError as error:
                download.reasons[peer] = str(error)
                download.slow |= isinstance(error, TooSlowError)
                download.busy |= isinstance(error, PeerFailure) and error.code == peer_pb2.Failure.BUSY
                logger.debug("Blob %s from peer %s: %s", download.ref.id.hex(), short(peer), error)
            else:
                return True
        return False

    async def _receive(self, peer: bytes, download: "_Download", *, patient: bool) -> None:
        """Takes every missing chunk from `peer`, one run of neighbouring chunks a stream."""
        runs = runs_of(download.missing()) if download.begun else [(0, 0)]
        while runs:
            first, count = runs[0]
            await self._turn(peer)
            try:
                async with asyncio.timeout(self._limits.open_timeout_s):
                    reader, writer = await self._open_stream(peer)
            except TimeoutError as error:
                raise PeerUnreachable(f"no stream within {self._limits.open_timeout_s:g} s") from error
            try:
                await self._receive_run(reader, writer, download, first=first, count=count, patient=patient)
            finally:
                writer.close()
            runs = runs_of(download.missing())
        await download.finish()

    async def _receive_run(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        download: "_Download",
        *,
        first: int,
        count: int,
        patient: bool,
    ) -> None:
        body = peer_pb2.GetBlob(id=download.ref.id, first_chunk=first, num_chunks=count)
        request = self._prepare(peer_pb2.Request(get_blob=body))
        try:
            async with asyncio.timeout(self._limits.header_timeout_s):
                response = await ask((reader, writer), request)
        except TimeoutError as error:
            raise PeerUnreachable(f"no header within {self._limits.header_timeout_s:g} s") from error
        self._traffic.add(up=request.ByteSize(), down=response.ByteSize())
        header = response.blob_header
        await download.begin(header.num_bytes, list(header.chunk_sha256))
        if (
            count == 0
        ):  # The first stream of a download asks for everything; a partial file may have made that too much.
            first, count = next(iter(runs_of(download.missing())), (0, 0))
            if first:
                return  # Ask again, for what is missing only.
        least = self._limits.min_bytes_per_s_alone if patient else self._limits.min_bytes_per_s
        gate = SpeedGate(reader, limits=self._limits, min_bytes_per_s=least)
        for index in range(first, first + count):
            data = await gate.read_exactly(chunk_size(download.ref.num_bytes, index))
            self._traffic.add(down=len(data))
            await download.write(index, data)


def runs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, count) of each run of neighbours: [3, 4, 7] is [(3, 2), (7, 1)]."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


class _Download:
    """One blob on its way in, over however many peers it takes."""

    def __init__(self, ref: BlobRef, blobs: BlobStore) -> None:
        self.ref = ref
        self.num_written = 0
        self.slow = False
        self.busy = False
        self.reasons: dict[bytes, str] = {}
        self._blobs = blobs
        self._writer: BlobWriter | None = None

    @property
    def begun(self) -> bool:
        """Whether a header has been accepted, so that the missing chunks are known."""
        return self._writer is not None

    async def begin(self, num_bytes: int, chunk_sha256s: Sequence[bytes]) -> None:
        """Checks a peer's header; the first good one opens the partial file.

        Raises:
            RejectError: The header is not the blob's.
        """
        check_header(self.ref, num_bytes, chunk_sha256s)
        if self._writer is None:
            self._writer = await _in_thread(self._blobs.writer, self.ref, chunk_sha256s)

    def missing(self) -> Sequence[int]:
        """Ascending numbers of the chunks still to come."""
        return self._opened().missing()

    async def write(self, index: int, data: bytes) -> None:
        """Keeps one chunk.

        Raises:
            RejectError: Its hash is wrong.
        """
        await _in_thread(self._opened().write_chunk, index, data)
        self.num_written += 1

    async def finish(self) -> None:
        """Gives the whole blob its name."""
        await _in_thread(self._opened().finish)

    async def close(self) -> None:
        """Lets go of the partial file."""
        if self._writer is not None:
            await _in_thread(self._writer.close)

    def _opened(self) -> BlobWriter:
        if self._writer is None:
            raise ValueError("no header has been accepted yet")
        return self._writer


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `function` in a thread and, when cancelled, still waits for it: its file must not be closed under it."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise
