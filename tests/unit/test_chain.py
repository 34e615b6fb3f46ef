"""What a chain says about itself: rounds, votes, finality, members and contributions (protocol sections 4, 5, 8)."""

from typing import Any

import pytest
from chains import BASE_DIGEST, Story, key, swarm_with
from swarms import CREATED_AT_MS, WINDOW_MS, id_of

from fullrank_protocol.chain import (
    ChainState,
    Mark,
    check_vote,
    common_ancestor,
    contribution_staleness,
    has_quorum,
    is_ancestor,
    max_strangers,
)
from fullrank_protocol.checkpoint import CheckpointKind, CorrectedContribution
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.membership import ROLE_CONTRIBUTE
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire


def story(*founders: str, **rules: Any) -> Story:
    return Story(swarm_with(*founders, **rules))


def refuses(tale: Story, parent: ChainState, rule: Rule, words: str, **fields: Any) -> None:
    """The checkpoint is refused by that rule, and nothing of it stays."""
    before = len(tale.tree.nodes)
    with pytest.raises(RejectError, match=words) as caught:
        tale.grow(parent, **fields)
    assert caught.value.rule is rule
    assert len(tale.tree.nodes) == before


# ---- the beginning, slots and rounds ---------------------------------------------------------------


def test_the_genesis_is_slot_0_and_round_0_justified_and_final() -> None:
    tale = story("ada", "bob")
    start = tale.genesis
    assert start.here == start.justified == start.final == start.final_before
    assert start.here == Mark(slot=0, checkpoint=tale.swarm.id)
    assert (start.round, start.depth, start.parent) == (0, 0, None)
    assert start.newest_set == start.second_set == {key("ada"), key("bob")}


def test_normal_checkpoints_count_rounds_and_empty_ones_do_not() -> None:
    tale = story()
    first = tale.round_of(tale.genesis, slot=1)
    empty = tale.grow(first, slot=2)
    second = tale.round_of(empty, slot=3)
    assert [state.round for state in (first, empty, second)] == [1, 1, 2]
    assert [state.depth for state in (first, empty, second)] == [1, 2, 3]
    assert [state.last_normal.slot for state in (first, empty, second)] == [1, 1, 3]


def test_a_normal_checkpoint_has_the_round_after_its_parents_and_an_empty_one_the_same() -> None:
    tale = story()
    empty = tale.grow(tale.genesis, slot=1)
    mine = [tale.contribution("ada")]
    refuses(tale, empty, Rule.ROUND, "says round 2, required is 1", slot=3, round=2, accepted=mine)
    refuses(tale, empty, Rule.ROUND, "says round 1, required is 0", slot=3, round=1)


def test_slots_grow_along_a_chain_and_may_be_skipped() -> None:
    tale = story()
    at_five = tale.grow(tale.genesis, slot=5)
    assert tale.grow(at_five, slot=9).slot == 9
    refuses(tale, at_five, Rule.SLOT, "has slot 5, its parent has 5", slot=5, by="ada")
    refuses(tale, at_five, Rule.SLOT, "has slot 4, its parent has 5", slot=4)


def test_only_certifiers_propose() -> None:
    tale = story()
    words = f"proposer {key('zoe').hex()[:12]} is no certifier"
    refuses(tale, tale.genesis, Rule.MEMBERSHIP, words, slot=1, by="zoe")


def test_a_member_without_the_certifier_role_does_not_propose() -> None:
    tale = story()
    grant = tale.grant()
    joined = tale.grow(tale.genesis, slot=1, records=[grant, tale.admission("bob", grant)])
    assert joined.members.is_member(key("bob"))
    refuses(tale, joined, Rule.MEMBERSHIP, "is no certifier", slot=2, by="bob")


def test_an_empty_checkpoint_keeps_the_model() -> None:
    tale = story()
    first = tale.round_of(tale.genesis, slot=1)
    assert tale.grow(first, slot=2).model_digest == first.model_digest
    refuses(tale, first, Rule.DIGEST, "accepts 0 contributions and says digest", slot=3, model_digest=id_of("another"))


def test_rule_version_1_knows_no_corrections() -> None:
    tale = story()
    corrected = [CorrectedContribution(contribution_id=id_of("old"), weight=Scaled.of(1.0))]
    fields = {"kind": CheckpointKind.CORRECTION, "corrected": corrected, "update_norm": Scaled.of(1.0)}
    refuses(tale, tale.genesis, Rule.POLICY, "rule version 1 allows 1", slot=1, model_digest=BASE_DIGEST, **fields)


def test_norms_and_breadths_of_the_newest_updates_are_kept() -> None:
    tale = story(rule={"trailing_rounds": 2})
    state = tale.genesis
    for slot, norm in ((1, 1.0), (2, 2.0), (4, 4.0)):
        state = tale.round_of(state, slot=slot, update_norm=Scaled.of(norm))
        state = tale.grow(state, slot=slot + 1) if slot == 2 else state
    assert [update.full_norm for update in state.updates] == [2.0, 4.0]
    assert [update.breadth for update in state.updates] == [1.0, 1.0]


def test_the_breadth_of_an_update_is_that_of_its_weights_and_the_norm_that_before_shortening() -> None:
    tale = story("ada", "bob", "cleo")

    three = [tale.contribution(name) for name in ("ada", "bob", "cleo")]
    one = tale.round_of(tale.genesis, slot=1, accepted=three, weights=[0.5, 0.25, 0.25])
    two = tale.round_of(one, slot=2, weights=[0.5])
    broad = 1 / (0.25 + 0.125)
    assert [update.breadth for update in two.updates] == [broad, 1.0]
    assert [update.full_norm for update in two.updates] == [1.0, 1.0 / (1.0 / (0.9 * ((broad + 1.0) / 2)))]


# ---- ancestors -------------------------------------------------------------------------------------


def test_the_common_ancestor_is_the_newest_checkpoint_on_both_chains() -> None:
    tale = story("ada", "bob")
    trunk = tale.grow(tale.genesis, slot=1)
    left = tale.grow(tale.grow(trunk, slot=2), slot=5)
    right = tale.grow(trunk, slot=4, by="bob")
    assert common_ancestor(left, right, lookup=tale.lookup) == trunk
    assert common_ancestor(right, left, lookup=tale.lookup) == trunk
    assert common_ancestor(left, trunk, lookup=tale.lookup) == trunk
    assert is_ancestor(trunk.here, left, lookup=tale.lookup)
    assert is_ancestor(left.here, left, lookup=tale.lookup)
    assert not is_ancestor(right.here, left, lookup=tale.lookup)


# ---- votes that are carried ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certifiers", "needed"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (9, 7), (10, 7)]
)
def test_more_than_two_thirds_of_the_certifiers_justify(certifiers: int, needed: int) -> None:
    names = ["ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "joe"][:certifiers]
    tale = story(*names)
    voted = [key(name) for name in names]
    assert has_quorum(frozenset(voted[:needed]), tale.genesis)
    assert not has_quorum(frozenset(voted[: needed - 1]), tale.genesis)


def test_a_checkpoint_is_justified_by_votes_that_its_descendants_carry() -> None:
    tale = story("ada", "bob", "cyd", "dan")
    a = tale.grow(tale.genesis, slot=1)
    two = tale.grow(a, slot=2, votes=tale.votes("ada bob", a))
    assert two.justified == tale.genesis.here
    three = tale.grow(two, slot=3, votes=tale.votes("cyd", a))
    assert three.justified == a.here


def test_a_late_vote_still_counts() -> None:
    tale = story("ada", "bob", "cyd")
    a = tale.grow(tale.genesis, slot=1)
    state = tale.grow(a, slot=2, votes=tale.votes("ada bob", a))
    for slot in range(3, 9):
        state = tale.grow(state, slot=slot)
    assert state.justified.slot == 0
    assert tale.grow(state, slot=9, votes=tale.votes("cyd", a)).justified == a.here


def test_a_justified_checkpoint_is_final_when_the_very_next_slot_is_justified_with_it_as_source() -> None:
    """The drawing of protocol section 8: A in slot 7, B in 8, C in 9."""
    tale = story("ada", "bob", "cyd")
    a = tale.grow(tale.genesis, slot=7)
    b = tale.grow(a, slot=8, votes=tale.votes("ada bob cyd", a))
    assert (b.justified, b.final) == (a.here, tale.genesis.here)
    c = tale.grow(b, slot=9, votes=tale.votes("ada bob cyd", b))
    assert (c.justified, c.final, c.final_before) == (b.here, a.here, tale.genesis.here)
    d = tale.grow(c, slot=10, votes=tale.votes("ada bob cyd", c))
    assert (d.justified, d.final, d.final_before) == (c.here, b.here, a.here)


def test_the_first_slot_makes_the_genesis_final_once_more_and_changes_nothing() -> None:
    tale = story()
    a = tale.grow(tale.genesis, slot=1)
    b = tale.grow(a, slot=2, votes=tale.votes("ada", a))
    assert (b.justified, b.final, b.final_before) == (a.here, tale.genesis.here, tale.genesis.here)


def test_a_skipped_slot_delays_finality_until_two_consecutive_slots_are_good() -> None:
    tale = story()
    two, four, six, seven, eight, nine = tale.line(tale.genesis, (2, 4, 6, 7, 8, 9), "ada")
    assert [state.justified.slot for state in (two, four, six, seven, eight, nine)] == [0, 2, 4, 6, 7, 8]
    assert [state.final.slot for state in (two, four, six, seven, eight, nine)] == [0, 0, 0, 0, 6, 7]


def test_votes_that_come_one_checkpoint_late_justify_but_their_source_is_too_old_to_become_final() -> None:
    """B's source is fixed when B is made: A's votes were not carried yet, so B names the genesis."""
    tale = story()
    a = tale.grow(tale.genesis, slot=1)
    b = tale.grow(a, slot=2)
    c = tale.grow(b, slot=3, votes=[*tale.votes("ada", a), *tale.votes("ada", b)])
    assert b.justified == tale.genesis.here
    assert (c.justified, c.final) == (b.here, tale.genesis.here)


def test_a_vote_names_the_source_that_its_target_fixes() -> None:
    tale = story()
    a = tale.grow(tale.genesis, slot=1)
    b = tale.grow(a, slot=2, votes=tale.votes("ada", a))
    wrong = tale.swarm.vote("ada", target=b.id, target_slot=2)
    assert wrong.source == tale.genesis.id
    words = f"names source {tale.swarm.id.hex()[:12]} of slot 0, its target's justified ancestor is {a.id.hex()[:12]}"
    refuses(tale, b, Rule.VOTE, words, slot=3, votes=[wrong])


def test_a_vote_names_the_slot_of_its_target() -> None:
    tale = story()
    a = tale.grow(tale.genesis, slot=2)
    wrong = tale.swarm.vote("ada", target=a.id, target_slot=1)
    with pytest.raises(RejectError, match="says target slot 1, its target is of slot 2"):
        check_vote(wrong, a)
    refuses(tale, a, Rule.VOTE, "which is not its ancestor", slot=3, votes=[wrong])


def test_only_certifiers_vote() -> None:
    tale = story()
    a = tale.grow(tale.genesis, slot=1)
    words = f"{key('zoe').hex()[:12]} is no certifier for this target"
    refuses(tale, a, Rule.VOTE, words, slot=2, votes=tale.votes("zoe", a))


def test_votes_are_carried_for_ancestors_only() -> None:
    tale = story("ada", "bob")
    a = tale.grow(tale.genesis, slot=1)
    other = tale.grow(tale.genesis, slot=1, by="bob")
    words = f"carries a vote for {other.id.hex()[:12]}, which is not its ancestor"
    refuses(tale, a, Rule.VOTE, words, slot=2, votes=tale.votes("ada", other))


def test_a_vote_is_carried_once() -> None:
    tale = story("ada", "bob", "cyd")
    a = tale.grow(tale.genesis, slot=1)
    b = tale.grow(a, slot=2, votes=tale.votes("ada", a))
    words = f"carries a second vote of {key('ada').hex()[:12]} for one target"
    refuses(tale, b, Rule.DUPLICATE, words, slot=3, votes=tale.votes("ada", a))


def test_votes_for_what_is_final_are_not_carried_any_more() -> None:
    tale = story("ada", "bob", "cyd", "dan")
    *_, last = tale.line(tale.genesis, (1, 2, 3), "ada bob cyd")
    assert last.final.slot == 1
    a = tale.tree.state(last.final.checkpoint)
    words = "carries a vote for slot 1, final is 1 already"
    refuses(tale, last, Rule.VOTE, words, slot=4, votes=tale.votes("dan", a))


# ---- the certifier set changes ---------------------------------------------------------------------


def joined(tale: Story, *names: str, slot: int = 1) -> ChainState:
    """Members by an invite of ada's, in a first checkpoint."""
    grant = tale.grant()
    return tale.grow(tale.genesis, slot=slot, records=[grant, *(tale.admission(name, grant) for name in names)])


def test_the_certifier_set_changes_by_one() -> None:
    tale = story()
    members = joined(tale, "bob", "cyd")
    two = [tale.take_up("bob"), tale.take_up("cyd")]
    refuses(tale, members, Rule.CERTIFIERS, "changes the certifier set by 2 keys, 1 is allowed", slot=2, records=two)
    grown = tale.grow(members, slot=2, records=two[:1])
    assert grown.members.certifiers == {key("ada"), key("bob")}
    assert grown.certifier_change == grown.here


def test_one_in_and_one_out_are_two_changes() -> None:
    tale = story("ada", "bob", "cyd")
    members = joined(tale, "dan")
    swap = [tale.take_up("dan"), tale.leave("bob", certifier_role_only=True)]
    refuses(tale, members, Rule.CERTIFIERS, "by 2 keys", slot=2, records=swap)


def test_the_next_change_waits_until_the_last_one_is_final_on_the_chain() -> None:
    tale = story()
    members = joined(tale, "bob", "cyd")
    change = tale.grow(members, slot=2, records=[tale.take_up("bob")])
    three = tale.grow(change, slot=3, votes=tale.votes("ada", change))
    words = r"while the change of slot 2 is not final \(newest final slot 0\)"
    refuses(tale, three, Rule.CERTIFIERS, words, slot=4, records=[tale.take_up("cyd")])
    four = tale.grow(three, slot=4, votes=tale.votes("ada", three))
    assert four.final == change.here
    assert tale.grow(four, slot=5, records=[tale.take_up("cyd")]).members.certifiers == {
        key(name) for name in ("ada", "bob", "cyd")
    }


def test_a_change_may_come_with_the_votes_that_make_the_last_one_final_only_one_checkpoint_later() -> None:
    """The parent's chain must show it, not the checkpoint's own votes."""
    tale = story()
    members = joined(tale, "bob", "cyd")
    change = tale.grow(members, slot=2, records=[tale.take_up("bob")])
    three = tale.grow(change, slot=3, votes=tale.votes("ada", change))
    both = {"votes": tale.votes("ada", three), "records": [tale.take_up("cyd")]}
    refuses(tale, three, Rule.CERTIFIERS, "is not final", slot=4, **both)


def test_the_last_certifier_stays() -> None:
    tale = story()
    refuses(tale, tale.genesis, Rule.CERTIFIERS, "last certifier", slot=1, records=[tale.leave("ada")])


def test_a_new_certifier_proposes_from_the_next_checkpoint_on_and_votes_once_its_change_is_final() -> None:
    tale = story()
    members = joined(tale, "bob")
    change = tale.grow(members, slot=2, records=[tale.take_up("bob")])
    three = tale.grow(change, slot=3, by="bob", votes=tale.votes("ada", change))
    assert three.newest_set == {key("ada")}
    refuses(tale, three, Rule.VOTE, "is no certifier for this target", slot=4, votes=tale.votes("bob", three))
    four = tale.grow(three, slot=4, votes=tale.votes("ada", three))
    assert four.newest_set == {key("ada"), key("bob")}
    assert four.second_set == {key("ada")}
    assert tale.grow(four, slot=5, votes=tale.votes("bob", four)).justified == three.here


def test_a_quorum_is_needed_in_the_newest_and_in_the_second_newest_set() -> None:
    """Of the new set of four, three are enough; of the old set of three, all three are needed."""
    tale = story("ada", "bob", "cyd")
    members = joined(tale, "dan")
    change = tale.grow(members, slot=2, records=[tale.take_up("dan")])
    three = tale.grow(change, slot=3, votes=tale.votes("ada bob cyd", change))
    four = tale.grow(three, slot=4, votes=tale.votes("ada bob cyd", three))
    assert (len(four.newest_set), len(four.second_set)) == (4, 3)
    assert tale.grow(four, slot=5, votes=tale.votes("ada bob dan", four)).justified == three.here
    assert tale.grow(four, slot=6, votes=tale.votes("ada bob cyd", four)).justified == four.here


def test_the_old_set_stops_counting_when_it_is_third_newest() -> None:
    tale = story("ada", "bob", "cyd")
    members = joined(tale, "dan")
    change = tale.grow(members, slot=2, records=[tale.take_up("dan")])
    three = tale.grow(change, slot=3, votes=tale.votes("ada bob cyd", change))
    four = tale.grow(three, slot=4, votes=tale.votes("ada bob cyd", three))
    five = tale.grow(four, slot=5, votes=tale.votes("ada bob cyd", four))
    assert five.final == three.here
    assert five.newest_set == five.second_set == {key(name) for name in ("ada", "bob", "cyd", "dan")}
    assert tale.grow(five, slot=6, votes=tale.votes("ada bob dan", five)).justified == five.here


# ---- evidence --------------------------------------------------------------------------------------


def two_votes_for_one_slot(tale: Story, name: str) -> list[Any]:
    targets = [tale.grow(tale.genesis, slot=1, by=proposer) for proposer in ("ada", "bob")]
    return [tale.vote(name, target) for target in targets]


def test_evidence_excludes_from_the_checkpoint_that_carries_it_on() -> None:
    tale = story("ada", "bob", "cyd", "dan")
    proof = tale.evidence(*two_votes_for_one_slot(tale, "dan"))
    before = tale.round_of(tale.genesis, slot=2, by="dan", accepted=[tale.contribution("dan")])
    out = tale.grow(before, slot=3, evidence=[proof])
    assert before.members.certifiers - out.members.certifiers == {key("dan")}
    assert not out.members.is_member(key("dan"))
    assert out.model_digest == before.model_digest
    refuses(tale, out, Rule.MEMBERSHIP, "is no certifier", slot=4, by="dan")
    late = tale.contribution("dan", out)
    refuses(tale, out, Rule.MEMBERSHIP, "was excluded for breaking a voting rule", slot=4, accepted=[late])


def test_the_excluded_ones_earlier_votes_and_contributions_stand() -> None:
    tale = story("ada", "bob", "cyd", "dan")
    proof = tale.evidence(*two_votes_for_one_slot(tale, "dan"))
    a = tale.round_of(tale.genesis, slot=2, accepted=[tale.contribution("dan")])
    out = tale.grow(a, slot=3, votes=tale.votes("ada bob dan", a), evidence=[proof])
    assert (out.justified, out.round) == (a.here, 1)


def test_somebody_is_excluded_once() -> None:
    tale = story("ada", "bob", "cyd", "dan")
    votes = two_votes_for_one_slot(tale, "dan")
    out = tale.grow(tale.genesis, slot=2, evidence=[tale.evidence(*votes)])
    again = tale.evidence(*votes, by="bob")
    refuses(tale, out, Rule.DUPLICATE, "is excluded already", slot=3, evidence=[again])


def test_an_exclusion_is_a_change_of_the_certifier_set() -> None:
    tale = story("ada", "bob", "cyd", "dan")
    members = joined(tale, "eve")
    proof = tale.evidence(*two_votes_for_one_slot(tale, "dan"))
    both = {"records": [tale.take_up("eve")], "evidence": [proof]}
    refuses(tale, members, Rule.CERTIFIERS, "by 2 keys", slot=2, **both)


# ---- contributions ---------------------------------------------------------------------------------


def test_staleness_is_counted_in_rounds_since_the_base() -> None:
    tale = story("ada", "bob")
    late = tale.contribution("bob")
    state = tale.genesis
    for slot, expected in ((1, 0), (2, 1), (3, 2), (4, 3)):
        found, since = contribution_staleness(late, state, genesis=tale.swarm.genesis, lookup=tale.lookup)
        assert (found, since) == (expected, 0)
        state = tale.round_of(state, slot=slot)
    with pytest.raises(RejectError, match="is 4 rounds old, at most 3 are accepted") as caught:
        contribution_staleness(late, state, genesis=tale.swarm.genesis, lookup=tale.lookup)
    assert caught.value.rule is Rule.STALE
    refuses(tale, state, Rule.STALE, "is 4 rounds old", slot=5, accepted=[late])


def test_empty_checkpoints_make_nothing_stale() -> None:
    tale = story("ada", "bob")
    *_, last = tale.line(tale.genesis, range(1, 9), "ada bob")
    assert contribution_staleness(tale.contribution("bob"), last, genesis=tale.swarm.genesis, lookup=tale.lookup) == (
        0,
        0,
    )


def test_where_the_base_fell_off_the_chain_staleness_counts_from_the_common_ancestor() -> None:
    """Base: round 3 on a lost branch. It parted from ours after round 1; ours has round 3 now: 2 rounds old."""
    tale = story("ada", "bob")
    one = tale.round_of(tale.genesis, slot=1)
    lost = tale.round_of(tale.round_of(one, slot=2), slot=3)
    ours = tale.round_of(tale.round_of(one, slot=2, by="bob"), slot=4, by="bob")
    late = tale.contribution("bob", lost)
    assert contribution_staleness(late, ours, genesis=tale.swarm.genesis, lookup=tale.lookup) == (2, 1)
    assert tale.grow(ours, slot=5, accepted=[late]).round == 4


def test_a_contribution_says_the_slot_of_its_base() -> None:
    tale = story()
    one = tale.round_of(tale.genesis, slot=1)
    wrong = tale.contribution("ada", one, base_slot=7)
    refuses(tale, one, Rule.SLOT, "says base slot 7, its base is of slot 1", slot=2, accepted=[wrong])


def test_an_unknown_base_is_nobodys_fault() -> None:
    tale = story()
    wrong = tale.contribution("ada", base_checkpoint=id_of("elsewhere"), base_slot=1)
    with pytest.raises(IgnoreError, match=f"base checkpoint {id_of('elsewhere').hex()[:12]} is not known"):
        tale.grow(tale.genesis, slot=2, accepted=[wrong])


@pytest.mark.parametrize("first", ["accepted", "refused"])
@pytest.mark.parametrize("second", ["accepted", "refused"])
def test_a_second_contribution_on_one_base_is_refused_whatever_became_of_the_first(first: str, second: str) -> None:
    tale = story("ada", "bob")
    one = tale.contribution("bob", num_tokens=1)
    other = tale.contribution("bob", num_tokens=2)
    fields: dict[str, Any] = {first: [one]}
    state = tale.grow(tale.genesis, slot=1, **fields)
    state = tale.round_of(state, slot=2)
    words = f"second contribution of {key('bob').hex()[:12]} on base {tale.genesis.id.hex()[:12]}, 1 allowed"
    refuses(tale, state, Rule.DUPLICATE, words, slot=3, **{second: [other]})
    refuses(tale, state, Rule.DUPLICATE, words, slot=3, **{second: [one]})


def test_a_member_contributes_on_every_base_and_to_both_branches() -> None:
    tale = story("ada", "bob")
    on_genesis = tale.contribution("bob")
    left = tale.grow(tale.genesis, slot=1, accepted=[on_genesis])
    right = tale.grow(tale.genesis, slot=1, by="bob", accepted=[on_genesis])
    assert (left.round, right.round) == (1, 1)
    both = tale.grow(left, slot=2, accepted=[tale.contribution("bob", left), tale.contribution("bob", right)])
    assert len(both.used) == 3


def test_what_is_too_stale_to_come_again_is_not_remembered() -> None:
    tale = story()
    state = tale.genesis
    for slot in range(1, 7):
        state = tale.round_of(state, slot=slot)
        assert len(state.used) == min(slot, 3)
    refuses(tale, state, Rule.STALE, "is 6 rounds old", slot=9, accepted=[tale.contribution("ada", num_tokens=9)])


def test_members_contribute_from_the_checkpoint_after_their_admission() -> None:
    tale = story()
    grant = tale.grant()
    admission = tale.admission("bob", grant)
    mine = tale.contribution("bob")
    refuses(
        tale,
        tale.genesis,
        Rule.MEMBERSHIP,
        f"is by {key('bob').hex()[:12]}, who is not a contributing member",
        slot=1,
        records=[grant, admission],
        accepted=[mine],
    )
    member = tale.grow(tale.genesis, slot=1, records=[grant, admission])
    assert member.members.may(key("bob"), ROLE_CONTRIBUTE)
    assert tale.grow(member, slot=2, accepted=[mine]).round == 1


def test_an_invite_swarm_takes_no_strangers() -> None:
    tale = story()
    stranger = tale.contribution("zoe")
    refuses(tale, tale.genesis, Rule.MEMBERSHIP, "is not a contributing member", slot=1, accepted=[stranger])


OPEN = {"policy": wire.OPEN, "rule": {"max_contributions": 5, "open_share_micro": 400_000}}


def test_an_open_swarm_has_places_for_strangers() -> None:
    """Two fifths of five places are two."""
    tale = story("ada", **OPEN)
    assert max_strangers(tale.swarm.genesis) == 2
    strangers = [tale.contribution(name) for name in ("xan", "yas", "zoe")]
    assert tale.grow(tale.genesis, slot=1, accepted=[tale.contribution("ada"), *strangers[:2]]).round == 1
    words = "holds 3 contributions of strangers, 2 fit"
    refuses(tale, tale.genesis, Rule.POLICY, words, slot=2, accepted=strangers)
    refuses(tale, tale.genesis, Rule.POLICY, words, slot=2, accepted=strangers[:1], refused=strangers[1:])


def test_the_banned_are_no_strangers_either() -> None:
    tale = story("ada", "bob", "cyd", "dan", **OPEN)
    out = tale.grow(tale.genesis, slot=2, evidence=[tale.evidence(*two_votes_for_one_slot(tale, "dan"))])
    mine = tale.contribution("dan")
    refuses(tale, out, Rule.MEMBERSHIP, "was excluded for breaking a voting rule", slot=3, accepted=[mine])


def test_a_checkpoint_accepts_as_many_as_the_genesis_says() -> None:
    names = ("ada", "bob", "cyd")
    tale = story(*names, rule={"max_contributions": 2})
    three = [tale.contribution(name) for name in names]
    refuses(
        tale,
        tale.genesis,
        Rule.SIZE,
        "the number of accepted contributions is 3, 0 to 2 required",
        slot=1,
        accepted=three,
    )


def test_an_invite_ends_with_time_also_for_a_checkpoint() -> None:
    tale = story()
    grant = tale.grant(not_after_ms=CREATED_AT_MS + 4 * WINDOW_MS)
    granted = tale.grow(tale.genesis, slot=1, records=[grant])
    late = tale.admission("bob", grant)
    refuses(tale, granted, Rule.RECORD, "invite expired", slot=4, records=[late])
    assert tale.grow(granted, slot=3, records=[late]).members.is_member(key("bob"))
