"""What `malformed.json` and `lying.json` in protocol/vectors hold: bytes, the rule that refuses them, the reason.

The rule of each is written down by hand where the case is made; the reason, which is a text for people, is what this
implementation says.
"""

import re
from collections.abc import Callable
from typing import Any

from hostile.chain_lies import chain_contexts
from hostile.checkpoints import wrong_checkpoints
from hostile.fields import wrong_fields
from hostile.forms import Malformed, Sound, wrong_forms
from hostile.lies import Context, Lie
from hostile.member_lies import member_contexts
from hostile.receiver import Found, Receiver, described
from hostile.vote_lies import vote_contexts

from fullrank_protocol.checkpoint import open_checkpoint
from fullrank_protocol.contribution import open_contribution
from fullrank_protocol.envelope import Envelope, open_envelope, type_name
from fullrank_protocol.errors import RejectError
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.membership import Members, initial_members
from fullrank_protocol.snapshot import open_snapshot
from fullrank_protocol.vote import open_choice, open_evidence, open_refusal, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

MIN_LONG = 4096
"""Objects larger than this are written with their repetitions counted."""

_RUN = re.compile(rb"(.{1,3}?)\1{63,}", re.DOTALL)


def open_object(envelope: Envelope, genesis: Genesis, members: Members | None = None) -> object:
    """Opens what is inside an envelope by the function that its receivers use."""
    openers: dict[int, Callable[[], object]] = {
        wire.CONTRIBUTION: lambda: open_contribution(envelope, genesis),
        wire.CHECKPOINT: lambda: open_checkpoint(envelope, genesis),
        wire.VOTE: lambda: open_vote(envelope),
        wire.REFUSAL: lambda: open_refusal(envelope),
        wire.EVIDENCE: lambda: open_evidence(envelope),
        wire.CHOICE: lambda: open_choice(envelope, genesis),
        wire.SNAPSHOT: lambda: open_snapshot(envelope, genesis),
    }
    members = members or initial_members(genesis)
    return openers.get(envelope.type, lambda: members.apply(envelope, slot=2, genesis=genesis))()


def refusal_of(data: bytes, genesis: Genesis, *, in_payload: bool) -> RejectError:
    """What is said about malformed bytes: by whoever opens the envelope, or then the object inside."""
    try:
        envelope = open_envelope(data, swarm=genesis.swarm)
    except RejectError as error:
        if in_payload:
            raise AssertionError(f"the envelope does not even open: {error.detail}") from error
        return error
    try:
        open_object(envelope, genesis)
    except RejectError as error:
        if in_payload:
            return error
    raise AssertionError("is not refused where it should be")


def packed(data: bytes) -> str | list[Any]:
    """Hexadecimal; where one piece comes again and again, a list of texts and of [piece, how often it comes]."""
    run = _RUN.search(data) if len(data) > MIN_LONG else None
    if run is None:
        return data.hex()
    return [data[: run.start()].hex(), [run[1].hex(), len(run[0]) // len(run[1])], data[run.end() :].hex()]


def unpacked(content: str | list[Any]) -> bytes:
    """The bytes again."""
    if isinstance(content, str):
        return bytes.fromhex(content)
    return b"".join(bytes.fromhex(e) if isinstance(e, str) else bytes.fromhex(e[0]) * e[1] for e in content)


def malformed_vector() -> dict[str, Any]:
    """One sound object of every kind, and every malformed variant of it."""
    sound = Sound()
    genesis = sound.swarm.genesis
    cases = [*wrong_forms(sound), *wrong_fields(sound), *wrong_checkpoints(sound)]
    first = sound.tale.tree.nodes[sound.checkpoint.parent].checkpoint
    assert first is not None
    context = Context(name="one checkpoint", tale=sound.tale, node="zoe", slot=2, told=[first.envelope])
    return {
        "context": {**described(context), "merges": Receiver(described(context), learns_merges=True).merges},
        "sound": {type_name(envelope.type): envelope.encode().hex() for envelope in sound.envelopes},
        "refused": [_refused(case, genesis) for case in cases],
    }


def _refused(case: Malformed, genesis: Genesis) -> dict[str, Any]:
    error = refusal_of(case.data, genesis, in_payload=case.in_payload)
    if error.rule is not case.rule:
        raise AssertionError(f"{case.kind}, {case.what}: refused by {error.rule.name}, not by {case.rule.name}")
    return {
        "object": case.kind,
        "what": case.what,
        "rule": int(case.rule),
        "detail": error.detail,
        "in_payload": case.in_payload,
        "fields": list(case.fields),
        "envelope": packed(case.data),
    }


def lying_vector() -> dict[str, Any]:
    """What a node was told, and then each lie with what becomes of it there."""
    return {"contexts": [_context(context) for context in (*chain_contexts(), *member_contexts(), *vote_contexts())]}


def _context(context: Context) -> dict[str, Any]:
    content = described(context)
    merges: dict[str, Any] = {}
    lies = []
    for lie in context.lies:
        receiver = Receiver(content, learns_merges=True, weights=context.weights)
        found = receiver.told(lie.envelope)
        if (*found[:2], receiver.blames_sender) != (lie.outcome, lie.rule, lie.blames_sender):
            raise AssertionError(f"{context.name}, {lie.what}: {found} {receiver.blames_sender}, not {lie}")
        merges |= {f"{each['parent']} {each['contributions']}": each for each in receiver.merges}
        lies.append(_lie(lie, found))
    return {**content, "merges": list(merges.values()), "lies": lies}


def _lie(lie: Lie, found: Found) -> dict[str, Any]:
    return {
        "what": lie.what,
        "object": type_name(lie.envelope.type),
        "outcome": lie.outcome.value,
        "rule": None if lie.rule is None else int(lie.rule),
        "detail": found[2],
        "blames_sender": lie.blames_sender,
        "envelope": lie.envelope.encode().hex(),
    }
