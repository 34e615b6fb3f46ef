"""What a hostile signer can make a node keep, ask for, open and recompute: little, and nothing of what others sent.

All that happens here is well formed and signed; what is not is refused by the vectors of `malformed.json`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from chains import Story, key, swarm_with
from machines import Machine, only, some
from swarms import id_of, key_of

from fullrank_protocol import chain, intake, parking, worth
from fullrank_protocol.chain import ChainState
from fullrank_protocol.checkpoint import Checkpoint, CheckpointKind
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parking import MAX_PARKED_BYTES_OF_STRANGERS, MAX_PARKED_OF_STRANGERS
from fullrank_protocol.proposing import proposer_order
from fullrank_protocol.round_io import (
    Action,
    Alarm,
    CheckDelta,
    Drop,
    FetchObjects,
    Keep,
    Merge,
    SignEvidence,
)
from fullrank_protocol.round_state import MAX_ASKED_FOR_ONE
from fullrank_protocol.vote import make_refusal

FOUR = ("ada", "bob", "cyd", "dan")
SEVEN = (*FOUR, "eve", "fay", "gus")


def story(*founders: str, **rules: Any) -> Story:
    return Story(swarm_with(*(founders or FOUR), **rules))


def dropped(actions: list[Action]) -> list[tuple[Rule | None, str]]:
    return [(drop.rule, drop.detail) for drop in some(Drop, actions)]


def reader(tale: Story, slot: int) -> Machine:
    """A node of nobody's, in the middle of a slot."""
    machine = Machine(tale, "reader", certifies=False)
    machine.at(slot, 500)
    return machine


def final_line(tale: Story, slots: range, voters: str = "ada bob cyd") -> list[ChainState]:
    """Rounds in these slots, each voted for in the next one: all but the last two are final."""
    line = [tale.genesis]
    for slot in slots:
        votes = tale.votes(voters, line[-1]) if line[-1].slot else []
        line.append(tale.round_of(line[-1], slot=slot, votes=votes))
    return line[1:]


# ---- what waits -----------------------------------------------------------------------------------


def orphans(tale: Story, by: str, count: int, num_bytes: int = 0) -> Iterator[Envelope]:
    """Checkpoints that follow something unknown; most of one is a name that no vote has."""
    for number in range(count):
        fields: dict[str, Any] = {"kind": CheckpointKind.EMPTY, "parent": id_of(f"unknown {number}"), "slot": 1}
        refused: list[Any] = []
        if num_bytes:
            votes = [tale.swarm.vote(f"voter {i}", target=id_of("t"), target_slot=1) for i in range(num_bytes // 200)]
            fields |= {"votes": votes, "slot": 2}
        yield tale.swarm.checkpoint_envelope(by, **fields, refused=refused)


def test_what_strangers_send_about_the_unknown_fills_a_small_room_and_nobody_is_asked_for_it() -> None:
    tale = story()
    machine = reader(tale, 3)
    honest = tale.swarm.vote("bob", target=id_of("expected"), target_slot=2)
    machine.receive(honest)
    actions = machine.receive(*orphans(tale, "mallory", MAX_PARKED_OF_STRANGERS + 50))
    assert not some(FetchObjects, actions)
    assert len(machine.state.parked) == MAX_PARKED_OF_STRANGERS + 1
    assert machine.state.parked.holds(honest.id)


def test_a_thousand_keys_have_no_more_room_than_one() -> None:
    tale = story()
    machine = reader(tale, 3)
    for number in range(MAX_PARKED_OF_STRANGERS + 20):
        machine.receive(tale.swarm.vote(f"sybil {number}", target=id_of(f"{number}"), target_slot=2))
    assert len(machine.state.parked) == MAX_PARKED_OF_STRANGERS


def test_large_objects_of_strangers_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED_BYTES_OF_STRANGERS", MAX_PARKED_BYTES_OF_STRANGERS >> 6)
    tale = story()
    machine = reader(tale, 3)
    machine.receive(*orphans(tale, "mallory", 10, num_bytes=40_000))
    assert machine.state.parked.num_bytes <= MAX_PARKED_BYTES_OF_STRANGERS >> 6
    assert 0 < len(machine.state.parked) < 4


def test_for_one_certifier_a_bounded_number_of_objects_is_asked_for() -> None:
    tale = story()
    machine = reader(tale, 3)
    actions = machine.receive(*orphans(tale, "dan", MAX_ASKED_FOR_ONE + 20))
    assert sum(len(fetch.ids) for fetch in some(FetchObjects, actions)) == MAX_ASKED_FOR_ONE
    theirs = tale.swarm.vote("bob", target=id_of("expected"), target_slot=2)
    assert only(FetchObjects, machine.receive(theirs)).ids == (id_of("expected"),)


def test_what_nothing_waits_for_any_more_is_not_remembered_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED", 8)
    monkeypatch.setattr(intake, "MAX_ASKED", 8)
    tale = story()
    machine = reader(tale, 3)
    machine.receive(*orphans(tale, "dan", 40))
    assert len(machine.state.parked) == 8
    assert len(machine.state.asked) <= 9


def test_a_long_chain_sent_backwards_does_not_break_the_node() -> None:
    """Each waits for the one before; when the first comes, all fall into place, without a call in a call."""
    tale = story()
    machine = reader(tale, 1_500)
    state, line = tale.genesis, []
    for slot in range(1, 1_300):
        state = tale.grow(state, slot=slot, by="dan")
        line.append(state)
    machine.receive(*reversed(line))
    assert machine.head == state
    assert len(machine.state.parked) == 0


# ---- what is opened -------------------------------------------------------------------------------


def test_nothing_inside_a_strangers_checkpoint_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    tale = story()
    machine = reader(tale, 3)
    opened: list[Envelope] = []
    monkeypatch.setattr(worth, "open_checkpoint", lambda envelope, genesis: opened.append(envelope))
    stranger = tale.checkpoint(tale.genesis, slot=1, by="mallory")
    drop = only(Drop, machine.receive(stranger.envelope))
    assert (drop.rule, drop.blames_sender) == (Rule.MEMBERSHIP, True)
    machine.receive(*orphans(tale, "mallory", 3))
    ahead = machine.receive(tale.checkpoint(tale.genesis, slot=90, by="mallory").envelope)
    mallory = key("mallory").hex()[:12]
    assert dropped(ahead) == [(None, f"is ahead of this clock, and its proposer {mallory} is no certifier known here")]
    assert opened == []


def false_ones(tale: Story, by: str, slot: int, count: int) -> list[Checkpoint]:
    """Different checkpoints with a round that cannot be."""
    return [tale.checkpoint(tale.genesis, slot=slot, by=by, round=1 + number) for number in range(count)]


def test_of_one_certifier_four_false_checkpoints_are_opened_in_a_slot_whatever_slots_they_name() -> None:
    tale = story()
    machine = reader(tale, 60)
    lies = [tale.checkpoint(tale.genesis, slot=10 + number, by="dan", round=7) for number in range(9)]
    found = dropped(machine.receive(*(lie.envelope for lie in lies)))
    assert [rule for rule, _ in found] == [Rule.ROUND] * 4 + [None] * 5
    assert found[4][1] == "comes after 4 of its proposer that were refused in this slot"
    others = dropped(machine.receive(tale.checkpoint(tale.genesis, slot=20, by="cyd", round=7).envelope))
    assert [rule for rule, _ in others] == [Rule.ROUND]
    machine.at(61, 500)
    assert [rule for rule, _ in dropped(machine.receive(lies[8].envelope))] == [Rule.ROUND]


def test_who_was_refused_four_times_is_still_heard_where_another_certifier_refers_to_it() -> None:
    tale = story()
    machine = reader(tale, 60)
    machine.receive(*(lie.envelope for lie in false_ones(tale, "dan", 30, 4)))
    sound = tale.grow(tale.genesis, slot=30, by="dan")
    assert len(dropped(machine.receive(sound))) == 1
    machine.receive(tale.vote("bob", sound))
    machine.receive(sound)
    assert machine.head == sound


def test_a_checkpoint_that_waits_for_its_turn_counts_among_the_four() -> None:
    tale = story()
    *_, last = proposer_order(tale.genesis, swarm=tale.swarm.id, slot=2)
    name = next(each for each in FOUR if key(each) == last)
    machine = Machine(tale, "reader", certifies=False)
    machine.at(3)
    mine = [tale.contribution(name, num_tokens=1 + number) for number in range(6)]
    hasty = [tale.checkpoint(tale.genesis, slot=2, by=name, accepted=[each]) for each in mine]
    actions = machine.receive(*hasty, early=True)
    assert dropped(actions) == [(None, "comes after 4 others of its proposer and slot")] * 2
    machine.at(4)
    assert sum(each.id in machine.state.tree.nodes for each in hasty) == 4


# ---- what is recomputed and kept --------------------------------------------------------------------


def test_a_hostile_certifier_costs_at_most_four_merges_a_slot() -> None:
    tale = story()
    machine = reader(tale, 3)
    honest = [tale.contribution(name) for name in FOUR]
    subsets = [[c for bit, c in enumerate(honest) if mask >> bit & 1] for mask in range(1, 16)]
    lies = [tale.checkpoint(tale.genesis, slot=1, by="dan", accepted=each, model_digest=id_of("x")) for each in subsets]
    actions = machine.receive(*lies)
    assert len(some(Merge, actions)) == 4
    assert len(some(CheckDelta, actions)) <= len(honest)
    again = machine.receive(*lies)
    assert not some(Merge, again)


def test_what_branches_off_below_the_final_checkpoint_is_neither_fetched_nor_recomputed() -> None:
    tale = story()
    line = final_line(tale, range(1, 6))
    machine = reader(tale, 9)
    machine.receive(*line)
    assert machine.final == 3
    rubbish = tale.contribution("dan", line[0])
    beside = tale.checkpoint(line[0], slot=2, by="dan", accepted=[rubbish], model_digest=id_of("x"))
    actions = machine.receive(beside)
    assert only(Keep, actions).envelope == beside.envelope
    assert not some(CheckDelta, actions)
    assert not some(Merge, actions)
    assert beside.id not in machine.state.unverified
    assert machine.restarted().state.left_behind.keys() == {beside.id}


def test_a_branch_that_was_open_when_another_became_final_is_left_behind_and_its_deltas_wait_for_nobody() -> None:
    tale = story()
    machine = reader(tale, 12)
    slow = tale.contribution("dan")
    machine.verdicts[slow.id] = None
    beside = tale.checkpoint(tale.genesis, slot=1, by="dan", accepted=[slow])
    machine.receive(beside)
    assert beside.id in machine.state.unverified
    machine.receive(*final_line(tale, range(2, 10)))
    assert machine.final == 7
    assert not machine.state.unverified
    assert slow.id not in machine.state.candidates


def test_when_votes_make_such_a_branch_final_too_it_is_recomputed_for_the_roots_choice() -> None:
    """Three of four vote for both chains."""
    tale = story()
    machine = reader(tale, 12)
    ours = tale.line(tale.genesis, (1, 2), "ada bob cyd")
    machine.receive(*ours, *tale.votes("ada bob cyd", ours[-1]))
    assert machine.final == 1
    theirs = tale.round_of(tale.genesis, slot=5, by="bob")
    above = tale.grow(theirs, slot=6, by="bob", votes=tale.votes("ada bob dan", theirs))
    assert not some(Merge, machine.receive(theirs, above))
    actions = machine.receive(*tale.votes("ada bob dan", above))
    assert only(Alarm, actions).theirs == theirs.here
    assert some(Merge, machine.at(13))
    assert machine.state.tree.nodes[above.id].verdict
    assert not machine.state.left_behind


def test_far_below_what_is_final_one_checkpoint_of_a_slot_and_proposer_has_a_place() -> None:
    """Six rounds are final, and deltas count for three: nothing can come of what parted after the first."""
    tale = story()
    line = final_line(tale, range(1, 9))
    machine = reader(tale, 12)
    machine.receive(*line)
    assert machine.final == 6
    mine = [tale.contribution("dan", line[0], num_tokens=1 + number) for number in range(3)]
    first, second, third = (tale.grow(line[0], slot=2, by="dan", accepted=[each], holds=None) for each in mine)
    assert dropped(machine.receive(first)) == []
    assert dropped(machine.receive(second)) == [(None, "comes after 1 others of its proposer and slot")]
    near = [tale.grow(line[5], slot=9, by="dan", votes=tale.votes("ada bob"[:n], line[5]), holds=None) for n in (0, 3)]
    assert dropped(machine.receive(*near)) == []
    machine.receive(tale.vote("dan", second))
    assert len(dropped(machine.receive(second))) == 1, "its own vote is no reason"
    machine.receive(tale.vote("cyd", second), second)
    assert {first.id, second.id} <= machine.restarted().state.tree.nodes.keys()
    assert third.id not in machine.state.tree.nodes


def test_deltas_of_a_branch_that_was_left_count_on_the_one_that_was_kept_as_far_as_they_can() -> None:
    tale = story()
    line = final_line(tale, range(1, 9))
    machine = reader(tale, 12)
    machine.receive(*line)
    late, lost = tale.contribution("dan", line[5]), tale.contribution("dan", line[0])
    machine.receive(
        tale.checkpoint(line[5], slot=7, by="dan", accepted=[late]),
        tale.checkpoint(line[0], slot=2, by="dan", accepted=[lost]),
    )
    assert late.id in machine.state.candidates
    assert lost.id not in machine.state.candidates


def test_a_contribution_on_something_ancient_is_judged_without_walking_back_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tale = story()
    state = tale.genesis
    for slot in range(1, 200):
        state = tale.round_of(state, slot=slot, by="bob")
    num_lookups = 0

    def lookup(checkpoint: bytes) -> ChainState | None:
        nonlocal num_lookups
        num_lookups += 1
        return tale.lookup(checkpoint)

    side = tale.round_of(tale.genesis, slot=1, by="cyd")
    for base in (tale.genesis, side):
        with pytest.raises(RejectError) as caught:
            chain.contribution_staleness(
                tale.contribution("dan", base), state, genesis=tale.swarm.genesis, lookup=lookup
            )
        assert caught.value.rule is Rule.STALE
    assert num_lookups < 10


# ---- floods of what is sound on its own -----------------------------------------------------------


def test_one_vote_of_a_certifier_for_a_target_is_kept_and_one_piece_of_evidence() -> None:
    """Six rivals of one slot, all voted for by dan: six votes, one accusation."""
    tale = story(*SEVEN)
    machine = reader(tale, 3)
    rivals = [tale.grow(tale.genesis, slot=1, by=name) for name in SEVEN[:6]]
    votes = [tale.vote("dan", rival) for rival in rivals]
    actions = machine.receive(*rivals, *votes, *votes)
    assert len(some(SignEvidence, actions)) == 1
    assert [len(machine.state.tree.votes_for(rival.id)) for rival in rivals] == [1] * 6


def test_a_flood_of_evidence_leaves_one_piece_for_each_accused() -> None:
    tale = story(*SEVEN)
    machine = reader(tale, 3)
    pieces = []
    for name in ("dan", "eve"):
        votes = [tale.swarm.vote(name, target=id_of(f"{number}"), target_slot=2) for number in range(5)]
        pieces += [tale.evidence(votes[0], other, by=f"sybil {i}") for i, other in enumerate(votes[1:])]
    actions = machine.receive(*pieces)
    assert {piece.accused for piece in machine.state.evidence.values()} == {key("dan"), key("eve")}
    assert len(some(Keep, actions)) == len(machine.state.evidence) == 2


def test_of_one_certifier_one_refusal_of_a_checkpoint_is_kept() -> None:
    tale = story()
    machine = reader(tale, 3)
    one = tale.grow(tale.genesis, slot=1)
    machine.receive(one)

    def refusal(name: str, detail: str) -> Envelope:
        return make_refusal(key_of(name), swarm=tale.swarm.id, checkpoint=one.id, rule=Rule.DIGEST, detail=detail)

    actions = machine.receive(*(refusal("dan", f"differs in byte {number}") for number in range(9)))
    assert len(some(Keep, actions)) == 1
    words = f"is a second refusal by {key('dan').hex()[:12]} of checkpoint {one.id.hex()[:12]}, 1 allowed"
    assert dropped(actions) == [(Rule.DUPLICATE, words)] * 8
    assert not any(drop.blames_sender for drop in some(Drop, actions))
    assert len(some(Keep, machine.receive(refusal("cyd", "differs")))) == 1


def test_a_members_requests_do_not_pile_up() -> None:
    """Each stop and take-up is newer than the last, and valid after it; the root may say as much as it likes."""
    tale = story()
    machine = reader(tale, 3)
    flood = [
        tale.take_up("dan", at_ms=10 + number)
        if number % 2
        else tale.leave("dan", at_ms=10 + number, certifier_role_only=True)
        for number in range(30)
    ]
    found = dropped(machine.receive(*flood))
    assert len(machine.state.records) == 8
    assert found[0] == (None, "comes after 8 others of its author that wait to be carried")
    machine.receive(*(tale.grant(f"invite {number}") for number in range(20)))
    assert len(machine.state.records) == 28


def test_refused_objects_are_remembered_only_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_REFUSED", 10)
    tale = story()
    machine = reader(tale, 3)
    one = tale.grow(tale.genesis, slot=1)
    machine.receive(one)
    num_known = len(machine.state.known)
    for number in range(30):
        machine.receive(tale.swarm.vote(f"sybil {number}", target=one.id, target_slot=1))
    assert len(machine.state.known) == num_known + 10
    assert len(machine.state.refused) == 10
