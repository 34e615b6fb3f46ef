"""Which checkpoint a pull takes, and what it says of one that is not final (protocol section 8)."""

from pathlib import Path

import pytest
from chains import Story, key, swarm_with

from fullrank_node.choosing import choose, require_no_conflict
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.names import name_of
from fullrank_node.standing import Standing, standing_of
from fullrank_protocol.chain import ChainState

FIVE = ("ada", "bob", "cyd", "dan", "eve")
ALL = " ".join(FIVE)
STALL = 6


class Swarm:
    """A round in each slot; rounds 1 and 2 are final. From slot 4 on, only `present` vote."""

    def __init__(self, present: str = "ada bob cyd", *, slots: int = 9) -> None:
        self.tale = Story(swarm_with(*FIVE, timing={"stall_slots": STALL}))
        self.rounds: list[ChainState] = []
        tip, voters = self.tale.genesis, ALL
        for slot in range(1, slots + 1):
            voters = ALL if slot <= 4 else present
            tip = self.tale.round_of(tip, slot=slot, votes=self.tale.votes(voters, tip) if tip.parent else [])
            self.rounds.append(tip)
        for vote in self.tale.votes(present, tip):
            self.tale.tree.add_vote(vote)

    def choose(self, *, provisional: bool = False, number: int | None = None, slot: int | None = None):
        slot = slot or self.rounds[-1].slot + 1
        return choose(self.tale.tree, number=number, provisional=provisional, slot=slot)


def names(*people: str) -> tuple[str, ...]:
    return tuple(sorted(name_of(key(person)) for person in people))


def test_without_a_flag_the_newest_final_round_is_pulled_and_newer_work_is_told_of_in_a_stall() -> None:
    chosen = Swarm().choose()
    assert (chosen.state.round, chosen.standing) == (2, Standing.FINAL)
    (note,) = chosen.notes
    assert note == (
        "Newer rounds, up to 9, are not final: 3 of 5 certifiers are there; missing: "
        f"{', '.join(names('dan', 'eve'))}. --provisional takes them."
    )


def test_in_a_stall_the_flag_takes_what_those_present_stand_behind_and_says_what_that_is() -> None:
    swarm = Swarm()
    tip = swarm.tale.round_of(swarm.rounds[-1], slot=10)  # Nobody has voted for it yet.
    chosen = swarm.choose(provisional=True, slot=11)
    assert tip.round == 10
    assert (chosen.state.round, chosen.standing) == (9, Standing.PROVISIONAL)
    assert (chosen.present, chosen.missing) == (names("ada", "bob", "cyd"), names("dan", "eve"))
    assert chosen.notes == (
        f"NOT final: provisional, 3 of 5 certifiers are there; missing: {', '.join(names('dan', 'eve'))}. "
        "It may still be replaced.",
    )


def test_without_a_stall_the_flag_takes_the_head() -> None:
    swarm = Swarm(ALL)
    assert swarm.choose().state.round == 8
    assert swarm.choose().notes == ()
    chosen = swarm.choose(provisional=True)
    assert (chosen.state.round, chosen.standing) == (9, Standing.NOT_FINAL)
    assert (chosen.present, chosen.missing) == ((), ())
    assert chosen.notes == ("NOT final: the swarm may still go another way.",)


def test_in_a_stall_where_too_few_agree_the_flag_takes_the_head_and_says_so() -> None:
    """Three are there, and each has voted for another checkpoint."""
    tale = Story(swarm_with(*FIVE, timing={"stall_slots": STALL}))
    rounds = [tale.genesis]
    for slot in range(1, 8):
        rounds.append(tale.round_of(rounds[-1], slot=slot))
    for name, slot in (("ada", 5), ("bob", 6), ("cyd", 7)):
        tale.tree.add_vote(tale.vote(name, rounds[slot]))
    chosen = choose(tale.tree, number=None, provisional=True, slot=8)
    assert (chosen.state.round, chosen.standing) == (7, Standing.NOT_FINAL)
    assert chosen.notes[0].startswith("NOT final, and not provisional: too few of those there stand behind it. 3 of 5")


def test_a_round_may_be_named_also_among_the_provisional_ones() -> None:
    swarm = Swarm()
    chosen = swarm.choose(provisional=True, number=5)
    assert (chosen.state.round, chosen.standing) == (5, Standing.PROVISIONAL)
    assert swarm.choose(provisional=True, number=2).standing is Standing.FINAL
    assert swarm.choose(provisional=True, number=2).notes == ()
    assert swarm.choose(number=0).state.round == 0


def test_a_round_that_is_not_final_is_refused_with_the_flag_that_takes_it() -> None:
    with pytest.raises(NodeError, match="round 5 is not final: the newest final round is 2") as caught:
        Swarm().choose(number=5)
    assert "--provisional" in caught.value.hint
    with pytest.raises(NodeError, match="there is no round 50: the newest is 9"):
        Swarm().choose(number=50, provisional=True)


def test_where_nothing_is_final_yet_nothing_is_pulled_without_the_flag() -> None:
    tale = Story(swarm_with(*FIVE))
    first = tale.round_of(tale.genesis, slot=1)
    with pytest.raises(NodeError, match="no round of this swarm is final yet") as caught:
        choose(tale.tree, number=None, provisional=False, slot=2)
    assert caught.value.exit_code == ExitCode.RETRY
    assert choose(tale.tree, number=None, provisional=True, slot=2).state == first


def test_what_was_provisional_is_final_when_the_missing_are_back() -> None:
    swarm = Swarm()
    tale, fifth = swarm.tale, swarm.rounds[4]
    assert standing_of(tale.tree, fifth, slot=10) is Standing.PROVISIONAL
    tale.line(swarm.rounds[-1], [10, 11, 12], ALL)
    assert standing_of(tale.tree, fifth, slot=13) is Standing.FINAL


def test_readers_stop_at_a_conflict_and_are_told_how_to_go_on(tmp_path: Path) -> None:
    tale = Story(swarm_with("ada", "bob", "cyd", "dan"))
    one = tale.grow(tale.genesis, slot=1)
    two = tale.grow(one, slot=2, votes=tale.votes("ada bob cyd", one))
    five = tale.grow(tale.genesis, slot=5)
    six = tale.grow(five, slot=6, votes=tale.votes("bob cyd dan", five))
    for vote in tale.votes("ada bob cyd", two):
        tale.tree.add_vote(vote)
    require_no_conflict(tale.tree, place=tmp_path)
    for vote in tale.votes("bob cyd dan", six):
        tale.tree.add_vote(vote)
    with pytest.raises(NodeError, match="two final checkpoints contradict each other") as caught:
        require_no_conflict(tale.tree, place=tmp_path)
    assert caught.value.exit_code == ExitCode.PROTOCOL
    assert "Ask the founder" in caught.value.hint
    tale.tree.choose(five.here)
    with pytest.raises(NodeError) as caught:
        require_no_conflict(tale.tree, place=tmp_path)
    assert f"remove {tmp_path} and pull again" in caught.value.hint
