#!/usr/bin/env python3
"""Runs thousands of simulated swarms and prints a table; goes on where it was stopped.

    scripts/bench/simulate.py --seeds 20000 --results simulate.jsonl

One line a seed is added to the results file as soon as the seed is done. Seeds that are there already are not run
again, so the script may be stopped at any time. Sizes take turns by seed; every second seed is hostile.
"""

import argparse
import collections
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "node"), str(ROOT / "protocol")]

from simulation.faults import draw_plan  # noqa: E402 - after the path is set.
from simulation.hostile import HostileNode  # noqa: E402
from simulation.scenario import run, tell  # noqa: E402

SIZES = (1, 2, 3, 4, 4, 4, 7, 7, 4, 3)
"""Size of a seed, by its last digit: four certifiers are the smallest swarm that bears a hostile one."""


def play(seed: int) -> dict[str, Any]:
    """One seed as one line of the results."""
    size, hostile = SIZES[seed % 10], seed // 10 % 2 == 1
    if seed % 1000 == 999:
        size = 20
    began = time.process_time()
    outcome = run(draw_plan(seed, size, hostile=hostile), hostile=HostileNode)
    return {
        "seed": seed,
        "size": size,
        "hostile": len(outcome.plan.hostile),
        "failure": outcome.failure,
        "rounds": outcome.rounds,
        "recovery_slots": outcome.recovery_slots,
        "kept": outcome.kept,
        "made": outcome.made,
        "final": outcome.fingerprint,
        "cpu_s": round(time.process_time() - began, 3),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """What the results say, by size and hostility."""
    groups = collections.defaultdict(list)
    for line in lines:
        groups[line["size"], line["hostile"] > 0].append(line)
    rows = [
        f"{'nodes':>5} {'hostile':>7} {'seeds':>6} {'failed':>6} {'rounds':>7} {'slots to recover':>22} {'kept':>6}"
    ]
    rows.append(f"{'':>5} {'':>7} {'':>6} {'':>6} {'median':>7} {'median  99 %  worst':>22} {'':>6}")
    for (size, hostile), group in sorted(groups.items()):
        slots = sorted(line["recovery_slots"] for line in group if not line["failure"]) or [-1]
        made = sum(line["made"] for line in group)
        share = f"{100 * sum(line['kept'] for line in group) / made:.1f} %" if made else "-"
        recovery = f"{statistics.median_low(slots)} {slots[int(0.99 * (len(slots) - 1))]:>6} {slots[-1]:>6}"
        rows.append(
            f"{size:>5} {'yes' if hostile else 'no':>7} {len(group):>6} "
            f"{sum(bool(line['failure']) for line in group):>6} "
            f"{statistics.median_low([line['rounds'] for line in group]):>7} {recovery:>22} {share:>6}"
        )
    total = sum(line["cpu_s"] for line in lines)
    rows.append(f"{len(lines)} seeds, {total:.0f} s of one core; Python {platform.python_version()}")
    return "\n".join(rows)


def main() -> int:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description="Simulated swarms under random faults, many seeds.")
    parser.add_argument("--seeds", type=int, default=20_000, help="seeds 0 to this, exclusive")
    parser.add_argument("--results", type=Path, default=Path("simulate.jsonl"), help="one JSON line a seed")
    arguments = parser.parse_args()
    lines = []
    if arguments.results.exists():
        text = arguments.results.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    done = {line["seed"] for line in lines}
    with arguments.results.open("a", encoding="utf-8") as results:
        results.write("\n" if lines else "")
        for seed in range(arguments.seeds):
            if seed in done:
                continue
            line = play(seed)
            lines.append(line)
            results.write(json.dumps(line) + "\n")
            results.flush()
            if line["failure"]:
                print(f"seed {seed} of {line['size']}: {line['failure']}", file=sys.stderr)
    print(table([line for line in lines if line["seed"] < arguments.seeds]))
    failed = [line for line in lines if line["failure"]]
    if failed:
        first = failed[0]
        print(tell(draw_plan(first["seed"], first["size"], hostile=first["hostile"] > 0), hostile=HostileNode))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
