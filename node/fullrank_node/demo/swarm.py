"""The demo's nodes as one swarm: founded, joined, trained, watched and ended together. Every wait has a bound."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from fullrank_node import founding
from fullrank_node.api import control_pb2 as wire
from fullrank_node.demo.plan import Plan
from fullrank_node.demo.processes import DemoNode
from fullrank_node.demo.screen import NodeLine, Screen
from fullrank_node.demo.tasks import bounded, cancelled, together
from fullrank_node.operations import JoinSummary, no_progress
from fullrank_protocol.link import Link, parse_link

BASE = "embedded:demo"

LOOK_S = 0.5
"""Between two looks at all nodes: often enough for a bar that moves, rarely enough to cost nothing."""

SET_UP_TIMEOUT_S = 600.0
"""Founding, joining and starting take 20 to 40 s on two cores, and minutes where twenty other processes want them."""

LATEST_BEGIN = 0.2
"""Share of a slot after which training begins in the next one instead: the first round shall not be a short one."""

STALL_S = 90.0
STALL_WINDOWS = 12
"""No new round and no new final round for so long, whichever is more: something is wrong that waiting does not mend."""

INVITE_MS = 24 * 3_600_000

T = TypeVar("T")


class DemoSwarm:
    """The nodes of one demo."""

    def __init__(self, nodes: list[DemoNode], *, plan: Plan, screen: Screen) -> None:
        """Take over nodes that have no home yet; the first one founds what is planned."""
        self.nodes = nodes
        self._plan = plan
        self._screen = screen
        self._training_ms: dict[str, tuple[float, float]] = {}

    # ---- the life of a swarm -----------------------------------------------------------------------

    async def found_and_join(self) -> Link:
        """Start the first node with a new swarm and the others by its link; return that link without its invite.

        Raises:
            NodeError: A node cannot start, or they do not find each other in time.
        """
        founder, *others = self.nodes
        async with bounded(SET_UP_TIMEOUT_S, "founding and joining"):
            self._screen.phase(f"{founder.name} founds the swarm on the embedded base")
            founder.joined_at_s = asyncio.get_running_loop().time()
            await together(self._found(founder), asyncio.to_thread(_import_network))
            reply = await founder.ask("invite", count=len(others), valid_for_ms=INVITE_MS, certify=True)
            link = parse_link(reply.link)
            self._screen.phase(f"{', '.join(node.name for node in others)} join by its link")
            await together(*(self._join(node, link) for node in others))
        self._screen.phase("the swarm admits its members")
        await self.until(
            lambda status: status.member and status.state == wire.NODE_PAUSED, "until all nodes are members"
        )
        return replace(link, invite=None)

    async def train(self) -> None:
        """All rounds, from the first slot in which all nodes can train together; roles of certifiers follow meanwhile.

        Raises:
            NodeError: A node failed, or no round ends for long.
        """
        self._screen.phase("all begin with the next slot")
        slot = max(node.status.slot for node in self.nodes if node.status is not None)
        await self.until(lambda status: status.slot > slot or _is_young(status), "until the next slot")
        rounds, window_s = self._plan.rounds, self._plan.window_s
        self._screen.phase(f"training {rounds} rounds of {window_s:g} s, {self._plan.max_steps} steps each at most")
        before = self._training_times()
        await together(*(node.ask("resume") for node in self.nodes))
        await self.until(lambda status: status.head.round >= rounds, f"until round {rounds}")
        after = self._training_times()
        self._training_ms = {
            name: (busy - before[name][0], up - before[name][1]) for name, (busy, up) in after.items() if name in before
        }

    async def until_final(self, beside: "asyncio.Task[Any]") -> list[bytes]:
        """Wait until the last round is final on all nodes; the model digest that each of them found.

        Args:
            beside: Raise at once if this fails meanwhile.

        Raises:
            NodeError: A node failed, or finality does not come.
        """
        rounds = self._plan.rounds
        self._screen.phase(f"the votes make round {rounds} final")
        await self.until(lambda status: status.final.round >= rounds, f"until round {rounds} is final", beside=beside)
        return [node.status.final.digest for node in self.nodes if node.status is not None]

    async def steps_of(self, node: DemoNode) -> list[int]:
        """Optimiser steps that a node has contributed on the weights of each round.

        Raises:
            NodeError: The node does not answer.
        """
        history = await node.ask("history", limit=4 * self._plan.rounds)
        steps = {line.base_round: line.num_steps for line in history.contributions if line.mine}
        return [steps.get(number, 0) for number in range(self._plan.rounds)]

    async def stop(self) -> None:
        """End every node, whatever state it is in."""
        await asyncio.gather(*(node.stop() for node in self.nodes))

    @property
    def training_share(self) -> float | None:
        """Share of the time between the first round's begin and the last one's end in which a node trained."""
        up_ms = sum(up for _, up in self._training_ms.values())
        return sum(busy for busy, _ in self._training_ms.values()) / up_ms if up_ms else None

    # ---- single nodes ------------------------------------------------------------------------------

    async def _found(self, node: DemoNode) -> None:
        await founding.create(
            node.home,
            self._config(node) | {"archive": True},
            base=BASE,
            name="demo",
            data=node.data,
            options=self._plan.options(),
            progress=no_progress,
        )
        await node.start()

    async def _join(self, node: DemoNode, link: Link) -> None:
        node.joined_at_s = asyncio.get_running_loop().time()
        await founding.join(
            node.home,
            link,
            data=node.data,
            base=None,
            overrides=self._config(node),
            confirm=_agree,
            progress=no_progress,
        )
        await node.start()

    @staticmethod
    def _config(node: DemoNode) -> dict[str, Any]:
        """Loopback only, one thread a node, and no training before everybody is there."""
        return {
            "node": {"name": node.name},
            "data": {"path": node.data},
            "train": {"device": "cpu", "threads": 1, "start_paused": True},
            "network": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
        }

    # ---- watching ----------------------------------------------------------------------------------

    async def until(
        self, holds: Callable[[wire.StatusReply], bool], what: str, *, beside: "asyncio.Task[Any] | None" = None
    ) -> None:
        """Look at all nodes until something holds for each of them.

        Args:
            holds: Asked of every node's status.
            what: Completes "has not moved for … s".
            beside: Raise at once if this fails meanwhile.

        Raises:
            NodeError: A node ended or is in trouble, or nothing has moved for long.
        """
        loop = asyncio.get_running_loop()
        patience_s = max(STALL_S, STALL_WINDOWS * self._plan.window_s)
        before: list[tuple[object, ...]] = []
        moved_at_s = loop.time()
        while True:
            await self._look()
            waited_for = [node for node in self.nodes if node.status is None or not holds(node.status)]
            if not waited_for:
                return
            if beside is not None and beside.done():
                beside.result()
            now = [_standing(node.status) for node in self.nodes]
            if now != before:
                before, moved_at_s = now, loop.time()
            if loop.time() - moved_at_s > patience_s:
                raise waited_for[0].failure(
                    f"has not moved for {patience_s:.0f} s {what} ({_reason(waited_for[0].status)})"
                )
            await asyncio.sleep(LOOK_S)

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something while all nodes must stay well.

        Raises:
            NodeError: A node ended or is in trouble.
        """
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await self._look()
                await asyncio.wait([task], timeout=LOOK_S)
            return task.result()
        finally:
            await cancelled(task)

    async def _look(self) -> None:
        """Ask every node, and show what they say."""
        await asyncio.gather(*(node.look() for node in self.nodes))
        now_s = asyncio.get_running_loop().time()
        for node in self.nodes:
            node.require_well()
            if node.status is not None and node.status.mine.accepted and node.first_accepted_s is None:
                node.first_accepted_s = round(now_s - node.joined_at_s, 1)
        self._screen.nodes([self._line(node, node.status) for node in self.nodes if node.status is not None])

    def _line(self, node: DemoNode, status: wire.StatusReply) -> NodeLine:
        training, per_round = status.training, self._plan.max_steps
        is_training = status.state == wire.NODE_TRAINING
        rounds = self._plan.rounds
        done = min(status.head.round, rounds) * per_round
        standing = f"round {status.head.round}/{rounds}, final {status.final.round}" if status.head.round else ""
        merged = f"{status.mine.accepted} of its deltas merged" if status.mine.accepted else ""
        loss = f"loss {training.loss_last:.2f}" if training.HasField("loss_last") else ""
        doing = f"step {training.step}/{training.of}" if is_training else "" if standing else _reason(status)
        return NodeLine(
            name=node.name,
            domain=node.domain,
            text="  ".join(part for part in (standing, loss, doing) if part),
            done=done + (min(training.step, per_round) if is_training else 0),
            total=rounds * per_round,
            milestone=standing or ("ready" if status.state == wire.NODE_PAUSED else ""),
            figures="  ".join(part for part in (merged, loss) if part),
        )

    def _training_times(self) -> dict[str, tuple[float, float]]:
        """Milliseconds trained and running, by node."""
        return {
            node.name: (node.status.training.share_of_time * node.status.uptime_ms, float(node.status.uptime_ms))
            for node in self.nodes
            if node.status is not None
        }


def _import_network() -> None:
    """Bring hivemind in while other processes work: seconds that would otherwise come on top."""
    from fullrank_node.network.loading import import_hivemind

    import_hivemind()


def _agree(summary: JoinSummary) -> bool:
    """Whoever runs the demo has agreed to it."""
    del summary
    return True


def _is_young(status: wire.StatusReply) -> bool:
    """Whether the slot has just begun, so that nearly all of it is left for training."""
    return status.slot_ends_in_ms > (1 - LATEST_BEGIN) * status.slot_window_ms


def _standing(status: wire.StatusReply | None) -> tuple[object, ...]:
    """What shows that a node moves on."""
    if status is None:
        return ()
    return status.member, status.certifiers, status.state, status.head.round, status.final.round


def _reason(status: wire.StatusReply | None) -> str:
    """What a node is doing, in words."""
    if status is None:
        return "does not answer"
    word = wire.NodeState.Name(status.state).removeprefix("NODE_").lower().replace("_", " ")
    return f"{word}: {status.reason}" if status.reason else word
