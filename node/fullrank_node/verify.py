"""Verify a swarm: replay its signed log from the base, with nothing believed but signatures.

The log is that of a node on this machine, of an earlier pull, or fetched by a link. Where deltas are gone it is
replayed from a certified snapshot on, and the report says so (protocol section 12).
"""

import asyncio
import contextlib
import shutil
from pathlib import Path

from fullrank_node.clock import SystemClock
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.exporting import exported_digest
from fullrank_node.files import write_atomically
from fullrank_node.following import (
    Way,
    catch_up,
    follower,
    following,
    genesis_of,
    is_link,
    known_base,
    pull_home,
    read_target,
    require_pinned,
)
from fullrank_node.home import Home
from fullrank_node.merger import Merger, MergeRejectedError
from fullrank_node.model.export.provenance import PROVENANCE_NAME, read_provenance
from fullrank_node.model.master import MasterStore
from fullrank_node.network.interface import BlobUnavailable
from fullrank_node.operations import Progress, VerifyReport
from fullrank_node.replay import apply_start, find_start, first_mismatch, hold_blobs
from fullrank_node.restoring import restored_state
from fullrank_node.runner import Runner
from fullrank_node.standing import Standing, standing_of
from fullrank_node.store import Store
from fullrank_protocol.checkpoint import contributions
from fullrank_protocol.genesis import Genesis

HOLD_ATTEMPTS = 3
"""How often a replay tries to keep hold of the deltas it reads while a daemon on the same home removes old ones."""


async def verify(home: Home, target: str, *, base: Path | None, progress: Progress) -> VerifyReport:
    """Replay the signed log from the base, with nothing believed but signatures.

    Args:
        home: Where the log is.
        target: A directory made by `pull`, a link, or empty for the swarm of the home itself.
        base: Directory of the base model, where it is known.
        progress: Told what is being done.

    Raises:
        NodeError: There is no log to replay, or the target is neither a model nor a link.
    """
    if target and not is_link(target):
        return await _verify_export(home, Path(target), base=base, progress=progress)
    if target:
        link = read_target(target)
        way = Way(prefers_replay=True)
        async with following(home, link, base=base, progress=progress, way=way) as (follower, runner):
            await catch_up(runner, progress=progress)
            require_pinned(link, runner.state.tree)
            await _fetch_missing(runner, follower.store, progress=progress)
        return await _replay(pull_home(home, link.swarm), base=base, progress=progress)
    return await _replay(home, base=base, progress=progress)


async def _verify_export(home: Home, directory: Path, *, base: Path | None, progress: Progress) -> VerifyReport:
    """Whether a model is what it says, and what it says is what the log gives."""
    await asyncio.to_thread(_require_export, directory)
    record = read_provenance(directory)
    place = _log_of(home, bytes.fromhex(str(record["swarm"])))
    claim = bytes.fromhex(str(record["checkpoint"]))
    found = await asyncio.to_thread(exported_digest, directory, record)
    required = str(record["model_digest"])
    known = ""
    if found is not None and found.hex() != required:
        known = f"the model in {directory} has digest {found.hex()}, its {PROVENANCE_NAME} says {required}"
    return await _replay(place, base=base, progress=progress, upto=claim, known=known)


async def _fetch_missing(runner: Runner, store: Store, *, progress: Progress) -> None:
    """Fetch the deltas of the final chain that are not here, as far as anybody has them: to replay from the base."""
    assert runner.network is not None
    tree, network = runner.state.tree, runner.network
    chain = (node.checkpoint for node in tree.chain(tree.final.checkpoint))
    wanted = [each for checkpoint in chain if checkpoint is not None for each in contributions(checkpoint)]
    missing = [each for each in wanted if not store.blobs.has(each.blob.id)]
    for number, contribution in enumerate(missing):
        progress("fetching old deltas", done=number, total=len(missing))
        providers = [*runner.exchange.archives, contribution.member]
        try:
            await network.fetch_blob(contribution.blob, providers=providers, blobs=store.blobs)
        except BlobUnavailable:
            return  # One is enough: the replay has to start above it.


async def _replay(
    place: Home, *, base: Path | None, progress: Progress, upto: bytes | None = None, known: str = ""
) -> VerifyReport:
    """Recompute everything in the log of a home, in a scratch directory for the masters."""
    genesis = genesis_of(place)
    with contextlib.ExitStack() as stack, Store(place, readonly=True) as log:
        scratch = Home(place.work_dir / "verify")
        if scratch.is_locked():
            raise NodeError(
                f"{place.path} is being verified already",
                hint="Wait for the other `fullrank verify` to end.",
                exit_code=ExitCode.RETRY,
            )
        scratch.create()
        stack.callback(shutil.rmtree, scratch.path, ignore_errors=True)
        stack.enter_context(scratch.locked())
        write_atomically(scratch.genesis_file, genesis.envelope.encode())
        async with follower(
            scratch, genesis, bytes(32), base=base or known_base(log), network=None, progress=progress
        ) as made:
            state = restored_state(
                genesis,
                log,
                key=bytes(32),
                base_digest=made.base.digest,
                trust_verdicts=False,
                now_ms=SystemClock().now_ms(),
            )
            tree = state.tree
            final = upto or log.final() or genesis.swarm
            if final not in tree.nodes:
                known = known or f"the log does not hold checkpoint {final.hex()[:12]}"
                final = genesis.swarm
            chain = [node.checkpoint for node in tree.chain(final) if node.checkpoint is not None]
            merger = Merger(home=scratch, store=made.store, genesis=genesis, worker=made.merger.worker, threads=None)
            manifest, digest = made.base.manifest, made.base.digest
            notes: tuple[str, ...] = ()
            start = find_start(log, tree, chain)
            for _ in range(HOLD_ATTEMPTS):
                if await asyncio.to_thread(hold_blobs, log, chain, start, made.store.blobs):
                    break
                start = find_start(log, tree, chain)
            if start is not None and not known:
                progress("applying a snapshot")
                try:
                    manifest = await apply_start(start, made.store, merger, tree, base=manifest)
                except MergeRejectedError as error:
                    known = f"the snapshot of slot {start.slot}: {error.detail}"
                else:
                    digest = tree.state(start.checkpoint).model_digest
                    tree.believe(start.checkpoint)
                    skipped = tree.state(start.checkpoint).round
                    chain = [checkpoint for checkpoint in chain if checkpoint.slot > start.slot]
                    notes = (
                        f"Deltas up to round {skipped} are not all here: replayed from a certified snapshot of it "
                        "on, whose weights have the digest that the certifiers voted for. What lies below it is "
                        "believed, not recomputed; an archive node's log can be verified from the base.",
                    )
            mismatch = known or await first_mismatch(
                tree,
                chain,
                merger,
                MasterStore(scratch.masters_dir),
                base_manifest=manifest,
                base_digest=digest,
                on_checkpoint=lambda done: progress("replaying", done=done, total=len(chain)),
            )
        end = tree.state(final)
        standing = Standing.FINAL if tree.is_final(end) else _standing_in(log, genesis, final, made.base.digest)
        return VerifyReport(
            swarm_name=genesis.name,
            swarm=genesis.swarm,
            checkpoints=len(chain),
            contributions=sum(len(checkpoint.accepted) for checkpoint in chain),
            round=end.round,
            digest=end.model_digest or made.base.digest,
            final=standing is Standing.FINAL,
            standing=standing,
            mismatch=mismatch,
            notes=notes,
        )


def _standing_in(log: Store, genesis: Genesis, checkpoint: bytes, base_digest: bytes) -> Standing:
    """How sure a checkpoint was when the log ended, by the votes in it: a replay looks no further than it."""
    now_ms = SystemClock().now_ms()
    tree = restored_state(genesis, log, key=bytes(32), base_digest=base_digest, now_ms=now_ms).tree
    at = tree.lookup(checkpoint)
    return standing_of(tree, at, slot=tree.head().slot + 1) if at is not None else Standing.NOT_FINAL


def _log_of(home: Home, swarm: bytes) -> Home:
    """Where the log of a swarm lies: the node's own home, or what was pulled."""
    if home.genesis_file.exists() and genesis_of(home).swarm == swarm:
        return home
    place = pull_home(home, swarm)
    if not place.genesis_file.exists():
        raise NodeError(
            f"the log of swarm {swarm.hex()[:12]} is not in {home.path}",
            hint="Use the --home that the model was pulled with, or give a link: `fullrank verify LINK`.",
            exit_code=ExitCode.CONFIG,
        )
    return place


def _require_export(directory: Path) -> None:
    """Raises NodeError, with what to do instead, unless the directory holds what `pull` wrote."""
    if (directory / PROVENANCE_NAME).is_file():
        return
    hint = "Give a directory that `fullrank pull` wrote, or a swarm's link (it begins with fullrank:)."
    if not directory.exists():
        raise NodeError(
            f"{directory} is no swarm's link, and there is no such directory", hint=hint, exit_code=ExitCode.USAGE
        )
    if Home(directory).genesis_file.exists():
        raise NodeError(
            f"{directory} is the home of a node, and no model that `fullrank pull` wrote",
            hint=f"Verify that node's log with `fullrank verify --home {directory}`.",
            exit_code=ExitCode.USAGE,
        )
    what = "holds no model that `fullrank pull` wrote" if directory.is_dir() else "is no directory"
    missing = f": there is no {PROVENANCE_NAME} in it" if directory.is_dir() else ""
    raise NodeError(f"{directory} {what}{missing}", hint=hint, exit_code=ExitCode.USAGE)
