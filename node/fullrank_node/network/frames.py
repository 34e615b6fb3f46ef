"""One message on a stream: a 4-byte little-endian length, then a protobuf Request or Response.

Every read is bounded in bytes before memory is taken, and in time. Nothing here knows which peer or
which transport is at the other end.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from fullrank_node.network.interface import NetworkError
from fullrank_protocol.limits import MAX_CHECKPOINT_BYTES, MAX_GENESIS_BYTES, PROTOCOL_VERSION
from fullrank_protocol.wire import peer_pb2

MessageT = TypeVar("MessageT", bound=Message)

MAX_REQUEST_BYTES: Final = MAX_CHECKPOINT_BYTES + (1 << 20)
"""Largest request: one checkpoint offered whole, or smaller objects together, and what wraps them."""

MAX_RESPONSE_BYTES: Final = 2 * MAX_CHECKPOINT_BYTES
"""Largest reply but for a genesis: whoever answers with objects stops below and sets `more`."""

MAX_GENESIS_RESPONSE_BYTES: Final = MAX_GENESIS_BYTES + (1 << 20)
"""Largest reply to GetGenesis."""

PIECE_BYTES: Final = 256 << 10
"""How much is read or written at a time: raw streams reach full speed from here on (measured)."""

_LENGTH_BYTES: Final = 4


class FrameTooLargeError(NetworkError):
    """The other side announced more bytes than it may send.

    Attributes:
        num_bytes: What it announced.
        max_bytes: What is allowed.
    """

    def __init__(self, *, num_bytes: int, max_bytes: int) -> None:
        super().__init__(f"a message of {num_bytes} bytes was announced, at most {max_bytes} are allowed")
        self.num_bytes = num_bytes
        self.max_bytes = max_bytes


class MalformedFrameError(NetworkError):
    """The bytes of a frame are no message of the expected kind."""


def encode_frame(message: Message) -> bytes:
    """The bytes of one frame."""
    data = message.SerializeToString()
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


async def read_length(reader: asyncio.StreamReader, *, max_bytes: int) -> int:
    """Reads the length that begins a frame.

    Raises:
        FrameTooLargeError: It is above `max_bytes`; nothing of the frame has been read.
        asyncio.IncompleteReadError: The stream ended.
    """
    num_bytes = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "little")
    if num_bytes > max_bytes:
        raise FrameTooLargeError(num_bytes=num_bytes, max_bytes=max_bytes)
    return num_bytes


async def read_body(reader: asyncio.StreamReader, num_bytes: int) -> bytes:
    """Reads `num_bytes`; memory is taken only as they arrive.

    Raises:
        asyncio.IncompleteReadError: The stream ended first.
    """
    pieces = bytearray()
    while len(pieces) < num_bytes:
        piece = await reader.read(min(PIECE_BYTES, num_bytes - len(pieces)))
        if not piece:
            raise asyncio.IncompleteReadError(bytes(pieces[:64]), num_bytes)
        pieces += piece
    return bytes(pieces)


async def read_message(reader: asyncio.StreamReader, message_class: type[MessageT], *, max_bytes: int) -> MessageT:
    """Reads one frame; the caller bounds the time.

    Raises:
        FrameTooLargeError: The announced length is above `max_bytes`.
        MalformedFrameError: The bytes do not parse.
        asyncio.IncompleteReadError: The stream ended first.
    """
    data = await read_body(reader, await read_length(reader, max_bytes=max_bytes))
    return parse_message(data, message_class)


def parse_message(data: bytes, message_class: type[MessageT]) -> MessageT:
    """Parses the bytes of one frame.

    Raises:
        MalformedFrameError: They do not parse.
    """
    message = message_class()
    try:
        message.ParseFromString(data)
    except (DecodeError, ValueError) as error:  # UnicodeDecodeError is a ValueError.
        raise MalformedFrameError(f"{len(data)} bytes are no {message_class.DESCRIPTOR.name.lower()}") from error
    return message


def failure(code: peer_pb2.Failure.Code, detail: str) -> peer_pb2.Response:
    """A refusal; it always says which protocol version this node speaks."""
    return peer_pb2.Response(
        failure=peer_pb2.Failure(code=code, detail=detail[:400], protocol_version=PROTOCOL_VERSION)
    )


def check_request(request: peer_pb2.Request, *, swarm: bytes) -> peer_pb2.Response | None:
    """The refusal that `request` deserves before anybody looks at its body; None when it may pass."""
    if request.protocol_version != PROTOCOL_VERSION:
        return failure(
            peer_pb2.Failure.WRONG_VERSION,
            f"the request speaks protocol {request.protocol_version}, this node {PROTOCOL_VERSION}",
        )
    if request.swarm != swarm:
        return failure(peer_pb2.Failure.WRONG_SWARM, f"this node belongs to swarm {swarm.hex()}")
    if request.WhichOneof("body") is None:
        return failure(peer_pb2.Failure.MALFORMED, "the request asks for nothing that this node knows")
    return None


def batches(envelopes: Iterable[bytes], *, max_bytes: int) -> Iterable[list[bytes]]:
    """Splits `envelopes`, in order, into lists of at most `max_bytes` together; one larger stands alone."""
    batch: list[bytes] = []
    size = 0
    for envelope in envelopes:
        if batch and size + len(envelope) > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(envelope)
        size += len(envelope)
    if batch:
        yield batch
