"""Checks and merges deltas in the worker process, and knows which master files are which checkpoint.

The worker is numpy alone, so the daemon's loop never waits for arithmetic. A checkpoint whose manifest
is not kept any more is made again from the nearest ancestor that has one.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fullrank_node.child import ChildDiedError, ChildFailedError, ChildProcess, OnProgress
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home
from fullrank_node.model.rank_estimate import Sample
from fullrank_node.store import Store
from fullrank_node.training.neighbours import shared_threads
from fullrank_protocol.contribution import Contribution
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.round_io import Merge, Merged, MergeEntry, MergeKey
from fullrank_protocol.scaled import Scaled

CHECK_TIMEOUT_S = 120.0
"""Decoding one delta of the largest size takes seconds; a worker that needs longer hangs and is restarted."""

MERGE_TIMEOUT_S = 1800.0
"""Merging 64 deltas into a model of several billion parameters on two cores takes minutes."""

RANK_TIMEOUT_S = 600.0
"""The largest matrix that is measured takes half a minute on one core."""

Manifest = Mapping[str, str]


class MergeRejectedError(Exception):
    """Every node finds the same fault in this merge."""

    def __init__(self, rule: Rule, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule
        self.detail = detail


class Merger:
    """The worker's view of one swarm."""

    def __init__(
        self, *, home: Home, store: Store, genesis: Genesis, worker: ChildProcess, threads: int | None
    ) -> None:
        self.home = home
        self._store = store
        self._genesis = genesis
        self.worker = worker
        self._threads = threads
        self._manifests: dict[MergeKey, dict[str, str]] = {}
        self._one_merge = asyncio.Lock()

    def period(self, base_round: int) -> int:
        """Number of the period in which a node keeps its A, for a base of this round (section 6)."""
        return base_round // self._genesis.training.period_rounds

    async def check(self, contribution: Contribution, *, base_round: int) -> tuple[Rule | None, str]:
        """Decode a delta whose blob is here; the rule it breaks, if any, with the numbers.

        Raises:
            NodeError: This node cannot tell (the file vanished, the worker died).
        """
        reply = await self._call(
            "check_delta",
            {
                "genesis_path": str(self.home.genesis_file),
                "blob_path": str(self._store.blobs.path(contribution.blob.id)),
                "codec": contribution.codec,
                "member": contribution.member.hex(),
                "period": self.period(base_round),
            },
            timeout_s=CHECK_TIMEOUT_S,
        )
        if reply["ok"]:
            return None, ""
        return Rule(reply["rule"]), str(reply["detail"])

    async def merge(self, request: Merge, *, parent_manifest: Manifest) -> Merged:
        """Weigh and apply; the new masters are whole on disk when this returns.

        Raises:
            MergeRejectedError: The merge itself is invalid, for everyone.
            NodeError: This node cannot carry it out now.
        """
        async with self._one_merge:
            reply = await self._call(
                "recompute",
                {
                    "genesis_path": str(self.home.genesis_file),
                    "masters_dir": str(self.home.masters_dir),
                    "parent_manifest": dict(parent_manifest),
                    "entries": [self._entry(entry) for entry in request.entries],
                    "trailing": [asdict(past) for past in request.trailing],
                    "threads": shared_threads(self._threads),
                },
                timeout_s=MERGE_TIMEOUT_S,
            )
        if reply.get("refused"):
            first = reply["refused"][0]
            raise MergeRejectedError(Rule(first["rule"]), str(first["detail"]))
        self._manifests[request.key] = dict(reply["manifest"])
        return Merged(
            key=request.key,
            weights=tuple(Scaled(mantissa=m, exponent=e) for m, e in reply["weights"]),
            update_norm=Scaled(mantissa=reply["update_norm"][0], exponent=reply["update_norm"][1]),
            model_digest=bytes.fromhex(reply["digest"]),
        )

    async def effective_rank(self, sample: Sample, before: Manifest, after: Manifest) -> float:
        """Mean effective rank of the accumulated update, by a sample of matrices (model.rank_estimate).

        One call a matrix: a merge that comes meanwhile waits for one of them only.

        Raises:
            NodeError: The worker failed, or master files are gone or damaged.
        """
        found: list[float] = []
        for matrix in sample.matrices:
            reply = await self._call(
                "estimate_rank",
                {
                    "masters_dir": str(self.home.masters_dir),
                    "name": matrix.name,
                    "shape": [matrix.out_features, matrix.in_features],
                    "before": before[matrix.name],
                    "after": after[matrix.name],
                },
                timeout_s=RANK_TIMEOUT_S,
            )
            found.append(float(reply["effective"]))
        return sample.mean(found)

    async def apply_snapshot(
        self, path: Path, *, base: Manifest, digest: bytes, on_module: Callable[[int], None]
    ) -> dict[str, str]:
        """The masters that a snapshot makes of the base, whole on disk when this returns: their manifest.

        Args:
            path: The blob.
            base: Masters of the genesis.
            digest: What the masters must give.
            on_module: Told how many modules are done.

        Raises:
            MergeRejectedError: It is no snapshot, or one of another model.
            NodeError: This node cannot tell (masters are missing, the disk is full, the worker died).
        """
        async with self._one_merge:
            reply = await self._call(
                "apply_snapshot",
                {
                    "genesis_path": str(self.home.genesis_file),
                    "masters_dir": str(self.home.masters_dir),
                    "base_manifest": dict(base),
                    "blob_path": str(path),
                    "digest": digest.hex(),
                },
                timeout_s=MERGE_TIMEOUT_S,
                on_progress=lambda progress: on_module(int(progress["step"])),
            )
        return dict(reply["manifest"])

    def manifest_of(self, key: MergeKey) -> dict[str, str] | None:
        """Master files of a merge made since the start."""
        return self._manifests.get(key)

    def forget(self, *, keep: Iterable[MergeKey]) -> set[str]:
        """Drop the manifests of all merges but `keep`; the master files (SHA-256 hex) that those still name."""
        self._manifests = {key: self._manifests[key] for key in keep if key in self._manifests}
        return {sha256 for manifest in self._manifests.values() for sha256 in manifest.values()}

    def forget_files(self, spoilt: Set[str]) -> None:
        """Drop the manifests of all merges that name one of these master files (SHA-256 hex)."""
        self._manifests = {key: each for key, each in self._manifests.items() if spoilt.isdisjoint(each.values())}

    async def _call(
        self, method: str, params: dict[str, Any], *, timeout_s: float, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        try:
            return await self.worker.call(method, params, timeout_s=timeout_s, on_progress=on_progress)
        except RejectError as error:
            raise MergeRejectedError(error.rule, error.detail) from error
        except (ChildDiedError, ChildFailedError, TimeoutError) as error:
            raise NodeError(
                f"the worker failed at {method}: {error or 'no answer in time'}",
                hint="See `fullrank logs`; the daemon tries again by itself.",
                exit_code=ExitCode.RETRY,
            ) from error

    def _entry(self, entry: MergeEntry) -> dict[str, Any]:
        contribution = entry.contribution
        return {
            "contribution_id": contribution.id.hex(),
            "member": contribution.member.hex(),
            "num_tokens": contribution.num_tokens,
            "staleness": entry.staleness,
            "stranger": entry.stranger,
            "blob_path": str(self._store.blobs.path(contribution.blob.id)),
            "codec": contribution.codec,
            "period": self.period(entry.base_round),
        }
