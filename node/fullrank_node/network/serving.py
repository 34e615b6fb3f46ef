"""Answering peers: one stream, one request, one answer (protocol sections 10 and 11).

What each peer may take of this node is bounded; who the peer is, the transport has proved.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, cast

from fullrank_node.network.asking import short
from fullrank_node.network.frames import (
    MAX_GENESIS_RESPONSE_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    PIECE_BYTES,
    FrameTooLargeError,
    MalformedFrameError,
    check_request,
    encode_frame,
    failure,
    parse_message,
    read_body,
    read_length,
)
from fullrank_node.network.interface import BlobStore, Inbound, RefusalOf, welcome
from fullrank_node.network.limits import Quota, RateLimiter, StreamLimits, Traffic
from fullrank_protocol.limits import PROTOCOL_VERSION
from fullrank_protocol.wire import peer_pb2

logger = logging.getLogger(__name__)

MAX_IDS_ASKED: Final = 4096
"""Blobs asked about in one HasBlobs: each costs the answerer a look at its disk."""

SMALL_FRAME_BYTES: Final = 64 << 10
"""Frames up to here are not counted against the memory bound: streams are bounded already."""

_LINGER_S: Final = 1.0
"""How long a refused sender may go on before the stream is cut: cut at once, the refusal could be lost."""


def stream_protocol(swarm: bytes) -> str:
    """Name of the stream protocol; peers of other swarms do not even know it."""
    return f"fullrank/{PROTOCOL_VERSION}/{swarm.hex()[:16]}"


class StreamServer:
    """Answers the streams that peers open."""

    def __init__(
        self,
        *,
        swarm: bytes,
        inbound: Inbound,
        limits: StreamLimits,
        on_alive: Callable[[bytes], None],
        traffic: Traffic,
        refusal_of: RefusalOf = welcome,
    ) -> None:
        self._swarm = swarm
        self._inbound = inbound
        self._limits = limits
        self._on_alive = on_alive
        self._refusal_of = refusal_of
        self._traffic = traffic
        self._blobs = BlobServer(inbound.blobs, limits=limits, traffic=traffic)
        self._streams = Quota(per_peer=limits.streams_per_peer, total=limits.streams_total)
        self._frame_bytes = Quota(per_peer=limits.frame_bytes_total // 4, total=limits.frame_bytes_total)
        self._rate = RateLimiter(
            per_second=limits.requests_per_second,
            burst=limits.burst,
            now=lambda: asyncio.get_running_loop().time(),
        )
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    def forget(self, peer: bytes) -> None:
        """A peer is gone."""
        self._rate.forget(peer)

    async def close(self) -> None:
        """Ends every stream being answered, and answers no more."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def serve(self, peer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one stream to its end, whatever comes in on it."""
        if self._closed:
            writer.close()
            return
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._tasks.add(task)
        try:
            await self._serve(peer, reader, writer)
        except asyncio.CancelledError:
            return  # Only `close` cancels; asyncio's server logs a cancelled handler as an error.
        except Exception:  # A bug in answering one peer must be seen, and must not silence the others.
            logger.exception("Answering peer %s failed", short(peer))
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, peer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with self._streams.use(peer) as granted:
                if (why := self._refusal_of(peer)) is not None:
                    await self._refuse(reader, writer, failure(peer_pb2.Failure.SHUT_OUT, why))
                    return
                if not granted or not self._rate.allow(peer):
                    await self._refuse(reader, writer, failure(peer_pb2.Failure.BUSY, "too many requests at a time"))
                    return
                await self._answer(peer, reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            logger.debug("A stream of peer %s broke: %s", short(peer), error or type(error).__name__)

    async def _answer(self, peer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await self._read_request(peer, reader, writer)
        if request is None:
            return
        refusal = check_request(request, swarm=self._swarm)
        if refusal is not None:
            logger.debug("Refused a request of peer %s: %s", short(peer), refusal.failure.detail)
            await self._send(writer, refusal)
            return
        self._on_alive(peer)
        body = request.WhichOneof("body")
        if body == "get_blob":
            await self._blobs.send(peer, request.get_blob, writer)
            return
        if body == "has_blobs":
            await self._send(writer, await self._blobs.present(request.has_blobs))
            return
        async with asyncio.timeout(self._limits.answer_timeout_s):
            response = await self._inbound.handle(peer, request)
        await self._send(writer, _bounded(response, body or ""))

    async def _read_request(
        self, peer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> peer_pb2.Request | None:
        """The request, or None when it has been refused already."""
        try:
            async with asyncio.timeout(self._limits.frame_timeout_s):
                num_bytes = await read_length(reader, max_bytes=MAX_REQUEST_BYTES)
                counted = num_bytes if num_bytes > SMALL_FRAME_BYTES else 0
                with self._frame_bytes.use(peer, counted) as granted:
                    if granted:
                        self._traffic.add(down=num_bytes)
                        return parse_message(await read_body(reader, num_bytes), peer_pb2.Request)
            refusal = failure(peer_pb2.Failure.BUSY, "no memory for so large a request just now")
        except FrameTooLargeError as error:
            logger.info("Refused an oversize request of peer %s: %s", short(peer), error)
            refusal = failure(peer_pb2.Failure.TOO_LARGE, str(error))
        except MalformedFrameError as error:
            logger.info("Refused a malformed request of peer %s: %s", short(peer), error)
            refusal = failure(peer_pb2.Failure.MALFORMED, str(error))
        await self._refuse(reader, writer, refusal)
        return None

    async def _refuse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, response: peer_pb2.Response
    ) -> None:
        """Sends a refusal to a peer that may still be sending."""
        await self._send(writer, response)
        if writer.can_write_eof():
            writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while await reader.read(SMALL_FRAME_BYTES):
                    pass

    async def _send(self, writer: asyncio.StreamWriter, response: peer_pb2.Response) -> None:
        async with asyncio.timeout(self._limits.frame_timeout_s):
            frame = encode_frame(response)
            self._traffic.add(up=len(frame))
            writer.write(frame)
            await writer.drain()


def _bounded(response: peer_pb2.Response, body: str) -> peer_pb2.Response:
    limit = MAX_GENESIS_RESPONSE_BYTES if body == "get_genesis" else MAX_RESPONSE_BYTES
    if response.ByteSize() <= limit:
        return response
    logger.error("A reply to %s takes %d bytes, at most %d may be sent", body, response.ByteSize(), limit)
    return failure(peer_pb2.Failure.TOO_LARGE, f"the reply takes {response.ByteSize()} bytes, at most {limit} allowed")


class BlobServer:
    """Sends blobs and says which are here."""

    def __init__(self, blobs: Callable[[], BlobStore], *, limits: StreamLimits, traffic: Traffic) -> None:
        self._blobs = blobs
        self._traffic = traffic
        self._limits = limits
        self._uploads = Quota(per_peer=limits.uploads_per_peer, total=limits.uploads_total)

    async def present(self, request: peer_pb2.HasBlobs) -> peer_pb2.Response:
        """Which of the blobs asked about are here, in order."""
        if len(request.ids) > MAX_IDS_ASKED:
            return failure(peer_pb2.Failure.TOO_LARGE, f"{len(request.ids)} ids, at most {MAX_IDS_ASKED} allowed")
        blobs = self._blobs()
        present = await asyncio.to_thread(lambda: [blobs.has(blob_id) for blob_id in request.ids])
        return peer_pb2.Response(blobs_present=peer_pb2.BlobsPresent(present=present))

    async def send(self, peer: bytes, request: peer_pb2.GetBlob, writer: asyncio.StreamWriter) -> None:
        """Answers one GetBlob: header, then the chunks asked for, in order."""
        with self._uploads.use(peer) as granted:
            if not granted:
                await self._write(writer, encode_frame(failure(peer_pb2.Failure.BUSY, "too many blobs at a time")))
                return
            await self._send(request, writer)

    async def _send(self, request: peer_pb2.GetBlob, writer: asyncio.StreamWriter) -> None:
        blobs = self._blobs()
        try:
            num_bytes, chunk_sha256s = await asyncio.to_thread(blobs.header, request.id)
        except KeyError:
            refusal = failure(peer_pb2.Failure.NOT_FOUND, f"blob {request.id.hex()} is not here")
            await self._write(writer, encode_frame(refusal))
            return
        if request.first_chunk + request.num_chunks > len(chunk_sha256s):
            detail = f"blob {request.id.hex()} has {len(chunk_sha256s)} chunks"
            await self._write(writer, encode_frame(failure(peer_pb2.Failure.MALFORMED, detail)))
            return
        header = peer_pb2.BlobHeader(num_bytes=num_bytes, chunk_sha256=chunk_sha256s)
        await self._write(writer, encode_frame(peer_pb2.Response(blob_header=header)))
        last = request.first_chunk + request.num_chunks if request.num_chunks else len(chunk_sha256s)
        for index in range(request.first_chunk, last):
            try:
                data = await asyncio.to_thread(blobs.read_chunk, request.id, index)
            except KeyError:
                logger.warning("Blob %s vanished while it was being sent", request.id.hex())
                return  # The asker sees that bytes are missing.
            view = memoryview(data)
            for start in range(0, len(view), PIECE_BYTES):
                await self._write(writer, view[start : start + PIECE_BYTES])

    async def _write(self, writer: asyncio.StreamWriter, data: bytes | memoryview) -> None:
        async with asyncio.timeout(self._limits.write_timeout_s):
            self._traffic.add(up=len(data))
            writer.write(data)
            await writer.drain()
