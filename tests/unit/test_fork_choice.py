"""Which head a node builds on, and what is final in its view (protocol section 8)."""

from typing import Any

import pytest
from chains import Story, altered, key, swarm_with
from swarms import id_of

from fullrank_protocol.chain import ChainState
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.vote import Vote


def story(*founders: str, **rules: Any) -> Story:
    return Story(swarm_with(*founders, **rules))


def cast(tale: Story, names: str, target: ChainState) -> list[Vote]:
    """Votes that no checkpoint carries yet."""
    votes = tale.votes(names, target)
    for vote in votes:
        tale.tree.add_vote(vote)
    return votes


def two_children(tale: Story, parent: ChainState, *, slot: int) -> tuple[ChainState, ChainState]:
    """Rivals of one slot: the one with the lower id first."""
    rivals = [tale.grow(parent, slot=slot, by=name) for name in ("ada", "bob")]
    low, high = sorted(rivals, key=lambda state: state.id)
    return low, high


FOUR = ("ada", "bob", "cyd", "dan")


# ---- the head --------------------------------------------------------------------------------------


def test_the_head_of_an_empty_swarm_is_the_genesis() -> None:
    tale = story()
    assert tale.tree.head() == tale.genesis


def test_without_votes_the_head_is_the_leaf_that_the_lower_ids_lead_to() -> None:
    tale = story("ada", "bob")
    low, high = two_children(tale, tale.genesis, slot=1)
    assert tale.tree.head() == low
    leaf = tale.grow(low, slot=2)
    tale.grow(tale.grow(high, slot=2), slot=3)
    assert tale.tree.head() == leaf


def test_at_each_fork_the_head_follows_the_subtree_with_the_most_latest_votes() -> None:
    """Two votes below `high` in two different branches outweigh one for `low`."""
    tale = story(*FOUR)
    low, high = two_children(tale, tale.genesis, slot=1)
    left, right = tale.grow(high, slot=2, by="ada"), tale.grow(high, slot=2, by="bob")
    cast(tale, "ada", low)
    cast(tale, "bob", left)
    assert tale.tree.head() == low
    cast(tale, "cyd", right)
    assert tale.tree.head() == min(left, right, key=lambda state: state.id)
    cast(tale, "dan", right)
    assert tale.tree.head() == right


def test_only_the_latest_vote_of_a_certifier_counts_whatever_the_order_of_arrival() -> None:
    tale = story(*FOUR)
    low, high = two_children(tale, tale.genesis, slot=1)
    later = tale.grow(low, slot=3)
    cast(tale, "ada", later)
    cast(tale, "ada", high)
    cast(tale, "bob", high)
    assert tale.tree.head() == later
    cast(tale, "cyd", high)
    assert tale.tree.head() == high


def test_of_two_votes_for_one_slot_the_lower_target_counts() -> None:
    tale = story("ada", "bob", "cyd")
    low, high = two_children(tale, tale.genesis, slot=1)
    cast(tale, "ada", high)
    assert tale.tree.head() == high
    cast(tale, "ada", low)
    assert tale.tree.head() == low


def test_votes_of_others_than_certifiers_do_not_count() -> None:
    tale = story("ada", "bob")
    _, high = two_children(tale, tale.genesis, slot=1)
    with pytest.raises(RejectError, match=f"{key('zoe').hex()[:12]} is no certifier") as caught:
        cast(tale, "zoe", high)
    assert caught.value.rule is Rule.VOTE


def test_what_was_not_recomputed_here_is_no_head_and_neither_are_its_descendants() -> None:
    tale = story("ada", "bob")
    one = tale.grow(tale.genesis, slot=1)
    two = tale.grow(one, slot=2, holds=None)
    three = tale.grow(two, slot=3, holds=None)
    assert tale.tree.head() == one
    tale.tree.set_verdict(three.id, holds=True)
    assert tale.tree.head() == one
    tale.tree.set_verdict(two.id, holds=True)
    assert tale.tree.head() == three


def test_a_refused_checkpoint_takes_its_descendants_along() -> None:
    tale = story("ada", "bob")
    one = tale.grow(tale.genesis, slot=1, holds=None)
    two = tale.grow(one, slot=2, holds=None)
    tale.tree.set_verdict(one.id, holds=False)
    assert tale.tree.nodes[two.id].verdict is False
    assert tale.tree.head() == tale.genesis
    with pytest.raises(RejectError, match=f"follows {two.id.hex()[:12]}, which was refused") as caught:
        tale.grow(two, slot=3)
    assert caught.value.rule is Rule.PARENT


def test_the_search_starts_at_the_highest_justified_checkpoint_even_against_more_latest_votes() -> None:
    tale = story(*FOUR)
    low, high = two_children(tale, tale.genesis, slot=1)
    other = tale.grow(high, slot=5)
    cast(tale, "ada bob cyd", low)
    cast(tale, "ada bob cyd", other)
    assert tale.tree.is_justified(low.id)
    assert tale.tree.is_justified(other.id)
    assert tale.tree.highest_justified() == other
    cast(tale, "ada bob", tale.grow(low, slot=6))
    assert tale.tree.head() == other


def test_a_justified_checkpoint_that_was_not_recomputed_here_does_not_lead() -> None:
    tale = story("ada", "bob", "cyd")
    one = tale.grow(tale.genesis, slot=1, holds=None)
    other = tale.grow(tale.genesis, slot=1, by="bob")
    cast(tale, "ada bob cyd", one)
    assert tale.tree.is_justified(one.id)
    assert tale.tree.head() == other
    tale.tree.set_verdict(one.id, holds=True)
    assert tale.tree.head() == one


# ---- final in a node's view ------------------------------------------------------------------------


def test_votes_that_no_checkpoint_carries_count_for_a_reader() -> None:
    tale = story("ada", "bob", "cyd")
    one = tale.grow(tale.genesis, slot=1)
    two = tale.grow(one, slot=2, votes=tale.votes("ada bob cyd", one))
    assert tale.tree.final == tale.genesis.here
    cast(tale, "ada bob", two)
    assert (tale.tree.is_justified(two.id), tale.tree.final) == (False, tale.genesis.here)
    cast(tale, "cyd", two)
    assert (tale.tree.is_justified(two.id), tale.tree.final) == (True, one.here)
    assert tale.tree.is_final(one)
    assert tale.tree.is_final(tale.genesis)
    assert not tale.tree.is_final(two)


def test_sources_come_from_carried_votes_only() -> None:
    """One is justified for a reader; a vote for two must still name the genesis, and makes nothing final."""
    tale = story("ada", "bob", "cyd")
    one = tale.grow(tale.genesis, slot=1)
    cast(tale, "ada bob cyd", one)
    two = tale.grow(one, slot=2)
    assert two.justified == tale.genesis.here
    cast(tale, "ada bob cyd", two)
    assert tale.tree.is_justified(two.id)
    assert tale.tree.final == tale.genesis.here


def test_with_one_certifier_a_round_is_final_when_the_next_slot_is_voted_for() -> None:
    tale = story("ada")
    one = tale.round_of(tale.genesis, slot=1)
    cast(tale, "ada", one)
    assert tale.tree.final == tale.genesis.here
    two = tale.grow(one, slot=2, votes=tale.votes("ada", one))
    cast(tale, "ada", two)
    assert tale.tree.final == one.here


def test_final_waits_until_the_node_has_recomputed_it() -> None:
    tale = story("ada", "bob", "cyd")
    one = tale.grow(tale.genesis, slot=1, holds=None)
    two = tale.grow(one, slot=2, votes=tale.votes("ada bob cyd", one), holds=None)
    cast(tale, "ada bob cyd", two)
    assert tale.tree.final == tale.genesis.here
    tale.tree.set_verdict(one.id, holds=True)
    assert tale.tree.final == one.here


def test_votes_arrive_before_or_after_what_carries_them() -> None:
    tale = story("ada", "bob", "cyd")
    one = tale.grow(tale.genesis, slot=1)
    early = cast(tale, "ada bob cyd", one)
    two = tale.grow(one, slot=2, votes=early)
    assert tale.tree.votes_for(one.id) == sorted(early, key=lambda vote: vote.id)
    cast(tale, "ada bob cyd", two)
    assert tale.tree.final == one.here


def test_a_node_never_leaves_its_own_final_checkpoint() -> None:
    tale = story(*FOUR)
    one = tale.grow(tale.genesis, slot=1)
    two = tale.grow(one, slot=2, votes=tale.votes("ada bob cyd", one))
    cast(tale, "ada bob cyd", two)
    assert tale.tree.final == one.here
    rival = tale.grow(tale.genesis, slot=9, by="bob")
    cast(tale, "ada bob cyd dan", rival)
    assert tale.tree.is_justified(rival.id)
    assert tale.tree.head() == two
    assert tale.tree.conflict is None


def conflicting(tale: Story) -> tuple[ChainState, ChainState]:
    """Two final checkpoints of slots 1 and 5 on two branches; three of four certifiers vote for both."""
    ours = tale.grow(tale.genesis, slot=1)
    above = tale.grow(ours, slot=2, votes=tale.votes("ada bob cyd", ours))
    cast(tale, "ada bob cyd", above)
    theirs = tale.grow(tale.genesis, slot=5, by="bob")
    higher = tale.grow(theirs, slot=6, by="bob", votes=tale.votes("ada bob dan", theirs))
    cast(tale, "ada bob dan", higher)
    return ours, theirs


def test_of_two_conflicting_final_checkpoints_a_node_keeps_its_own_and_knows_of_the_other() -> None:
    tale = story(*FOUR)
    ours, theirs = conflicting(tale)
    assert tale.tree.final == ours.here
    assert tale.tree.conflict == (ours.here, theirs.here)
    assert tale.tree.head().slot == 2


def test_after_a_conflict_nothing_else_becomes_final() -> None:
    tale = story(*FOUR)
    conflicting(tale)
    state = tale.tree.head()
    for slot in (7, 8, 9):
        state = tale.grow(state, slot=slot, votes=tale.votes("ada bob cyd", state))
        cast(tale, "ada bob cyd", state)
    assert tale.tree.highest_justified() == state
    assert tale.tree.final.slot == 1


def test_conflicting_final_checkpoints_need_more_than_a_third_who_left_evidence() -> None:
    """Ada and bob of four voted on both branches: their 0 -> 5 surrounds their 1 -> 2."""
    tale = story(*FOUR)
    accused: set[bytes] = set()
    add_vote = tale.tree.add_vote

    def note(vote: Vote) -> Any:
        offences = add_vote(vote)
        accused.update(offence.first.voter for offence in offences)
        return offences

    tale.tree.add_vote = note  # type: ignore[method-assign]
    conflicting(tale)
    assert accused == {key("ada"), key("bob")}
    assert 3 * len(accused) > len(FOUR)


def test_a_late_conflict_below_our_final_is_noticed_too() -> None:
    tale = story(*FOUR)
    start = tale.genesis
    rival = tale.grow(start, slot=1, by="bob")
    above = tale.grow(rival, slot=2, by="bob", votes=tale.votes("ada bob dan", rival))
    *_, last = tale.line(start, (1, 2, 3, 4), "ada bob cyd")
    cast(tale, "ada bob cyd", last)
    assert tale.tree.final.slot == 3
    cast(tale, "ada bob dan", above)
    assert tale.tree.conflict == (tale.tree.final, rival.here)
    assert tale.tree.final.slot == 3


# ---- offences --------------------------------------------------------------------------------------


def test_two_votes_for_one_slot_are_reported_once_with_the_lower_id_first() -> None:
    tale = story("ada", "bob", "cyd")
    low, high = two_children(tale, tale.genesis, slot=1)
    one, other = tale.vote("cyd", low), tale.vote("cyd", high)
    assert tale.tree.add_vote(one) == []
    (offence,) = tale.tree.add_vote(other)
    assert [offence.first, offence.second] == sorted([one, other], key=lambda vote: vote.id)
    assert tale.tree.add_vote(other) == []


def test_a_vote_around_another_is_reported_in_either_order() -> None:
    """Inner 1 -> 2 on one branch, outer 0 -> 3 on another."""
    for first_is_outer in (False, True):
        tale = story("ada", "bob", "cyd")
        one = tale.grow(tale.genesis, slot=1)
        inner = tale.grow(one, slot=2, votes=tale.votes("ada bob cyd", one))
        outer = tale.grow(tale.genesis, slot=3, by="bob")
        votes = [tale.vote("cyd", inner), tale.vote("cyd", outer)]
        assert [(vote.source_slot, vote.target_slot) for vote in votes] == [(1, 2), (0, 3)]
        first, second = votes[::-1] if first_is_outer else votes
        assert tale.tree.add_vote(first) == []
        assert len(tale.tree.add_vote(second)) == 1


def test_an_offence_inside_a_checkpoint_is_reported_when_it_is_placed() -> None:
    tale = story("ada", "bob", "cyd")
    low, high = two_children(tale, tale.genesis, slot=1)
    cast(tale, "cyd", low)
    carrier = tale.checkpoint(high, slot=2, votes=tale.votes("cyd", high))
    _, offences = tale.tree.add(carrier)
    assert [offence.first.voter for offence in offences] == [key("cyd")]


def test_a_vote_sent_twice_is_no_offence() -> None:
    tale = story("ada", "bob")
    one = tale.grow(tale.genesis, slot=1)
    vote = tale.vote("ada", one)
    assert tale.tree.add_vote(vote) == tale.tree.add_vote(vote) == []
    assert tale.tree.votes_for(one.id) == [vote]


# ---- placing and reading ---------------------------------------------------------------------------


def test_what_is_known_or_follows_the_unknown_is_nobodys_fault() -> None:
    tale = story()
    one = tale.checkpoint(tale.genesis, slot=1)
    tale.tree.add(one)
    with pytest.raises(IgnoreError, match="known already"):
        tale.tree.add(one)
    with pytest.raises(IgnoreError, match=r"parent \w+ is not known"):
        Story(swarm_with("ada", "bob")).tree.add(altered(one, parent=id_of("elsewhere")))
    vote = tale.swarm.vote("ada", target=id_of("elsewhere"), target_slot=2)
    with pytest.raises(IgnoreError, match=r"target \w+ is not known"):
        tale.tree.add_vote(vote)


def test_who_has_not_voted_is_named() -> None:
    tale = story("ada", "bob", "cyd")
    one = tale.grow(tale.genesis, slot=1)
    cast(tale, "bob", one)
    assert tale.tree.missing_voters(one.id) == {key("ada"), key("cyd")}


def test_a_chain_is_read_oldest_first_without_the_genesis() -> None:
    tale = story()
    line = tale.line(tale.genesis, (1, 2, 5), "ada")
    assert [node.state for node in tale.tree.chain(line[-1].id)] == line
    assert [node.state.slot for node in tale.tree.chain(line[-1].id, above_slot=1)] == [2, 5]
    assert tale.tree.chain(tale.genesis.id) == []


def test_two_trees_that_saw_the_same_in_another_order_agree() -> None:
    tale = story(*FOUR)
    line = tale.line(tale.genesis, (1, 2, 3), "ada bob cyd")
    side = tale.grow(line[0], slot=4, by="bob")
    loose = [*tale.votes("ada bob cyd", line[-1]), tale.vote("dan", side)]
    for vote in loose:
        tale.tree.add_vote(vote)
    other = Tree(tale.swarm.genesis)
    placed = [node.checkpoint for node in tale.tree.nodes.values() if node.checkpoint is not None]
    for checkpoint in sorted(placed, key=lambda each: each.slot):
        other.add(checkpoint)
    for vote in reversed(loose):
        other.add_vote(vote)
    for checkpoint in sorted(placed, key=lambda each: -each.slot):
        other.set_verdict(checkpoint.id, holds=True)
    assert other.head() == tale.tree.head()
    assert other.final == tale.tree.final
    assert other.final.slot == 2


def test_refusing_a_checkpoint_refuses_a_long_chain_after_it() -> None:
    tale = Story(swarm_with("ada"))
    first = tip = tale.grow(tale.genesis, slot=1, holds=None)
    for slot in range(2, 1500):
        tip = tale.grow(tip, slot=slot, holds=None)
    tale.tree.set_verdict(first.id, holds=False)
    assert tale.tree.nodes[tip.id].verdict is False


def test_a_contradiction_by_votes_counts_before_it_is_recomputed_here() -> None:
    tale = Story(swarm_with("ada"))
    ours = tale.line(tale.genesis, [1, 2], "ada")
    for vote in tale.votes("ada", ours[-1]):
        tale.tree.add_vote(vote)
    assert tale.tree.final.slot == 1
    theirs = tale.grow(tale.genesis, slot=5, holds=None)
    child = tale.grow(theirs, slot=6, votes=tale.votes("ada", theirs), holds=None)
    assert tale.tree.conflict is None
    for vote in tale.votes("ada", child):
        tale.tree.add_vote(vote)
    assert tale.tree.conflict == (tale.tree.final, theirs.here)
    assert tale.tree.final.slot == 1
