"""Runs seeds: `PYTHONPATH=tests python -m simulation --size 4 --seeds 0:100 [--hostile] [--story]`."""

import argparse
import collections
import time

from simulation.faults import draw_plan
from simulation.scenario import run, tell


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
    recoveries: collections.Counter[int] = collections.Counter()
    kept = made = 0
    for seed in seeds:
        plan = draw_plan(seed, arguments.size, hostile=arguments.hostile)
        outcome = run(plan, hostile=kind)
        recoveries[outcome.recovery_slots] += 1
        kept, made = kept + outcome.kept, made + outcome.made
        if outcome.failure:
            failures[outcome.failure.partition(": ")[2][:60]] += 1
            print(f"seed {seed}: {outcome.failure}")
            if arguments.story:
                print(tell(plan, hostile=kind))
                print(outcome.trace[-3000:])
                break
    share = f"{100 * kept / made:.0f} %" if made else "-"
    print(
        f"{len(seeds)} seeds of {arguments.size} in {time.monotonic() - began:.1f} s; {sum(failures.values())} failed"
    )
    print(f"slots to recover: {sorted(recoveries.items())}; kept {share} of {made} contributions")
    for text, count in failures.most_common(10):
        print(f"  {count:5d}  {text}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
