"""Hints on the DHT: where a peer can be dialled, and that an object exists (protocol section 9).

Hints decide nothing. Whatever is found through them is verified on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fullrank_protocol.canonical import check_id, check_range, check_text, check_time_ms
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope, decode_payload, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.limits import (
    MAX_ADDRESS_BYTES,
    MAX_ADDRESSES,
    MAX_ENVELOPE_BYTES,
    MAX_NAME_BYTES,
    MAX_SLOT,
)
from fullrank_protocol.wire import objects_pb2 as wire

_MAX_ADDRESSES_BYTES = 600
"""What the addresses of one record may take together, so that the envelope stays below its 1024 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where a node says that it can be reached.

    Attributes:
        key: The node.
        addresses: Multiaddresses, the most useful first; none for a node that nobody can dial.
        issued_at_ms: The newest record of a node is the one that counts.
        archive: The node keeps all blobs.
        software: Name and version, for people.
        envelope: The signed object itself.
    """

    key: bytes
    addresses: tuple[str, ...]
    issued_at_ms: int
    archive: bool
    software: str
    envelope: Envelope = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A node says that it has an object which is too large for the DHT.

    Attributes:
        key: The node.
        object_id: Envelope id of the object.
        object_type: Its type.
        slot: The slot that it belongs to.
        num_bytes: Size of its envelope.
        envelope: The signed object itself.
    """

    key: bytes
    object_id: bytes
    object_type: int
    slot: int
    num_bytes: int
    envelope: Envelope = field(repr=False)


def make_peer(
    key: SigningKey,
    *,
    swarm: bytes,
    addresses: Sequence[str],
    issued_at_ms: int,
    archive: bool = False,
    software: str = "",
) -> Envelope:
    """Signs a peer record with as many of `addresses`, from the first on, as fit."""
    kept: list[str] = []
    for address in addresses:
        if len(kept) < MAX_ADDRESSES and sum(map(len, kept)) + len(address) <= _MAX_ADDRESSES_BYTES:
            kept.append(check_address(address))
    message = wire.Peer(addresses=kept, issued_at_ms=issued_at_ms, archive=archive, software=software)
    return seal(key, swarm=swarm, type=wire.PEER, message=message)


def open_peer(envelope: Envelope) -> Peer:
    """Checks a peer record.

    Raises:
        RejectError: SCHEMA.
    """
    message = decode_payload(envelope, wire.Peer)
    check_range(len(message.addresses), 0, MAX_ADDRESSES, what="the number of addresses")
    check_time_ms(message.issued_at_ms, what="the time of the peer record")
    return Peer(
        key=envelope.public_key,
        addresses=tuple(check_address(address) for address in message.addresses),
        issued_at_ms=message.issued_at_ms,
        archive=message.archive,
        software=check_text(message.software, MAX_NAME_BYTES, what="the software's name"),
        envelope=envelope,
    )


def check_address(address: str) -> str:
    """Returns `address` when it looks like a multiaddress: printable ASCII without spaces that begins with "/".

    Raises:
        RejectError: SCHEMA.
    """
    size = len(address.encode(errors="replace"))
    if size > MAX_ADDRESS_BYTES:
        raise RejectError(Rule.SCHEMA, f"an address has {size} bytes, at most {MAX_ADDRESS_BYTES} allowed")
    if not address.startswith("/") or any(not "!" <= character <= "~" for character in address):
        raise RejectError(Rule.SCHEMA, f"{address!r} is not a multiaddress such as /ip4/192.0.2.1/tcp/4001")
    return address


def make_announcement(
    key: SigningKey, *, swarm: bytes, object_id: bytes, object_type: int, slot: int, num_bytes: int
) -> Envelope:
    """Signs an announcement."""
    message = wire.Announcement(
        object_id=object_id, object_type=wire.ObjectType.Name(object_type), slot=slot, num_bytes=num_bytes
    )
    return seal(key, swarm=swarm, type=wire.ANNOUNCEMENT, message=message)


def open_announcement(envelope: Envelope) -> Announcement:
    """Checks an announcement.

    Raises:
        RejectError: SCHEMA, SLOT or SIZE.
    """
    message = decode_payload(envelope, wire.Announcement)
    if message.object_type not in MESSAGE_OF_TYPE:
        raise RejectError(Rule.SCHEMA, f"announces an object of the unknown type {message.object_type}")
    return Announcement(
        key=envelope.public_key,
        object_id=check_id(message.object_id, what="the announced id"),
        object_type=message.object_type,
        slot=check_range(message.slot, 0, MAX_SLOT, what="the announced slot", rule=Rule.SLOT),
        num_bytes=check_range(message.num_bytes, 1, MAX_ENVELOPE_BYTES, what="the announced size", rule=Rule.SIZE),
        envelope=envelope,
    )
