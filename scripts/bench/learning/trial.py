"""One trial, from its description to a line of results.

A line has three parts: `trial`, which decides everything; `result`, which follows from it; and `cost`, the time that
it took on the machine named there.
"""

import math
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measured_on import processor

from fullrank_node.errors import NodeError
from fullrank_node.training.blocks import Blocks
from fullrank_protocol.errors import RejectError
from learning.arm import AfterRound
from learning.bench import Bench
from learning.catalogue import arm_from_json
from learning.corpus import some_of
from learning.ranks import RankTrack
from learning.run import Run
from learning.setting import TEST, Setting, Trial

CURVE_BLOCKS = 64
"""Test blocks on which the loss is followed from round to round; the last loss is taken on all of them."""

Line = dict[str, Any]


def run_trial(bench: Bench, trial: Trial) -> Line:
    """Run a trial.

    Raises:
        ValueError: It belongs to another base or corpus.
    """
    setting = trial.setting
    if (setting.base, setting.corpus) != (bench.name, bench.corpus.name):
        raise ValueError(f"found {bench.name} and {bench.corpus.name}, required {setting.base} and {setting.corpus}")
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="quality-") as directory:
        run = Run(bench, setting, rate=trial.rate, seed=trial.seed, directory=Path(directory))
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                result = _tested(run, trial) if trial.purpose == TEST else _tuned(run, trial)
        except (NodeError, RejectError) as error:  # A rate that is too high; it counts as an infinite loss.
            result = {"loss": None, "failed": str(error)}
    cost = {
        "cpu_s": round(time.process_time() - began_cpu_s, 2),
        "wall_s": round(time.monotonic() - began_s, 2),
        **machine(),
    }
    return {"key": trial.key, "trial": trial.to_json(), "result": result, "cost": cost}


def trial_from_json(value: Mapping[str, Any]) -> Trial:
    """The inverse of `Trial.to_json`, for lines of this version."""
    return Trial(
        setting=Setting(**value["setting"]),
        arm=arm_from_json(value["arm"]),
        rate=value["rate"],
        seed=value["seed"],
        purpose=value["purpose"],
    )


@cache
def machine() -> Mapping[str, str]:
    """Where a line was made, in a few words."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": f"Python {platform.python_version()}, torch {version('torch')}, transformers "
        f"{version('transformers')}, peft {version('peft')}, numpy {version('numpy')}",
    }


def _tuned(run: Run, trial: Trial) -> Line:
    *_, last = trial.arm.rounds(run)
    return {"loss": _mean_loss(run.bench, last, run.bench.corpus.valid), **_read(run)}


def _tested(run: Run, trial: Trial) -> Line:
    bench, test = run.bench, run.bench.corpus.test
    followed = some_of(test, CURVE_BLOCKS)
    layers = [module for module in bench.modules if module.name in bench.linear]
    ranks = RankTrack(bench.initial, layers, seed=trial.seed)
    start = round(bench.loss(bench.initial, test), 6)
    curve = [round(bench.loss(bench.initial, followed), 6)]
    sizes: list[float] = []
    last: AfterRound | None = None
    for last in trial.arm.rounds(run):
        curve.append(_mean_loss(bench, last, followed))
        sizes += last.num_bytes
        ranks.add(last)
    assert last is not None
    return {
        "loss": _mean_loss(bench, last, test),
        "start": start,
        "curve": curve,
        "num_bytes": round(float(np.mean(sizes)), 1) if sizes else None,
        **_read(run),
        **ranks.to_json(),
    }


def _read(run: Run) -> Line:
    """What was read: equal in every arm of a setting and seed."""
    return {"num_tokens": run.num_tokens, "data": run.data_digest()}


def _mean_loss(bench: Bench, after: AfterRound, blocks: Blocks) -> float:
    """Mean over the models, where every node has its own.

    Raises:
        NodeError: It is not finite.
    """
    loss = float(np.mean([bench.loss(model, blocks) for model in after.models]))
    if not math.isfinite(loss):
        raise NodeError(f"the loss after a merge became {loss}")
    return round(loss, 6)
