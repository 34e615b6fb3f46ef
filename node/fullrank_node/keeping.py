"""Keeps the blobs of a node in bounds, and makes snapshots for those who arrive late (protocol sections 10 and 12)."""

import asyncio
import logging
from collections.abc import Iterable, Mapping

from fullrank_node.blob_store import Held
from fullrank_node.config import Config
from fullrank_node.errors import NodeError
from fullrank_node.final_chain import FinalChain
from fullrank_node.node_keys import verdict_key
from fullrank_node.restoring import stored_snapshots
from fullrank_node.retention import Holdings, Plan, is_snapshot_due, plan_removal
from fullrank_node.runner import Runner
from fullrank_protocol.checkpoint import contributions
from fullrank_protocol.contribution import Contribution, open_contribution
from fullrank_protocol.round_state import ANY_HEAD
from fullrank_protocol.snapshot import Snapshot, num_elements
from fullrank_protocol.wire import objects_pb2 as wire

log = logging.getLogger(__name__)

GIGABYTE = 10**9

DEFAULT_DISK_GB = 50.0
"""For deltas and snapshots of a node that is no archive and whose owner has set nothing."""

KEPT_BY_ARCHIVES = 2
"""Own snapshots that an archive keeps: on a slow line a download takes hours, and the next one must not cut it off."""

LOOK_S = 60.0
"""Time between two looks at the disk when nothing becomes final."""

FRESH_S = 600.0
"""A blob that nothing names yet may be a delta that is about to be announced, or a download that goes on."""

SNAPSHOT_SHARE = 0.75
"""Size of a snapshot over that of the weights, before there is one to measure (0.60 to 0.75 measured)."""


class Keeper:
    """Decides after every final checkpoint what to make and what to remove."""

    def __init__(self, *, runner: Runner, config: Config) -> None:
        self._runner = runner
        self._state = runner.state
        self._store = runner.store
        self._genesis = runner.genesis
        self._num_kept = KEPT_BY_ARCHIVES if config.archive else 1
        self._makes = config.archive or config.snapshots
        self._wake = asyncio.Event()
        self._decided: dict[bytes, tuple[int, int]] = {}
        self._chain = FinalChain(self._state.tree)
        self._own: list[Snapshot] = []
        self._served: list[Snapshot] = []
        self._read_hints()
        runner.on_final.append(self._wake.set)
        self.limit_bytes = disk_limit_bytes(config)

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            self._wake.clear()
            try:
                await self.look()
            except NodeError as error:
                self._runner.warnings["disk"] = f"{error} {error.hint}".strip()
                log.warning("Keeping the disk in order failed: %s %s", error, error.hint)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Make a snapshot where one is due, and remove what the limit asks for.

        Raises:
            NodeError: The disk is full, or the snapshot could not be made.
        """
        self._follow_final()
        if self._state.arrival.believed != self._read_for:
            self._read_hints()
        if self._makes and is_snapshot_due(delta_bytes=self._uncovered_bytes(), snapshot_bytes=self._snapshot_bytes()):
            await self._make()
        holdings = self._holdings(await asyncio.to_thread(self._store.blobs.survey))
        plan = plan_removal(holdings, limit_bytes=self.limit_bytes)
        if plan.makes_snapshot and await self._make():
            holdings = self._holdings(await asyncio.to_thread(self._store.blobs.survey))
            plan = plan_removal(holdings, limit_bytes=self.limit_bytes)
        await asyncio.to_thread(self._remove, plan, holdings)
        self._tell(plan, holdings)

    # ---- snapshots ---------------------------------------------------------------------------------

    async def _make(self) -> bool:
        made = await self._runner.snapshots.make()
        if made is None:
            return False
        self._own.append(made)
        self._served.append(made)
        while len(self._own) > self._num_kept:
            old = self._own.pop(0)
            self._served = [each for each in self._served if each.blob != old.blob or each in self._own]
            if all(old.blob != kept.blob for kept in self._own):
                await asyncio.to_thread(self._store.blobs.delete, old.blob.id)
        return True

    def _read_hints(self) -> None:
        """Snapshots that this node made or arrived by, and that are here: they cover what lies below them."""
        self._read_for = self._state.arrival.believed
        for snapshot in stored_snapshots(self._store, self._genesis):
            if self._store.get_meta(verdict_key(snapshot.id)) != b"\x01":
                continue
            if snapshot.author == self._runner.key.public_key and snapshot not in self._own:
                self._own = [*self._own, snapshot][-self._num_kept :]
            if snapshot not in self._served:
                self._served.append(snapshot)

    def _covering(self) -> Snapshot | None:
        """The newest snapshot that is served here and replaces the deltas of the final chain below it."""
        tree = self._state.tree
        here = [each for each in self._served if self._store.blobs.has(each.blob.id)]
        marked = [(each, tree.lookup(each.checkpoint)) for each in here]
        on_chain = [each for each, at in marked if at is not None and tree.is_final(at)]
        return max(on_chain, key=lambda snapshot: snapshot.slot, default=None)

    def _snapshot_bytes(self) -> int:
        covering = self._covering()
        if covering is not None:
            return covering.blob.num_bytes
        return int(4 * SNAPSHOT_SHARE * sum(num_elements(module) for module in self._genesis.modules))

    # ---- what is here, and what it is for ------------------------------------------------------------

    def _follow_final(self) -> None:
        """Note what newly final checkpoints have decided on."""
        if self._chain.has_moved_away():
            self._decided.clear()
        for slot, contribution in self._chain.news():
            self._decided[contribution.blob.id] = slot, contribution.blob.num_bytes

    def _uncovered_bytes(self) -> int:
        covered = self._covered_slot()
        return sum(num_bytes for slot, num_bytes in self._decided.values() if slot > covered)

    def _covered_slot(self) -> int:
        covering = self._covering()
        return covering.slot if covering is not None else 0

    def _holdings(self, found: Mapping[bytes, Held]) -> Holdings:
        """What was found on the disk, and what it is for at this very moment: more may have become final meanwhile."""
        self._follow_final()
        since_s = self._runner.clock.now_ms() / 1000 - FRESH_S
        loose = (blob for blob, held in found.items() if not (held.is_whole and blob in self._decided))
        fresh = {blob for blob in loose if found[blob].changed_at_s > since_s}
        return Holdings(
            sizes={blob: held.num_bytes for blob, held in found.items()},
            needed=fresh.union(self._needed()),
            decided={blob: slot for blob, (slot, _) in self._decided.items()},
            covered_slot=self._covered_slot(),
            snapshot_bytes=self._snapshot_bytes(),
        )

    def _needed(self) -> Iterable[bytes]:
        """What is above the final checkpoint or may still be accepted, snapshots served here, and the base."""
        state, tree, base = self._state, self._state.tree, self._genesis.base
        yield from (entry.blob.id for entry in (*base.files, *base.weight_files))
        yield from (snapshot.blob.id for snapshot in self._own)
        yield from (each.blob.id for each in (self._covering(), state.arrival.sought) if each is not None)
        yield from (candidate.contribution.blob.id for candidate in list(state.candidates.values()))
        yield from (contribution.blob.id for contribution in self._own_waiting())
        stack = list(tree.nodes[tree.final.checkpoint].children)
        while stack:
            node = tree.nodes[stack.pop()]
            if node.checkpoint is not None:
                yield from (contribution.blob.id for contribution in contributions(node.checkpoint))
            stack.extend(node.children)

    def _own_waiting(self) -> Iterable[Contribution]:
        """Own contributions that nobody knows of yet: their author is about to be admitted."""
        for envelope in self._state.parked.waiting_for(ANY_HEAD):
            if envelope.type == wire.CONTRIBUTION and envelope.public_key == self._runner.key.public_key:
                yield open_contribution(envelope, self._genesis)

    def _remove(self, plan: Plan, holdings: Holdings) -> None:
        for blob in plan.remove:
            self._store.blobs.delete(blob)
        if plan.remove:
            freed = sum(holdings.sizes[blob] for blob in plan.remove)
            log.info("Removed %d old blobs (%d bytes) to stay within the disk limit.", len(plan.remove), freed)

    def _tell(self, plan: Plan, holdings: Holdings) -> None:
        if not plan.over_bytes or self.limit_bytes is None:
            self._runner.warnings.pop("disk", None)
            return
        self._runner.warnings["disk"] = (
            f"deltas and snapshots take {holdings.used_bytes / GIGABYTE:.3g} GB, "
            f"{plan.over_bytes / GIGABYTE:.3g} GB above limits.disk_gb, and none may be removed yet: "
            f"`fullrank config set limits.disk_gb {1.5 * holdings.used_bytes / GIGABYTE:.3g}` raises the limit"
        )


def disk_limit_bytes(config: Config) -> int | None:
    """Bytes that blobs may take; None: as many as there is room for."""
    gigabytes = config.limits.disk_gb
    if gigabytes is None:
        return None if config.archive else int(DEFAULT_DISK_GB * GIGABYTE)
    return int(gigabytes * GIGABYTE)
