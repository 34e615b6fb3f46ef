"""The demo: a whole swarm on this machine, offline, with the very parts that a swarm across the world uses.

Real daemons with keys, homes and processes of their own meet over loopback. The first founds a swarm on the embedded
base, the others join by its link, each trains on texts of its own. A reader that is no member then pulls the final
model by the link and checks it, and it is compared with what each node reaches alone.

Whatever ends the demo, nothing of it goes on running.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fullrank_node import pull
from fullrank_node.child import ChildProcess
from fullrank_node.demo.figures import ONE_THREAD, Alone, LogFigures, losses_alone, read_log
from fullrank_node.demo.plan import BATCH_SIZE, BLOCK_LENGTH, Plan, make_plan
from fullrank_node.demo.processes import DemoNode
from fullrank_node.demo.screen import Screen, shown
from fullrank_node.demo.swarm import BASE, DemoSwarm
from fullrank_node.demo.tasks import bounded, call, cancelled, to_the_end
from fullrank_node.demo.texts import DOMAINS, DemoTexts, write_texts
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home
from fullrank_node.model.base import resolve_base
from fullrank_node.model.export.provenance import PROVENANCE_NAME
from fullrank_node.operations import PullReport, no_progress
from fullrank_protocol.link import Link

MAX_NODES = len(DOMAINS)
"""Each node has a domain of texts for itself."""

MODEL_NAME = "fullrank-demo-model"
"""Where the model lies afterwards: in the current directory, as with `fullrank pull`; with --keep in that one."""

HELD_OUT_BLOCK_LENGTH = 256
"""Tokens of context when a model is judged: twice what was trained on, as whoever uses it would give it more."""

PROMPT = "    def close(self):\n        "
"""Begins like the volunteers' texts (code) and unlike the base's (prose about code)."""

SAMPLE_TOKENS = 48

CHILD_TIMEOUT_S = 300.0
"""Importing torch and judging a model takes seconds; many times that on a crowded machine."""

PULL_TIMEOUT_S = 300.0
"""Fetching and recomputing eight rounds of the embedded base takes about 10 s."""


class InterruptedDemoError(Exception):
    """The demo was ended by a signal, and everything of it has been taken down.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.number = number


async def run_demo(nodes: int, rounds: int | None, *, keep: Path | None) -> dict[str, Any]:
    """Run the whole demo and return its figures.

    Args:
        nodes: Nodes of the swarm, 2 to `MAX_NODES`.
        rounds: Rounds to train; None for the default.
        keep: Directory for homes, texts and model; None for a temporary one (the model stays all the same).

    Raises:
        NodeError: Something failed; the message holds the reason and, of a node, the end of its log.
        InterruptedDemoError: SIGINT, SIGTERM or SIGHUP.
    """
    if not 2 <= nodes <= MAX_NODES:
        raise NodeError(f"found {nodes} nodes, required 2 to {MAX_NODES}", exit_code=ExitCode.USAGE)
    model_dir = model_place(keep)
    task = asyncio.create_task(_run(nodes, rounds, keep=keep, model_dir=model_dir))
    with _ended_by_signals(task) as received:
        try:
            return await task
        except asyncio.CancelledError:
            if received:
                raise InterruptedDemoError(received[0]) from None
            raise


async def _run(nodes: int, rounds: int | None, *, keep: Path | None, model_dir: Path) -> dict[str, Any]:
    with _scratch() as scratch, shown() as screen:
        demo = Demo(directory=keep or scratch, scratch=scratch, model_dir=model_dir, screen=screen)
        figures = await demo.run(nodes, rounds)
    return figures | {"kept": str(keep) if keep is not None else None}


class Demo:
    """One run: `run` is the story, everything else serves it."""

    def __init__(self, *, directory: Path, scratch: Path, model_dir: Path, screen: Screen) -> None:
        """Settle the places.

        Args:
            directory: For texts and homes; stays if the owner wants it.
            scratch: For what nobody wants to keep.
            model_dir: Where the pulled model goes.
            screen: Where progress is shown.
        """
        self._directory = directory
        self._scratch = scratch
        self._model_dir = model_dir
        self._screen = screen
        self._seconds: dict[str, float] = {}

    async def run(self, num_nodes: int, rounds: int | None) -> dict[str, Any]:
        """Found, join, train, pull, judge."""
        started_s, load_before = time.monotonic(), os.getloadavg()[0]
        async with contextlib.AsyncExitStack() as stack:
            judge = await stack.enter_async_context(ChildProcess("fullrank_node.demo.judge", environment=ONE_THREAD))
            with self._timed("prepare"):
                texts, plan = await self._prepare(judge, num_nodes, rounds)
            swarm = self._swarm(texts, plan)
            stack.push_async_callback(swarm.stop)
            with self._timed("found_and_join"):
                link = await swarm.found_and_join()
            with self._timed("train"):
                await swarm.train()
            alone = asyncio.create_task(self._train_alone(swarm, texts))
            stack.push_async_callback(cancelled, alone)
            with self._timed("finality"):
                digests = await swarm.until_final(beside=alone)
            with self._timed("pull"):
                report = await swarm.watched(self._pull(link))
            await swarm.stop()
            with self._timed("rank"):
                self._screen.phase("measuring the rank of the accumulated update, round by round")
                log = await read_log(swarm.nodes[0].home)
            with self._timed("judge"):
                before, after = await self._judge(judge, texts)
            with self._timed("alone"):
                self._screen.phase("training each node alone for as many steps, to compare")
                single = await alone
        return {
            **_plan_fields(plan, texts),
            **_model_fields(report, digests),
            **_log_fields(log),
            "loss_before": before["loss"],
            "loss_after": after["loss"],
            "loss_best_single": min(single),
            "losses_single": single,
            "swarm_beats_best_single": after["loss"] < min(single),
            "held_out_tokens": after["num_tokens"],
            "prompt": PROMPT,
            "sample_before": before["sample"],
            "sample_after": after["sample"],
            "seconds": round(time.monotonic() - started_s, 1),
            "seconds_of": self._seconds,
            "seconds_to_first_accepted": [node.first_accepted_s for node in swarm.nodes],
            "training_share_of_time": swarm.training_share,
            "cores": os.cpu_count(),
            "load_before": round(load_before, 2),
        }

    async def _prepare(self, judge: ChildProcess, num_nodes: int, rounds: int | None) -> tuple[DemoTexts, Plan]:
        """Texts for every node, and a plan that suits this machine."""
        self._screen.phase("cutting texts for each node, and measuring this machine")
        texts, speed = await asyncio.gather(
            to_the_end(write_texts, self._directory / "texts", num_nodes),
            call(
                judge,
                "measure_step",
                {"base_dir": str(resolve_base(BASE)), "batch_size": BATCH_SIZE, "block_length": BLOCK_LENGTH},
                timeout_s=CHILD_TIMEOUT_S,
            ),
        )
        return texts, make_plan(nodes=num_nodes, rounds=rounds, step_s=speed["step_s"], cores=speed["cores"])

    def _swarm(self, texts: DemoTexts, plan: Plan) -> DemoSwarm:
        nodes = [
            DemoNode(name=f"node-{number}", domain=domain, home=Home(self._directory / f"node-{number}"), data=part)
            for number, (domain, part) in enumerate(zip(texts.domains, texts.parts, strict=True), 1)
        ]
        return DemoSwarm(nodes, plan=plan, screen=self._screen)

    async def _pull(self, link: Link) -> PullReport:
        """A reader that is no member fetches the final model and checks it."""
        self._screen.phase("a reader, no member, pulls the final model by the link and recomputes it")
        async with bounded(PULL_TIMEOUT_S, "pulling the model"):
            return await pull.pull(
                Home(self._directory / "reader"),
                str(link),
                out=self._model_dir,
                format="hf",
                round=None,
                base=None,
                provisional=False,
                progress=no_progress,
            )

    async def _judge(self, judge: ChildProcess, texts: DemoTexts) -> tuple[dict[str, Any], dict[str, Any]]:
        """The base and the pulled model on text that no node had."""
        self._screen.phase("judging the base and the pulled model on held-out text")
        common = {
            "heldout": str(texts.heldout),
            "block_length": HELD_OUT_BLOCK_LENGTH,
            "prompt": PROMPT,
            "max_new_tokens": SAMPLE_TOKENS,
        }
        before = await call(judge, "judge", {**common, "model_dir": str(resolve_base(BASE))}, timeout_s=CHILD_TIMEOUT_S)
        after = await call(judge, "judge", {**common, "model_dir": str(self._model_dir)}, timeout_s=CHILD_TIMEOUT_S)
        return before, after

    async def _train_alone(self, swarm: DemoSwarm, texts: DemoTexts) -> list[float]:
        """Each node's loss had it trained for itself, with the same data, A and number of steps."""
        nodes = []
        for node in swarm.nodes:
            assert node.status is not None
            steps = await swarm.steps_of(node)
            nodes.append(Alone(home=node.home, member=node.status.member_key, steps_per_round=steps))
        return await losses_alone(
            nodes, heldout=texts.heldout, block_length=HELD_OUT_BLOCK_LENGTH, scratch=self._scratch / "alone"
        )

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started_s = time.monotonic()
        yield
        self._seconds[name] = round(time.monotonic() - started_s, 1)


# ---- figures ---------------------------------------------------------------------------------------


def _plan_fields(plan: Plan, texts: DemoTexts) -> dict[str, Any]:
    return {
        "nodes": plan.nodes,
        "rounds": plan.rounds,
        "window_s": plan.window_s,
        "max_steps": plan.max_steps,
        "domains": list(texts.domains),
    }


def _model_fields(report: PullReport, digests: list[bytes]) -> dict[str, Any]:
    return {
        "final_round": report.round,
        "digest": report.digest.hex(),
        "digests_equal": set(digests) == {report.digest},
        "certifiers": report.certifiers,
        "model_dir": str(report.path),
    }


def _log_fields(log: LogFigures) -> dict[str, Any]:
    return {
        "rank_per_round": log.rank_per_round,
        "rank_noise_control": log.rank_noise_control,
        "rank_full": log.rank_full,
        "bytes_per_contribution": round(sum(log.num_bytes) / max(1, len(log.num_bytes))),
        "accepted_per_round": log.accepted_per_round,
        "tokens_trained": log.num_tokens,
    }


# ---- places and signals ----------------------------------------------------------------------------


def model_place(keep: Path | None) -> Path:
    """Where the model will be written, checked before minutes have been spent.

    Raises:
        NodeError: The directory kept is not empty, the model's place is taken, or it cannot be written.
    """
    if keep is not None:
        if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
            raise NodeError(
                f"{keep} is not an empty directory",
                hint="Name a directory that does not exist yet.",
                exit_code=ExitCode.USAGE,
            )
        place = keep / "model"
        keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        place = Path.cwd() / MODEL_NAME
        if place.exists() and not (place / PROVENANCE_NAME).is_file():
            raise NodeError(
                f"{place} is in the way: the demo writes its model there, and it is no earlier one",
                hint="Move it, or name a directory with --keep DIR.",
                exit_code=ExitCode.USAGE,
            )
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise NodeError(
            f"the model cannot be written to {place.parent}",
            hint="Name a directory that you may write with --keep DIR.",
            exit_code=ExitCode.PERMISSION,
        )
    return place


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A private directory that is gone afterwards, with every socket and temporary file of this process and its own.

    Also those of libraries, and those that a killed process could not remove.
    """
    directory = Path(tempfile.mkdtemp(prefix="fullrank-demo-"))
    temporary = directory / "t"
    temporary.mkdir(mode=0o700)
    names = ("TMPDIR", "XDG_RUNTIME_DIR")
    before, place_before = {name: os.environ.get(name) for name in names}, tempfile.tempdir
    os.environ |= dict.fromkeys(names, str(temporary))
    tempfile.tempdir = None
    try:
        yield directory
    finally:
        tempfile.tempdir = place_before
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _ended_by_signals(task: "asyncio.Task[Any]") -> Iterator[list[int]]:
    """Cancel a task at the first signal that asks to end; further ones change nothing: it is being taken down.

    Yields:
        The signals received.
    """
    received: list[int] = []
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int) -> None:
        if not received:
            task.cancel()
        received.append(number)

    for number in numbers:
        loop.add_signal_handler(number, end, int(number))
    try:
        yield received
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
