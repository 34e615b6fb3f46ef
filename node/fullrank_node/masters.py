"""Which float32 masters are kept, and how missing ones are made again.

Kept are those of the genesis, of the final checkpoint and of everything above it. The masters of any
other checkpoint are replayed from the nearest ancestor that still has them: the deltas are in the store.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Protocol

from fullrank_node.errors import NodeError
from fullrank_node.merger import Merger, MergeRejectedError
from fullrank_node.store import Store
from fullrank_protocol.chain import contribution_staleness
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.membership import ROLE_CONTRIBUTE
from fullrank_protocol.round_io import Merge, MergeEntry, MergeKey
from fullrank_protocol.round_state import RoundState

log = logging.getLogger(__name__)


class MasterFiles(Protocol):
    """The files themselves (model.master.MasterStore)."""

    def collect(self, keep: set[str]) -> object:
        """Delete every file whose SHA-256 (hex) is not in `keep`."""


class Masters:
    """The masters of the checkpoints of one chain."""

    def __init__(self, *, store: Store, merger: Merger, files: MasterFiles) -> None:
        self._store = store
        self._merger = merger
        self._files = files
        self._kept: set[bytes] = set()

    @contextlib.contextmanager
    def kept(self, checkpoint: bytes) -> Iterator[None]:
        """Keep a checkpoint's masters while they are read by another process."""
        self._kept.add(checkpoint)
        try:
            yield
        finally:
            self._kept.discard(checkpoint)

    async def ensure(self, checkpoint: bytes, state: RoundState) -> dict[str, str]:
        """The manifest of a verified checkpoint, replayed if need be.

        Raises:
            NodeError: A replay does not give the digest that this node once found.
        """
        manifest = self._store.manifest(checkpoint)
        if manifest is not None:
            return manifest
        path: list[Checkpoint] = []
        cursor = checkpoint
        while (manifest := self._store.manifest(cursor)) is None:
            node = state.tree.nodes[cursor]
            if node.checkpoint is None:
                raise NodeError("the masters of the base are missing", hint="Run `fullrank verify` to rebuild them.")
            path.append(node.checkpoint)
            cursor = node.checkpoint.parent
        for missing in reversed(path):
            log.info("Replaying slot %d to have its weights again.", missing.slot)
            if missing.accepted:
                manifest = await self._replay(missing, manifest, state.tree)
            self._store.put_manifest(missing.id, manifest)
        return manifest

    def collect(self, state: RoundState) -> None:
        """Delete masters that neither the genesis, the final checkpoint nor anything above it needs."""
        tree = state.tree
        keep = {tree.root.id, tree.final.checkpoint, tree.head().id, *self._kept}
        stack = [tree.final.checkpoint]
        while stack:
            node = tree.nodes[stack.pop()]
            keep.add(node.state.id)
            stack.extend(node.children)
        if state.training is not None:
            keep.add(state.training.checkpoint)
        if state.arrival.sought is not None:  # Its masters are being written, and no manifest names them yet.
            return
        if state.proposal is not None or any(retry == 0 for retry in state.merging.values()):
            return
        self._store.forget_manifests(keep=keep)
        used = self._merger.forget(keep=state.merges)
        used |= {sha256 for manifest in self._store.manifests().values() for sha256 in manifest.values()}
        self._files.collect(used)

    async def _replay(self, checkpoint: Checkpoint, parent_manifest: dict[str, str], tree: Tree) -> dict[str, str]:
        request = merge_request(checkpoint, tree)
        try:
            merged = await self._merger.merge(request, parent_manifest=parent_manifest)
        except MergeRejectedError as error:
            raise NodeError(f"replaying slot {checkpoint.slot} failed: {error.detail}") from error
        manifest = self._merger.manifest_of(request.key)
        if merged.model_digest != checkpoint.model_digest or manifest is None:
            raise NodeError(
                f"replaying slot {checkpoint.slot} gave digest {merged.model_digest.hex()[:12]}, "
                f"its checkpoint says {checkpoint.model_digest.hex()[:12]}",
                hint="The base's masters or the deltas on this disk are damaged: run `fullrank verify`.",
            )
        return manifest


def merge_request(checkpoint: Checkpoint, tree: Tree) -> Merge:
    """What has to be merged onto the parent to get a normal checkpoint of the tree."""
    parent = tree.state(checkpoint.parent)
    entries = []
    for accepted in checkpoint.accepted:
        contribution = accepted.contribution
        staleness, _ = contribution_staleness(contribution, parent, genesis=tree.genesis, lookup=tree.lookup)
        entries.append(
            MergeEntry(
                contribution=contribution,
                staleness=staleness,
                stranger=not parent.members.may(contribution.member, ROLE_CONTRIBUTE),
                base_round=tree.state(contribution.base_checkpoint).round,
            )
        )
    key = MergeKey(parent=parent.id, contribution_ids=tuple(entry.contribution.id for entry in entries))
    return Merge(key=key, entries=tuple(entries), trailing_norms=parent.update_norms)
