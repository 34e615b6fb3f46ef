"""A chain without finality: retiring the vanished, provisional finality, and the root's choice (protocol section 8)."""

import pytest
from chains import Story, key, swarm_with
from machines import Machine
from swarms import key_of

from fullrank_protocol.chain import ChainState
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.membership import make_revocation
from fullrank_protocol.provisional import provisional_finality
from fullrank_protocol.round_io import Alarm, CastVote, ChoiceAdopted, Drop, Keep, Settled, SignCheckpoint
from fullrank_protocol.round_state import DeltaStatus
from fullrank_protocol.vote import make_choice

FIVE = ("ada", "bob", "cyd", "dan", "eve")
STALL = 4


def story(*names: str, **swarm: object) -> Story:
    return Story(swarm_with(*names, timing={"stall_slots": STALL}, **swarm))  # type: ignore[arg-type]


def cast(tale: Story, names: str, target: ChainState) -> None:
    for vote in tale.votes(names, target):
        tale.tree.add_vote(vote)


def settled(tale: Story, names: str) -> ChainState:
    """A chain whose slot 1 is final, in its own view from slot 3 on."""
    return tale.line(tale.genesis, [1, 2, 3], names)[-1]


def stalled(tale: Story, names: str) -> ChainState:
    """The chain above slot 3 when only these vote: slots 4 and 5 are not justified."""
    return tale.line(settled(tale, " ".join(FIVE)), [4, 5], names)[-1]


# ---- retiring --------------------------------------------------------------------------------------


def test_before_a_stall_the_root_retires_one_at_a_time() -> None:
    tale = story(*FIVE)
    tip = settled(tale, " ".join(FIVE))
    with pytest.raises(RejectError, match="by 2 keys, 1 is allowed") as caught:
        tale.grow(tip, slot=4, records=[tale.retirement("dan"), tale.retirement("eve")])
    assert caught.value.rule is Rule.CERTIFIERS


def test_in_a_stall_the_vanished_are_retired_together_and_finality_comes_back() -> None:
    tale = story(*FIVE)
    tip = stalled(tale, "ada bob cyd")
    assert tip.final.slot == 1
    cut = tale.grow(
        tip, slot=6, votes=tale.votes("ada bob cyd", tip), records=[tale.retirement("dan"), tale.retirement("eve")]
    )
    assert cut.newest_set == cut.second_set == {key("ada"), key("bob"), key("cyd")}
    last = tale.line(cut, [7, 8], "ada bob cyd")[-1]
    assert last.final == cut.here
    assert last.newest_set == last.second_set == {key("ada"), key("bob"), key("cyd")}
    assert tale.tree.final == cut.here


def test_the_second_set_of_a_retirement_may_be_older_than_it_and_still_leaves_the_retired_out() -> None:
    tale = story(*FIVE)
    cut = tale.grow(stalled(tale, "ada bob cyd"), slot=6, records=[tale.retirement("dan"), tale.retirement("eve")])
    *_, last = tale.line(cut, [7, 8], "ada bob cyd")
    assert last.final == cut.here
    assert last.final_before.slot < cut.slot
    assert key("dan") not in last.second_set


def test_two_of_five_alone_are_not_enough_where_nobody_was_retired() -> None:
    tale = story(*FIVE)
    *_, last = tale.line(stalled(tale, "ada bob cyd"), [6, 7, 8, 9], "ada bob cyd")
    assert last.final.slot == 1


def test_the_retired_vote_no_more() -> None:
    tale = story(*FIVE)
    cut = tale.grow(stalled(tale, "ada bob cyd"), slot=6, records=[tale.retirement("dan")])
    with pytest.raises(RejectError, match="no certifier for this target"):
        tale.tree.add_vote(tale.vote("dan", cut))


def test_with_a_retirement_in_a_stall_nothing_else_changes_the_certifiers() -> None:
    tale = story(*FIVE)
    tip = stalled(tale, "ada bob cyd")
    with pytest.raises(RejectError, match="by 2 keys, required are exactly the 1 that the root removes"):
        tale.grow(tip, slot=6, records=[tale.leave("cyd"), tale.retirement("dan")])


def test_the_root_may_also_revoke_in_a_stall() -> None:
    tale = story(*FIVE)
    records = [
        make_revocation(key_of("ada"), swarm=tale.swarm.id, subject=key(n), issued_at_ms=9) for n in ("dan", "eve")
    ]
    cut = tale.grow(stalled(tale, "ada bob cyd"), slot=6, records=records)
    assert cut.newest_set == {key("ada"), key("bob"), key("cyd")}


def test_who_left_or_was_excluded_before_the_stall_counts_no_more_in_it() -> None:
    """Of three, one leaves and is gone at once: the two others are not a quorum of the old set."""
    tale = story("ada", "bob", "cyd")
    tip = settled(tale, "ada bob cyd")
    left = tale.grow(tip, slot=4, votes=tale.votes("ada bob cyd", tip), records=[tale.leave("cyd")])
    assert key("cyd") in left.newest_set
    waiting = tale.line(left, [5, 6], "ada bob")[-1]
    assert waiting.final.slot == 2
    assert key("cyd") not in waiting.newest_set
    last = tale.line(waiting, [7, 8], "ada bob")[-1]
    assert last.final == waiting.here


def test_a_retired_certifier_that_is_back_counts_again() -> None:
    tale = story(*FIVE)
    cut = tale.grow(stalled(tale, "ada bob cyd"), slot=6, records=[tale.retirement("dan"), tale.retirement("eve")])
    tip = tale.line(cut, [7, 8, 9], "ada bob cyd")[-1]
    back = tale.grow(tip, slot=10, votes=tale.votes("ada bob cyd", tip), records=[tale.take_up("dan", at_ms=99)])
    tip = tale.line(back, [11, 12], "ada bob cyd")[-1]
    assert tip.final == back.here
    assert key("dan") in tip.newest_set
    cast(tale, "dan", tip)


def test_a_proposer_carries_all_retirements_of_a_stall_at_once() -> None:
    tale = story(*FIVE)
    machine = Machine(tale)
    tip = stalled(tale, "ada bob cyd")
    chain = [node.state for node in tale.tree.chain(tip.id)]
    machine.at(6)
    machine.receive(*chain, tale.retirement("dan"), tale.retirement("eve"))
    signed = [action for slot in range(7, 20) for action in machine.at(slot, 900) if isinstance(action, SignCheckpoint)]
    assert len(signed[0].checkpoint.records) == 2


# ---- provisional finality ----------------------------------------------------------------------------


def test_those_present_make_a_checkpoint_of_a_stalled_chain_provisionally_final() -> None:
    tale = story(*FIVE)
    tip = tale.line(stalled(tale, "ada bob cyd"), [6, 7, 8], "ada bob cyd")[-1]
    cast(tale, "ada bob", tip)
    found = provisional_finality(tale.tree, slot=9)
    assert found is not None
    assert found.at is not None
    assert found.at.slot == 7
    assert found.present == {key("ada"), key("bob"), key("cyd")}
    assert found.missing == {key("dan"), key("eve")}
    assert tale.tree.final.slot == 1


def test_more_than_two_thirds_of_those_present_are_needed() -> None:
    tale = story(*FIVE)
    tip = stalled(tale, "ada bob cyd")
    lone = tale.grow(tip, slot=7, votes=tale.votes("ada bob cyd", tip))
    cast(tale, "ada bob", lone)
    found = provisional_finality(tale.tree, slot=8)
    assert found is not None
    assert found.at == tip.here
    cast(tale, "cyd", lone)
    found = provisional_finality(tale.tree, slot=8)
    assert found is not None
    assert found.at == lone.here


def test_a_chain_that_is_not_stalled_has_no_provisional_finality() -> None:
    tale = story(*FIVE)
    tip = settled(tale, " ".join(FIVE))
    cast(tale, "ada bob cyd dan", tip)
    assert provisional_finality(tale.tree, slot=4) is None


def test_with_nobody_there_nothing_is_provisionally_final() -> None:
    tale = story(*FIVE)
    tip = settled(tale, " ".join(FIVE))
    for slot in range(4, 12):
        tip = tale.grow(tip, slot=slot)
    found = provisional_finality(tale.tree, slot=12)
    assert found is not None
    assert found.at is None
    assert found.present == frozenset()


# ---- the root's choice -------------------------------------------------------------------------------

FOUR = ("ada", "bob", "cyd", "dan")


def choice(tale: Story, at: ChainState, *, by: str = "ada", at_ms: int = 50, slot: int | None = None) -> Envelope:
    return make_choice(
        key_of(by),
        swarm=tale.swarm.id,
        checkpoint=at.id,
        slot=at.slot if slot is None else slot,
        issued_at_ms=at_ms,
    )


class Split:
    """Two final checkpoints, of slots 1 and 5, on two branches; bob and cyd voted on both."""

    def __init__(self, *, roots: int = 1) -> None:
        self.tale = tale = Story(swarm_with(*FOUR, roots=FOUR[:roots], root_threshold=roots))
        self.one = tale.grow(tale.genesis, slot=1)
        self.two = tale.grow(self.one, slot=2, votes=tale.votes("ada bob cyd", self.one))
        self.ours = [self.one, self.two, *tale.votes("ada bob cyd", self.two)]
        self.five = tale.grow(tale.genesis, slot=5, by="bob")
        self.six = tale.grow(self.five, slot=6, by="bob", votes=tale.votes("bob cyd dan", self.five))
        self.theirs = [self.five, self.six, *tale.votes("bob cyd dan", self.six)]

    def machine(self, *things: object) -> Machine:
        machine = Machine(self.tale)
        machine.at(8)
        machine.receive(*things)  # type: ignore[arg-type]
        return machine


def test_a_conflict_is_told_once_and_ends_voting_and_proposing() -> None:
    split = Split()
    machine = split.machine(*split.ours)
    alarms = [each for each in machine.receive(*split.theirs) if isinstance(each, Alarm)]
    assert alarms == [Alarm(ours=split.one.here, theirs=split.five.here)]
    later = [each for slot in range(9, 20) for each in machine.at(slot, 900)]
    assert not any(isinstance(each, Alarm | CastVote | SignCheckpoint) for each in later)


def test_a_node_on_the_chosen_chain_goes_on_by_itself() -> None:
    split = Split()
    machine = split.machine(*split.ours, *split.theirs)
    actions = machine.receive(choice(split.tale, split.one))
    assert Settled(final=split.one.here) in actions
    assert machine.state.tree.conflict is None
    later = [each for slot in range(9, 12) for each in machine.at(slot)]
    assert any(isinstance(each, SignCheckpoint) for each in later)


def test_a_node_on_the_other_chain_keeps_its_own_until_its_owner_adopts() -> None:
    split = Split()
    machine = split.machine(*split.ours, *split.theirs)
    assert not any(isinstance(each, Settled) for each in machine.receive(choice(split.tale, split.five)))
    assert machine.state.tree.final == split.one.here
    actions = machine.feed(ChoiceAdopted(checkpoint=split.five.id))
    assert Settled(final=split.five.here) in actions
    assert machine.state.tree.final == split.five.here
    assert machine.head.id == split.six.id


def test_an_owner_cannot_adopt_what_the_root_has_not_chosen() -> None:
    split = Split()
    machine = split.machine(*split.ours, *split.theirs, choice(split.tale, split.one))
    machine = split.machine(*split.ours, *split.theirs)
    machine.feed(ChoiceAdopted(checkpoint=split.five.id))
    assert machine.state.tree.final == split.one.here
    machine.receive(choice(split.tale, split.five))
    assert machine.state.tree.final == split.five.here


def test_an_adopted_choice_survives_a_restart() -> None:
    split = Split()
    machine = split.machine(*split.ours, *split.theirs, choice(split.tale, split.five))
    machine.feed(ChoiceAdopted(checkpoint=split.five.id))
    assert machine.restarted().state.tree.final == split.five.here


def test_a_choice_that_came_before_the_conflict_prevents_it() -> None:
    split = Split()
    machine = split.machine(*split.ours, split.five, choice(split.tale, split.one))
    assert not any(isinstance(each, Alarm) for each in machine.receive(*split.theirs))
    assert machine.state.tree.final == split.one.here


def test_the_root_cannot_undo_a_final_checkpoint_that_stands_alone() -> None:
    split = Split()
    machine = split.machine(*split.ours, split.five, split.six, choice(split.tale, split.six))
    machine.feed(ChoiceAdopted(checkpoint=split.six.id))
    assert machine.state.tree.final == split.one.here
    assert machine.state.tree.conflict is None


def test_where_two_root_keys_are_needed_one_is_not_heeded() -> None:
    split = Split(roots=2)
    machine = split.machine(*split.ours, *split.theirs, choice(split.tale, split.one))
    assert machine.state.tree.conflict is not None
    machine.receive(choice(split.tale, split.one, by="bob"))
    assert machine.state.tree.conflict is None


def test_of_two_choices_the_later_one_counts_in_any_order() -> None:
    split = Split()
    early, late = choice(split.tale, split.five, at_ms=50), choice(split.tale, split.one, at_ms=60)
    for order in ((early, late), (late, early)):
        machine = split.machine(*split.ours, *split.theirs, *order)
        assert machine.state.tree.chosen == split.one.here


def test_a_choice_by_nobody_or_of_the_wrong_slot_is_refused() -> None:
    split = Split()
    machine = split.machine(*split.ours, *split.theirs)
    for bad, rule in (
        (choice(split.tale, split.one, by="bob"), Rule.MEMBERSHIP),
        (choice(split.tale, split.one, slot=3), Rule.SLOT),
    ):
        (drop,) = (each for each in machine.receive(bad) if isinstance(each, Drop))
        assert drop.rule is rule
    assert machine.state.tree.chosen is None


def test_a_choice_of_an_unknown_checkpoint_waits_for_it() -> None:
    split = Split()
    machine = split.machine(*split.ours, choice(split.tale, split.five))
    assert machine.state.tree.chosen is None
    kept = [each.envelope.type for each in machine.receive(*split.theirs) if isinstance(each, Keep)]
    assert machine.state.tree.chosen == split.five.here
    assert kept
    assert machine.state.tree.final == split.one.here


def test_a_choice_is_carried_for_everybody_to_read() -> None:
    split = Split()
    machine = split.machine(*split.ours, *split.theirs, choice(split.tale, split.one))
    signed = [each for slot in range(9, 20) for each in machine.at(slot, 900) if isinstance(each, SignCheckpoint)]
    assert len(signed[0].checkpoint.records) == 1


def test_a_choice_that_comes_only_inside_a_checkpoint_is_heeded() -> None:
    split = Split()
    machine = split.machine(*split.ours, *split.theirs)
    machine.receive(split.tale.grow(split.six, slot=7, by="bob", records=[choice(split.tale, split.five)]))
    assert machine.state.tree.chosen == split.five.here
    machine.feed(ChoiceAdopted(checkpoint=split.five.id))
    assert machine.state.tree.final == split.five.here
    assert machine.restarted().state.tree.chosen == split.five.here


def test_contributions_of_the_history_that_is_left_are_offered_again() -> None:
    """What was final is no candidate any more; on the chosen chain it may still count, as a stale one."""
    tale = Story(swarm_with(*FOUR))
    mine = tale.contribution("ada")
    one = tale.grow(tale.genesis, slot=1, accepted=[mine])
    two = tale.grow(one, slot=2, votes=tale.votes("ada bob cyd", one))
    five = tale.grow(tale.genesis, slot=5, by="bob")
    six = tale.grow(five, slot=6, by="bob", votes=tale.votes("bob cyd dan", five))
    machine = Machine(tale)
    machine.at(8)
    machine.receive(one, two, *tale.votes("ada bob cyd", two))
    assert mine.id not in machine.state.candidates
    machine.receive(five, six, *tale.votes("bob cyd dan", six), choice(tale, five))
    machine.feed(ChoiceAdopted(checkpoint=five.id))
    machine.at(8, 100)  # Its delta is looked at again.
    assert machine.state.candidates[mine.id].status is DeltaStatus.READY
    signed = [each for slot in range(9, 20) for each in machine.at(slot, 900) if isinstance(each, SignCheckpoint)]
    assert len(signed[0].checkpoint.accepted) == 1
