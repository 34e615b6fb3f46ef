"""What the worker answers: is this delta acceptable, and which model do these deltas make of that one.

Verdicts are the same on every node: a delta is refused for what it says and for nothing else. A file that is
missing, unreadable or not what its name promises is this node's own trouble, a NodeError.

Requests and answers are JSON: ids, keys and hashes in hex, numbers m * 2^e as [m, e], models as manifests
(tensor name to SHA-256). Protocol sections 6 and 7.
"""

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fullrank_node.child_side import Handler, Params, Progress
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.model.master import TILE_ELEMENTS, MasterStore, manifest_digest
from fullrank_node.model.snapshot import apply_snapshot, write_snapshot
from fullrank_protocol.blob import blob_ref
from fullrank_protocol.codec import decode
from fullrank_protocol.delta import Delta, SeedContext, expand
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Genesis, open_genesis
from fullrank_protocol.gram import gram, require_norm
from fullrank_protocol.parts import Dense, LowRank
from fullrank_protocol.state import plan_update
from fullrank_protocol.weights import Entry, PastUpdate, weigh

CACHE_BYTES = 256 << 20
"""Decoded deltas kept between a check and the merges that follow: a cohort of 64 at rank 16 of a 600 M model."""

KEPT_MERGES = 4
"""Merges that a delta may stay unused before it is forgotten: a fork, or the next proposer, asks for it soon."""

_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


class Recompute:
    """The handlers, with the genesis and the newest deltas in memory."""

    def __init__(self, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._genesis: tuple[tuple[str, int], Genesis] | None = None
        self._deltas = DeltaCache(max_bytes=cache_bytes)

    def handlers(self) -> dict[str, Handler]:
        """Method names of the child's protocol."""
        return {
            "check_delta": self.check_delta,
            "recompute": self.recompute,
            "measure_rank": self.measure_rank,
            "estimate_rank": self.estimate_rank,
            "make_snapshot": self.make_snapshot,
            "apply_snapshot": self.apply_snapshot,
        }

    def check_delta(self, params: Params, _progress: Progress) -> dict[str, Any]:
        """Decodes one delta against the genesis.

        {genesis_path, blob_path, codec, member, period} -> {ok, rule, detail, norm}: rule 0 and no detail when ok;
        norm is the Frobenius norm of the change.

        Raises:
            NodeError: Genesis or blob cannot be read.
        """
        genesis = self._read_genesis(params["genesis_path"])
        try:
            delta = self._deltas.decode(params, genesis)
            norm = math.sqrt(require_norm(delta, genesis.modules))
        except RejectError as error:
            return {"ok": False, "rule": int(error.rule), "detail": error.detail, "norm": 0.0}
        return {"ok": True, "rule": 0, "detail": "", "norm": norm}

    def recompute(self, params: Params, progress: Progress) -> dict[str, Any]:
        """Weighs contributions and applies them to the parent's masters; the new masters are durable on return.

        {genesis_path, masters_dir, parent_manifest, entries: [{contribution_id, member, num_tokens, staleness,
        stranger, blob_path, codec, period}], trailing: [{full_norm, breadth}], threads?, tile_elements?}
        -> {contribution_ids, weights, update_norm, manifest, digest, refused: [{contribution_id, rule, detail}]}

        An entry that is refused is left out of the merge; `weights` go with `contribution_ids`, both in the order
        of the entries. Every master that is changed is hashed as it is read.

        Raises:
            RejectError: NON_FINITE: these contributions make no model, on any machine.
            NodeError: A master or blob is missing or damaged, or the disk is full.
        """
        genesis = self._read_genesis(params["genesis_path"])
        masters = MasterStore(Path(params["masters_dir"]))
        manifest: dict[str, str] = dict(params["parent_manifest"])
        _check_masters(masters, manifest, genesis)

        accepted: list[Mapping[str, Any]] = []
        deltas: list[Delta] = []
        refused: list[dict[str, Any]] = []
        threads = int(params.get("threads") or 1)
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda entry: self._delta_or_fault(entry, genesis), params["entries"])
            for number, (entry, delta) in enumerate(zip(params["entries"], found, strict=True), start=1):
                if isinstance(delta, RejectError):
                    fault = {"rule": int(delta.rule), "detail": delta.detail}
                    refused.append({"contribution_id": entry["contribution_id"], **fault})
                else:
                    accepted.append(entry)
                    deltas.append(delta)
                progress(stage="decode", step=number, of=len(params["entries"]))

            self._deltas.end_merge()
            progress(stage="weigh")
            entries = [_entry(entry) for entry in accepted]
            trailing = [PastUpdate(**past) for past in params["trailing"]]
            products = gram(deltas, genesis.modules, each=pool.map)
            result = weigh(entries, products, genesis.rule, trailing)

        progress(stage="apply")
        manifest = masters.apply(
            manifest,
            plan_update(deltas, result.weights, genesis.modules),
            threads=threads,
            tile_elements=int(params.get("tile_elements") or TILE_ELEMENTS),
        )
        return {
            "contribution_ids": [entry["contribution_id"] for entry in accepted],
            "weights": [[weight.mantissa, weight.exponent] for weight in result.weights],
            "update_norm": [result.update_norm.mantissa, result.update_norm.exponent],
            "manifest": manifest,
            "digest": manifest_digest(manifest).hex(),
            "refused": refused,
        }

    def measure_rank(self, params: Params, _progress: Progress) -> dict[str, Any]:
        """Ranks of the change between two models, for people.

        {genesis_path, masters_dir, before, after, num_rounds?} -> the report of `model.rank`.

        Raises:
            NodeError: A master is missing.
        """
        from fullrank_node.model.rank import measure_rank, opener, shapes_of

        genesis = self._read_genesis(params["genesis_path"])
        masters, shapes = MasterStore(Path(params["masters_dir"])), shapes_of(genesis.modules)
        return measure_rank(
            genesis.modules,
            opener(masters.open, params["before"], shapes),
            opener(masters.open, params["after"], shapes),
            num_rounds=int(params.get("num_rounds") or 1),
        ).to_json()

    def estimate_rank(self, params: Params, _progress: Progress) -> dict[str, Any]:
        """Effective rank of the change of one matrix, at little cost. What is read is hashed: it may be damaged.

        {masters_dir, name, shape, before, after} -> {effective}: before and after are SHA-256.

        Raises:
            NodeError: A master is missing or damaged.
        """
        from fullrank_node.model.rank_estimate import estimated_effective_rank

        masters, name = MasterStore(Path(params["masters_dir"])), str(params["name"])
        out_features, in_features = params["shape"]
        update = masters.read(params["after"], (out_features, in_features), name=name)
        update -= masters.read(params["before"], (out_features, in_features), name=name)
        return {"effective": estimated_effective_rank(update)}

    def make_snapshot(self, params: Params, progress: Progress) -> dict[str, Any]:
        """Writes a model as what has changed in the bits of the base.

        {genesis_path, masters_dir, base_manifest, manifest, out_path} -> {num_bytes}

        Raises:
            NodeError: A master is missing, or the disk is full.
        """
        genesis = self._read_genesis(params["genesis_path"])
        num_bytes = write_snapshot(
            genesis.modules,
            MasterStore(Path(params["masters_dir"])),
            base=params["base_manifest"],
            manifest=params["manifest"],
            path=Path(params["out_path"]),
            on_module=lambda done: progress(stage="module", step=done, of=len(genesis.modules)),
        )
        return {"num_bytes": num_bytes}

    def apply_snapshot(self, params: Params, progress: Progress) -> dict[str, Any]:
        """Writes the masters that a snapshot makes of the base, if they have the digest required.

        {genesis_path, masters_dir, base_manifest, blob_path, digest} -> {manifest}

        Raises:
            RejectError: CODEC or DIGEST: it is not what its author said.
            NodeError: Blob or master is missing, or the disk is full.
        """
        genesis = self._read_genesis(params["genesis_path"])
        try:
            manifest = apply_snapshot(
                genesis.modules,
                MasterStore(Path(params["masters_dir"])),
                base=params["base_manifest"],
                path=Path(params["blob_path"]),
                digest=bytes.fromhex(params["digest"]),
                on_module=lambda done: progress(stage="module", step=done, of=len(genesis.modules)),
            )
        except FileNotFoundError as error:
            raise NodeError(f"the snapshot cannot be read: {error}", exit_code=ExitCode.RETRY) from error
        return {"manifest": manifest}

    def _delta_or_fault(self, entry: Mapping[str, Any], genesis: Genesis) -> Delta | RejectError:
        try:
            delta = self._deltas.decode(entry, genesis)
            require_norm(delta, genesis.modules)
        except RejectError as error:
            return error
        return delta

    def _read_genesis(self, path: str) -> Genesis:
        try:
            key = path, Path(path).stat().st_mtime_ns
            if self._genesis is None or self._genesis[0] != key:
                self._genesis = key, open_genesis(Path(path).read_bytes())
        except (OSError, RejectError) as error:
            raise NodeError(
                f"the genesis {path} cannot be read: {error}",
                hint="Put the file back, or join the swarm again with its link.",
                exit_code=ExitCode.DISK,
            ) from error
        return self._genesis[1]


class DeltaCache:
    """Decoded deltas, expanded, the least recently used forgotten first. Refusals are not kept: they are rare.

    What the last few merges did not need goes, too: otherwise a worker would grow for hours, up to its limit.
    Several threads may decode at a time.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._num_merges = 0
        self._lock = threading.Lock()
        self._deltas: OrderedDict[tuple[object, ...], tuple[Delta, int]] = OrderedDict()

    def decode(self, request: Mapping[str, Any], genesis: Genesis) -> Delta:
        """The delta that {blob_path, codec, member, period} names, with every seeded A drawn.

        Raises:
            RejectError: The bytes are no acceptable delta of this swarm.
            NodeError: The file is missing, unreadable or damaged.
        """
        path, codec = Path(request["blob_path"]), int(request["codec"])
        key = (genesis.swarm, str(path), codec, request["member"], request["period"])
        with self._lock:
            known = self._deltas.get(key)
        if known is not None:
            delta, _ = known
        else:
            context = SeedContext(
                swarm=genesis.swarm, member=bytes.fromhex(request["member"]), period=int(request["period"])
            )
            data = _read_blob(path, genesis.limits.max_delta_bytes)
            delta = expand(decode(data, genesis, codec), context, genesis.modules)
        with self._lock:
            if key not in self._deltas:
                self._num_bytes += _size(delta)
            self._deltas[key] = delta, self._num_merges
            self._deltas.move_to_end(key)
            while self._num_bytes > self._max_bytes and len(self._deltas) > 1:
                self._forget_oldest()
        return delta

    def end_merge(self) -> None:
        """Forget what this merge and the ones before it did not need."""
        with self._lock:
            self._num_merges += 1
            while self._deltas and next(iter(self._deltas.values()))[1] < self._num_merges - KEPT_MERGES:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, (delta, _) = self._deltas.popitem(last=False)
        self._num_bytes -= _size(delta)


def _read_blob(path: Path, max_bytes: int) -> bytes:
    """The blob's bytes, checked against the id that its file is named by."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise RejectError(Rule.SIZE, f"found a delta of {size} bytes, required at most {max_bytes}")
        data = path.read_bytes()
    except OSError as error:
        raise NodeError(
            f"the blob {path} cannot be read: {error.strerror}",
            hint="It is fetched from the peers again.",
            exit_code=ExitCode.RETRY,
        ) from error
    if _BLOB_NAME.fullmatch(path.name) and blob_ref(data).id.hex() != path.name:
        raise NodeError(
            f"the blob {path} is damaged: it does not hash to its name",
            hint="Delete the file: it is fetched from the peers again.",
            exit_code=ExitCode.DISK,
        )
    return data


def _check_masters(masters: MasterStore, manifest: Mapping[str, str], genesis: Genesis) -> None:
    names = [module.name for module in genesis.modules]
    if sorted(manifest) != names:
        raise ValueError(f"found a manifest of {len(manifest)} tensors, required the {len(names)} of the genesis")
    for module in genesis.modules:
        masters.open(manifest[module.name], (module.out_features, module.in_features), name=module.name)


def _entry(entry: Mapping[str, Any]) -> Entry:
    return Entry(
        contribution_id=bytes.fromhex(entry["contribution_id"]),
        member=bytes.fromhex(entry["member"]),
        num_tokens=int(entry["num_tokens"]),
        staleness=int(entry["staleness"]),
        stranger=bool(entry["stranger"]),
    )


def _size(delta: Delta) -> int:
    return sum(_part_size(part) for part in delta.parts)


def _part_size(part: LowRank | Dense) -> int:
    if isinstance(part, Dense):
        return part.values_O.nbytes
    return part.B_OR.nbytes + (0 if part.A_RI is None else part.A_RI.nbytes)
