#!/usr/bin/env python3
"""Compares ways of learning together at equal data: ours, full fine-tuning, adapters and what others have published.

    scripts/bench/quality.py                                          # the embedded base and texts, others and ours
    scripts/bench/quality.py --arms ablations --split iid             # ours with one choice made otherwise
    scripts/bench/quality.py --arms sweep --nodes 2 8 16 --split iid  # fewer arms, other numbers of nodes
    scripts/bench/quality.py --arms sweep --rounds 30
    scripts/bench/quality.py --base DIR --data TRAIN.jsonl --test TEST.jsonl --results OTHER.jsonl
    scripts/bench/quality.py --plan                                   # what is missing, and how long it takes
    scripts/bench/quality.py --report                                 # the tables of what is there
    scripts/bench/quality.py --list                                   # every arm, by name

Every trial (an arm at a rate with a seed) is one line of the results file, added as soon as it is done; what is there
is not run again, so the script may be stopped at any time. Rates are tuned for each arm on validation blocks with one
seed and blocks dealt at random, then tested with other seeds on test blocks. At the end come a table for each setting,
and a summary in JSON beside the results.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Trials run side by side; threads would only fight (measured: tenfold).

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts/bench"), str(ROOT / "node"), str(ROOT / "protocol")]

from learning.arm import Arm  # noqa: E402 - after the path is set.
from learning.catalogue import CATALOGUE, MARK, OURS, arms_named  # noqa: E402
from learning.corpus import Corpus  # noqa: E402
from learning.options import add_bench_arguments, source_of, tell  # noqa: E402
from learning.plan import Estimate, Lineup, estimates  # noqa: E402
from learning.report import compare, summary, table  # noqa: E402
from learning.setting import DOMAINS, SPLITS, Setting  # noqa: E402
from learning.store import Results  # noqa: E402
from learning.timing import step_times  # noqa: E402
from learning.trial import CURVE_BLOCKS, machine  # noqa: E402
from learning.work import run_here, run_in_processes  # noqa: E402

from fullrank_node.errors import NodeError  # noqa: E402


def main(command: Sequence[str] | None = None) -> int:
    """Runs what is missing, or says what that would take, then prints the tables; returns the exit code."""
    parser = arguments()
    options = parser.parse_args(command)
    if options.list:
        print("\n".join(arm.name for arm in CATALOGUE))
        return 0
    results = Results(options.results)
    if options.report:
        return report(options, results)
    try:
        arms = arms_named(options.arms)
    except ValueError as error:
        parser.error(str(error))
    try:
        with tempfile.TemporaryDirectory(prefix="quality-") as directory:
            return run(options, arms, results, texts=Path(directory))
    except NodeError as error:
        print(f"quality: {error}" + (f"\n{error.hint}" if error.hint else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quality: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--arms", nargs="+", default=["standard"], help="names, patterns, or the sets standard, ablations and sweep")
    add("--nodes", nargs="+", type=int, default=[4])
    add("--rounds", nargs="+", type=int, default=[6])
    add("--split", nargs="+", choices=SPLITS, default=list(SPLITS))
    add("--seeds", type=int, default=3, help="test seeds, 1 to this")
    add("--rates", nargs="+", type=float, default=[], help="try these only, instead of looking around each arm's own")
    add_bench_arguments(parser)
    add("--constant", action="store_true", help="a constant rate, instead of a cosine over all rounds")
    add("--processes", type=int, default=1, help="trials at a time, one thread each")
    add("--results", type=Path, default=ROOT / "scripts/bench/results/quality.jsonl", help="one JSON line a trial")
    add("--ours", default=OURS.name, help="the arm that others are compared with")
    add("--plan", action="store_true", help="say what is missing and how long it takes, and run nothing")
    add("--list", action="store_true", help="name every arm, and run nothing")
    add("--report", action="store_true", help="run nothing: print what the results say, and write the summary")
    return parser


def run(options: argparse.Namespace, arms: tuple[Arm, ...], results: Results, *, texts: Path) -> int:
    """Open base and texts, then plan or run."""
    source = source_of(options, texts=texts)
    bench = source.open()
    settings = [
        Setting(
            base=bench.name,
            corpus=bench.corpus.name,
            nodes=nodes,
            rounds=rounds,
            steps=options.steps,
            batch=options.batch,
            warmup=options.warmup,
            split=split,
            constant=options.constant,
        )
        for split in splits_of(options.split, bench.corpus)
        for rounds in options.rounds
        for nodes in options.nodes
    ]
    seeds = tuple(range(1, options.seeds + 1))
    lineups = [Lineup(setting=setting, arms=arms, seeds=seeds, rates=tuple(options.rates)) for setting in settings]
    if options.plan:
        times = step_times(bench, settings[0])
        missing = estimates(
            lineups,
            results,
            times,
            valid_blocks=len(bench.corpus.valid),
            test_blocks=len(bench.corpus.test),
            curve_blocks=min(CURVE_BLOCKS, len(bench.corpus.test)),
        )
        print(plan_text(missing))
        print(
            f"measured here: {1000 * times.whole:.0f} ms a step of all weights, {1000 * times.adapter:.0f} ms of an "
            f"adapter, {1000 * times.block:.1f} ms to evaluate a block; {machine()['machine']}"
        )
        return 0
    if options.processes > 1:
        run_in_processes(source, lineups, results, tell, processes=options.processes)
    else:
        run_here(bench, lineups, results, tell)
    return report(options, results)


def report(options: argparse.Namespace, results: Results) -> int:
    """Print every table that the results hold, and write the summary."""
    comparisons = compare(results, ours=options.ours)
    found = summary(comparisons, results)
    for comparison in comparisons:
        print(table(comparison), end="\n\n")
    print("\n".join(found["machines"]))
    print(f"{found['trials']} trials, {found['cpu_h']} h of one core; mark: {MARK.name}")
    if comparisons:
        options.results.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def splits_of(wanted: Sequence[str], corpus: Corpus) -> list[str]:
    """The splits that differ: one domain can only be dealt out.

    Raises:
        NodeError: None of those wanted is possible.
    """
    if int(corpus.domains.max()) > 0:
        return list(wanted)
    possible = [split for split in wanted if split != DOMAINS]
    if not possible:
        raise NodeError("found one domain, required at least two", hint="Give --data a file for each domain.")
    return possible


def plan_text(missing: Sequence[Estimate]) -> str:
    """What is missing, by setting and arm, and in all."""
    lines: list[str] = []
    settings = list(dict.fromkeys(one.setting for one in missing))
    for setting in settings:
        lines += [setting.title, f"{'arm':32} {'trials':>6} {'CPU min':>8}"]
        for one in missing:
            if one.setting == setting:
                lines.append(f"{one.arm.name:32} {one.trials:>6} {one.cpu_s / 60:>8.1f}")
        lines.append("")
    hours = sum(one.cpu_s for one in missing) / 3600
    return "\n".join([*lines, f"{sum(one.trials for one in missing)} trials, about {hours:.1f} h of one core"])


if __name__ == "__main__":
    sys.exit(main())
