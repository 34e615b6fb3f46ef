"""Malformed checkpoints: wrong fields, counts, kinds and orders, and every wrong object inside (protocol section 5)."""

from collections.abc import Iterator
from typing import Any

from chains import swarm_with
from google.protobuf.message import Message
from hostile.fields import Edit, Edits, clear, put, together, wrong_ids
from hostile.forms import FOUR, Malformed, Sound, forged, signed, within, wrong_bytes_within
from swarms import id_of, key_of

from fullrank_protocol import limits
from fullrank_protocol.canonical import canonical_bytes
from fullrank_protocol.errors import Rule
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire

ONE = Scaled.of(1.0)
ZERO = Scaled.of(0.0)


def wrong_checkpoints(sound: Sound) -> Iterator[Malformed]:
    """Every malformed variant of a checkpoint; for what is about order, of one that carries two of everything."""
    for faults in (_fields, _counts, _numbers, _orders, _pairs, _insides, _kinds):
        checkpoint = sound.full if faults is _orders else sound.checkpoint
        for what, rule, edit in faults(sound):
            message = wire.Checkpoint.FromString(checkpoint.envelope.payload)
            edit.change(message)
            yield _malformed(sound, what, rule, message, edit.fields)
    yield from _submessages(sound)


def _malformed(sound: Sound, what: str, rule: Rule, payload: Message | bytes, fields: tuple[str, ...]) -> Malformed:
    data = signed(key_of("bob"), sound.swarm.id, wire.CHECKPOINT, payload)
    return Malformed(kind="checkpoint", what=what, rule=rule, data=data, in_payload=True, fields=fields)


def _submessages(sound: Sound) -> Iterator[Malformed]:
    """Every message inside the payload in every wrong form, and a text that is none."""
    message = wire.Checkpoint.FromString(sound.checkpoint.envelope.payload)
    message.corrected.add(contribution_id=id_of("x"), weight=ONE.to_wire())
    payload = canonical_bytes(message)
    for path in ("accepted", "accepted.weight", "refused", "corrected", "corrected.weight", "update_norm"):
        for what, changed in wrong_bytes_within(message, path):
            yield _malformed(sound, what, Rule.SCHEMA, changed, (path,))
    numbers = [
        wire.Checkpoint.DESCRIPTOR.fields_by_name["refused"].number,
        wire.Refused.DESCRIPTOR.fields_by_name["detail"].number,
    ]
    changed = within(payload, numbers, b"\xff\xfe")
    yield _malformed(sound, "a reason that is no UTF-8", Rule.SCHEMA, changed, ("refused.detail",))


def _fields(sound: Sound) -> Edits:
    slot = limits.MAX_SLOT + 1
    return [
        ("kind 0", Rule.SCHEMA, put("kind", 0)),
        ("a kind that there is not", Rule.SCHEMA, put("kind", 4)),
        *wrong_ids("parent", "model_digest"),
        ("slot 0", Rule.SLOT, put("slot", 0)),
        ("a slot that cannot be", Rule.SLOT, put("slot", slot)),
        ("the largest number for a slot", Rule.SLOT, put("slot", 2**64 - 1)),
        ("a round beyond its slot", Rule.ROUND, put("round", 3)),
        ("round 0 with contributions", Rule.ROUND, put("round", 0)),
        ("no norm", Rule.SCHEMA, clear("update_norm")),
        ("an accepted contribution without a weight", Rule.SCHEMA, clear("accepted.0.weight")),
        ("a contribution refused by rule 0", Rule.SCHEMA, put("refused.0.rule", 0)),
        ("a contribution refused by a rule that there is not", Rule.SCHEMA, put("refused.0.rule", 4096)),
        ("a reason of 401 bytes", Rule.SCHEMA, put("refused.0.detail", "x" * 401)),
        ("a line break in a reason", Rule.SCHEMA, put("refused.0.detail", "one\ntwo")),
        ("an invisible character in a reason", Rule.SCHEMA, put("refused.0.detail", "one\u200btwo")),
    ]


def _numbers(sound: Sound) -> Edits:
    taken_back = together(put("kind", wire.CORRECTION), clear("accepted"), clear("refused"), _corrected("x"))
    places = {"the norm": "update_norm", "a weight": "accepted.0.weight", "a weight taken back": "corrected.0.weight"}
    for name, path in places.items():
        for words, field, value in (
            ("with a mantissa below 128", "mantissa", 64),
            ("with a mantissa above 255", "mantissa", 256),
            ("with the largest mantissa that travels", "mantissa", 2**32 - 1),
            ("as zero with an exponent", "mantissa", 0),
            ("with an exponent above 255", "exponent", 256),
            ("with an exponent below -256", "exponent", -257),
        ):
            edit = put(f"{path}.{field}", value)
            edits = [taken_back] if path.startswith("corrected") else []
            yield f"{name} {words}", Rule.NON_CANONICAL, Edit(edit.fields, together(*edits, edit).change)


def _counts(sound: Sound) -> Edits:
    most = sound.swarm.genesis.rule.max_contributions

    def many(name: str, count: int) -> Edit:
        return Edit((name,), lambda message: getattr(message, name).extend([b"x"] * count))

    def entries(name: str, count: int) -> Edit:
        return Edit((name,), lambda message: [getattr(message, name).add() for _ in range(count)])

    return [
        ("more contributions than the swarm's cohort", Rule.SIZE, entries("accepted", most)),
        ("257 refused contributions", Rule.SIZE, entries("refused", limits.MAX_CARRIED_REFUSED)),
        ("4097 votes", Rule.SIZE, many("votes", limits.MAX_CARRIED_VOTES + 1)),
        ("257 records", Rule.SIZE, many("records", limits.MAX_CARRIED_RECORDS + 1)),
        ("65 pieces of evidence", Rule.SIZE, many("evidence", limits.MAX_CARRIED_EVIDENCE + 1)),
        ("65537 corrected contributions", Rule.SIZE, entries("corrected", limits.MAX_CORRECTED + 1)),
        (
            "more bytes than the swarm allows",
            Rule.SIZE,
            Edit(("votes",), lambda message: message.votes.append(bytes(256 << 10))),
        ),
    ]


def _swap(name: str) -> Edit:
    def edit(message: Any) -> None:
        items = getattr(message, name)
        entries = [items[1], items[0], *items[2:]]
        copies = [
            each if isinstance(each, bytes) else type(each).FromString(each.SerializeToString()) for each in entries
        ]
        del items[:]
        items.extend(copies)

    return Edit((name,), edit)


def _twice(name: str) -> Edit:
    def edit(message: Any) -> None:
        items = getattr(message, name)
        last = items[-1]
        items.append(last if isinstance(last, bytes) else type(last).FromString(last.SerializeToString()))

    return Edit((name,), edit)


def _orders(sound: Sound) -> Edits:
    names = {"accepted": "accepted contributions", "refused": "refused contributions", "votes": "votes"}
    for name, words in {**names, "evidence": "evidence"}.items():
        yield f"{words} out of order", Rule.SCHEMA, _swap(name)
        yield f"{words} twice", Rule.SCHEMA, _twice(name)
    yield "a record twice", Rule.DUPLICATE, _twice("records")


def _insides(sound: Sound) -> Edits:
    tale, swarm = sound.tale, sound.swarm
    vote = sound.votes[0].envelope.encode()
    contribution = tale.contribution("bob").envelope.encode()
    elsewhere = swarm_with(*FOUR, rule={"token_cap": 1})
    foreign = elsewhere.vote("ada", target=id_of("t"), target_slot=1).envelope.encode()

    lists = {
        "votes": (vote, contribution, "a contribution among the votes", Rule.SCHEMA),
        "records": (tale.grant().encode(), vote, "a vote among the records", Rule.RECORD),
        "evidence": (tale.evidence(*sound.double).envelope.encode(), vote, "a vote among the evidence", Rule.SCHEMA),
    }
    for name, (good, other, words, rule) in lists.items():
        yield words, rule, _only(name, other)
        yield f"junk among the {name}", Rule.SCHEMA, _only(name, b"\xff")
        yield f"nothing among the {name}", Rule.VERSION, _only(name, b"")
        yield f"a trailing byte among the {name}", Rule.SCHEMA, _only(name, good + b"\x00")
        yield f"a forged signature among the {name}", Rule.SIGNATURE, _only(name, forged(good))
        yield f"an object of another swarm among the {name}", Rule.SWARM, _only(name, foreign)
    yield "evidence among the records", Rule.RECORD, _only("records", lists["evidence"][0])
    yield "a checkpoint among the records", Rule.RECORD, _only("records", swarm.checkpoint_envelope().encode())
    for name in ("accepted", "refused"):
        other = elsewhere.contribution("bob").envelope.encode()
        for words, rule, data in (
            ("a vote for a contribution", Rule.SCHEMA, vote),
            ("junk for a contribution", Rule.SCHEMA, b"\xff"),
            ("nothing for a contribution", Rule.VERSION, b""),
            ("a contribution with a trailing byte", Rule.SCHEMA, contribution + b"\x00"),
            ("a forged contribution", Rule.SIGNATURE, forged(contribution)),
            ("a contribution of another swarm", Rule.SWARM, other),
        ):
            yield f"{name}: {words}", rule, put(f"{name}.0.contribution", data)
        empty = wire.Contribution.FromString(tale.contribution("bob").envelope.payload)
        empty.num_tokens = 0
        wrong = signed(key_of("bob"), swarm.id, wire.CONTRIBUTION, empty)
        yield f"{name}: a contribution without tokens", Rule.TOKENS, put(f"{name}.0.contribution", wrong)
    late = swarm.vote("ada", target=id_of("t"), target_slot=2).envelope.encode()
    yield "a vote for its own slot", Rule.VOTE, _only("votes", late)
    backwards = wire.Vote(source=id_of("a"), source_slot=5, target=id_of("b"), target_slot=4)
    data = signed(key_of("ada"), swarm.id, wire.VOTE, backwards)
    yield "a vote that goes backwards", Rule.VOTE, _only("votes", data)
    no_offence = [
        swarm.vote("dan", target=id_of(name), target_slot=slot).envelope for name, slot in (("x", 3), ("y", 5))
    ]
    first, second = sorted(no_offence, key=lambda each: each.id)
    piece = wire.Evidence(first=first.encode(), second=second.encode())
    data = signed(key_of("ada"), swarm.id, wire.EVIDENCE, piece)
    yield "evidence that is none", Rule.EVIDENCE, _only("evidence", data)


def _only(name: str, data: bytes) -> Edit:
    def edit(message: Any) -> None:
        items = getattr(message, name)
        del items[:]
        items.append(data)

    return Edit((name,), edit)


def _pairs(sound: Sound) -> Edits:
    """Two contributions of one member on one base, in every pair of places."""
    base = sound.tale.tree.state(sound.checkpoint.parent)
    for one, other in (("accepted", "accepted"), ("refused", "refused"), ("accepted", "refused")):
        found = [sound.tale.contribution("bob", base, num_tokens=number).envelope for number in (1, 2)]
        pair = [each.encode() for each in sorted(found, key=lambda each: each.id)]

        def edit(message: Any, one: str = one, other: str = other, pair: list[bytes] = pair) -> None:
            del message.accepted[:], message.refused[:]
            for name, contribution in zip((one, other), pair, strict=True):
                extra: dict[str, Any] = {"weight": ONE.to_wire()} if name == "accepted" else {"rule": int(Rule.RANK)}
                getattr(message, name).add(contribution=contribution, **extra)
            message.kind = wire.NORMAL if message.accepted else wire.EMPTY
            message.round = 2 if message.accepted else 1
            message.update_norm.CopyFrom((ONE if message.accepted else ZERO).to_wire())

        words = one if one == other else f"{one} and {other}"
        yield f"two contributions of one member on one base, {words}", Rule.DUPLICATE, Edit((one, other), edit)


def _corrected(*names: str) -> Edit:
    """Takes back as many contributions."""

    def edit(message: Any) -> None:
        for each in sorted(map(id_of, names)):
            message.corrected.add(contribution_id=each, weight=ONE.to_wire())

    return Edit(("corrected",), edit)


def _kinds(sound: Sound) -> Edits:
    del sound

    def becomes(kind: wire.CheckpointKind, *edits: Edit) -> Edit:
        return together(put("kind", kind), *edits)

    def correction(*edits: Edit) -> Edit:
        """One that is right but for the last edit, which it is about."""
        return Edit(edits[-1].fields, becomes(wire.CORRECTION, nothing, *edits).change)

    nothing = together(clear("accepted"), clear("refused"))
    none = together(put("update_norm.mantissa", 0), put("update_norm.exponent", 0))
    back = _corrected("x")
    return [
        ("normal with nothing accepted", Rule.SCHEMA, becomes(wire.NORMAL, nothing)),
        ("normal that takes back", Rule.SCHEMA, back),
        ("empty that accepts", Rule.SCHEMA, becomes(wire.EMPTY, none)),
        ("empty with a norm", Rule.SCHEMA, becomes(wire.EMPTY, nothing)),
        ("empty that takes back", Rule.SCHEMA, becomes(wire.EMPTY, nothing, none, back)),
        ("a correction of nothing", Rule.SCHEMA, becomes(wire.CORRECTION, nothing)),
        ("a correction that accepts", Rule.SCHEMA, becomes(wire.CORRECTION, clear("refused"), back)),
        ("a correction that refuses", Rule.SCHEMA, becomes(wire.CORRECTION, clear("accepted"), back)),
        ("a correction without a weight", Rule.SCHEMA, correction(back, clear("corrected.0.weight"))),
        *(
            (f"a correction with {words}", rule, correction(back, edit))
            for words, rule, edit in wrong_ids("corrected.0.contribution_id")
        ),
        ("a correction out of order", Rule.SCHEMA, correction(_corrected("x", "y"), _swap("corrected"))),
        ("a correction twice", Rule.SCHEMA, correction(back, _twice("corrected"))),
    ]
