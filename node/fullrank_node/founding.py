"""Founding a swarm and joining one: what has to lie in a home before its daemon can start.

Nothing is left behind when either fails or is declined: a home that was made for it is removed again.
"""

import asyncio
import contextlib
import math
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullrank_node.base_supply import stamp_of
from fullrank_node.child import ChildDiedError, ChildFailedError, ChildProcess
from fullrank_node.clock import SystemClock
from fullrank_node.config import write_config
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import write_atomically
from fullrank_node.home import Home
from fullrank_node.identity_file import create_identity, libp2p_path
from fullrank_node.names import name_of
from fullrank_node.network.interface import Network, NetworkError, PeerFailure, PeerUnreachable
from fullrank_node.node_keys import BASE_DIGEST_KEY, BASE_DIR_KEY, BASE_STAMP_KEY, BEGUN_KEY, INVITE_KEY, PINNED_KEY
from fullrank_node.operations import Confirm, CreateOptions, JoinSummary, Progress
from fullrank_node.store import Store
from fullrank_protocol import genesis_defaults
from fullrank_protocol.blob import BlobRef, blob_ref
from fullrank_protocol.codec import CODEC_PACKED
from fullrank_protocol.errors import ProtocolError
from fullrank_protocol.genesis import Genesis, Policy, create_genesis, open_genesis
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.limits import PROTOCOL_VERSION
from fullrank_protocol.link import Link
from fullrank_protocol.wire import objects_pb2 as wire
from fullrank_protocol.wire import peer_pb2

if TYPE_CHECKING:
    from fullrank_node.training.data import DataReport

FIND_PEER_S = 45.0
"""How long `join` and `pull` look for a first peer: a dead entrance may take 10 s to give up on."""

GENESIS_ATTEMPTS = 10
"""Times that peers are asked for the genesis while connections break."""

_OTHER_LINK = "Try again in a minute, or ask for a newer link: `fullrank invite` on any founding node."

RETRY_S = 1.0
"""Pause before peers are asked again for the genesis."""

GENESIS_TIMEOUT_S = 30.0
PREPARE_TIMEOUT_S = 3600.0

BEST_RATE, BEST_RATE_WIDTH = 0.0035, 128
"""Where the default learning rate was measured; see `default_learning_rate`."""

DEFAULT_MAX_RANK = 128
"""Highest rank of one contribution where the founder does not say: twice the default rank, for the embeddings."""


async def create(
    home: Home,
    overrides: Mapping[str, Any],
    *,
    base: str,
    name: str,
    data: Path | None,
    options: CreateOptions,
    progress: Progress,
) -> None:
    """Write key, genesis and configuration of a new swarm's first node.

    Raises:
        NodeError: The base or the data cannot be used, or an option is out of bounds.
    """
    with _fresh_home(home):
        write_config(home.config_file, overrides)
        async with ChildProcess("fullrank_node.training.trainer") as trainer:
            progress("loading the base model")
            found = await _ask_trainer(
                trainer,
                "prepare_base",
                {"reference": base, "revision": options.revision, "masters_dir": str(home.masters_dir)},
            )
            message = _genesis_message(found, name=name, options=options)
            if data is not None:
                progress("reading the data")
                await _ask_trainer(trainer, "check_data", {"path": str(data), "base_dir": found["base_dir"]})
        key = create_identity(home.identity_file)
        message.membership.CopyFrom(
            wire.MembershipPolicy(
                policy=wire.OPEN if options.open_policy else wire.INVITE,
                root_keys=[key.public_key],
                root_threshold=1,
                founders=[key.public_key],
                founder_names=[str((overrides.get("node") or {}).get("name") or name_of(key.public_key))],
            )
        )
        with Store(home) as store:
            progress("signing the genesis")
            directory = Path(found["base_dir"])
            for entry_name in found["files"]:
                message.base.files.append(_file_entry(directory, entry_name, store if options.serve_base else None))
            if options.serve_base:
                for entry_name in found["weight_files"]:
                    message.base.weight_files.append(_file_entry(directory, entry_name, store))
            message.created_at_ms = SystemClock().now_ms()
            try:
                genesis = create_genesis(key, message)
            except ProtocolError as error:
                raise NodeError(f"these options make no swarm: {error.detail}", exit_code=ExitCode.USAGE) from error
            _keep_base(store, genesis.swarm, found)
            store.set_meta(BEGUN_KEY, b"\x01")
        write_atomically(home.genesis_file, genesis.envelope.encode())


async def join(
    home: Home,
    link: Link,
    *,
    data: Path | None,
    base: Path | None,
    overrides: Mapping[str, Any],
    confirm: Confirm,
    progress: Progress,
) -> JoinSummary | None:
    """Fetch the genesis, show what will happen, and set the home up; None when declined.

    Raises:
        NodeError: No peer answers, the link lets nobody join, or base or data cannot be used.
    """
    with _fresh_home(home) as undo:
        write_config(home.config_file, overrides)
        rows = await asyncio.to_thread(_checked_rows, data)
        key = create_identity(home.identity_file)
        async with visiting_network(home, key, link.swarm, peers=link.peers) as network:
            genesis = await fetch_genesis(network, link, progress=progress)
        if link.invite is None and genesis.membership.policy is Policy.INVITE:
            raise NodeError(
                "this link lets nobody join: it holds no invite",
                hint="Ask a founder for a link made by `fullrank invite`; pulling the model needs none.",
                exit_code=ExitCode.PERMISSION,
            )
        summary = _summary(genesis, key, base=base, overrides=overrides, rows=rows)
        if not confirm(summary):
            undo()
            return None
        write_atomically(home.genesis_file, genesis.envelope.encode())
        with Store(home) as store:
            if base is not None:
                progress("checking the base model")
                await _take_base(home, store, base, genesis)
            store.set_meta(BEGUN_KEY, b"\x01")
            if link.invite is not None:
                store.set_meta(INVITE_KEY, link.invite)
            if link.final is not None:
                store.set_meta(PINNED_KEY, link.final)
    return summary


@contextlib.asynccontextmanager
async def visiting_network(
    home: Home, key: SigningKey, swarm: bytes, *, peers: tuple[str, ...]
) -> AsyncIterator[Network]:
    """A connection to a swarm for one command: dials out, serves nothing."""
    from fullrank_node.network.peer import PeerNetwork
    from fullrank_node.network.settings import NetworkSettings

    network = PeerNetwork(
        key=key,
        swarm=swarm,
        identity_path=libp2p_path(home.identity_file),
        inbound=Visitor(home),
        clock=SystemClock(),
        settings=NetworkSettings(no_listen=True, bootstrap=peers),
        peer_cache_path=home.peers_file,
    )
    await network.start()
    try:
        yield network
    finally:
        await network.close()


class Visitor:
    """Answers nothing: a command that only asks has nothing to tell."""

    def __init__(self, home: Home) -> None:
        from fullrank_node.blob_store import BlobStore

        self._blobs = BlobStore(home.blobs_dir)

    def blobs(self) -> Any:
        """What has been fetched so far."""
        return self._blobs

    async def handle(self, peer: bytes, request: peer_pb2.Request) -> peer_pb2.Response:
        """Decline."""
        del peer, request
        failure = peer_pb2.Failure(code=peer_pb2.Failure.BUSY, detail="this is only a visitor")
        return peer_pb2.Response(failure=failure)


async def wait_for_peer(network: Network, *, progress: Progress, tried: int) -> None:
    """Return once a peer of the swarm is connected.

    Raises:
        NodeError: None answered in time, or all have answered that they are of another swarm or version; names the
            reason for each address.
    """
    progress("looking for a peer of the swarm")
    deadline = asyncio.get_running_loop().time() + FIND_PEER_S
    while not network.peers():
        refusal = network.refusal()
        reasons = "; ".join(f"{address}: {why}" for address, why in network.connection_errors().items())
        if refusal is not None:
            raise _refused(refusal, reasons)
        if asyncio.get_running_loop().time() > deadline:
            raise NodeError(
                f"no peer answered ({tried} tried, {FIND_PEER_S:.0f} s): {reasons or 'the link names none'}",
                hint="Check this machine's network, or ask for a newer link: `fullrank invite` on any founding node.",
                exit_code=ExitCode.NO_PEERS,
            )
        await asyncio.sleep(0.1)


def _refused(refusal: NetworkError, reasons: str) -> NodeError:
    """Somebody answers, and will never be a peer."""
    if isinstance(refusal, PeerFailure) and refusal.code == peer_pb2.Failure.WRONG_VERSION:
        return NodeError(
            f"no peer can be talked to: {reasons}", hint=_version_hint(refusal), exit_code=ExitCode.PROTOCOL
        )
    hint = "Whoever gave you the link has founded another swarm since: ask for its link."
    return NodeError(f"nobody of the link's swarm is there: {reasons}", hint=hint, exit_code=ExitCode.NO_PEERS)


def _version_hint(failure: PeerFailure) -> str:
    is_newer = failure.protocol_version > PROTOCOL_VERSION
    return f"Install {'a newer' if is_newer else 'the older'} fullrank that speaks the swarm's protocol."


async def fetch_genesis(network: Network, link: Link, *, progress: Progress) -> Genesis:
    """The genesis of the link's swarm, from any peer, checked against the swarm id.

    Raises:
        NodeError: Nobody answered, or every answer was another genesis or another protocol version.
    """
    for _ in range(GENESIS_ATTEMPTS - 1):
        await wait_for_peer(network, progress=progress, tried=len(link.peers))
        progress("fetching the genesis")
        with contextlib.suppress(PeerUnreachable):
            return await _ask_for_genesis(network, link)
        # A connection, or this node's own p2pd, broke in that very moment; both come back by themselves.
        await asyncio.sleep(RETRY_S)
    await wait_for_peer(network, progress=progress, tried=len(link.peers))
    try:
        return await _ask_for_genesis(network, link)
    except PeerUnreachable as error:
        raise NodeError(
            f"the genesis could not be fetched: {error}", hint=_OTHER_LINK, exit_code=ExitCode.NO_PEERS
        ) from error


async def _ask_for_genesis(network: Network, link: Link) -> Genesis:
    problem, hint, exit_code = "no peer sent one", _OTHER_LINK, ExitCode.NO_PEERS
    unreachable: PeerUnreachable | None = None
    for info in network.peers():
        request = peer_pb2.Request(get_genesis=peer_pb2.GetGenesis())
        try:
            reply = await network.request(info.key, request, timeout_s=GENESIS_TIMEOUT_S)
            return open_genesis(reply.objects.envelopes[0], expect=link.swarm)
        except PeerUnreachable as error:
            unreachable = error
        except PeerFailure as error:
            problem = str(error)
            if error.code == peer_pb2.Failure.WRONG_VERSION:
                exit_code = ExitCode.PROTOCOL
                hint = _version_hint(error)
        except (ProtocolError, IndexError) as error:
            problem = f"a peer sent something else: {error}"
    if unreachable is not None and exit_code is ExitCode.NO_PEERS:
        raise unreachable
    raise NodeError(f"the genesis could not be fetched: {problem}", hint=hint, exit_code=exit_code)


def default_learning_rate(widths: list[int]) -> float:
    """Peak rate for B where the founder gives none, from the widths (in_features) of the adapted modules.

    It holds for rank 32, and each node fits it to its own (`training.lora`). On two models of width 128, 0.0035 was
    best or as good as the best, and best where the rate is constant (protocol/decisions/0015). Wider models get
    proportionally less, as hidden layers do under maximal update parametrisation (Yang et al. 2022, arXiv:2203.03466).
    """
    typical = sorted(widths)[len(widths) // 2]
    return min(BEST_RATE, BEST_RATE * BEST_RATE_WIDTH / typical)


def _genesis_message(found: Mapping[str, Any], *, name: str, options: CreateOptions) -> wire.Genesis:
    training = genesis_defaults.default_training()
    timing = genesis_defaults.default_timing()
    if options.window_s is not None:
        timing = genesis_defaults.default_timing(slot_window_ms=round(options.window_s * 1000))
    if options.stall_slots is not None:
        timing.stall_slots = options.stall_slots
    if options.mode is not None:
        training.mode = wire.MODE_AB if options.mode == "ab" else wire.MODE_B
    rate = options.learning_rate or default_learning_rate([module["in_features"] for module in found["modules"]])
    training.learning_rate_nano = round(rate * 1e9)
    for field in ("rank", "bits_b", "max_steps", "batch_size", "block_length", "period_rounds", "total_rounds"):
        if (value := getattr(options, field)) is not None:
            setattr(training, field, value)
    training.warmup_steps = min(training.warmup_steps, training.max_steps // 4)
    smallest = min(min(module["out_features"], module["in_features"]) for module in found["modules"])
    training.rank = min(training.rank, smallest)
    return wire.Genesis(
        name=name,
        rule_version=1,
        nonce=secrets.token_bytes(16),
        base=wire.BaseModel(
            reference=found["reference"],
            revision=options.revision or found["revision"],
            licence=options.licence or found["licence"],
            tensors=[
                wire.TensorHash(name=t["name"], shape=t["shape"], sha256=bytes.fromhex(t["sha256"]))
                for t in found["tensors"]
            ],
        ),
        modules=[wire.Module(**module) for module in sorted(found["modules"], key=lambda module: module["name"])],
        max_rank=options.max_rank or max(DEFAULT_MAX_RANK, training.rank),
        codecs=[CODEC_PACKED],
        timing=timing,
        training=training,
        rule=genesis_defaults.default_rule(),
        limits=genesis_defaults.default_limits(),
    )


async def _take_base(home: Home, store: Store, base: Path, genesis: Genesis) -> None:
    """Check every tensor of a base that the owner gave, and make the genesis masters from it.

    Raises:
        NodeError: It is not the base of the swarm; names the first tensor that differs.
    """
    request = {
        "genesis_path": str(home.genesis_file),
        "base_dir": str(base),
        "masters_dir": str(home.masters_dir),
    }
    async with ChildProcess("fullrank_node.training.trainer") as trainer:
        _keep_base(store, genesis.swarm, await _ask_trainer(trainer, "prepare_base", request))


def _keep_base(store: Store, swarm: bytes, found: Mapping[str, Any]) -> None:
    """Remember what the trainer found, so that the daemon need not load the base again."""
    store.put_manifest(swarm, found["manifest"])
    store.set_meta(BASE_DIR_KEY, str(found["base_dir"]).encode())
    store.set_meta(BASE_STAMP_KEY, stamp_of(Path(found["base_dir"])))
    store.set_meta(BASE_DIGEST_KEY, bytes.fromhex(found["digest"]))


def _file_entry(directory: Path, name: str, store: Store | None) -> wire.FileEntry:
    """A file of the base by its content; with a store, also kept there for peers."""
    data = (directory / name).read_bytes()
    ref = store.blobs.put_bytes(data) if store is not None else blob_ref(data)
    return wire.FileEntry(name=name, blob=BlobRef(id=ref.id, num_bytes=ref.num_bytes).to_wire())


def _checked_rows(data: Path | None) -> "DataReport | None":
    """What the owner's data holds; None without data.

    Raises:
        NodeError: It cannot be used, with line numbers.
    """
    if data is None:
        return None
    from fullrank_node.training.data import check_data

    return check_data(data, None, valid_fraction=0.0)


def _summary(
    genesis: Genesis, key: SigningKey, *, base: Path | None, overrides: Mapping[str, Any], rows: "DataReport | None"
) -> JoinSummary:
    from fullrank_node.model.base import check_base_files, resolve_base

    parameters = sum(math.prod(tensor.shape) for tensor in genesis.base.tensors)
    adapted = sum(module.out_features * module.in_features for module in genesis.modules)
    download, where = 0, genesis.base.reference
    if base is not None or not genesis.base.reference or genesis.base.reference.startswith("embedded:"):
        try:
            path = resolve_base("", "", base, genesis)
            check_base_files(path, genesis)
            where = genesis.base.reference or str(path)
        except NodeError:
            if base is not None or not genesis.base.weight_files:
                raise
            where = "from peers"
            download = sum(e.blob.num_bytes for e in (*genesis.base.files, *genesis.base.weight_files))
    else:
        download = 2 * parameters
    training = genesis.training
    sides = sum(module.out_features + module.in_features * (training.mode == 2) for module in genesis.modules)
    network = overrides.get("network") or {}
    train = overrides.get("train") or {}
    return JoinSummary(
        swarm_name=genesis.name,
        swarm=genesis.swarm,
        base=where,
        licence=genesis.base.licence,
        num_parameters=parameters,
        base_download_bytes=download,
        update_bytes=sides * training.rank * training.bits_b // 8,
        disk_bytes=3 * 4 * adapted + download,
        device=str(train.get("device") or "auto"),
        addresses=tuple(network.get("announce") or network.get("listen") or ()),
        slot_window_ms=genesis.timing.slot_window_ms,
        node_name=(overrides.get("node") or {}).get("name") or name_of(key.public_key),
        member=key.public_key,
        num_rows=rows.num_rows if rows is not None else 0,
        bad_rows=tuple((bad.line, bad.reason) for bad in rows.skipped) if rows is not None else (),
        certifies=overrides.get("certify") is not False,
    )


async def _ask_trainer(trainer: ChildProcess, method: str, params: dict[str, Any]) -> dict[str, Any]:
    try:
        return await trainer.call(method, params, timeout_s=PREPARE_TIMEOUT_S, kill_on_cancel=True)
    except (ChildDiedError, ChildFailedError, TimeoutError) as error:
        raise NodeError(f"preparing failed: {error or 'no answer in time'}") from error


@contextlib.contextmanager
def _fresh_home(home: Home) -> Iterator[Any]:
    """Make the home; take everything back that was made when the work in it fails or is undone."""
    existed = home.path.exists()
    before = set(home.path.iterdir()) if existed else set()
    home.create()

    def undo() -> None:
        if not existed:
            shutil.rmtree(home.path, ignore_errors=True)
            return
        for entry in set(home.path.iterdir()) - before:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    try:
        yield undo
    except BaseException:
        undo()
        raise
