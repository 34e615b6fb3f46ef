#!/usr/bin/env python3
"""Runs thousands of simulated swarms on all cores, prints a table and writes JSON; goes on where it was stopped.

    scripts/bench/simulate.py                              20,000 seeds: about an hour of two cores
    scripts/bench/simulate.py --plan 4:100,7:20 --lines some.jsonl

One line a seed is added to the file of lines as soon as the seed is done, and a seed that has its line is not run
again, so the script may be stopped at any time. Lines of other code are refused: they say nothing about this one.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "node"), str(ROOT / "protocol")]

from measured_on import facts  # noqa: E402 - after the path is set.
from simulation.faults import Plan, draw_plan, has_hostile  # noqa: E402
from simulation.hostile import HostileNode  # noqa: E402
from simulation.scenario import MAX_AGREEMENT_SLOTS, MAX_RECOVERY_SLOTS, replay_command, run, tell  # noqa: E402

PLAN = {1: 1_500, 2: 3_000, 3: 4_000, 4: 7_000, 7: 4_016, 20: 400, 50: 80, 200: 4}
"""Seeds of each size. Four certifiers are the smallest swarm that bears a hostile one."""

CPU_S = {1: 0.03, 2: 0.05, 3: 0.07, 4: 0.11, 7: 0.22, 20: 0.6, 50: 2.5, 200: 60.0}
"""What a seed took on the machine of the last report, until this run knows better."""


@dataclass(frozen=True, slots=True)
class Job:
    """One seed of one size."""

    size: int
    seed: int

    @property
    def plan(self) -> Plan:
        """Its faults."""
        return draw_plan(self.seed, self.size, hostile=has_hostile(self.seed))


def main() -> int:
    """Runs what is missing, then reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    plan = ",".join(f"{size}:{seeds}" for size, seeds in PLAN.items())
    parser.add_argument("--plan", type=_plan, default=PLAN, help=f"seeds of each size; {plan}")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="seeds at a time; one a core")
    parser.add_argument("--lines", type=Path, default=Path("simulate.jsonl"), help="one JSON line a seed; resumed")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/bench/results/simulate.json", help="the report")
    parser.add_argument("--estimate", action="store_true", help="only say how long it takes")
    parser.add_argument("--report", action="store_true", help="only report on the lines that are there")
    arguments = parser.parse_args()
    jobs = [Job(size, seed) for size, seeds in sorted(arguments.plan.items(), reverse=True) for seed in range(seeds)]
    lines = read(arguments.lines)
    done = {Job(line["size"], line["seed"]) for line in lines}
    missing = [job for job in jobs if job not in done]
    say(f"{len(jobs)} seeds, {len(jobs) - len(missing)} done; {estimate(missing, lines, arguments.processes)}")
    if arguments.estimate:
        return 0
    if missing and not arguments.report:
        lines += play(missing, lines=lines, to=arguments.lines, processes=arguments.processes)
    wanted = frozenset(jobs)
    lines = [line for line in lines if Job(line["size"], line["seed"]) in wanted]
    report = summary(lines, num_planned=len(jobs))
    print(table(report))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    failed = sorted((line for line in lines if line["failure"]), key=lambda line: (line["size"], line["seed"]))
    if failed:
        print(tell(Job(failed[0]["size"], failed[0]["seed"]).plan, hostile=HostileNode))
    return 1 if failed else 0 if len(lines) == len(jobs) else 75


# ---- running -------------------------------------------------------------------------------------


def play(jobs: Sequence[Job], *, lines: Sequence[dict[str, Any]], to: Path, processes: int) -> list[dict[str, Any]]:
    """Runs seeds, the largest swarms first; what is done when somebody interrupts is kept."""
    found: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    told_s = time.monotonic()
    with (
        to.open("a", encoding="utf-8") as file,
        concurrent.futures.ProcessPoolExecutor(
            processes, mp_context=context, initializer=_let_be, initargs=(os.getpid(),)
        ) as pool,
    ):
        futures = [pool.submit(play_one, job) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                line = future.result()
                found.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
                if line["failure"]:
                    say(f"{line['failure']}; again: {replay_command(Job(line['size'], line['seed']).plan)}")
                if time.monotonic() > told_s + 60:
                    told_s = time.monotonic()
                    done = {Job(each["size"], each["seed"]) for each in found}
                    left = [job for job in jobs if job not in done]
                    say(f"{len(found)} of {len(jobs)}; {estimate(left, [*lines, *found], processes)}")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            say(f"stopped after {len(found)} seeds; the same command goes on from here")
    return found


def play_one(job: Job) -> dict[str, Any]:
    """One seed as one line."""
    began_s = time.process_time()
    outcome = run(job.plan, hostile=HostileNode)
    return {
        "code": CODE,
        "size": job.size,
        "seed": job.seed,
        "hostile": len(outcome.plan.hostile),
        "failure": outcome.failure,
        "rounds": outcome.rounds,
        "finals": outcome.finals,
        "events": outcome.events,
        "agreement_slots": outcome.agreement_slots,
        "recovery_slots": outcome.recovery_slots,
        "offenders": outcome.offenders,
        "kept": outcome.kept,
        "made": outcome.made,
        "splits": [asdict(split) for split in outcome.splits],
        "final": outcome.fingerprint,
        "cpu_s": round(time.process_time() - began_s, 3),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run; a torn last one is dropped from the file.

    Raises:
        SystemExit: They are of other code.
    """
    if not path.exists():
        return []
    texts = [text for text in path.read_text(encoding="utf-8").splitlines(keepends=True) if text.endswith("}\n")]
    path.write_text("".join(texts), encoding="utf-8")
    lines: list[dict[str, Any]] = [json.loads(text) for text in texts]
    if any(line["code"] != CODE for line in lines):
        sys.exit(f"simulate: {path} holds seeds that other code has run; give another --lines, or remove it")
    return lines


def estimate(jobs: Iterable[Job], lines: Sequence[dict[str, Any]], processes: int) -> str:
    """How long these seeds will take, from what others of their size took."""
    took = collections.defaultdict(list)
    for line in lines:
        took[line["size"]].append(line["cpu_s"])
    seconds_of = CPU_S | {size: statistics.fmean(seconds) for size, seconds in took.items()}
    nearest = {job.size: min(seconds_of, key=lambda size: abs(size - job.size)) for job in jobs}
    seconds = sum(seconds_of[nearest[job.size]] for job in jobs)
    return (
        f"about {seconds / 60:.0f} CPU minutes, {seconds / processes / 60:.0f} minutes with {processes} processes left"
    )


def _let_be(parent: int) -> None:
    """In a child: the parent decides about an interrupt, and nobody goes on without it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _plan(text: str) -> dict[int, int]:
    return {int(size): int(seeds) for size, _, seeds in (part.partition(":") for part in text.split(","))}


def _code() -> str:
    """A hash of the machine and the simulator, so that results of two versions are never mixed."""
    folders = (ROOT / "protocol" / "fullrank_protocol", ROOT / "tests" / "simulation")
    files = [path for folder in folders for path in sorted(folder.rglob("*.py")) if not path.name.startswith("test_")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


CODE = _code()


# ---- reporting -----------------------------------------------------------------------------------


def summary(lines: Sequence[dict[str, Any]], *, num_planned: int) -> dict[str, Any]:
    """Figures by size and hostility, and of all."""
    groups = collections.defaultdict(list)
    for line in lines:
        groups[line["size"], line["hostile"] > 0].append(line)
    return {
        "machine": facts(),
        "code": CODE,
        "planned": num_planned,
        "bounds": {"agreement_slots": MAX_AGREEMENT_SLOTS, "recovery_slots": MAX_RECOVERY_SLOTS},
        "groups": [
            {"size": size, "hostile": hostile} | figures(groups[size, hostile]) for size, hostile in sorted(groups)
        ],
        "all": figures(lines) if lines else {},
    }


def figures(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What some seeds showed together."""
    sound = [line for line in lines if not line["failure"]]
    splits = [split for line in sound for split in line["splits"]]
    shares = [split["kept"] / split["made"] for split in splits]
    made = sum(line["made"] for line in sound)
    return {
        "seeds": len(lines),
        "failed": len(lines) - len(sound),
        "events": sum(line["events"] for line in lines),
        "rounds": sum(line["rounds"] for line in lines),
        "fewest_rounds": min(line["rounds"] for line in lines),
        "finals": sum(line["finals"] for line in lines),
        "agreement_slots": spread(line["agreement_slots"] for line in sound),
        "recovery_slots": spread(line["recovery_slots"] for line in sound),
        "offenders": sum(line["offenders"] for line in lines),
        "training_kept": round(sum(line["kept"] for line in sound) / made, 4) if made else None,
        "partitions": len(splits),
        "kept_of_lighter_side": {
            "median": round(statistics.median(shares), 4),
            "worst": round(min(shares), 4),
            "all": round(sum(split["kept"] for split in splits) / sum(split["made"] for split in splits), 4),
            "by_slots": {
                str(slots): round(statistics.median(s["kept"] / s["made"] for s in splits if s["slots"] == slots), 4)
                for slots in sorted({split["slots"] for split in splits})
            },
        }
        if splits
        else None,
        "cpu_s_per_seed": round(statistics.fmean(line["cpu_s"] for line in lines), 3),
    }


def spread(values: Iterable[int]) -> dict[str, int]:
    """Median, 99th percentile and worst."""
    found = sorted(values) or [-1]
    return {
        "median": statistics.median_low(found),
        "p99": found[min(int(0.99 * len(found)), len(found) - 1)],
        "max": found[-1],
    }


COLUMNS = (
    ("nodes", 5),
    ("hostile", 7),
    ("seeds", 6),
    ("failed", 6),
    ("events", 11),
    ("rounds", 8),
    ("finals", 8),
    ("agreement", 12),
    ("finality", 12),
    ("offenders", 9),
    ("kept", 7),
    ("partitions", 10),
    ("lighter side", 17),
    ("CPU s", 7),
)
"""Of the table, with widths."""


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    heads = "  ".join(f"{name:>{width}}" for name, width in COLUMNS)
    below = {
        "agreement": "50/99/max %",
        "finality": "50/99/max %",
        "kept": "of all",
        "lighter side": "kept: 50 %, worst",
    }
    rows = [heads, "  ".join(f"{below.get(name, ''):>{width}}" for name, width in COLUMNS)]
    groups = [*report["groups"], {"size": "all", "hostile": None} | report["all"]] if report["groups"] else []
    for group in groups:
        lighter = group["kept_of_lighter_side"]
        cells = (
            group["size"],
            {True: "yes", False: "no", None: ""}[group["hostile"]],
            group["seeds"],
            group["failed"],
            f"{group['events']:,}",
            group["rounds"],
            group["finals"],
            "/".join(str(slots) for slots in group["agreement_slots"].values()),
            "/".join(str(slots) for slots in group["recovery_slots"].values()),
            group["offenders"],
            "-" if group["training_kept"] is None else f"{100 * group['training_kept']:.1f} %",
            group["partitions"],
            "-" if lighter is None else f"{100 * lighter['median']:.0f} %, {100 * lighter['worst']:.0f} %",
            f"{group['cpu_s_per_seed']:.3f}",
        )
        rows.append("  ".join(f"{cell!s:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)))
    total = report["all"].get("seeds", 0)
    rows.append("")
    rows.append(
        f"{total} of {report['planned']} seeds; slots after healing until all honest nodes agree on the head (at"
    )
    rows.append(f"most {MAX_AGREEMENT_SLOTS}) and have made something final again (at most {MAX_RECOVERY_SLOTS}).")
    return "\n".join(rows)


def say(text: str) -> None:
    """What is being done now, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
