"""The checker can fail: each of these bugs, planted into the machine or a node, is found by its seeds."""

import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from typing import Any

import pytest
from simulation import scenario
from simulation.faults import Fault, Plan, draw_plan
from simulation.hostile import HostileNode
from simulation.invariants import Violation
from simulation.node import SimulatedNode
from simulation.world import WINDOW_MS, World, make_genesis

from fullrank_protocol import chain, duties, intake, membership, proposing, records, round_io, verifying
from fullrank_protocol.chain import ChainState, Lookup
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import IgnoreError, RejectError, Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.limits import MAX_GRANT_COUNT, MAX_TIME_MS
from fullrank_protocol.membership import ALL_ROLES, Member, Members
from fullrank_protocol.round import restore
from fullrank_protocol.round_state import RoundState
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


def _note_only_in_this_life(state: RoundState, vote: Vote) -> None:
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


def plant(monkeypatch: pytest.MonkeyPatch, real: Callable[..., Any], planted: Callable[..., Any]) -> None:
    """Replaces a function wherever the machine has imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fullrank_protocol") and getattr(module, real.__name__, None) is real:
            monkeypatch.setattr(module, real.__name__, planted)


def test_a_contribution_of_no_member_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_contributor = chain.check_contributor

    def check(contribution: Contribution, parent: ChainState, *, genesis: Genesis) -> bool:
        try:
            return check_contributor(contribution, parent, genesis=genesis)
        except RejectError as error:
            if error.rule is not Rule.MEMBERSHIP:
                raise
            return False

    plant(monkeypatch, check_contributor, check)
    assert is_found("somebody who is no member")


@pytest.mark.parametrize(
    ("forgets", "found"),
    [
        ({"not_after_ms": MAX_TIME_MS}, "has an invite that is over"),
        ({"count": MAX_GRANT_COUNT}, "has an invite that is used up"),
        ({"revoked": False}, "has an invite that was revoked"),
        ({"roles": ALL_ROLES}, "has more roles than the invite gives"),
    ],
    ids=["is over", "is used up", "was revoked", "gives less"],
)
def test_admissions_that_forget_that_an_invite_does_not_hold_are_found(
    forgets: dict[str, Any], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def admit(state: Members, envelope: Envelope, message: wire.Admission, slot: int, genesis: Genesis) -> Members:
        if (grant := state.grants.get(message.grant_id)) is not None:
            state = replace(state, grants={**state.grants, grant.id: replace(grant, **forgets)})
        return real_admit(state, envelope, message, slot, genesis)

    real_admit = membership._admit
    monkeypatch.setitem(membership._MEMBER_EFFECTS, wire.ADMISSION, admit)
    assert is_found(f"which admits somebody who {found}")


def test_admissions_without_the_secret_of_the_invite_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, records.check_invitation, lambda envelope, message, *, invite_key: None)
    assert is_found("which admits somebody who does not have the invite's secret")


def test_admissions_without_any_invite_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def admit(state: Members, envelope: Envelope, message: wire.Admission, slot: int, genesis: Genesis) -> Members:
        if message.grant_id in state.grants:
            return real_admit(state, envelope, message, slot, genesis)
        key, by = envelope.public_key, message.grant_id
        member = Member(key=key, roles=message.roles, name=message.name, grant_id=by, admitted_slot=slot)
        return replace(state, members={**state.members, key: member})

    real_admit = membership._admit
    monkeypatch.setitem(membership._MEMBER_EFFECTS, wire.ADMISSION, admit)
    assert is_found("which admits somebody who has no invite")


def test_admissions_of_those_who_were_shut_out_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Members, "is_banned", lambda members, key: False)
    assert is_found("which admits somebody who was shut out")


def test_a_contribution_that_is_too_old_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def staleness(
        contribution: Contribution, parent: ChainState, *, genesis: Genesis, lookup: Lookup
    ) -> tuple[int, int]:
        base = lookup(contribution.base_checkpoint)
        if base is None:
            raise IgnoreError("is not known")
        ancestor = chain.common_ancestor(base, parent, lookup=lookup)
        return parent.round - ancestor.round, ancestor.round

    plant(monkeypatch, chain.contribution_staleness, staleness)
    assert is_found("rounds old")


def test_a_quorum_of_half_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(voters: Set[bytes], state: ChainState) -> bool:
        return 2 * len(voters & state.newest_set) >= len(state.newest_set)

    plant(monkeypatch, chain.has_quorum, half)
    halves = Fault("partition", 3 * WINDOW_MS, 9 * WINDOW_MS, nodes=(1, 1, 2, 2))
    assert "without a quorum" in scenario.run(Plan(seed=1, size=4, faults=(halves,))).failure


def test_a_quorum_of_one_set_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_one_set(voters: Set[bytes], state: ChainState) -> bool:
        return 3 * len(voters & state.newest_set) > 2 * len(state.newest_set)

    plant(monkeypatch, chain.has_quorum, of_one_set)
    assert is_found("without a quorum", size=3)


def test_votes_that_count_whatever_their_source_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_vote = chain.check_vote

    def check(vote: Vote, target: ChainState) -> None:
        source = target.justified
        check_vote(replace(vote, source=source.checkpoint, source_slot=source.slot), target)

    plant(monkeypatch, check_vote, check)
    assert is_found("a vote that does not count", hostile=True)
    assert is_found("without a quorum", hostile=True)


def test_certifiers_that_change_as_they_like_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, chain.check_certifier_change, lambda parent, members, *, at_once=frozenset(): None)
    assert is_found("changes the certifiers too much or too soon")


def test_offences_that_nobody_reports_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_report", lambda state, offences: iter(()))
    assert is_found("has no evidence against", hostile=True)


def test_evidence_that_nobody_carries_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    build = proposing.build_checkpoint

    def without_evidence(*args: object, records: proposing.RecordChoice, **fields: object) -> wire.Checkpoint:
        return build(*args, records=replace(records, evidence=()), **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(duties, "build_checkpoint", without_evidence)
    assert is_found("without the exclusion of", hostile=True)


def test_a_final_checkpoint_forgotten_at_a_restart_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_votes(state: RoundState, envelopes: Iterator[Envelope], *args: object, **fields: object) -> RoundState:
        kept = iter([envelope for envelope in envelopes if envelope.type != wire.VOTE])
        return restore(state, kept, *args, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr("simulation.node.restore", without_votes)
    assert is_found("went back from final slot")


def test_final_work_that_a_head_has_lost_is_found() -> None:
    world = World(make_genesis(founders=4), seed=1, size=4)
    for number in range(4):
        world.add(number)
    world.run(5)
    assert world.checker.check_kept()[0] >= 8
    world.partition(world.nodes[:3], world.nodes[3:])
    world.run(4)
    with pytest.raises(Violation, match="the head of node 3 has lost"):
        world.checker.check_kept()


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
