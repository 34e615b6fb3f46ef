"""A node measures the rank of the accumulated update after rounds, not more often than that is cheap."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_swarm import LoopNode, LoopSwarm, loop_swarm, make_genesis, some_delta
from peers import until

from fullrank_node.model.master import MasterStore
from fullrank_node.model.rank import measure_rank, opener, shapes_of
from fullrank_node.rank_watch import RankWatch
from fullrank_node.status_reply import rank_reply


async def one_round(swarm: LoopSwarm, ada: LoopNode, *, rank: int) -> None:
    await swarm.everywhere(ada.contribute(some_delta(swarm.genesis, "ada", rank=rank)))
    await swarm.next_slot()


def told(node: LoopNode) -> Any:
    """Round and effective rank as `status` has them."""
    reply = rank_reply(node.runner)
    return None if reply is None else (reply.round, reply.effective)


def exact(node: LoopNode, checkpoint: bytes) -> float:
    """All singular values of all matrices."""
    before, after = node.store.manifest(node.genesis.swarm), node.store.manifest(checkpoint)
    assert before is not None
    assert after is not None
    shapes = shapes_of(node.genesis.modules)
    masters = MasterStore(node.home.masters_dir)
    return measure_rank(
        node.genesis.modules, opener(masters.open, before, shapes), opener(masters.open, after, shapes)
    ).effective


async def test_the_rank_is_told_of_the_newest_round_that_was_measured(tmp_path: Path) -> None:
    pauses: list[float] = []
    rested = asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await rested.wait()

    async with loop_swarm(tmp_path, make_genesis("ada"), "ada") as swarm:
        (ada,) = swarm.nodes
        watch = RankWatch(ada.runner, pause=pause)
        ada.runner.on_adopt.append(watch.look)
        life = asyncio.create_task(watch.run())
        assert told(ada) is None
        await one_round(swarm, ada, rank=3)
        await until(lambda: told(ada) is not None)
        first = exact(ada, ada.head.id)
        assert told(ada) == (1, pytest.approx(first, rel=1e-5))

        await one_round(swarm, ada, rank=8)
        assert told(ada) == (1, pytest.approx(first, rel=1e-5))
        assert len(pauses) == 1
        assert pauses[0] > 0.0
        rested.set()
        await until(lambda: len(pauses) == 2)
        assert told(ada) == (2, pytest.approx(exact(ada, ada.head.id), rel=1e-5))

        reply = rank_reply(ada.runner)
        assert reply is not None
        assert (reply.of, reply.sampled, reply.matrices, reply.relative_error) == (32, 2, 2, 0.0)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


async def test_nothing_is_told_where_the_weights_of_the_genesis_are_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried = asyncio.Event()

    async def pause(_seconds: float) -> None:
        tried.set()

    async with loop_swarm(tmp_path, make_genesis("ada"), "ada") as swarm:
        (ada,) = swarm.nodes
        await one_round(swarm, ada, rank=3)
        manifest = ada.store.manifest(swarm.genesis.swarm)
        assert manifest is not None
        np.zeros(48 * 40, "<f4").tofile(ada.home.masters_dir / f"{manifest['a']}.f32")
        life = asyncio.create_task(RankWatch(ada.runner, pause=pause).run())
        await tried.wait()
        assert told(ada) is None
        assert "rank of the accumulated update could not be measured" in caplog.text
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
