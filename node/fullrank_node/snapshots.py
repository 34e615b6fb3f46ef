"""Fetches, applies and makes snapshots (protocol section 12).

Applying is resumable: the blob's chunks stay on disk, masters are immutable files, and the manifest is recorded
only when all of them are there and give the digest. A snapshot is made in a worker process of its own, so that
merges and votes do not wait for it.
"""

import asyncio
import logging
import math
from collections.abc import Callable

from fullrank_node.child import ChildDiedError, ChildFailedError, ChildProcess
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home
from fullrank_node.masters import Masters
from fullrank_node.merger import Merger, MergeRejectedError
from fullrank_node.network.interface import BlobUnavailable, Network
from fullrank_node.node_keys import verdict_key
from fullrank_node.store import Store
from fullrank_protocol import round_io as io
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.round_state import RoundState
from fullrank_protocol.snapshot import Snapshot, make_snapshot

log = logging.getLogger(__name__)

MAKE_TIMEOUT_S = 3600.0
"""A model of ten billion parameters takes about three minutes on one core."""

POLITENESS = 10
"""Niceness of the process that makes snapshots: nobody waits for it."""


class Snapshots:
    """The snapshots of one node."""

    def __init__(
        self,
        *,
        home: Home,
        key: SigningKey,
        genesis: Genesis,
        state: RoundState,
        store: Store,
        merger: Merger,
        masters: Masters,
        feed: Callable[[io.Event], None],
    ) -> None:
        self._home = home
        self._key = key
        self._genesis = genesis
        self._state = state
        self._store = store
        self._merger = merger
        self._masters = masters
        self._feed = feed
        self._modules_done = 0
        self.network: Network | None = None

    # ---- arriving by one ---------------------------------------------------------------------------

    async def fetch(self, action: io.FetchSnapshot) -> None:
        """Fetch the snapshot, apply it to the base, and tell the machine what came of it."""
        snapshot = action.snapshot
        log.info("Arriving by %s.", describe(action))
        self._modules_done = 0
        try:
            manifest = self._store.manifest(snapshot.checkpoint) or await self._apply(snapshot, action.model_digest)
        except BlobUnavailable as error:
            log.info("The snapshot is not to be had yet: %s", error)
            self._feed(io.SnapshotUnavailable(snapshot_id=snapshot.id))
        except NodeError as error:
            log.warning("The snapshot could not be applied here: %s %s", error, error.hint)
            self._feed(io.SnapshotUnavailable(snapshot_id=snapshot.id))
        except MergeRejectedError as error:
            self._store.set_meta(verdict_key(snapshot.id), b"\x00")
            self._feed(io.SnapshotRefused(snapshot_id=snapshot.id, rule=error.rule, detail=error.detail))
        else:
            self._store.put_manifest(snapshot.checkpoint, manifest)
            self._store.set_meta(verdict_key(snapshot.id), b"\x01")
            log.info("The snapshot of round %d holds: its weights have the digest of the checkpoint.", action.round)
            self._feed(io.SnapshotApplied(checkpoint=snapshot.checkpoint))

    def progress(self) -> tuple[int, int]:
        """Bytes fetched and modules applied of the snapshot that is sought: what moves while nothing else does."""
        sought = self._state.arrival.sought
        return (0 if sought is None else self._store.blobs.partial_bytes(sought.blob.id)), self._modules_done

    async def _apply(self, snapshot: Snapshot, digest: bytes) -> dict[str, str]:
        assert self.network is not None
        blobs = self._store.blobs
        if not blobs.has(snapshot.blob.id):
            others = (each.author for each in self._state.arrival.snapshots.values() if each.blob == snapshot.blob)
            await self.network.fetch_blob(snapshot.blob, providers=[snapshot.author, *others], blobs=blobs)
        try:
            return await self._merger.apply_snapshot(
                blobs.path(snapshot.blob.id),
                base=self._store.manifest(self._genesis.swarm) or {},
                digest=digest,
                on_module=self._note_module,
            )
        except MergeRejectedError:
            await asyncio.to_thread(blobs.drop_spoilt, snapshot.blob.id)
            if not blobs.has(snapshot.blob.id):
                raise NodeError("the snapshot was damaged on this disk", exit_code=ExitCode.RETRY) from None
            raise

    def _note_module(self, done: int) -> None:
        self._modules_done = done

    # ---- making one --------------------------------------------------------------------------------

    async def make(self) -> Snapshot | None:
        """Make a snapshot of the final checkpoint, keep its blob and tell everybody.

        None where nothing is final, or where this node was no member then: nobody would heed it.

        Raises:
            NodeError: The disk is full, or masters are missing.
        """
        tree = self._state.tree
        final, base = tree.final, self._store.manifest(self._genesis.swarm)
        manifest = self._store.manifest(final.checkpoint)
        is_member = tree.state(final.checkpoint).members.is_member(self._key.public_key)
        if not final.slot or not is_member or base is None or manifest is None:
            return None
        path = self._home.work_dir / f"snapshot-{final.checkpoint.hex()[:16]}"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._masters.kept(final.checkpoint):
            try:
                async with ChildProcess("fullrank_node.worker", nice=POLITENESS) as worker:
                    await worker.call(
                        "make_snapshot",
                        {
                            "genesis_path": str(self._home.genesis_file),
                            "masters_dir": str(self._home.masters_dir),
                            "base_manifest": base,
                            "manifest": manifest,
                            "out_path": str(path),
                        },
                        timeout_s=MAKE_TIMEOUT_S,
                        kill_on_cancel=True,
                    )
            except (ChildDiedError, ChildFailedError, TimeoutError) as error:
                raise NodeError(f"making a snapshot failed: {error or 'no answer in time'}") from error
        blob = await asyncio.to_thread(self._store.blobs.put_file, path)
        return self._announce(blob, checkpoint=final.checkpoint, slot=final.slot)

    def _announce(self, blob: BlobRef, *, checkpoint: bytes, slot: int) -> Snapshot:
        envelope = make_snapshot(self._key, swarm=self._genesis.swarm, checkpoint=checkpoint, slot=slot, blob=blob)
        self._store.set_meta(verdict_key(envelope.id), b"\x01")
        self._feed(io.ObjectReceived(envelope=envelope))
        log.info("Made a snapshot of slot %d for those who join late: %d bytes.", slot, blob.num_bytes)
        return Snapshot(
            author=self._key.public_key, checkpoint=checkpoint, slot=slot, blob=blob, codec=1, envelope=envelope
        )


def describe(action: io.FetchSnapshot) -> str:
    """The way that is taken and the one that is not, with their bytes."""
    snapshot = action.snapshot
    instead = f"{action.num_bytes:.0f} bytes" if math.isfinite(action.num_bytes) else "not all to be had"
    return (
        f"the snapshot of round {action.round}, slot {snapshot.slot}: {snapshot.blob.num_bytes} bytes "
        f"instead of {action.num_deltas} deltas ({instead})"
    )
