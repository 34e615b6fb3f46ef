"""Whose turn it is, when, and what a proposal holds (protocol section 5). Slots take 1000 ms, the grace is 100 ms."""

from typing import Any

import pytest
from chains import Story, key, swarm_with
from machines import Machine, only, some
from swarms import id_of

from fullrank_protocol import proposing
from fullrank_protocol.chain import ChainState
from fullrank_protocol.checkpoint import Checkpoint, CheckpointKind
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.errors import Rule
from fullrank_protocol.proposing import draw, grace_ms, proposer_order, turn_ms
from fullrank_protocol.round_io import (
    Adopt,
    CheckDelta,
    DeltaChecked,
    DeltaUnavailable,
    Merge,
    MergeFailed,
    SignCheckpoint,
)
from fullrank_protocol.wire import objects_pb2 as wire

THREE = ("ada", "bob", "cyd")
FOUR = (*THREE, "dan")
TWENTY = tuple(f"founder {number}" for number in range(20))


def story(*founders: str, **rules: Any) -> Story:
    return Story(swarm_with(*founders, **rules))


def order_of(tale: Story, parent: ChainState, slot: int) -> list[str]:
    """Names in the order of their turns."""
    names = {key(name): name for name in (*FOUR, "eve", *TWENTY)}
    return [names[each] for each in proposer_order(parent, swarm=tale.swarm.id, slot=slot)]


def turn_of(tale: Story, name: str, head: ChainState, *, slot: int, seen_ms: int | None = None) -> int:
    """Milliseconds after the slot's end at which a name may propose."""
    end_ms = tale.swarm.genesis.slot_end_ms(slot)
    seen_ms = end_ms if seen_ms is None else seen_ms
    turn = turn_ms(tale.tree, head, slot=slot, key=key(name), head_seen_ms=seen_ms)
    assert turn is not None
    return turn - end_ms


def refused(contribution: Contribution, rule: Rule = Rule.RANK, detail: str = "is too high") -> DeltaChecked:
    return DeltaChecked(contribution_id=contribution.id, rule=rule, detail=detail)


def members_of(checkpoint: Checkpoint) -> set[bytes]:
    return {accepted.contribution.member for accepted in checkpoint.accepted}


# ---- turns -----------------------------------------------------------------------------------------


def test_nobody_can_choose_the_order_of_the_turns() -> None:
    tale = story(*FOUR)
    by_draw = sorted(FOUR, key=lambda name: draw(tale.swarm.id, 3, key(name)))
    assert order_of(tale, tale.genesis, 3) == by_draw
    parents = [tale.grow(tale.genesis, slot=1, by=name) for name in FOUR]
    assert {tuple(order_of(tale, parent, 3)) for parent in parents} == {tuple(by_draw)}
    assert len({tuple(order_of(tale, tale.genesis, slot)) for slot in range(1, 9)}) > 1


def test_the_kth_certifier_may_propose_k_graces_after_the_slot() -> None:
    tale = story(*FOUR)
    order = order_of(tale, tale.genesis, 1)
    assert [turn_of(tale, name, tale.genesis, slot=1) for name in order] == [0, 100, 200, 300]


def test_a_checkpoint_before_its_proposers_turn_is_looked_at_when_the_turn_has_come() -> None:
    tale = story(*FOUR)
    first, *_, last = order_of(tale, tale.genesis, 1)
    machine = Machine(tale, first, trains=False)
    machine.at(2)
    hasty = tale.grow(tale.genesis, slot=1, by=last)
    assert machine.receive(hasty, early=True) == []
    assert not some(Adopt, machine.at(2, 299))
    assert only(Adopt, machine.at(2, 300)).head == hasty.here


def test_a_hasty_empty_checkpoint_does_not_take_the_turn_of_whoever_merges() -> None:
    tale = story(*FOUR)
    first, *_, last = order_of(tale, tale.genesis, 1)
    machine = Machine(tale, first)
    mine = tale.contribution("ada")
    machine.at(1)
    machine.receive(mine)
    machine.receive(tale.grow(tale.genesis, slot=1, by=last), early=True)
    assert members_of(machine.proposed(machine.at(2))) == {key("ada")}
    machine.at(2, 999)
    assert machine.head.round == 1


def test_no_checkpoint_waits_for_its_turn_longer_than_a_window() -> None:
    """Of twenty, the last has turn 19: nineteen graces would be almost two windows."""
    tale = story(*TWENTY)
    last = order_of(tale, tale.genesis, 1)[-1]
    machine = Machine(tale, "ada", certifies=False)
    machine.at(2, 500)
    hasty = tale.grow(tale.genesis, slot=1, by=last)
    assert machine.receive(hasty, early=True) == []
    assert only(Adopt, machine.at(3)).head == hasty.here


def test_who_is_no_certifier_has_no_turn() -> None:
    tale = story(*FOUR)
    assert turn_ms(tale.tree, tale.genesis, slot=1, key=key("zoe"), head_seen_ms=0) is None


def test_the_grace_doubles_with_each_checkpoint_after_the_newest_justified_one_up_to_the_window() -> None:
    tale = story(*FOUR)
    state, graces = tale.genesis, []
    for slot in (1, 2, 5, 6, 9):
        graces.append(grace_ms(tale.tree, state))
        state = tale.grow(state, slot=slot)
    assert graces == [100, 200, 400, 800, 1000]
    for vote in tale.votes("ada bob cyd", state):
        tale.tree.add_vote(vote)
    assert grace_ms(tale.tree, state) == 100


def test_a_proposer_waits_for_its_head_to_be_justified_but_not_for_ever() -> None:
    """One checkpoint above the final one: patience is 100 * 2^1 ms after the head was first seen."""
    tale = story(*FOUR)
    head = tale.grow(tale.genesis, slot=1)
    end_ms = tale.swarm.genesis.slot_end_ms(2)
    first = order_of(tale, head, 2)[0]
    assert turn_of(tale, first, head, slot=2, seen_ms=end_ms - 900) == 0
    assert turn_of(tale, first, head, slot=2, seen_ms=end_ms - 50) == 150
    assert turn_of(tale, first, head, slot=2, seen_ms=end_ms + 30) == 230
    for vote in tale.votes("ada bob cyd", head):
        tale.tree.add_vote(vote)
    assert turn_of(tale, first, head, slot=2, seen_ms=end_ms + 30) == 0


@pytest.mark.parametrize(("pending", "patience_ms"), [(1, 200), (2, 400), (3, 800), (4, 1600), (5, 3000), (6, 3000)])
def test_the_patience_doubles_with_each_checkpoint_that_is_not_final_up_to_three_windows(
    pending: int, patience_ms: int
) -> None:
    tale = story(*FOUR)
    head = tale.genesis
    for slot in range(1, pending + 1):
        head = tale.grow(head, slot=slot)
    first = order_of(tale, head, pending + 1)[0]
    assert turn_of(tale, first, head, slot=pending + 1) == patience_ms


def test_a_proposer_that_may_not_wait_longer_comes_half_a_grace_later_for_each_slot_that_was_skipped() -> None:
    tale = story(*FOUR)
    head = tale.grow(tale.genesis, slot=1)
    for slot, skipped in ((2, 0), (3, 1), (6, 4)):
        first = order_of(tale, head, slot)[0]
        assert turn_of(tale, first, head, slot=slot) == 200 + 50 * skipped


def test_however_many_slots_were_skipped_the_first_in_order_comes_within_half_a_window() -> None:
    tale = story(*FOUR)
    head = tale.grow(tale.genesis, slot=1)
    for slot in (12, 13, 3000):
        first = order_of(tale, head, slot)[0]
        assert turn_of(tale, first, head, slot=slot, seen_ms=0) == 500


def test_proposers_that_have_waited_for_their_head_still_come_one_after_the_other() -> None:
    """All patience ends at the same moment; proposals of that moment would divide the votes."""
    tale = story(*FOUR)
    head = tale.grow(tale.genesis, slot=1)
    turns = [turn_of(tale, name, head, slot=2, seen_ms=None) for name in order_of(tale, head, 2)]
    assert turns == [200, 400, 600, 800]


# ---- when something is proposed --------------------------------------------------------------------


def test_the_first_in_order_proposes_when_the_slot_has_ended_and_the_others_only_without_it() -> None:
    tale = story(*FOUR)
    first, second, *_ = order_of(tale, tale.genesis, 1)
    one, two = Machine(tale, first), Machine(tale, second)
    mine = tale.contribution("ada")
    for machine in (one, two):
        machine.at(1, 500)
        machine.receive(mine)
        assert not some(SignCheckpoint, machine.at(1, 999))
    proposal = one.proposed(one.at(2))
    assert (proposal.slot, proposal.proposer) == (1, key(first))
    assert not some(SignCheckpoint, two.at(2, 99))
    assert not some(SignCheckpoint, two.receive(proposal))
    assert not some(SignCheckpoint, two.at(2, 100))


def test_the_second_in_order_proposes_a_grace_later_where_the_first_is_away() -> None:
    tale = story(*FOUR)
    second = order_of(tale, tale.genesis, 1)[1]
    machine = Machine(tale, second)
    machine.at(1)
    machine.receive(tale.contribution("ada"))
    assert not some(SignCheckpoint, machine.at(2, 99))
    assert machine.proposed(machine.at(2, 100)).slot == 1


def test_only_the_newest_slot_that_has_ended_is_proposed_for() -> None:
    tale = story()
    machine = Machine(tale)
    machine.at(1)
    machine.receive(tale.contribution("ada"))
    assert machine.proposed(machine.at(7)).slot == 6


def test_one_proposal_a_slot() -> None:
    tale = story(*THREE)
    machine = Machine(tale, order_of(tale, tale.genesis, 1)[0])
    machine.at(1)
    machine.receive(tale.contribution("ada"))
    assert len(some(SignCheckpoint, machine.at(2))) == 1
    machine.receive(tale.contribution("bob"))
    assert not some(SignCheckpoint, machine.at(2, 900))


def test_slot_0_belongs_to_the_genesis() -> None:
    tale = story()
    machine = Machine(tale)
    machine.receive(tale.contribution("ada"))
    assert not some(SignCheckpoint, machine.at(1))
    assert some(SignCheckpoint, machine.at(2))


def test_with_nothing_to_merge_and_all_final_the_slot_stays_empty() -> None:
    tale = story()
    machine = Machine(tale)
    for slot in range(1, 6):
        assert not some(SignCheckpoint, machine.at(slot))


def test_empty_checkpoints_finish_the_finality_of_the_last_normal_one_and_then_stop() -> None:
    tale = story()
    machine = Machine(tale)
    machine.at(1)
    machine.receive(tale.contribution("ada"))
    normal = machine.proposed(machine.at(2))
    assert (normal.kind, normal.slot, machine.final) == (CheckpointKind.NORMAL, 1, 0)
    empty = machine.proposed(machine.at(3))
    assert (empty.kind, empty.slot, empty.round) == (CheckpointKind.EMPTY, 2, 1)
    assert empty.model_digest == normal.model_digest
    assert [vote.target for vote in empty.votes] == [normal.id]
    assert machine.final == 1
    assert not any(some(SignCheckpoint, machine.at(slot)) for slot in range(4, 9))


def test_after_a_skipped_slot_two_empty_checkpoints_finish_it() -> None:
    tale = story()
    machine = Machine(tale)
    machine.at(1)
    machine.receive(tale.contribution("ada"))
    machine.at(2)
    slots = [
        machine.proposed(actions).slot for slot in range(4, 9) if some(SignCheckpoint, actions := machine.at(slot))
    ]
    assert slots == [3, 4]
    assert machine.final == 3


def test_a_rival_that_holds_or_is_being_recomputed_is_not_rivalled() -> None:
    tale = story(*FOUR)
    second = order_of(tale, tale.genesis, 1)[1]
    machine = Machine(tale, second)
    slow = tale.contribution("bob", num_tokens=7)
    machine.verdicts[slow.id] = None
    mine = tale.contribution("ada")
    machine.at(1)
    machine.receive(mine)
    machine.at(2)
    machine.receive(tale.checkpoint(tale.genesis, slot=1, by="ada", accepted=[mine, slow]))
    assert not some(SignCheckpoint, machine.at(2, 990))


def test_a_rival_that_was_refused_is_replaced_at_the_next_turn() -> None:
    tale = story(*FOUR)
    first, second = order_of(tale, tale.genesis, 1)[:2]
    machine = Machine(tale, second)
    mine = tale.contribution("ada")
    machine.at(1)
    machine.receive(mine)
    machine.at(2)
    machine.receive(tale.checkpoint(tale.genesis, slot=1, by=first, accepted=[mine], model_digest=id_of("wrong")))
    proposal = machine.proposed(machine.at(2, 100))
    assert members_of(proposal) == {key("ada")}
    assert machine.head.id == proposal.id


def test_while_something_justified_is_not_recomputed_here_nothing_is_proposed() -> None:
    tale = story(*FOUR)
    machine = Machine(tale, "ada")
    slow = tale.contribution("bob")
    machine.verdicts[slow.id] = None
    machine.at(1)
    machine.receive(tale.contribution("ada"))
    rival = tale.grow(tale.genesis, slot=1, by="bob", accepted=[slow])
    machine.at(1, 999)
    machine.receive(rival, *tale.votes("bob cyd dan", rival))
    assert not any(some(SignCheckpoint, machine.at(slot, 900)) for slot in (2, 3, 4))
    actions = machine.feed(DeltaChecked(contribution_id=slow.id))
    assert some(Adopt, actions)[0].head == rival.here


def test_a_proposal_waits_half_a_grace_for_deltas_on_the_way() -> None:
    tale = story()
    machine = Machine(tale)
    late = tale.contribution("ada", num_tokens=7)
    machine.verdicts[late.id] = None
    machine.at(1)
    machine.receive(late)
    machine.receive(tale.take_up("ada"))
    assert not some(SignCheckpoint, machine.at(2, 49))
    assert machine.state.candidates[late.id].status.value == "checking"


def test_a_delta_that_arrives_in_that_time_is_in() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, order_of(tale, tale.genesis, 1)[0])
    here, late = tale.contribution("ada"), tale.contribution("bob")
    machine.verdicts[late.id] = None
    machine.at(1)
    machine.receive(here, late)
    assert not some(SignCheckpoint, machine.at(2, 49))
    proposal = machine.proposed(machine.feed(DeltaChecked(contribution_id=late.id)))
    assert members_of(proposal) == {key("ada"), key("bob")}


def test_a_merge_that_outlasts_its_slot_is_still_proposed() -> None:
    tale = story()
    machine = Machine(tale, by_hand=True)
    machine.at(1)
    mine = tale.contribution("ada")
    machine.receive(mine)
    machine.feed(DeltaChecked(contribution_id=mine.id))
    merge = only(Merge, machine.at(2))
    assert not some(Merge, machine.at(5))
    assert machine.proposed(machine.feed(machine.merged(merge))).slot == 1


def test_a_proposal_whose_head_moved_on_is_dropped() -> None:
    tale = story(*FOUR)
    machine = Machine(tale, order_of(tale, tale.genesis, 1)[0], by_hand=True)
    mine = tale.contribution("ada")
    machine.at(1)
    machine.receive(mine)
    machine.feed(DeltaChecked(contribution_id=mine.id))
    merge = only(Merge, machine.at(2))
    machine.receive(tale.grow(tale.genesis, slot=1, by="bob"))
    assert machine.state.proposal is None
    assert not some(SignCheckpoint, machine.feed(machine.merged(merge)))


def test_a_merge_that_failed_here_is_tried_again_after_a_pause() -> None:
    tale = story()
    machine = Machine(tale, by_hand=True)
    mine = tale.contribution("ada")
    machine.at(1)
    machine.receive(mine)
    machine.feed(DeltaChecked(contribution_id=mine.id))
    merge = only(Merge, machine.at(2))
    failed = machine.feed(MergeFailed(key=merge.key, rule=None, detail="disk full"))
    assert only(CheckDelta, failed).contribution == mine
    assert not some(Merge, machine.feed(DeltaChecked(contribution_id=mine.id)))
    assert not some(Merge, machine.at(4, 999))
    again = only(Merge, machine.at(5))
    assert again.key == merge.key
    assert machine.proposed(machine.feed(machine.merged(again))).accepted


# ---- what a proposal holds -------------------------------------------------------------------------


def test_a_blob_that_cannot_be_had_leaves_its_contribution_out_and_eligible() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, order_of(tale, tale.genesis, 1)[0])
    here, withheld = tale.contribution("ada"), tale.contribution("bob")
    machine.verdicts[withheld.id] = DeltaUnavailable(contribution_id=withheld.id)
    machine.at(1)
    machine.receive(here, withheld)
    first = machine.proposed(machine.at(2))
    assert members_of(first) == {key("ada")}
    assert first.refused == ()
    machine.verdicts[withheld.id] = DeltaChecked(contribution_id=withheld.id)
    machine.at(4, 999)
    (second,) = [
        machine.proposed(actions)
        for slot in range(5, 9)
        if some(SignCheckpoint, actions := machine.at(slot, 999)) and machine.proposed(actions).accepted
    ]
    assert members_of(second) == {key("bob")}


def test_a_refused_contribution_is_carried_with_its_reason() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, order_of(tale, tale.genesis, 1)[0])
    good, bad = tale.contribution("ada"), tale.contribution("bob")
    machine.verdicts[bad.id] = refused(bad, Rule.SCALE, "found exponent 9, required -40 to 0")
    machine.at(1)
    machine.receive(good, bad)
    proposal = machine.proposed(machine.at(2))
    assert members_of(proposal) == {key("ada")}
    (entry,) = proposal.refused
    assert (entry.contribution.id, entry.rule, entry.detail) == (
        bad.id,
        Rule.SCALE,
        "found exponent 9, required -40 to 0",
    )
    machine.receive(*(tale.vote(name, machine.head) for name in ("ada", "bob")))
    assert not machine.proposed(machine.at(3, 999)).refused


def test_a_refused_contribution_alone_is_worth_an_empty_checkpoint() -> None:
    tale = story()
    machine = Machine(tale)
    bad = tale.contribution("ada")
    machine.verdicts[bad.id] = refused(bad)
    machine.at(1)
    machine.receive(bad)
    proposal = machine.proposed(machine.at(2))
    assert (proposal.kind, len(proposal.refused), proposal.round) == (CheckpointKind.EMPTY, 1, 0)
    assert machine.head.id == proposal.id


def test_a_long_and_ugly_reason_is_cut_to_what_a_checkpoint_may_carry() -> None:
    tale = story()
    machine = Machine(tale)
    bad = tale.contribution("ada")
    machine.verdicts[bad.id] = refused(bad, Rule.SHAPE, "module \u202e" + "ü" * 900)
    machine.at(1)
    machine.receive(bad)
    (entry,) = machine.proposed(machine.at(2)).refused
    assert len(entry.detail.encode()) <= 400


def test_above_the_most_contributions_a_cohort_is_drawn_and_the_rest_stay_eligible() -> None:
    tale = story(*FOUR, rule={"max_contributions": 3})
    machine = Machine(tale, order_of(tale, tale.genesis, 1)[0])
    machine.at(1)
    machine.receive(*(tale.contribution(name) for name in FOUR))
    by_draw = sorted(FOUR, key=lambda name: draw(tale.swarm.id, 1, key(name)))
    assert members_of(machine.proposed(machine.at(2))) == {key(name) for name in by_draw[:3]}
    seen = [machine.proposed(actions) for slot in range(3, 9) if some(SignCheckpoint, actions := machine.at(slot, 999))]
    assert key(by_draw[3]) in set().union(*(members_of(proposal) for proposal in seen))


def test_a_late_contribution_counts_with_its_staleness() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, "ada")
    machine.at(1)
    machine.receive(tale.round_of(tale.genesis, slot=1))
    late = tale.contribution("bob")
    actions = machine.receive(late)
    for slot in range(2, 6):
        actions += machine.at(slot, 999)
    merge = [each for each in some(Merge, actions) if late.id in each.key.contribution_ids][-1]
    assert [entry.staleness for entry in merge.entries] == [1]


def test_all_votes_that_the_chain_lacks_are_carried_once() -> None:
    tale = story(*FOUR)
    machine = Machine(tale, order_of(tale, tale.genesis, 2)[0])
    head = tale.round_of(tale.genesis, slot=1)
    machine.at(2)
    machine.receive(head, *tale.votes("ada bob cyd dan", head))
    proposal = machine.proposed(machine.at(3))
    assert {vote.voter for vote in proposal.votes} == {key(name) for name in FOUR}
    again = next(actions for slot in range(4, 9) if some(SignCheckpoint, actions := machine.at(slot, 999)))
    assert all(vote.target != head.id for vote in machine.proposed(again).votes)


def test_votes_beyond_what_fits_wait_and_the_newest_targets_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposing, "MAX_CARRIED_VOTES", 3)
    tale = story(*FOUR)
    one = tale.grow(tale.genesis, slot=1)
    two = tale.grow(one, slot=2)
    for vote in [*tale.votes("ada bob", one), *tale.votes("cyd dan", two)]:
        tale.tree.add_vote(vote)
    assert [vote.target_slot for vote in proposing.votes_to_carry(tale.tree, two)] == [2, 2, 1]


def test_records_wait_for_a_checkpoint_and_get_one() -> None:
    tale = story()
    machine = Machine(tale)
    grant = tale.grant()
    machine.at(1)
    machine.receive(grant, tale.admission("bob", grant))
    proposal = machine.proposed(machine.at(2))
    assert [record.type for record in proposal.records] == [wire.GRANT, wire.ADMISSION]
    assert machine.head.members.is_member(key("bob"))


def test_one_certifier_change_at_a_time_is_carried_and_empty_checkpoints_make_room_for_the_next() -> None:
    tale = story()
    machine = Machine(tale)
    grant = tale.grant()
    machine.at(1)
    machine.receive(grant, tale.admission("bob", grant), tale.admission("cyd", grant))
    machine.receive(tale.take_up("bob"), tale.take_up("cyd"))
    changed: list[tuple[int, int]] = []
    for slot in range(2, 12):
        if some(SignCheckpoint, machine.at(slot, 999)):
            changed.append((machine.head.slot, len(machine.head.members.certifiers)))
    sizes = [size for _, size in changed]
    assert sizes[0] == 2
    assert sorted(sizes) == sizes
    first_with_three = next(slot for slot, size in changed if size == 3)
    assert first_with_three == changed[0][0] + 3


def test_strangers_have_few_places_and_their_refused_ones_take_them_too() -> None:
    """Two fifths of five places are two: of four strangers with bad deltas, two can be told why."""
    tale = story("ada", policy=wire.OPEN, rule={"max_contributions": 5, "open_share_micro": 400_000})
    machine = Machine(tale)
    strangers = [tale.contribution(name) for name in ("wim", "xan", "yas", "zoe")]
    machine.verdicts.update({each.id: refused(each) for each in strangers})
    machine.at(1)
    machine.receive(tale.contribution("ada"), *strangers)
    proposal = machine.proposed(machine.at(2))
    assert members_of(proposal) == {key("ada")}
    assert len(proposal.refused) == 2
    assert machine.head.id == proposal.id


def test_good_strangers_go_before_bad_ones() -> None:
    tale = story("ada", policy=wire.OPEN, rule={"max_contributions": 5, "open_share_micro": 400_000})
    machine = Machine(tale)
    strangers = [tale.contribution(name) for name in ("wim", "xan", "yas", "zoe")]
    machine.verdicts.update({each.id: refused(each) for each in strangers[1:]})
    machine.at(1)
    machine.receive(tale.contribution("ada"), *strangers)
    proposal = machine.proposed(machine.at(2))
    assert members_of(proposal) == {key("ada"), key("wim")}
    assert len(proposal.refused) == 1
    assert machine.head.id == proposal.id


def test_a_flood_of_refused_contributions_leaves_a_valid_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposing, "MAX_CARRIED_REFUSED", 2)
    tale = story(*FOUR)
    machine = Machine(tale, order_of(tale, tale.genesis, 1)[0])
    bad = [tale.contribution(name) for name in FOUR]
    machine.verdicts.update({each.id: refused(each) for each in bad})
    machine.at(1)
    machine.receive(*bad)
    assert len(machine.proposed(machine.at(2)).refused) == 2


def test_a_checkpoint_never_grows_beyond_the_swarms_own_size() -> None:
    """Of 200 votes with some 220 bytes each, 32 KiB hold about 140."""
    founders = tuple(f"founder {number}" for number in range(100))
    tale = story(*founders, limits={"max_checkpoint_bytes": 32 << 10})
    machine = Machine(tale, "founder 7")
    head = tale.grow(tale.genesis, slot=1, by="founder 1")
    second = tale.grow(head, slot=2, by="founder 1")
    machine.at(2)
    machine.receive(head, second, *(tale.vote(name, target) for name in founders for target in (head, second)))
    state = machine.state
    choice = proposing.choose_contributions(state, machine.head, slot=3)
    records = proposing.choose_records(state, machine.head, slot=3)
    built = proposing.build_checkpoint(state, machine.head, slot=3, choice=choice, records=records, merged=None)
    assert 30 << 10 < built.ByteSize() < 32 << 10
    assert 100 < len(built.votes) < 200
