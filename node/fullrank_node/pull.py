"""Pull the shared model, and verify it: anybody can, without membership and without a GPU.

A pull is a node that only follows: it fetches the chain and every delta from any peers, checks all
signatures and votes, recomputes every round from the base bit for bit, and exports what is final.
What it has fetched stays in the home, so that the next pull fetches only what is new.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from fullrank_node.addresses import parse_address
from fullrank_node.base_supply import BaseSupply
from fullrank_node.child import ChildProcess
from fullrank_node.clock import SystemClock
from fullrank_node.config import BaseSection, Config
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.exporting import exported_digest, write_model
from fullrank_node.files import write_atomically
from fullrank_node.founding import fetch_genesis, visiting_network, wait_for_peer
from fullrank_node.home import Home
from fullrank_node.identity_file import create_identity, load_identity
from fullrank_node.masters import Masters
from fullrank_node.merger import Merger, MergeRejectedError
from fullrank_node.model.export.provenance import PROVENANCE_NAME, read_provenance
from fullrank_node.model.master import MasterStore
from fullrank_node.network.interface import BlobUnavailable, Network
from fullrank_node.node_keys import BASE_DIGEST_KEY, BASE_DIR_KEY
from fullrank_node.operations import Progress, PullReport, VerifyReport
from fullrank_node.replay import apply_start, find_start, first_mismatch, hold_blobs
from fullrank_node.restoring import restored_state
from fullrank_node.runner import Runner
from fullrank_node.store import Store
from fullrank_node.training.driver import PreparedBase, TrainerDriver
from fullrank_protocol.chain import ChainState, Mark, is_ancestor
from fullrank_protocol.errors import ProtocolError
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.genesis import Genesis, open_genesis
from fullrank_protocol.link import Link, parse_link
from fullrank_protocol.verifying import contributions

STALL_S = 20.0
"""A pull that makes no progress for this long goes on with what it has: some peer claims more than it shows."""

POLL_S = 0.1

HOLD_ATTEMPTS = 3
"""How often a replay tries to keep hold of the deltas it reads while a daemon on the same home removes old ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """The parts of a node that only follows a swarm."""

    home: Home
    genesis: Genesis
    store: Store
    merger: Merger
    masters: Masters
    base: PreparedBase
    member: bytes


async def pull(
    home: Home,
    target: str,
    *,
    out: Path,
    format: str,  # noqa: A002 - the word people know
    round: int | None,  # noqa: A002 - the protocol's word
    base: Path | None,
    provisional: bool,
    progress: Progress,
) -> PullReport:
    """Write the newest final model (or that of a round) into `out`.

    Args:
        home: Where what was fetched is kept; with no target, the node whose own model is exported.
        target: Link of a swarm, or empty.
        out: Directory for the model; must be missing, empty, or an earlier pull.
        format: "hf" or "peft".
        round: That round; None for the newest.
        base: Directory of the base model, where it is known.
        provisional: Take the head although it is not final.
        progress: Told what is being done.

    Raises:
        NodeError: No peer answers, nothing is final yet, or the base is not to be had.
    """
    if not target:
        return await _export_own(home, out=out, form=format, number=round, provisional=provisional, progress=progress)
    link = read_target(target)
    way = Way(highest_round=round)
    async with _following(home, link, base=base, progress=progress, way=way) as (follower, runner):
        await _catch_up(runner, progress=progress)
        tree = runner.state.tree
        _require_pinned(link, tree)
        believed = runner.state.arrival.believed
        chosen = _choose(tree, number=round, provisional=provisional, believed=believed)
        manifest = await follower.masters.ensure(chosen.id, runner.state)
        progress("writing the model")
        report = await write_model(
            genesis=follower.genesis,
            store=follower.store,
            tree=tree,
            chosen=chosen,
            manifest=manifest,
            base_dir=follower.base.base_dir,
            base_digest=follower.base.digest,
            masters_dir=follower.home.masters_dir,
            out=out,
            form=format,
        )
    if believed is None:
        return report
    note = (
        f"Rounds up to {tree.state(believed.checkpoint).round} were not recomputed here but taken by a snapshot that "
        "gives the certified digest: `fullrank verify LINK` recomputes them, if their deltas can be had."
    )
    return replace(report, notes=(*report.notes, note))


async def verify(home: Home, target: str, *, base: Path | None, progress: Progress) -> VerifyReport:
    """Replay the signed log from the base, with nothing believed but signatures.

    Args:
        home: Where the log is.
        target: A directory made by `pull`, a link, or empty for the swarm of the home itself.
        base: Directory of the base model, where it is known.
        progress: Told what is being done.

    Raises:
        NodeError: There is no log to replay.
    """
    directory = Path(target)
    is_export = await asyncio.to_thread(_is_export, directory)
    if target and is_export:
        record = read_provenance(directory)
        place = _log_of(home, bytes.fromhex(str(record["swarm"])))
        claim = bytes.fromhex(str(record["checkpoint"]))
        found = await asyncio.to_thread(exported_digest, directory, record)
        required = str(record["model_digest"])
        if found is not None and found.hex() != required:
            return await _replay(
                place,
                base=base,
                progress=progress,
                upto=claim,
                known=f"the model in {directory} has digest {found.hex()}, its {PROVENANCE_NAME} says {required}",
            )
        return await _replay(place, base=base, progress=progress, upto=claim)
    if target:
        link = read_target(target)
        way = Way(prefers_replay=True)
        async with _following(home, link, base=base, progress=progress, way=way) as (follower, runner):
            await _catch_up(runner, progress=progress)
            await _fetch_missing(runner, follower.store, progress=progress)
        return await _replay(_log_of(home, link.swarm), base=base, progress=progress)
    return await _replay(home, base=base, progress=progress)


def read_target(target: str) -> Link:
    """The link that somebody typed.

    Raises:
        NodeError: It is none.
    """
    try:
        link = parse_link(target)
        for peer in link.peers:
            parse_address(peer)  # A link may name peers without their id; a connection needs it.
    except (ProtocolError, ValueError) as error:
        raise NodeError(
            f"this is no link: {error}",
            hint="A link begins with fullrank: and comes from `fullrank create` or `fullrank invite`. Quote it.",
            exit_code=ExitCode.USAGE,
        ) from error
    return link


# ---- following -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to arrive where a snapshot may be had (protocol section 12).

    Attributes:
        highest_round: No snapshot of a later round: that one is wanted.
        prefers_replay: A snapshot only where a delta is not to be had.
    """

    highest_round: int | None = None
    prefers_replay: bool = False


@contextlib.asynccontextmanager
async def _following(
    home: Home, link: Link, *, base: Path | None, progress: Progress, way: Way
) -> AsyncIterator[tuple[Follower, Runner]]:
    """A node that follows the link's swarm over the network, in a home of its own below `home`."""
    place = _pull_home(home, link.swarm)
    place.create()
    with place.locked():
        key = load_identity(place.identity_file) if place.exists() else create_identity(place.identity_file)
        async with visiting_network(place, key, link.swarm, peers=link.peers) as network:
            genesis = await _genesis(place, link, network, progress=progress)
            async with _follower(place, genesis, key.public_key, base=base, network=network, progress=progress) as made:
                state = restored_state(
                    genesis,
                    made.store,
                    key=key.public_key,
                    base_digest=made.base.digest,
                    now_ms=SystemClock().now_ms(),
                )
                state.arrival.highest_round = way.highest_round
                state.arrival.prefers_replay = way.prefers_replay
                state.arrival.pinned = link.final
                runner = Runner(
                    key=key,
                    genesis=genesis,
                    state=state,
                    store=made.store,
                    merger=made.merger,
                    masters=made.masters,
                    trainer=None,
                    clock=SystemClock(),
                )
                runner.attach(network)
                await wait_for_peer(network, progress=progress, tried=len(link.peers))
                life = asyncio.create_task(runner.run())
                try:
                    yield made, runner
                finally:
                    life.cancel()
                    await asyncio.gather(life, return_exceptions=True)


@contextlib.asynccontextmanager
async def _follower(
    place: Home, genesis: Genesis, member: bytes, *, base: Path | None, network: Network | None, progress: Progress
) -> AsyncIterator[Follower]:
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(Store(place))
        worker = await stack.enter_async_context(ChildProcess("fullrank_node.worker"))
        child = await stack.enter_async_context(ChildProcess("fullrank_node.training.trainer"))
        trainer = TrainerDriver(
            home=place,
            config=Config(base=BaseSection(path=base)),
            genesis=genesis,
            member=member,
            child=child,
            blobs=store.blobs,
            clock=SystemClock(),
            threads=None,
        )
        merger = Merger(home=place, store=store, genesis=genesis, worker=worker, threads=None)
        masters = Masters(store=store, merger=merger, files=MasterStore(place.masters_dir))
        if network is not None:
            supply = BaseSupply(home=place, given=base, genesis=genesis, store=store, network=network, trainer=trainer)
            prepared = await supply.prepare(on_phase=progress, attempts=3)
        else:
            progress("loading the base model")
            prepared = await trainer.prepare_base(base or _known_base(store))
        yield Follower(
            home=place, genesis=genesis, store=store, merger=merger, masters=masters, base=prepared, member=member
        )


async def _catch_up(runner: Runner, *, progress: Progress) -> None:
    """Return when everything the neighbours have told of is fetched and recomputed here."""
    loop = asyncio.get_running_loop()
    last_change, before = loop.time(), (0, 0, 0, (0, 0))
    while True:
        if runner.failure is not None:
            raise runner.failure
        tree, exchange = runner.state.tree, runner.exchange
        total, open_ = len(tree.nodes) - 1, len(runner.state.unverified)
        sought, moved = runner.state.arrival.sought, runner.snapshots.progress()
        if sought is None:
            progress("recomputing rounds", done=total - open_, total=total)
        else:
            progress("fetching a snapshot of the weights", done=moved[0], total=sought.blob.num_bytes)
        claimed = max(exchange.final_slots.values(), default=0)
        if exchange.synced.is_set() and not open_ and tree.final.slot >= claimed:
            return
        now = (total, open_, tree.final.slot, moved)
        if now != before:
            last_change, before = loop.time(), now
        if loop.time() - last_change > STALL_S:
            if tree.final.slot:
                return
            raise NodeError(
                "the swarm's chain could not be fetched: "
                + ("; ".join(runner.warnings.values()) or "peers are silent"),
                hint="Try again later; what has been fetched is kept.",
                exit_code=ExitCode.RETRY,
            )
        await asyncio.sleep(POLL_S)


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


async def _genesis(place: Home, link: Link, network: Network, *, progress: Progress) -> Genesis:
    """The genesis from an earlier pull, or from a peer."""
    if place.genesis_file.exists():
        with contextlib.suppress(ProtocolError):
            return open_genesis(place.genesis_file.read_bytes(), expect=link.swarm)
    genesis = await fetch_genesis(network, link, progress=progress)
    write_atomically(place.genesis_file, genesis.envelope.encode())
    return genesis


def _require_pinned(link: Link, tree: Tree) -> None:
    """A link may pin a final checkpoint: a chain without it is a forgery by keys of departed certifiers."""
    if link.final is None:
        return
    pinned = tree.lookup(link.final)
    final = tree.state(tree.final.checkpoint)
    if pinned is None or not is_ancestor(pinned.here, final, lookup=tree.lookup):
        raise NodeError(
            f"the chain that peers show does not contain the final checkpoint {link.final.hex()[:12]} of the link",
            hint="Do not use it. Ask the founder for a newer link over a way that you trust.",
            exit_code=ExitCode.PROTOCOL,
        )


def _choose(tree: Tree, *, number: int | None, provisional: bool, believed: Mark | None = None) -> ChainState:
    tip = tree.head() if provisional else tree.state(tree.final.checkpoint)
    if number is None:
        if tip.round == 0:
            raise NodeError(
                "no round of this swarm is final yet",
                hint="Wait for the first rounds, or take the unfinished head with --provisional.",
                exit_code=ExitCode.RETRY,
            )
        return tip
    lowest = believed.slot if believed is not None else 0  # Below, no weights are to be had; empty ones share them.
    marks = [node.state for node in tree.chain(tip.id, above_slot=lowest - 1) if node.state.round == number]
    if number == 0:
        return tree.root
    if not marks:
        raise NodeError(f"round {number} is not final: the newest final round is {tip.round}", exit_code=ExitCode.RETRY)
    return marks[0]


# ---- without a network -----------------------------------------------------------------------------


async def _export_own(
    home: Home, *, out: Path, form: str, number: int | None, provisional: bool, progress: Progress
) -> PullReport:
    """Export the model of a node on this machine, whether its daemon runs or not."""
    genesis = _genesis_of(home)
    with Store(home, readonly=True) as store:
        key = load_identity(home.identity_file)
        digest, directory = store.get_meta(BASE_DIGEST_KEY), store.get_meta(BASE_DIR_KEY)
        if digest is None or directory is None:
            raise NodeError("this node has not loaded its base model yet", exit_code=ExitCode.RETRY)
        state = restored_state(genesis, store, key=key.public_key, base_digest=digest, now_ms=SystemClock().now_ms())
        chosen = _choose(state.tree, number=number, provisional=provisional)
        manifest = store.manifest(chosen.id)
        if manifest is None:
            raise NodeError(
                f"this node keeps no weights of round {chosen.round} any more",
                hint="Pull that round by its link: `fullrank pull LINK --round N`.",
                exit_code=ExitCode.RETRY,
            )
        progress("writing the model")
        return await write_model(
            genesis=genesis,
            store=store,
            tree=state.tree,
            chosen=chosen,
            manifest=manifest,
            base_dir=Path(directory.decode()),
            base_digest=digest,
            masters_dir=home.masters_dir,
            out=out,
            form=form,
        )


async def _replay(
    place: Home, *, base: Path | None, progress: Progress, upto: bytes | None = None, known: str = ""
) -> VerifyReport:
    """Recompute everything in the log of a home, in a scratch directory for the masters."""
    genesis = _genesis_of(place)
    with contextlib.ExitStack() as stack, Store(place, readonly=True) as log:
        scratch = Home(place.work_dir / "verify")
        stack.callback(shutil.rmtree, scratch.blobs_dir, ignore_errors=True)  # Links: they would keep old deltas alive.
        scratch.create()
        write_atomically(scratch.genesis_file, genesis.envelope.encode())
        async with _follower(
            scratch, genesis, bytes(32), base=base or _known_base(log), network=None, progress=progress
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
            start = find_start(log, genesis, chain)
            for _ in range(HOLD_ATTEMPTS):
                if await asyncio.to_thread(hold_blobs, log, chain, start, made.store.blobs):
                    break
                start = find_start(log, genesis, chain)
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
                base_manifest=manifest,
                base_digest=digest,
                on_checkpoint=lambda done: progress("replaying", done=done, total=len(chain)),
            )
        end = tree.state(final)
        return VerifyReport(
            swarm_name=genesis.name,
            swarm=genesis.swarm,
            checkpoints=len(chain),
            contributions=sum(len(checkpoint.accepted) for checkpoint in chain),
            round=end.round,
            digest=end.model_digest or made.base.digest,
            final=_is_final(tree, end.here),
            mismatch=mismatch,
            notes=notes,
        )


def _is_final(tree: Tree, mark: Mark) -> bool:
    return tree.is_final(tree.state(mark.checkpoint))


def _known_base(store: Store) -> Path | None:
    directory = store.get_meta(BASE_DIR_KEY)
    return Path(directory.decode()) if directory is not None and Path(directory.decode()).is_dir() else None


def _pull_home(home: Home, swarm: bytes) -> Home:
    return Home(home.path / "pulls" / swarm.hex()[:16])


def _log_of(home: Home, swarm: bytes) -> Home:
    """Where the log of a swarm lies: the node's own home, or what was pulled."""
    if home.genesis_file.exists() and _genesis_of(home).swarm == swarm:
        return home
    place = _pull_home(home, swarm)
    if not place.genesis_file.exists():
        raise NodeError(
            f"the log of swarm {swarm.hex()[:12]} is not in {home.path}",
            hint="Use the --home that the model was pulled with, or give a link: `fullrank verify LINK`.",
            exit_code=ExitCode.CONFIG,
        )
    return place


def _genesis_of(home: Home) -> Genesis:
    try:
        return open_genesis(home.genesis_file.read_bytes())
    except FileNotFoundError as error:
        raise NodeError(
            f"{home.path} belongs to no swarm",
            hint="Give a link: `fullrank pull LINK -o DIR`, `fullrank verify LINK`.",
            exit_code=ExitCode.CONFIG,
        ) from error


def _is_export(directory: Path) -> bool:
    return (directory / PROVENANCE_NAME).is_file()
