"""Runs what is missing, here or in processes of one thread each, and keeps every line as soon as it is there."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning.bench import Bench, open_bench
from learning.corpus import Sources
from learning.plan import Lineup, next_trials
from learning.setting import Trial
from learning.store import Results
from learning.trial import Line, run_trial, trial_from_json

Told = Callable[[Trial, Line], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSource:
    """What it takes to open the same bench in another process."""

    base_dir: Path
    base_name: str
    sources: Sources

    def open(self) -> Bench:
        """Load it."""
        return open_bench(self.base_dir, self.sources, base_name=self.base_name)


def run_here(bench: Bench, lineups: Sequence[Lineup], results: Results, told: Told) -> None:
    """Run one trial after the other until none is missing."""
    while missing := next_trials(lineups, results):
        line = run_trial(bench, missing[0])
        results.add(line)
        told(missing[0], line)


def run_in_processes(
    source: BenchSource, lineups: Sequence[Lineup], results: Results, told: Told, *, processes: int
) -> None:
    """Run so many trials at a time until none is missing."""
    context = multiprocessing.get_context("spawn")
    running: dict[Future[Line], Trial] = {}
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_open, initargs=(source,)) as pool:
        while True:
            under_way = {trial.key for trial in running.values()}
            waiting = [trial for trial in next_trials(lineups, results) if trial.key not in under_way]
            for trial in waiting[: processes - len(running)]:
                running[pool.submit(_work, trial.to_json())] = trial
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                line = future.result()
                results.add(line)
                told(running.pop(future), line)


_opened: list[Bench] = []
"""This process' bench, once it is open."""


def _open(source: BenchSource) -> None:
    _opened.append(source.open())


def _work(trial: dict[str, Any]) -> Line:
    return run_trial(_opened[0], trial_from_json(trial))
