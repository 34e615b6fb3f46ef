"""The daemon's side of training: what the round machine asks for reaches the trainer, with real deltas on disk."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import swarms
from loop_swarm import SetClock

from fullrank_node.blob_store import BlobStore
from fullrank_node.config import Config, DataSection
from fullrank_node.home import Home
from fullrank_node.training.driver import TrainedDelta, TrainerDriver
from fullrank_node.training.trainer import Trainer
from fullrank_protocol.chain import Mark
from fullrank_protocol.round_io import PendingContribution, Train

FAR_MS = 2_000_000_000_000
SOME_SWARM = swarms.swarm_of()


class TrainerInHere:
    """The real trainer, called without a process of its own."""

    pid = 7

    def __init__(self) -> None:
        self._handlers = Trainer().handlers()

    async def call(self, method: str, params: dict[str, Any], **_: Any) -> dict[str, Any]:
        reply = await asyncio.to_thread(self._handlers[method], json.loads(json.dumps(params)), lambda **_: None)
        return json.loads(json.dumps(reply))  # type: ignore[no-any-return]


async def driver_at(where: Path, *, swarm: Any, base: Path, rows: Path) -> Callable[..., Awaitable[TrainedDelta]]:
    """A trainer that is ready, as a function that trains at a round."""
    home = Home(where)
    home.create()
    home.genesis_file.write_bytes(swarm.path.read_bytes())
    driver = TrainerDriver(
        home=home,
        config=Config(data=DataSection(path=rows)),
        genesis=swarm.genesis,
        member=b"\xab" * 32,
        child=TrainerInHere(),  # type: ignore[arg-type]
        blobs=BlobStore(where / "blobs"),
        clock=SetClock(0),
        threads=1,
    )
    prepared = await driver.prepare_base(base)
    await driver.prepare_data(prepared.base_dir)

    async def train(*, base_round: int, pending: tuple[PendingContribution, ...] = ()) -> TrainedDelta:
        order = Train(
            base=Mark(slot=base_round, checkpoint=bytes(32)),
            base_round=base_round,
            num_averaged=2,
            num_late=1,
            pending=pending,
            deadline_ms=FAR_MS,
        )
        return await driver.train(order, manifest=prepared.manifest)

    return train


def on_the_way(sent: TrainedDelta) -> PendingContribution:
    return PendingContribution(
        contribution=SOME_SWARM.contribution("ada", blob=sent.blob, codec=sent.codec), base_round=0
    )


async def test_a_delta_on_the_way_is_read_from_the_store_and_trained_upon(
    tiny_base: Path, tmp_path: Path, make_swarm: Callable[..., Any], sentences: list[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
    swarm = make_swarm()
    second: dict[str, TrainedDelta] = {}
    for name in ("none", "late", "late again"):
        train = await driver_at(tmp_path / name, swarm=swarm, base=tiny_base, rows=rows)
        first = await train(base_round=0)
        pending = () if name == "none" else (on_the_way(first),)
        second[name] = await train(base_round=1, pending=pending)
    assert second["late"].blob == second["late again"].blob
    assert second["late"].blob != second["none"].blob
    assert second["late"].loss_first_micro != second["none"].loss_first_micro
