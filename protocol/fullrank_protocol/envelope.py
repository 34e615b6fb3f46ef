"""Signed objects: what travels, what is signed, what an id is (protocol section 2).

An envelope is {version, swarm, type, payload, public key, signature}. Signature and id cover the pre-authentication
encoding of everything but the signature, after DSSE (github.com/secure-systems-lab/dsse): a domain tag and every
field behind its length. Payload bytes are kept and passed on verbatim. Envelope and payload each have one form only.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from google.protobuf.message import Message

from fullrank_protocol.canonical import (
    MessageT,
    canonical_bytes,
    check_id,
    check_length,
    length_prefixed,
    parse_canonical,
    uint32,
)
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.identity import SigningKey, check_public_key, verify
from fullrank_protocol.limits import (
    ID_BYTES,
    MAX_CHECKPOINT_BYTES,
    MAX_ENVELOPE_BYTES,
    MAX_GENESIS_BYTES,
    MAX_RECORD_BYTES,
    PROTOCOL_VERSION,
    SIGNATURE_BYTES,
)
from fullrank_protocol.wire import objects_pb2 as wire

__all__ = [
    "MAX_BYTES_OF_TYPE",
    "MESSAGE_OF_TYPE",
    "NO_SWARM",
    "Envelope",
    "canonical_bytes",
    "decode_payload",
    "open_envelope",
    "pre_authentication_encoding",
    "seal",
    "type_name",
]

NO_SWARM: Final = bytes(ID_BYTES)
"""Swarm field of a genesis, whose own id becomes the swarm id."""

DOMAIN_TAG: Final = b"fullrank.v1.envelope"

MESSAGE_OF_TYPE: Final[dict[int, type[Message]]] = {
    wire.GENESIS: wire.Genesis,
    wire.CONTRIBUTION: wire.Contribution,
    wire.CHECKPOINT: wire.Checkpoint,
    wire.VOTE: wire.Vote,
    wire.REFUSAL: wire.Refusal,
    wire.GRANT: wire.Grant,
    wire.ADMISSION: wire.Admission,
    wire.TAKE_UP: wire.TakeUp,
    wire.LEAVE: wire.Leave,
    wire.REVOCATION: wire.Revocation,
    wire.READMISSION: wire.Readmission,
    wire.RETIREMENT: wire.Retirement,
    wire.EJECTION: wire.Ejection,
    wire.EVIDENCE: wire.Evidence,
    wire.CHOICE: wire.Choice,
    wire.PEER: wire.Peer,
    wire.ANNOUNCEMENT: wire.Announcement,
    wire.SNAPSHOT: wire.Snapshot,
}
"""The payload of each object type. A type that is not here is refused."""

MAX_BYTES_OF_TYPE: Final[dict[int, int]] = {
    **dict.fromkeys(MESSAGE_OF_TYPE, MAX_RECORD_BYTES),
    wire.GENESIS: MAX_GENESIS_BYTES,
    wire.CHECKPOINT: MAX_CHECKPOINT_BYTES,
}
"""Largest whole envelope of each type, in bytes. All but two kinds fit into a DHT record."""

_MAX_REMEMBERED_BYTES: Final = 2 * MAX_RECORD_BYTES
_MAX_REMEMBERED: Final = 8192
"""Verdicts on small envelopes kept in memory, at most 20 MiB: votes and contributions arrive many times over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A signed object. Made by `seal` or `open_envelope` only, so its signature holds.

    Attributes:
        version: Protocol version of envelope and payload.
        swarm: Swarm id; `NO_SWARM` for a genesis.
        type: Object type, a number of `wire.ObjectType`.
        payload: Canonical protobuf bytes of the message that belongs to the type.
        public_key: Who signed.
        signature: Ed25519 over the pre-authentication encoding.
        id: SHA-256 of the pre-authentication encoding; it does not depend on the signature.
    """

    version: int
    swarm: bytes
    type: int
    payload: bytes
    public_key: bytes
    signature: bytes
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", hashlib.sha256(self.signed_bytes()).digest())

    def __hash__(self) -> int:
        return hash(self.id)

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return pre_authentication_encoding(
            version=self.version,
            swarm=self.swarm,
            type=self.type,
            payload=self.payload,
            public_key=self.public_key,
        )

    def encode(self) -> bytes:
        """The bytes that travel and are stored."""
        return canonical_bytes(
            wire.Envelope(
                version=self.version,
                swarm=self.swarm,
                type=cast("wire.ObjectType", self.type),
                payload=self.payload,
                public_key=self.public_key,
                signature=self.signature,
            )
        )


def type_name(type: int) -> str:  # noqa: A002 - the protocol's word
    """An object type as people read it: "vote", "take up"; "type 99" when unknown."""
    if type not in MESSAGE_OF_TYPE:
        return f"type {type}"
    return wire.ObjectType.Name(wire.ObjectType.ValueType(type)).lower().replace("_", " ")


def pre_authentication_encoding(*, version: int, swarm: bytes, type: int, payload: bytes, public_key: bytes) -> bytes:  # noqa: A002
    """The bytes that are hashed and signed: a domain tag and every field, each behind its length."""
    return length_prefixed(DOMAIN_TAG, uint32(version), swarm, uint32(type), payload, public_key)


def seal(key: SigningKey, *, swarm: bytes, type: int, message: Message) -> Envelope:  # noqa: A002
    """Signs `message` with `key`.

    Raises:
        TypeError: The message is not of that type.
        ValueError: The envelope would be too large. Both are our own mistakes.
    """
    if not isinstance(message, MESSAGE_OF_TYPE[type]):
        raise TypeError(f"a {type_name(type)} cannot hold {message.DESCRIPTOR.name}")
    payload = canonical_bytes(message)
    signed = pre_authentication_encoding(
        version=PROTOCOL_VERSION, swarm=swarm, type=type, payload=payload, public_key=key.public_key
    )
    envelope = Envelope(
        version=PROTOCOL_VERSION,
        swarm=swarm,
        type=type,
        payload=payload,
        public_key=key.public_key,
        signature=key.sign(signed),
    )
    size = len(envelope.encode())
    if size > MAX_BYTES_OF_TYPE[type]:
        raise ValueError(f"the {type_name(type)} takes {size} bytes, at most {MAX_BYTES_OF_TYPE[type]} allowed")
    return envelope


def open_envelope(data: bytes, *, swarm: bytes | None, is_known: Callable[[bytes], bool] | None = None) -> Envelope:
    """Checks size, form, version, type, swarm, key and signature of `data`; the payload stays unparsed.

    Args:
        data: Any bytes.
        swarm: The swarm that the object must belong to (for a genesis: its id); None accepts any.
        is_known: Whether the object with an id is here already; then its signature is not checked again.

    Raises:
        RejectError: SIZE, SCHEMA, VERSION, SWARM or SIGNATURE.
        IgnoreError: It is known.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise RejectError(Rule.SIZE, f"the envelope has {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} allowed")
    message = parse_canonical(wire.Envelope, data, what="the envelope")
    if message.version != PROTOCOL_VERSION:
        raise RejectError(
            Rule.VERSION, f"the envelope has protocol version {message.version}, {PROTOCOL_VERSION} required"
        )
    if message.type not in MESSAGE_OF_TYPE:
        raise RejectError(Rule.SCHEMA, f"the envelope has the unknown object type {message.type}")
    name = type_name(message.type)
    if len(data) > MAX_BYTES_OF_TYPE[message.type]:
        raise RejectError(
            Rule.SIZE, f"the {name} has {len(data)} bytes, at most {MAX_BYTES_OF_TYPE[message.type]} allowed"
        )
    check_id(message.swarm, what=f"the swarm of the {name}")
    check_length(message.signature, SIGNATURE_BYTES, what=f"the signature of the {name}")
    check_public_key(message.public_key, what=f"the signer of the {name}")
    envelope = Envelope(
        version=message.version,
        swarm=message.swarm,
        type=message.type,
        payload=message.payload,
        public_key=message.public_key,
        signature=message.signature,
    )
    _check_swarm(envelope, swarm=swarm)
    if is_known is not None and is_known(envelope.id):
        raise IgnoreError(f"the {name} is known already")
    if not _is_authentic(envelope):
        raise RejectError(
            Rule.SIGNATURE, f"the signature of the {name} does not belong to key {envelope.public_key.hex()}"
        )
    return envelope


def decode_payload(envelope: Envelope, message_class: type[MessageT]) -> MessageT:
    """Parses the payload of an envelope whose type must be the one of `message_class`.

    Raises:
        RejectError: SCHEMA, when the type is another, the bytes do not parse or are not canonical.
    """
    if MESSAGE_OF_TYPE[envelope.type] is not message_class:
        required = next(number for number, message in MESSAGE_OF_TYPE.items() if message is message_class)
        raise RejectError(
            Rule.SCHEMA, f"found {_a(type_name(envelope.type))} where {_a(type_name(required))} is required"
        )
    return parse_canonical(message_class, envelope.payload, what=f"the payload of the {type_name(envelope.type)}")


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _check_swarm(envelope: Envelope, *, swarm: bytes | None) -> None:
    if envelope.type == wire.GENESIS:
        if envelope.swarm != NO_SWARM:
            raise RejectError(Rule.SWARM, f"a genesis names swarm {envelope.swarm.hex()}, zeros required")
        found = envelope.id
    else:
        found = envelope.swarm
    if swarm is not None and found != swarm:
        raise RejectError(Rule.SWARM, f"the {type_name(envelope.type)} belongs to swarm {found.hex()}, not to this one")


def _is_authentic(envelope: Envelope) -> bool:
    signed = envelope.signed_bytes()
    if len(signed) > _MAX_REMEMBERED_BYTES:
        return verify(envelope.public_key, signed, envelope.signature)
    return _verify_once(envelope.public_key, signed, envelope.signature)


@functools.lru_cache(maxsize=_MAX_REMEMBERED)
def _verify_once(public_key: bytes, signed: bytes, signature: bytes) -> bool:
    return verify(public_key, signed, signature)
