"""How long a trial takes on this machine: processor seconds of a step and of a look."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from learning.bench import Bench
from learning.corpus import some_of
from learning.plan import StepTimes
from learning.run import Run
from learning.setting import Setting

STEPS = 6
"""Steps that are timed, after a first one that is not."""

BLOCKS = 32
"""Blocks that are evaluated to be timed."""

RATE = 1e-3
RANK = 16


def step_times(bench: Bench, setting: Setting) -> StepTimes:
    """Measure on the first node's blocks, on a copy of the base's weights."""
    with TemporaryDirectory(prefix="quality-") as directory:
        run = Run(bench, setting, rate=RATE, seed=0, directory=Path(directory))
        node = run.nodes[0]

        def whole(steps: int) -> None:
            schedule = run.schedule(0, steps=steps, warm=True)
            run.train_whole(bench.initial, node.order(), batch=setting.batch, schedule=schedule)

        def adapter(steps: int) -> None:
            schedule = run.schedule(0, steps=steps, warm=True)
            run.train_adapter(bench.initial, node.order(), rank=RANK, seed_of=run.seed_of(node, 0), schedule=schedule)

        blocks = some_of(bench.corpus.train, BLOCKS)
        bench.loss(bench.initial, some_of(blocks, 1))
        return StepTimes(
            whole=_per_step(whole),
            adapter=_per_step(adapter),
            block=_cpu_s(lambda: bench.loss(bench.initial, blocks)) / len(blocks),
        )


def _per_step(train: Callable[[int], None]) -> float:
    train(1)
    return _cpu_s(lambda: train(STEPS)) / STEPS


def _cpu_s(work: Callable[[], object]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s
