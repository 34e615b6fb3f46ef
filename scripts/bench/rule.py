#!/usr/bin/env python3
"""Measures what the aggregation rule's defaults do to real deltas, with and without attackers among them.

    scripts/bench/rule.py                    # the embedded base and texts: three quarters of an hour on one loaded core
    scripts/bench/rule.py --report           # the tables of what is there, in half a minute

First swarms of eight train as the default says, each one line of the results file, added as soon as it is done; what
is there is not run again. A line holds the inner products of all deltas of every round, which is all that the rule
sees. From them come the tables, printed as decision 0017 has them, and the same in JSON beside the results, with the
lowest and the highest round of each figure.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts/bench"), str(ROOT / "node"), str(ROOT / "protocol")]

from learning.bench import Bench, open_bench  # noqa: E402 - after the path is set.
from learning.catalogue import OURS  # noqa: E402
from learning.corpus import embedded_sources  # noqa: E402
from learning.rule_figures import FULL, LONG, TITLES, Runs  # noqa: E402
from learning.rule_rounds import VERSION, round_from_json, run_swarm  # noqa: E402
from learning.rule_tables import all_tables  # noqa: E402
from learning.setting import DOMAINS, IID, Setting  # noqa: E402
from learning.trial import Line  # noqa: E402

from fullrank_node.errors import NodeError  # noqa: E402
from fullrank_node.model.base import EMBEDDED_PREFIX, resolve_base  # noqa: E402

BASE = EMBEDDED_PREFIX + "demo"

RATE = OURS.anchor_rate
"""What `mixed.py` found best for eight nodes on this base, and what a founder gets for its width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Swarms of one kind.

    Attributes:
        alone: Whether nobody trains or sends beside its members.
    """

    split: str = IID
    rounds: int
    steps: int = 20
    seeds: tuple[int, ...]
    alone: bool = False

    def setting(self, bench_name: str, corpus_name: str) -> Setting:
        """Eight nodes at a constant rate, as in a swarm without an end."""
        return Setting(
            base=bench_name,
            corpus=corpus_name,
            nodes=8,
            rounds=self.rounds,
            steps=self.steps,
            batch=4,
            warmup=3,
            split=self.split,
            constant=True,
        )


PLANS: Mapping[str, Plan] = {
    IID: Plan(rounds=10, seeds=(1, 2, 3)),
    DOMAINS: Plan(split=DOMAINS, rounds=6, seeds=(1, 2, 3)),
    FULL: Plan(rounds=1, steps=200, seeds=(1,)),
    LONG: Plan(rounds=17, seeds=(1,), alone=True),
}
"""One round more than the trailing ones where deltas are dealt at random; beyond a change of A in the long run."""


def main(command: Sequence[str] | None = None) -> int:
    """Runs what is missing, then prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--results", type=Path, default=ROOT / "scripts/bench/results/rule.jsonl")
    parser.add_argument("--report", action="store_true", help="print what the results say, and run nothing")
    options = parser.parse_args(command)
    if not options.report:
        try:
            with tempfile.TemporaryDirectory(prefix="rule-") as directory:
                sources = embedded_sources(Path(directory), block_length=128, valid_blocks=128, test_blocks=256)
                run_missing(open_bench(resolve_base(BASE), sources, base_name=BASE), options.results)
        except NodeError as error:
            print(f"rule: {error}" + (f"\n{error.hint}" if error.hint else ""), file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("rule: stopped; the same command goes on from here", file=sys.stderr)
            return 130
    return report(options.results)


def run_missing(bench: Bench, path: Path) -> None:
    """Train every swarm that has no line."""
    done = {_key(line) for line in lines_of(path)}
    for plan in PLANS.values():
        setting = plan.setting(bench.name, bench.corpus.name)
        for seed in plan.seeds:
            if _key({"setting": setting.to_json(), "seed": seed}) in done:
                continue
            line = run_swarm(bench, setting, rate=RATE, seed=seed, alone=plan.alone)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"rule: {setting.title}, seed {seed}: {line['cost']['wall_s']:.0f} s", file=sys.stderr, flush=True)


def lines_of(path: Path) -> list[Line]:
    """What is there. A last line that was cut off by a kill is taken out, and its swarm trained again.

    Raises:
        ValueError: Another line is no JSON.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole, _, torn = text.rpartition("\n")
    if torn:
        path.write_text(text[: len(text) - len(torn)], encoding="utf-8")
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if line["version"] == VERSION]


def report(path: Path) -> int:
    """Print the tables, and write them as JSON; the exit code is 1 where swarms are missing."""
    lines = lines_of(path)
    found = {_key(line): [round_from_json(one) for one in line["rounds"]] for line in lines}
    names = {(line["setting"]["base"], line["setting"]["corpus"]) for line in lines}
    if len(names) > 1:
        print("rule: the results are of several bases or texts", file=sys.stderr)
        return 1
    runs: dict[str, Runs] = {}
    missing = [] if names else [*PLANS]
    for base, corpus in names:
        for name, plan in PLANS.items():
            keys = [_key({"setting": plan.setting(base, corpus).to_json(), "seed": seed}) for seed in plan.seeds]
            runs[name] = [found[key] for key in keys if key in found]
            missing += [name] * (len(runs[name]) < len(keys))
    if missing:
        print(f"rule: the results lack swarms ({', '.join(missing)}); run this without --report", file=sys.stderr)
        return 1
    tables = all_tables(runs)
    for table in tables:
        print(table.text(), end="\n\n")
    setting = lines[0]["setting"]
    machines = sorted({f"{line['cost']['machine']}; {line['cost']['versions']}" for line in lines})
    about = {
        "machines": machines,
        "base": setting["base"],
        "corpus": setting["corpus"],
        "swarm": f"{OURS.name}, {setting['nodes']} nodes, {setting['batch']} blocks a step, constant rate {RATE:g}",
        "plans": {name: asdict(plan) for name, plan in PLANS.items()},
        "loss": {name: [[one.loss for one in rounds] for rounds in found] for name, found in runs.items()},
    }
    print(f"{about['swarm']}; {about['base']}, {about['corpus']}")
    for name, plan in PLANS.items():
        print(f"{TITLES[name]}: {plan.rounds} rounds of {plan.steps} steps, seeds {', '.join(map(str, plan.seeds))}")
    print("\n".join(machines))
    summary = {**about, "tables": [table.to_json() for table in tables]}
    path.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 0


def _key(line: Line) -> str:
    return json.dumps([line["setting"], line["seed"]], sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
