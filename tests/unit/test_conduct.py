"""What it costs a peer to send what nobody honest sends: points, forgotten slowly; with too many it is shut out."""

import pytest

from fullrank_node import conduct
from fullrank_node.conduct import LIMIT, MAX_OFFERS_REMEMBERED, UNITS_AT_ONCE, UNITS_PER_S, Conduct

EVE, BOB = b"eve", b"bob"


class Watch:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def kept(watch: Watch) -> Conduct:
    return Conduct(watch)


def test_an_unknown_peer_is_welcome(kept: Conduct) -> None:
    assert kept.refusal(EVE) is None
    assert kept.shut_out() == {}


def test_five_false_objects_shut_their_sender_out_and_nobody_else(kept: Conduct) -> None:
    for _ in range(4):
        kept.false_object(EVE, "sent a vote that was refused by rule VOTE: is wrong", num_bytes=200)
    assert kept.refusal(EVE) is None
    kept.false_object(EVE, "sent a vote that was refused by rule VOTE: is wrong", num_bytes=200)
    words = "shut out for 60 s more: sent a vote that was refused by rule VOTE: is wrong"
    assert kept.refusal(EVE) == words
    assert kept.shut_out() == {EVE: words}
    assert kept.refusal(BOB) is None


def test_one_false_object_of_a_megabyte_is_enough(kept: Conduct) -> None:
    kept.false_object(EVE, "sent rubbish", num_bytes=1 << 20)
    assert kept.refusal(EVE) is not None


def test_it_ends_and_the_next_time_takes_twice_as_long_up_to_a_day(kept: Conduct, watch: Watch) -> None:
    pauses = []
    for _ in range(14):
        kept.false_object(EVE, "sent rubbish", num_bytes=1 << 21)
        left = kept.refusal(EVE)
        assert left is not None
        pauses.append(float(left.split()[3]))
        watch.now_s += pauses[-1]
        assert kept.refusal(EVE) is None
    assert pauses[:4] == [60, 120, 240, 480]
    assert pauses[-1] == 86_400


def test_a_rare_false_object_is_forgotten(kept: Conduct, watch: Watch) -> None:
    for _ in range(100):
        kept.false_object(EVE, "sent rubbish", num_bytes=100)
        watch.now_s += 300.0
    assert kept.refusal(EVE) is None


def test_offering_the_same_again_and_again_is_a_flood_and_once_more_is_not(kept: Conduct, watch: Watch) -> None:
    for _ in range(16):  # A node says its last votes again when it starts.
        kept.offered(BOB, b"vote")
    assert kept.refusal(BOB) is None
    for number in range(500):
        kept.offered(EVE, b"record %d" % (number % 7))
    assert kept.refusal(EVE) is not None


def test_new_objects_are_no_replays_however_many(kept: Conduct) -> None:
    for number in range(5000):
        kept.offered(BOB, b"object %d" % number)
    assert kept.refusal(BOB) is None
    assert len(kept._records[BOB].offered) == MAX_OFFERS_REMEMBERED


def test_a_peer_has_a_share_of_what_is_taken_in_and_it_grows_again(kept: Conduct, watch: Watch) -> None:
    assert kept.has_room(EVE, num_objects=int(UNITS_AT_ONCE), num_bytes=0)
    assert not kept.has_room(EVE, num_objects=1, num_bytes=0)
    watch.now_s += 1.0
    assert kept.has_room(EVE, num_objects=int(UNITS_PER_S), num_bytes=0)
    assert not kept.has_room(EVE, num_objects=0, num_bytes=4096)
    assert kept.has_room(BOB, num_objects=1, num_bytes=0)


def test_who_goes_on_offering_beyond_its_share_is_shut_out(kept: Conduct) -> None:
    while kept.refusal(EVE) is None:
        kept.has_room(EVE, num_objects=1000, num_bytes=4 << 20)
    assert "offered more than one peer may" in (kept.refusal(EVE) or "")


def test_answers_with_objects_that_nobody_asked_for_cost_their_sender(kept: Conduct) -> None:
    for _ in range(int(LIMIT)):
        kept.unasked(EVE)
    assert "not asked for" in (kept.refusal(EVE) or "")


def test_what_is_remembered_is_bounded(kept: Conduct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "MAX_REMEMBERED", 10)
    for number in range(100):
        kept.offered(b"peer %d" % number, b"object")
    assert len(kept._records) == 10


def test_what_came_before_it_was_shut_out_is_not_held_against_it_twice(kept: Conduct, watch: Watch) -> None:
    for _ in range(50):
        kept.false_object(EVE, "sent rubbish", num_bytes=1 << 20)
    watch.now_s += 60.0
    kept.false_object(EVE, "sent rubbish", num_bytes=100)
    assert kept.refusal(EVE) is None
