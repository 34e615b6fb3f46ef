"""The quality benchmark tunes before it tests, goes on where it was stopped, and reports what a hand can check."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quality
from learning.arm import Arm
from learning.arms_whole import Alone, LocalSteps, Parallel, Sequential
from learning.catalogue import CATALOGUE, OURS, STANDARD, SWEEP, arm_from_json, arms_named
from learning.corpus import Corpus
from learning.paired import mean_of
from learning.plan import Lineup, StepTimes, best_rate, estimates, grid, next_trials, rates_to_try
from learning.report import Comparison, compare, summary, table
from learning.setting import DOMAINS, IID, SPLITS, TEST, TUNE, Setting, Trial
from learning.store import Results
from learning.trial import trial_from_json

from fullrank_node.errors import NodeError
from fullrank_node.founding import BEST_RATE
from fullrank_node.training.blocks import Blocks

SETTING = Setting(base="b", corpus="c", nodes=2, rounds=3, steps=5, batch=4, warmup=1, split="iid")
ARMS: tuple[Arm, ...] = (Parallel(), Alone())


@pytest.fixture
def tiny_corpus() -> Corpus:
    """Two blocks of one domain."""
    blocks = Blocks(tokens=np.zeros((2, 4), dtype="<u4"), flags=np.zeros((2, 4), dtype=np.uint8))
    return Corpus(name="c", train=blocks, domains=np.zeros(2, dtype=np.int64), valid=blocks, test=blocks)


def line_of(trial: Trial, loss: float | None, **changes: Any) -> dict[str, Any]:
    """A line as a trial would make it."""
    result: dict[str, Any] = {"loss": loss, "num_tokens": 100, "data": f"seed {trial.seed}"}
    if trial.purpose == TEST:
        columns = {"numerical": [4.0], "stable": [2.0], "effective": [3.0], "full": [8.0]}
        result |= {"start": 5.0, "curve": [5.0, loss], "num_bytes": 1500.0, "rank": columns}
    cost = {"cpu_s": 2.0, "machine": "m", "versions": "v"}
    return {"key": trial.key, "trial": trial.to_json(), "result": result | changes, "cost": cost}


def failed(trial: Trial) -> dict[str, Any]:
    return line_of(trial, None, failed="infinite")


def results_of(path: Path, losses: Mapping[Arm, list[float]]) -> Results:
    """Results in which every arm was tuned at one rate and tested with as many seeds as there are losses."""
    results = Results(path)
    lineup = Lineup(setting=SETTING, arms=tuple(losses), seeds=(1, 2, 3), rates=(0.5,))
    for arm, values in losses.items():
        results.add(line_of(lineup.tuning(arm, 0.5), 4.0))
        for trial, loss in zip(lineup.tests(arm, 0.5), values, strict=False):
            results.add(line_of(trial, loss))
    return results


def test_rates_are_the_anchor_times_powers_of_two() -> None:
    rates = grid(0.01)
    assert rates[5:8] == [0.005, 0.01, 0.02]
    assert rates[-1] == 0.64


def test_a_rate_is_looked_for_until_there_is_a_worse_one_on_either_side() -> None:
    losses: dict[float, float] = {}
    assert rates_to_try(0.01, losses) == [0.005, 0.01, 0.02]
    losses |= {0.005: 3.0, 0.01: 2.0, 0.02: 1.0}
    assert rates_to_try(0.01, losses) == [0.04]
    losses |= {0.04: 0.5}
    assert rates_to_try(0.01, losses) == [0.08]
    losses |= {0.08: math.inf}
    assert rates_to_try(0.01, losses) == []
    assert best_rate(losses) == 0.04


def test_where_all_rates_fail_smaller_ones_are_tried_and_then_no_more() -> None:
    losses = dict.fromkeys([0.005, 0.01, 0.02], math.inf)
    for _ in range(5):
        (rate,) = rates_to_try(0.01, losses)
        assert rate == min(losses) / 2 or math.isclose(rate, min(losses) / 2, rel_tol=1e-3)
        losses[rate] = math.inf
    assert rates_to_try(0.01, losses) == []


def test_an_arm_is_tested_at_its_best_rate_once_that_is_known(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl")
    lineup = Lineup(setting=SETTING, arms=ARMS, seeds=(1, 2))
    first = next_trials([lineup], results)
    assert [trial.purpose for trial in first] == [TUNE] * 6
    for trial in first:
        results.add(line_of(trial, abs(math.log(trial.rate / trial.arm.anchor_rate))))
    then = next_trials([lineup], results)
    assert [(trial.arm, trial.rate, trial.seed, trial.purpose) for trial in then] == [
        (arm, arm.anchor_rate, seed, TEST) for arm in ARMS for seed in (1, 2)
    ]
    for trial in then:
        results.add(line_of(trial, 1.0))
    assert next_trials([lineup], results) == []
    assert len(next_trials([Lineup(setting=SETTING, arms=ARMS, seeds=(1, 2, 3))], results)) == 2


def test_rates_are_tuned_with_blocks_dealt_at_random_and_hold_for_domains_apart(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl")
    apart = replace(SETTING, split=DOMAINS)
    lineup = Lineup(setting=apart, arms=(Alone(),), seeds=(1,), rates=(0.5, 0.25))
    tuning = next_trials([lineup], results)
    assert {(trial.setting.split, trial.purpose) for trial in tuning} == {(IID, TUNE)}
    for trial in tuning:
        results.add(line_of(trial, trial.rate))
    (test,) = next_trials([lineup], results)
    assert (test.setting, test.rate, test.purpose) == (apart, 0.25, TEST)
    results.add(line_of(test, 2.0))
    (comparison,) = compare(results, ours="alone")
    assert (comparison.setting, comparison.rows[0].rate) == (apart, 0.25)


def test_one_domain_is_dealt_out_and_never_called_domains_apart(tiny_corpus: Corpus) -> None:
    assert quality.splits_of(SPLITS, tiny_corpus) == [IID]
    with pytest.raises(NodeError, match="one domain"):
        quality.splits_of([DOMAINS], tiny_corpus)
    two = replace(tiny_corpus, domains=np.array([0, 1]))
    assert quality.splits_of(SPLITS, two) == list(SPLITS)


def test_given_rates_are_the_only_ones_tried(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl")
    lineup = Lineup(setting=SETTING, arms=(Parallel(),), seeds=(1,), rates=(0.3, 0.1))
    tuning = next_trials([lineup], results)
    assert [trial.rate for trial in tuning] == [0.3, 0.1]
    results.add(failed(tuning[0]))
    results.add(line_of(tuning[1], 2.0))
    assert next_trials([lineup], results) == lineup.tests(Parallel(), 0.1)


def test_an_arm_that_fails_at_every_rate_is_not_tested_but_reported(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl")
    lineup = Lineup(setting=SETTING, arms=(Parallel(),), seeds=(1,), rates=(0.1,))
    results.add(failed(lineup.tuning(Parallel(), 0.1)))
    assert next_trials([lineup], results) == []
    (comparison,) = compare(results, ours="alone")
    assert comparison.rows[0].rate is None
    assert "failed" in table(comparison)


def test_every_arm_comes_back_from_json_and_has_a_name_of_its_own() -> None:
    for arm in CATALOGUE:
        assert arm_from_json(json.loads(json.dumps(arm.to_json()))) == arm
    assert len({arm.name for arm in CATALOGUE}) == len(CATALOGUE)
    assert OURS in SWEEP
    assert set(SWEEP) <= set(STANDARD)


def test_arms_are_named_by_patterns_and_sets() -> None:
    assert arms_named(["standard"]) == STANDARD
    assert arms_named(["alone", "parallel"]) == (Parallel(), Alone())
    assert {arm.name for arm in arms_named(["sparse-*"])} == {"sparse-0.0312", "sparse-0.0625", "sparse-0.125"}
    with pytest.raises(ValueError, match="no arm is called 'best'"):
        arms_named(["best"])


def test_keys_differ_in_everything_that_decides_a_result() -> None:
    setting = SETTING
    trial = Trial(setting=setting, arm=LocalSteps(carry=True), rate=0.1, seed=1, purpose=TUNE)
    others = [
        Trial(setting=setting, arm=LocalSteps(carry=False), rate=0.1, seed=1, purpose=TUNE),
        Trial(setting=setting, arm=LocalSteps(carry=True), rate=0.2, seed=1, purpose=TUNE),
        Trial(setting=setting, arm=LocalSteps(carry=True), rate=0.1, seed=2, purpose=TUNE),
        Trial(setting=setting, arm=LocalSteps(carry=True), rate=0.1, seed=1, purpose=TEST),
        Trial(setting=replace(setting, constant=True), arm=LocalSteps(carry=True), rate=0.1, seed=1, purpose=TUNE),
    ]
    assert len({trial.key, *(other.key for other in others)}) == 6


@pytest.mark.parametrize("name", ["quality", "quality_gsm8k", "mixed"])
def test_committed_results_keep_their_keys(name: str) -> None:
    path = Path(quality.ROOT) / f"scripts/bench/results/{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines
    for line in lines:
        assert trial_from_json(line["trial"]).key == line["key"]


def test_what_the_command_runs_by_default_is_all_committed() -> None:
    results = Results(Path(quality.ROOT) / "scripts/bench/results/quality.jsonl")
    settings = {trial.setting for trial, _ in results.trials() if (trial.setting.nodes, trial.setting.rounds) == (4, 6)}
    assert {setting.split for setting in settings} == set(SPLITS)
    lineups = [Lineup(setting=setting, arms=STANDARD, seeds=(1, 2, 3)) for setting in settings]
    assert [f"{trial.arm.name} {trial.setting.split} {trial.purpose}" for trial in next_trials(lineups, results)] == []


def test_the_rate_that_founders_get_is_the_one_that_was_best_at_a_constant_rate() -> None:
    results = Results(Path(quality.ROOT) / "scripts/bench/results/quality_gsm8k.jsonl")
    (comparison,) = [found for found in compare(results, ours=OURS.name) if found.setting.constant]
    (row,) = [row for row in comparison.rows if row.arm == OURS]
    assert (row.rate, row.at_edge) == (BEST_RATE, False)


def test_a_line_that_a_kill_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    trials = [Trial(setting=SETTING, arm=Parallel(), rate=rate, seed=0, purpose=TUNE) for rate in (0.1, 0.2)]
    whole = Results(path)
    for trial in trials:
        whole.add(line_of(trial, 1.0))
    text = path.read_text()
    path.write_text(text[:-20])
    stopped = Results(path)
    assert [trial.key in stopped.lines for trial in trials] == [True, False]
    stopped.add(line_of(trials[1], 1.0))
    assert path.read_text() == text
    path.write_text(text + text)
    assert list(Results(path).lines) == [trial.key for trial in trials]


def test_means_have_the_intervals_of_students_distribution() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    assert mean is not None
    assert (mean.value, mean.half_width) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert not mean.is_above_zero
    sure = mean_of([-1.0, -1.1, -1.2])
    assert sure is not None
    assert sure.is_below_zero
    single = mean_of([-1.0])
    assert single is not None
    assert single.half_width is None
    assert not single.is_below_zero
    assert mean_of([]) is None


def test_gains_and_differences_are_taken_seed_by_seed(tmp_path: Path) -> None:
    losses: dict[Arm, list[float]] = {
        Parallel(): [3.0, 4.0, 3.0],
        Sequential(): [2.5, 3.4, 2.6],
        Alone(): [4.0, 4.5, 4.0],
    }
    (comparison,) = compare(results_of(tmp_path / "r.jsonl", losses), ours="alone")
    rows = {row.arm.name: row for row in comparison.rows}
    assert list(rows) == ["sequence", "parallel", "alone"]
    gain, difference = rows["alone"].gain, rows["sequence"].difference
    assert gain is not None
    assert difference is not None
    # (5 - 4) / (5 - 3), (5 - 4.5) / (5 - 4), (5 - 4) / (5 - 3): all one half.
    assert (gain.value, gain.half_width) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))
    assert difference.value == pytest.approx((-1.5 - 1.1 - 1.4) / 3)
    assert rows["alone"].difference is None
    text = table(comparison)
    assert "certainly better: sequence" in text
    assert "certainly worse: none" in text
    assert "loss before 5.0000" in text


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    losses: dict[Arm, list[float]] = {Parallel(): [3.0], Alone(): [4.0, 9.0]}
    (comparison,) = compare(results_of(tmp_path / "r.jsonl", losses), ours="parallel")
    alone = next(row for row in comparison.rows if row.arm == Alone())
    assert alone.difference is not None
    assert (alone.difference.value, alone.difference.count) == (1.0, 1)


def test_a_mark_that_gains_nothing_measures_nothing(tmp_path: Path) -> None:
    losses: dict[Arm, list[float]] = {Parallel(): [5.5], Alone(): [4.0]}
    (comparison,) = compare(results_of(tmp_path / "r.jsonl", losses), ours="alone")
    assert all(row.gain is None for row in comparison.rows)


def test_arms_that_have_read_different_data_are_not_compared(tmp_path: Path) -> None:
    results = results_of(tmp_path / "r.jsonl", {Parallel(): [3.0]})
    trial = Trial(setting=SETTING, arm=Alone(), rate=0.5, seed=1, purpose=TEST)
    results.add(line_of(trial, 4.0, data="other blocks"))
    with pytest.raises(ValueError, match="seed 1: alone has read 100 tokens of data other blocks"):
        compare(results, ours="alone")


def test_the_summary_carries_curves_and_ranks_for_pictures(tmp_path: Path) -> None:
    results = results_of(tmp_path / "r.jsonl", {Parallel(): [3.0, 4.0, 3.0]})
    comparisons: list[Comparison] = compare(results, ours="alone")
    found = json.loads(json.dumps(summary(comparisons, results)))
    (row,) = found["comparisons"][0]["rows"]
    assert row["arm"] == "parallel"
    assert row["curves"] == {"1": [5.0, 3.0], "2": [5.0, 4.0], "3": [5.0, 3.0]}
    assert row["rank_per_round"]["effective"] == [3.0]
    assert (found["trials"], found["machines"]) == (4, ["m; v"])
    assert "ours, alone, was not tested" in table(comparisons[0])


def test_an_estimate_counts_what_is_missing(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl")
    lineup = Lineup(setting=SETTING, arms=(Parallel(),), seeds=(1, 2), rates=(0.1, 0.2))
    times = StepTimes(whole=1.0, adapter=2.0, block=0.5)
    blocks = {"valid_blocks": 4, "test_blocks": 8, "curve_blocks": 2}
    (all_of_it,) = estimates([lineup], results, times, **blocks)
    # 30 steps a trial; 4 blocks to tune; 2 * 8 + 4 * 2 blocks to test.
    assert (all_of_it.trials, all_of_it.cpu_s) == (4, 4 * 30 + (2 * 4 + 2 * 24) * 0.5)
    for rate, loss in ((0.1, 3.0), (0.2, 2.0)):
        results.add(line_of(lineup.tuning(Parallel(), rate), loss))
    results.add(line_of(lineup.tests(Parallel(), 0.2)[0], 2.0))
    (rest,) = estimates([lineup], results, times, **blocks)
    assert (rest.trials, rest.cpu_s) == (1, 30 + 24 * 0.5)


@pytest.fixture
def command(tiny_base: Path, sentences: list[str], tmp_path: Path) -> list[str]:
    """A comparison of two arms that takes a second."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
    return [
        *("--base", str(tiny_base), "--data", str(rows), "--results", str(tmp_path / "r.jsonl"), "--split", "iid"),
        *("--nodes", "2", "--rounds", "1", "--steps", "1", "--batch", "2", "--block-length", "32", "--seeds", "2"),
        *("--rates", "0.01", "--arms", "parallel", "ours-B-r8-2bit-k15", "--ours", "ours-B-r8-2bit-k15"),
        *("--valid-blocks", "2", "--test-blocks", "4"),
    ]


def without_cost(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: part for name, part in line.items() if name != "cost"} for line in lines]


def test_the_command_goes_on_where_it_was_stopped_and_ends_with_the_same_lines(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.jsonl"
    assert quality.main(command) == 0
    out = capsys.readouterr().out
    assert "2 nodes, 1 rounds of 1 steps of 2 blocks, blocks dealt at random; seeds 1, 2" in out
    whole = without_cost(path)
    assert len(whole) == 6
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]) + '{"key": "cut')
    assert quality.main(command) == 0
    assert without_cost(path) == whole
    assert quality.main(["--report", *command]) == 0
    assert "6 trials" in capsys.readouterr().out
    assert json.loads(path.with_suffix(".json").read_text())["comparisons"][0]["start"] > 0


def test_the_plan_runs_nothing(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--plan", *command]) == 0
    assert "6 trials, about" in capsys.readouterr().out
    assert not (tmp_path / "r.jsonl").exists()


def test_an_unknown_base_or_arm_is_said_in_a_sentence(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main([*command, "--base", "/nowhere/at/all"]) == 1
    assert "quality: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        quality.main([*command, "--arms", "best"])
    assert "no arm is called 'best'" in capsys.readouterr().err
