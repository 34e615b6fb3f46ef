"""A pause while base or data are being prepared: nothing is lost, and the memory is freed afterwards."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loop_swarm import make_genesis

from fullrank_node import node as node_module
from fullrank_node.child import ChildDiedError
from fullrank_node.config import Config, DataSection
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home
from fullrank_node.node import Node
from fullrank_node.training.driver import TrainerDriver
from fullrank_protocol import round_io as io


class SlowChild:
    """A trainer that prepares for as long as a test wants, and dies when it is killed."""

    pid = 7

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.began = asyncio.Event()
        self.num_kills = 0
        self.failures: list[Exception] = []

    async def call(self, method: str, params: dict[str, Any], **_: Any) -> dict[str, Any]:
        del params
        if method == "hardware":
            return {"name": "cpu", "memory_bytes": 1}
        self.began.set()
        kills = self.num_kills
        await self.may_end.wait()
        if self.failures:
            raise self.failures.pop()
        if self.num_kills > kills:
            raise ChildDiedError("killed", returncode=-9)
        if method == "prepare_base":
            return {"base_dir": "/base", "manifest": {}, "digest": "00" * 32}
        return {"num_rows": 3, "num_skipped": 0, "num_valid_blocks": 0}

    async def kill(self) -> None:
        self.num_kills += 1


@pytest.fixture
def child() -> SlowChild:
    return SlowChild()


def node_with(child: SlowChild, tmp_path: Path) -> tuple[Node, list[Any]]:
    """A node whose other parts do nothing; what it fed to its round machine."""
    config = Config(data=DataSection(path=tmp_path / "rows.jsonl"))
    driver = TrainerDriver(
        home=Home(tmp_path),
        config=config,
        genesis=make_genesis("ada"),
        member=bytes(32),
        child=child,  # type: ignore[arg-type]
        blobs=SimpleNamespace(),  # type: ignore[arg-type]
        clock=SimpleNamespace(now_ms=lambda: 0),  # type: ignore[arg-type]
        threads=1,
    )
    fed: list[Any] = []
    node = Node.__new__(Node)
    node.config, node.trainer = config, driver
    node.runner = SimpleNamespace(feed=fed.append, stop_training=lambda: None)  # type: ignore[assignment]
    node.pause_reason = node.trouble = node._resume_timer = None
    return node, fed


async def preparing(node: Node, child: SlowChild) -> "asyncio.Task[None]":
    task = asyncio.create_task(node._start_training(Path("/base")))
    await child.began.wait()
    return task


async def test_a_pause_while_data_are_prepared_loses_nothing_and_frees_the_memory_afterwards(
    child: SlowChild, tmp_path: Path
) -> None:
    node, fed = node_with(child, tmp_path)
    task = await preparing(node, child)
    await node.pause(for_ms=0)
    assert child.num_kills == 0
    child.may_end.set()
    await task
    assert child.num_kills == 1
    assert node.trouble is None
    assert node.trainer.data_summary
    assert io.TrainingAllowed(allowed=True) not in fed
    node.resume()
    assert fed[-1] == io.TrainingAllowed(allowed=True)


async def test_who_resumes_before_the_data_are_ready_trains_as_soon_as_they_are(
    child: SlowChild, tmp_path: Path
) -> None:
    node, fed = node_with(child, tmp_path)
    task = await preparing(node, child)
    await node.pause(for_ms=0)
    node.resume()
    child.may_end.set()
    await task
    assert child.num_kills == 0
    assert fed[-1] == io.TrainingAllowed(allowed=True)


async def test_a_pause_while_the_base_is_loaded_does_not_end_the_node(child: SlowChild, tmp_path: Path) -> None:
    node, _ = node_with(child, tmp_path)
    loading = asyncio.create_task(node.trainer.prepare_base(None))
    await child.began.wait()
    await node.pause(for_ms=0)
    child.may_end.set()
    assert (await loading).base_dir == Path("/base")


async def test_a_pause_at_any_other_time_frees_the_memory_at_once(child: SlowChild, tmp_path: Path) -> None:
    node, _ = node_with(child, tmp_path)
    await node.pause(for_ms=0)
    assert child.num_kills == 1


async def test_where_the_trainer_dies_of_preparing_it_is_tried_again(
    child: SlowChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "PREPARE_AGAIN_S", 0.0)
    child.failures.append(ChildDiedError("out of memory", returncode=-9))
    node, fed = node_with(child, tmp_path)
    child.may_end.set()
    await node._start_training(Path("/base"))
    assert node.trouble is None
    assert fed == [io.TrainingAllowed(allowed=True)]


async def test_data_that_cannot_be_used_stay_a_trouble(child: SlowChild, tmp_path: Path) -> None:
    child.failures.append(NodeError("no usable row", hint="Mend line 3.", exit_code=ExitCode.CONFIG))
    node, fed = node_with(child, tmp_path)
    child.may_end.set()
    await node._start_training(Path("/base"))
    assert node.trouble == "no usable row Mend line 3."
    assert fed == []
