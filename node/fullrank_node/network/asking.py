"""Asking a peer: one request, one answer, one stream (protocol sections 10 and 11).

Every way of failing becomes one sentence that a person understands. Who the peer is, the transport has
proved; what it says is verified by whoever asked.
"""

import asyncio
from collections.abc import Awaitable, Callable

from fullrank_node.network.frames import (
    MAX_GENESIS_RESPONSE_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    FrameTooLargeError,
    MalformedFrameError,
    encode_frame,
    read_message,
)
from fullrank_node.network.interface import PeerFailure, PeerUnreachable
from fullrank_protocol.limits import PROTOCOL_VERSION
from fullrank_protocol.wire import peer_pb2

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

OpenStream = Callable[[bytes], Awaitable[Stream]]
"""Opens a stream to a peer; raises PeerUnreachable."""


def short(key: bytes) -> str:
    """A peer as people see it in logs."""
    return key.hex()[:8]


async def ask(stream: Stream, request: peer_pb2.Request) -> peer_pb2.Response:
    """Sends `request` and reads the answer, leaving the stream open; the caller bounds the time and closes.

    The answer is awaited while the request is still being written: who refuses it does not read it to the end.

    Raises:
        PeerFailure: The peer refused.
        PeerUnreachable: The stream broke, or the answer is no answer.
    """
    reader, writer = stream
    frame = encode_frame(request)
    if len(frame) > MAX_REQUEST_BYTES:
        raise ValueError(f"a request of {len(frame)} bytes, at most {MAX_REQUEST_BYTES} may be sent")
    body = request.WhichOneof("body")
    limit = MAX_GENESIS_RESPONSE_BYTES if body == "get_genesis" else MAX_RESPONSE_BYTES
    writer.write(frame)
    try:
        response = await read_message(reader, peer_pb2.Response, max_bytes=limit)
    except asyncio.IncompleteReadError as error:
        raise PeerUnreachable("the stream ended before the answer") from error
    except ConnectionError as error:
        raise PeerUnreachable(f"the stream broke: {error}") from error
    except (FrameTooLargeError, MalformedFrameError) as error:
        raise PeerUnreachable(f"the answer cannot be used: {error}") from error
    return check_response(response)


def check_response(response: peer_pb2.Response) -> peer_pb2.Response:
    """Returns an answer that is no refusal.

    Raises:
        PeerFailure: It is one; the message is fit for people.
    """
    body = response.WhichOneof("body")
    if body is None:
        raise PeerFailure("the peer answered with something this node does not know", code=peer_pb2.Failure.MALFORMED)
    if body != "failure":
        return response
    found = response.failure
    if found.code == peer_pb2.Failure.WRONG_VERSION:
        text = f"peer speaks protocol {found.protocol_version}, this node {PROTOCOL_VERSION}"
    elif found.code == peer_pb2.Failure.WRONG_SWARM:
        text = "peer belongs to another swarm"
    elif found.code == peer_pb2.Failure.SHUT_OUT:
        text = f"peer takes nothing from this node: {found.detail[:400]}"
    else:
        text = f"peer refused: {found.detail[:400] or peer_pb2.Failure.Code.Name(found.code).lower()}"
    raise PeerFailure(text, code=found.code, protocol_version=found.protocol_version)


async def request_peer(
    open_stream: OpenStream, peer: bytes, request: peer_pb2.Request, *, timeout_s: float
) -> peer_pb2.Response:
    """Asks `peer` on a stream of its own.

    Raises:
        PeerFailure: The peer refused.
        PeerUnreachable: No answer within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            stream = await open_stream(peer)
            try:
                return await ask(stream, request)
            finally:
                stream[1].close()
    except TimeoutError as error:
        raise PeerUnreachable(f"no answer within {timeout_s:g} s") from error
