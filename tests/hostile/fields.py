"""Objects in the right form with fields that cannot be: ids, slots, times, keys, numbers, texts, and no offences."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from chains import swarm_with
from hostile.forms import FOUR, Malformed, Sound, forged, signed, signer_of, wrong_bytes_within
from swarms import id_of, key_of

from fullrank_protocol import limits
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope, type_name
from fullrank_protocol.errors import Rule
from fullrank_protocol.wire import objects_pb2 as wire


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a message.

    Attributes:
        fields: What it is about: paths with dots, without the positions in lists.
        change: Makes it.
    """

    fields: tuple[str, ...]
    change: Callable[[Any], object]


Edits = Iterable[tuple[str, Rule, Edit]]


def _with(envelope: Envelope, edits: Edits) -> Iterator[Malformed]:
    """The same object with one field of its payload edited and signed again."""
    for what, rule, edit in edits:
        message = MESSAGE_OF_TYPE[envelope.type].FromString(envelope.payload)
        edit.change(message)
        data = signed(signer_of(envelope), envelope.swarm, envelope.type, message)
        kind = type_name(envelope.type)
        yield Malformed(kind=kind, what=what, rule=rule, data=data, in_payload=True, fields=edit.fields)


def put(name: str, value: object) -> Edit:
    """An edit that sets a field, given as a path with dots."""
    *path, last = name.split(".")
    return Edit((_without_positions(name),), lambda message: setattr(_at(message, path), last, value))


def clear(name: str) -> Edit:
    """An edit that takes a field away, given as a path with dots."""
    *path, last = name.split(".")
    return Edit((_without_positions(name),), lambda message: _at(message, path).ClearField(last))


def _at(message: Any, path: Iterable[str]) -> Any:
    for step in path:
        message = message[int(step)] if step.isdigit() else getattr(message, step)
    return message


def _without_positions(name: str) -> str:
    return ".".join(step for step in name.split(".") if not step.isdigit())


def together(*edits: Edit) -> Edit:
    """Several edits, one after another, as one."""
    fields = tuple(dict.fromkeys(name for each in edits for name in each.fields))
    return Edit(fields, lambda message: [each.change(message) for each in edits])


def _of_type(sound: Sound, type_: int) -> Envelope:
    return next(each for each in sound.envelopes if each.type == type_)


def wrong_ids(*names: str) -> Edits:
    """Ids of another length, and none."""
    for name in names:
        words = name.replace(".0", "").replace(".", " ").replace("_", " ")
        yield f"no {words}", Rule.SCHEMA, put(name, b"")
        yield f"a short {words}", Rule.SCHEMA, put(name, bytes(31))
        yield f"a long {words}", Rule.SCHEMA, put(name, bytes(33))


def wrong_fields(sound: Sound) -> Iterator[Malformed]:
    """Every field of every object but a checkpoint's, where it cannot be."""
    for fault in (_votes, _refusals, _evidence, _choices, _snapshots, _contributions, _blobs, _records):
        yield from fault(sound)


def _blobs(sound: Sound) -> Iterator[Malformed]:
    """References to blobs in every wrong form."""
    for type_ in (wire.CONTRIBUTION, wire.SNAPSHOT):
        envelope = _of_type(sound, type_)
        message = MESSAGE_OF_TYPE[type_].FromString(envelope.payload)
        for what, payload in wrong_bytes_within(message, "blob"):
            data = signed(signer_of(envelope), envelope.swarm, type_, payload)
            kind = type_name(type_)
            yield Malformed(kind=kind, what=what, rule=Rule.SCHEMA, data=data, in_payload=True, fields=("blob",))


def _votes(sound: Sound) -> Iterator[Malformed]:
    far = limits.MAX_SLOT + 1
    at = [put("source", id_of("source")), put("source_slot", 3), put("target_slot", 5)]
    yield from _with(
        sound.votes[0].envelope,
        [
            *wrong_ids("source", "target"),
            ("a source in the slot of its target", Rule.VOTE, together(*at, put("target_slot", 3))),
            ("a source after its target", Rule.VOTE, together(*at, put("target_slot", 2))),
            ("a source that is its target", Rule.VOTE, together(*at, put("target", id_of("source")))),
            ("slot 0 for a source that is not the genesis", Rule.SLOT, put("source", id_of("source"))),
            ("a later slot for the genesis as source", Rule.SLOT, put("source_slot", 1)),
            ("the genesis as target", Rule.SLOT, put("target", sound.swarm.id)),
            ("slot 0 for a target", Rule.SLOT, put("target_slot", 0)),
            ("a target slot that cannot be", Rule.SLOT, put("target_slot", far)),
            (
                "a source slot that cannot be",
                Rule.SLOT,
                together(*at, put("source_slot", far), put("target_slot", far)),
            ),
            ("the largest number for a slot", Rule.SLOT, put("target_slot", 2**64 - 1)),
        ],
    )


def _refusals(sound: Sound) -> Iterator[Malformed]:
    yield from _with(
        _of_type(sound, wire.REFUSAL),
        [
            *wrong_ids("checkpoint"),
            ("rule 0", Rule.SCHEMA, put("rule", 0)),
            ("a rule that there is not", Rule.SCHEMA, put("rule", 4096)),
            ("a reason of 401 bytes", Rule.SCHEMA, put("detail", "x" * 401)),
            ("a line break in the reason", Rule.SCHEMA, put("detail", "one\ntwo")),
            ("a reason that reads backwards", Rule.SCHEMA, put("detail", "one\u202etwo")),
        ],
    )
    envelope = _of_type(sound, wire.REFUSAL)
    payload = wire.Refusal(checkpoint=id_of("x"), rule=1).SerializeToString() + b"\x1a\x02\xff\xfe"
    data = signed(signer_of(envelope), envelope.swarm, wire.REFUSAL, payload)
    what = "a reason that is no UTF-8"
    yield Malformed(kind="refusal", what=what, rule=Rule.SCHEMA, data=data, in_payload=True, fields=("detail",))


def _evidence(sound: Sound) -> Iterator[Malformed]:
    def of(what: str, rule: Rule, first: bytes, second: bytes, field: str = "") -> Malformed:
        message = wire.Evidence(first=first, second=second)
        data = signed(key_of("zoe"), sound.swarm.id, wire.EVIDENCE, message)
        fields = (field,) if field else ("first", "second")
        return Malformed(kind="evidence", what=what, rule=rule, data=data, in_payload=True, fields=fields)

    def vote(name: str, source_slot: int, target_slot: int, target: str = "") -> Envelope:
        source = id_of(f"slot {source_slot}") if source_slot else sound.swarm.id
        mark: dict[str, Any] = {"source": source, "source_slot": source_slot}
        target_id = id_of(f"slot {target_slot}{target}")
        return sound.swarm.vote(name, target=target_id, target_slot=target_slot, **mark).envelope

    def pair(one: Envelope, other: Envelope) -> tuple[bytes, bytes]:
        first, second = sorted((one, other), key=lambda each: each.id)
        return first.encode(), second.encode()

    first, second = pair(*(each.envelope for each in sound.double))
    yield of("the votes in descending order", Rule.EVIDENCE, second, first)
    yield of("the same vote twice", Rule.EVIDENCE, first, first)
    yield of("no second vote", Rule.VERSION, first, b"", "second")
    yield of("no first vote", Rule.VERSION, b"", second, "first")
    yield of("votes of two keys", Rule.EVIDENCE, *pair(vote("ada", 0, 5), vote("bob", 0, 5, " too")))
    yield of("votes that go forward", Rule.EVIDENCE, *pair(vote("dan", 0, 1), vote("dan", 1, 2)))
    yield of("votes from one source", Rule.EVIDENCE, *pair(vote("dan", 0, 3), vote("dan", 0, 5)))
    yield of("votes that overlap, none around the other", Rule.EVIDENCE, *pair(vote("dan", 0, 3), vote("dan", 2, 5)))
    elsewhere = swarm_with(*FOUR, rule={"token_cap": 1})
    others = [elsewhere.vote("dan", target=id_of(name), target_slot=1).envelope for name in ("x", "y")]
    yield of("votes of another swarm", Rule.SWARM, *pair(*others))
    yield of("a second vote of another swarm", Rule.SWARM, first, others[0].encode(), "second")
    yield of("a first vote of another swarm", Rule.SWARM, others[0].encode(), second, "first")
    contribution = sound.swarm.contribution("dan").envelope.encode()
    message = wire.Vote(source=id_of("a"), source_slot=5, target=id_of("b"), target_slot=4)
    backwards = signed(key_of("dan"), sound.swarm.id, wire.VOTE, message)
    for name, good in (("first", first), ("second", second)):
        for what, rule, data in (
            ("with a forged signature", Rule.SIGNATURE, forged(good)),
            ("with a trailing byte", Rule.SCHEMA, good + b"\x00"),
            ("that is junk", Rule.SCHEMA, b"\xff"),
            ("that is a contribution", Rule.SCHEMA, contribution),
            ("that goes backwards", Rule.VOTE, backwards),
        ):
            one, other = (data, second) if name == "first" else (first, data)
            yield of(f"a {name} vote {what}", rule, one, other, name)


def _choices(sound: Sound) -> Iterator[Malformed]:
    envelope = _of_type(sound, wire.CHOICE)
    yield from _with(
        envelope,
        [
            *wrong_ids("checkpoint"),
            ("slot 0", Rule.SLOT, put("slot", 0)),
            ("a slot that cannot be", Rule.SLOT, put("slot", limits.MAX_SLOT + 1)),
            ("no time", Rule.SCHEMA, put("issued_at_ms", 0)),
            ("a time after the year 9999", Rule.SCHEMA, put("issued_at_ms", limits.MAX_TIME_MS + 1)),
        ],
    )
    data = signed(key_of("bob"), envelope.swarm, wire.CHOICE, envelope.payload)
    yield Malformed(kind="choice", what="not a root's", rule=Rule.MEMBERSHIP, data=data, in_payload=True)


def _snapshots(sound: Sound) -> Iterator[Malformed]:
    yield from _with(
        _of_type(sound, wire.SNAPSHOT),
        [
            ("another codec", Rule.CODEC, put("codec", 2)),
            ("no blob", Rule.SCHEMA, clear("blob")),
            *wrong_ids("blob.id"),
            ("a blob of no bytes", Rule.SIZE, put("blob.num_bytes", 0)),
            ("a blob larger than the weights can give", Rule.SIZE, put("blob.num_bytes", 1 << 20)),
            ("a blob larger than any", Rule.SIZE, put("blob.num_bytes", limits.MAX_BLOB_BYTES + 1)),
            *wrong_ids("checkpoint"),
            ("slot 0", Rule.SLOT, put("slot", 0)),
            ("a slot that cannot be", Rule.SLOT, put("slot", limits.MAX_SLOT + 1)),
        ],
    )


def _contributions(sound: Sound) -> Iterator[Malformed]:
    yield from _with(
        _of_type(sound, wire.CONTRIBUTION),
        [
            *wrong_ids("base_checkpoint"),
            ("slot 0 for a base that is not the genesis", Rule.SLOT, put("base_slot", 0)),
            ("a later slot for the genesis as base", Rule.SLOT, put("base_checkpoint", sound.swarm.id)),
            ("a base slot that cannot be", Rule.SLOT, put("base_slot", limits.MAX_SLOT + 1)),
            ("no blob", Rule.SCHEMA, clear("blob")),
            *wrong_ids("blob.id"),
            ("a blob of no bytes", Rule.SIZE, put("blob.num_bytes", 0)),
            ("a blob larger than the swarm allows", Rule.SIZE, put("blob.num_bytes", (256 << 20) + 1)),
            ("codec 0", Rule.CODEC, put("codec", 0)),
            ("a codec that the swarm does not allow", Rule.CODEC, put("codec", 2)),
            ("no tokens", Rule.TOKENS, put("num_tokens", 0)),
            ("too many tokens", Rule.TOKENS, put("num_tokens", limits.MAX_TOKENS + 1)),
            ("no steps", Rule.TOKENS, put("num_steps", 0)),
            ("too many steps", Rule.TOKENS, put("num_steps", limits.MAX_STEPS + 1)),
            ("no time", Rule.SCHEMA, put("created_at_ms", 0)),
        ],
    )


def _records(sound: Sound) -> Iterator[Malformed]:
    small = (1).to_bytes(32, "little")
    late = limits.MAX_TIME_MS + 1
    for type_, edits in {
        wire.GRANT: [
            ("an invite key of small order", Rule.SIGNATURE, put("invite_key", small)),
            ("no roles", Rule.RECORD, put("roles", 0)),
            ("roles that there are not", Rule.RECORD, put("roles", 4)),
            ("nobody to admit", Rule.RECORD, put("count", 0)),
            ("too many to admit", Rule.RECORD, put("count", limits.MAX_GRANT_COUNT + 1)),
            ("no end", Rule.SCHEMA, put("not_after_ms", 0)),
            ("an end after the year 9999", Rule.SCHEMA, put("not_after_ms", late)),
        ],
        wire.ADMISSION: [
            *wrong_ids("grant_id"),
            ("no invite's signature", Rule.SCHEMA, put("invite_signature", b"")),
            ("a short invite's signature", Rule.SCHEMA, put("invite_signature", bytes(63))),
            ("no roles", Rule.RECORD, put("roles", 0)),
            ("roles that there are not", Rule.RECORD, put("roles", 7)),
            ("a name of 65 bytes", Rule.SCHEMA, put("name", "x" * 65)),
            ("an invisible character in the name", Rule.SCHEMA, put("name", "a\u200bda")),
        ],
        wire.TAKE_UP: [("a time after the year 9999", Rule.SCHEMA, put("issued_at_ms", late))],
        wire.LEAVE: [("a time after the year 9999", Rule.SCHEMA, put("issued_at_ms", late))],
        wire.REVOCATION: [
            ("a subject of small order", Rule.SIGNATURE, put("subject", small)),
            ("no time", Rule.SCHEMA, put("issued_at_ms", 0)),
        ],
        wire.READMISSION: [
            ("a member of small order", Rule.SIGNATURE, put("member", small)),
            ("no roles", Rule.RECORD, put("roles", 0)),
            ("no time", Rule.SCHEMA, put("issued_at_ms", 0)),
        ],
        wire.RETIREMENT: [
            ("a certifier of small order", Rule.SIGNATURE, put("certifier", small)),
            ("no time", Rule.SCHEMA, put("issued_at_ms", 0)),
        ],
        wire.EJECTION: [
            ("a member of small order", Rule.SIGNATURE, put("member", small)),
            ("round 0", Rule.ROUND, put("since_round", 0)),
            ("no time", Rule.SCHEMA, put("issued_at_ms", 0)),
        ],
    }.items():
        yield from _with(_of_type(sound, type_), edits)
