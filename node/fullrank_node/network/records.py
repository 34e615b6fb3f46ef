"""Records on the DHT: where a signed hint lies, in which bytes, and who may have put it there (protocol section 9).

A record is one author's envelope under (swarm, kind, audience, slot, shard); the author's key is the
subkey, so nobody overwrites another. DHT nodes see only the hash of the key and believe no clock, so
the value repeats what the key was made of and carries the author's signature over key, subkey, value
and expiry: moved under another key, or given another life, it is refused.
"""

import enum
import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Final

from fullrank_protocol.canonical import length_prefixed, tagged_sha256
from fullrank_protocol.envelope import Envelope, open_envelope, type_name
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.identity import SigningKey, verify
from fullrank_protocol.limits import KEY_BYTES, MAX_RECORD_BYTES, MAX_SLOT, SIGNATURE_BYTES
from fullrank_protocol.wire import objects_pb2 as wire

NUM_SHARDS: Final = 4
"""A dictionary travels whole in one message, which breaks silently at 4 MiB (measured): four hold 12 000 authors."""

MAX_AUTHORS_PER_SHARD: Final = 3000
"""Authors in one dictionary: 3000 records of at most 1.2 KB stay below 4 MiB."""

KEY_TAG: Final = b"fullrank.v1.dht-key"
SIGNATURE_TAG: Final = b"fullrank.v1.dht-record"

_FORMAT: Final = 1
_HEAD: Final = struct.Struct("<BBBQ")  # format, kind, audience, slot
_BIN_8: Final = 0xC4  # MessagePack byte strings: hivemind packs subkeys and values.
_BIN_16: Final = 0xC5


class Kind(enum.IntEnum):
    """What a record is about. Numbers stand in the values."""

    PEER = 1
    CONTRIBUTION = 2
    CHECKPOINT = 3
    VOTE = 4
    RECORD = 5


class Audience(enum.IntEnum):
    """Whose records share a dictionary: strangers can fill only their own."""

    MEMBERS = 1
    OTHERS = 2


_MEMBERSHIP_TYPES: Final = frozenset(
    {
        wire.GRANT,
        wire.ADMISSION,
        wire.TAKE_UP,
        wire.LEAVE,
        wire.REVOCATION,
        wire.READMISSION,
        wire.RETIREMENT,
        wire.EJECTION,
        wire.EVIDENCE,
        wire.CHOICE,
    }
)

TYPES_OF_KIND: Final[dict[Kind, frozenset[int]]] = {
    Kind.PEER: frozenset({wire.PEER}),
    Kind.CONTRIBUTION: frozenset({wire.CONTRIBUTION, wire.ANNOUNCEMENT}),
    Kind.CHECKPOINT: frozenset({wire.ANNOUNCEMENT}),
    Kind.VOTE: frozenset({wire.VOTE, wire.REFUSAL, wire.ANNOUNCEMENT}),
    Kind.RECORD: _MEMBERSHIP_TYPES | {wire.SNAPSHOT, wire.ANNOUNCEMENT},
}
"""Object types that may stand under each kind of key; a checkpoint is too large and is announced instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record lies.

    Attributes:
        slot: 0 for peer records, which belong to no slot.
        shard: Below NUM_SHARDS; follows from the author's key.
    """

    kind: Kind
    audience: Audience
    slot: int
    shard: int

    def dht_key(self, swarm: bytes) -> bytes:
        """The key given to the DHT, 32 bytes."""
        fields = struct.pack("<BBQB", self.kind, self.audience, self.slot, self.shard)
        return tagged_sha256(KEY_TAG, swarm, fields)

    def dht_id(self, swarm: bytes) -> bytes:
        """What DHT nodes see of the key: 20 bytes, as hivemind derives them."""
        return hashlib.sha1(self.dht_key(swarm), usedforsecurity=False).digest()


def shard_of(public_key: bytes) -> int:
    """The shard of an author, by the first bits of the key."""
    return public_key[0] * NUM_SHARDS >> 8


def place_of(kind: Kind, slot: int, audience: Audience, public_key: bytes) -> Place:
    """Where the author with `public_key` puts a record."""
    return Place(kind=kind, audience=audience, slot=slot, shard=shard_of(public_key))


def places_of(kind: Kind, slot: int) -> list[Place]:
    """Everywhere that records of a kind and slot can lie."""
    return [
        Place(kind=kind, audience=audience, slot=slot, shard=shard)
        for audience in Audience
        for shard in range(NUM_SHARDS)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record whose place, author and signature have been checked."""

    place: Place
    envelope: Envelope


def encode_body(place: Place, envelope: Envelope) -> bytes:
    """The value given to the DHT, before the signature.

    Raises:
        ValueError: That type does not belong under that kind; our own mistake.
    """
    if envelope.type not in TYPES_OF_KIND[place.kind]:
        raise ValueError(f"a {type_name(envelope.type)} does not belong under {place.kind.name.lower()} records")
    return _HEAD.pack(_FORMAT, place.kind, place.audience, place.slot) + envelope.encode()


def pack_binary(data: bytes) -> bytes:
    """MessagePack of a byte string, as the DHT packs subkeys and values; at most 65 535 bytes."""
    if len(data) < 256:
        return bytes([_BIN_8, len(data)]) + data
    return bytes([_BIN_16]) + struct.pack(">H", len(data)) + data


def unpack_binary(data: bytes) -> bytes:
    """The byte string in `data`, which must be the shortest MessagePack of one.

    Raises:
        RejectError: SCHEMA.
    """
    head = 2 if data[:1] == bytes([_BIN_8]) else 3
    content = data[head:]
    if len(content) > 0xFFFF or pack_binary(content) != data:
        raise RejectError(Rule.SCHEMA, f"{len(data)} bytes are no packed byte string")
    return content


def sign_record(key: SigningKey, *, dht_id: bytes, subkey: bytes, value: bytes, expiration_s: float) -> bytes:
    """`value` (packed) with the author's signature behind it.

    Args:
        key: The author's.
        dht_id: 20 bytes.
        subkey: Packed.
        value: Packed.
        expiration_s: Unix time in seconds.
    """
    return value + key.sign(_signed_bytes(dht_id, subkey, value, expiration_s))


def strip_signature(value: bytes) -> bytes:
    """The packed value without its signature."""
    return value[:-SIGNATURE_BYTES]


def open_record(*, swarm: bytes, dht_id: bytes, subkey: bytes, value: bytes, expiration_s: float) -> Record:
    """Checks everything about a record that no clock is needed for.

    Args:
        swarm: The swarm it must belong to.
        dht_id: The 20 bytes under which it was found or offered.
        subkey: Packed.
        value: Packed, with signature.
        expiration_s: Unix time in seconds; must be finite.

    Raises:
        RejectError: RECORD, or what its envelope breaks.
    """
    max_bytes = 3 + _HEAD.size + MAX_RECORD_BYTES + SIGNATURE_BYTES
    if len(value) > max_bytes:
        raise RejectError(Rule.SIZE, f"the record has {len(value)} bytes, at most {max_bytes} allowed")
    if not math.isfinite(expiration_s):
        raise RejectError(Rule.RECORD, f"the record expires at {expiration_s}, a finite time required")
    author = _author_of(subkey)
    body = unpack_binary(strip_signature(value))
    if len(body) < _HEAD.size:
        raise RejectError(Rule.SCHEMA, f"the record's body has {len(body)} bytes, at least {_HEAD.size} required")
    version, kind, audience, slot = _HEAD.unpack_from(body)
    if version != _FORMAT or kind not in set(Kind) or audience not in set(Audience) or slot > MAX_SLOT:
        raise RejectError(Rule.SCHEMA, f"the record begins with {body[: _HEAD.size].hex()}, which means nothing here")
    place = place_of(Kind(kind), slot, Audience(audience), author)
    if place.dht_id(swarm) != dht_id:
        raise RejectError(Rule.RECORD, "the record lies under a key that it was not made for")
    if place.kind == Kind.PEER and slot:
        raise RejectError(Rule.RECORD, f"a peer record names slot {slot}, 0 required")
    if not verify(
        author, _signed_bytes(dht_id, subkey, strip_signature(value), expiration_s), value[-SIGNATURE_BYTES:]
    ):
        raise RejectError(Rule.SIGNATURE, "the record is not signed by the key that it lies under")
    envelope = open_envelope(body[_HEAD.size :], swarm=swarm)
    if envelope.public_key != author:
        raise RejectError(Rule.RECORD, "the record holds an object of another author")
    if envelope.type not in TYPES_OF_KIND[place.kind]:
        raise RejectError(
            Rule.RECORD, f"found a {type_name(envelope.type)} among the {place.kind.name.lower()} records"
        )
    return Record(place=place, envelope=envelope)


def audience_of(body: bytes) -> Audience:
    """Whose dictionary the body of a record that was opened before belongs to."""
    return Audience(_HEAD.unpack_from(body)[2])


def envelope_bytes(body: bytes) -> bytes:
    """The envelope inside the body of a record that was opened before."""
    return body[_HEAD.size :]


def _author_of(subkey: bytes) -> bytes:
    author = subkey[2:]
    if len(author) != KEY_BYTES or subkey != pack_binary(author):
        raise RejectError(Rule.RECORD, "the record has no subkey that is an author's public key")
    return author


def _signed_bytes(dht_id: bytes, subkey: bytes, value: bytes, expiration_s: float) -> bytes:
    return length_prefixed(SIGNATURE_TAG, dht_id, subkey, value, struct.pack("<d", expiration_s))
