"""The round machine, event by event (protocol sections 5, 8 and 13). Slots take 1000 ms, the grace is 100 ms."""

from typing import Any

import pytest
from chains import BASE_DIGEST, Story, digest_after, key, swarm_with
from machines import Machine, only, some
from swarms import id_of, key_of

from fullrank_protocol import parking
from fullrank_protocol.checkpoint import AcceptedContribution, CheckpointKind, RefusedContribution
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.duties import usual_merge
from fullrank_protocol.envelope import seal
from fullrank_protocol.errors import Rule
from fullrank_protocol.membership import ROLE_CONTRIBUTE
from fullrank_protocol.proposing import proposer_order
from fullrank_protocol.round_io import (
    Adopt,
    Alarm,
    CastVote,
    CheckDelta,
    DeltaChecked,
    DeltaUnavailable,
    Drop,
    FetchObjects,
    Finalised,
    Keep,
    Merge,
    MergeFailed,
    SignCheckpoint,
    SignEvidence,
    SignRefusal,
    SignTakeUp,
    Synced,
    Train,
    TrainingAllowed,
    TrainingEnded,
    Verified,
)
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.vote import make_refusal
from fullrank_protocol.wire import objects_pb2 as wire

THREE = ("ada", "bob", "cyd")
FOUR = (*THREE, "dan")


def story(*founders: str, **rules: Any) -> Story:
    return Story(swarm_with(*founders, **rules))


def refused(contribution: Contribution, rule: Rule = Rule.RANK, detail: str = "is too high") -> DeltaChecked:
    return DeltaChecked(contribution_id=contribution.id, rule=rule, detail=detail)


# ---- taking things in ------------------------------------------------------------------------------


def test_a_good_object_is_kept_once_and_passed_on_once() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale)
    mine = tale.contribution("bob")
    assert only(Keep, machine.receive(mine)).envelope == mine.envelope
    assert machine.receive(mine) == []


def test_a_faulty_object_is_dropped_once_with_the_rule_and_the_numbers() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale)
    one = tale.round_of(tale.genesis, slot=1)
    machine.at(2)
    machine.receive(one)
    wrong = tale.contribution("bob", one, base_slot=9)
    dropped = only(Drop, machine.receive(wrong))
    assert (dropped.rule, dropped.detail) == (Rule.SLOT, "says base slot 9, its base is of slot 1")
    assert machine.receive(wrong) == []
    assert only(Keep, machine.receive(tale.contribution("bob", one))).slot == 2


def test_hints_are_no_objects_to_keep() -> None:
    tale = story()
    hint = seal(key_of("ada"), swarm=tale.swarm.id, type=wire.ANNOUNCEMENT, message=wire.Announcement(slot=1))
    dropped = only(Drop, Machine(tale).receive(hint))
    assert (dropped.rule, dropped.detail) == (Rule.SCHEMA, "is of type 17, which nobody keeps")


def test_a_contribution_whose_base_is_missing_waits_for_it_and_asks() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale)
    base = tale.round_of(tale.genesis, slot=1)
    early = tale.contribution("bob", base)
    machine.at(2)
    assert only(FetchObjects, machine.receive(early)).ids == (base.id,)
    assert early.id in [keep.envelope.id for keep in some(Keep, machine.receive(base))]
    assert len(machine.state.parked) == 0


def test_what_is_missing_is_asked_for_again_after_three_seconds_until_it_comes() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale)
    base = tale.round_of(tale.genesis, slot=1)
    machine.at(2)
    machine.receive(tale.contribution("bob", base))
    assert not some(FetchObjects, machine.at(4, 999))
    assert only(FetchObjects, machine.at(5)).ids == (base.id,)
    machine.receive(base)
    assert not some(FetchObjects, machine.at(9))


def test_a_checkpoint_waits_for_its_parent_and_a_vote_for_its_target() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, "zoe")
    one = tale.grow(tale.genesis, slot=1)
    two = tale.grow(one, slot=2)
    machine.at(3)
    assert only(FetchObjects, machine.receive(two)).ids == (one.id,)
    vote = tale.vote("bob", two)
    assert only(FetchObjects, machine.receive(vote)).ids == (two.id,)
    machine.receive(one)
    assert machine.head == two
    assert machine.state.tree.votes_for(two.id) == [vote]


def test_a_checkpoint_waits_for_the_bases_of_what_it_merges() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, "zoe")
    side = tale.round_of(tale.genesis, slot=1)
    late = tale.contribution("bob", side)
    main = tale.grow(tale.genesis, slot=2, by="bob", accepted=[late])
    machine.at(3)
    assert only(FetchObjects, machine.receive(main)).ids == (side.id,)
    machine.receive(side)
    assert main.id in machine.state.tree.nodes


def test_a_newcomers_contribution_waits_until_its_admission_is_carried() -> None:
    tale = story()
    machine = Machine(tale, "zoe")
    mine = tale.contribution("bob")
    machine.at(2)
    assert machine.receive(mine) == []
    grant = tale.grant()
    joined = tale.grow(tale.genesis, slot=1, records=[grant, tale.admission("bob", grant)])
    assert mine.id in [keep.envelope.id for keep in some(Keep, machine.receive(joined))]


def test_an_admission_that_comes_before_its_grant_waits_for_it() -> None:
    tale = story()
    machine = Machine(tale, "zoe")
    grant = tale.grant()
    admission = tale.admission("bob", grant)
    assert machine.receive(admission) == []
    assert [keep.envelope.id for keep in some(Keep, machine.receive(grant))] == [grant.id, admission.id]


def test_an_exhausted_invite_is_named_when_the_admission_arrives() -> None:
    tale = story()
    machine = Machine(tale, "zoe")
    grant = tale.grant(count=1)
    machine.receive(grant, tale.admission("bob", grant))
    dropped = only(Drop, machine.receive(tale.admission("cyd", grant)))
    assert (dropped.rule, dropped.detail) == (Rule.RECORD, "invite exhausted: 1 of 1 used")


def test_a_checkpoint_ahead_of_the_clock_is_held_until_its_slot_ends_within_ten_seconds() -> None:
    tale = story()
    machine = Machine(tale, "zoe")
    future = tale.grow(tale.genesis, slot=12)
    machine.at(2, 999)
    assert machine.receive(future) == []
    assert machine.head == tale.genesis
    assert only(Adopt, machine.at(3)).head == future.here


def test_waiting_objects_are_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED", 2)
    tale = story("ada", "bob")
    machine = Machine(tale)
    for number in range(3):
        base = {"base_checkpoint": id_of(f"base {number}"), "base_slot": 1}
        machine.receive(tale.swarm.contribution("bob", **base))
    assert len(machine.state.parked) == 2
    assert list(machine.state.parked) == [id_of("base 1"), id_of("base 2")]


def test_of_one_proposer_and_slot_four_checkpoints_are_looked_at() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, "zoe")
    machine.at(2)
    for number in range(4):
        mine = [tale.contribution("ada", num_tokens=1 + number)]
        assert not some(Drop, machine.receive(tale.checkpoint(tale.genesis, slot=1, accepted=mine)))
    dropped = only(Drop, machine.receive(tale.checkpoint(tale.genesis, slot=1)))
    assert (dropped.rule, dropped.detail) == (None, "comes after 4 others of its proposer and slot")
    assert not some(Drop, machine.receive(tale.checkpoint(tale.genesis, slot=1, by="bob")))


def test_a_fifth_checkpoint_of_one_turn_is_looked_at_when_another_certifier_refers_to_it() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, "zoe")
    machine.at(2)
    for number in range(4):
        mine = [tale.contribution("ada", num_tokens=1 + number)]
        machine.receive(tale.checkpoint(tale.genesis, slot=1, accepted=mine))
    fifth = tale.checkpoint(tale.genesis, slot=1)
    target, _ = tale.tree.add(fifth)
    machine.receive(tale.vote("ada", target))
    assert some(Drop, machine.receive(fifth)), "its own proposer's vote is no reason"
    machine.receive(tale.vote("bob", target))
    assert not some(Drop, machine.receive(fifth))
    assert fifth.id in machine.state.tree.nodes


def test_a_second_contribution_on_one_base_is_dropped_before_any_checkpoint_decides() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale)
    machine.receive(tale.contribution("bob", num_tokens=1))
    dropped = only(Drop, machine.receive(tale.contribution("bob", num_tokens=2)))
    assert dropped.rule is Rule.DUPLICATE


def test_a_contribution_that_is_too_stale_is_dropped_with_its_age() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, "zoe")
    state = tale.genesis
    machine.at(6)
    for slot in (1, 2, 3, 4):
        state = tale.round_of(state, slot=slot)
        machine.receive(state)
    dropped = only(Drop, machine.receive(tale.contribution("bob")))
    assert (dropped.rule, dropped.detail) == (Rule.STALE, "is 4 rounds old, at most 3 are accepted")


def test_a_refusal_by_a_certifier_is_kept_for_people_and_one_by_a_stranger_is_not() -> None:
    tale = story("ada", "bob")
    machine = Machine(tale, "ada")
    one = tale.grow(tale.genesis, slot=1)
    machine.at(2)
    machine.receive(one)

    def refusal(name: str) -> Any:
        return make_refusal(key_of(name), swarm=tale.swarm.id, checkpoint=one.id, rule=Rule.DIGEST, detail="differs")

    assert only(Keep, machine.receive(refusal("bob"))).slot == 1
    assert only(Drop, machine.receive(refusal("zoe"))).rule is Rule.MEMBERSHIP


def test_of_one_checkpoint_sixteen_refusals_are_kept_and_one_of_each_certifier() -> None:
    names = [f"founder {number}" for number in range(20)]
    tale = story(*names)
    machine = Machine(tale, "zoe")
    one = tale.grow(tale.genesis, slot=1, by=names[0])
    machine.at(9)
    machine.receive(one)

    def kept(name: str, detail: str = "differs") -> int:
        refusal = make_refusal(key_of(name), swarm=tale.swarm.id, checkpoint=one.id, rule=Rule.DIGEST, detail=detail)
        return len(some(Keep, machine.receive(refusal)))

    assert kept(names[0]) == 1
    assert kept(names[0], "differs again") == 0
    assert sum(kept(name) for name in names[1:]) == 15


def test_only_the_certifiers_with_the_first_sixteen_turns_sign_a_refusal() -> None:
    names = [f"founder {number}" for number in range(20)]
    tale = story(*names)
    wrong = tale.checkpoint(tale.genesis, slot=1, by=names[0], model_digest=id_of("x"))
    order = proposer_order(tale.genesis, swarm=tale.swarm.id, slot=1)

    def refuses(name: str) -> bool:
        machine = Machine(tale, name)
        machine.at(9)
        return bool(some(SignRefusal, machine.receive(wrong)))

    assert {name for name in names if refuses(name)} == {name for name in names if key(name) in order[:16]}


# ---- recomputing -----------------------------------------------------------------------------------


def test_a_checkpoint_is_recomputed_adopted_and_voted_for() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob", by_hand=True)
    mine = tale.contribution("ada")
    machine.at(2)
    one = tale.grow(tale.genesis, slot=1, accepted=[mine])
    check = only(CheckDelta, machine.receive(one))
    assert (check.contribution, check.blob, check.base_round) == (mine, mine.blob, 0)
    merge = only(Merge, machine.feed(DeltaChecked(contribution_id=mine.id)))
    assert [(entry.contribution, entry.staleness, entry.stranger) for entry in merge.entries] == [(mine, 0, False)]
    actions = machine.feed(machine.merged(merge))
    assert only(Verified, actions).holds
    assert only(Adopt, actions).head == one.here
    assert (only(CastVote, actions).source, only(CastVote, actions).target) == (tale.genesis.here, one.here)


def test_checkpoints_are_recomputed_oldest_first_as_they_become_ready() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "zoe")
    one = tale.round_of(tale.genesis, slot=1)
    two = tale.round_of(one, slot=2)
    slow = tale.contribution("ada")
    machine.verdicts[slow.id] = None
    machine.at(3)
    assert not some(Verified, machine.receive(one, two))
    verified = some(Verified, machine.feed(DeltaChecked(contribution_id=slow.id)))
    assert [(each.checkpoint, each.holds) for each in verified] == [(one.id, True), (two.id, True)]
    assert machine.head == two


def mismatch(tale: Story, **fields: Any) -> tuple[Rule, str]:
    """How bob refuses a checkpoint of cyd's, whose turn comes first, that has these fields."""
    machine = Machine(tale, "bob")
    machine.at(2)
    actions = machine.receive(tale.checkpoint(tale.genesis, slot=1, by="cyd", **fields))
    assert machine.head == tale.genesis
    assert not some(CastVote, actions)
    assert not only(Verified, actions).holds
    refusal = only(SignRefusal, actions)
    assert refusal.slot == 1
    return refusal.rule, refusal.detail


def test_wrong_numbers_are_refused_by_naming_the_first_mismatch() -> None:
    tale = story(*THREE)
    mine = tale.contribution("ada")
    weighed = [AcceptedContribution(contribution=mine, weight=Scaled.of(0.5))]
    right = digest_after(tale.genesis.id, [mine.id])
    words = f"weighs {mine.id.hex()[:12]} with 0.5, recomputed 1.0"
    normal = {"kind": CheckpointKind.NORMAL, "round": 1, "update_norm": Scaled.of(1.0), "model_digest": right}
    found = mismatch_of(tale, accepted=weighed, **normal)
    assert found == (Rule.WEIGHTS, words)
    assert mismatch_of(tale, accepted=weighed, **(normal | {"model_digest": id_of("x")})) == (Rule.WEIGHTS, words)
    good = {"accepted": [mine]}
    assert mismatch(tale, **good, update_norm=Scaled.of(2.0)) == (Rule.WEIGHTS, "says norm 2.0, recomputed 1.0")
    words = f"says digest {id_of('x').hex()[:12]}, recomputed {right.hex()[:12]}"
    assert mismatch(tale, **good, model_digest=id_of("x")) == (Rule.DIGEST, words)


def mismatch_of(tale: Story, accepted: list[AcceptedContribution], **fields: Any) -> tuple[Rule, str]:
    """The same for a checkpoint whose entries are given as they are."""
    machine = Machine(tale, "bob")
    machine.at(2)
    checkpoint = tale.swarm.checkpoint("ada", parent=tale.genesis.id, slot=1, accepted=accepted, **fields)
    refusal = only(SignRefusal, machine.receive(checkpoint))
    return refusal.rule, refusal.detail


def test_an_empty_checkpoint_with_another_digest_is_refused() -> None:
    words = f"says digest {id_of('x').hex()[:12]}, its parent has {BASE_DIGEST.hex()[:12]}"
    assert mismatch(story(*THREE), model_digest=id_of("x")) == (Rule.DIGEST, words)


def test_a_checkpoint_that_accepts_a_bad_delta_is_refused_by_the_deltas_own_rule() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    bad = tale.contribution("ada")
    machine.verdicts[bad.id] = refused(bad, Rule.SHAPE, "has 5 rows, required 4")
    machine.at(2)
    refusal = only(SignRefusal, machine.receive(tale.checkpoint(tale.genesis, slot=1, accepted=[bad])))
    assert (refusal.rule, refusal.detail) == (
        Rule.SHAPE,
        f"accepts {bad.id.hex()[:12]}, which has 5 rows, required 4",
    )


@pytest.mark.parametrize(
    ("verdict", "found"), [(None, "no fault"), (Rule.SCALE, "SCALE"), (Rule.RANK, None)], ids=["good", "other", "same"]
)
def test_a_checkpoint_refuses_only_what_breaks_the_very_rule_it_names(verdict: Rule | None, found: str | None) -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    bad = tale.contribution("ada")
    if verdict is not None:
        machine.verdicts[bad.id] = refused(bad, verdict)
    machine.at(2)
    entry = RefusedContribution(contribution=bad, rule=Rule.RANK, detail="is too high")
    given = {"kind": CheckpointKind.EMPTY, "parent": tale.genesis.id, "model_digest": BASE_DIGEST}
    actions = machine.receive(tale.swarm.checkpoint("ada", refused=[entry], **given))
    if found is None:
        assert machine.head.slot == 1
    else:
        refusal = only(SignRefusal, actions)
        assert refusal.rule is Rule.POLICY
        assert refusal.detail == f"refuses {bad.id.hex()[:12]} by rule RANK, found {found}"


def test_a_blob_that_cannot_be_had_delays_the_vote_and_refuses_nothing() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    slow = tale.contribution("ada")
    machine.verdicts[slow.id] = DeltaUnavailable(contribution_id=slow.id)
    machine.at(2)
    one = tale.grow(tale.genesis, slot=1, by="cyd", accepted=[slow])
    assert not some(SignRefusal, machine.receive(one))
    assert not some(CheckDelta, machine.at(4, 999))
    machine.verdicts[slow.id] = DeltaChecked(contribution_id=slow.id)
    actions = machine.at(5)
    assert only(CheckDelta, actions).contribution == slow
    assert only(CastVote, actions).target == one.here


def test_a_merge_that_fails_for_everyone_refuses_the_checkpoint() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob", by_hand=True)
    mine = tale.contribution("ada")
    machine.at(2)
    machine.receive(tale.checkpoint(tale.genesis, slot=1, accepted=[mine]))
    merge = only(Merge, machine.feed(DeltaChecked(contribution_id=mine.id)))
    actions = machine.feed(MergeFailed(key=merge.key, rule=Rule.NON_FINITE, detail="makes up.weight not finite"))
    assert only(SignRefusal, actions).rule is Rule.NON_FINITE
    assert machine.head == tale.genesis


def test_a_merge_that_fails_here_alone_is_tried_again_and_nothing_is_refused() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob", by_hand=True)
    mine = tale.contribution("ada")
    machine.at(2)
    one = tale.grow(tale.genesis, slot=1, by="cyd", accepted=[mine])
    machine.receive(one)
    merge = only(Merge, machine.feed(DeltaChecked(contribution_id=mine.id)))
    assert not some(SignRefusal, machine.feed(MergeFailed(key=merge.key, rule=None, detail="no space left")))
    machine.feed(DeltaChecked(contribution_id=mine.id))
    assert only(Merge, machine.at(5)).key == merge.key
    assert only(Adopt, machine.feed(machine.merged(merge))).head == one.here


def test_what_follows_a_refused_checkpoint_is_refused_with_it() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    wrong = tale.grow(tale.genesis, slot=1, model_digest=id_of("x"))
    after = tale.checkpoint(wrong, slot=2)
    machine.at(3)
    machine.receive(wrong)
    dropped = only(Drop, machine.receive(after))
    assert (dropped.rule, dropped.detail) == (Rule.PARENT, f"follows {wrong.id.hex()[:12]}, which was refused")


def test_who_is_no_certifier_refuses_silently() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "zoe")
    machine.at(2)
    actions = machine.receive(tale.checkpoint(tale.genesis, slot=1, model_digest=id_of("x")))
    assert not only(Verified, actions).holds
    assert not some(SignRefusal, actions)


# ---- voting ----------------------------------------------------------------------------------------


def test_a_certifier_votes_for_its_head_once() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    one = tale.grow(tale.genesis, slot=1)
    machine.at(2)
    assert len(some(CastVote, machine.receive(one))) == 1
    assert not some(CastVote, machine.at(2, 500))
    assert not some(CastVote, machine.receive(one, *tale.votes("ada cyd", one)))


def test_a_certifier_votes_even_late() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    machine.at(50)
    assert only(CastVote, machine.receive(tale.grow(tale.genesis, slot=1))).target.slot == 1


def test_nobody_else_votes() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "zoe")
    machine.at(2)
    assert not some(CastVote, machine.receive(tale.grow(tale.genesis, slot=1)))


def test_rival_proposals_of_one_slot_get_one_vote_and_the_loser_is_left_behind() -> None:
    """Bob voted for the rival that came first; the others' votes move his head, and he abstains until the next slot."""
    tale = story(*FOUR)
    machine = Machine(tale, "bob")
    high, low = sorted((tale.grow(tale.genesis, slot=1, by=name) for name in ("ada", "cyd")), key=lambda s: s.id)[::-1]
    machine.at(2)
    assert only(CastVote, machine.receive(high)).target == high.here
    assert not some(CastVote, machine.receive(low))
    assert machine.head == high
    assert not some(CastVote, machine.receive(*tale.votes("ada dan", low)))
    assert machine.head == low
    after = tale.grow(low, slot=2, by="cyd")
    machine.at(3)
    assert only(CastVote, machine.receive(after)).target == after.here


def test_a_certifier_abstains_from_a_vote_around_one_of_its_own() -> None:
    """Bob voted 1 -> 2. A head of slot 3 whose source is the genesis would be 0 -> 3, around it."""
    tale = story(*FOUR)
    one = tale.grow(tale.genesis, slot=1)
    two = tale.grow(one, slot=2, votes=tale.votes("ada bob cyd", one))
    machine = Machine(tale, "bob")
    machine.at(4)
    machine.receive(tale.vote("bob", two))
    side = tale.grow(tale.genesis, slot=3, by="dan")
    assert not some(CastVote, machine.receive(side))
    assert machine.head == side


def test_a_certifier_abstains_from_a_vote_inside_one_of_its_own() -> None:
    """Bob voted 0 -> 5. He may add 0 -> 1, and neither 1 -> 2, nor 2 -> 3, nor 3 -> 4, which are inside it."""
    tale = story(*FOUR)
    far = tale.grow(tale.genesis, slot=5)
    machine = Machine(tale, "bob")
    machine.at(6)
    machine.receive(tale.vote("bob", far))
    *_, three = tale.line(tale.genesis, (1, 2, 3), "ada cyd dan")
    four = tale.grow(three, slot=4, votes=tale.votes("ada cyd dan", three))
    chain = [node.checkpoint for node in tale.tree.chain(four.id)]
    actions = machine.receive(*(each for each in chain if each is not None))
    assert machine.head == four
    assert [cast.target.slot for cast in some(CastVote, actions)] == [1]


def test_votes_that_this_key_cast_before_bind_it_wherever_they_turn_up() -> None:
    """A restored disk: bob's own vote comes back inside a checkpoint."""
    tale = story(*FOUR)
    machine = Machine(tale, "bob")
    one = tale.grow(tale.genesis, slot=1)
    rival = tale.grow(tale.genesis, slot=1, by="cyd")
    carrier = tale.grow(one, slot=2, votes=tale.votes("bob", one))
    machine.at(3)
    machine.state.listen_until_ms = machine.now_ms + 10_000
    assert not some(CastVote, machine.receive(rival))
    machine.receive(one, carrier)
    actions = machine.feed(Synced())
    assert [each.target for each in some(CastVote, actions)] in ([], [carrier.here])
    assert {vote.target for vote in machine.state.own_votes.values()} <= {one.id, carrier.id}


def test_a_certifier_that_voted_before_listens_first_but_not_for_ever() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    machine.state.listen_until_ms = tale.swarm.genesis.slot_start_ms(12)
    machine.at(2)
    assert not some(CastVote, machine.receive(tale.grow(tale.genesis, slot=1)))
    assert not some(CastVote, machine.at(11, 999))
    assert only(CastVote, machine.at(12)).target.slot == 1


# ---- finality, conflict, evidence ------------------------------------------------------------------


def test_finality_is_told_once() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "zoe")
    one = tale.grow(tale.genesis, slot=1)
    two = tale.grow(one, slot=2, votes=tale.votes("ada bob cyd", one))
    machine.at(3)
    assert not some(Finalised, machine.receive(one, two, *tale.votes("ada bob", two)))
    assert only(Finalised, machine.receive(tale.vote("cyd", two))).final == one.here
    assert not some(Finalised, machine.at(4))


def test_after_a_conflict_a_node_says_so_once_and_neither_votes_nor_proposes() -> None:
    tale = story(*FOUR)
    machine = Machine(tale, "ada")
    ours = tale.grow(tale.genesis, slot=1)
    above = tale.grow(ours, slot=2, votes=tale.votes("ada bob cyd", ours))
    theirs = tale.grow(tale.genesis, slot=5, by="bob")
    higher = tale.grow(theirs, slot=6, by="bob", votes=tale.votes("ada bob dan", theirs))
    machine.at(7)
    machine.receive(ours, above, *tale.votes("ada bob cyd", above))
    assert machine.final == 1
    actions = machine.receive(theirs, higher, *tale.votes("ada bob dan", higher))
    assert (only(Alarm, actions).ours, only(Alarm, actions).theirs) == (ours.here, theirs.here)
    next_ones = machine.receive(tale.grow(above, slot=7, by="cyd"), tale.contribution("ada", above))
    later = [action for slot in range(8, 12) for action in machine.at(slot, 999)]
    assert not some(Alarm, later)
    assert not some(CastVote, next_ones + later)
    assert not some(SignCheckpoint, next_ones + later)
    assert machine.final == 1


def equivocation(tale: Story, name: str) -> list[Any]:
    targets = [tale.grow(tale.genesis, slot=1, by=proposer) for proposer in ("ada", "bob")]
    return [*targets, *(tale.vote(name, target) for target in targets)]


def test_a_double_vote_becomes_evidence_and_excludes_from_the_checkpoint_that_carries_it_on() -> None:
    tale = story(*FOUR)
    machine = Machine(tale, "ada")
    machine.at(2)
    *rest, last = equivocation(tale, "dan")
    assert not some(SignEvidence, machine.receive(*rest))
    offence = only(SignEvidence, machine.receive(last))
    assert {offence.first.voter, offence.second.voter} == {key("dan")}
    assert offence.first.id < offence.second.id
    assert machine.head.members.is_member(key("dan"))
    actions = next(found for slot in range(3, 9) if some(SignCheckpoint, found := machine.at(slot, 999)))
    assert [piece.accused for piece in machine.proposed(actions).evidence] == [key("dan")]
    assert not machine.head.members.is_member(key("dan"))
    assert key("dan") not in machine.head.members.certifiers


def test_one_piece_of_evidence_against_somebody_is_enough() -> None:
    tale = story(*FOUR)
    machine = Machine(tale, "ada")
    machine.at(2)
    *_, one, other = equivocation(tale, "dan")
    targets = [tale.tree.state(vote.target) for vote in (one, other)]
    machine.receive(*targets, tale.evidence(one, other, by="bob"))
    assert not some(SignEvidence, machine.receive(one, other))
    dropped = only(Drop, machine.receive(tale.evidence(one, other, by="cyd")))
    assert (dropped.rule, dropped.detail) == (None, f"is a second piece against {key('dan').hex()[:12]}, 1 is kept")


def test_evidence_against_somebody_unknown_is_refused() -> None:
    tale = story(*FOUR)
    machine = Machine(tale, "ada")
    votes = [tale.swarm.vote("zoe", target=id_of(name), target_slot=3) for name in ("x", "y")]
    assert only(Drop, machine.receive(tale.evidence(*votes))).rule is Rule.EVIDENCE


# ---- nothing is lost -------------------------------------------------------------------------------


def test_a_killed_node_goes_on_with_the_same_head_final_and_votes() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    machine.at(5)
    for state in tale.line(tale.genesis, (1, 2, 3), "ada bob cyd"):
        machine.receive(state)
    machine.receive(tale.contribution("cyd", machine.head))
    again = machine.restarted()
    assert again.head == machine.head
    assert again.state.tree.final == machine.state.tree.final
    assert set(again.state.own_votes) == set(machine.state.own_votes)
    actions = again.at(5)
    assert not some(CastVote, actions)
    assert not some(Adopt, actions)
    assert [each.contribution.member for each in some(CheckDelta, actions)] == [key("cyd")]


def test_a_vote_that_was_not_recorded_before_the_kill_is_cast_after_it() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob", by_hand=True)
    one = tale.grow(tale.genesis, slot=1)
    machine.at(2)
    assert some(CastVote, machine.receive(one))
    again = machine.restarted()
    assert only(CastVote, again.at(2)).target == one.here


def test_what_was_not_recomputed_before_the_kill_is_recomputed_after_it() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob", by_hand=True)
    one = tale.round_of(tale.genesis, slot=1)
    machine.at(2)
    machine.receive(one)
    again = machine.restarted()
    assert again.head == tale.genesis
    again.by_hand = False
    assert only(Adopt, again.at(2)).head == one.here


def test_a_refused_checkpoint_stays_refused_after_a_kill() -> None:
    tale = story(*THREE)
    machine = Machine(tale, "bob")
    machine.at(2)
    wrong = tale.grow(tale.genesis, slot=1, model_digest=id_of("x"))
    machine.receive(wrong)
    again = machine.restarted()
    assert not some(SignRefusal, again.at(2))
    assert again.state.tree.nodes[wrong.id].verdict is False


def test_a_record_on_a_branch_that_lost_is_carried_again() -> None:
    """The grant came only inside the branch that lost; who heard of it there carries it on the one that won."""
    tale = story(*FOUR)
    machine = Machine(tale, "ada")
    grant = tale.grant()
    lost = tale.grow(tale.genesis, slot=1, by="bob", records=[grant, tale.admission("eve", grant)])
    machine.at(2)
    machine.receive(lost)
    assert machine.head == lost
    won = tale.grow(tale.genesis, slot=2, by="cyd")
    machine.at(3)
    machine.receive(won, *tale.votes("bob cyd dan", won))
    assert machine.head == won
    assert not machine.head.members.is_member(key("eve"))
    actions = next(found for slot in range(4, 9) if some(SignCheckpoint, found := machine.at(slot, 999)))
    assert len(machine.proposed(actions).records) == 2
    assert machine.head.members.is_member(key("eve"))


def test_evidence_on_a_branch_that_lost_is_carried_again() -> None:
    tale = story(*FOUR, "eve", "fay", "gus")
    machine = Machine(tale, "ada")
    *targets, one, other = equivocation(tale, "dan")
    lost = tale.grow(targets[0], slot=2, by="bob", evidence=[tale.evidence(one, other, by="bob")])
    machine.at(3)
    machine.receive(targets[0], lost)
    assert not machine.head.members.is_member(key("dan"))
    won = tale.grow(tale.genesis, slot=3, by="cyd")
    machine.at(4)
    machine.receive(won, *tale.votes("bob cyd eve fay gus", won))
    assert machine.head == won
    actions = next(found for slot in range(5, 12) if some(SignCheckpoint, found := machine.at(slot, 999)))
    assert [piece.accused for piece in machine.proposed(actions).evidence] == [key("dan")]


def test_records_are_forgotten_once_what_carries_them_is_final() -> None:
    tale = story()
    machine = Machine(tale)
    grant = tale.grant()
    machine.at(1)
    machine.receive(grant)
    for slot in range(2, 5):
        machine.at(slot)
    assert machine.state.records == {grant.id: grant}
    machine.receive(tale.contribution("ada", machine.head))
    for slot in range(5, 9):
        machine.at(slot)
    assert machine.state.records == {}


def test_after_a_partition_a_nodes_own_delta_counts_on_the_other_branch_as_a_stale_one() -> None:
    """Bob trained on round 1 of a branch that lost; the other has two rounds since they parted."""
    tale = story(*FOUR)
    machine = Machine(tale, "bob")
    lost = tale.round_of(tale.genesis, slot=1, by="bob", accepted=[tale.contribution("cyd")])
    mine = tale.contribution("bob", lost)
    machine.at(2)
    machine.receive(lost, mine)
    won = tale.round_of(tale.round_of(tale.genesis, slot=2), slot=3)
    chain = [node.checkpoint for node in tale.tree.chain(won.id)]
    machine.at(4)
    actions = machine.receive(*(each for each in chain if each is not None), *tale.votes("ada cyd dan", won))
    assert machine.head == won
    for slot in range(4, 10):
        actions += machine.at(slot, 999)
    merges = [merge for merge in some(Merge, actions) if mine.id in merge.key.contribution_ids]
    assert merges
    entries = {entry.contribution.id: entry.staleness for entry in merges[-1].entries}
    assert entries[mine.id] == 2


# ---- training --------------------------------------------------------------------------------------


def trainer(tale: Story, name: str = "ada") -> Machine:
    return Machine(tale, name, trains=True, certifies=False)


def test_training_begins_on_the_head_and_ends_a_tenth_of_a_window_before_the_slot() -> None:
    tale = story("ada", "bob")
    train = only(Train, trainer(tale).at(3, 100))
    assert (train.base, train.base_round) == (tale.genesis.here, 0)
    assert train.deadline_ms == tale.swarm.genesis.slot_end_ms(3) - 100


def test_a_node_that_trains_is_told_how_many_contributions_the_next_merge_can_be_expected_to_average() -> None:
    """As many as the last ones did, whatever empty checkpoints came since; before the first one, its own alone."""
    tale = story("ada", "bob", policy=wire.OPEN)
    assert only(Train, trainer(tale, "zoe").at(1)).num_averaged == 1
    both = [tale.contribution(name) for name in ("ada", "bob")]
    one = tale.round_of(tale.genesis, slot=1, accepted=both)
    empty = tale.grow(one, slot=2, by="bob")
    for chain in ([one], [one, empty]):
        machine = trainer(tale, "zoe")
        machine.state.trains = False
        machine.at(3)
        for checkpoint in chain:
            machine.receive(checkpoint)
        assert only(Train, machine.feed(TrainingAllowed(allowed=True))).num_averaged == 2


def test_a_node_that_trains_is_told_what_of_its_own_is_still_on_the_way_and_how_many_come_late() -> None:
    """A merge without its first delta, one with it, and it has come late; another node's is none of its own."""
    tale = story("ada", "bob", policy=wire.OPEN)
    first, other = tale.contribution("zoe"), tale.contribution("ada")
    one = tale.round_of(tale.genesis, slot=1, accepted=[tale.contribution("bob")])
    second = tale.contribution("zoe", one)
    two = tale.round_of(one, slot=2, accepted=[tale.contribution("bob", one), first], by="bob")
    machine = trainer(tale, "zoe")
    assert only(Train, machine.at(1)).pending == ()
    machine.receive(first, other)
    machine.feed(TrainingEnded(base=tale.genesis.id, produced=True))
    machine.at(2)
    train = only(Train, machine.receive(one))
    assert [(each.contribution.id, each.base_round) for each in train.pending] == [(first.id, 0)]
    assert (train.num_averaged, train.num_late) == (1, 0)
    machine.receive(second)
    machine.feed(TrainingEnded(base=one.id, produced=True))
    machine.at(3)
    train = only(Train, machine.receive(two))
    assert [(each.contribution.id, each.base_round) for each in train.pending] == [(second.id, 1)]
    assert (train.num_averaged, train.num_late) == (2, 1)  # The mean of both.


def test_the_usual_merge_is_the_mean_of_the_last_ones() -> None:
    assert usual_merge([]) == usual_merge([(1, 0)]) == (1, 0)
    assert usual_merge([(6, 6), (2, 1), (4, 0), (4, 1)]) == (4, 2)  # Half of sixteen are late.
    assert usual_merge([(1, 0), (1, 0), (2, 2)]) == (1, 0)  # Of 4/3 contributions, 2/3 are late: half a one.


def test_a_node_that_trains_looks_back_on_as_many_merges_as_the_rule_does() -> None:
    """Five merges of two deltas, then four of one: two are usual among the last nine; after one more of one, one is."""
    tale = story("ada", "bob", policy=wire.OPEN)
    assert tale.swarm.genesis.rule.trailing_rounds == 9
    chain, head = [], tale.genesis
    for slot in range(1, 11):
        authors = ("ada", "bob") if slot <= 5 else ("bob",)
        head = tale.round_of(head, slot=slot, accepted=[tale.contribution(author, head) for author in authors])
        chain.append(head)
    usual = []
    for length in (9, 10):
        machine = trainer(tale, "zoe")
        machine.state.trains = False
        machine.at(11)
        for checkpoint in chain[:length]:
            machine.receive(checkpoint)
        usual.append(only(Train, machine.feed(TrainingAllowed(allowed=True))).num_averaged)
    assert usual == [2, 1]


def test_a_refused_delta_is_not_on_the_way() -> None:
    tale = story("ada", "bob", policy=wire.OPEN)
    first = tale.contribution("zoe")
    one = tale.round_of(tale.genesis, slot=1, accepted=[tale.contribution("bob")])
    machine = trainer(tale, "zoe")
    machine.verdicts[first.id] = refused(first)
    machine.at(1)
    machine.receive(first)
    machine.feed(TrainingEnded(base=tale.genesis.id, produced=True))
    machine.at(2)
    assert only(Train, machine.receive(one)).pending == ()


def test_training_waits_for_the_next_slot_when_less_than_a_quarter_of_a_window_is_left() -> None:
    tale = story("ada", "bob")
    assert some(Train, trainer(tale).at(3, 650))
    machine = trainer(tale)
    assert not some(Train, machine.at(3, 651))
    assert some(Train, machine.at(4))


def test_one_training_at_a_time_and_none_without_leave() -> None:
    tale = story("ada", "bob")
    machine = trainer(tale)
    assert not some(Train, machine.feed(TrainingAllowed(allowed=False)))
    assert some(Train, machine.feed(TrainingAllowed(allowed=True)))
    assert not some(Train, machine.at(0, 300))


def test_the_same_weights_are_trained_on_once_also_when_empty_checkpoints_follow() -> None:
    tale = story("ada", "bob", policy=wire.OPEN)
    machine = trainer(tale, "zoe")
    one = tale.round_of(tale.genesis, slot=1, accepted=[tale.contribution("bob")])
    machine.state.trains = False
    machine.at(2)
    machine.receive(one)
    train = only(Train, machine.feed(TrainingAllowed(allowed=True)))
    machine.receive(tale.contribution("zoe", one))
    machine.feed(TrainingEnded(base=train.base.checkpoint, produced=True))
    empty = tale.grow(one, slot=2, by="bob")
    machine.at(3)
    assert not some(Train, machine.receive(empty))
    assert not some(Train, machine.at(3, 400))
    after = tale.grow(empty, slot=3, accepted=[tale.contribution("zoe", one)], by="bob")
    machine.at(4)
    assert only(Train, machine.receive(after)).base == after.here


def test_after_a_failed_training_a_quarter_of_a_window_passes() -> None:
    tale = story("ada", "bob")
    machine = trainer(tale)
    train = only(Train, machine.at(2))
    assert not some(Train, machine.feed(TrainingEnded(base=train.base.checkpoint, produced=False)))
    assert not some(Train, machine.at(2, 249))
    assert only(Train, machine.at(2, 250)).base == train.base


def test_no_training_on_an_old_head_while_the_checkpoint_of_the_last_slot_is_expected() -> None:
    """Bob offered a delta in slot 2: its checkpoint is due, for a quarter of a window."""
    tale = story("ada", "bob", policy=wire.OPEN)
    machine = trainer(tale, "zoe")
    machine.state.trains = False
    machine.at(2, 500)
    machine.receive(tale.contribution("bob"))
    machine.state.trains = True
    assert not some(Train, machine.at(3))
    assert not some(Train, machine.at(3, 249))
    assert some(Train, machine.at(3, 250))


def test_nothing_offered_nothing_expected() -> None:
    tale = story("ada", "bob")
    machine = trainer(tale)
    machine.state.trains = False
    machine.at(3)
    machine.receive(tale.contribution("bob"))
    machine.state.trains = True
    assert some(Train, machine.at(3, 1))


def test_no_training_while_a_newer_head_is_being_recomputed() -> None:
    tale = story("ada", "bob")
    machine = trainer(tale)
    slow = tale.contribution("bob")
    machine.verdicts[slow.id] = None
    machine.state.trains = False
    machine.at(3)
    machine.receive(tale.grow(tale.genesis, slot=2, by="bob", accepted=[slow]))
    machine.state.trains = True
    assert not some(Train, machine.at(3, 500))
    assert some(Train, machine.at(4, 260))


def test_no_training_after_the_last_round() -> None:
    tale = story("ada", "bob", training={"total_rounds": 1})
    machine = trainer(tale)
    one = tale.round_of(tale.genesis, slot=1, accepted=[tale.contribution("bob")])
    machine.state.trains = False
    machine.at(2)
    machine.receive(one)
    machine.state.trains = True
    assert not some(Train, machine.at(2, 300))


def test_who_may_not_contribute_does_not_train() -> None:
    assert not some(Train, trainer(story("ada"), "zoe").at(2))
    assert some(Train, trainer(story("ada", policy=wire.OPEN), "zoe").at(2))


def test_a_newcomer_trains_while_its_admission_is_on_the_way_and_offers_the_delta_once_it_is_carried() -> None:
    tale = story("ada")
    machine = trainer(tale, "bob")
    grant = tale.grant()
    admission = tale.admission("bob", grant)
    assert not some(Train, machine.at(2))
    train = only(Train, machine.receive(grant, admission))
    assert train.base == tale.genesis.here
    mine = tale.contribution("bob")
    assert not some(
        Keep, machine.receive(mine) + machine.feed(TrainingEnded(base=train.base.checkpoint, produced=True))
    )
    machine.at(3)
    joined = tale.grow(tale.genesis, slot=2, records=[grant, admission])
    assert [each.envelope.id for each in some(Keep, machine.receive(joined))] == [joined.id, mine.id]
    ada = Machine(tale, "ada")
    ada.at(3)
    ada.receive(mine, joined)
    assert [each.contribution.id for each in ada.proposed(ada.at(4)).accepted] == [mine.id]


@pytest.mark.parametrize(("count", "trains"), [(1, False), (2, True)])
def test_a_newcomer_whose_invite_was_used_up_meanwhile_does_not_train(count: int, trains: bool) -> None:
    tale = story("ada")
    machine = trainer(tale, "bob")
    machine.state.trains = False
    grant = tale.grant(count=count)
    machine.receive(grant, tale.admission("bob", grant))
    machine.at(3)
    machine.receive(tale.grow(tale.genesis, slot=2, records=[grant, tale.admission("cyd", grant)]))
    machine.state.trains = True
    assert bool(some(Train, machine.at(3, 10))) is trains


def test_the_banned_do_not_train_in_an_open_swarm_either() -> None:
    tale = story(*FOUR, policy=wire.OPEN)
    machine = trainer(tale, "dan")
    machine.state.trains = False
    *targets, one, other = equivocation(tale, "dan")
    out = tale.grow(targets[0], slot=2, evidence=[tale.evidence(one, other)])
    machine.at(3)
    machine.receive(targets[0], out)
    machine.state.trains = True
    assert machine.head == out
    assert not some(Train, machine.at(3, 300))


# ---- the certifier role ----------------------------------------------------------------------------


def test_a_member_asks_for_the_certifier_role_that_its_grant_gives_until_it_is_carried() -> None:
    tale = story()
    machine = Machine(tale, "bob")
    grant = tale.grant()
    joined = tale.grow(tale.genesis, slot=1, records=[grant, tale.admission("bob", grant)])
    machine.at(2)
    assert some(SignTakeUp, machine.receive(joined))
    (request,) = [record for record in machine.state.records.values() if record.type == wire.TAKE_UP]
    assert not some(SignTakeUp, machine.at(9))
    taken = tale.grow(joined, slot=2, records=[request])
    machine.receive(taken)
    assert key("bob") in machine.head.members.certifiers
    assert not some(SignTakeUp, machine.at(20))


def test_nobody_asks_for_a_role_that_it_does_not_want_or_was_not_given() -> None:
    tale = story()
    grant = tale.grant()
    admissions = [tale.admission("bob", grant), tale.admission("cyd", grant, roles=ROLE_CONTRIBUTE)]
    joined = tale.grow(tale.genesis, slot=1, records=[grant, *admissions])
    for name, certifies in (("bob", False), ("cyd", True)):
        machine = Machine(tale, name, certifies=certifies)
        machine.at(2)
        assert not some(SignTakeUp, machine.receive(joined))
