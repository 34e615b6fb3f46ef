"""Runs a swarm of real daemons for a long time under random faults, and reports what grew, what was lost, what stood.

    python scripts/bench/soak.py --minutes 60 --seed 1

Every fault follows from the seed: a daemon killed and started again, a daemon frozen, p2pd, worker or trainer
killed. At most two nodes are hit at a time, so that two thirds of the certifiers can always be heard; the first
two nodes are never hit, so that some processes live as long as the run and their growth means something.

Prints a table and writes JSON. The exit code is 0 when nothing is wrong: no evidence of a broken voting rule,
no daemon that died by itself, one model, rounds final until the end.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from live_swarm import DEADLINE_S, LiveNode, LiveSwarm, wait_for_certifiers, wait_until  # noqa: E402

from fullrank_node.errors import NodeError  # noqa: E402
from fullrank_node.store import Store  # noqa: E402
from fullrank_protocol.wire import objects_pb2 as wire  # noqa: E402

NUM_SPARED = 2
"""Nodes that no fault hits: their processes are as old as the run."""

MAX_HIT = 2
"""Nodes hit at a time: fewer than a third of eight, so rounds go on becoming final."""

FAULT_EVERY_S = (20.0, 70.0)
"""From one fault to the next: about 80 an hour."""

SAMPLE_S = 10.0

MIN_LIFE = 0.25
"""Share of the time after warm-up that a process must have lived for its growth to be counted."""

ROLES = ("daemon", "p2pd", "worker", "trainer")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong: when (seconds since the start), what, to which node, for how long."""

    at_s: float
    kind: str
    node: int
    for_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One process at one moment."""

    at_s: float
    rss: int
    fds: int


Lives = dict[tuple[str, str, int, float], list[Sample]]
"""Samples of every process: (node, role, pid, creation time)."""


def plan_faults(*, seed: int, num_nodes: int, seconds: float) -> list[Fault]:
    """What will go wrong; the same for the same seed. A node is hit again only after it has recovered."""
    draw = random.Random(seed)
    faults: list[Fault] = []
    at_s = 0.0
    while (at_s := at_s + draw.uniform(*FAULT_EVERY_S)) < seconds:
        kind = draw.choice(["kill", "kill", "freeze", "freeze", "p2pd", "p2pd", "trainer", "worker"])
        for_s = draw.uniform(1, 60) if kind in ("kill", "freeze") else 0.0
        busy = [fault.node for fault in faults if fault.at_s + fault.for_s + 30 > at_s]
        free = [node for node in range(NUM_SPARED, num_nodes) if node not in busy]
        node = draw.choice(free) if free else None
        if node is not None and len(busy) < MAX_HIT:
            faults.append(Fault(at_s=at_s, kind=kind, node=node, for_s=for_s))
    return faults


class Soak:
    """The run: carries the faults out and looks at everything every few seconds."""

    def __init__(self, nodes: Sequence[LiveNode], *, seconds: float, window_s: float) -> None:
        self.nodes = nodes
        self.seconds = seconds
        self.window_s = window_s
        self.lives: Lives = {}
        self.finals: list[tuple[float, int, int, int]] = []  # (time, slot now, final slot, final round)
        self.disk: list[tuple[float, int]] = []
        self.recovered_s: list[float] = []
        self.deaths: list[str] = []
        self.done: Counter[str] = Counter()
        self.cpu_s = 0.0
        self._cpu_seen: dict[tuple[int, float], float] = {}
        self._hit: set[str] = set()
        self._began = time.monotonic()
        self._over = threading.Event()

    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def run(self, faults: Sequence[Fault]) -> None:
        """Let the time pass."""
        idle_before, all_before = _machine_cpu()
        with ThreadPoolExecutor(MAX_HIT + 2) as pool:
            hurting = pool.submit(self._hurt_all, faults, pool.submit)
            try:
                next_word_s = 0.0
                while self.now_s() < self.seconds:
                    self._look()
                    if self.now_s() >= next_word_s:
                        next_word_s += 60
                        print(self._word(), flush=True)
                    self._over.wait(SAMPLE_S)
            finally:
                self._over.set()
                hurting.result()
        idle_after, all_after = _machine_cpu()
        self.idle_share = (idle_after - idle_before) / max(all_after - all_before, 1e-9)

    # ---- faults ------------------------------------------------------------------------------------

    def _hurt_all(self, faults: Sequence[Fault], submit: Callable[..., object]) -> None:
        for fault in faults:
            if self._over.wait(max(0.0, fault.at_s - self.now_s())):
                return
            submit(self._hurt, fault)

    def _hurt(self, fault: Fault) -> None:
        node = self.nodes[fault.node]
        if node.name in self._hit:
            return
        self._hit.add(node.name)
        try:
            if self._carry_out(fault, node):
                self.done[fault.kind] += 1
                self._recover(node)
        except (psutil.Error, AssertionError, NodeError) as error:
            self.deaths.append(f"{node.name} after {fault.kind}: {str(error).splitlines()[0]}")
        finally:
            self._hit.discard(node.name)

    def _carry_out(self, fault: Fault, node: LiveNode) -> bool:
        if fault.kind == "kill":
            node.kill()
            self._over.wait(fault.for_s)
            node.start()
            return True
        if fault.kind == "freeze":
            daemon = node.daemon()
            daemon.send_signal(signal.SIGSTOP)
            try:
                self._over.wait(fault.for_s)
            finally:
                daemon.send_signal(signal.SIGCONT)
            return True
        victim = next((process for role, process in _family(node) if role == fault.kind), None)
        if victim is not None:
            victim.send_signal(signal.SIGKILL)
        return victim is not None

    def _recover(self, node: LiveNode) -> None:
        """Measure how long a node needs until it stands where the others stood when the fault was over."""
        began = time.monotonic()
        goal = self.nodes[0].final_slot()
        while node.final_slot() < goal and not self._over.wait(0.5):
            pass
        if not self._over.is_set():
            self.recovered_s.append(time.monotonic() - began)

    # ---- looking -----------------------------------------------------------------------------------

    def _look(self) -> None:
        at_s = self.now_s()
        for node in self.nodes:
            if node.name not in self._hit:
                self._restart_if_dead(node)
            for role, process in _family(node):
                with contextlib.suppress(psutil.Error), process.oneshot():
                    life = (node.name, role, process.pid, process.create_time())
                    sample = Sample(at_s=at_s, rss=process.memory_info().rss, fds=process.num_fds())
                    self.lives.setdefault(life, []).append(sample)
                    self._count_cpu(process)
        status = self.nodes[0].status()
        if status["running"] and status["final"]:
            self.finals.append((at_s, status["slot"], status["final"]["slot"], status["final"]["round"]))
            self.disk.append((at_s, status["disk_used_bytes"]))

    def _count_cpu(self, process: psutil.Process) -> None:
        times = process.cpu_times()
        used, key = times.user + times.system, (process.pid, process.create_time())
        self.cpu_s += used - self._cpu_seen.get(key, 0.0 if self._cpu_seen else used)
        self._cpu_seen[key] = used

    def _restart_if_dead(self, node: LiveNode) -> None:
        run = node.home.read_run()
        if run is not None and psutil.pid_exists(run.pid):
            return
        if node.name in self._hit:  # Hit between the two looks.
            return
        self.deaths.append(f"{node.name} ended by itself: {_last_line(node)}")
        node.start()

    def _word(self) -> str:
        slot, final, number = self.finals[-1][1:] if self.finals else (0, 0, 0)
        away = ", ".join(sorted(self._hit)) or "none"
        return f"{self.now_s() / 60:5.1f} min  slot {slot}  final round {number} (slot {final})  hit now: {away}"

    # ---- figures -----------------------------------------------------------------------------------

    def growth(self, *, warm_up_s: float) -> dict[str, dict[str, float | None]]:
        """By role: size and growth of the processes that lived long after the warm-up, worst and median."""
        long_s = MIN_LIFE * (self.seconds - warm_up_s)
        result: dict[str, dict[str, float | None]] = {}
        for role in ROLES:
            kept = {
                life: warm
                for life, samples in self.lives.items()
                if life[1] == role
                and len(warm := [sample for sample in samples if sample.at_s >= warm_up_s]) > 2
                and warm[-1].at_s - warm[0].at_s >= long_s
            }
            if not kept:
                continue
            rss = [_per_hour([(sample.at_s, sample.rss) for sample in warm]) for warm in kept.values()]
            fds = [_per_hour([(sample.at_s, sample.fds) for sample in warm]) for warm in kept.values()]
            sizes = [warm[-1].rss / 1e6 for warm in kept.values()]
            spared = [
                _per_hour([(sample.at_s, sample.rss) for sample in warm])
                for life, warm in kept.items()
                if life[0] in {node.name for node in self.nodes[:NUM_SPARED]}
            ]
            result[role] = {
                "processes": len(kept),
                "lives": sum(life[1] == role for life in self.lives),
                "rss_mb_median": statistics.median(sizes),
                "rss_mb_max": max(sizes),
                "rss_growth_percent_per_hour_median": statistics.median(rss),
                "rss_growth_percent_per_hour_max": max(rss),
                "rss_growth_percent_per_hour_spared": max(spared, default=None),
                "fds_max": max(sample.fds for warm in kept.values() for sample in warm),
                "fds_growth_percent_per_hour_max": max(fds),
            }
        return result

    def figures(self, *, warm_up_s: float) -> dict[str, Any]:
        """Everything that the report tells."""
        lags = [slot - final for _, slot, final, _ in self.finals]
        moments = [self.finals[0][0], *(later[0] for a, later in itertools.pairwise(self.finals) if later[2] > a[2])]
        gaps = [later - earlier for earlier, later in itertools.pairwise([*moments, self.finals[-1][0]])]
        verdicts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for node in self.nodes:
            for line in node.history()["contributions"]:
                verdicts[line["verdict"]] += 1
                if line["verdict"] == "refused":
                    reasons[f"{line['rule']}: {line['detail']}"] += 1
        hours = (self.disk[-1][0] - self.disk[0][0]) / 3600
        return {
            "rounds_final": self.finals[-1][3] - self.finals[0][3],
            "slots": self.finals[-1][1] - self.finals[0][1],
            "slots_behind_final_median": statistics.median(lags),
            "slots_behind_final_max": max(lags),
            "seconds_without_new_final_max": max(gaps),
            "contributions": dict(verdicts),
            "refusals": dict(reasons.most_common(10)),
            "faults": dict(self.done),
            "recovery_s_median": statistics.median(self.recovered_s) if self.recovered_s else None,
            "recovery_s_max": max(self.recovered_s, default=None),
            "deaths": self.deaths,
            "evidence": sum(_count_evidence(node) for node in self.nodes),
            "errors_logged": _errors(self.nodes),
            "cpu_cores_used": self.cpu_s / self.finals[-1][0],
            "machine_idle_share": self.idle_share,
            "disk_mb_founder": self.disk[-1][1] / 1e6,
            "disk_mb_per_hour_founder": (self.disk[-1][1] - self.disk[0][1]) / 1e6 / max(hours, 1e-9),
            "growth": self.growth(warm_up_s=warm_up_s),
        }


def _family(node: LiveNode) -> Iterator[tuple[str, psutil.Process]]:
    """The processes of a node with their roles."""
    run = node.home.read_run()
    if run is None:
        return
    with contextlib.suppress(psutil.Error):
        daemon = psutil.Process(run.pid)
        yield "daemon", daemon
        for child in daemon.children():
            with contextlib.suppress(psutil.Error):
                words = " ".join(child.cmdline())
                role = "p2pd" if "p2pd" in child.name() else words.partition("fullrank_node.child_main ")[2]
                role = {"fullrank_node.worker": "worker", "fullrank_node.training.trainer": "trainer"}.get(
                    role.partition(" ")[0], role
                )
                if role in ROLES:
                    yield role, child


def _per_hour(points: Sequence[tuple[float, float]]) -> float:
    """Growth in percent of the mean per hour, by least squares."""
    slope = statistics.linear_regression([at for at, _ in points], [value for _, value in points]).slope
    return 100 * slope * 3600 / max(statistics.mean(value for _, value in points), 1.0)


def _machine_cpu() -> tuple[float, float]:
    times = psutil.cpu_times()
    return times.idle + getattr(times, "iowait", 0.0), sum(times)


def _count_evidence(node: LiveNode) -> int:
    with Store(node.home, readonly=True) as store:
        return len(list(store.objects(wire.EVIDENCE)))


def _last_line(node: LiveNode) -> str:
    with contextlib.suppress(FileNotFoundError):
        lines: list[str] = node.home.log_file.read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""
    return "it has no log"


def _errors(nodes: Sequence[LiveNode]) -> dict[str, int]:
    """Log lines that speak of errors, by their beginning."""
    found: Counter[str] = Counter()
    for node in nodes:
        for path in (node.home.log_file, node.home.logs_dir / "daemon.out"):
            with contextlib.suppress(FileNotFoundError):
                for line in path.read_text(errors="replace").splitlines():
                    if " ERROR " in line or line.startswith("Traceback"):
                        found[line.partition(" ERROR ")[2].strip()[:100] or line] += 1
    return dict(found.most_common(20))


def agree_at_the_end(nodes: Sequence[LiveNode], *, window_s: float) -> int:
    """Wait until all have the same new final round, and compare every final round; the newest one.

    Raises:
        AssertionError: They do not agree in time, or on a digest.
    """
    goal = max(max(node.final_rounds(), default=0) for node in nodes) + 2
    wait_until(
        f"round {goal} is final everywhere",
        lambda: all(max(node.final_rounds(), default=0) >= goal for node in nodes),
        nodes,
        deadline_s=max(DEADLINE_S, 20 * window_s),
    )
    seen = [node.final_rounds() for node in nodes]
    for number in set.intersection(*map(set, seen)):
        ids = {rounds[number]["checkpoint"]["id"] for rounds in seen}
        assert len(ids) == 1, f"round {number} is final as {ids}"
    return goal


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    figures = report["figures"]
    lines = [f"{key:32} {value}" for key, value in (report["machine"] | report["run"]).items()]
    lines += [f"{key:32} {_short(value)}" for key, value in figures.items() if key != "growth"]
    lines.append("")
    lines.append(
        f"{'role':8} {'long/all':>9} {'RSS MB':>8} {'max':>7} {'%/h med':>8} {'%/h max':>8} {'%/h spared':>11}"
        f" {'fds':>5} {'%/h max':>8}"
    )
    for role, grown in figures["growth"].items():
        spared = _short(grown["rss_growth_percent_per_hour_spared"])
        lines.append(
            f"{role:8} {grown['processes']:>4}/{grown['lives']:<4} {grown['rss_mb_median']:8.0f} "
            f"{grown['rss_mb_max']:7.0f} {grown['rss_growth_percent_per_hour_median']:8.1f} "
            f"{grown['rss_growth_percent_per_hour_max']:8.1f} {spared:>11} "
            f"{grown['fds_max']:5.0f} {grown['fds_growth_percent_per_hour_max']:8.1f}"
        )
    lines += ["", *(f"WRONG: {fault}" for fault in report["wrong"])] if report["wrong"] else ["", "nothing is wrong"]
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else json.dumps(value)


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--window", type=float, default=20.0, help="seconds of a slot")
    parser.add_argument("--warm-up", type=float, default=10.0, help="minutes before growth is measured")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/bench/results/soak.json")
    parser.add_argument("--homes", type=Path, help="keep the homes and logs here")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    with contextlib.ExitStack() as stack:
        homes = options.homes or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        homes.mkdir(parents=True, exist_ok=True)
        live = stack.enter_context(LiveSwarm(homes))
        print(f"setting up {options.nodes} nodes in {homes}", flush=True)
        founder = live.found("n0", options=["--window", str(options.window)])
        link = live.invite(founder, count=2 * options.nodes)
        nodes = [founder, *(live.join(link, f"n{number}") for number in range(1, options.nodes))]
        # One certifier is added at a time, each some slots after the other: until then less can be away.
        print("waiting until all certify", flush=True)
        _wait_patiently(nodes, window_s=options.window)
        soak = Soak(nodes, seconds=seconds, window_s=options.window)
        soak.run(plan_faults(seed=options.seed, num_nodes=options.nodes, seconds=seconds))
        wrong: list[str] = []
        try:
            agree_at_the_end(nodes, window_s=options.window)
        except AssertionError as error:
            wrong.append(str(error).splitlines()[0])
        figures = soak.figures(warm_up_s=60 * options.warm_up)
    wrong += figures["deaths"]
    wrong += [f"{figures['evidence']} pieces of evidence"] if figures["evidence"] else []
    report = {
        "machine": {
            "machine": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
        },
        "run": {
            "nodes": options.nodes,
            "minutes": options.minutes,
            "seed": options.seed,
            "window_s": options.window,
            "warm_up_minutes": options.warm_up,
        },
        "figures": figures,
        "wrong": wrong,
    }
    print(table(report))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if wrong else 0


def _wait_patiently(nodes: Sequence[LiveNode], *, window_s: float) -> None:
    """All certify; a set changes by one certifier in some slots, so this takes longer than one wait allows."""
    for count in range(1, len(nodes) + 1):
        deadline = time.monotonic() + 20 * window_s
        while min(node.status().get("certifiers", 0) for node in nodes) < count and time.monotonic() < deadline:
            time.sleep(1)
    wait_for_certifiers(nodes, len(nodes))


if __name__ == "__main__":
    sys.exit(main())
