"""Checkpoints: what each kind may carry, in which order, and everything inside checked."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from swarms import Swarm, id_of, key_of, seed_of, swarm_of

from fullrank_protocol import limits
from fullrank_protocol.checkpoint import (
    AcceptedContribution,
    CheckpointKind,
    CorrectedContribution,
    RefusedContribution,
    make_checkpoint,
    open_checkpoint,
)
from fullrank_protocol.envelope import decode_payload, open_envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import create_genesis
from fullrank_protocol.membership import make_admission, make_grant
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import make_evidence, open_evidence
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = swarm_of(founders=("ada", "bob"))
ZERO = Scaled.of(0.0)
ONE = Scaled.of(1.0)


def accepted(*names: str) -> list[AcceptedContribution]:
    return [AcceptedContribution(contribution=SWARM.contribution(name), weight=ONE) for name in names]


def refused(*names: str) -> list[RefusedContribution]:
    return [
        RefusedContribution(contribution=SWARM.contribution(name), rule=Rule.RANK, detail="rank 99, at most 16")
        for name in names
    ]


def edited(edit: Callable[[wire.Checkpoint], object], **fields: Any) -> RejectError:
    """What is said about a checkpoint whose message was edited before signing."""
    message = decode_payload(SWARM.checkpoint_envelope(**fields), wire.Checkpoint)
    edit(message)
    envelope = seal(key_of("ada"), swarm=SWARM.id, type=wire.CHECKPOINT, message=message)
    with pytest.raises(RejectError) as caught:
        open_checkpoint(SWARM.opened(envelope), SWARM.genesis)
    return caught.value


def test_a_full_checkpoint_reads_back() -> None:
    votes = [SWARM.vote(name, target=id_of("old"), target_slot=5) for name in ("ada", "bob")]
    two = [SWARM.vote("eve", target=id_of(target), target_slot=3) for target in ("this", "that")]
    evidence = open_evidence(make_evidence(key_of("bob"), swarm=SWARM.id, one=two[0], other=two[1]))
    grant = make_grant(
        key_of("ada"),
        swarm=SWARM.id,
        invite_key=key_of("invite").public_key,
        roles=3,
        count=1,
        not_after_ms=10**13,
    )
    checkpoint = SWARM.checkpoint(
        "bob",
        parent=id_of("parent"),
        slot=9,
        round=4,
        accepted=accepted("bob", "ada", "cyd"),
        refused=refused("eve", "dan"),
        votes=votes,
        records=[grant],
        evidence=[evidence],
        update_norm=Scaled.of(3.0),
    )
    assert checkpoint.kind is CheckpointKind.NORMAL
    assert (checkpoint.parent, checkpoint.slot, checkpoint.round) == (id_of("parent"), 9, 4)
    assert checkpoint.proposer == key_of("bob").public_key
    assert checkpoint.id == checkpoint.envelope.id
    assert {entry.contribution.member for entry in checkpoint.accepted} == {
        key_of(name).public_key for name in ("ada", "bob", "cyd")
    }
    assert [entry.contribution.id for entry in checkpoint.accepted] == sorted(
        entry.contribution.id for entry in checkpoint.accepted
    )
    assert checkpoint.accepted[0].weight == ONE
    assert len(checkpoint.refused) == 2
    assert checkpoint.refused[0].rule is Rule.RANK
    assert checkpoint.refused[0].detail == "rank 99, at most 16"
    assert set(checkpoint.votes) == set(votes)
    assert checkpoint.records == (grant,)
    assert checkpoint.evidence == (evidence,)
    assert checkpoint.corrected == ()
    assert checkpoint.model_digest == id_of("digest")
    assert checkpoint.update_norm.value() == 3.0


def test_an_empty_checkpoint_may_carry_votes_records_and_refusals() -> None:
    vote = SWARM.vote("ada", target=id_of("old"), target_slot=1)
    checkpoint = SWARM.checkpoint(kind=CheckpointKind.EMPTY, slot=2, votes=[vote], refused=refused("eve"))
    assert checkpoint.kind is CheckpointKind.EMPTY
    assert checkpoint.update_norm == ZERO
    assert checkpoint.votes == (vote,)


def test_a_correction_takes_contributions_back() -> None:
    entries = [CorrectedContribution(contribution_id=id_of(name), weight=ONE) for name in ("x", "y")]
    checkpoint = SWARM.checkpoint(kind=CheckpointKind.CORRECTION, corrected=entries, update_norm=ONE)
    assert checkpoint.corrected == tuple(sorted(entries, key=lambda entry: entry.contribution_id))


CORRECTED = [CorrectedContribution(contribution_id=id_of("x"), weight=ONE)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"accepted": []}, "is normal and accepts 0 contributions"),
        ({"kind": CheckpointKind.EMPTY, "accepted": accepted("ada")}, "is empty and accepts 1"),
        ({"kind": CheckpointKind.EMPTY, "update_norm": ONE}, "is empty and has norm 1.0"),
        ({"kind": CheckpointKind.EMPTY, "corrected": CORRECTED}, "is empty and takes back 1"),
        ({"corrected": CORRECTED}, "is normal and takes back 1"),
        ({"kind": CheckpointKind.CORRECTION}, "is correction and takes back 0"),
        ({"kind": CheckpointKind.CORRECTION, "corrected": CORRECTED, "accepted": accepted("ada")}, "accepts 1"),
        ({"kind": CheckpointKind.CORRECTION, "corrected": CORRECTED, "refused": refused("ada")}, "refuses 1"),
    ],
)
def test_each_kind_has_its_own_fields(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RejectError, match=words) as caught:
        SWARM.checkpoint(**fields)
    assert caught.value.rule is Rule.SCHEMA


@pytest.mark.parametrize(
    ("fields", "rule", "words"),
    [
        ({"slot": 0}, Rule.SLOT, "slot is 0, 1 to"),
        ({"slot": 2**60}, Rule.SLOT, "slot is"),
        ({"round": 0}, Rule.ROUND, "normal and has round 0"),
        ({"slot": 3, "round": 4}, Rule.ROUND, "round is 4, 0 to 3 required"),
        ({"parent": b"short"}, Rule.SCHEMA, "parent has 5 bytes"),
        ({"model_digest": b""}, Rule.SCHEMA, "model digest has 0 bytes"),
    ],
)
def test_a_field_out_of_bounds_is_refused_with_its_numbers(fields: dict[str, Any], rule: Rule, words: str) -> None:
    with pytest.raises(RejectError, match=words) as caught:
        SWARM.checkpoint(**fields)
    assert caught.value.rule is rule


@pytest.mark.parametrize("kind", [0, 4])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    error = edited(lambda message: setattr(message, "kind", kind))
    assert error.rule is Rule.SCHEMA
    assert error.detail == f"the checkpoint kind {kind} is not known"


def test_missing_parts_are_refused() -> None:
    assert edited(lambda m: m.ClearField("update_norm")).detail == "the checkpoint has no update_norm"
    assert edited(lambda m: m.accepted[0].ClearField("weight")).detail == "an accepted contribution has no weight"
    error = edited(lambda m: m.corrected[0].ClearField("weight"), kind=CheckpointKind.CORRECTION, corrected=CORRECTED)
    assert error.detail == "a corrected contribution has no weight"


def test_weights_must_be_canonical() -> None:
    error = edited(lambda m: setattr(m.accepted[0].weight, "mantissa", 64))
    assert error.rule is Rule.NON_CANONICAL


def test_an_unknown_rule_in_a_refusal_is_refused() -> None:
    error = edited(lambda m: setattr(m.refused[0], "rule", 99), refused=refused("bob"))
    assert error.detail == "there is no rule number 99"


def swap(items: Any) -> None:
    first, second = (type(items[0]).FromString(item.SerializeToString()) for item in items)
    items[0].CopyFrom(second)
    items[1].CopyFrom(first)


def test_lists_must_ascend() -> None:
    votes = [SWARM.vote(name, target=id_of("old"), target_slot=5) for name in ("ada", "bob")]
    many = [CorrectedContribution(contribution_id=id_of(name), weight=ONE) for name in ("x", "y")]
    for error, name in [
        (edited(lambda m: swap(m.accepted), accepted=accepted("ada", "bob")), "accepted contributions"),
        (edited(lambda m: swap(m.refused), refused=refused("cyd", "bob")), "refused contributions"),
        (edited(lambda m: m.votes.reverse(), votes=votes, slot=9), "votes"),
        (edited(lambda m: swap(m.corrected), kind=CheckpointKind.CORRECTION, corrected=many), "corrected"),
    ]:
        assert error.rule is Rule.SCHEMA
        assert error.detail.startswith(name)
        assert "not strictly ascending at position 1" in error.detail


def test_nothing_is_carried_twice() -> None:
    vote = SWARM.vote("ada", target=id_of("old"), target_slot=5)
    error = edited(lambda m: m.votes.append(m.votes[0]), votes=[vote], slot=9)
    assert error.detail == "votes are not strictly ascending at position 1"
    error = edited(lambda m: m.accepted.append(m.accepted[0]))
    assert error.detail == "accepted contributions are not strictly ascending at position 1"
    grant = make_grant(
        key_of("ada"), swarm=SWARM.id, invite_key=key_of("invite").public_key, roles=3, count=1, not_after_ms=10**13
    )
    error = edited(lambda m: m.records.append(m.records[0]), records=[grant])
    assert error.rule is Rule.DUPLICATE


def test_one_member_contributes_once_on_one_base() -> None:
    again = SWARM.contribution("ada", num_tokens=99)
    for fields in [
        {"accepted": [*accepted("ada"), AcceptedContribution(contribution=again, weight=ONE)]},
        {"refused": [RefusedContribution(contribution=again, rule=Rule.RANK, detail="")]},
        {"refused": refused("ada")},
    ]:
        with pytest.raises(RejectError, match=r"^2 contributions of [0-9a-f]+ on base [0-9a-f]+, 1 allowed$") as caught:
            SWARM.checkpoint(**fields)
        assert caught.value.rule is Rule.DUPLICATE


def test_one_member_may_have_contributions_on_two_bases() -> None:
    late = SWARM.contribution("ada", base_checkpoint=id_of("base"), base_slot=3)
    checkpoint = SWARM.checkpoint(
        slot=5, accepted=[*accepted("ada"), AcceptedContribution(contribution=late, weight=ONE)]
    )
    assert len(checkpoint.accepted) == 2


def test_votes_are_for_earlier_slots() -> None:
    vote = SWARM.vote("ada", target=id_of("same slot"), target_slot=5)
    assert SWARM.checkpoint(slot=6, votes=[vote]).votes == (vote,)
    with pytest.raises(RejectError, match="a vote for slot 5 is carried in slot 5") as caught:
        SWARM.checkpoint(slot=5, votes=[vote])
    assert caught.value.rule is Rule.VOTE


def test_everything_inside_is_of_its_type() -> None:
    vote = SWARM.vote("ada", target=id_of("old"), target_slot=1)
    contribution = SWARM.contribution("bob").envelope
    for error, words in [
        (edited(lambda m: m.votes.append(contribution.encode())), "found a contribution where a vote is required"),
        (edited(lambda m: m.records.append(vote.envelope.encode())), "a vote is carried as a record"),
        (edited(lambda m: m.evidence.append(vote.envelope.encode())), "found a vote where an evidence is required"),
        (
            edited(lambda m: setattr(m.accepted[0], "contribution", vote.envelope.encode())),
            "found a vote where a contribution is required",
        ),
        (edited(lambda m: m.votes.append(b"\xff")), "the envelope of 1 bytes does not parse"),
    ]:
        assert words in error.detail


def test_everything_inside_is_signed_and_of_this_swarm() -> None:
    other = swarm_of()
    error = edited(lambda m: m.votes.append(other.vote("ada", target=id_of("old"), target_slot=1).envelope.encode()))
    assert error.rule is Rule.SWARM
    forged = wire.Envelope.FromString(SWARM.contribution("ada").envelope.encode())
    forged.signature = bytes(64)
    error = edited(lambda m: setattr(m.accepted[0], "contribution", forged.SerializeToString()))
    assert error.rule is Rule.SIGNATURE


def test_a_checkpoint_of_another_swarm_is_refused() -> None:
    with pytest.raises(RejectError) as caught:
        open_checkpoint(SWARM.checkpoint_envelope(), swarm_of().genesis)
    assert caught.value.rule is Rule.SWARM


def test_the_swarms_own_sizes_bind() -> None:
    message = decode_payload(SWARM.genesis.envelope, wire.Genesis)
    message.rule.max_contributions = 2
    message.limits.max_checkpoint_bytes = 16 << 10
    small = Swarm(create_genesis(key_of("ada"), message))

    def entries(*names: str) -> list[AcceptedContribution]:
        return [AcceptedContribution(contribution=small.contribution(name), weight=ONE) for name in names]

    assert len(small.checkpoint(accepted=entries("ada", "bob")).accepted) == 2
    with pytest.raises(RejectError, match="accepted contributions is 3, 0 to 2 required") as caught:
        small.checkpoint(accepted=entries("ada", "bob", "cyd"))
    assert caught.value.rule is Rule.SIZE
    votes = [small.vote(f"voter {i}", target=id_of("old"), target_slot=1) for i in range(100)]
    with pytest.raises(RejectError, match="at most 16384 allowed here") as caught:
        small.checkpoint(slot=2, votes=votes)
    assert caught.value.rule is Rule.SIZE


def test_a_flood_of_small_things_is_refused_before_its_signatures_are_checked() -> None:
    error = edited(lambda m: m.votes.extend([b"x"] * (limits.MAX_CARRIED_VOTES + 1)))
    assert error.detail == "the number of votes is 4097, 0 to 4096 required"
    error = edited(lambda m: m.records.extend([b"x"] * (limits.MAX_CARRIED_RECORDS + 1)))
    assert error.detail == "the number of records is 257, 0 to 256 required"
    error = edited(lambda m: m.evidence.extend([b"x"] * (limits.MAX_CARRIED_EVIDENCE + 1)))
    assert error.detail == "the number of evidence is 65, 0 to 64 required"


def test_records_keep_the_order_in_which_they_take_effect() -> None:
    grant = make_grant(
        key_of("ada"), swarm=SWARM.id, invite_key=key_of("invite").public_key, roles=3, count=2, not_after_ms=10**13
    )
    admissions = [
        make_admission(
            key_of(name), swarm=SWARM.id, invite_seed=seed_of("invite"), grant_id=id_of("g"), roles=1, name=name
        )
        for name in ("cyd", "dan", "eve")
    ]
    for order in [[grant, *admissions], [grant, *reversed(admissions)]]:
        assert SWARM.checkpoint(records=order).records == tuple(order)


def test_the_same_checkpoint_has_the_same_bytes_whatever_the_order_given() -> None:
    one = SWARM.checkpoint_envelope(accepted=accepted("ada", "bob", "cyd"))
    other = SWARM.checkpoint_envelope(accepted=accepted("cyd", "ada", "bob"))
    assert one.encode() == other.encode()
    assert open_envelope(one.encode(), swarm=SWARM.id).id == other.id


def test_a_checkpoint_is_a_value() -> None:
    checkpoint = SWARM.checkpoint()
    assert checkpoint == SWARM.checkpoint()
    assert hash(checkpoint) == hash(SWARM.checkpoint())
    assert replace(checkpoint, slot=2) != checkpoint


def test_making_and_reading_give_each_other() -> None:
    first = SWARM.checkpoint(refused=refused("bob"))
    again = make_checkpoint(
        key_of("ada"),
        swarm=SWARM.id,
        kind=first.kind,
        parent=first.parent,
        slot=first.slot,
        round=first.round,
        model_digest=first.model_digest,
        update_norm=first.update_norm,
        accepted=first.accepted,
        refused=first.refused,
        votes=first.votes,
        records=first.records,
        evidence=first.evidence,
        corrected=first.corrected,
    )
    assert again == first.envelope
