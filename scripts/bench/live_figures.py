"""Measures what a volunteer feels: how fast a node takes part, what it takes of the machine, how fast commands answer.

    python scripts/bench/live_figures.py --seconds 90

A founder and two members on this machine train together; the second member joins while the others are at work and
is timed from typing `join` to its first delta in a certified round. Prints a table and writes JSON.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from live_swarm import FULLRANK, LiveNode, LiveSwarm, wait_for_certifiers, wait_until  # noqa: E402
from measured_on import facts  # noqa: E402

MAX_STEPS = 200
"""The protocol's default: training fills the slot."""

NUM_RUNS = 9
"""How often a command is timed; the median counts."""

POLL_S = 0.1

T = TypeVar("T")

PACKAGES = ("fullrank", "hivemind", "torch", "transformers", "peft", "grpcio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number with its unit and what was aimed at."""

    name: str
    value: float
    unit: str
    aim: str = ""


def main() -> int:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=90.0, help="how long all three are watched at work")
    parser.add_argument("--window", type=float, default=10.0, help="seconds of a slot")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/bench/results/live_figures.json")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="figures-") as directory, LiveSwarm(Path(directory)) as live:
        figures = measure(live, window_s=options.window, seconds=options.seconds)
    report = {
        "machine": {
            **facts(*PACKAGES),
            "load_before": round(load_before, 1),
            "load_after": round(os.getloadavg()[0], 1),
        },
        "run": {"nodes": 3, "window_s": options.window, "seconds": options.seconds, "threads_of_each_node": 1},
        "figures": {figure.name: {"value": round(figure.value, 3), "unit": figure.unit} for figure in figures},
    }
    print(table(report, figures))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def measure(live: LiveSwarm, *, window_s: float, seconds: float) -> list[Figure]:
    """Build a swarm, let it work, and look."""
    sizes = ("--window", str(window_s), "--max-steps", str(MAX_STEPS), "--block-length", "256", "--rank", "16")
    say("a founder, then a first member")
    created_s, ada = timed(lambda: live.found("ada", options=sizes, steps=MAX_STEPS))
    link = live.invite(ada)
    bob = live.join(link, "bob", steps=MAX_STEPS)
    wait_until("Bob takes part", lambda: bob.accepted_since(0), [ada, bob], poll_s=POLL_S)
    say("a second member, timed")
    began_s = time.monotonic()
    cyd = live.join(link, "cyd", steps=MAX_STEPS)
    answers_s = time.monotonic() - began_s
    wait_until("Cyd's first delta is accepted", lambda: cyd.accepted_since(0), [ada, bob, cyd], poll_s=POLL_S)
    accepted_s = time.monotonic() - began_s
    number = cyd.accepted_since(0)[0]["round"]
    wait_until("that round is final", lambda: number in cyd.final_rounds(), [ada, bob, cyd], poll_s=POLL_S)
    final_s = time.monotonic() - began_s
    nodes = [ada, bob, cyd]
    wait_for_certifiers(nodes, len(nodes))
    say(f"all three at work for {seconds:.0f} s")
    before = [Look.at(node) for node in nodes]
    time.sleep(seconds)
    after = [Look.at(node) for node in nodes]
    spans = [late.since(early) for early, late in zip(before, after, strict=True)]
    sizes_mb = [memory_mb(node) for node in nodes]
    contributions = [line for node in nodes for line in node.history()["contributions"] if line["num_bytes"]]
    agree = len({node.final_rounds()[min(max(n.final_rounds()) for n in nodes)]["checkpoint"]["id"] for node in nodes})
    say("the commands, while nobody trains")
    for node in nodes:
        node.fullrank("pause")
    help_s = command_s(live, ["--help"])
    status_s = command_s(live, ["status", "--home", str(bob.home.path)])
    version_s = command_s(live, ["version"])
    stopped_s, _ = timed(bob.stop)
    return [
        Figure(name="create to link printed", value=created_s, unit="s"),
        Figure(name="join to daemon answering", value=answers_s, unit="s"),
        Figure(name="join to first accepted delta", value=accepted_s, unit="s", aim="under 60"),
        Figure(name="join to that round final", value=final_s, unit="s"),
        Figure(name="stop", value=stopped_s, unit="s"),
        Figure(name="daemon RSS", value=mean(size["daemon"] for size in sizes_mb), unit="MB"),
        Figure(name="p2pd RSS", value=mean(size["p2pd"] for size in sizes_mb), unit="MB"),
        Figure(
            name="daemon and p2pd RSS",
            value=mean(size["daemon"] + size["p2pd"] for size in sizes_mb),
            unit="MB",
            aim="under 400",
        ),
        Figure(name="worker RSS", value=mean(size["worker"] for size in sizes_mb), unit="MB"),
        Figure(name="trainer RSS", value=mean(size["trainer"] for size in sizes_mb), unit="MB"),
        Figure(name="fullrank --help", value=help_s, unit="s", aim="0.3"),
        Figure(name="fullrank status", value=status_s, unit="s", aim="0.5"),
        Figure(name="fullrank version", value=version_s, unit="s"),
        Figure(name="share of wall time training", value=mean(span["training"] for span in spans), unit=""),
        Figure(name="processor use of daemon", value=mean(span["daemon"] for span in spans), unit="cores"),
        Figure(name="processor use of p2pd", value=mean(span["p2pd"] for span in spans), unit="cores"),
        Figure(name="slots with a final round", value=mean(span["rounds_per_slot"] for span in spans), unit=""),
        Figure(name="bytes of a contribution", value=mean(c["num_bytes"] for c in contributions), unit="bytes"),
        Figure(name="sent by a node in a slot", value=mean(span["up"] for span in spans) / 1e3, unit="kB"),
        Figure(name="received by a node in a slot", value=mean(span["down"] for span in spans) / 1e3, unit="kB"),
        Figure(name="different models in the newest round", value=agree, unit="", aim="1"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A node at one moment."""

    status: dict[str, Any]
    daemon_cpu_s: float
    p2pd_cpu_s: float

    @classmethod
    def at(cls, node: LiveNode) -> "Look":
        """Look now."""
        p2pd = node.p2pd()
        return cls(status=node.status(), daemon_cpu_s=_cpu_s(node.daemon()), p2pd_cpu_s=_cpu_s(p2pd) if p2pd else 0.0)

    @property
    def training_ms(self) -> float:
        """Time spent training since the daemon's start."""
        return float(self.status["training"]["share_of_time"] * self.status["uptime_ms"])

    def since(self, before: "Look") -> dict[str, float]:
        """What happened in between, by time or by slot."""
        wall_ms = self.status["uptime_ms"] - before.status["uptime_ms"]
        slots = wall_ms / self.status["slot_window_ms"]
        return {
            "training": (self.training_ms - before.training_ms) / wall_ms,
            "daemon": 1000 * (self.daemon_cpu_s - before.daemon_cpu_s) / wall_ms,
            "p2pd": 1000 * (self.p2pd_cpu_s - before.p2pd_cpu_s) / wall_ms,
            "rounds_per_slot": (self.status["final"]["round"] - before.status["final"]["round"]) / slots,
            "up": (self.status["bytes_up"] - before.status["bytes_up"]) / slots,
            "down": (self.status["bytes_down"] - before.status["bytes_down"]) / slots,
        }


def memory_mb(node: LiveNode) -> dict[str, float]:
    """Resident memory of a node's processes, by what they do."""
    processes = node.status()["processes"]
    found = {}
    for role in ("daemon", "p2pd", "worker", "trainer"):
        found[role] = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            found[role] = psutil.Process(processes[role]).memory_info().rss / 1e6 if processes[role] else 0.0
    return found


def command_s(live: LiveSwarm, arguments: Sequence[str]) -> float:
    """The median time of a command, from typing it to its end."""

    def run() -> object:
        return subprocess.run([FULLRANK, *arguments], env=live.environment, capture_output=True, check=True)

    return statistics.median(timed(run)[0] for _ in range(NUM_RUNS))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that some work took, and its result."""
    began_s = time.monotonic()
    result = work()
    return time.monotonic() - began_s, result


def mean(values: Any) -> float:
    """Of numbers, one a node; 0 where there are none."""
    return statistics.fmean(found) if (found := list(values)) else 0.0


def table(report: dict[str, Any], figures: Sequence[Figure]) -> str:
    """The report for people."""
    lines = [f"{key:38} {value}" for key, value in (report["machine"] | report["run"]).items()]
    lines += ["", f"{'figure':38} {'measured':>12}  {'aim'}"]
    for figure in figures:
        lines.append(f"{figure.name:38} {figure.value:>12,.2f}  {figure.unit:6} {figure.aim}".rstrip())
    return "\n".join(lines)


def say(text: str) -> None:
    """What is being done now, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    sys.exit(main())
