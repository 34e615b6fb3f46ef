"""Replays a signed log from the base and names the first thing that does not agree."""

from collections.abc import Callable

from fullrank_node.errors import NodeError
from fullrank_node.masters import merge_request
from fullrank_node.merger import Merger, MergeRejectedError
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.verifying import judge_numbers


async def first_mismatch(
    tree: Tree,
    checkpoints: list[Checkpoint],
    merger: Merger,
    *,
    base_manifest: dict[str, str],
    base_digest: bytes,
    on_checkpoint: Callable[[int], None],
) -> str:
    """Recompute a chain from the genesis; empty when every weight, norm and digest agrees.

    Args:
        tree: Holds every checkpoint of the chain, placed: signatures, membership, votes and order hold already.
        checkpoints: The chain, oldest first.
        merger: Has every delta of the chain in its store.
        base_manifest: Masters of the genesis.
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
        tree.set_verdict(checkpoint.id, holds=True)
        on_checkpoint(number)
    return ""
