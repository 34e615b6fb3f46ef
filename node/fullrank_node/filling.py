"""Fills the gaps of an archive, and says whether it is one (protocol section 10).

Who arrives by a snapshot lacks the deltas below it, and who becomes an archive later has removed some. An archive
fetches them, one at a time, and tells others that it is one only while it has every delta of its final chain: they
would look here for what is nowhere else.
"""

import asyncio
import logging

from fullrank_node.blob_store import BlobStore
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
        self._lacking: dict[bytes, Contribution] = {}
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
        blobs = self._runner.store.blobs
        if self._chain.has_moved_away():
            self._lacking.clear()
        news = self._chain.news()
        if news:
            here = set(await asyncio.to_thread(blobs.ids))
            self._lacking |= {each.blob.id: each for _, each in news if each.blob.id not in here}
        self._tell()
        if self._lacking and not self._is_arriving():
            num_before = len(self._lacking)
            await self._fetch(blobs)
            log.info("Fetched %d old deltas, %d are missing.", num_before - len(self._lacking), len(self._lacking))
            self._tell()

    async def _fetch(self, blobs: BlobStore) -> None:
        network, num_misses = self._runner.network, 0
        assert network is not None
        used = await asyncio.to_thread(blobs.total_bytes)
        for blob_id, contribution in list(self._lacking.items()):
            used += contribution.blob.num_bytes
            if num_misses == MAX_MISSES or (self._limit_bytes is not None and used > self._limit_bytes):
                return
            del self._lacking[blob_id]
            try:
                providers = [*self._runner.exchange.archives, contribution.member]
                await network.fetch_blob(contribution.blob, providers=providers, blobs=blobs)
            except BlobUnavailable:
                num_misses += 1
                self._lacking[blob_id] = contribution  # Behind the others.
            except BaseException:
                self._lacking[blob_id] = contribution
                raise

    def _is_arriving(self) -> bool:
        """Whether much of what others have made final is not recomputed here yet."""
        state, tree = self._runner.state, self._runner.state.tree
        return state.arrival.sought is not None or tree.voted_final.slot > tree.final.slot + RECENT_SLOTS

    def _tell(self) -> None:
        self._runner.exchange.is_archive = not self._lacking and not self._is_arriving()
        if self._lacking:
            self._runner.warnings["archive"] = (
                f"this archive lacks {len(self._lacking)} old deltas, and is none before it has them: it asks its peers"
            )
        else:
            self._runner.warnings.pop("archive", None)
