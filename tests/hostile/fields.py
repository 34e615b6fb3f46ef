"""Objects in the right form with fields that cannot be: ids, slots, times, keys, numbers, texts, and no offences."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from chains import swarm_with
from hostile.forms import FOUR, Malformed, Sound, signed, signer_of
from swarms import id_of, key_of

from fullrank_protocol import limits
from fullrank_protocol.canonical import canonical_bytes
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope, type_name
from fullrank_protocol.errors import Rule
from fullrank_protocol.wire import objects_pb2 as wire

Edits = Iterable[tuple[str, Rule, Callable[[Any], object]]]


def _with(envelope: Envelope, edits: Edits) -> Iterator[Malformed]:
    """The same object with one field of its payload edited and signed again."""
    for what, rule, edit in edits:
        message = MESSAGE_OF_TYPE[envelope.type].FromString(envelope.payload)
        edit(message)
        data = signed(signer_of(envelope), envelope.swarm, envelope.type, message)
        yield Malformed(kind=type_name(envelope.type), what=what, rule=rule, data=data, in_payload=True)


def put(name: str, value: object) -> Callable[[Any], None]:
    """An edit that sets a field, given as a path with dots."""
    *path, last = name.split(".")

    def edit(message: Any) -> None:
        for step in path:
            message = message[int(step)] if step.isdigit() else getattr(message, step)
        setattr(message, last, value)

    return edit


def _all(*edits: Callable[[Any], object]) -> Callable[[Any], None]:
    def edit(message: Any) -> None:
        for each in edits:
            each(message)

    return edit


def _of_type(sound: Sound, type_: int) -> Envelope:
    return next(each for each in sound.envelopes if each.type == type_)


def wrong_fields(sound: Sound) -> Iterator[Malformed]:
    """Every field of every object but a checkpoint's, where it cannot be."""
    for fault in (_votes, _refusals, _evidence, _choices, _snapshots, _contributions, _records):
        yield from fault(sound)


def _votes(sound: Sound) -> Iterator[Malformed]:
    far = limits.MAX_SLOT + 1
    at = [put("source", id_of("source")), put("source_slot", 3), put("target_slot", 5)]
    yield from _with(
        sound.votes[0].envelope,
        [
            ("a short source", Rule.SCHEMA, put("source", bytes(31))),
            ("a long target", Rule.SCHEMA, put("target", bytes(33))),
            ("a source in the slot of its target", Rule.VOTE, _all(*at, put("target_slot", 3))),
            ("a source after its target", Rule.VOTE, _all(*at, put("target_slot", 2))),
            ("a source that is its target", Rule.VOTE, _all(*at, put("target", id_of("source")))),
            ("slot 0 for a source that is not the genesis", Rule.SLOT, put("source", id_of("source"))),
            ("a later slot for the genesis as source", Rule.SLOT, put("source_slot", 1)),
            ("the genesis as target", Rule.SLOT, put("target", sound.swarm.id)),
            ("slot 0 for a target", Rule.SLOT, put("target_slot", 0)),
            ("a target slot that cannot be", Rule.SLOT, put("target_slot", far)),
            ("a source slot that cannot be", Rule.SLOT, _all(*at, put("source_slot", far), put("target_slot", far))),
            ("the largest number for a slot", Rule.SLOT, put("target_slot", 2**64 - 1)),
        ],
    )


def _refusals(sound: Sound) -> Iterator[Malformed]:
    yield from _with(
        _of_type(sound, wire.REFUSAL),
        [
            ("a short id", Rule.SCHEMA, put("checkpoint", bytes(31))),
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
    yield Malformed(kind="refusal", what="a reason that is no UTF-8", rule=Rule.SCHEMA, data=data, in_payload=True)


def _evidence(sound: Sound) -> Iterator[Malformed]:
    def of(what: str, rule: Rule, first: bytes, second: bytes) -> Malformed:
        message = wire.Evidence(first=first, second=second)
        data = signed(key_of("zoe"), sound.swarm.id, wire.EVIDENCE, message)
        return Malformed(kind="evidence", what=what, rule=rule, data=data, in_payload=True)

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
    yield of("one vote only", Rule.VERSION, first, b"")
    yield of("votes of two keys", Rule.EVIDENCE, *pair(vote("ada", 0, 5), vote("bob", 0, 5, " too")))
    yield of("votes that go forward", Rule.EVIDENCE, *pair(vote("dan", 0, 1), vote("dan", 1, 2)))
    yield of("votes from one source", Rule.EVIDENCE, *pair(vote("dan", 0, 3), vote("dan", 0, 5)))
    yield of("votes that overlap, none around the other", Rule.EVIDENCE, *pair(vote("dan", 0, 3), vote("dan", 2, 5)))
    elsewhere = swarm_with(*FOUR, rule={"token_cap": 1})
    others = [elsewhere.vote("dan", target=id_of(name), target_slot=1).envelope for name in ("x", "y")]
    yield of("votes of another swarm", Rule.SWARM, *pair(*others))
    of_two = sorted((sound.double[0].envelope, others[0]), key=lambda each: each.swarm != sound.swarm.id)
    yield of("one vote of another swarm", Rule.SWARM, *(each.encode() for each in of_two))
    forged = wire.Envelope.FromString(second)
    forged.signature = bytes(64)
    yield of("a vote with a forged signature", Rule.SIGNATURE, first, canonical_bytes(forged))
    yield of("a vote with a trailing byte", Rule.SCHEMA, first, second + b"\x00")
    contribution = sound.swarm.contribution("dan").envelope.encode()
    yield of("a contribution for a vote", Rule.SCHEMA, contribution, contribution)
    message = wire.Vote(source=id_of("a"), source_slot=5, target=id_of("b"), target_slot=4)
    backwards = signed(key_of("dan"), sound.swarm.id, wire.VOTE, message)
    yield of("a vote that goes backwards", Rule.VOTE, backwards, first)


def _choices(sound: Sound) -> Iterator[Malformed]:
    envelope = _of_type(sound, wire.CHOICE)
    yield from _with(
        envelope,
        [
            ("a short id", Rule.SCHEMA, put("checkpoint", bytes(31))),
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
            ("no blob", Rule.SCHEMA, lambda message: message.ClearField("blob")),
            ("a short blob id", Rule.SCHEMA, put("blob.id", bytes(31))),
            ("a blob of no bytes", Rule.SIZE, put("blob.num_bytes", 0)),
            ("a blob larger than the weights can give", Rule.SIZE, put("blob.num_bytes", 1 << 20)),
            ("a blob larger than any", Rule.SIZE, put("blob.num_bytes", limits.MAX_BLOB_BYTES + 1)),
            ("a short checkpoint id", Rule.SCHEMA, put("checkpoint", bytes(31))),
            ("slot 0", Rule.SLOT, put("slot", 0)),
            ("a slot that cannot be", Rule.SLOT, put("slot", limits.MAX_SLOT + 1)),
        ],
    )


def _contributions(sound: Sound) -> Iterator[Malformed]:
    yield from _with(
        _of_type(sound, wire.CONTRIBUTION),
        [
            ("a short base id", Rule.SCHEMA, put("base_checkpoint", bytes(31))),
            ("slot 0 for a base that is not the genesis", Rule.SLOT, put("base_slot", 0)),
            ("a later slot for the genesis as base", Rule.SLOT, put("base_checkpoint", sound.swarm.id)),
            ("a base slot that cannot be", Rule.SLOT, put("base_slot", limits.MAX_SLOT + 1)),
            ("no blob", Rule.SCHEMA, lambda message: message.ClearField("blob")),
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
            ("a short grant id", Rule.SCHEMA, put("grant_id", bytes(31))),
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
