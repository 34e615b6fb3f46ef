"""Which trials are missing: rates are tuned first, then the best one is tested.

A rate is looked for among the anchor of its arm times powers of two: the anchor and its neighbours, then further in
the direction of the best until it has a worse one on either side. All on validation blocks with one seed and blocks
dealt at random (`Setting.tuned_in`); then the test seeds are run at that rate alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learning.arm import WHOLE, Arm
from learning.setting import TEST, TUNE, Setting, Trial
from learning.store import Results

TUNE_SEED = 0
"""Test seeds count from 1."""

FARTHEST = 6
"""Powers of two from the anchor to the last rate that is tried: a factor of 64 either way."""

USUAL_TUNING = 4
"""Rates that it takes to find the best, for estimates: three, and often one more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """Arms that are lined up in a setting, to be compared.

    Attributes:
        seeds: Test seeds.
        rates: To try instead of looking for the best around each arm's anchor.
    """

    setting: Setting
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...] = ()

    def tuning(self, arm: Arm, rate: float) -> Trial:
        """The trial that measures a rate on validation blocks."""
        return Trial(setting=self.setting.tuned_in, arm=arm, rate=rate, seed=TUNE_SEED, purpose=TUNE)

    def tests(self, arm: Arm, rate: float) -> list[Trial]:
        """The trials whose results are reported."""
        return [Trial(setting=self.setting, arm=arm, rate=rate, seed=seed, purpose=TEST) for seed in self.seeds]


def grid(anchor: float) -> list[float]:
    """All rates that may be tried, ascending."""
    return [float(f"{anchor * 2.0**power:.4g}") for power in range(-FARTHEST, FARTHEST + 1)]


def best_rate(losses: Mapping[float, float]) -> float:
    """The rate of the least loss, the smaller one of equals."""
    return min(losses, key=lambda rate: (losses[rate], rate))


def rates_to_try(anchor: float, losses: Mapping[float, float]) -> list[float]:
    """Rates that have to be tried next; none when the best has a worse one on either side, or is the last of all.

    Args:
        anchor: Of the arm.
        losses: Of the rates tried so far, infinite where training failed.
    """
    rates = grid(anchor)
    first = [rate for rate in rates[FARTHEST - 1 : FARTHEST + 2] if rate not in losses]
    if first:
        return first
    tried = sorted(rate for rate in losses if rate in rates)
    place = rates.index(best_rate({rate: losses[rate] for rate in tried}))
    neighbours = [rates[index] for index in (place - 1, place + 1) if 0 <= index < len(rates)]
    return [rate for rate in neighbours if rate not in losses]


def losses_of(lineup: Lineup, arm: Arm, results: Results) -> dict[float, float]:
    """Validation losses of the rates of an arm that have been tried."""
    found = {}
    for rate in lineup.rates or grid(arm.anchor_rate):
        line = results.of(lineup.tuning(arm, rate))
        if line is not None:
            loss = line["result"]["loss"]
            found[rate] = math.inf if loss is None else float(loss)
    return found


def next_trials(lineups: Sequence[Lineup], results: Results) -> list[Trial]:
    """Missing trials that can be run now, arm by arm; empty when all is done.

    An arm that fails at every rate that is tried is not tested.
    """
    missing: dict[str, Trial] = {}
    for lineup in lineups:
        for arm in lineup.arms:
            losses = losses_of(lineup, arm, results)
            if lineup.rates:
                wanted = [rate for rate in lineup.rates if rate not in losses]
            else:
                wanted = rates_to_try(arm.anchor_rate, losses)
            trials = [lineup.tuning(arm, rate) for rate in wanted]
            if not wanted and math.isfinite(losses[best_rate(losses)]):
                trials = lineup.tests(arm, best_rate(losses))
            missing |= {trial.key: trial for trial in trials if results.of(trial) is None}
    return list(missing.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Processor seconds on this machine, measured.

    Attributes:
        whole: One step of one node that trains all weights.
        adapter: One step of one node that trains an adapter.
        block: Evaluating one block.
    """

    whole: float
    adapter: float
    block: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is missing of one arm in one setting."""

    setting: Setting
    arm: Arm
    trials: int
    cpu_s: float


def estimates(
    lineups: Sequence[Lineup],
    results: Results,
    times: StepTimes,
    *,
    valid_blocks: int,
    test_blocks: int,
    curve_blocks: int,
) -> list[Estimate]:
    """Trials and processor time that are still to be spent, taking the usual number of rates for each arm."""
    found = []
    for lineup in lineups:
        setting = lineup.setting
        for arm in lineup.arms:
            losses = losses_of(lineup, arm, results)
            usual = len(lineup.rates) or USUAL_TUNING
            done = bool(losses) and not (
                set(lineup.rates) - losses.keys() if lineup.rates else rates_to_try(arm.anchor_rate, losses)
            )
            tuning = 0 if done else max(1, usual - len(losses))
            tests = lineup.tests(arm, best_rate(losses)) if done else lineup.tests(arm, 0.0)
            testing = sum(results.of(trial) is None for trial in tests)
            step_s = times.whole if arm.trains == WHOLE else times.adapter
            looks = tuning * valid_blocks + testing * (2 * test_blocks + (setting.rounds + 1) * curve_blocks)
            cpu_s = (tuning + testing) * setting.all_steps * step_s + looks * times.block
            found.append(Estimate(setting=setting, arm=arm, trials=tuning + testing, cpu_s=cpu_s))
    return found
