"""Runs a swarm of real daemons for a long time under random faults, and reports what grew, what was lost, what stood.

    python scripts/bench/soak.py --minutes 60 --seed 1

Every fault follows from the seed: a daemon killed and started again, a daemon frozen, p2pd, worker or trainer
killed, a delta or a file of weights damaged on the disk. At most two nodes are hit at a time, so that two thirds of
the certifiers can always be heard. The first two nodes are never hit: their processes live as long as the run, and
the growth that counts is theirs, after the warm-up, by the median of all pairwise slopes.

Prints a table and writes JSON, as it goes: an interrupted run leaves its figures. The exit code is 0 when nothing is
wrong: no evidence of a broken voting rule, no daemon that died by itself, every round that was seen final still final
in the end, one model, rounds final until the end, no error logged, and no growth beyond `--max-growth`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
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
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts/bench")]

from live_swarm import DEADLINE_S, LiveNode, LiveSwarm, wait_for_certifiers, wait_until  # noqa: E402
from measured_on import facts  # noqa: E402
from soak_report import (  # noqa: E402
    ROLES,
    Finality,
    Life,
    Sample,
    finality,
    grown_too_much,
    growth,
    short_counts,
    table,
    timeline,
)

from fullrank_node.errors import NodeError  # noqa: E402
from fullrank_node.files import write_atomically  # noqa: E402
from fullrank_node.store import Store  # noqa: E402
from fullrank_protocol.wire import objects_pb2 as wire  # noqa: E402

NUM_SPARED = 2
"""Nodes that no fault hits: their processes are as old as the run."""

MAX_HIT = 2
"""Nodes hit at a time: fewer than a third of eight, so rounds go on becoming final."""

FAULT_EVERY_S = (20.0, 70.0)
"""From one fault to the next: about 80 an hour."""

KINDS = ("kill", "kill", "freeze", "freeze", "p2pd", "p2pd", "trainer", "worker", "delta", "weights")

SAMPLE_S = 10.0

WORD_S = 60.0
"""From one line about the state, and one writing of the JSON, to the next."""

RECOVERY_S = 240.0
"""For a node to stand where the others stood when its fault was over: twenty times what it takes."""

MAX_ERRORS = 20
"""Kinds of errors in the logs that are reported."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong: when (seconds since the start), what, to which node, for how long."""

    at_s: float
    kind: str
    node: int
    for_s: float


def plan_faults(*, seed: int, num_nodes: int, seconds: float) -> list[Fault]:
    """What will go wrong; the same for the same seed. A node is hit again only after it has recovered."""
    draw = random.Random(seed)
    faults: list[Fault] = []
    at_s = 0.0
    while (at_s := at_s + draw.uniform(*FAULT_EVERY_S)) < seconds:
        kind = draw.choice(KINDS)
        for_s = draw.uniform(1, 60) if kind in ("kill", "freeze") else 0.0
        busy = [fault.node for fault in faults if fault.at_s + fault.for_s + 30 > at_s]
        free = [node for node in range(NUM_SPARED, num_nodes) if node not in busy]
        node = draw.choice(free) if free else None
        if node is not None and len(busy) < MAX_HIT:
            faults.append(Fault(at_s=at_s, kind=kind, node=node, for_s=for_s))
    return faults


class Soak:
    """The run: carries the faults out and looks at everything every few seconds."""

    def __init__(self, nodes: Sequence[LiveNode], *, seconds: float, seed: int) -> None:
        self.nodes = nodes
        self.seconds = seconds
        self.spared = [node.name for node in nodes[:NUM_SPARED]]
        self.lives: dict[Life, list[Sample]] = {}
        self.seen: list[Finality] = []
        self.final_ids: dict[int, str] = {}
        self.disk: list[tuple[float, int]] = []
        self.recovered_s: list[float] = []
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.cpu_s = 0.0
        self._mine: dict[str, dict[str, Any]] = {}
        self._cpu_seen: dict[tuple[int, float], float] = {}
        self._hit: set[str] = set()
        self._draw = random.Random(seed)
        self._over = threading.Event()
        self._cpu_before = _machine_cpu()
        self._began = time.monotonic()

    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def stop(self) -> None:
        """End the run early, in order."""
        self._over.set()

    def run(self, faults: Sequence[Fault], *, on_word: Callable[[], None]) -> None:
        """Let the time pass; `on_word` is called every minute."""
        with ThreadPoolExecutor(MAX_HIT + 2) as pool:
            hurting = pool.submit(self._hurt_all, faults, pool.submit)
            try:
                next_word_s = 0.0
                while self.now_s() < self.seconds and not self._over.is_set():
                    self._look()
                    if self.now_s() >= next_word_s:
                        next_word_s += WORD_S
                        print(self._word(), flush=True)
                        on_word()
                    self._over.wait(SAMPLE_S)
            finally:
                self._over.set()
                hurting.result()

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
                self._recover(node, fault)
        except (psutil.Error, AssertionError, NodeError, OSError) as error:
            self.wrong.append(f"{node.name} after {fault.kind}: {str(error).splitlines()[0]}")
        finally:
            self._hit.discard(node.name)

    def _carry_out(self, fault: Fault, node: LiveNode) -> bool:
        match fault.kind:
            case "kill":
                node.kill()
                self._over.wait(fault.for_s)
                node.start()
                return True
            case "freeze":
                daemon = node.daemon()
                daemon.send_signal(signal.SIGSTOP)
                try:
                    self._over.wait(fault.for_s)
                finally:
                    daemon.send_signal(signal.SIGCONT)
                return True
            case "delta":
                whole = [path for path in node.home.blobs_dir.iterdir() if len(path.name) == 64]
                return _damage(max(whole, key=lambda path: path.stat().st_mtime), self._draw) if whole else False
            case "weights":
                with Store(node.home, readonly=True) as store:
                    manifest = store.manifest(store.head() or b"") or {}
                paths = [node.home.masters_dir / f"{sha256}.f32" for sha256 in sorted(manifest.values())]
                return _damage(self._draw.choice(paths), self._draw) if paths else False
        victim = next((process for role, process in _family(node) if role == fault.kind), None)
        if victim is not None:
            victim.send_signal(signal.SIGKILL)
        return victim is not None

    def _recover(self, node: LiveNode, fault: Fault) -> None:
        """Measure how long a node needs until it stands where the others stood when the fault was over."""
        began = time.monotonic()
        goal = self.nodes[0].final_slot()
        while node.final_slot() < goal:
            if self._over.wait(0.5):
                return
            if time.monotonic() > began + RECOVERY_S:
                self.wrong.append(f"{node.name} did not recover from {fault.kind} within {RECOVERY_S:.0f} s")
                return
        self.recovered_s.append(time.monotonic() - began)

    # ---- looking -----------------------------------------------------------------------------------

    def _look(self) -> None:
        at_s = self.now_s()
        is_first = not self.lives
        for node in self.nodes:
            if node.name not in self._hit:
                self._restart_if_dead(node)
            for role, process in _family(node):
                with contextlib.suppress(psutil.Error), process.oneshot():
                    life = Life(node=node.name, role=role, pid=process.pid, created=process.create_time())
                    sample = Sample(at_s=at_s, rss=process.memory_info().rss, fds=process.num_fds())
                    self.lives.setdefault(life, []).append(sample)
                    self._count_cpu(process, is_first=is_first)
        status = self.nodes[0].status()
        if status["running"] and status["final"]:
            final = status["final"]
            self.seen.append(
                Finality(at_s=at_s, slot=status["slot"], final_slot=final["slot"], final_round=final["round"])
            )
            self.final_ids[final["slot"]] = final["id"]
            self.disk.append((at_s, status["disk_used_bytes"]))

    def _count_cpu(self, process: psutil.Process, *, is_first: bool) -> None:
        times = process.cpu_times()
        used, key = times.user + times.system, (process.pid, process.create_time())
        self.cpu_s += used - self._cpu_seen.get(key, used if is_first else 0.0)
        self._cpu_seen[key] = used

    def _restart_if_dead(self, node: LiveNode) -> None:
        run = node.home.read_run()
        if run is not None and psutil.pid_exists(run.pid):
            return
        if node.name in self._hit:  # Hit between the two looks.
            return
        self.wrong.append(f"{node.name} ended by itself: {_last_line(node)}")
        node.start()

    def _word(self) -> str:
        newest = self.seen[-1] if self.seen else Finality(at_s=0, slot=0, final_slot=0, final_round=0)
        away = ", ".join(sorted(self._hit)) or "none"
        return (
            f"{self.now_s() / 60:5.1f} min  slot {newest.slot}  final round {newest.final_round} "
            f"(slot {newest.final_slot})  hit now: {away}"
        )

    # ---- figures -----------------------------------------------------------------------------------

    def figures(self, *, warm_up_s: float) -> dict[str, Any]:
        """Everything that the report tells, as far as the run has come."""
        verdicts, reasons = self._verdicts()
        idle, total = (after - before for after, before in zip(_machine_cpu(), self._cpu_before, strict=True))
        disk = self.disk or [(0.0, 0)]
        hours = (disk[-1][0] - disk[0][0]) / 3600
        return {
            "minutes_run": self.now_s() / 60,
            **finality(self.seen),
            "contributions": dict(verdicts),
            "refusals": short_counts(reasons, most=10),
            "faults": dict(self.done),
            "recovery_s_median": statistics.median(self.recovered_s) if self.recovered_s else None,
            "recovery_s_max": max(self.recovered_s, default=None),
            "evidence": sum(_count_evidence(node) for node in self.nodes),
            "errors_logged": _errors(self.nodes),
            "cpu_cores_used": self.cpu_s / max(self.now_s(), 1.0),
            "machine_idle_share": idle / max(total, 1e-9),
            "disk_mb_founder": disk[-1][1] / 1e6,
            "disk_mb_per_hour_founder": (disk[-1][1] - disk[0][1]) / 1e6 / max(hours, 1e-9),
            "growth": growth(self.lives, spared=self.spared, warm_up_s=warm_up_s, until_s=self.now_s()),
            "timeline": timeline(self.lives, spared=self.spared),
        }

    def _verdicts(self) -> tuple[Counter[str], Counter[str]]:
        """What became of all contributions, each told by its author; and why some were refused."""
        for node in self.nodes:
            if node.name not in self._hit and (status := node.status())["running"]:
                self._mine[node.name] = status["mine"]
        verdicts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for mine in self._mine.values():
            verdicts.update({verdict: mine[verdict] for verdict in ("accepted", "refused", "late", "pending")})
            if mine["refused"]:
                reasons[mine["last_refusal"]] += mine["refused"]
        return verdicts, reasons

    def check_the_end(self, *, window_s: float) -> None:
        """Wait until all have the same new final round, and compare everything that was ever final.

        Raises:
            AssertionError: They do not agree in time, or on a checkpoint, or one that was final is gone.
        """
        nodes = self.nodes
        goal = max(max(node.final_rounds(), default=0) for node in nodes) + 2
        wait_until(
            f"round {goal} is final everywhere",
            lambda: all(max(node.final_rounds(), default=0) >= goal for node in nodes),
            nodes,
            deadline_s=max(DEADLINE_S, 20 * window_s),
        )
        for node in nodes:
            ids = node.final_checkpoints()
            for slot, final in self.final_ids.items():
                assert ids.get(slot) == final, f"slot {slot} was final as {final}; {node.name} has {ids.get(slot)}"


def _damage(path: Path, draw: random.Random) -> bool:
    """Cut a file, or flip a bit of it, where it lies."""
    try:
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if draw.random() < 0.5:
                file.truncate(size // 2)
            else:
                at = draw.randrange(size)
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1 << draw.randrange(8)]))
    except FileNotFoundError:  # Collected in this moment.
        return False
    return True


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


def _machine_cpu() -> tuple[float, float]:
    """Idle seconds and all seconds of all processors since the machine started."""
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
    return short_counts(found, most=MAX_ERRORS)


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--window", type=float, default=20.0, help="seconds of a slot")
    parser.add_argument("--warm-up", type=float, default=10.0, help="minutes of a process's life before growth counts")
    parser.add_argument("--max-growth", type=float, default=10.0, help="percent an hour, of memory and descriptors")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/bench/results/soak.json")
    parser.add_argument("--homes", type=Path, help="keep the homes and logs here")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        homes = options.homes or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        homes.mkdir(parents=True, exist_ok=True)
        live = stack.enter_context(LiveSwarm(homes))
        soak = Soak(_set_up(live, options), seconds=60 * options.minutes, seed=options.seed)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: soak.stop())
        plan = plan_faults(seed=options.seed, num_nodes=options.nodes, seconds=soak.seconds)
        soak.run(plan, on_word=lambda: _write(_report(soak, options), options.out))
        try:
            soak.check_the_end(window_s=options.window)
        except AssertionError as error:
            soak.wrong.append(str(error).splitlines()[0])
        report = _report(soak, options)
    print(table(report))
    _write(report, options.out)
    return 1 if report["wrong"] else 0


def _set_up(live: LiveSwarm, options: argparse.Namespace) -> list[LiveNode]:
    print(f"setting up {options.nodes} nodes in {live.directory}", flush=True)
    founder = live.found("n0", options=["--window", str(options.window)])
    link = live.invite(founder, count=2 * options.nodes)
    nodes = [founder, *(live.join(link, f"n{number}") for number in range(1, options.nodes))]
    # One certifier is added at a time, each some slots after the other: until then less can be away.
    print("waiting until all certify", flush=True)
    for count in range(1, len(nodes) + 1):
        wait_until(
            f"{count} certifiers",
            lambda count=count: min(node.status().get("certifiers", 0) for node in nodes) >= count,  # type: ignore[misc]
            nodes,
            poll_s=1.0,
            deadline_s=max(DEADLINE_S, 20 * options.window),
        )
    wait_for_certifiers(nodes, len(nodes))
    return nodes


def _report(soak: Soak, options: argparse.Namespace) -> dict[str, Any]:
    figures = soak.figures(warm_up_s=60 * options.warm_up)
    accused = [f"{figures['evidence']} pieces of evidence"] if figures["evidence"] else []
    accused += [f"logged as an error {count} times: {line}" for line, count in figures["errors_logged"].items()]
    accused += grown_too_much(figures["growth"], most=options.max_growth)
    return {
        "machine": facts(),
        "run": {
            "nodes": options.nodes,
            "minutes": options.minutes,
            "seed": options.seed,
            "window_s": options.window,
            "warm_up_minutes": options.warm_up,
            "max_growth_percent_per_hour": options.max_growth,
        },
        "figures": figures,
        "wrong": [*soak.wrong, *accused],
    }


def _write(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(report, indent=2).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
