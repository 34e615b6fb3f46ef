"""Fills the gaps of an archive, and says whether it is one (protocol section 10).

Who arrives by a snapshot lacks the deltas below it, who becomes an archive later has removed some, and a disk may
spoil any. An archive fetches them, one at a time, and tells others that it is one only while it has every delta of
its final chain: they would look here for what is nowhere else.
"""

import asyncio
import logging

from fullrank_node.errors import NodeError
from fullrank_node.final_chain import FinalChain
from fullrank_node.network.interface import BlobUnavailable
from fullrank_node.runner import Runner
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.round_state import RECENT_SLOTS

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Time between two looks for what is missing when nothing becomes final."""

MAX_MISSES = 4
"""Deltas that nobody gave, at one look; the next look goes on with the others."""


class Filling:
    """The gaps of one archive."""

    def __init__(self, *, runner: Runner, limit_bytes: int | None) -> None:
        """Nothing is looked at yet.

        Args:
            runner: Of this node.
            limit_bytes: For all blobs: where the owner set one, an archive stays within it and is none.
        """
        self._runner = runner
        self._limit_bytes = limit_bytes
        self._chain = FinalChain(runner.state.tree)
        self._decided: dict[bytes, Contribution] = {}
        self._missed: set[bytes] = set()
        self._wake = asyncio.Event()
        runner.on_final.append(self._wake.set)

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            self._wake.clear()
            try:
                await self.look()
            except NodeError as error:
                log.warning("Fetching old deltas failed: %s %s", error, error.hint)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Fetch what is missing below the final checkpoint, as far as anybody has it.

        Raises:
            NodeError: The disk is full.
        """
        if self._chain.has_moved_away():
            self._decided.clear()
        self._decided |= {each.blob.id: each for _, each in self._chain.news()}
        lacking = await asyncio.to_thread(self._find_lacking)
        self._tell(len(lacking))
        if lacking and not self._is_arriving():
            num_fetched = await self._fetch(lacking)
            log.info("Fetched %d old deltas, %d are missing.", num_fetched, len(lacking) - num_fetched)
            self._tell(len(lacking) - num_fetched)

    def _find_lacking(self) -> list[Contribution]:
        """What is not here, oldest first; last what nobody had the last time."""
        here = set(self._runner.store.blobs.ids())
        lacking = [each for blob_id, each in self._decided.items() if blob_id not in here]
        return sorted(lacking, key=lambda each: each.blob.id in self._missed)

    async def _fetch(self, lacking: list[Contribution]) -> int:
        network, blobs = self._runner.network, self._runner.store.blobs
        assert network is not None
        used = await asyncio.to_thread(blobs.total_bytes)
        num_fetched = num_missed = 0
        for contribution in lacking:
            used += contribution.blob.num_bytes
            if num_missed == MAX_MISSES or (self._limit_bytes is not None and used > self._limit_bytes):
                break
            try:
                providers = [*self._runner.exchange.archives, contribution.member]
                await network.fetch_blob(contribution.blob, providers=providers, blobs=blobs)
            except BlobUnavailable:
                num_missed += 1
                self._missed.add(contribution.blob.id)
            else:
                num_fetched += 1
                self._missed.discard(contribution.blob.id)
        return num_fetched

    def _is_arriving(self) -> bool:
        """Whether much of what others have made final is not recomputed here yet."""
        state, tree = self._runner.state, self._runner.state.tree
        return state.arrival.sought is not None or tree.voted_final.slot > tree.final.slot + RECENT_SLOTS

    def _tell(self, num_lacking: int) -> None:
        self._runner.exchange.is_archive = not num_lacking and not self._is_arriving()
        if num_lacking:
            self._runner.warnings["archive"] = (
                f"this archive lacks {num_lacking} old deltas, and is none before it has them: it asks its peers"
            )
        else:
            self._runner.warnings.pop("archive", None)
