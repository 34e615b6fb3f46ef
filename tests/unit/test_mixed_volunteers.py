"""Volunteers who differ train by the same rules as those who are alike, until as many tokens are in."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import learning.arms_mixed as arms_mixed
import mixed
import numpy as np
import pytest
from learning.arm import AfterRound, Arm
from learning.arms_mixed import Mixed, Timetable, timetable
from learning.arms_swarm import Swarm
from learning.bench import Bench, open_bench
from learning.catalogue import UNIFORM, VOLUNTEERS
from learning.corpus import Sources
from learning.run import Run
from learning.setting import IID, TEST, Setting, Trial
from learning.trial import run_trial, trial_from_json

from fullrank_node.training.loop import Schedule
from fullrank_protocol.delta import LowRank
from fullrank_protocol.weights import Entry, WeighResult, weigh

ALIKE = Mixed(mode="B", rank=4)
EVERYTHING = replace(ALIKE, lowest_rank=2, missing=0.3, late=0.5, slow_every=4)


@pytest.fixture(scope="module")
def bench(tiny_base: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The tiny base with a file of sentences."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences[:180]))
    sources = Sources(name="sentences", train=(path,), test=(), block_length=32, valid_blocks=4, test_blocks=4)
    return open_bench(tiny_base, sources, base_name="tiny")


def setting_of(bench: Bench, **changes: Any) -> Setting:
    """Four nodes, two rounds of two steps."""
    usual = Setting(base=bench.name, corpus=bench.corpus.name, nodes=4, rounds=2, steps=2, batch=2, warmup=1, split=IID)
    return replace(usual, **changes)


def run_of(bench: Bench, directory: Path, *, seed: int = 1, **changes: Any) -> Run:
    return Run(bench, setting_of(bench, **changes), rate=1e-2, seed=seed, directory=directory)


def planned(bench: Bench, arm: Mixed, directory: Path, *, seed: int = 1, **changes: Any) -> Timetable:
    return timetable(arm, run_of(bench, directory, seed=seed, **changes))


def test_a_swarm_alike_has_the_mean_rank_of_what_arrives() -> None:
    ranks = Mixed(mode="B", rank=32, lowest_rank=2)
    assert mixed.alike(ranks, nodes=5) == replace(mixed.UNIFORM, rank=12)  # (2 + 4 + 8 + 16 + 32) / 5 = 12.4
    slow = replace(ranks, slow_every=4)  # The fourth, of rank 16, makes a tenth of the steps: 47.6 / 4.1 = 11.6.
    assert mixed.alike(slow, nodes=5) == replace(mixed.UNIFORM, rank=12)
    assert mixed.alike(replace(slow, slow_every=5), nodes=5) == replace(mixed.UNIFORM, rank=8)  # 33.2 / 4.1 = 8.1
    assert mixed.alike(mixed.UNIFORM, nodes=5) is mixed.UNIFORM


def test_volunteers_who_are_alike_are_the_uniform_swarm(bench: Bench) -> None:
    trial = Trial(setting=setting_of(bench), arm=Swarm(mode="B", rank=4), rate=1e-2, seed=1, purpose=TEST)
    assert run_trial(bench, replace(trial, arm=ALIKE))["result"] == run_trial(bench, trial)["result"]


def test_a_line_names_its_volunteers(bench: Bench) -> None:
    for arm in VOLUNTEERS:
        trial = Trial(setting=setting_of(bench), arm=arm, rate=1e-2, seed=1, purpose=TEST)
        assert trial_from_json(json.loads(json.dumps(trial.to_json()))) == trial
    assert len({arm.name for arm in VOLUNTEERS}) == len(VOLUNTEERS)
    assert EVERYTHING.name == "ours-B-r4-2bit-k15-from2-missing0.3-late0.5-slow4"


def test_nodes_take_turns_in_the_ranks(bench: Bench, tmp_path: Path) -> None:
    arm = Mixed(mode="B", rank=32, lowest_rank=2)
    assert [arm.rank_of(number) for number in range(8)] == [2, 4, 8, 16, 32, 2, 4, 8]
    (after,) = Mixed(mode="B", rank=8, lowest_rank=2).rounds(run_of(bench, tmp_path, rounds=1))
    assert [layer_rank(bench, after, number) for number in range(4)] == [2, 4, 8, 2]
    assert len(set(after.num_bytes[:3])) == 3


def layer_rank(bench: Bench, after: AfterRound, number: int) -> int:
    """Most components of a linear layer in one of the deltas that were merged."""
    parts = [part for part in after.merged[number][0].parts if part.module in bench.linear]
    return max(part.rank for part in parts if isinstance(part, LowRank))


def test_a_slow_node_does_a_tenth_of_the_steps(bench: Bench, tmp_path: Path) -> None:
    tasks = planned(bench, replace(ALIKE, slow_every=4), tmp_path, steps=20, batch=1).tasks
    assert [task.steps for task in tasks[:4]] == [20, 20, 20, 2]


def test_a_node_that_misses_a_round_sends_nothing(bench: Bench, tmp_path: Path) -> None:
    never, sometimes = (planned(bench, replace(ALIKE, missing=missing), tmp_path, rounds=40) for missing in (0.0, 0.3))
    assert len(never.tasks) == 160
    came = len(sometimes.tasks) / (4 * sometimes.rounds)
    assert came == pytest.approx(0.7, abs=3 * math.sqrt(0.7 * 0.3 / (4 * sometimes.rounds)))


def test_the_same_slots_are_missed_whatever_else_is_mixed(bench: Bench, tmp_path: Path) -> None:
    missing, everything = (
        {(task.base, task.node) for task in planned(bench, arm, tmp_path, rounds=10).tasks if task.base < 7}
        for arm in (replace(ALIKE, missing=0.3), EVERYTHING)
    )
    assert missing == everything


def test_late_deltas_are_trained_on_the_head_of_up_to_three_rounds_ago(bench: Bench, tmp_path: Path) -> None:
    table = planned(bench, replace(ALIKE, late=1.0), tmp_path, rounds=10)
    assert {task.arrives - task.base for task in table.tasks} == {0, 1, 2, 3}
    assert len({(task.base, task.node) for task in table.tasks}) == len(table.tasks)
    assert {task.arrives for task in table.tasks} == set(range(table.rounds)), "there is no round without a delta"


def test_a_slot_in_which_nothing_arrives_is_no_round(bench: Bench, tmp_path: Path) -> None:
    tasks = planned(bench, replace(ALIKE, late=1.0, most_late=1), tmp_path).tasks
    assert [(task.node, task.base, task.arrives) for task in tasks] == [
        *((node, 0, 0) for node in range(4)),
        *((node, 1, 1) for node in range(4)),
    ]


def test_every_delta_is_trained_on_the_weights_of_its_base(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, train = bench.linear[0], Swarm.contribution
    seen: list[tuple[int, Any]] = []

    def watched(arm: Swarm, run: Run, *arguments: Any, schedule: Schedule, **options: Any) -> tuple[bytes, int]:
        seen.append((schedule.round, bench.read([name])[name]))
        return train(arm, run, *arguments, schedule=schedule, **options)

    monkeypatch.setattr(Swarm, "contribution", watched)
    ends = list(replace(ALIKE, late=0.5).rounds(run_of(bench, tmp_path, rounds=3)))
    heads = [bench.initial[name], *(after.models[0][name] for after in ends)]
    assert max(base for base, _ in seen) >= 2
    assert all(np.array_equal(weights, heads[base]) for base, weights in seen)


def test_stale_deltas_weigh_less_by_the_square_root(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges: list[tuple[list[Entry], WeighResult, WeighResult]] = []

    def watched(entries: list[Entry], gram: Any, rule: Any, trailing: Sequence[Any]) -> WeighResult:
        found = weigh(entries, gram, rule, trailing)
        merges.append((entries, found, weigh([replace(one, staleness=0) for one in entries], gram, rule, trailing)))
        return found

    monkeypatch.setattr(arms_mixed, "weigh", watched)
    for _ in replace(ALIKE, late=0.5).rounds(run_of(bench, tmp_path, rounds=4)):
        pass
    mixed_merges = 0
    for entries, found, fresh in merges:
        shares = [
            one.value() * math.sqrt(1 + entry.staleness) / other.value()
            for entry, one, other in zip(entries, found.weights, fresh.weights, strict=True)
        ]
        # Weights are rounded to 8 bits: each is off by at most one part in 256.
        assert max(shares) / min(shares) == pytest.approx(1.0, abs=4 / 256)
        mixed_merges += len({entry.staleness for entry in entries}) > 1
    assert mixed_merges >= 2


@pytest.mark.parametrize(
    "changes",
    [{}, {"missing": 0.3}, {"late": 1.0}, {"slow_every": 4}, {"missing": 0.3, "late": 0.5, "slow_every": 4}],
    ids=["alike", "missing", "late", "slow", "all"],
)
def test_as_many_tokens_are_accepted_and_less_than_a_step_of_everybody_more(
    bench: Bench, tmp_path: Path, changes: dict[str, Any]
) -> None:
    homes = (tmp_path / "uniform", tmp_path / "mixed")
    for home in homes:
        home.mkdir()
    uniform, run = (run_of(bench, home, steps=10, batch=1, rounds=1) for home in homes)
    for _ in Swarm(mode="B", rank=4).rounds(uniform):
        pass
    arm = replace(ALIKE, **changes)
    ends = list(arm.rounds(run))
    table = timetable(arm, uniform)
    assert (len(ends), run.num_tokens) == (table.rounds, table.num_tokens)
    most_late = 3 if "late" in changes else 0
    largest_step = 4 * 31 * (1 + most_late)
    assert uniform.num_tokens <= run.num_tokens < uniform.num_tokens + largest_step
    assert (table.rounds > 1) == bool(changes)


def test_volunteers_who_never_come_are_not_waited_for(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in 64 slots, required as many"):
        planned(bench, replace(ALIKE, missing=1.0), tmp_path)


def test_the_command_compares_at_one_rate_and_goes_on_where_it_was_stopped(
    tiny_base: Path,
    sentences: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few: tuple[Arm, ...] = (UNIFORM, Mixed(mode="B", rank=32, lowest_rank=2))
    monkeypatch.setattr(mixed, "VOLUNTEERS", few)
    rows, path = tmp_path / "rows.jsonl", tmp_path / "r.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
    command = [
        *("--base", str(tiny_base), "--data", str(rows), "--results", str(path), "--nodes", "2", "--rounds", "1"),
        *("--steps", "1", "--batch", "2", "--block-length", "32", "--seeds", "2", "--rates", "0.01", "0.02"),
        *("--valid-blocks", "2", "--test-blocks", "4"),
    ]
    assert mixed.main(command) == 0
    out = capsys.readouterr().out
    assert "2 nodes, 1 rounds of 1 steps of 2 blocks, blocks dealt at random; seeds 1, 2" in out
    lines = path.read_text().splitlines()
    purposes = [json.loads(line)["trial"]["purpose"] for line in lines]
    assert purposes == ["tune"] * 2 + ["test"] * 6
    assert [json.loads(line)["trial"]["seed"] for line in lines] == [0, 0, 1, 1, 1, 2, 2, 2]
    (comparison,) = json.loads(path.with_suffix(".json").read_text())["comparisons"]
    uniform, alike, ranks = comparison["rows"]
    assert (uniform["ratio"]["mean"], uniform["tokens_ratio"], ranks["tokens_ratio"]) == (1.0, 1.0, 1.0)
    assert (alike["rank"], ranks["alike"], alike["ratio_alike"]["mean"]) == (3, alike["arm"], 1.0)
    losses = [json.loads(line)["result"]["loss"] for line in lines[2:]]
    assert ranks["ratio"]["mean"] == pytest.approx((losses[2] / losses[0] + losses[5] / losses[3]) / 2, abs=1e-6)
    assert ranks["ratio_alike"]["mean"] == pytest.approx((losses[2] / losses[1] + losses[5] / losses[4]) / 2, abs=1e-6)
    assert mixed.main(command) == 0
    assert path.read_text().splitlines() == lines
    assert mixed.main(["--report", *command]) == 0
    assert few[1].name in capsys.readouterr().out
