#!/usr/bin/env python3
"""Compares swarms whose volunteers differ with one whose nodes are alike, at equal accepted tokens.

    scripts/bench/mixed.py                                          # the embedded base and texts
    scripts/bench/mixed.py --base DIR --data TRAIN.jsonl --test TEST.jsonl --results OTHER.jsonl
    scripts/bench/mixed.py --rounds 24 --arms '*-from2-*'           # all kinds together, for longer
    scripts/bench/mixed.py --report                                 # the table of what is there

Nodes of ranks 2 to 32, nodes that miss rounds, deltas that come late, slow nodes, and all of them together; the limit
is a loss 2 % above that of a uniform swarm of as many components: the rank of its nodes is the mean over the tokens
that the others accept. Beside it stands the loss over that of a uniform swarm of rank 32. Only the latter's rate is
tuned, on validation blocks: a genesis fixes one rate for whoever comes. Mixed swarms go on for more rounds, until they
have accepted as many tokens.

Every trial is one line of the results file, added as soon as it is done, seed by seed; what is there is not run
again. At the end come a table, and the same in JSON beside the results.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts/bench"), str(ROOT / "node"), str(ROOT / "protocol")]

from learning.arm import Arm  # noqa: E402 - after the path is set.
from learning.arms_mixed import Mixed  # noqa: E402
from learning.bench import Bench  # noqa: E402
from learning.catalogue import UNIFORM, VOLUNTEERS  # noqa: E402
from learning.options import add_bench_arguments, source_of, tell  # noqa: E402
from learning.paired import Mean, mean_of  # noqa: E402
from learning.plan import Lineup, best_rate, losses_of, next_trials  # noqa: E402
from learning.setting import IID, TEST, Setting, Trial  # noqa: E402
from learning.store import Results  # noqa: E402
from learning.trial import Line, run_trial  # noqa: E402

from fullrank_node.errors import NodeError  # noqa: E402

LIMIT = 1.02
"""Largest loss, over that of a uniform swarm of as many components: what volunteers of all kinds may cost."""

COUNTED_STEPS = 20
"""Of a node that is not slow, where the ranks of different nodes are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm, over its seeds.

    Attributes:
        rounds: Merges, by seed.
        num_tokens: Accepted, by seed.
        tokens_ratio: Accepted tokens over those of the uniform swarm with the same seed, the mean.
        loss: On test blocks.
        ratio: Loss over that of the uniform swarm with the same seed.
        alike: The uniform swarm of as many components.
        ratio_alike: Loss over that one's.
        num_bytes: Of a contribution, the mean.
    """

    arm: Arm
    rounds: tuple[int, ...]
    num_tokens: tuple[int, ...]
    tokens_ratio: float
    loss: Mean
    ratio: Mean
    alike: Arm
    ratio_alike: Mean
    num_bytes: float
    cpu_s: float

    def to_json(self) -> dict[str, Any]:
        """For the file beside the results."""
        return {
            "arm": self.arm.name,
            **self.arm.to_json(),
            "rounds": self.rounds,
            "num_tokens": self.num_tokens,
            "tokens_ratio": self.tokens_ratio,
            "loss": self.loss.to_json(),
            "ratio": self.ratio.to_json(),
            "alike": self.alike.name,
            "ratio_alike": self.ratio_alike.to_json(),
            "within_limit": self.ratio_alike.value <= LIMIT,
            "num_bytes": self.num_bytes,
            "cpu_s": self.cpu_s,
        }


def main(command: Sequence[str] | None = None) -> int:
    """Runs what is missing, then prints the table; returns the exit code."""
    options = arguments().parse_args(command)
    results = Results(options.results)
    if options.report:
        return report(options.results, results)
    try:
        with tempfile.TemporaryDirectory(prefix="mixed-") as directory:
            bench = source_of(options, texts=Path(directory)).open()
            run(options, bench, results)
    except NodeError as error:
        print(f"mixed: {error}" + (f"\n{error.hint}" if error.hint else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mixed: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return report(options.results, results)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--arms", nargs="+", default=["*"], help="names or patterns; the uniform swarms beside them always run")
    add("--nodes", type=int, default=8, help="volunteers; with eight, every rank and two slow ones occur")
    add("--rounds", type=int, default=6, help="of the uniform swarm; others take as many as they need")
    add("--seeds", type=int, default=3, help="test seeds, 1 to this")
    add("--rates", nargs="+", type=float, default=[], help="try these only, instead of looking around the usual one")
    add_bench_arguments(parser)
    add("--results", type=Path, default=ROOT / "scripts/bench/results/mixed.jsonl", help="one JSON line a trial")
    add("--report", action="store_true", help="print what the results say, and run nothing")
    return parser


def run(options: argparse.Namespace, bench: Bench, results: Results) -> None:
    """Tune the uniform swarm, then test every arm at its rate, seed by seed."""
    setting = Setting(
        base=bench.name,
        corpus=bench.corpus.name,
        nodes=options.nodes,
        rounds=options.rounds,
        steps=options.steps,
        batch=options.batch,
        warmup=options.warmup,
        split=IID,
    )
    arms = [arm for arm in VOLUNTEERS if any(fnmatchcase(arm.name, pattern) for pattern in options.arms)]
    lineup = Lineup(setting=setting, arms=(UNIFORM,), seeds=(), rates=tuple(options.rates))
    while tuning := next_trials([lineup], results):
        keep(tuning[0], run_trial(bench, tuning[0]), results)
    losses = losses_of(lineup, UNIFORM, results)
    rate = best_rate(losses)
    if not math.isfinite(losses[rate]):
        raise NodeError("the uniform swarm fails at every rate that was tried")
    for seed in range(1, options.seeds + 1):
        for arm in with_peers(arms, nodes=options.nodes):
            trial = Trial(setting=setting, arm=arm, rate=rate, seed=seed, purpose=TEST)
            if results.of(trial) is None:
                keep(trial, run_trial(bench, trial), results)


def alike(arm: Arm, nodes: int) -> Arm:
    """The uniform swarm with as many components a token as an arm, to the next whole rank; the arm, if it is uniform.

    A node counts by the steps that it makes in a round: of a slow one, hardly anything arrives.
    """
    if not isinstance(arm, Mixed):
        return arm
    steps = [arm.steps_of(number, COUNTED_STEPS) for number in range(nodes)]
    components = sum(arm.rank_of(number) * made for number, made in enumerate(steps))
    return replace(UNIFORM, rank=round(components / sum(steps)))


def with_peers(arms: Sequence[Arm], *, nodes: int) -> list[Arm]:
    """The uniform swarm, those alike, and the arms, each once."""
    return list(dict.fromkeys((UNIFORM, *(alike(arm, nodes) for arm in arms), *arms)))


def keep(trial: Trial, line: Line, results: Results) -> None:
    """On disk, and on the screen."""
    results.add(line)
    tell(trial, line)


def report(path: Path, results: Results) -> int:
    """Print a table for each setting and rate, and write them as JSON."""
    tested: dict[str, dict[Arm, dict[int, Line]]] = {}
    for trial, line in results.trials():
        if trial.purpose == TEST and line["result"]["loss"] is not None:
            group = json.dumps([trial.setting.to_json(), trial.rate])
            tested.setdefault(group, {}).setdefault(trial.arm, {})[trial.seed] = line
    costs = [line["cost"] for line in results.lines.values()]
    machines = sorted({f"{cost['machine']}; {cost['versions']}" for cost in costs})
    found = []
    for group, lines in tested.items():
        setting, rate = Setting(**json.loads(group)[0]), json.loads(group)[1]
        uniform = lines.get(UNIFORM, {})
        known = with_peers(VOLUNTEERS, nodes=setting.nodes)
        same = {arm: alike(arm, setting.nodes) for arm in known if arm in lines}
        rows = [
            row
            for arm, peer in same.items()
            if (row := row_of(arm, lines[arm], uniform, alike=peer, peers=lines.get(peer, {}))) is not None
        ]
        seeds = sorted(uniform)
        print(table(setting, rate, rows, seeds=seeds), end="\n\n")
        found.append(
            {"setting": setting.to_json(), "rate": rate, "seeds": seeds, "rows": [row.to_json() for row in rows]}
        )
    print("\n".join(machines))
    summary = {"machines": machines, "limit": LIMIT, "uniform": UNIFORM.name, "comparisons": found}
    path.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 0


def row_of(
    arm: Arm, lines: dict[int, Line], uniform: dict[int, Line], *, alike: Arm, peers: dict[int, Line]
) -> Row | None:
    """An arm beside the uniform swarm and the one alike, over the seeds that all have; None without any."""
    seeds = sorted(lines.keys() & uniform.keys() & peers.keys())
    results = [lines[seed]["result"] for seed in seeds]
    theirs = [uniform[seed]["result"] for seed in seeds]
    pairs = list(zip(results, theirs, strict=True))
    loss = mean_of([mine["loss"] for mine in results])
    ratio = mean_of([mine["loss"] / other["loss"] for mine, other in pairs])
    ratio_alike = mean_of([lines[seed]["result"]["loss"] / peers[seed]["result"]["loss"] for seed in seeds])
    if loss is None or ratio is None or ratio_alike is None:
        return None
    return Row(
        arm=arm,
        rounds=tuple(len(mine["curve"]) - 1 for mine in results),
        num_tokens=tuple(mine["num_tokens"] for mine in results),
        tokens_ratio=round(statistics.fmean(mine["num_tokens"] / other["num_tokens"] for mine, other in pairs), 5),
        loss=loss,
        ratio=ratio,
        alike=alike,
        ratio_alike=ratio_alike,
        num_bytes=round(statistics.fmean(mine["num_bytes"] for mine in results), 1),
        cpu_s=round(statistics.fmean(lines[seed]["cost"]["cpu_s"] for seed in seeds), 1),
    )


def table(setting: Setting, rate: float, rows: Sequence[Row], *, seeds: Sequence[int]) -> str:
    """One setting for people."""
    lines = [
        f"{setting.title}; seeds {', '.join(map(str, seeds))}; rate {rate:g}",
        f"{setting.base}, {setting.corpus}",
        "",
        f"{'arm':52} {'rounds':>10} {'tokens':>9} {'ratio':>7} {'loss':>14} {'over uniform':>15} "
        f"{'over alike':>15} {'':>6} {'kB':>6} {'CPU s':>6}",
    ]
    for row in rows:
        rounds = ", ".join(map(str, row.rounds)) if len(set(row.rounds)) > 1 else str(row.rounds[0])
        lines.append(
            f"{row.arm.name:52} {rounds:>10} {statistics.fmean(row.num_tokens):>9.0f} {row.tokens_ratio:>7.4f} "
            f"{_pm(row.loss):>14} {_pm(row.ratio):>15} {_pm(row.ratio_alike):>15} "
            f"{'ok' if row.ratio_alike.value <= LIMIT else 'ABOVE':>6} "
            f"{row.num_bytes / 1000:>6.1f} {row.cpu_s:>6.0f}"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"over uniform: ratio of losses to {UNIFORM.name}, seed by seed; intervals are 95 %",
            f"over alike: to the uniform swarm whose rank is the arm's mean rank over tokens, limit {LIMIT}",
            "tokens: accepted by the swarm, ratio to the uniform one's; kB: of one contribution, the mean",
        ]
    )


def _pm(mean: Mean) -> str:
    half_width = "" if mean.half_width is None else f"±{mean.half_width:.4f}"
    return f"{mean.value:.4f}{half_width}"


if __name__ == "__main__":
    sys.exit(main())
