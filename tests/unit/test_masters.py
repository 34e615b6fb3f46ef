"""Weights that a disk has spoilt are found when they are read, and made again; nobody is accused for them."""

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from chains import key
from loop_swarm import LoopNode, LoopSwarm, loop_swarm, make_genesis, some_delta
from peers import until

from fullrank_node.errors import NodeError
from fullrank_node.masters import KEPT_NEWEST
from fullrank_node.model.master import MasterStore
from fullrank_protocol.chain import ChainState
from fullrank_protocol.round_io import MergeKey
from fullrank_protocol.wire import objects_pb2 as wire


@contextlib.asynccontextmanager
async def two_rounds(directory: Path) -> AsyncIterator[tuple[LoopSwarm, list[LoopNode], list[ChainState]]]:
    """Three certifiers with two rounds behind them, the states of which are given oldest first."""
    async with loop_swarm(directory, make_genesis("ada", "bob", "cyd"), "ada", "bob", "cyd") as swarm:
        states = [await another_round(swarm, number) for number in range(2)]
        yield swarm, swarm.nodes, states


async def another_round(swarm: LoopSwarm, number: int) -> ChainState:
    await swarm.everywhere(swarm.nodes[0].contribute(some_delta(swarm.genesis, f"ada {number}")))
    return await swarm.next_slot()


def paths_of(node: LoopNode, checkpoint: bytes) -> list[Path]:
    manifest = node.store.manifest(checkpoint)
    assert manifest is not None
    files = MasterStore(node.home.masters_dir)
    return [files.path(sha256) for sha256 in manifest.values()]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def refusals(nodes: Sequence[LoopNode]) -> list[bytes]:
    return [envelope for node in nodes for envelope in node.store.objects(wire.REFUSAL)]


@pytest.mark.parametrize("damage", ["a flipped bit", "a cut file", "no file", "infinity"])
async def test_a_spoilt_head_is_made_again_and_the_next_round_agrees(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_rounds(tmp_path) as (swarm, nodes, (_, head)):
        path = paths_of(nodes[1], head.id)[0]
        match damage:
            case "a flipped bit":
                flip_a_bit(path)
            case "a cut file":
                path.write_bytes(path.read_bytes()[:-5])
            case "no file":
                path.unlink()
            case _:
                np.full(path.stat().st_size // 4, np.inf, dtype="<f4").tofile(path)
        with caplog.at_level(logging.WARNING):
            after = await another_round(swarm, 3)
        assert after.round == head.round + 1
        assert len({node.head.model_digest for node in nodes}) == 1
        assert "are damaged on this disk: they are made again from the log" in caplog.text
        assert not refusals(nodes)
        assert all(MasterStore(nodes[1].home.masters_dir).verify(each.stem) for each in paths_of(nodes[1], after.id))


@pytest.mark.parametrize("deltas", ["removed", "cut"])
async def test_a_replay_goes_back_to_the_base_and_asks_peers_for_deltas(tmp_path: Path, deltas: str) -> None:
    async with two_rounds(tmp_path) as (swarm, nodes, (first, head)):
        bob = nodes[1]
        genesis = swarm.genesis.swarm
        whole = {path: path.read_bytes() for path in paths_of(bob, genesis)}
        manifest = bob.store.manifest(genesis)
        assert manifest is not None
        for checkpoint in (genesis, first.id, head.id):
            for path in paths_of(bob, checkpoint):
                flip_a_bit(path)
        for blob in bob.blobs.ids():
            if deltas == "removed":
                bob.blobs.delete(blob)
            else:
                bob.blobs.path(blob).write_bytes(bob.blobs.path(blob).read_bytes()[:-3])

        async def remake_base() -> dict[str, str]:
            for path, data in whole.items():
                path.write_bytes(data)
            return manifest

        bob.runner.masters._remake_base = remake_base
        after = await another_round(swarm, 3)
        assert after.round == head.round + 1
        assert bob.store.manifest(after.id) == nodes[0].store.manifest(after.id)
        assert not refusals(nodes)


async def test_a_base_that_cannot_be_made_again_is_said_to_be_lost(tmp_path: Path) -> None:
    async with two_rounds(tmp_path) as (swarm, nodes, (_, head)):
        bob = nodes[1]
        masters, state = bob.runner.masters, bob.runner.state
        for path in bob.home.masters_dir.glob("*.f32"):
            flip_a_bit(path)
        for checkpoint in (swarm.genesis.swarm, head.id):
            await masters.drop_spoilt(bob.store.manifest(checkpoint) or {})
        with pytest.raises(NodeError, match="the masters of the base are missing or damaged"):
            await masters.ensure(head.id, state)


async def test_what_works_on_whole_weights_is_not_tried_again(tmp_path: Path) -> None:
    async with two_rounds(tmp_path) as (_, nodes, (_, head)):
        tried: list[dict[str, str]] = []

        async def fail(manifest: dict[str, str]) -> None:
            tried.append(manifest)
            raise NodeError("no memory")

        masters, state = nodes[0].runner.masters, nodes[0].runner.state
        with pytest.raises(NodeError, match="no memory"):
            await masters.using(head.id, state, fail)
        assert len(tried) == 1
        flip_a_bit(paths_of(nodes[0], head.id)[0])
        with pytest.raises(NodeError, match="no memory"):
            await masters.using(head.id, state, fail)
        assert tried == [tried[0]] * 3
        await until(lambda: nodes[0].store.manifest(head.id) == tried[0])


def models_of(node: LoopNode) -> set[frozenset[str]]:
    """The models of which a node has all files."""
    here = {path.stem for path in node.home.masters_dir.glob("*.f32")}
    return {frozenset(each.values()) for each in node.store.manifests().values() if here.issuperset(each.values())}


def num_files(node: LoopNode) -> int:
    return len(list(node.home.masters_dir.glob("*.f32")))


async def test_old_weights_go_and_those_of_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    async with two_rounds(tmp_path) as (swarm, nodes, _):
        for number in range(2, 8):
            await another_round(swarm, number)
        await until(lambda: all(node.runner.state.tree.final.slot >= 7 for node in nodes))
        for node in nodes:
            most = 2 + KEPT_NEWEST  # Genesis and final checkpoint, and the newest above it.
            assert len(models_of(node)) <= most
            assert num_files(node) <= most * len(swarm.genesis.modules)
            assert frozenset((node.store.manifest(node.head.id) or {}).values()) in models_of(node)


async def test_a_collection_that_a_merge_puts_off_is_made_up_for_when_it_ends(tmp_path: Path) -> None:
    async with two_rounds(tmp_path) as (swarm, nodes, _):
        masters, state = nodes[0].runner.masters, nodes[0].runner.state
        for number in range(2, 4):
            await another_round(swarm, number)
        stray = masters._files.write("a", np.zeros((48, 40), dtype=np.float32))  # type: ignore[attr-defined]
        under_way = MergeKey(parent=state.tree.head().id, contribution_ids=(bytes(32),))
        state.merging[under_way] = 0
        masters.collect(state)
        masters.collect_if_due(state)
        assert MasterStore(nodes[0].home.masters_dir).path(stray).exists()
        masters.collect_if_due(state, merged=under_way)
        assert not MasterStore(nodes[0].home.masters_dir).path(stray).exists()
        assert (nodes[0].store.manifest(nodes[0].head.id) or {}).keys() == {m.name for m in swarm.genesis.modules}
        del state.merging[under_way]


async def test_in_a_stall_only_the_newest_weights_are_kept(tmp_path: Path) -> None:
    """Ada goes on alone; what she kept suffices to go on when the others are back."""
    async with two_rounds(tmp_path) as (swarm, nodes, _):
        ada, others = nodes[0], nodes[1:]
        swarm.hub.alone.update({key("bob"), key("cyd")})

        def time_passes_until(number: int) -> bool:
            swarm.clock.time_ms += 200
            return ada.head.round == number

        for number in range(3, 3 + KEPT_NEWEST + 2):
            ada.contribute(some_delta(swarm.genesis, f"alone {number}"))
            await until(lambda number=number: time_passes_until(number))
            ada.runner.masters.collect(ada.runner.state)
        assert len(models_of(ada)) <= 2 + KEPT_NEWEST
        swarm.hub.alone.clear()

        def time_passes_until_all_agree() -> bool:
            swarm.clock.time_ms += 200
            return all(node.head == ada.head for node in others) and ada.runner.state.tree.final.slot > 3

        await until(time_passes_until_all_agree)
