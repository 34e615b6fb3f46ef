"""Whole swarms on loopback: real daemons, driven by the command line, waited for by what they say of themselves.

Nothing here sleeps for a time that was guessed: every wait looks at a condition until a generous deadline,
and tells the state and the logs of all nodes where it is missed. What was started is ended by its process
id, also where a test failed half-way.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
from namespaces import Lan

from fullrank_node.api.client import connect
from fullrank_node.cli.render import plain
from fullrank_node.errors import NodeError
from fullrank_node.home import Home
from fullrank_node.identity_file import load_identity
from fullrank_protocol.link import Link, parse_link

FULLRANK = str(Path(sys.executable).with_name("fullrank"))

FOUNDING = str(Path(__file__).with_name("founding_together.py"))

DEADLINE_S = 180.0
"""For anything a swarm of a few nodes does within some slots: twenty times what it takes on two free cores."""

COMMAND_S = 240.0
"""For one command: starting a daemon on a busy machine is the longest, and gives up by itself after 180 s."""

GONE_S = 20.0
"""Children of a killed daemon end within moments; in a worker's durable write it may be a few seconds."""

POLL_S = 0.2

TAIL_LINES = 40

QUICK = ("--window", "4", "--max-steps", "60", "--batch-size", "4", "--block-length", "64", "--rank", "4")
"""Slots as short as two cores carry with four nodes."""

FEW_STEPS = 3
"""What a node trains for one delta where a test does not say: a fraction of a slot."""

MANY_STEPS = 60
"""More than fit into a slot on most machines: whoever has to be caught while training trains that long."""

SMALL = ("--threads", "1")
"""One processor thread for each node."""

_LIAR = """
import sys
from fullrank_node import daemon
from fullrank_node.blob_store import BlobStore
honest = BlobStore.read_chunk
BlobStore.read_chunk = lambda store, blob_id, index: honest(store, blob_id, index)[:-1] + b"?"
sys.exit(daemon.main(["--home", sys.argv[1]]))
"""
"""A daemon that changes the last byte of every chunk it serves; its own files are as they should be."""

CRASHING = Path(__file__).with_name("crashing_daemon.py")

running: "list[LiveSwarm]" = []
"""Swarms that were not closed yet: their logs belong into the report of a failed test."""

T = TypeVar("T")


class Status(dict[str, Any]):
    """What a node tells of itself, or that it does not answer; NodeError for all else that is asked of such a one."""

    def __missing__(self, name: str) -> Any:
        if not self["running"]:
            raise NodeError(self["error"])
        raise KeyError(name)


class LiveNode:
    """One node: a home, and the daemon on it while one runs."""

    def __init__(self, name: str, home: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.home = Home(home)
        self.prefix: Sequence[str] = ()  # Put before every command: the way into a network namespace.
        self.listen = "/ip4/127.0.0.1/tcp/0"  # No address that anybody outside could dial.
        self._environment = environment
        self._seen: dict[tuple[int, float], psutil.Process] = {}
        self._liar: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"LiveNode({self.name!r})"

    # ---- commands ----------------------------------------------------------------------------------

    def fullrank(
        self, *arguments: str, code: int = 0, by: Sequence[str] = (FULLRANK,)
    ) -> subprocess.CompletedProcess[str]:
        """Run one command on this home; its exit code must be `code`."""
        done = subprocess.run(
            [*self.prefix, *by, *arguments, "--home", self.home.path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            env=self._environment,
            check=False,
        )
        self.note_processes()
        if done.returncode != code:
            raise AssertionError(
                f"`fullrank {arguments[0]}` on {self.name} ended with {done.returncode}, expected {code}:\n"
                f"{done.stdout}{done.stderr}\n{self.story()}"
            )
        return done

    def json(self, *arguments: str) -> dict[str, Any]:
        """What a command prints with --json."""
        found: dict[str, Any] = json.loads(self.fullrank(*arguments, "--json").stdout)
        return found

    def start(self) -> None:
        """Start the daemon again."""
        self.fullrank("start")

    def stop(self) -> None:
        """End the daemon in order."""
        self.fullrank("stop")

    def start_as_liar(self) -> None:
        """Start a daemon that serves garbage."""
        with (self.home.logs_dir / "daemon.out").open("wb") as output:
            self._liar = subprocess.Popen(
                [*self.prefix, sys.executable, "-P", "-c", _LIAR, self.home.path],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )
        self._note(psutil.Process(self._liar.pid))
        wait_until(f"{self.name} answers", lambda: self.status()["running"], [self])

    def start_to_crash(self, point: str) -> subprocess.Popen[bytes]:
        """Start a daemon that kills itself at a point named in `crashing_daemon`; what it says is in `daemon.out`."""
        with (self.home.logs_dir / "daemon.out").open("wb") as output:
            process = subprocess.Popen(
                [*self.prefix, sys.executable, "-P", CRASHING, point, self.home.path],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )
        self._note(psutil.Process(process.pid))
        return process

    # ---- looking -----------------------------------------------------------------------------------

    def status(self) -> "Status":
        """What `status --json` tells, without the cost of a new process for every look."""
        try:
            with connect(self.home) as client:
                return Status({"running": True, **plain(client.status())})
        except NodeError as error:
            return Status({"running": False, "error": str(error)})

    def history(self, number: int | None = None) -> dict[str, Any]:
        """What `history --json` tells; NodeError while the node cannot tell yet."""
        with connect(self.home) as client:
            return plain(client.history(round=number, limit=10_000))

    def members(self) -> dict[str, dict[str, Any]]:
        """The members by their names."""
        with connect(self.home) as client:
            return {line["name"]: line for line in plain(client.members())["members"]}

    @property
    def key(self) -> str:
        """The member's key in hex, as commands print it."""
        return load_identity(self.home.identity_file).public_key.hex()

    def peers(self) -> dict[str, dict[str, Any]]:
        """The connected peers by their names."""
        with connect(self.home) as client:
            return {line["name"]: line for line in plain(client.peers())["peers"]}

    def final_rounds(self) -> dict[int, dict[str, Any]]:
        """Final rounds by number, as this node sees them."""
        lines = (line for line in self.history()["rounds"] if line["standing"] == "final" and line["kind"] == "normal")
        return {line["checkpoint"]["round"]: line for line in lines}

    def final_checkpoints(self) -> dict[int, str]:
        """The ids of all final checkpoints by slot, as this node sees them."""
        lines = (line["checkpoint"] for line in self.history()["rounds"] if line["standing"] == "final")
        return {line["slot"]: line["id"] for line in lines}

    def final_slot(self) -> int:
        """The slot of the newest checkpoint that is final here; 0 while the node does not answer."""
        status = self.status()
        return int(status["final"]["slot"]) if status["running"] and status["final"] else 0

    def accepted_since(self, since_ms: int) -> list[dict[str, Any]]:
        """Own contributions signed after a moment that a checkpoint has accepted."""
        own = self.history()["contributions"]
        return [line for line in own if line["verdict"] == "accepted" and line["created_at_ms"] > since_ms]

    def story(self) -> str:
        """The state and the end of the log, for the report of a failure."""
        lines = [f"---- {self.name}: {_in_short(self.status())}"]
        for path in (self.home.logs_dir / "daemon.out", self.home.log_file):
            with contextlib.suppress(FileNotFoundError):
                lines += [f"{path.name}:", *path.read_text(errors="replace").splitlines()[-TAIL_LINES:]]
        return "\n".join(lines)

    # ---- processes ---------------------------------------------------------------------------------

    def daemon(self) -> psutil.Process:
        """The process of the daemon that runs now."""
        run = self.home.read_run()
        assert run is not None, f"no daemon runs on {self.name}\n{self.story()}"
        return psutil.Process(run.pid)

    def family(self) -> list[psutil.Process]:
        """The daemon and everything it started."""
        daemon = self.daemon()
        return [daemon, *daemon.children(recursive=True)]

    def p2pd(self) -> psutil.Process | None:
        """The daemon's network process, while there is one."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self.daemon().children():
                if "p2pd" in child.name() and child.status() != psutil.STATUS_ZOMBIE:
                    return child
        return None

    def kill(self) -> list[psutil.Process]:
        """SIGKILL the daemon alone; the processes that have to vanish with it."""
        family = self.family()
        family[0].send_signal(signal.SIGKILL)
        return family

    def note_processes(self) -> None:
        """Remember what runs now, to be ended by its process id."""
        run = self.home.read_run()
        with contextlib.suppress(psutil.NoSuchProcess):
            if run is not None:
                for process in self.family():
                    self._note(process)

    def remembered(self) -> list[psutil.Process]:
        """Everything that was seen running on this home."""
        return list(self._seen.values())

    def _note(self, process: psutil.Process) -> None:
        self._seen[process.pid, process.create_time()] = process

    def end(self) -> None:
        """End the daemon and whatever else was started on this home."""
        self.note_processes()
        run = self.home.read_run()
        with contextlib.suppress(psutil.Error):
            if run is not None:
                daemon = psutil.Process(run.pid)
                daemon.terminate()
                daemon.wait(GONE_S)
        for process in [*self._seen.values(), *_started_on(self.home.path)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running():  # The very process, not another one with its number.
                    process.kill()
        if self._liar is not None:
            self._liar.wait()
        self.home.clear_run()


class LiveSwarm:
    """The nodes of one swarm, and the place where they live; a context manager."""

    def __init__(self, directory: Path, *, lan: Lan | None = None) -> None:
        self.directory = directory
        self.lan = lan  # Where given, every node lives on the host of its name.
        self.nodes: dict[str, LiveNode] = {}
        self.sockets = Path(tempfile.mkdtemp(prefix="live-", dir="/tmp"))  # Short: socket paths end at 107 characters.
        self.environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(directory / "hf"),
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "TMPDIR": str(self.sockets),
            "XDG_RUNTIME_DIR": str(self.sockets),
        }
        running.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything that was started here."""
        running.remove(self)
        with ThreadPoolExecutor() as pool:
            list(pool.map(LiveNode.end, self.nodes.values()))
        shutil.rmtree(self.sockets, ignore_errors=True)

    def node(self, name: str, *, steps: int = FEW_STEPS) -> LiveNode:
        """A home that belongs to no swarm yet; its trainer will make that many steps for one delta."""
        environment = self.environment | {"FULLRANK_TRAIN__MAX_STEPS": str(steps)}
        node = LiveNode(name, self.directory / name, environment)
        if self.lan is not None:
            if name not in self.lan.addresses:
                self.lan.host(name)
            node.prefix, node.listen = self.lan.way_into(name), f"/ip4/{self.lan.addresses[name]}/tcp/0"
        self.nodes[name] = node
        return node

    def found(
        self,
        name: str,
        *,
        base: str = "embedded:demo",
        options: Sequence[str] = (),
        steps: int = FEW_STEPS,
        program: Sequence[str] = (FULLRANK,),
    ) -> LiveNode:
        """The founder, with its daemon running."""
        node = self.node(name, steps=steps)
        who = ("--name", "test swarm", "--node-name", name, "--data", str(self.data_of(name)))
        node.fullrank("create", "--base", base, *who, "--listen", node.listen, *SMALL, *QUICK, *options, by=program)
        return node

    def found_together(self, *names: str) -> list[LiveNode]:
        """Nodes that all are founders, and so certify from the start; the first one holds the root key."""
        commands = {name: (sys.executable, FOUNDING, name, ",".join(names)) for name in names}
        founder = self.found(names[0], program=commands[names[0]])
        link = self.invite(founder)
        with ThreadPoolExecutor() as pool:
            joined = pool.map(lambda name: self.join(link, name, program=commands[name]), names[1:])
            return [founder, *joined]

    def invite(self, founder: LiveNode, *, count: int = 8) -> Link:
        """A link that admits so many members."""
        return parse_link(founder.fullrank("invite", "--count", str(count)).stdout)

    def join(
        self, link: Link, name: str, *options: str, steps: int = FEW_STEPS, program: Sequence[str] = (FULLRANK,)
    ) -> LiveNode:
        """A new member, with its daemon running; no `--listen` where the options speak of listening."""
        node = self.node(name, steps=steps)
        where = () if "--no-listen" in options else ("--listen", node.listen)
        who = ("--name", name, "--data", str(self.data_of(name)))
        node.fullrank("join", str(link), "--yes", *who, *where, *SMALL, *options, by=program)
        return node

    def join_together(self, link: Link, options: dict[str, Sequence[str]]) -> list[LiveNode]:
        """Several new members at the same time, by name with their options."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda item: self.join(link, item[0], *item[1]), options.items()))

    def data_of(self, name: str) -> Path:
        """A few hundred short rows, other ones for every name."""
        path = self.directory / f"{name}.jsonl"
        words = random.Random(name).sample(_WORDS.split(), 12)
        rows = random.Random(name[::-1])
        lines = (json.dumps({"text": " ".join(rows.choices(words, k=30))}) for _ in range(200))
        path.write_text("".join(line + "\n" for line in lines))
        return path

    def story(self) -> str:
        """The states and logs of all nodes."""
        return "\n".join(node.story() for node in self.nodes.values())


_WORDS = """
tree river cloud stone engine signal window garden paper silver north table morning letter winter bridge
market island candle harbour copper meadow violin thunder basket lantern pepper saddle marble anchor
"""


def now_ms() -> int:
    """The clock that the daemons also read."""
    return time.time_ns() // 1_000_000


def wait_until(
    what: str,
    condition: Callable[[], T],
    nodes: Sequence[LiveNode] = (),
    *,
    poll_s: float = POLL_S,
    deadline_s: float = DEADLINE_S,
) -> T:
    """What `condition` returns as soon as that is true; a node that cannot answer yet makes it false.

    Raises:
        AssertionError: It did not become true in time, with the story of the nodes.
    """
    deadline = time.monotonic() + deadline_s
    trouble = ""
    while True:
        try:
            if found := condition():
                return found
        except NodeError as error:
            trouble = f" ({error})"
        if time.monotonic() > deadline:
            story = "\n".join(node.story() for node in nodes)
            raise AssertionError(f"not within {deadline_s:.0f} s: {what}{trouble}\n{story}")
        time.sleep(poll_s)


def wait_until_it_trains(node: LiveNode) -> None:
    """Return in the middle of a training: after the first step, before the last."""

    def trains() -> bool:
        status = node.status()
        return bool(status["running"] and status["state"] == "training" and status["training"]["step"])

    wait_until(f"{node.name} trains", trains, [node], poll_s=0.02)


def wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    """Return when all these processes have ended.

    Raises:
        AssertionError: Some had not, in time.
    """
    _, left = psutil.wait_procs(processes, timeout=GONE_S)
    assert not left, f"still there after {GONE_S:.0f} s: {left}"


def wait_for_certifiers(nodes: Sequence[LiveNode], count: int) -> None:
    """Return when every node knows so many certifiers, and that set is final and decides."""

    def heads() -> list[int]:
        states = [node.status() for node in nodes]
        know = all(status["running"] and status["certifiers"] == count for status in states)
        return [status["head"]["slot"] for status in states] if know else []

    known_at = max(wait_until(f"{count} certifiers are known", heads, nodes))
    decide = known_at + 3  # The change is final, a child carries that, and the new set has made another one final.
    wait_until(f"{count} certifiers decide", lambda: all(node.final_slot() >= decide for node in nodes), nodes)


def wait_for_new_final_rounds(nodes: Sequence[LiveNode], count: int = 2) -> int:
    """Return when so many rounds more than now are final on every node; the newest of them."""
    goal = max(max(node.final_rounds(), default=0) for node in nodes) + count
    wait_until(
        f"round {goal} is final", lambda: all(max(node.final_rounds(), default=0) >= goal for node in nodes), nodes
    )
    return goal


def wait_for_contributions(nodes: Sequence[LiveNode], *, since_ms: int) -> None:
    """Return when every node has an accepted contribution signed after that moment."""

    def done() -> bool:
        return all(node.accepted_since(since_ms) for node in nodes)

    wait_until(f"{', '.join(node.name for node in nodes)} contribute", done, nodes)


def _in_short(status: dict[str, Any]) -> str:
    if not status["running"]:
        return str(status["error"])
    parts = ("state", "reason", "slot", "round", "head", "final", "finality", "mine", "peers_connected", "warnings")
    return json.dumps({part: status[part] for part in parts})


def _started_on(home: Path) -> Iterator[psutil.Process]:
    """Processes whose command line names this home: a start that failed before anybody learned its number."""
    for process in psutil.process_iter(["cmdline"]):
        if str(home) in (process.info["cmdline"] or ()):
            yield process
