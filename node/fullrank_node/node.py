"""One running node: its parts, and the order in which they come up and go down."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fullrank_node.admission import offer_admission
from fullrank_node.api import access_token, last_status
from fullrank_node.api.server import ControlServer
from fullrank_node.base_supply import BaseSupply
from fullrank_node.blob_store import BlobStore
from fullrank_node.child import ChildProcess
from fullrank_node.clock import Clock
from fullrank_node.conduct import Conduct
from fullrank_node.config import Config
from fullrank_node.errors import ExitCode, NodeError, node_error_in
from fullrank_node.filling import Filling
from fullrank_node.finality_watch import FinalityWatch
from fullrank_node.home import SOCKET_NAME, Home, RunInfo
from fullrank_node.identity_file import libp2p_path, load_identity
from fullrank_node.keeping import Keeper
from fullrank_node.masters import Masters
from fullrank_node.merger import Merger
from fullrank_node.model.master import MasterStore
from fullrank_node.names import name_of
from fullrank_node.network.peer import PeerNetwork
from fullrank_node.network.settings import NetworkSettings
from fullrank_node.node_keys import BASE_LOSS_KEY, INVITE_KEY
from fullrank_node.node_view import DaemonView
from fullrank_node.rank_watch import RankWatch
from fullrank_node.restoring import restored_state
from fullrank_node.runner import Runner
from fullrank_node.status_reply import SOFTWARE
from fullrank_node.store import Store
from fullrank_node.training.driver import PreparedBase, TrainerDriver
from fullrank_protocol import round_io as io
from fullrank_protocol.errors import ProtocolError
from fullrank_protocol.genesis import Genesis, open_genesis
from fullrank_protocol.wire import peer_pb2

log = logging.getLogger(__name__)

PREPARE_AGAIN_S = 30.0
"""Pause before the data are prepared again."""


class Node:
    """The parts of one node, built here and nowhere else."""

    def __init__(
        self,
        *,
        home: Home,
        config: Config,
        clock: Clock,
        worker: ChildProcess,
        trainer: ChildProcess,
        stop: asyncio.Event,
    ) -> None:
        self.home = home
        self.config = config
        self.clock = clock
        self.stop = stop
        self.key = load_identity(home.identity_file)
        self.genesis = read_genesis(home)
        self.threads = config.train.threads or config.limits.cpu_threads
        self.store = Store(home)
        self.worker = worker
        self.merger = Merger(home=home, store=self.store, genesis=self.genesis, worker=worker, threads=self.threads)
        self.masters = Masters(
            store=self.store,
            merger=self.merger,
            files=MasterStore(home.masters_dir),
            remake_base=self._remake_base,
        )
        self.trainer = TrainerDriver(
            home=home,
            config=config,
            genesis=self.genesis,
            member=self.key.public_key,
            child=trainer,
            blobs=self.store.blobs,
            clock=clock,
            threads=self.threads,
        )
        self.inbound = LateInbound(self.store.blobs, self.genesis)
        self.conduct = Conduct(time.monotonic)
        network = config.network
        self.network = PeerNetwork(
            key=self.key,
            swarm=self.genesis.swarm,
            identity_path=libp2p_path(home.identity_file),
            inbound=self.inbound,
            clock=clock,
            settings=NetworkSettings(
                listen=network.listen,
                announce=network.announce,
                no_listen=network.no_listen,
                bootstrap=network.peers,
                is_archive=lambda: self.runner is not None and self.runner.exchange.is_archive,
                software=SOFTWARE,
                slot_window_ms=self.genesis.timing.slot_window_ms,
            ),
            peer_cache_path=home.peers_file,
            is_member=self._is_member,
            refusal_of=self.conduct.refusal,
            slot_now=lambda: self.genesis.slot_at(clock.now_ms()),
        )
        self.runner: Runner | None = None
        self.phase = "starting"
        self.trouble: str | None = None
        self.finishing = False
        self.started_at_ms = clock.now_ms()
        self.pause_reason: str | None = "until it is resumed" if config.train.start_paused else None
        self._measure = asyncio.Event()
        self._resume_timer: asyncio.TimerHandle | None = None

    def _is_member(self, key: bytes) -> bool:
        return self.runner is not None and self.runner.state.tree.head().members.is_member(key)

    # ---- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until `stop` is set.

        Raises:
            NodeError: The node cannot go on.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.store.close)
            await self.network.start()
            stack.push_async_callback(self.network.close)
            await stack.enter_async_context(self._control())
            log.info("Node %s of swarm %s is up.", self.key.public_key.hex()[:8], self.genesis.name)
            life = asyncio.create_task(self._live())
            watch = asyncio.create_task(self.network.wait_closed())
            stopped = asyncio.create_task(self.stop.wait())
            tasks: set[asyncio.Task[Any]] = {life, watch, stopped}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise node_error_in(error) or error
        log.info("Node stopped.")

    @contextlib.asynccontextmanager
    async def _control(self) -> AsyncIterator[None]:
        if self.home.run_file.exists():
            log.warning(
                "The daemon before this one did not end in order (a kill, a crash, a power cut): "
                "what it had stored is whole, and this one goes on from there."
            )
        self.home.clear_run()
        runtime = self.home.make_runtime_dir()
        server = ControlServer(
            DaemonView(self),
            runtime / SOCKET_NAME,
            access_token.create_token(self.home.token_file),
            remember=self.home.path / last_status.FILE_NAME,
        )
        await server.start()
        socket, token_file = str(runtime / SOCKET_NAME), str(self.home.token_file)
        self.home.write_run(
            RunInfo(pid=os.getpid(), socket=socket, token_file=token_file, started_at_ms=self.started_at_ms)
        )
        try:
            yield
        finally:
            await server.stop()
            self.home.clear_run()

    async def _live(self) -> None:
        base = await self._prepare_base()
        runner = self._make_runner(base)
        self.runner = runner
        self.inbound.open(runner)
        runner.on_adopt.append(self._publish_admission)
        runner.on_trained.append(self._measure.set)
        ranks = RankWatch(runner)
        runner.on_adopt.append(ranks.look)
        watch = FinalityWatch(runner.state.tree)
        runner.on_adopt.append(watch.look)
        runner.on_final.append(watch.look)
        keeper = Keeper(runner=runner, config=self.config)
        self.phase = "running"
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.run())
            group.create_task(keeper.run())
            if self.config.archive:
                group.create_task(Filling(runner=runner, limit_bytes=keeper.limit_bytes).run())
            group.create_task(self._start_training(base.base_dir))
            group.create_task(self._measure_rounds(base))
            group.create_task(ranks.run())
            group.create_task(self._publish_first_admission())

    def _make_runner(self, base: PreparedBase) -> Runner:
        """The round machine with everything the store remembers."""
        state = restored_state(
            self.genesis,
            self.store,
            key=self.key.public_key,
            base_digest=base.digest,
            wants_certify=self.config.certify,
            now_ms=self.clock.now_ms(),
        )
        runner = Runner(
            key=self.key,
            genesis=self.genesis,
            state=state,
            store=self.store,
            merger=self.merger,
            masters=self.masters,
            trainer=self.trainer,
            clock=self.clock,
            conduct=self.conduct,
        )
        runner.attach(self.network)
        return runner

    # ---- base and data -----------------------------------------------------------------------------

    def _base_supply(self) -> BaseSupply:
        return BaseSupply(
            home=self.home,
            given=self.config.base.path,
            genesis=self.genesis,
            store=self.store,
            network=self.network,
            trainer=self.trainer,
        )

    async def _remake_base(self) -> dict[str, str]:
        """The masters of the genesis, which the store has forgotten because this disk has spoilt one."""
        return (await self._base_supply().prepare(on_phase=log.info)).manifest

    async def _prepare_base(self) -> PreparedBase:
        try:
            return await self._base_supply().prepare(on_phase=self._set_phase)
        except NodeError as error:
            self.trouble = f"{error} {error.hint}".strip()
            raise

    def _set_phase(self, phase: str) -> None:
        self.phase = phase

    async def _start_training(self, base_dir: Path) -> None:
        assert self.runner is not None
        if not self.config.train.enabled or self.config.data.path is None:
            self.pause_reason = "no data was given" if self.config.train.enabled else "training is off (train.enabled)"
            return
        if not await self._prepare_data(base_dir):
            return
        if self.pause_reason is None:
            self.runner.feed(io.TrainingAllowed(allowed=True))
        else:  # Paused meanwhile: what was prepared lies on the disk, and the memory is freed as promised.
            await self.trainer.pause()

    async def _prepare_data(self, base_dir: Path) -> bool:
        """Have the owner's data ready; again and again where the trainer died of it, for memory may be free later."""
        while True:
            try:
                await self.trainer.prepare_data(base_dir)
            except NodeError as error:
                self.trouble = f"{error} {error.hint}".strip()
                log.error("The data cannot be used: %s %s", error, error.hint)  # noqa: TRY400 - a sentence
                if error.exit_code is not ExitCode.RETRY:
                    return False
                await asyncio.sleep(PREPARE_AGAIN_S)
            else:
                self.trouble = None
                return True

    async def _publish_first_admission(self) -> None:
        """Offer our admission as soon as a neighbour has told what there is: it is carried while we still replay."""
        self._publish_admission()
        assert self.runner is not None
        await self.runner.exchange.synced.wait()
        self._publish_admission()

    def _publish_admission(self) -> None:
        """Offer our admission until a checkpoint has carried it."""
        seed = self.store.get_meta(INVITE_KEY)
        if self.runner is not None and seed is not None:
            name = self.config.node.name or name_of(self.key.public_key)
            offer_admission(self.runner, invite_seed=seed, certify=self.config.certify, name=name)

    async def _measure_rounds(self, base: PreparedBase) -> None:
        """After each training, when the trainer is free, measure the newest shared model."""
        assert self.runner is not None
        measured: set[bytes] = set()
        while True:
            await self._measure.wait()
            self._measure.clear()
            head = self.runner.state.tree.head()
            manifest = self.store.manifest(head.id)
            normal = head.last_normal.checkpoint
            if normal in measured or manifest is None or not head.round:
                continue
            measured.add(normal)
            try:
                await self._measure_one(normal, manifest, base)
            except NodeError as error:
                log.warning("The shared model could not be measured: %s", error)

    async def _measure_one(self, checkpoint: bytes, manifest: dict[str, str], base: PreparedBase) -> None:
        """Held-out loss on the owner's held-out rows."""
        if self.store.get_meta(BASE_LOSS_KEY) is None:
            loss = await self.trainer.evaluate(base.manifest)
            if loss is not None:
                self.store.set_meta(BASE_LOSS_KEY, repr(loss).encode())
        self.store.measure_round(checkpoint, heldout_loss=await self.trainer.evaluate(manifest))

    # ---- the owner's wishes --------------------------------------------------------------------------

    async def pause(self, *, for_ms: int) -> None:
        """Stop training and free its memory; go on serving and certifying."""
        self._cancel_timer()
        self.pause_reason = "by its owner"
        if self.runner is not None:
            self.runner.feed(io.TrainingAllowed(allowed=False))
            self.runner.stop_training()
        await self.trainer.pause()
        if for_ms:
            self._resume_timer = asyncio.get_running_loop().call_later(for_ms / 1000, self.resume)

    def resume(self) -> None:
        """Train again."""
        self._cancel_timer()
        self.pause_reason = None
        if self.runner is not None and self.trainer.data_summary:
            self.runner.feed(io.TrainingAllowed(allowed=True))

    def finish(self) -> None:
        """Stop after the delta in the making has been published."""
        self.finishing = True
        runner = self.runner
        if runner is None or not runner.is_training:
            self.stop.set()
            return
        runner.on_trained.append(self.stop.set)
        runner.feed(io.TrainingAllowed(allowed=False))

    def _cancel_timer(self) -> None:
        if self._resume_timer is not None:
            self._resume_timer.cancel()
            self._resume_timer = None


class LateInbound:
    """Answers peers from the first moment; says "busy" to what only a running round machine can answer."""

    def __init__(self, blobs: BlobStore, genesis: Genesis) -> None:
        self._blobs = blobs
        self._genesis = genesis
        self._runner: Runner | None = None

    def open(self, runner: Runner) -> None:
        """The round machine is there."""
        self._runner = runner

    def blobs(self) -> BlobStore:
        """Where blobs are served from."""
        return self._blobs

    async def handle(self, peer: bytes, request: peer_pb2.Request) -> peer_pb2.Response:
        """Answer one request."""
        if self._runner is not None:
            return await self._runner.exchange.handle(peer, request)
        if request.WhichOneof("body") == "get_genesis":
            return peer_pb2.Response(objects=peer_pb2.Objects(envelopes=[self._genesis.envelope.encode()]))
        busy = peer_pb2.Failure(code=peer_pb2.Failure.BUSY, detail="this node is still loading its base model")
        return peer_pb2.Response(failure=busy)


def read_genesis(home: Home) -> Genesis:
    """The genesis in a home.

    Raises:
        NodeError: There is none, or the file is damaged.
    """
    try:
        return open_genesis(home.genesis_file.read_bytes())
    except FileNotFoundError as error:
        raise NodeError(
            f"{home.path} belongs to no swarm yet",
            hint="Use `fullrank create` or `fullrank join LINK`.",
            exit_code=ExitCode.CONFIG,
        ) from error
    except ProtocolError as error:
        raise NodeError(
            f"{home.genesis_file} is damaged: {error.detail}",
            hint="Join the swarm again into a fresh home with the same identity.key.",
            exit_code=ExitCode.CONFIG,
        ) from error
