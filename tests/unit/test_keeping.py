"""What a node with a full disk removes, with real stores and merges: never what a chain that is not final needs."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from chains import Story, key, swarm_with
from loop_swarm import LoopNode, LoopSwarm, loop_swarm, make_genesis, some_delta
from peers import until

from fullrank_node.config import Config, LimitsSection
from fullrank_node.filling import Filling
from fullrank_node.final_chain import FinalChain
from fullrank_node.keeping import FRESH_S, GIGABYTE, Keeper
from fullrank_node.merger import Merger
from fullrank_node.snapshots import Snapshots
from fullrank_protocol.blob import blob_ref, chunk_hashes
from fullrank_protocol.checkpoint import Checkpoint, contributions
from fullrank_protocol.delta import Delta
from fullrank_protocol.limits import CHUNK_BYTES
from fullrank_protocol.round_io import Merge, Merged
from fullrank_protocol.snapshot import Snapshot

SMALL = Config(limits=LimitsSection(disk_gb=18_000 / GIGABYTE))
"""Room for a snapshot of the 13 kB of weights and one or two deltas."""

NUM_ROUNDS = 7
"""With deltas of two nodes, more bytes than a snapshot."""


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[LoopSwarm]:
    async with loop_swarm(tmp_path, make_genesis("ada", "bob"), "ada", "bob") as swarm:
        yield swarm


async def live(swarm: LoopSwarm, *, rounds: int = NUM_ROUNDS) -> None:
    """Rounds in which both contribute and vote."""
    for _ in range(rounds):
        made = [node.contribute(delta_of(node)) for node in swarm.nodes]
        await swarm.everywhere(*made)
        await swarm.next_slot()


async def live_alone(swarm: LoopSwarm, node: LoopNode, *, rounds: int) -> None:
    """Rounds of one node that hears nobody: half of the certifiers make nothing final."""
    for _ in range(rounds):
        before = node.head
        made = node.contribute(delta_of(node))
        await until(partial(node.is_ready, made))
        await until_later(swarm, lambda before=before: node.head != before)  # type: ignore[misc]


async def until_later(swarm: LoopSwarm, condition: Callable[[], bool]) -> None:
    """Time goes on until it holds: who proposes on a head that is not justified waits for votes."""

    def holds() -> bool:
        swarm.clock.time_ms += swarm.genesis.timing.slot_window_ms // 10
        return condition()

    await until(holds)


def delta_of(node: LoopNode) -> Delta:
    return some_delta(node.genesis, f"{node.name} on {node.head.id.hex()}", rank=16)


def chain_of(node: LoopNode) -> list[Checkpoint]:
    found = (each.checkpoint for each in node.runner.state.tree.chain(node.head.id))
    return [checkpoint for checkpoint in found if checkpoint is not None]


def gone(node: LoopNode, checkpoints: list[Checkpoint]) -> list[int]:
    """Slots that decided on a delta which is not on this disk any more."""
    return [each.slot for each in checkpoints if any(not node.blobs.has(c.blob.id) for c in contributions(each))]


def is_archive(node: LoopNode) -> bool:
    """What the node tells of itself in inventories."""
    return node.runner.exchange.is_archive


def make_old(node: LoopNode) -> None:
    """Every file of a blob was last changed long ago."""
    changed_s = node.runner.clock.now_ms() / 1000 - FRESH_S - 1
    for file in node.blobs.directory.iterdir():
        os.utime(file, (changed_s, changed_s))


async def test_while_finality_is_missing_everything_above_it_stays_whatever_the_limit_says(swarm: LoopSwarm) -> None:
    await live(swarm)
    ada = swarm.nodes[0]
    keeper = Keeper(runner=ada.runner, config=SMALL)
    swarm.hub.alone.add(key("bob"))
    final = ada.runner.state.tree.final
    await live_alone(swarm, ada, rounds=10)
    assert ada.runner.state.tree.final == final
    make_old(ada)
    await keeper.look()
    assert max(gone(ada, chain_of(ada)), default=0) <= final.slot
    assert "none may be removed yet" in ada.runner.warnings["disk"]
    swarm.hub.alone.clear()
    state, newest = ada.runner.state, ada.head.slot
    await until_later(swarm, lambda: state.tree.final.slot >= newest and not state.candidates)
    make_old(ada)
    await keeper.look()
    assert max(gone(ada, chain_of(ada))) > final.slot
    assert ada.blobs.total_bytes() <= 18_000
    assert "disk" not in ada.runner.warnings


async def test_what_becomes_final_while_a_snapshot_is_made_is_no_stray(
    swarm: LoopSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a snapshot takes minutes: the deltas of the rounds that pass meanwhile are old by then."""
    await live(swarm)
    ada = swarm.nodes[0]
    keeper = Keeper(runner=ada.runner, config=SMALL)
    make = Snapshots.make

    async def make_slowly(snapshots: Snapshots) -> Snapshot | None:
        made = await make(snapshots)
        await live(swarm)
        make_old(ada)
        return made

    monkeypatch.setattr(Snapshots, "make", make_slowly)
    await keeper.look()
    covered = ada.runner.state.arrival.snapshots[key("ada")].slot
    assert gone(ada, chain_of(ada))
    assert max(gone(ada, chain_of(ada))) <= covered


async def test_deltas_stay_where_the_snapshot_that_replaced_them_is_gone(swarm: LoopSwarm) -> None:
    await live(swarm)
    ada = swarm.nodes[0]
    await Keeper(runner=ada.runner, config=Config(archive=True)).look()
    snapshot = ada.runner.state.arrival.snapshots[key("ada")]
    keeper = Keeper(runner=ada.runner, config=SMALL)
    ada.blobs.delete(snapshot.blob.id)
    await keeper.look()
    newer = ada.runner.state.arrival.snapshots[key("ada")]
    assert newer.slot >= snapshot.slot
    assert ada.blobs.has(newer.blob.id) or not gone(ada, chain_of(ada))


async def test_a_download_that_was_broken_off_makes_room_and_one_that_goes_on_stays(swarm: LoopSwarm) -> None:
    ada = swarm.nodes[0]
    data = b"1" * CHUNK_BYTES + b"2"
    with ada.blobs.writer(blob_ref(data), chunk_hashes(data)) as writer:
        writer.write_chunk(0, data[:CHUNK_BYTES])
    now_s = ada.runner.clock.now_ms() / 1000
    keeper = Keeper(runner=ada.runner, config=SMALL)
    for changed_s, stays in ((now_s - FRESH_S + 5, True), (now_s - FRESH_S - 5, False)):
        for file in ada.blobs.directory.iterdir():
            os.utime(file, (changed_s, changed_s))
        await keeper.look()
        assert bool(ada.blobs.partial_bytes(blob_ref(data).id)) is stays
    assert ada.blobs.total_bytes() == 0


async def test_an_archive_that_arrived_by_a_snapshot_fetches_what_lies_below_it_and_is_one_then(
    swarm: LoopSwarm,
) -> None:
    await live(swarm)
    ada = swarm.nodes[0]
    await Keeper(runner=ada.runner, config=Config(archive=True)).look()
    await until(lambda: key("ada") in ada.runner.state.arrival.snapshots)
    async with swarm.node("zoe") as zoe:
        await until(lambda: zoe.head == ada.head and not zoe.runner.state.unverified)
        assert zoe.runner.state.arrival.believed is not None
        below = gone(zoe, chain_of(zoe))
        assert below
        filling = Filling(runner=zoe.runner, limit_bytes=None)
        swarm.hub.alone |= {key("ada"), key("bob")}
        await filling.look()
        assert not is_archive(zoe)
        assert "lacks" in zoe.runner.warnings["archive"]
        swarm.hub.alone.clear()
        await filling.look()
        assert gone(zoe, chain_of(zoe)) == []
        assert is_archive(zoe)
        assert "archive" not in zoe.runner.warnings


async def test_an_archive_stays_within_a_limit_that_its_owner_set_and_is_none_then(swarm: LoopSwarm) -> None:
    await live(swarm)
    ada = swarm.nodes[0]
    filling = Filling(runner=ada.runner, limit_bytes=ada.blobs.total_bytes())
    lost = chain_of(ada)[0].accepted[0].contribution.blob.id
    await filling.look()
    assert is_archive(ada)
    ada.blobs.delete(lost)
    ada.blobs.put_bytes(bytes(20_000))
    again = Filling(runner=ada.runner, limit_bytes=ada.blobs.total_bytes())
    await again.look()
    assert not is_archive(ada)
    assert not ada.blobs.has(lost)


def test_a_final_chain_is_told_anew_where_the_root_chose_another() -> None:
    tale = Story(swarm_with("ada", "bob"))
    ours = tale.round_of(tale.round_of(tale.genesis, slot=1), slot=2)
    theirs = tale.round_of(tale.genesis, slot=3)
    chain = FinalChain(tale.tree)
    tale.tree.final = ours.here
    assert not chain.has_moved_away()
    assert [slot for slot, _ in chain.news()] == [1, 2]
    assert chain.news() == []
    tale.tree.final = theirs.here
    assert chain.has_moved_away()
    assert [slot for slot, _ in chain.news()] == [3]
    assert not chain.has_moved_away()


async def test_an_archive_fetches_again_what_its_disk_has_spoilt(swarm: LoopSwarm) -> None:
    await live(swarm, rounds=3)
    ada = swarm.nodes[0]
    filling = Filling(runner=ada.runner, limit_bytes=None)
    await filling.look()
    blob = chain_of(ada)[0].accepted[0].contribution.blob.id
    ada.blobs.path(blob).write_bytes(b"spoilt")
    with pytest.raises(KeyError):
        ada.blobs.read(blob)
    await filling.look()
    assert ada.blobs.read(blob)
    assert is_archive(ada)


async def test_an_archive_remains_one_while_a_checkpoint_of_the_last_slot_is_recomputed(
    swarm: LoopSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live(swarm, rounds=3)
    ada, bob = swarm.nodes
    filling = Filling(runner=ada.runner, limit_bytes=None)
    merge = Merger.merge

    async def hang(merger: Merger, request: Merge, *, parent_manifest: dict[str, str]) -> Merged:
        if merger.home.path.name == ada.name:
            await asyncio.Event().wait()
        return await merge(merger, request, parent_manifest=parent_manifest)

    monkeypatch.setattr(Merger, "merge", hang)
    await swarm.everywhere(bob.contribute(delta_of(bob)))
    await until_later(swarm, lambda: bool(ada.runner.state.unverified))
    await filling.look()
    assert is_archive(ada)
