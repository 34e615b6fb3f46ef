"""Replays a signed log and names the first thing that does not agree.

From the base, or, where deltas are gone, from the newest snapshot that every delta above it is there for.
"""

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fullrank_node.blob_store import BlobStore
from fullrank_node.errors import NodeError
from fullrank_node.files import disk_errors
from fullrank_node.masters import merge_request
from fullrank_node.merger import Merger, MergeRejectedError
from fullrank_node.model.master import MasterStore
from fullrank_node.restoring import stored_snapshots
from fullrank_node.store import Store
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.snapshot import Snapshot
from fullrank_protocol.verifying import judge_numbers


def find_start(log: Store, tree: Tree, chain: Sequence[Checkpoint]) -> Snapshot | None:
    """Where a replay has to start; None: at the base, because every delta is here, or because there is no other way.

    Args:
        log: Holds the deltas and perhaps a snapshot.
        tree: Holds the chain, and knows what votes have made final: only that may be believed.
        chain: What is to be replayed, oldest first.
    """
    gone = [c.slot for c in chain if any(not log.blobs.has(a.contribution.blob.id) for a in c.accepted)]
    if not gone:
        return None
    certified = {checkpoint.id for checkpoint in chain if tree.is_voted_final(tree.state(checkpoint.id))}
    fit = [
        snapshot
        for snapshot in stored_snapshots(log, tree.genesis)
        if snapshot.checkpoint in certified and snapshot.slot >= gone[-1]
    ]
    return min(fit, key=lambda snapshot: (snapshot.slot, snapshot.author), default=None)


def hold_blobs(log: Store, chain: Sequence[Checkpoint], start: Snapshot | None, into: BlobStore) -> bool:
    """Link what a replay reads into a directory of its own: a running daemon removes old deltas meanwhile.

    Returns:
        Whether all of it was still there; if not, the replay has to start higher.

    Raises:
        NodeError: The disk is full.
    """
    lowest = 0 if start is None else start.slot
    above = (checkpoint for checkpoint in chain if checkpoint.slot > lowest)
    needed = [accepted.contribution.blob.id for checkpoint in above for accepted in checkpoint.accepted]
    for blob_id in [*needed, *([] if start is None else [start.blob.id])]:
        if into.has(blob_id):
            continue
        try:
            _link(log.blobs.path(blob_id), into.path(blob_id))
        except FileNotFoundError:
            return False
    return True


def _link(source: Path, target: Path) -> None:
    """The same file by another name; a copy where the file system knows no such thing."""
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        with disk_errors(target.parent):
            shutil.copyfile(source, target)


async def apply_start(
    start: Snapshot, store: Store, merger: Merger, tree: Tree, *, base: Mapping[str, str]
) -> dict[str, str]:
    """The masters of the checkpoint at which a replay starts.

    Raises:
        MergeRejectedError: The snapshot does not give them.
        NodeError: It cannot be applied here.
    """
    digest = tree.state(start.checkpoint).model_digest
    return await merger.apply_snapshot(
        store.blobs.path(start.blob.id), base=base, digest=digest, on_module=lambda _done: None
    )


async def first_mismatch(
    tree: Tree,
    checkpoints: list[Checkpoint],
    merger: Merger,
    masters: MasterStore,
    *,
    base_manifest: dict[str, str],
    base_digest: bytes,
    on_checkpoint: Callable[[int], None],
) -> str:
    """Recompute a chain; empty when every weight, norm and digest agrees.

    The weights of what has been replayed are deleted on the way: a chain may be longer than the disk.

    Args:
        tree: Holds every checkpoint of the chain, placed: signatures, membership, votes and order hold already.
        checkpoints: The chain, oldest first.
        merger: Has every delta of the chain in its store.
        masters: Where it writes; nobody else uses them.
        base_manifest: Masters at its parent: of the genesis, or of a snapshot.
        base_digest: Their digest.
        on_checkpoint: Told how many have been replayed.
    """
    manifest, digest = base_manifest, base_digest
    for number, checkpoint in enumerate(checkpoints, 1):
        where = f"slot {checkpoint.slot}, round {checkpoint.round} ({checkpoint.id.hex()[:12]})"
        if not checkpoint.accepted:
            if checkpoint.model_digest != digest:
                return f"{where}: says digest {checkpoint.model_digest.hex()}, its parent has {digest.hex()}"
        else:
            request = merge_request(checkpoint, tree)
            try:
                merged = await merger.merge(request, parent_manifest=manifest)
            except MergeRejectedError as error:
                return f"{where}: {error.detail}"
            except NodeError as error:
                return f"{where}: cannot be recomputed: {error}"
            mismatch = judge_numbers(checkpoint, merged)
            if mismatch is not None:
                return f"{where}: {mismatch[1]}"
            manifest = merger.manifest_of(request.key) or {}
            digest = merged.model_digest
            merger.forget(keep=())
            await asyncio.to_thread(masters.collect, manifest.values())
        tree.set_verdict(checkpoint.id, holds=True)
        on_checkpoint(number)
    return ""
