"""Runs seeds: `PYTHONPATH=tests python -m simulation --size 4 --seeds 0:100 [--hostile] [--story]`.

In the root folder of a checkout, with the environment active that `scripts/test` has made.
"""

import argparse
import collections
import statistics
import time
from collections.abc import Sequence

from simulation.faults import Plan, draw_plan
from simulation.hostile import HostileNode
from simulation.scenario import replay_command, run, tell
from simulation.splits import Kept


def read_arguments(arguments: Sequence[str] | None = None) -> tuple[list[Plan], bool]:
    """The plans that a command line asks for, and whether it asks for the story of a failure."""
    parser = argparse.ArgumentParser(prog="simulation", description="Simulated swarms under random faults.")
    parser.add_argument("--size", type=int, default=4, help="founders, all certifiers")
    parser.add_argument("--seeds", default="0:20", help="one seed, or a range from:to")
    parser.add_argument("--hostile", action="store_true", help="just under a third of the certifiers are hostile")
    parser.add_argument("--story", action="store_true", help="tell the story of the first failure, with few faults")
    given = parser.parse_args(arguments)
    first, _, last = given.seeds.partition(":")
    seeds = range(int(first), int(last) if last else int(first) + 1)
    return [draw_plan(seed, given.size, hostile=given.hostile) for seed in seeds], given.story


def main() -> int:
    plans, tells_story = read_arguments()
    began = time.monotonic()
    failures: collections.Counter[str] = collections.Counter()
    agreements: collections.Counter[int] = collections.Counter()
    recoveries: collections.Counter[int] = collections.Counter()
    splits: list[Kept] = []
    kept = made = 0
    for plan in plans:
        outcome = run(plan, hostile=HostileNode)
        agreements[outcome.agreement_slots] += 1
        recoveries[outcome.recovery_slots] += 1
        splits += outcome.splits
        kept, made = kept + outcome.kept, made + outcome.made
        if outcome.failure:
            failures[outcome.failure.partition(": ")[2][:60]] += 1
            print(f"seed {plan.seed}: {outcome.failure}; again: {replay_command(plan)}")
            if tells_story:
                print(outcome.trace[-3000:])
                print(tell(plan, hostile=HostileNode))
                break
    share = f"{100 * kept / made:.0f} %" if made else "-"
    print(f"{len(plans)} seeds of {plans[0].size} in {time.monotonic() - began:.1f} s; {sum(failures.values())} failed")
    print(f"slots to one head: {sorted(agreements.items())}, to finality: {sorted(recoveries.items())}")
    print(f"kept {share} of {made} contributions")
    if splits:
        shares = [each.share for each in splits]
        print(
            f"of the lighter sides of {len(splits)} healed partitions: kept {100 * statistics.median(shares):.0f} % "
            f"in the median, {100 * min(shares):.0f} % at worst"
        )
    for text, count in failures.most_common(10):
        print(f"  {count:5d}  {text}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
