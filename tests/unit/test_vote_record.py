"""A certifier's record finds every offence, whatever the order in which its votes arrive."""

import itertools

from chains import swarm_with
from hypothesis import given
from hypothesis import strategies as st
from swarms import key_of

from fullrank_protocol.vote import Vote, is_offence, make_vote, open_vote
from fullrank_protocol.vote_record import VoteRecord

SWARM = swarm_with("ada", "bob")


def vote(source_slot: int, target_slot: int, *, target: int = 0) -> Vote:
    def checkpoint(slot: int, which: int = 0) -> bytes:
        return bytes([which, slot]) * 16 if slot else SWARM.id

    return open_vote(
        make_vote(
            key_of("ada"),
            swarm=SWARM.id,
            source=checkpoint(source_slot),
            source_slot=source_slot,
            target=checkpoint(target_slot, target),
            target_slot=target_slot,
        )
    )


def record_of(*votes: Vote) -> VoteRecord:
    record = VoteRecord()
    for each in votes:
        record.add(each)
    return record


def test_votes_whose_sources_advance_with_their_targets_are_no_offence_in_any_order() -> None:
    votes = [vote(0, 1), vote(0, 2), vote(1, 3), vote(3, 7)]
    for order in itertools.permutations(votes):
        record = VoteRecord()
        assert [record.add(each) for each in order] == [[], [], [], []]


def test_a_second_target_of_one_slot_is_an_offence() -> None:
    one, other = vote(1, 3), vote(1, 3, target=1)
    assert record_of(vote(0, 1), one, vote(3, 4)).add(other) == [one]


def test_a_vote_around_many_others_offends_against_each_with_a_later_source() -> None:
    votes = [vote(0, 1), vote(1, 2), vote(2, 3), vote(2, 4)]
    assert record_of(*votes).add(vote(1, 5)) == votes[2:]


def test_a_vote_inside_another_is_an_offence() -> None:
    around = vote(1, 9)
    assert record_of(vote(0, 1), around).add(vote(2, 4)) == [around]


def test_the_latest_vote_is_the_one_with_the_highest_target_slot_then_the_lowest_target() -> None:
    low, high = sorted([vote(1, 5), vote(1, 5, target=1)], key=lambda each: each.target)
    assert record_of(vote(0, 3), high, low, vote(0, 4)).latest == low


slots = st.tuples(st.integers(0, 8), st.integers(1, 9), st.integers(0, 1)).filter(lambda each: each[0] < each[1])


@given(cast=st.lists(slots, unique=True, max_size=12))
def test_every_vote_is_compared_as_if_with_all(cast: list[tuple[int, int, int]]) -> None:
    record = VoteRecord()
    before: list[Vote] = []
    for source_slot, target_slot, target in cast:
        new = vote(source_slot, target_slot, target=target)
        found = record.add(new)
        assert {each.id for each in found} == {each.id for each in before if is_offence(new, each)}
        before.append(new)
