"""Real stores, workers and merges: snapshots made, fetched, applied, refused, and old deltas removed (section 12)."""

import asyncio
import errno
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from chains import key
from loop_swarm import LoopNode, LoopSwarm, loop_swarm, make_genesis, some_delta
from peers import until
from swarms import key_of

from fullrank_node.admission import WARNING, offer_admission
from fullrank_node.blob_store import BlobStore
from fullrank_node.config import Config, LimitsSection
from fullrank_node.keeping import GIGABYTE, Keeper
from fullrank_node.merger import Merger
from fullrank_node.model.master import MasterStore
from fullrank_node.replay import apply_start, find_start, first_mismatch, hold_blobs
from fullrank_node.restoring import restored_state, stored_snapshots
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.limits import CHUNK_BYTES
from fullrank_protocol.membership import ROLE_CONTRIBUTE, make_grant
from fullrank_protocol.round_io import Merge, Merged
from fullrank_protocol.round_state import RECENT_SLOTS
from fullrank_protocol.snapshot import Snapshot, make_snapshot, num_elements

NUM_ROUNDS = 7
"""With deltas of two nodes, more bytes than a snapshot of the 13 kB of weights."""

ARCHIVE = Config(archive=True)
SMALL = Config(limits=LimitsSection(disk_gb=18_000 / GIGABYTE))


@pytest.fixture
async def past(tmp_path: Path) -> AsyncIterator[LoopSwarm]:
    async with loop_swarm(tmp_path, make_genesis("ada", "bob"), "ada", "bob") as swarm:
        for number in range(NUM_ROUNDS):
            made = [node.contribute(some_delta(swarm.genesis, f"{node.name}{number}", rank=16)) for node in swarm.nodes]
            await swarm.everywhere(*made)
            await swarm.next_slot()
        yield swarm


async def snapshot_by(node: LoopNode, config: Config = ARCHIVE) -> Snapshot:
    """What the node makes when it looks at what it has."""
    await Keeper(runner=node.runner, config=config).look()
    await until(lambda: node.runner.state.arrival.snapshots.get(key(node.name)) is not None)
    return node.runner.state.arrival.snapshots[key(node.name)]


def chain_of(node: LoopNode, *, upto_slot: int = 1 << 40) -> list[Checkpoint]:
    found = (each.checkpoint for each in node.runner.state.tree.chain(node.head.id))
    return [checkpoint for checkpoint in found if checkpoint is not None and checkpoint.slot <= upto_slot]


def deltas_here(node: LoopNode, checkpoints: list[Checkpoint]) -> int:
    accepted = (each for checkpoint in checkpoints for each in checkpoint.accepted)
    return sum(node.blobs.has(each.contribution.blob.id) for each in accepted)


async def has_arrived(node: LoopNode, other: LoopNode) -> None:
    await until(lambda: node.head == other.head and not node.runner.state.unverified)
    assert node.store.manifest(node.head.id) == other.store.manifest(other.head.id)


async def test_a_newcomer_gets_the_same_weights_without_the_old_deltas(past: LoopSwarm) -> None:
    ada = past.nodes[0]
    snapshot = await snapshot_by(ada)
    below = chain_of(ada, upto_slot=snapshot.slot)
    assert deltas_here(ada, below) == 2 * len(below)
    async with past.node("zoe") as zoe:
        await has_arrived(zoe, ada)
        assert zoe.runner.state.arrival.believed == ada.runner.state.tree.state(snapshot.checkpoint).here
        assert deltas_here(zoe, below) <= 2 * RECENT_SLOTS  # Those are fetched while ada still tells what there is.
        assert deltas_here(zoe, below) < deltas_here(ada, below)
    async with past.node("zoe") as zoe:
        assert zoe.head == ada.head
        assert not zoe.runner.state.unverified


async def test_a_small_disk_trades_old_deltas_for_a_snapshot_and_serves_it(past: LoopSwarm) -> None:
    ada, bob = past.nodes
    snapshot = await snapshot_by(bob, SMALL)
    below = chain_of(bob, upto_slot=snapshot.slot)
    above = chain_of(bob)[len(below) :]
    assert bob.blobs.total_bytes() <= 18_000
    assert deltas_here(bob, below) < 2 * len(below)
    assert deltas_here(bob, above) == 2 * len(above)
    past.hub.others(bytes(32)).pop(key("ada"), None)
    for blob in ada.blobs.ids():
        ada.blobs.delete(blob)
    async with past.node("zoe") as zoe:
        await has_arrived(zoe, bob)


async def test_killed_in_the_middle_of_a_replay_it_fetches_and_recomputes_nothing_twice(
    past: LoopSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = past.nodes[0]
    merge, merged = Merger.merge, list[bytes]()

    async def merge_three(merger: Merger, request: Merge, **given: Any) -> Merged:
        if len(merged) == 3:
            await asyncio.Event().wait()
        merged.append(request.key.parent)
        return await merge(merger, request, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Merger, "merge", merge_three)
        async with past.node("zoe") as zoe:
            await until(lambda: zoe.head.round == 3 and deltas_here(zoe, chain_of(ada)) == 2 * NUM_ROUNDS)
            assert len(zoe.network.fetched) == 2 * NUM_ROUNDS
    merged.append(b"the second life")

    async def merge_more(merger: Merger, request: Merge, **given: Any) -> Merged:
        merged.append(request.key.parent)
        return await merge(merger, request, **given)

    monkeypatch.setattr(Merger, "merge", merge_more)
    async with past.node("zoe") as zoe:
        assert zoe.head.round == 3
        await has_arrived(zoe, ada)
        assert zoe.network.fetched == []
    parents = [past.genesis.swarm, *(checkpoint.id for checkpoint in chain_of(ada)[:-1])]
    assert merged == [*parents[:3], b"the second life", *parents[3:]]


async def test_killed_in_the_middle_of_a_snapshot_it_fetches_the_missing_chunks_only(tmp_path: Path) -> None:
    """440,000 weights: a snapshot of two chunks, and deltas of 220 kB each."""
    genesis = make_genesis("ada", "bob", shapes={"c": (440_000,)}, max_delta_bytes=1 << 20)
    async with loop_swarm(tmp_path, genesis, "ada", "bob") as swarm:
        ada = swarm.nodes[0]
        for number in range(NUM_ROUNDS):
            await swarm.everywhere(
                *(node.contribute(some_delta(genesis, f"{node.name}{number}")) for node in swarm.nodes)
            )
            await swarm.next_slot()
        snapshot = await snapshot_by(ada)
        _, (first, second) = ada.blobs.header(snapshot.blob.id)
        served: list[bytes] = []
        lives = 1

        def serve(data: bytes) -> bytes:
            served.append(hashlib.sha256(data).digest())
            if lives == 1 and served[-1] == second:
                raise asyncio.CancelledError  # The end of zoe's first life.
            return data

        ada.network.spoil = serve
        async with swarm.node("zoe") as zoe:
            await until(lambda: second in served)
            assert zoe.head == zoe.runner.state.tree.root
            assert zoe.blobs.partial_bytes(snapshot.blob.id) == CHUNK_BYTES
        served.clear()
        lives = 2
        async with swarm.node("zoe") as zoe:
            await has_arrived(zoe, ada)
            assert zoe.runner.state.arrival.believed is not None
        assert second in served
        assert first not in served


async def test_killed_between_fetching_and_applying_it_goes_on(
    past: LoopSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = past.nodes[0]
    snapshot = await snapshot_by(ada)

    async def hang(*_: object, **__: object) -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(Merger, "apply_snapshot", hang)
        async with past.node("zoe") as zoe:
            await until(lambda: zoe.blobs.has(snapshot.blob.id))
            assert zoe.runner.state.tree.final.slot == 0
    ada.blobs.delete(snapshot.blob.id)
    async with past.node("zoe") as zoe:
        await has_arrived(zoe, ada)
        assert zoe.runner.state.arrival.believed is not None


async def test_a_newcomer_is_admitted_while_it_still_replays(past: LoopSwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, bob = past.nodes
    invite = key_of("an invite")
    grant = make_grant(
        key_of("ada"),
        swarm=past.genesis.swarm,
        invite_key=invite.public_key,
        roles=ROLE_CONTRIBUTE,
        count=1,
        not_after_ms=past.clock.time_ms + 10**9,
    )
    ada.runner.submit(grant)
    await until(lambda: grant.id in bob.runner.state.records)
    await past.next_slot()
    merge = Merger.merge

    async def hang(merger: Merger, request: Merge, **given: Any) -> Merged:
        if merger.home.path.name == "zoe":
            await asyncio.Event().wait()
        return await merge(merger, request, **given)

    monkeypatch.setattr(Merger, "merge", hang)
    async with past.node("zoe") as zoe:
        await zoe.runner.exchange.synced.wait()
        offer_admission(zoe.runner, invite_seed=invite.seed, certify=False, name="zoe")
        assert WARNING not in zoe.runner.warnings
        await until(lambda: any(record.public_key == key("zoe") for record in bob.runner.state.records.values()))
        past.clock.time_ms = past.genesis.slot_end_ms(past.genesis.slot_at(past.clock.time_ms))
        await until(lambda: ada.head.members.is_member(key("zoe")))
        assert zoe.head == zoe.runner.state.tree.root


async def test_a_lie_is_refused_and_the_replay_is_taken_also_after_a_restart(past: LoopSwarm) -> None:
    ada, bob = past.nodes
    blob = bob.blobs.put_bytes(b"these are no weights" * 50)
    final = bob.runner.state.tree.final
    lie = make_snapshot(
        key_of("bob"), swarm=past.genesis.swarm, checkpoint=final.checkpoint, slot=final.slot, blob=blob
    )
    bob.runner.submit(lie)
    async with past.node("zoe") as zoe:
        await has_arrived(zoe, ada)
        assert zoe.runner.state.arrival.distrusted == {key("bob")}
        assert zoe.runner.state.arrival.believed is None
        assert deltas_here(zoe, chain_of(ada)) == 2 * NUM_ROUNDS
    async with past.node("zoe") as zoe:
        assert zoe.runner.state.arrival.distrusted == {key("bob")}


async def test_weights_of_another_checkpoint_are_a_lie_too(past: LoopSwarm) -> None:
    ada, bob = past.nodes
    honest = await snapshot_by(ada)
    bob.blobs.put_bytes(ada.blobs.read(honest.blob.id))
    mark = bob.runner.state.tree.state(bob.runner.state.tree.state(honest.checkpoint).parent or b"").here
    bob.runner.submit(
        make_snapshot(
            key_of("bob"), swarm=past.genesis.swarm, checkpoint=mark.checkpoint, slot=mark.slot, blob=honest.blob
        )
    )
    async with past.node("zoe") as zoe:
        await has_arrived(zoe, ada)
    for each in stored_snapshots(bob.store, past.genesis):
        assert each.checkpoint in (honest.checkpoint, mark.checkpoint)


async def test_a_log_without_its_old_deltas_is_replayed_from_the_snapshot(past: LoopSwarm) -> None:
    ada, bob = past.nodes
    await snapshot_by(bob, SMALL)
    tree = bob.runner.state.tree
    assert find_start(ada.store, ada.runner.state.tree, chain_of(ada)) is None
    start = find_start(bob.store, tree, chain_of(bob))
    assert start is not None
    held = BlobStore(past.nodes[1].home.work_dir / "held")
    assert hold_blobs(bob.store, chain_of(bob), start, held)
    assert not hold_blobs(bob.store, chain_of(bob), None, held)
    base = bob.store.manifest(past.genesis.swarm)
    assert base is not None
    state = restored_state(
        past.genesis,
        bob.store,
        key=bytes(32),
        base_digest=bob.runner.state.base_digest,
        trust_verdicts=False,
        now_ms=past.clock.now_ms(),
    )
    merger = bob.runner.merger
    manifest = await apply_start(start, bob.store, merger, state.tree, base=base)
    state.tree.believe(start.checkpoint)
    rest = [checkpoint for checkpoint in chain_of(bob) if checkpoint.slot > start.slot]
    masters = MasterStore(bob.home.masters_dir)
    mismatch = await first_mismatch(
        state.tree,
        rest,
        merger,
        masters,
        base_manifest=manifest,
        base_digest=state.tree.state(start.checkpoint).model_digest,
        on_checkpoint=lambda _done: None,
    )
    assert mismatch == ""
    assert rest
    assert masters.total_bytes() == 4 * sum(num_elements(module) for module in past.genesis.modules)


async def test_a_replay_holds_copies_where_files_cannot_have_two_names(
    past: LoopSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = past.nodes[0]

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    held = BlobStore(tmp_path / "held")
    assert hold_blobs(ada.store, chain_of(ada), None, held)
    for checkpoint in chain_of(ada):
        for accepted in checkpoint.accepted:
            assert held.read(accepted.contribution.blob.id) == ada.blobs.read(accepted.contribution.blob.id)


async def test_a_snapshot_of_what_is_not_final_is_no_start_of_a_replay(past: LoopSwarm) -> None:
    bob = past.nodes[1]
    snapshot = await snapshot_by(bob, SMALL)
    assert find_start(bob.store, bob.runner.state.tree, chain_of(bob)) == snapshot
    bob.blobs.delete(snapshot.blob.id)
    head, blob = bob.head, bob.blobs.put_bytes(b"weights of the head, perhaps")
    assert not bob.runner.state.tree.is_final(head)
    hint = make_snapshot(key_of("bob"), swarm=past.genesis.swarm, checkpoint=head.id, slot=head.slot, blob=blob)
    bob.store.put_object(hint, slot=head.slot, received_at_ms=past.clock.now_ms())
    assert stored_snapshots(bob.store, past.genesis)[-1].checkpoint == head.id
    assert find_start(bob.store, bob.runner.state.tree, chain_of(bob)) is None
