"""A newcomer arrives by replay or by a snapshot, whichever is fewer bytes (protocol section 12)."""

import math
from dataclasses import dataclass, field

import pytest
from chains import Story, swarm_with
from machines import Machine, only, some
from swarms import id_of, key_of

from fullrank_protocol import arriving
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.chain import ChainState
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.errors import Rule
from fullrank_protocol.round_io import (
    Adopt,
    CatchingUp,
    CheckDelta,
    DeltaUnavailable,
    Drop,
    FetchSnapshot,
    Finalised,
    Keep,
    Merge,
    SnapshotApplied,
    SnapshotRefused,
    SnapshotUnavailable,
    Synced,
    Verified,
)
from fullrank_protocol.snapshot import make_snapshot, max_snapshot_bytes, open_snapshot

DELTA_BYTES = 50
SNAPSHOT_BYTES = 120
"""More than two deltas of 50 bytes, less than three."""

NUM_ROUNDS = 8


@dataclass
class Past:
    """What a swarm of ada and bob has done before zoe came: eight rounds, the first six of them final."""

    tale: Story = field(default_factory=lambda: Story(swarm_with("ada", "bob")))
    rounds: list[ChainState] = field(default_factory=list)

    def __post_init__(self) -> None:
        parent = self.tale.genesis
        for slot in range(1, NUM_ROUNDS + 1):
            blob = BlobRef(id=id_of(f"delta of slot {slot}"), num_bytes=DELTA_BYTES)
            votes = self.tale.votes("ada bob", parent) if slot > 1 else []
            accepted = [self.tale.contribution("ada", parent, blob=blob)]
            parent = self.tale.grow(parent, slot=slot, accepted=accepted, votes=votes)
            self.rounds.append(parent)

    def snapshot(self, slot: int, *, by: str = "ada", num_bytes: int = SNAPSHOT_BYTES, name: str = "") -> Envelope:
        blob = BlobRef(id=id_of(name or f"snapshot of slot {slot}"), num_bytes=num_bytes)
        state = self.rounds[slot - 1]
        return make_snapshot(key_of(by), swarm=self.tale.swarm.id, checkpoint=state.id, slot=slot, blob=blob)

    def newcomer(self) -> Machine:
        machine = Machine(self.tale, "zoe")
        machine.now_ms = self.tale.swarm.genesis.slot_end_ms(NUM_ROUNDS + 10)
        return machine


@pytest.fixture
def past() -> Past:
    return Past()


def told(machine: Machine, past: Past, *hints: Envelope) -> list[object]:
    """All that a neighbour has, told to a node that is behind."""
    done = [*machine.feed(CatchingUp()), *machine.receive(*past.rounds, *hints), *machine.feed(Synced())]
    return list(done)


def test_without_a_snapshot_every_round_is_replayed(past: Past) -> None:
    machine = past.newcomer()
    done = told(machine, past)
    assert [action.holds for action in some(Verified, done)] == [True] * NUM_ROUNDS
    assert machine.head.id == past.rounds[-1].id


def test_a_snapshot_with_fewer_bytes_is_sought_and_the_deltas_below_it_wait(past: Past) -> None:
    machine = past.newcomer()
    done = told(machine, past, past.snapshot(5))
    sought = only(FetchSnapshot, done)
    assert (sought.snapshot.slot, sought.round, sought.num_deltas, sought.num_bytes) == (5, 5, 5, 5 * DELTA_BYTES)
    assert sought.model_digest == past.rounds[4].model_digest
    fetched = {action.contribution.base_slot for action in some(CheckDelta, done)}
    assert fetched == {5, 6, 7}
    assert not some(Merge, done)
    assert machine.state.tree.final.slot == 0


def test_a_snapshot_that_holds_makes_its_past_verified_and_the_rest_is_recomputed(past: Past) -> None:
    machine = past.newcomer()
    told(machine, past, past.snapshot(5))
    done = machine.feed(SnapshotApplied(checkpoint=past.rounds[4].id))
    first, *others = some(Verified, done)
    assert (first.checkpoint, first.believed, first.holds) == (past.rounds[4].id, True, True)
    assert [(other.checkpoint, other.believed) for other in others] == [(each.id, False) for each in past.rounds[5:]]
    assert some(Adopt, done)[0].head == past.rounds[4].here
    assert some(Finalised, done)[-1].final == past.rounds[5].here
    assert machine.head.id == past.rounds[-1].id
    assert not machine.state.unverified
    assert machine.state.arrival.believed == past.rounds[4].here
    assert not [check for check in some(CheckDelta, done) if check.contribution.base_slot < 5]


def test_branches_that_left_the_chain_below_it_are_not_recomputed() -> None:
    past = Past()
    early = past.tale.round_of(past.rounds[1], slot=20)
    child = past.tale.round_of(early, slot=21)
    machine = past.newcomer()
    machine.now_ms = past.tale.swarm.genesis.slot_end_ms(30)
    machine.feed(CatchingUp())
    machine.receive(*past.rounds[:4], early, *past.rounds[4:], past.snapshot(5))
    machine.feed(Synced())
    done = machine.feed(SnapshotApplied(checkpoint=past.rounds[4].id))
    done += machine.receive(past.tale.vote("bob", child), child)
    assert {early.id, child.id} == machine.state.arrival.beside
    assert not {early.id, child.id} & {action.checkpoint for action in some(Verified, done)}
    assert not machine.state.unverified
    assert not machine.restarted().state.unverified


def test_after_a_restart_it_still_holds(past: Past) -> None:
    machine = past.newcomer()
    told(machine, past, past.snapshot(5))
    machine.feed(SnapshotApplied(checkpoint=past.rounds[4].id))
    again = machine.restarted()
    assert again.head.id == past.rounds[-1].id
    assert not again.state.unverified
    assert again.state.arrival.believed == past.rounds[4].here
    assert not some(FetchSnapshot, again.feed(Synced()))


def test_a_restart_in_the_middle_seeks_it_again(past: Past) -> None:
    machine = past.newcomer()
    told(machine, past, past.snapshot(5))
    again = machine.restarted()
    assert only(FetchSnapshot, again.feed(Synced())).snapshot.slot == 5


def test_after_a_restart_a_download_goes_on_also_where_its_author_has_a_newer_one(past: Past) -> None:
    older, newer = past.snapshot(4), past.snapshot(6)
    for partly_here, slot in ((0, 6), (90, 6), (110, 4)):  # 120 + 2 * 50 bytes by the older, 120 by the newer.
        machine = past.newcomer()
        machine.state.arrival.partly_here = {open_snapshot(older, past.tale.swarm.genesis).blob.id: partly_here}
        assert only(FetchSnapshot, told(machine, past, older, newer)).snapshot.slot == slot


def test_nothing_more_is_taken_of_a_liar_whose_download_was_broken_off(past: Past) -> None:
    older, newer = past.snapshot(4), past.snapshot(6)
    machine = past.newcomer()
    machine.state.arrival.partly_here = {open_snapshot(older, past.tale.swarm.genesis).blob.id: 110}
    told(machine, past, older, newer)
    done = machine.feed(SnapshotRefused(snapshot_id=older.id, rule=Rule.DIGEST, detail="gives another model"))
    assert not some(FetchSnapshot, done)
    assert machine.head.id == past.rounds[-1].id


def test_deltas_that_are_here_already_count_nothing(past: Past) -> None:
    machine = past.newcomer()
    machine.state.arrival.blobs_here = frozenset(id_of(f"delta of slot {slot}") for slot in (1, 2, 3))
    assert not some(FetchSnapshot, told(machine, past, past.snapshot(5)))
    assert machine.head.id == past.rounds[-1].id


def test_a_checkpoint_that_is_not_final_by_votes_is_not_jumped_to(past: Past) -> None:
    machine = past.newcomer()
    assert not some(FetchSnapshot, told(machine, past, past.snapshot(7, num_bytes=1)))
    assert machine.head.id == past.rounds[-1].id


def test_where_votes_make_two_chains_final_nothing_is_jumped_to() -> None:
    past = Past()
    tale, machine = past.tale, past.newcomer()
    fork, parent = [], past.rounds[2]
    for slot in (20, 21, 22):
        parent = tale.grow(parent, slot=slot, votes=[*tale.votes("ada bob", parent)] if fork else [])
        fork.append(parent)
    machine.now_ms = tale.swarm.genesis.slot_end_ms(30)
    machine.feed(CatchingUp())
    machine.receive(*past.rounds, *fork, *tale.votes("ada bob", fork[-1]), past.snapshot(5, num_bytes=1))
    assert machine.state.tree.conflict is not None
    assert not some(FetchSnapshot, machine.feed(Synced()))


def test_a_chain_without_the_checkpoint_that_the_link_pins_is_not_jumped_along(past: Past) -> None:
    machine = past.newcomer()
    machine.state.arrival.pinned = id_of("final in another history")
    assert not some(FetchSnapshot, told(machine, past, past.snapshot(5)))
    machine = past.newcomer()
    machine.state.arrival.pinned = past.rounds[1].id
    assert some(FetchSnapshot, told(machine, past, past.snapshot(5)))


def test_of_several_the_one_with_the_fewest_bytes_is_taken(past: Past) -> None:
    machine = past.newcomer()
    done = told(machine, past, past.snapshot(3, by="ada"), past.snapshot(6, by="bob"))
    assert only(FetchSnapshot, done).snapshot.author == key_of("bob").public_key


def test_a_lie_is_dropped_with_its_reason_and_the_replay_is_taken(past: Past) -> None:
    machine = past.newcomer()
    hint = past.snapshot(5)
    told(machine, past, hint)
    done = machine.feed(SnapshotRefused(snapshot_id=hint.id, rule=Rule.DIGEST, detail="gives another model"))
    dropped = only(Drop, done)
    assert (dropped.envelope, dropped.rule, dropped.detail) == (hint, Rule.DIGEST, "gives another model")
    assert [action.believed for action in some(Verified, done)] == [False] * NUM_ROUNDS
    assert machine.head.id == past.rounds[-1].id
    machine.receive(past.snapshot(6))
    assert key_of("ada").public_key not in machine.state.arrival.snapshots


def test_after_a_lie_the_snapshot_of_another_is_taken(past: Past) -> None:
    machine = past.newcomer()
    lie, honest = past.snapshot(6, by="ada"), past.snapshot(5, by="bob")
    assert only(FetchSnapshot, told(machine, past, lie, honest)).snapshot.id == lie.id
    done = machine.feed(SnapshotRefused(snapshot_id=lie.id, rule=Rule.CODEC, detail="is none"))
    assert only(FetchSnapshot, done).snapshot.id == honest.id


def test_one_that_is_not_to_be_had_is_set_aside_for_a_minute_while_the_replay_goes_on(past: Past) -> None:
    machine = past.newcomer()
    for state in past.rounds[:5]:
        (contribution,) = [a.contribution for a in past.tale.tree.nodes[state.id].checkpoint.accepted]  # type: ignore[union-attr]
        machine.verdicts[contribution.id] = DeltaUnavailable(contribution_id=contribution.id)
    hint = past.snapshot(5)
    told(machine, past, hint)
    done = machine.feed(SnapshotUnavailable(snapshot_id=hint.id))
    assert len(some(CheckDelta, done)) == 5
    machine.now_ms += arriving.SET_ASIDE_MS - 1
    assert not some(FetchSnapshot, machine.feed(Synced()))
    machine.now_ms += 1_000
    assert only(FetchSnapshot, machine.feed(Synced())).snapshot.id == hint.id


def test_who_prefers_the_replay_takes_a_snapshot_only_where_a_delta_is_not_to_be_had(past: Past) -> None:
    machine = past.newcomer()
    machine.state.arrival.prefers_replay = True
    (lost,) = [a.contribution for a in past.tale.tree.nodes[past.rounds[1].id].checkpoint.accepted]  # type: ignore[union-attr]
    machine.verdicts[lost.id] = DeltaUnavailable(contribution_id=lost.id)
    assert not some(FetchSnapshot, told(machine, past, past.snapshot(5, num_bytes=200)))
    assert machine.head.id == past.rounds[0].id
    found: list[FetchSnapshot] = []
    for _ in range(2 * arriving.MAX_MISSES):
        machine.now_ms += 3_000
        found += some(FetchSnapshot, machine.feed(Synced()))
    assert [(each.snapshot.slot, each.num_bytes) for each in found] == [(5, math.inf)]


def test_who_wants_an_old_round_takes_no_later_snapshot(past: Past) -> None:
    machine = past.newcomer()
    machine.state.arrival.highest_round = 4
    done = told(machine, past, past.snapshot(5, by="ada"), past.snapshot(4, by="bob"))
    assert only(FetchSnapshot, done).snapshot.slot == 4


def test_a_neighbour_cannot_hold_a_node_up_for_long(past: Past) -> None:
    machine = past.newcomer()
    machine.feed(CatchingUp())
    assert not some(CheckDelta, machine.receive(*past.rounds))
    machine.now_ms += arriving.CATCH_UP_MS
    assert some(CheckDelta, machine.feed(CatchingUp()))
    assert machine.head.id == past.rounds[-1].id


def test_deltas_of_the_newest_slots_do_not_wait(past: Past) -> None:
    machine = past.newcomer()
    machine.now_ms = past.tale.swarm.genesis.slot_end_ms(NUM_ROUNDS)
    machine.feed(CatchingUp())
    fetched = {action.contribution.base_slot for action in some(CheckDelta, machine.receive(*past.rounds))}
    assert fetched == {5, 6, 7}


# ---- hints that are not taken ------------------------------------------------------------------------


def test_a_hint_waits_for_its_checkpoint(past: Past) -> None:
    machine = past.newcomer()
    assert not some(Keep, machine.receive(past.snapshot(5)))
    machine.receive(*past.rounds)
    assert machine.state.arrival.snapshots[key_of("ada").public_key].slot == 5


def test_only_the_newest_hint_of_an_author_counts(past: Past) -> None:
    machine = past.newcomer()
    machine.receive(*past.rounds, past.snapshot(5))
    assert machine.receive(past.snapshot(4)) == []
    assert some(Keep, machine.receive(past.snapshot(6)))
    assert machine.state.arrival.snapshots[key_of("ada").public_key].slot == 6


@pytest.mark.parametrize(
    ("fields", "rule", "words"),
    [
        ({"slot": 4}, Rule.SLOT, "says slot 4, its checkpoint is of slot 5"),
        ({"by": "zoe"}, Rule.MEMBERSHIP, "no member at that checkpoint"),
        ({"num_bytes": 10_000}, Rule.SIZE, "number of bytes of the snapshot is 10000"),
        ({"name": "another blob"}, Rule.DUPLICATE, "is a second snapshot of "),
    ],
)
def test_a_false_hint_is_refused_with_its_reason(past: Past, fields: dict[str, object], rule: Rule, words: str) -> None:
    assert max_snapshot_bytes(past.tale.swarm.genesis.modules) < 10_000
    machine = past.newcomer()
    machine.receive(*past.rounds)
    if rule is Rule.DUPLICATE:
        machine.receive(past.snapshot(5))
    given = {"by": "ada", "slot": 5, "num_bytes": SNAPSHOT_BYTES, "name": "blob"} | fields
    blob = BlobRef(id=id_of(str(given["name"])), num_bytes=int(str(given["num_bytes"])))
    hint = make_snapshot(
        key_of(str(given["by"])),
        swarm=past.tale.swarm.id,
        checkpoint=past.rounds[4].id,
        slot=int(str(given["slot"])),
        blob=blob,
    )
    dropped = only(Drop, machine.receive(hint))
    assert dropped.rule is rule
    assert words in dropped.detail
