#!/usr/bin/env python3
"""Measures arriving late: by replay and by a snapshot, in turns, on chains of growing length.

    python scripts/bench/arriving.py

Builds one chain on the embedded base with the node's own runner, store and worker: four members contribute random
deltas of the default shape in every round, and all vote. Where the chain has a length to be measured, its home is
kept with a snapshot. A daemon on that home then serves newcomers over libp2p on loopback. A newcomer is a process
of its own that follows the swarm just as `fullrank pull` does, from the first peer to the recomputed head; base and
peer are there before its clock starts. One way is forced upon it, in turns, and last it chooses by itself.

Prints a table and writes JSON. The choice must be the one with fewer bytes, or the exit code is 1.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import math
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from live_swarm import LiveNode, LiveSwarm, wait_until  # noqa: E402 - after the path is set.
from loop_swarm import Hub, MemoryNetwork, SetClock, some_delta  # noqa: E402
from measured_on import facts  # noqa: E402

from fullrank_node import founding  # noqa: E402
from fullrank_node.child import ChildProcess  # noqa: E402
from fullrank_node.clock import SystemClock  # noqa: E402
from fullrank_node.files import write_atomically  # noqa: E402
from fullrank_node.following import Way, catch_up, following  # noqa: E402
from fullrank_node.home import Home  # noqa: E402
from fullrank_node.identity_file import load_identity  # noqa: E402
from fullrank_node.masters import Masters  # noqa: E402
from fullrank_node.merger import Merger  # noqa: E402
from fullrank_node.model.master import MasterStore  # noqa: E402
from fullrank_node.node_keys import BASE_DIGEST_KEY  # noqa: E402
from fullrank_node.operations import CreateOptions, no_progress  # noqa: E402
from fullrank_node.restoring import restored_state  # noqa: E402
from fullrank_node.runner import Runner  # noqa: E402
from fullrank_node.store import Store  # noqa: E402
from fullrank_protocol import arriving  # noqa: E402
from fullrank_protocol.chain import ChainState  # noqa: E402
from fullrank_protocol.codec import CODEC_PACKED, encode  # noqa: E402
from fullrank_protocol.contribution import make_contribution  # noqa: E402
from fullrank_protocol.genesis import Genesis, create_genesis, open_genesis  # noqa: E402
from fullrank_protocol.identity import SigningKey  # noqa: E402
from fullrank_protocol.link import Link, parse_link  # noqa: E402
from fullrank_protocol.snapshot import Offer  # noqa: E402
from fullrank_protocol.vote import make_vote  # noqa: E402
from fullrank_protocol.wire import objects_pb2 as wire  # noqa: E402

NUM_MEMBERS = 4

LENGTHS = (4, 16, 64, 256)
"""Rounds of the chains, one shorter than where a snapshot pays, the others longer."""

WINDOW_S = 60
"""Of a slot; all of them are past."""

CLOSING_SLOTS = 3
"""Most that one past takes after its last round."""

STEP_TIMEOUT_S = 120.0
"""For one round of the builder or one start of the daemon, on a machine that does much else."""

ARRIVAL_TIMEOUT_S = 900.0

WAYS = ("replay", "snapshot")

PACKAGES = ("fullrank", "hivemind", "numpy", "torch", "zstandard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What one newcomer took, from the first peer to the head.

    Attributes:
        by_snapshot: The way that it went.
        bytes_down: Everything that came over the network.
        wall_s: Time on the wall.
        cpu_s: Processor time of all its processes.
        follower_mb, worker_mb: Most resident memory of the process that follows and of the one that computes, since
            they began.
    """

    by_snapshot: bool
    round: int
    bytes_down: int
    wall_s: float
    cpu_s: float
    follower_mb: float
    worker_mb: float


# ---- the chain -----------------------------------------------------------------------------------------


class Builder:
    """Lives the past of a swarm of four on one node, which knows the others' keys."""

    def __init__(self, runner: Runner, clock: SetClock, keys: Sequence[SigningKey]) -> None:
        self.runner = runner
        self.genesis: Genesis = runner.genesis
        self._clock = clock
        self._keys = keys

    @property
    def head(self) -> ChainState:
        """What has been built so far."""
        return self.runner.state.tree.head()

    async def round(self) -> None:
        """Everybody contributes, then the slot ends."""
        made = []
        for member, key in enumerate(self._keys):
            delta = some_delta(
                self.genesis, f"{member}-{self.head.round}", rank=self.genesis.training.rank, seeded=True
            )
            envelope = make_contribution(
                key,
                swarm=self.genesis.swarm,
                base_checkpoint=self.head.id,
                base_slot=self.head.slot,
                blob=self.runner.store.blobs.put_bytes(encode(delta, self.genesis)),
                codec=CODEC_PACKED,
                num_tokens=1000,
                num_steps=10,
                loss_first_micro=2_000_000,
                loss_last_micro=1_000_000,
                created_at_ms=self._clock.now_ms(),
            )
            self.runner.submit(envelope)
            made.append(envelope.id)
        candidates = self.runner.state.candidates
        await _until(lambda: all(candidates[each].status.value == "ready" for each in made))
        await self.slot()

    async def close(self) -> None:
        """Empty checkpoints until the last round is final: then a daemon that serves this has nothing to do."""
        tree = self.runner.state.tree
        while not tree.is_final(tree.state(self.head.last_normal.checkpoint)):
            await self.slot()

    async def slot(self) -> None:
        """The slot ends: this node proposes when the turn has come to it, and everybody votes."""
        slot = self.genesis.slot_at(self._clock.now_ms())
        self._clock.time_ms = self.genesis.slot_end_ms(slot) + NUM_MEMBERS * self.genesis.timing.grace_ms
        await _until(lambda: self.head.slot == slot)
        head = self.head
        for key in self._keys[1:]:
            self.runner.submit(
                make_vote(
                    key,
                    swarm=self.genesis.swarm,
                    source=head.justified.checkpoint,
                    source_slot=head.justified.slot,
                    target=head.id,
                    target_slot=head.slot,
                )
            )
        voters = self.runner.state.tree.nodes[head.id]
        await _until(lambda: len(voters.voters) == NUM_MEMBERS)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(STEP_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - looks at the machine, which tells nobody.
            await asyncio.sleep(0.002)


async def found(home: Home, *, num_slots: int) -> tuple[Genesis, list[SigningKey]]:
    """A founding home as `fullrank create` makes it, then given three more founders and an earlier birth."""
    config = {
        "node": {"name": "ada"},
        "archive": True,
        "network": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
        "train": {"enabled": False},
    }
    await founding.create(
        home,
        config,
        base="embedded:demo",
        name="arriving",
        data=None,
        options=CreateOptions(window_s=WINDOW_S),
        progress=no_progress,
    )
    made = open_genesis(home.genesis_file.read_bytes())
    message = wire.Genesis.FromString(made.envelope.payload)
    keys = [load_identity(home.identity_file), *(SigningKey.from_seed(bytes([n]) * 32) for n in range(1, NUM_MEMBERS))]
    by_key = sorted(keys, key=lambda key: key.public_key)
    message.membership.founders[:] = [key.public_key for key in by_key]
    message.membership.founder_names[:] = [f"member {keys.index(key) + 1}" for key in by_key]
    message.created_at_ms = SystemClock().now_ms() - num_slots * WINDOW_S * 1000
    genesis = create_genesis(keys[0], message)
    with Store(home) as store:
        manifest = store.manifest(made.swarm)
        assert manifest is not None
        store.put_manifest(genesis.swarm, manifest)
    write_atomically(home.genesis_file, genesis.envelope.encode())
    return genesis, keys


async def build(directory: Path, lengths: Sequence[int]) -> dict[int, Path]:
    """Homes with a past of so many rounds, by their number; each holds a snapshot of its newest final checkpoint."""
    home = Home(directory / "ada")
    genesis, keys = await found(home, num_slots=max(lengths) + CLOSING_SLOTS * (len(lengths) + 1) + 2)
    clock = SetClock(genesis.slot_start_ms(1))
    kept = {}
    async with ChildProcess("fullrank_node.worker") as worker:
        with Store(home) as store:
            digest = store.get_meta(BASE_DIGEST_KEY)
            assert digest is not None
            merger = Merger(home=home, store=store, genesis=genesis, worker=worker, threads=1)
            masters = Masters(store=store, merger=merger, files=MasterStore(home.masters_dir))
            state = restored_state(genesis, store, key=keys[0].public_key, base_digest=digest, now_ms=clock.now_ms())
            runner = Runner(
                key=keys[0],
                genesis=genesis,
                state=state,
                store=store,
                merger=merger,
                masters=masters,
                trainer=None,
                clock=clock,
            )
            runner.attach(MemoryNetwork("ada", Hub(), runner.exchange))
            life = asyncio.create_task(runner.run())
            await asyncio.sleep(0)
            builder = Builder(runner, clock, keys)
            for length in sorted(lengths):
                while builder.head.round < length:
                    await builder.round()
                await builder.close()
                assert await runner.snapshots.make() is not None
                kept[length] = directory / f"ada-{length}"
                _copy(home, Home(kept[length]))
                say(f"a past of {length} rounds")
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
    return kept


def _copy(home: Home, to: Home) -> None:
    """A home as it is at this moment, also what the database has not written back yet."""
    shutil.copytree(home.path, to.path, ignore=shutil.ignore_patterns("state.db*"))
    source, target = sqlite3.connect(home.state_file), sqlite3.connect(to.state_file)
    with contextlib.closing(source), contextlib.closing(target):
        source.backup(target)


# ---- one arrival, in a process of its own -----------------------------------------------------------------


async def arrive(home: Home, link: Link, *, way: str) -> Arrival:
    """Follow the swarm to its head, as `fullrank pull` does."""
    if way == "snapshot":  # Whatever has fewer bytes: the newest one there is.
        vars(arriving)["fewest_bytes"] = _newest_offer
    chosen = Way(prefers_replay=way == "replay")
    async with following(home, link, base=None, progress=no_progress, way=chosen) as (follower, runner):
        assert runner.network is not None
        traffic = runner.network.traffic()
        began_s, before_s, before_bytes = time.monotonic(), _cpu_s(), traffic.bytes_down
        await catch_up(runner, progress=no_progress)
        worker = follower.merger.worker.pid
        return Arrival(
            by_snapshot=runner.state.arrival.believed is not None,
            round=runner.state.tree.head().round,
            bytes_down=traffic.bytes_down - before_bytes,
            wall_s=time.monotonic() - began_s,
            cpu_s=_cpu_s() - before_s,
            follower_mb=_peak_mb(os.getpid()),
            worker_mb=_peak_mb(worker) if worker is not None else 0.0,
        )


def _newest_offer(
    missing: Sequence[tuple[int, float]], offers: Sequence[Offer], *, last_resort: bool = False
) -> Offer | None:
    del missing, last_resort
    return max(offers, key=lambda offer: offer.slot, default=None)


def _cpu_s() -> float:
    """Processor time of this process and all that it started."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _peak_mb(pid: int) -> float:
    """Most resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return math.nan


# ---- measuring -----------------------------------------------------------------------------------------------


def measure(live: LiveSwarm, kept: dict[int, Path], *, pairs: int) -> list[dict[str, Any]]:
    """Arrivals on every past, pairs in turns."""
    lines = []
    for length, home in sorted(kept.items()):
        ada = LiveNode(home.name, home, live.environment)
        live.nodes[home.name] = ada
        ada.start()
        addresses = wait_until("ada listens", partial(_addresses, ada), [ada])
        link = Link(swarm=open_genesis(ada.home.genesis_file.read_bytes()).swarm, peers=tuple(addresses))
        arrivals: dict[str, list[Arrival]] = {way: [] for way in WAYS}
        for pair in range(pairs):
            for way in WAYS if pair % 2 == 0 else reversed(WAYS):
                arrivals[way].append(newcomer(live, link, way=way))
        own = newcomer(live, link, way="own")
        ada.stop()
        lines.append(line_of(length, arrivals, own))
        say(f"arrivals at {length} rounds")
    return lines


def _addresses(node: LiveNode) -> list[str]:
    return list(node.status().get("addresses", []))


def newcomer(live: LiveSwarm, link: Link, *, way: str) -> Arrival:
    """One process that arrives and tells what it took."""
    with tempfile.TemporaryDirectory(prefix="newcomer-", dir=live.directory) as home:
        done = subprocess.run(
            [sys.executable, __file__, "--arrive", way, str(link), home],
            env=live.environment,
            stdout=subprocess.PIPE,
            timeout=ARRIVAL_TIMEOUT_S,
            check=True,
        )
    return Arrival(**json.loads(done.stdout))


def line_of(length: int, arrivals: dict[str, list[Arrival]], own: Arrival) -> dict[str, Any]:
    """The figures of one length; ratios are of pairs, then the median."""
    line: dict[str, Any] = {"rounds": length}
    for way, found in arrivals.items():
        assert {each.round for each in found} == {length}
        assert {each.by_snapshot for each in found} == {way == "snapshot"}
        line[way] = {
            field: round(statistics.median(getattr(each, field) for each in found), 3)
            for field in ("bytes_down", "wall_s", "cpu_s", "follower_mb", "worker_mb")
        }
        line[way]["arrivals"] = [asdict(each) for each in found]
    pairs = list(zip(arrivals["replay"], arrivals["snapshot"], strict=True))
    line["replay_over_snapshot"] = {
        field: round(statistics.median(getattr(one, field) / getattr(other, field) for one, other in pairs), 3)
        for field in ("bytes_down", "wall_s", "cpu_s")
    }
    line["own_choice"] = {"way": "snapshot" if own.by_snapshot else "replay", "bytes_down": own.bytes_down}
    fewer = min(WAYS, key=lambda way: line[way]["bytes_down"])
    line["fewer_bytes"] = fewer
    line["chose_fewer"] = line["own_choice"]["way"] == fewer
    return line


def crossovers(lines: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Rounds from which a snapshot takes less, by straight lines through the shortest and the longest past."""
    found: dict[str, float | None] = {}
    first, last = lines[0], lines[-1]
    for field in ("bytes_down", "wall_s", "cpu_s"):
        gaps = [line["replay"][field] - line["snapshot"][field] for line in (first, last)]
        slope = (gaps[1] - gaps[0]) / max(last["rounds"] - first["rounds"], 1)
        found[field] = round(first["rounds"] - gaps[0] / slope, 1) if slope > 0 else None
    return found


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{key:12} {value}" for key, value in (report["machine"] | report["run"]).items()]
    lines += [
        "",
        f"{'rounds':>6} {'way':>9} {'MB fetched':>11} {'wall s':>8} {'CPU s':>8} {'MB of it':>9} {'MB worker':>10}",
    ]
    for line in report["lengths"]:
        for way in WAYS:
            took = line[way]
            lines.append(
                f"{line['rounds']:>6} {way:>9} {took['bytes_down'] / 1e6:>11.2f} {took['wall_s']:>8.2f} "
                f"{took['cpu_s']:>8.2f} {took['follower_mb']:>9.0f} {took['worker_mb']:>10.0f}"
            )
        ratio = line["replay_over_snapshot"]
        lines.append(
            f"{'':>6} {'ratio':>9} {ratio['bytes_down']:>11.2f} {ratio['wall_s']:>8.2f} {ratio['cpu_s']:>8.2f}"
            f"   chose the {line['own_choice']['way']}, {line['own_choice']['bytes_down'] / 1e6:.2f} MB"
        )
    names = {"bytes_down": "bytes", "wall_s": "time", "cpu_s": "processor time"}
    for field, rounds in report["crossovers"].items():
        where = "at no length" if rounds is None else f"from {rounds:g} rounds on" if rounds > 0 else "at any length"
        lines.append(f"a snapshot takes less {names[field]} {where}")
    return "\n".join(lines)


def say(text: str) -> None:
    """What is done, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Parse, build, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="rounds of the pasts")
    parser.add_argument("--pairs", type=int, default=2, help="arrivals by each way at each length")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/bench/results/arriving.json")
    parser.add_argument("--arrive", nargs=3, metavar=("WAY", "LINK", "HOME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # Clocks jump here, and runners say so.
    if options.arrive:
        way, link, place = options.arrive
        arrival = asyncio.run(arrive(Home(Path(place)), parse_link(link), way=way))
        print(json.dumps(asdict(arrival)))
        return 0
    began_s, load_before = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="arriving-") as directory, LiveSwarm(Path(directory)) as live:
        kept = asyncio.run(build(Path(directory), options.lengths))
        built_s = time.monotonic() - began_s
        lines = measure(live, kept, pairs=options.pairs)
    report = {
        "machine": {
            **facts(*PACKAGES),
            "load_before": round(load_before, 1),
            "load_after": round(os.getloadavg()[0], 1),
        },
        "run": {
            "base": "embedded:demo",
            "members": NUM_MEMBERS,
            "pairs": options.pairs,
            "build_s": round(built_s),
            "total_s": round(time.monotonic() - began_s),
        },
        "lengths": lines,
        "crossovers": crossovers(lines),
    }
    print(table(report))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(line["chose_fewer"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
