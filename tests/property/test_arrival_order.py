"""Whatever the order in which objects arrive, a node ends with the same head, the same final and the same culprits."""

import random

from chains import Story, swarm_with
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import Machine, Thing, some

from fullrank_protocol.chain import ChainState, is_ancestor
from fullrank_protocol.round_io import SignEvidence

NAMES = ("ada", "bob", "cyd", "dan")
SWARM = swarm_with(*NAMES)

branches = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2, 3, 0]), st.sampled_from([1, 1, 1, 2]), st.sampled_from(NAMES)),
    min_size=1,
    max_size=8,
)
"""Checkpoints: (how many places before it its parent stands, 0 for the genesis; slots after the parent; proposer)."""

ballots = st.lists(st.sampled_from([NAMES, NAMES[:3], NAMES[1:], NAMES[:1], ()]), min_size=8, max_size=8)
"""Who votes for each checkpoint; nothing keeps them honest."""

Shape = list[tuple[int, int, str]]
Ballots = list[tuple[str, ...]]


def story_of(shape: Shape, cast: Ballots) -> tuple[Story, list[Thing]]:
    """A tree of this shape, each checkpoint carrying the votes that its chain lacks, and every object of it."""
    tale = Story(SWARM)
    states: list[ChainState] = []
    for which, gap, proposer in shape:
        parent = states[-which] if 0 < which <= len(states) else tale.genesis
        votes = [
            vote
            for number, state in enumerate(states)
            if state.slot > parent.final.slot and is_ancestor(state.here, parent, lookup=tale.lookup)
            for vote in tale.votes(" ".join(cast[number]), state)
            if vote.voter not in parent.voters.get(state.id, frozenset())
        ]
        slot = parent.slot + gap
        while any((state.slot, state.parent) == (slot, parent.id) for state in states):
            slot += 1
        states.append(tale.grow(parent, slot=slot, by=proposer, votes=votes))
    loose = [vote for number, state in enumerate(states) for vote in tale.votes(" ".join(cast[number]), state)]
    return tale, [*states, *loose]


@settings(max_examples=60)
@given(shape=branches, cast=ballots, order=st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(shape: Shape, cast: Ballots, order: random.Random) -> None:
    tale, things = story_of(shape, cast)
    outcomes: list[tuple[object, ...]] = []
    for shuffled in (False, True):
        if shuffled:
            order.shuffle(things)
        node = Machine(tale, "zoe")
        node.at(200)
        actions = node.receive(*things)
        accused = {each.first.voter for each in some(SignEvidence, actions)}
        assert len(node.state.parked) == 0
        assert not node.state.unverified
        if node.state.tree.conflict is None:
            outcomes.append((accused, node.head.here, node.state.tree.final))
        else:
            outcomes.append((accused, "conflict"))
    assert outcomes[0] == outcomes[1]


@settings(max_examples=60)
@given(shape=branches, cast=ballots)
def test_what_a_chain_carries_never_goes_backwards(shape: Shape, cast: Ballots) -> None:
    tale, _ = story_of(shape, cast)
    for node in tale.tree.nodes.values():
        state = node.state
        assert state.final_before.slot <= state.final.slot <= state.justified.slot <= state.slot
        if state.parent is not None:
            parent = tale.tree.state(state.parent)
            assert parent.final.slot <= state.final.slot
            assert parent.justified.slot <= state.justified.slot < state.slot
            assert tale.tree.nodes[state.justified.checkpoint].state.here == state.justified


@settings(max_examples=60)
@given(shape=branches, cast=ballots, kill_at=st.integers(0, 30))
def test_a_kill_at_any_moment_changes_nothing(shape: Shape, cast: Ballots, kill_at: int) -> None:
    tale, things = story_of(shape, cast)
    steady, killed = Machine(tale, "zoe"), Machine(tale, "zoe")
    steady.at(200)
    killed.at(200)
    steady.receive(*things)
    killed.receive(*things[:kill_at])
    killed = killed.restarted()
    killed.receive(*things)
    if steady.state.tree.conflict is None:
        assert killed.head == steady.head
        assert killed.state.tree.final == steady.state.tree.final
