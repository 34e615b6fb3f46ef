"""What hostile peers send, fixed by files in protocol/vectors: refused by its rule and with its reason, at no cost.

`malformed.json` holds objects with one fault each, which whoever opens them finds. `lying.json` holds what a node was
told, and well-formed objects that are wrong in the light of it. Each goes through the functions that a node takes
objects in by; what the node holds afterwards is compared with what it held before.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile.lies import Outcome
from hostile.receiver import Receiver
from hostile.vectors import open_object, refusal_of, unpacked

from fullrank_protocol.chain import check_contributor, contribution_staleness
from fullrank_protocol.checkpoint import open_checkpoint
from fullrank_protocol.contribution import open_contribution
from fullrank_protocol.envelope import MESSAGE_OF_TYPE, Envelope, open_envelope
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.genesis import Genesis, open_genesis
from fullrank_protocol.membership import initial_members
from fullrank_protocol.records import RECORD_TYPES
from fullrank_protocol.vote import open_evidence, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
MALFORMED: dict[str, Any] = json.loads((VECTORS / "malformed.json").read_text(encoding="utf-8"))
LYING: dict[str, Any] = json.loads((VECTORS / "lying.json").read_text(encoding="utf-8"))

LIES = [
    pytest.param(context, lie, id=f"{context['name']}: {lie['what']}")
    for context in LYING["contexts"]
    for lie in context["lies"]
]

REFUSED_BY_CHAIN = [
    pytest.param(context, lie, id=f"{context['name']}: {lie['what']}")
    for context in LYING["contexts"]
    for lie in context["lies"]
    if lie["outcome"] == "refused"
    and lie["object"] not in ("refusal", "snapshot", "choice")  # The chain does not look at them.
    and not lie["what"].endswith("while the first waits")  # What waits is no chain's affair.
    and not re.search("(parent|target) is a (vote|contribution)$", lie["what"])  # A chain knows checkpoints only.
]

MAY_CHANGE: dict[Outcome, set[str]] = {
    Outcome.REFUSED: set(),
    Outcome.IGNORED: set(),
    Outcome.NOTHING: set(),
    Outcome.WAITS: {"waiting", "turns"},
    Outcome.LEFT_BEHIND: {"checkpoints", "votes", "turns", "kept"},
    Outcome.KEPT: {"votes", "justified", "records", "chosen", "snapshots", "kept"},
    Outcome.EVIDENCE: {"votes", "justified", "evidence", "kept"},
    Outcome.DOES_NOT_HOLD: {"checkpoints", "votes", "candidates", "turns", "refusals", "kept"},
}
"""What of a node's holdings an object may change."""


def name_of(case: dict[str, Any]) -> str:
    return f"{case['object']}: {case['what']}"


def swarm() -> Genesis:
    return open_genesis(bytes.fromhex(MALFORMED["context"]["genesis"]))


def opened(data: str, genesis: Genesis) -> Envelope:
    return open_envelope(bytes.fromhex(data), swarm=genesis.swarm)


def changed(before: dict[str, object], after: dict[str, object]) -> set[str]:
    return {name for name in after if after[name] != before[name]}


# ---- malformed -------------------------------------------------------------------------------------


def test_the_sound_objects_are_sound() -> None:
    genesis = swarm()
    members = initial_members(genesis)
    for data in MALFORMED["sound"].values():
        envelope = opened(data, genesis)
        if envelope.type in RECORD_TYPES and envelope.type != wire.CHOICE:
            members = members.apply(envelope, slot=2, genesis=genesis)
        else:
            open_object(envelope, genesis)


@pytest.mark.parametrize("case", MALFORMED["refused"], ids=name_of)
def test_a_malformed_object_is_refused_by_its_rule_and_with_its_reason(case: dict[str, Any]) -> None:
    error = refusal_of(unpacked(case["envelope"]), swarm(), in_payload=case["in_payload"])
    assert (error.rule, error.detail) == (case["rule"], case["detail"])


@pytest.mark.parametrize("case", [each for each in MALFORMED["refused"] if each["in_payload"]], ids=name_of)
def test_a_malformed_object_leaves_its_receiver_as_it_was(case: dict[str, Any]) -> None:
    receiver = Receiver(MALFORMED["context"])
    envelope = open_envelope(unpacked(case["envelope"]), swarm=swarm().swarm)
    before = receiver.holdings()
    assert receiver.told(envelope) == (Outcome.REFUSED, case["rule"], case["detail"])
    assert receiver.blames_sender
    assert receiver.told(envelope) == (Outcome.NOTHING, None, "")
    assert changed(before, receiver.holdings()) == set()


# ---- lying -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "lie"), LIES)
def test_a_lie_is_found_out_with_its_reason_and_gains_nothing(context: dict[str, Any], lie: dict[str, Any]) -> None:
    receiver = Receiver(context)
    envelope = opened(lie["envelope"], receiver.state.genesis)
    before = receiver.holdings()
    outcome = Outcome(lie["outcome"])
    assert receiver.told(envelope) == (outcome, lie["rule"], lie["detail"])
    assert receiver.blames_sender == lie["blames_sender"]
    after = receiver.holdings()
    assert changed(before, after) <= MAY_CHANGE[outcome]
    if outcome is Outcome.DOES_NOT_HOLD:
        assert receiver.state.tree.nodes[envelope.id].verdict is False
        assert not receiver.state.tree.nodes[envelope.id].voters
    if outcome is Outcome.EVIDENCE:
        assert_convicted(receiver, envelope)
    receiver.told(envelope)
    assert receiver.holdings() == after, "the same lie again costs more"


def assert_convicted(receiver: Receiver, envelope: Envelope) -> None:
    """The object is evidence that is kept, or one of two votes in such."""
    pieces = receiver.state.evidence.values()
    (piece,) = [each for each in pieces if envelope.id in (each.id, each.first.id, each.second.id)]
    assert envelope.type == wire.EVIDENCE or piece.accused == envelope.public_key
    assert piece.envelope in receiver.kept


def judge(envelope: Envelope, tree: Tree) -> None:
    """Ask the chain alone, without a round machine."""
    genesis, head = tree.genesis, tree.head()
    if envelope.type == wire.CHECKPOINT:
        tree.add(open_checkpoint(envelope, genesis))
    elif envelope.type == wire.VOTE:
        tree.add_vote(open_vote(envelope))
    elif envelope.type == wire.CONTRIBUTION:
        contribution = open_contribution(envelope, genesis)
        check_contributor(contribution, head, genesis=genesis)
        contribution_staleness(contribution, head, genesis=genesis, lookup=tree.lookup)
    elif envelope.type == wire.EVIDENCE:
        evidence = open_evidence(envelope)
        head.members.exclude(evidence.accused, offence_slot=evidence.offence_slot)
    else:
        head.members.apply(envelope, slot=head.slot + 1, genesis=genesis)


@pytest.mark.parametrize(("context", "lie"), REFUSED_BY_CHAIN)
def test_the_chain_itself_refuses_it_whoever_asks(context: dict[str, Any], lie: dict[str, Any]) -> None:
    tree = Receiver(context).state.tree
    with pytest.raises(RejectError) as caught:
        judge(opened(lie["envelope"], tree.genesis), tree)
    assert (caught.value.rule, caught.value.detail) == (lie["rule"], lie["detail"])


def test_every_rule_that_hostile_objects_can_break_is_broken_by_one() -> None:
    """All but those that are about deltas, blobs and snapshots' bytes, which have vectors of their own."""
    found = {Rule(case["rule"]) for case in MALFORMED["refused"]}
    found |= {Rule(lie["rule"]) for context in LYING["contexts"] for lie in context["lies"] if lie["rule"] is not None}
    assert set(Rule) - found == {Rule.SHAPE, Rule.RANK, Rule.ZERO_NORM, Rule.BLOB}


def test_every_reason_names_what_was_found() -> None:
    """Ids and numbers; or the kind of thing that stands where another one should, or what is missing."""
    cases = [*MALFORMED["refused"], *(lie for context in LYING["contexts"] for lie in context["lies"])]
    details = {case["detail"] for case in cases if case["rule"] is not None or case["outcome"] == "ignored"}
    of_kinds = re.compile(r"found an? .* where an? .* is required|a .* is carried as a record|.* has no [a-z_]+")
    made_up = "makes up.weight not finite"  # What a vector's context says that recomputing gives.
    assert [
        each for each in details - {made_up} if not re.search(r"[0-9]", each) and not of_kinds.fullmatch(each)
    ] == []


def paths_of(descriptor: Any, before: str = "") -> Iterator[str]:
    """Every field of a message, and of the messages in it, as a path with dots."""
    for field in descriptor.fields:
        yield before + field.name
        if field.message_type is not None:
            yield from paths_of(field.message_type, f"{before}{field.name}.")


FREE = {
    "contribution": {"loss_first_micro", "loss_last_micro"},  # For people: every number of 32 bits will do.
    "leave": {"certifier_role_only"},
    "revocation": {"whole_tree"},
}
"""Fields in which no value can be wrong by itself."""

WRONG_FORMS = {
    "nothing at all",
    "a byte that begins no field",
    "cut off",
    "a trailing zero",
    "an unknown field",
    "an unfinished group",
    "a group",
    "a field twice",
    "a padded tag",
    "another wire type",
}
"""Of the bytes of a message."""

WITH_ENVELOPE = {"vote", "refusal", "evidence", "checkpoint", "admission", "choice", "snapshot"}
"""Of these the envelope's fields are spoilt, too; an admission stands for all records, and for contributions."""


@pytest.mark.parametrize("kind", MALFORMED["sound"])
def test_every_field_of_every_kind_of_object_is_wrong_in_some_malformed_one(kind: str) -> None:
    envelope = opened(MALFORMED["sound"][kind], swarm())
    required = set(paths_of(MESSAGE_OF_TYPE[envelope.type].DESCRIPTOR)) - FREE.get(kind, set())
    if kind in WITH_ENVELOPE:
        required |= set(paths_of(wire.Envelope.DESCRIPTOR, "envelope."))
    named = {name for case in MALFORMED["refused"] if case["object"] == kind for name in case["fields"]}
    assert named == required


@pytest.mark.parametrize("kind", MALFORMED["sound"])
def test_every_kind_of_object_comes_in_every_wrong_form_and_is_told_of_in_lies(kind: str) -> None:
    forms = {case["what"] for case in MALFORMED["refused"] if case["object"] == kind}
    assert {f"payload: {words}" for words in WRONG_FORMS} <= forms
    assert kind in {lie["object"] for context in LYING["contexts"] for lie in context["lies"]}


OUTCOMES = {
    "vote": {Outcome.REFUSED, Outcome.WAITS, Outcome.KEPT, Outcome.EVIDENCE, Outcome.NOTHING},
    "evidence": {Outcome.REFUSED, Outcome.IGNORED, Outcome.EVIDENCE, Outcome.NOTHING},
    "refusal": {Outcome.REFUSED, Outcome.WAITS},
    "checkpoint": set(Outcome) - {Outcome.KEPT, Outcome.EVIDENCE},
}
"""What can become of the lies of certifiers."""


@pytest.mark.parametrize("kind", OUTCOMES)
def test_what_certifiers_lie_about_comes_to_everything_that_it_can_come_to(kind: str) -> None:
    lies = [lie for context in LYING["contexts"] for lie in context["lies"] if lie["object"] == kind]
    assert {lie["outcome"] for lie in lies} == OUTCOMES[kind]
