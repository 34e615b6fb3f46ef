"""Runs seeds: `PYTHONPATH=tests python -m simulation --size 4 --seeds 0:100 [--hostile] [--story]`."""

import argparse
import collections
import statistics
import time

from simulation.faults import draw_plan
from simulation.scenario import replay_command, run, tell
from simulation.splits import Kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description="Simulated swarms under random faults.")
    parser.add_argument("--size", type=int, default=4, help="founders, all certifiers")
    parser.add_argument("--seeds", default="0:20", help="one seed, or a range from:to")
    parser.add_argument("--hostile", action="store_true", help="just under a third of the certifiers are hostile")
    parser.add_argument("--story", action="store_true", help="tell the story of the first failure, with few faults")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition(":")
    seeds = range(int(first), int(last) if last else int(first) + 1)
    kind = None
    if arguments.hostile:
        from simulation.hostile import HostileNode

        kind = HostileNode
    began = time.monotonic()
    failures: collections.Counter[str] = collections.Counter()
    agreements: collections.Counter[int] = collections.Counter()
    recoveries: collections.Counter[int] = collections.Counter()
    splits: list[Kept] = []
    kept = made = 0
    for seed in seeds:
        plan = draw_plan(seed, arguments.size, hostile=arguments.hostile)
        outcome = run(plan, hostile=kind)
        agreements[outcome.agreement_slots] += 1
        recoveries[outcome.recovery_slots] += 1
        splits += outcome.splits
        kept, made = kept + outcome.kept, made + outcome.made
        if outcome.failure:
            failures[outcome.failure.partition(": ")[2][:60]] += 1
            print(f"seed {seed}: {outcome.failure}; again: {replay_command(plan)}")
            if arguments.story:
                print(tell(plan, hostile=kind))
                print(outcome.trace[-3000:])
                break
    share = f"{100 * kept / made:.0f} %" if made else "-"
    print(
        f"{len(seeds)} seeds of {arguments.size} in {time.monotonic() - began:.1f} s; {sum(failures.values())} failed"
    )
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
