"""Follows a swarm without being a node of it: what pulling and verifying have in common.

A follower fetches the chain and every delta from any peers, checks all signatures and votes, and recomputes every
round from the base bit for bit, or from a snapshot where the protocol allows it (section 12). What it has fetched
stays in a home of its own, so that the next time fetches only what is new.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fullrank_node.addresses import parse_address
from fullrank_node.base_supply import BaseSupply
from fullrank_node.child import ChildProcess
from fullrank_node.clock import SystemClock
from fullrank_node.config import BaseSection, Config
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import write_atomically
from fullrank_node.founding import fetch_genesis, visiting_network, wait_for_peer
from fullrank_node.home import Home
from fullrank_node.identity_file import create_identity, load_identity
from fullrank_node.masters import Masters
from fullrank_node.merger import Merger
from fullrank_node.model.master import MasterStore
from fullrank_node.network.interface import Network
from fullrank_node.node_keys import BASE_DIR_KEY
from fullrank_node.operations import Progress
from fullrank_node.restoring import restored_state
from fullrank_node.runner import Runner
from fullrank_node.store import Store
from fullrank_node.training.driver import PreparedBase, TrainerDriver
from fullrank_protocol.chain import is_ancestor
from fullrank_protocol.errors import ProtocolError
from fullrank_protocol.fork_choice import Tree
from fullrank_protocol.genesis import Genesis, open_genesis
from fullrank_protocol.link import SCHEME, Link, parse_link

STALL_S = 20.0
"""A pull that makes no progress for this long goes on with what it has: some peer claims more than it shows."""

POLL_S = 0.1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to arrive where a snapshot may be had (protocol section 12).

    Attributes:
        highest_round: No snapshot of a later round: that one is wanted.
        prefers_replay: A snapshot only where a delta is not to be had.
    """

    highest_round: int | None = None
    prefers_replay: bool = False


def is_link(target: str) -> bool:
    """Whether what somebody typed is meant as a link, and not as a directory."""
    return target.strip().lower().startswith(SCHEME)


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


@contextlib.asynccontextmanager
async def following(
    home: Home, link: Link, *, base: Path | None, progress: Progress, way: Way
) -> AsyncIterator[tuple[Follower, Runner]]:
    """A node that follows the link's swarm over the network, in a home of its own below `home`."""
    place = pull_home(home, link.swarm)
    place.create()
    with place.locked():
        key = load_identity(place.identity_file) if place.exists() else create_identity(place.identity_file)
        async with visiting_network(place, key, link.swarm, peers=link.peers) as network:
            genesis = await _genesis(place, link, network, progress=progress)
            async with follower(place, genesis, key.public_key, base=base, network=network, progress=progress) as made:
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
async def follower(
    place: Home, genesis: Genesis, member: bytes, *, base: Path | None, network: Network | None, progress: Progress
) -> AsyncIterator[Follower]:
    """The parts of a node that follows, with the base model loaded.

    Args:
        place: Home of its store and masters; holds the genesis.
        genesis: Of the swarm.
        member: The node's public key; any 32 bytes without a network.
        base: Directory of the base model, where it is known.
        network: Where the base comes from when it is not here; None to do without.
        progress: Told what is being done.

    Raises:
        NodeError: The base is not to be had, or is another one.
    """
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
            prepared = await trainer.prepare_base(base or known_base(store))
        yield Follower(
            home=place, genesis=genesis, store=store, merger=merger, masters=masters, base=prepared, member=member
        )


async def catch_up(runner: Runner, *, progress: Progress) -> None:
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


async def _genesis(place: Home, link: Link, network: Network, *, progress: Progress) -> Genesis:
    """The genesis from an earlier pull, or from a peer."""
    if place.genesis_file.exists():
        with contextlib.suppress(ProtocolError):
            return open_genesis(place.genesis_file.read_bytes(), expect=link.swarm)
    genesis = await fetch_genesis(network, link, progress=progress)
    write_atomically(place.genesis_file, genesis.envelope.encode())
    return genesis


def require_pinned(link: Link, tree: Tree) -> None:
    """A link may pin a final checkpoint: a chain without it is a forgery by keys of departed certifiers.

    Raises:
        NodeError: The final chain does not contain it.
    """
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


# ---- where things lie --------------------------------------------------------------------------------


def pull_home(home: Home, swarm: bytes) -> Home:
    """Where what is fetched by a link is kept, below the home of whoever pulls."""
    return Home(home.path / "pulls" / swarm.hex()[:16])


def genesis_of(home: Home) -> Genesis:
    """The genesis of a home's swarm.

    Raises:
        NodeError: There is none.
    """
    try:
        return open_genesis(home.genesis_file.read_bytes())
    except FileNotFoundError as error:
        raise NodeError(
            f"{home.path} belongs to no swarm",
            hint="Give a link: `fullrank pull LINK -o DIR`, `fullrank verify LINK`.",
            exit_code=ExitCode.CONFIG,
        ) from error


def known_base(store: Store) -> Path | None:
    """Directory from which the node of a store last loaded its base, if it is still there."""
    directory = store.get_meta(BASE_DIR_KEY)
    return Path(directory.decode()) if directory is not None and Path(directory.decode()).is_dir() else None
