"""Measures the effective rank of the accumulated update after rounds, as often as that costs next to nothing."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from fullrank_node.errors import NodeError
from fullrank_node.model.rank_estimate import sample_of
from fullrank_node.runner import Runner

log = logging.getLogger(__name__)

REST = 50.0
"""Times as long as a measurement took until the next: 2 % of one core. On a model of billions that is an hour."""


class RankWatch:
    """Measures the head's model in the worker process, when there is a new one and the last measurement is paid for.

    Needs the weights of the genesis, which every node makes from its base; where they are missing, or any are
    damaged, nothing is said of that round.
    """

    def __init__(self, runner: Runner, *, pause: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Nothing is measured yet.

        Args:
            runner: Whose head is measured.
            pause: Waits for so many seconds.
        """
        self._runner = runner
        self._pause = pause
        self._sample = sample_of(runner.genesis.modules)
        self._wake = asyncio.Event()
        self._wake.set()
        self._measured: bytes | None = None

    def look(self) -> None:
        """Called whenever the head moved."""
        self._wake.set()

    async def run(self) -> None:
        """Measure until cancelled; return at once where every matrix of the model is too large."""
        while self._sample.matrices:
            await self._wake.wait()
            self._wake.clear()
            began_s = time.monotonic()
            try:
                measured = await self._measure()
            except NodeError as error:
                log.warning("The rank of the accumulated update could not be measured: %s", error)
                measured = True
            if measured:
                await self._pause(REST * (time.monotonic() - began_s))

    async def _measure(self) -> bool:
        """Measure the head, unless it is the one measured last or its weights are not here."""
        store, head = self._runner.store, self._runner.state.tree.head()
        normal = head.last_normal.checkpoint
        before, after = store.manifest(self._runner.genesis.swarm), store.manifest(head.id)
        if not head.round or normal == self._measured or before is None or after is None:
            return False
        with self._runner.masters.kept(head.id):
            rank = await self._runner.merger.effective_rank(self._sample, before, after)
        self._measured = normal
        store.measure_round(normal, effective_rank=rank)
        return True
