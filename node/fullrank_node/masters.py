"""Which float32 masters are kept, and how missing or damaged ones are made again.

Kept are those of the genesis, of the final checkpoint and of the newest above it. The masters of any
other checkpoint are replayed from the nearest ancestor that still has them: the deltas are in the store, or
at peers. Whoever reads a master hashes it; a damaged one is forgotten here together with every checkpoint that
shares it, and made again: from a snapshot on this disk, from the log, and those of the genesis from the base.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Protocol, TypeVar

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.merger import Merger, MergeRejectedError
from fullrank_node.network.interface import BlobUnavailable, Network
from fullrank_node.restoring import stored_snapshots
from fullrank_node.store import Store
from fullrank_protocol.chain import contribution_staleness
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.membership import ROLE_CONTRIBUTE
from fullrank_protocol.round_io import Merge, MergeEntry, MergeKey
from fullrank_protocol.round_state import RoundState

log = logging.getLogger(__name__)

KEPT_NEWEST = 4
"""Checkpoints above the final one whose masters are kept: in a stall of days, there would be hundreds."""

T = TypeVar("T")


class MasterFiles(Protocol):
    """The files themselves (model.master.MasterStore)."""

    def verify(self, sha256: str) -> bool:
        """Whether the file is here and hashes to its name."""

    def discard(self, sha256: str) -> None:
        """Delete one file, if it is there."""

    def collect(self, keep: set[str]) -> object:
        """Delete every file whose SHA-256 (hex) is not in `keep`."""


class Masters:
    """The masters of the checkpoints of one chain."""

    def __init__(
        self,
        *,
        store: Store,
        merger: Merger,
        files: MasterFiles,
        remake_base: Callable[[], Awaitable[dict[str, str]]] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            store: Knows the manifests and has the deltas.
            merger: Replays.
            files: The master files.
            remake_base: Writes the masters of the genesis again, from the base model.
        """
        self._store = store
        self._merger = merger
        self._files = files
        self._remake_base = remake_base
        self._kept: set[bytes] = set()
        self._making = asyncio.Lock()
        self._is_due = False
        self.network: Network | None = None

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
            NodeError: A replay does not give the digest that this node once found, or deltas are not to be had.
        """
        if (manifest := self._store.manifest(checkpoint)) is not None:
            return manifest
        async with self._making:
            remade_base = False
            while (manifest := self._store.manifest(checkpoint)) is None:
                if self._store.manifest(state.tree.root.id) is None:
                    await self._make_base(state.tree.root.id, again=remade_base)
                    remade_base = True
                await self._replay_to(checkpoint, state)
            return manifest

    async def using(self, checkpoint: bytes, state: RoundState, work: Callable[[dict[str, str]], Awaitable[T]]) -> T:
        """Do `work` with the manifest of a verified checkpoint; once more where its files turn out to be damaged.

        Raises:
            NodeError: Raised by `work` on whole masters, or they are not to be had.
        """
        manifest = await self.ensure(checkpoint, state)
        try:
            return await work(manifest)
        except NodeError:
            if not await self.drop_spoilt(manifest):
                raise
        return await work(await self.ensure(checkpoint, state))

    async def drop_spoilt(self, manifest: Mapping[str, str]) -> bool:
        """Hash all files of a manifest, and forget every checkpoint that has one which is damaged; True if any was."""
        spoilt: set[str] = set()
        for name, sha256 in manifest.items():
            if not await asyncio.to_thread(self._files.verify, sha256):
                log.warning("The weights of %s are damaged on this disk: they are made again from the log.", name)
                spoilt.add(sha256)
        if spoilt:
            whole = {key for key, each in self._store.manifests().items() if spoilt.isdisjoint(each.values())}
            self._store.forget_manifests(keep=whole)
            self._merger.forget_files(spoilt)
            for sha256 in spoilt:
                self._files.discard(sha256)
        return bool(spoilt)

    def collect(self, state: RoundState) -> None:
        """Delete masters that neither the genesis, the final checkpoint nor the newest above it need; now or soon."""
        self._is_due = True
        self.collect_if_due(state)

    def collect_if_due(self, state: RoundState, *, merged: MergeKey | None = None) -> None:
        """Make up for a collection that had to be put off.

        A merge under way writes files that no manifest names yet. On a slow machine there is always one when
        something becomes final, so whoever carries merges out asks again after each.

        Args:
            state: Of this node.
            merged: A merge that has just ended, of which `state` does not know yet.
        """
        is_writing = any(retry == 0 for key, retry in state.merging.items() if key != merged)
        # The masters of a snapshot are not named either while they are being written.
        if not self._is_due or is_writing or state.arrival.sought is not None:
            return
        self._is_due = False
        keep = self._needed(state)
        self._store.forget_manifests(keep=keep)
        merges = [*state.merges, *([merged] if merged is not None else [])]
        used = self._merger.forget(keep=[key for key in merges if key.parent in keep])
        used |= {sha256 for manifest in self._store.manifests().values() for sha256 in manifest.values()}
        self._files.collect(used)

    def _needed(self, state: RoundState) -> set[bytes]:
        tree = state.tree
        above: list[tuple[int, bytes]] = []
        stack = [*tree.nodes[tree.final.checkpoint].children]
        while stack:
            node = tree.nodes[stack.pop()]
            above.append((node.state.slot, node.state.id))
            stack.extend(node.children)
        newest = (checkpoint for _, checkpoint in sorted(above)[-KEPT_NEWEST:])
        keep = {tree.root.id, tree.final.checkpoint, tree.head().id, *self._kept, *newest}
        if state.training is not None:
            keep.add(state.training.checkpoint)
        if state.proposal is not None:
            keep.add(state.proposal.key.parent)
        return keep

    async def _make_base(self, genesis: bytes, *, again: bool) -> None:
        if self._remake_base is None or again:
            raise NodeError(
                "the masters of the base are missing or damaged",
                hint="Start the node again. Where that does not help, this disk does not keep what is written to it.",
                exit_code=ExitCode.DISK,
            )
        log.info("Making the weights of the base again.")
        self._store.put_manifest(genesis, await self._remake_base())

    async def _replay_to(self, checkpoint: bytes, state: RoundState) -> None:
        """Replay from the nearest ancestor that has masters; less far where those turn out to be damaged."""
        path: list[Checkpoint] = []
        cursor = checkpoint
        while (manifest := self._store.manifest(cursor)) is None:
            missing = state.tree.nodes[cursor].checkpoint
            assert missing is not None, "the masters of the genesis were made before"
            if (manifest := await self._from_snapshot(missing, state)) is not None:
                break
            path.append(missing)
            cursor = missing.parent
        for missing in reversed(path):
            log.info("Replaying slot %d to have its weights again.", missing.slot)
            if missing.accepted:
                try:
                    manifest = await self._replay(missing, manifest, state.tree)
                except NodeError:
                    if await self.drop_spoilt(manifest):
                        return
                    raise
            self._store.put_manifest(missing.id, manifest)

    async def _from_snapshot(self, checkpoint: Checkpoint, state: RoundState) -> dict[str, str] | None:
        """The masters that a snapshot on this disk gives; None where there is none that does."""
        blobs = self._store.blobs
        for snapshot in stored_snapshots(self._store, state.genesis):
            if snapshot.checkpoint != checkpoint.id:
                continue
            try:
                manifest = await self._merger.apply_snapshot(
                    blobs.path(snapshot.blob.id),
                    base=self._store.manifest(state.tree.root.id) or {},
                    digest=checkpoint.model_digest,
                    on_module=lambda _: None,
                )
            except (MergeRejectedError, NodeError) as error:
                log.info("The snapshot of slot %d is of no use here: %s", checkpoint.slot, error)
                continue
            self._store.put_manifest(checkpoint.id, manifest)
            return manifest
        return None

    async def _replay(self, checkpoint: Checkpoint, parent_manifest: dict[str, str], tree: Tree) -> dict[str, str]:
        request = merge_request(checkpoint, tree)
        await self._fetch_deltas(checkpoint)
        try:
            try:
                merged = await self._merger.merge(request, parent_manifest=parent_manifest)
            except NodeError:
                if not await self._drop_spoilt_deltas(checkpoint):
                    raise
                await self._fetch_deltas(checkpoint)
                merged = await self._merger.merge(request, parent_manifest=parent_manifest)
        except MergeRejectedError as error:
            raise NodeError(f"replaying slot {checkpoint.slot} failed: {error.detail}") from error
        manifest = self._merger.manifest_of(request.key)
        if merged.model_digest != checkpoint.model_digest or manifest is None:
            raise NodeError(
                f"replaying slot {checkpoint.slot} gave digest {merged.model_digest.hex()[:12]}, "
                f"its checkpoint says {checkpoint.model_digest.hex()[:12]}",
                hint="This machine calculates otherwise than it once did: run `fullrank doctor`.",
            )
        return manifest

    async def _drop_spoilt_deltas(self, checkpoint: Checkpoint) -> bool:
        """Delete deltas that are not what their names promise; True if there were any."""
        ids = [accepted.contribution.blob.id for accepted in checkpoint.accepted]
        for blob_id in ids:
            await asyncio.to_thread(self._store.blobs.drop_spoilt, blob_id)
        return not all(map(self._store.blobs.has, ids))

    async def _fetch_deltas(self, checkpoint: Checkpoint) -> None:
        """Have the deltas of a replay here; those that were removed or damaged come from peers again."""
        blobs = self._store.blobs
        for accepted in checkpoint.accepted:
            contribution = accepted.contribution
            if self.network is None or blobs.has(contribution.blob.id):
                continue
            providers = [contribution.member, checkpoint.proposer]
            try:
                await self.network.fetch_blob(contribution.blob, providers=providers, blobs=blobs)
            except BlobUnavailable as error:
                raise NodeError(
                    f"slot {checkpoint.slot} cannot be replayed: no peer has one of its deltas ({error})",
                    hint="Wait for an archive node, or join again with --base and the link.",
                    exit_code=ExitCode.RETRY,
                ) from error


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
    return Merge(key=key, entries=tuple(entries), trailing=parent.updates)
