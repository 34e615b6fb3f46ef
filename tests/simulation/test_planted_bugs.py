"""The checker can fail: each of these bugs, planted into the machine or a node, is found by its seeds."""

from collections.abc import Iterator

import pytest
from simulation import scenario
from simulation.faults import Fault, Plan, draw_plan
from simulation.hostile import HostileNode
from simulation.node import SimulatedNode
from simulation.world import WINDOW_MS

from fullrank_protocol import chain, duties, fork_choice, intake, proposing, round_io, verifying
from fullrank_protocol.chain import ChainState
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.vote import Vote
from fullrank_protocol.wire import objects_pb2 as wire

MAX_SEEDS = 80
"""Seeds after which a planted bug counts as overlooked. Most show at the first few."""


def failures(*, size: int = 4, hostile: bool = False) -> Iterator[str]:
    for seed in range(MAX_SEEDS):
        outcome = scenario.run(draw_plan(seed, size, hostile=hostile), hostile=HostileNode)
        if outcome.failure:
            yield outcome.failure


def is_found(what: str, *, size: int = 4, hostile: bool = False) -> bool:
    return any(what in failure for failure in failures(size=size, hostile=hostile))


def test_without_a_durable_vote_record_a_restarted_certifier_offends(monkeypatch: pytest.MonkeyPatch) -> None:
    def cast_vote(node: SimulatedNode, action: round_io.CastVote) -> None:
        vote = node.signed_vote(action.source, action.target)
        node.world.checker.voted(node, action.source, action.target)
        node.receive(vote)

    keep = SimulatedNode.keep

    def forget(node: SimulatedNode, envelope: Envelope, slot: int) -> None:
        if envelope.type == wire.VOTE and envelope.public_key == node.key.public_key:
            node.world.broadcast(node, envelope)
        else:
            keep(node, envelope, slot)

    monkeypatch.setattr(SimulatedNode, "cast_vote", cast_vote)
    monkeypatch.setattr(SimulatedNode, "keep", forget)
    monkeypatch.setattr("fullrank_protocol.intake._note_own_vote", _note_only_in_this_life)
    assert is_found("an offence")


def _note_only_in_this_life(state: intake.RoundState, vote: Vote) -> None:
    if vote.voter == state.key and vote.target in state.casting:
        state.own_votes[vote.id] = vote
        state.voted_for.add(vote.target)
        state.casting.discard(vote.target)


def test_votes_that_double_or_surround_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "_would_offend", lambda vote, *, source_slot, target_slot: False)
    assert is_found("an offence", hostile=True)


def test_votes_that_ignore_the_source_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubles(vote: Vote, *, source_slot: int, target_slot: int) -> bool:
        return vote.target_slot == target_slot

    monkeypatch.setattr(duties, "_would_offend", doubles)
    assert is_found("an offence", hostile=True)


def test_a_delta_counted_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(contribution: Contribution, parent: ChainState, *, genesis: Genesis) -> bool:
        return False

    for module in (chain, intake, proposing):
        monkeypatch.setattr(module, "check_contributor", check)
    monkeypatch.setattr(chain, "_use_contributions", lambda parent, checkpoint, *, genesis, lookup: parent.used)
    assert is_found("counts a contribution a second time")


def test_a_quorum_of_half_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(voters: frozenset[bytes], state: ChainState) -> bool:
        return 2 * len(voters & state.newest_set) >= len(state.newest_set)

    monkeypatch.setattr(chain, "has_quorum", half)
    monkeypatch.setattr(fork_choice, "has_quorum", half)
    halves = Fault("partition", 3 * WINDOW_MS, 9 * WINDOW_MS, nodes=(1, 1, 2, 2))
    assert "contradicts final slot" in scenario.run(Plan(seed=1, size=4, faults=(halves,))).failure


def test_numbers_that_nobody_recomputes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "judge_numbers", lambda checkpoint, merged: None)
    assert is_found("whose digest is wrong", hostile=True)


def test_a_proposer_that_builds_rubbish_by_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    build = proposing.build_checkpoint

    def wrong(*args: object, **fields: object) -> wire.Checkpoint:
        message = build(*args, **fields)  # type: ignore[arg-type]
        message.round += 1
        return message

    monkeypatch.setattr(duties, "build_checkpoint", wrong)
    assert is_found("drops an honest")
