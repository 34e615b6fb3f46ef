"""Malformed objects: sound ones of every kind with one fault each, as bytes (protocol sections 2 to 5, 8 and 13).

Each fault is made where a hostile sender would make it: in the bytes of the envelope, in its fields, in the bytes of
the payload, or in the payload's fields; and signed again where the signature should not be what is found.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from chains import Story, key, swarm_with
from ed25519 import with_torsion
from google.protobuf.message import Message
from swarms import CREATED_AT_MS, id_of, key_of

from fullrank_protocol import limits
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.canonical import canonical_bytes
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope, pre_authentication_encoding, type_name
from fullrank_protocol.errors import Rule
from fullrank_protocol.identity import GROUP_ORDER, SigningKey
from fullrank_protocol.membership import (
    make_ejection,
    make_readmission,
    make_revocation,
)
from fullrank_protocol.snapshot import make_snapshot
from fullrank_protocol.vote import make_choice, make_refusal
from fullrank_protocol.wire import objects_pb2 as wire

MessageT = TypeVar("MessageT", bound=Message)

FOUR = ("ada", "bob", "cyd", "dan")
"""Founders of the swarm; ada is the root."""


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """One fault.

    Attributes:
        kind: Of the object that it was made in.
        what: The fault, in words.
        rule: By which it is refused.
        data: The bytes that travel.
        in_payload: The envelope opens; what is wrong is inside.
        fields: What the fault is about, as paths with dots from the payload on; those of the envelope begin with
            "envelope". None where it is about the bytes of the whole.
    """

    kind: str
    what: str
    rule: Rule
    data: bytes
    in_payload: bool
    fields: tuple[str, ...] = ()


class Sound:
    """The swarm and one sound object of every kind that a checkpoint carries or a neighbour passes on."""

    def __init__(self) -> None:
        self.swarm = swarm_with(*FOUR, limits={"max_checkpoint_bytes": 256 << 10})
        tale = self.tale = Story(self.swarm)
        one = tale.round_of(tale.genesis, slot=1)
        self.votes = sorted(tale.votes("ada bob cyd", one), key=lambda vote: vote.id)
        rival = self.swarm.vote("dan", target=id_of("rival"), target_slot=1)
        self.double = [tale.vote("dan", one), rival]
        grant = tale.grant()
        placed: dict[str, Any] = {"parent": one, "slot": 2, "by": "bob"}
        self.full = tale.checkpoint(
            **placed,
            accepted=[tale.contribution("bob", one), tale.contribution("cyd", one)],
            refused=[tale.contribution("dan", one), tale.contribution("dan")],
            votes=self.votes,
            records=[grant, tale.admission("eve", grant)],
            evidence=[tale.evidence(*self.double), tale.evidence(*self.double, by="bob")],
        )
        self.checkpoint = tale.checkpoint(
            **placed, accepted=[tale.contribution("bob", one)], refused=[tale.contribution("dan", one)]
        )
        ada, swarm = key_of("ada"), self.swarm.id
        named: dict[str, Any] = {"swarm": swarm, "issued_at_ms": CREATED_AT_MS}
        self.envelopes = [
            tale.contribution("bob", one).envelope,
            self.checkpoint.envelope,
            self.votes[0].envelope,
            make_refusal(key_of("bob"), swarm=swarm, checkpoint=one.id, rule=Rule.DIGEST, detail="found 1, required 2"),
            grant,
            tale.admission("eve", grant),
            tale.take_up("eve", at_ms=CREATED_AT_MS),
            tale.leave("cyd", at_ms=CREATED_AT_MS),
            make_revocation(ada, subject=key("bob"), **named),
            make_readmission(ada, member=key("zoe"), roles=1, **named),
            tale.retirement("dan", at_ms=CREATED_AT_MS),
            make_ejection(ada, member=key("bob"), since_round=1, **named),
            tale.evidence(*self.double).envelope,
            make_choice(ada, checkpoint=one.id, slot=1, **named),
            make_snapshot(
                key_of("bob"), swarm=swarm, checkpoint=one.id, slot=1, blob=BlobRef(id=id_of("s"), num_bytes=9)
            ),
        ]


def wrong_forms(sound: Sound) -> Iterator[Malformed]:
    """Every sound object in every wrong form."""
    for envelope in sound.envelopes:
        if envelope.type in _ENVELOPES:
            yield from _in_envelope(envelope)
        yield from _in_payload(envelope)


# ---- bytes ---------------------------------------------------------------------------------------


def fields_of(data: bytes) -> list[tuple[int, bytes]]:
    """Number and whole bytes of each field of a protobuf message made of varints and byte strings."""
    found, at = [], 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 2:
            at += value
        found.append((tag >> 3, data[start:at]))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def within(data: bytes, numbers: Sequence[int], content: bytes) -> bytes:
    """A message with other bytes in its first field of the first number, or in that one's of the second, and so on."""
    number, *deeper = numbers
    fields = fields_of(data)
    at = next(i for i, (found, _) in enumerate(fields) if found == number)
    if deeper:
        _, begin = _varint(fields[at][1], 0)
        _, begin = _varint(fields[at][1], begin)
        content = within(fields[at][1][begin:], deeper, content)
    changed = _encoded(number << 3 | 2) + _encoded(len(content)) + content
    return b"".join([*(each for _, each in fields[:at]), changed, *(each for _, each in fields[at + 1 :])])


def _encoded(value: int) -> bytes:
    """A varint."""
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def wrong_bytes(data: bytes, message: type[Message]) -> Iterator[tuple[str, bytes]]:
    """The bytes of a message in every form but its own; all are refused by rule 4."""
    fields = fields_of(data)
    first = fields[0][1]
    yield "a byte that begins no field", b"\xff"
    yield "cut off", data[:-1]
    yield "a trailing zero", data + b"\x00"
    yield "an unknown field", data + b"\x78\x01"
    yield "an unfinished group", data + b"\x7b"
    yield "a group", data + b"\x7b\x7c"
    yield "a field twice", first + data
    yield "a padded tag", bytes([first[0] | 0x80, 0]) + data[1:]
    yield "another wire type", bytes([first[0] & 0xF8 | 5]) + bytes(4) + data[len(first) :]
    numbers = [number for number, _ in fields]
    if len(set(numbers)) > 1:
        at = next(i for i, number in enumerate(numbers) if number != numbers[0])
        swapped = [fields[at], *fields[:at], *fields[at + 1 :]]
        yield "fields in another order", b"".join(each for _, each in swapped)
    descriptors = {each.number: each for each in message.DESCRIPTOR.fields}
    absent = [n for n, each in descriptors.items() if n not in numbers and each.message_type is None and n < 16]
    singular = [n for n in absent if not descriptors[n].is_repeated]
    if singular:
        is_bytes = descriptors[singular[0]].type in (9, 12)
        explicit = (singular[0], bytes([singular[0] << 3 | (2 if is_bytes else 0), 0]))
        yield "an explicit default", b"".join(each for _, each in sorted([*fields, explicit], key=lambda pair: pair[0]))


def wrong_bytes_within(message: Message, path: str) -> Iterator[tuple[str, bytes]]:
    """A message with one inside it, given as a path with dots, in every form but its own; as `wrong_bytes`."""
    numbers: list[int] = []
    inner: Any = message
    for name in path.split("."):
        field = inner.DESCRIPTOR.fields_by_name[name]
        numbers.append(field.number)
        inner = getattr(inner, name)[0] if field.is_repeated else getattr(inner, name)
    for what, data in wrong_bytes(canonical_bytes(inner), type(inner)):
        yield f"{path}: {what}", within(canonical_bytes(message), numbers, data)


# ---- envelopes -----------------------------------------------------------------------------------

_ENVELOPES = {wire.CHECKPOINT, wire.VOTE, wire.REFUSAL, wire.ADMISSION, wire.EVIDENCE, wire.CHOICE, wire.SNAPSHOT}
"""Of these the envelope is spoilt, too; an admission stands for all records."""


def signer_of(envelope: Envelope) -> SigningKey:
    """The secret key that a sound object was signed with."""
    return next(key_of(name) for name in (*FOUR, "eve", "zoe") if key(name) == envelope.public_key)


def _edited(envelope: Envelope, edit: Callable[[wire.Envelope], object], *, sign: bool = True) -> bytes:
    message = wire.Envelope.FromString(envelope.encode())
    edit(message)
    if sign:
        message.signature = signer_of(envelope).sign(
            pre_authentication_encoding(
                version=message.version,
                swarm=message.swarm,
                type=message.type,
                payload=message.payload,
                public_key=message.public_key,
            )
        )
    return canonical_bytes(message)


def _in_envelope(envelope: Envelope) -> Iterator[Malformed]:
    kind = type_name(envelope.type)
    good = envelope.encode()

    def fault(what: str, rule: Rule, data: bytes, fields: Iterable[str] = ()) -> Malformed:
        names = tuple(f"envelope.{name}" for name in fields)
        return Malformed(kind=kind, what=what, rule=rule, data=data, in_payload=False, fields=names)

    def put(what: str, rule: Rule, *, sign: bool = True, **fields: Any) -> Malformed:
        def edit(message: wire.Envelope) -> None:
            for name, value in fields.items():
                setattr(message, name, value)

        return fault(what, rule, _edited(envelope, edit, sign=sign), fields)

    for what, data in wrong_bytes(good, wire.Envelope):
        yield fault(f"envelope: {what}", Rule.SCHEMA, data)
    yield put("another protocol version", Rule.VERSION, version=2)
    yield put("an unknown type", Rule.SCHEMA, type=99)
    size = limits.MAX_CHECKPOINT_BYTES if envelope.type == wire.CHECKPOINT else limits.MAX_RECORD_BYTES
    yield put("more bytes than its type allows", Rule.SIZE, payload=bytes(size))
    yield put("a short swarm id", Rule.SCHEMA, swarm=bytes(31))
    yield put("another swarm", Rule.SWARM, swarm=id_of("elsewhere"))
    yield put("a short signature", Rule.SCHEMA, sign=False, signature=bytes(63))
    yield put("no signature", Rule.SCHEMA, sign=False, signature=b"")
    yield put("a signature of zeros", Rule.SIGNATURE, sign=False, signature=bytes(64))
    scalar = int.from_bytes(envelope.signature[32:], "little") + GROUP_ORDER
    larger = envelope.signature[:32] + scalar.to_bytes(32, "little")
    yield put("a signature whose S is not below the group order", Rule.SIGNATURE, sign=False, signature=larger)
    torsion = with_torsion(signer_of(envelope).seed, envelope.signed_bytes())
    yield put("a signature that holds only times the cofactor", Rule.SIGNATURE, sign=False, signature=torsion)
    yield put("a short key", Rule.SIGNATURE, public_key=bytes(31))
    yield put("a key of small order", Rule.SIGNATURE, public_key=(1).to_bytes(32, "little"))
    yield put("a key that is not in canonical form", Rule.SIGNATURE, public_key=(2**255 - 18).to_bytes(32, "little"))
    yield put("the key of another", Rule.SIGNATURE, sign=False, public_key=key("gus"))
    flipped = envelope.payload[:-1] + bytes([envelope.payload[-1] ^ 1])
    yield put("a payload that was changed after signing", Rule.SIGNATURE, sign=False, payload=flipped)


# ---- payloads ------------------------------------------------------------------------------------

_RULE_OF_NOTHING: dict[int, Rule] = {
    **dict.fromkeys(
        (wire.GRANT, wire.REVOCATION, wire.READMISSION, wire.RETIREMENT, wire.EJECTION),
        Rule.SIGNATURE,  # A key of no bytes.
    ),
    wire.SNAPSHOT: Rule.CODEC,
    wire.EVIDENCE: Rule.VERSION,
}
"""What an empty payload breaks first, where that is not its schema."""


def signed(signer: SigningKey, swarm: bytes, type_: int, payload: bytes | Message) -> bytes:
    """Any payload at all under a good signature."""
    data = payload if isinstance(payload, bytes) else canonical_bytes(payload)
    message = wire.Envelope(
        version=1, swarm=swarm, type=wire.ObjectType.Name(type_), payload=data, public_key=signer.public_key
    )
    message.signature = signer.sign(
        pre_authentication_encoding(version=1, swarm=swarm, type=type_, payload=data, public_key=signer.public_key)
    )
    return canonical_bytes(message)


def forged(data: bytes) -> bytes:
    """An envelope under a signature of zeros."""
    message = wire.Envelope.FromString(data)
    message.signature = bytes(64)
    return canonical_bytes(message)


def _in_payload(envelope: Envelope) -> Iterator[Malformed]:
    wrong = [(what, Rule.SCHEMA, data) for what, data in wrong_bytes(envelope.payload, MESSAGE_OF_TYPE[envelope.type])]
    wrong.append(("nothing at all", _RULE_OF_NOTHING.get(envelope.type, Rule.SCHEMA), b""))
    for what, rule, payload in wrong:
        yield Malformed(
            kind=type_name(envelope.type),
            what=f"payload: {what}",
            rule=rule,
            data=signed(signer_of(envelope), envelope.swarm, envelope.type, payload),
            in_payload=True,
        )
