"""Malformed checkpoints: wrong fields, counts, kinds and orders, and every wrong object inside (protocol section 5)."""

from collections.abc import Callable, Iterator
from typing import Any

from chains import swarm_with
from hostile.fields import Edits, put
from hostile.forms import FOUR, Malformed, Sound, signed
from swarms import id_of, key_of

from fullrank_protocol import limits
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
            edit(message)
            data = signed(key_of("bob"), sound.swarm.id, wire.CHECKPOINT, message)
            yield Malformed(kind="checkpoint", what=what, rule=rule, data=data, in_payload=True)


def _fields(sound: Sound) -> Edits:
    slot = limits.MAX_SLOT + 1
    return [
        ("kind 0", Rule.SCHEMA, put("kind", 0)),
        ("a kind that there is not", Rule.SCHEMA, put("kind", 4)),
        ("a short parent", Rule.SCHEMA, put("parent", bytes(31))),
        ("no parent", Rule.SCHEMA, put("parent", b"")),
        ("a short digest", Rule.SCHEMA, put("model_digest", bytes(31))),
        ("no digest", Rule.SCHEMA, put("model_digest", b"")),
        ("slot 0", Rule.SLOT, put("slot", 0)),
        ("a slot that cannot be", Rule.SLOT, put("slot", slot)),
        ("the largest number for a slot", Rule.SLOT, put("slot", 2**64 - 1)),
        ("a round beyond its slot", Rule.ROUND, put("round", 3)),
        ("round 0 with contributions", Rule.ROUND, put("round", 0)),
        ("no norm", Rule.SCHEMA, lambda message: message.ClearField("update_norm")),
        ("an accepted contribution without a weight", Rule.SCHEMA, lambda m: m.accepted[0].ClearField("weight")),
        ("a contribution refused by rule 0", Rule.SCHEMA, put("refused.0.rule", 0)),
        ("a contribution refused by a rule that there is not", Rule.SCHEMA, put("refused.0.rule", 4096)),
        ("a reason of 401 bytes", Rule.SCHEMA, put("refused.0.detail", "x" * 401)),
        ("a line break in a reason", Rule.SCHEMA, put("refused.0.detail", "one\ntwo")),
    ]


def _numbers(sound: Sound) -> Edits:
    for name, path in (("the norm", "update_norm"), ("a weight", "accepted.0.weight")):
        yield f"{name} with a mantissa below 128", Rule.NON_CANONICAL, put(f"{path}.mantissa", 64)
        yield f"{name} with a mantissa above 255", Rule.NON_CANONICAL, put(f"{path}.mantissa", 256)
        yield f"{name} with the largest mantissa that travels", Rule.NON_CANONICAL, put(f"{path}.mantissa", 2**32 - 1)
        yield f"{name} as zero with an exponent", Rule.NON_CANONICAL, put(f"{path}.mantissa", 0)
        yield f"{name} with an exponent above 255", Rule.NON_CANONICAL, put(f"{path}.exponent", 256)
        yield f"{name} with an exponent below -256", Rule.NON_CANONICAL, put(f"{path}.exponent", -257)


def _counts(sound: Sound) -> Edits:
    most = sound.swarm.genesis.rule.max_contributions

    def many(name: str, count: int) -> Callable[[Any], object]:
        return lambda message: getattr(message, name).extend([b"x"] * count)

    def entries(name: str, count: int) -> Callable[[Any], object]:
        def edit(message: Any) -> None:
            for _ in range(count):
                getattr(message, name).add()

        return edit

    return [
        ("more contributions than the swarm's cohort", Rule.SIZE, entries("accepted", most)),
        ("257 refused contributions", Rule.SIZE, entries("refused", limits.MAX_CARRIED_REFUSED)),
        ("4097 votes", Rule.SIZE, many("votes", limits.MAX_CARRIED_VOTES + 1)),
        ("257 records", Rule.SIZE, many("records", limits.MAX_CARRIED_RECORDS + 1)),
        ("65 pieces of evidence", Rule.SIZE, many("evidence", limits.MAX_CARRIED_EVIDENCE + 1)),
        ("65537 corrected contributions", Rule.SIZE, entries("corrected", limits.MAX_CORRECTED + 1)),
        ("more bytes than the swarm allows", Rule.SIZE, lambda message: message.votes.append(bytes(256 << 10))),
    ]


def _swap(name: str) -> Callable[[Any], None]:
    def edit(message: Any) -> None:
        items = getattr(message, name)
        entries = [items[1], items[0], *items[2:]]
        copies = [
            each if isinstance(each, bytes) else type(each).FromString(each.SerializeToString()) for each in entries
        ]
        del items[:]
        items.extend(copies)

    return edit


def _twice(name: str) -> Callable[[Any], None]:
    def edit(message: Any) -> None:
        items = getattr(message, name)
        last = items[-1]
        items.append(last if isinstance(last, bytes) else type(last).FromString(last.SerializeToString()))

    return edit


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

    def forged(data: bytes) -> bytes:
        message = wire.Envelope.FromString(data)
        message.signature = bytes(64)
        return message.SerializeToString(deterministic=True)

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
        yield f"{name}: a vote for a contribution", Rule.SCHEMA, put(f"{name}.0.contribution", vote)
        yield f"{name}: a forged contribution", Rule.SIGNATURE, put(f"{name}.0.contribution", forged(contribution))
        other = elsewhere.contribution("bob").envelope.encode()
        yield f"{name}: a contribution of another swarm", Rule.SWARM, put(f"{name}.0.contribution", other)
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


def _only(name: str, data: bytes) -> Callable[[Any], None]:
    def edit(message: Any) -> None:
        items = getattr(message, name)
        del items[:]
        items.append(data)

    return edit


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
        yield f"two contributions of one member on one base, {words}", Rule.DUPLICATE, edit


def _kinds(sound: Sound) -> Edits:
    def clear(*names: str) -> Callable[[Any], None]:
        def edit(message: Any) -> None:
            for name in names:
                message.ClearField(name)

        return edit

    def becomes(kind: wire.CheckpointKind, *edits: Callable[[Any], object]) -> Callable[[Any], None]:
        def edit(message: Any) -> None:
            message.kind = kind
            for each in edits:
                each(message)

        return edit

    def corrected(*ids: str, weight: bool = True) -> Callable[[Any], None]:
        def edit(message: Any) -> None:
            for each in sorted(map(id_of, ids)):
                message.corrected.add(contribution_id=each, weight=ONE.to_wire() if weight else None)

        return edit

    nothing = clear("accepted", "refused")
    none = put("update_norm.mantissa", 0), put("update_norm.exponent", 0)
    wrong_order = [corrected("x", "y"), _swap("corrected")]
    short = corrected("x"), put("corrected.0.contribution_id", bytes(31))
    return [
        ("normal with nothing accepted", Rule.SCHEMA, becomes(wire.NORMAL, nothing)),
        ("normal that takes back", Rule.SCHEMA, corrected("x")),
        ("empty that accepts", Rule.SCHEMA, becomes(wire.EMPTY, *none)),
        ("empty with a norm", Rule.SCHEMA, becomes(wire.EMPTY, nothing)),
        ("empty that takes back", Rule.SCHEMA, becomes(wire.EMPTY, nothing, *none, corrected("x"))),
        ("a correction of nothing", Rule.SCHEMA, becomes(wire.CORRECTION, nothing)),
        ("a correction that accepts", Rule.SCHEMA, becomes(wire.CORRECTION, clear("refused"), corrected("x"))),
        ("a correction that refuses", Rule.SCHEMA, becomes(wire.CORRECTION, clear("accepted"), corrected("x"))),
        ("a correction without a weight", Rule.SCHEMA, becomes(wire.CORRECTION, nothing, corrected("x", weight=False))),
        ("a correction with a short id", Rule.SCHEMA, becomes(wire.CORRECTION, nothing, *short)),
        ("a correction out of order", Rule.SCHEMA, becomes(wire.CORRECTION, nothing, *wrong_order)),
    ]
