"""Objects that wait: found by what they wait for, and within bounds that nobody fills for others."""

import pytest
from swarms import id_of, key_of, swarm_of

from fullrank_protocol import parking
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.parking import STRANGERS, Parking

SWARM = swarm_of()
ADA, BOB = (key_of(name).public_key for name in ("ada", "bob"))


def vote(number: int, name: str = "ada") -> Envelope:
    """One of many objects, about 70 bytes each."""
    return SWARM.vote(name, target=id_of(f"target {number}"), target_slot=1 + number).envelope


def fill(parked: Parking, owner: bytes, numbers: range, *, waits_for: bytes | None = None) -> list[Envelope]:
    """Objects of one owner, each waiting for something else unless it is given."""
    made = [vote(number, "bob" if owner == BOB else "ada" if owner == ADA else "zoe") for number in numbers]
    for number, envelope in zip(numbers, made, strict=True):
        parked.add(envelope, waits_for=waits_for or id_of(f"{number}"), owner=owner)
    return made


def held(parked: Parking, envelopes: list[Envelope]) -> list[bool]:
    return [parked.holds(envelope.id) for envelope in envelopes]


def test_what_waits_for_an_object_comes_out_in_the_order_in_which_it_came() -> None:
    parked = Parking()
    made = fill(parked, ADA, range(3), waits_for=id_of("x"))
    (other,) = fill(parked, BOB, range(1), waits_for=id_of("y"))
    assert id_of("x") in parked
    assert list(parked) == [id_of("x"), id_of("y")]
    assert parked.pop(id_of("x")) == made
    assert parked.pop(id_of("x")) == []
    assert held(parked, [*made, other]) == [False, False, False, True]
    assert (len(parked), parked.num_of(ADA), parked.num_of(BOB)) == (1, 0, 1)


def test_the_same_object_twice_is_one() -> None:
    parked = Parking()
    assert parked.add(vote(1), waits_for=id_of("x"), owner=ADA)
    before = parked.num_bytes
    assert not parked.add(vote(1), waits_for=id_of("x"), owner=ADA)
    assert not parked.add(vote(1), waits_for=id_of("y"), owner=STRANGERS)
    assert (len(parked), parked.num_bytes) == (1, before)


def test_nothing_is_left_of_what_is_taken_out() -> None:
    parked = Parking()
    fill(parked, ADA, range(5), waits_for=id_of("x"))
    parked.pop(id_of("x"))
    assert (len(parked), parked.num_bytes, list(parked)) == (0, 0, [])


def test_who_sends_more_than_fits_loses_the_oldest_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED", 5)
    parked = Parking()
    mine = fill(parked, BOB, range(2))
    theirs = fill(parked, ADA, range(10, 20))
    assert held(parked, mine) == [True, True]
    assert held(parked, theirs) == [False] * 7 + [True] * 3


def test_the_bytes_are_bounded_like_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED_BYTES", 6_000)
    parked = Parking()
    mine = fill(parked, BOB, range(1))
    theirs = fill(parked, ADA, range(10, 20))
    assert parked.num_bytes <= 6_000
    assert held(parked, mine) == [True]
    assert held(parked, theirs) == [False] * 6 + [True] * 4


def test_all_strangers_together_have_a_small_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED_OF_STRANGERS", 3)
    parked = Parking()
    mine = fill(parked, BOB, range(5))
    theirs = fill(parked, STRANGERS, range(10, 20))
    assert held(parked, mine) == [True] * 5
    assert held(parked, theirs) == [False] * 7 + [True] * 3
    monkeypatch.setattr(parking, "MAX_PARKED_BYTES_OF_STRANGERS", 3_000)
    more = fill(parked, STRANGERS, range(20, 22))
    assert held(parked, [*theirs, *more]) == [False] * 10 + [True] * 2


def test_an_object_that_is_larger_than_the_whole_share_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED_BYTES_OF_STRANGERS", 500)
    parked = Parking()
    assert not parked.add(vote(1), waits_for=id_of("x"), owner=STRANGERS)
    assert (len(parked), parked.num_bytes, list(parked)) == (0, 0, [])
