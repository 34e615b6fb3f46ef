"""Votes, what makes two of them an offence, and how it is proved."""

import pytest
from swarms import id_of, key_of, swarm_of

from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.limits import MAX_DETAIL_BYTES, MAX_RECORD_BYTES
from fullrank_protocol.vote import (
    Vote,
    is_offence,
    make_choice,
    make_evidence,
    make_refusal,
    make_vote,
    open_choice,
    open_evidence,
    open_refusal,
    open_vote,
)
from fullrank_protocol.wire import objects_pb2 as wire

SWARM = swarm_of()


def vote(source_slot: int, target_slot: int, *, target: str = "", name: str = "ada") -> Vote:
    """A vote over slots; its checkpoints are named by their slots, and by `target`."""
    return SWARM.vote(
        name,
        source=id_of(f"slot {source_slot}") if source_slot else SWARM.id,
        source_slot=source_slot,
        target=id_of(f"slot {target_slot}{target}"),
        target_slot=target_slot,
    )


def evidence_of(first: Vote | Envelope, second: Vote | Envelope) -> Envelope:
    """An unchecked evidence record."""
    one, other = (v.envelope if isinstance(v, Vote) else v for v in (first, second))
    message = wire.Evidence(first=one.encode(), second=other.encode())
    return seal(key_of("zoe"), swarm=SWARM.id, type=wire.EVIDENCE, message=message)


def ascending(one: Vote, other: Vote) -> tuple[Vote, Vote]:
    return (one, other) if one.id < other.id else (other, one)


def test_a_vote_reads_back() -> None:
    envelope = make_vote(
        key_of("ada"), swarm=SWARM.id, source=id_of("s"), source_slot=3, target=id_of("t"), target_slot=5
    )
    found = open_vote(SWARM.opened(envelope))
    assert found.id == envelope.id
    assert found.voter == key_of("ada").public_key
    assert (found.source, found.source_slot, found.target, found.target_slot) == (id_of("s"), 3, id_of("t"), 5)
    assert found.envelope.encode() == envelope.encode()


@pytest.mark.parametrize(
    ("source", "source_slot", "target", "target_slot", "rule", "words"),
    [
        (id_of("s"), 5, id_of("t"), 5, Rule.VOTE, "slot 5, its target 5"),
        (id_of("s"), 6, id_of("t"), 5, Rule.VOTE, "slot 6, its target 5"),
        (id_of("s"), 3, id_of("s"), 5, Rule.VOTE, "source and target are both"),
        (id_of("s"), 0, id_of("t"), 5, Rule.SLOT, "the source has slot 0"),
        (SWARM.id, 1, id_of("t"), 5, Rule.SLOT, "the source has slot 1"),
        (SWARM.id, 0, id_of("t"), 0, Rule.SLOT, "the target has slot 0"),
        (b"", 0, id_of("t"), 1, Rule.SCHEMA, "source checkpoint has 0"),
        (SWARM.id, 0, b"t", 1, Rule.SCHEMA, "target checkpoint has 1"),
        (SWARM.id, 0, id_of("t"), 2**60, Rule.SLOT, "target slot"),
    ],
)
def test_a_malformed_vote_is_refused(
    source: bytes, source_slot: int, target: bytes, target_slot: int, rule: Rule, words: str
) -> None:
    envelope = make_vote(
        key_of("ada"), swarm=SWARM.id, source=source, source_slot=source_slot, target=target, target_slot=target_slot
    )
    with pytest.raises(RejectError, match=words) as caught:
        open_vote(envelope)
    assert caught.value.rule is rule


def test_two_votes_for_one_target_slot_are_an_offence() -> None:
    assert is_offence(vote(0, 5), vote(0, 5, target=" too"))
    assert is_offence(vote(1, 5), vote(2, 5))


@pytest.mark.parametrize(("outer", "inner"), [((0, 5), (1, 4)), ((1, 9), (7, 8)), ((2, 6), (3, 5))])
def test_a_vote_around_another_is_an_offence_in_either_order(outer: tuple[int, int], inner: tuple[int, int]) -> None:
    assert is_offence(vote(*outer), vote(*inner))
    assert is_offence(vote(*inner), vote(*outer))


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 1), (1, 2)), ((0, 3), (0, 5)), ((0, 3), (2, 5)), ((0, 3), (3, 4)), ((1, 2), (5, 6)), ((1, 5), (1, 4))],
)
def test_votes_that_go_forward_are_no_offence(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert not is_offence(vote(*one), vote(*other))
    assert not is_offence(vote(*other), vote(*one))


def test_a_vote_sent_twice_and_votes_of_two_keys_are_no_offence() -> None:
    assert not is_offence(vote(0, 5), vote(0, 5))
    assert not is_offence(vote(0, 5), vote(0, 5, target=" too", name="bob"))


def test_votes_in_two_swarms_are_no_offence() -> None:
    other = swarm_of(founders=("ada", "bob")).vote("ada", target=id_of("elsewhere"), target_slot=5)
    assert not is_offence(vote(0, 5), other)


def test_evidence_reads_back_whatever_the_order_and_whoever_signs() -> None:
    one, other = vote(0, 5), vote(0, 5, target=" too")
    envelope = make_evidence(key_of("zoe"), swarm=SWARM.id, one=one, other=other)
    assert envelope == make_evidence(key_of("zoe"), swarm=SWARM.id, one=other, other=one)
    assert len(envelope.encode()) <= MAX_RECORD_BYTES
    found = open_evidence(SWARM.opened(envelope))
    assert (found.first, found.second) == ascending(one, other)
    assert found.accused == key_of("ada").public_key
    assert found.offence_slot == 5


def test_evidence_of_the_largest_votes_fits_into_a_record() -> None:
    votes = [
        SWARM.vote("ada", source=id_of("s"), source_slot=2**53 - 1, target=id_of(t), target_slot=2**53)
        for t in ("one", "other")
    ]
    envelope = make_evidence(key_of("zoe"), swarm=SWARM.id, one=votes[0], other=votes[1])
    assert len(envelope.encode()) <= MAX_RECORD_BYTES


def test_evidence_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no offence"):
        make_evidence(key_of("zoe"), swarm=SWARM.id, one=vote(0, 5), other=vote(5, 6))
    first, second = ascending(vote(0, 5), vote(5, 6))
    with pytest.raises(RejectError, match="are no offence") as caught:
        open_evidence(evidence_of(first, second))
    assert caught.value.rule is Rule.EVIDENCE


def test_evidence_in_the_wrong_order_or_of_one_vote_twice_is_refused() -> None:
    first, second = ascending(vote(0, 5), vote(0, 5, target=" too"))
    for pair in [(second, first), (first, first)]:
        with pytest.raises(RejectError, match="are not two with ascending ids") as caught:
            open_evidence(evidence_of(*pair))
        assert caught.value.rule is Rule.EVIDENCE


def test_evidence_of_two_keys_is_refused() -> None:
    first, second = ascending(vote(0, 5), vote(0, 5, target=" too", name="bob"))
    with pytest.raises(RejectError, match="of two keys"):
        open_evidence(evidence_of(first, second))


def test_evidence_from_another_swarm_or_with_a_forged_vote_is_refused() -> None:
    elsewhere = swarm_of(founders=("ada", "bob"))
    votes = [elsewhere.vote("ada", target=id_of(t), target_slot=5) for t in ("one", "other")]
    with pytest.raises(RejectError) as caught:
        open_evidence(evidence_of(*ascending(*votes)))
    assert caught.value.rule is Rule.SWARM
    forged = wire.Envelope.FromString(vote(0, 5).envelope.encode())
    forged.signature = bytes(64)
    message = wire.Evidence(first=forged.SerializeToString(), second=vote(0, 6).envelope.encode())
    with pytest.raises(RejectError) as caught:
        open_evidence(seal(key_of("zoe"), swarm=SWARM.id, type=wire.EVIDENCE, message=message))
    assert caught.value.rule is Rule.SIGNATURE


def test_evidence_must_hold_votes() -> None:
    contribution = SWARM.contribution("ada").envelope
    with pytest.raises(RejectError, match="found a contribution where a vote is required"):
        open_evidence(evidence_of(contribution, contribution))


def test_a_refusal_reads_back() -> None:
    envelope = make_refusal(
        key_of("ada"), swarm=SWARM.id, checkpoint=id_of("c"), rule=Rule.DIGEST, detail="found 1, required 2"
    )
    found = open_refusal(SWARM.opened(envelope))
    assert found.certifier == key_of("ada").public_key
    assert (found.checkpoint, found.rule, found.detail) == (id_of("c"), Rule.DIGEST, "found 1, required 2")


def test_a_long_or_ugly_reason_is_cut_and_cleaned() -> None:
    detail = "é" * 1000 + "\n"
    envelope = make_refusal(key_of("ada"), swarm=SWARM.id, checkpoint=id_of("c"), rule=Rule.DIGEST, detail=detail)
    assert open_refusal(envelope).detail == "é" * (MAX_DETAIL_BYTES // 2)
    envelope = make_refusal(key_of("ada"), swarm=SWARM.id, checkpoint=id_of("c"), rule=Rule.DIGEST, detail="a\nb\x1b")
    assert open_refusal(envelope).detail == "a b "


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (wire.Refusal(checkpoint=id_of("c"), rule=99), "no rule number 99"),
        (wire.Refusal(checkpoint=id_of("c"), rule=0), "no rule number 0"),
        (wire.Refusal(checkpoint=b"", rule=1), "refused checkpoint has 0 bytes"),
        (wire.Refusal(checkpoint=id_of("c"), rule=1, detail="\n"), "invisible character"),
        (wire.Refusal(checkpoint=id_of("c"), rule=1, detail="x" * 401), "401 bytes, at most 400"),
    ],
)
def test_a_malformed_refusal_is_refused(message: wire.Refusal, words: str) -> None:
    with pytest.raises(RejectError, match=words) as caught:
        open_refusal(seal(key_of("ada"), swarm=SWARM.id, type=wire.REFUSAL, message=message))
    assert caught.value.rule is Rule.SCHEMA


def test_a_choice_is_the_roots() -> None:
    envelope = make_choice(key_of("ada"), swarm=SWARM.id, checkpoint=id_of("c"), slot=4, issued_at_ms=9)
    found = open_choice(SWARM.opened(envelope), SWARM.genesis)
    assert (found.root_key, found.checkpoint, found.slot) == (key_of("ada").public_key, id_of("c"), 4)
    by_eve = make_choice(key_of("eve"), swarm=SWARM.id, checkpoint=id_of("c"), slot=4, issued_at_ms=9)
    with pytest.raises(RejectError, match="no root key") as caught:
        open_choice(by_eve, SWARM.genesis)
    assert caught.value.rule is Rule.MEMBERSHIP
