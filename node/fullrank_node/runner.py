"""Feeds events to the round machine and carries its actions out.

The machine decides, the runner does: it signs, stores, sends, fetches, merges and trains, and tells
the machine what came of it. Everything durable happens before anything leaves: an object is stored
before it is passed on, a vote is on the platter before its signature exists for anyone else.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

from fullrank_node.chain_log import ChainLog
from fullrank_node.clock import Clock
from fullrank_node.conduct import Conduct
from fullrank_node.errors import NodeError
from fullrank_node.exchange import Exchange
from fullrank_node.masters import Masters
from fullrank_node.merger import Merger, MergeRejectedError
from fullrank_node.network.interface import BlobUnavailable, Network
from fullrank_node.node_keys import ADOPTED_KEY, BEGUN_KEY, BELIEVED, verdict_key
from fullrank_node.snapshots import Snapshots
from fullrank_node.store import Store
from fullrank_node.taking import Taker
from fullrank_node.training.driver import TrainedDelta, TrainerDriver
from fullrank_protocol import round_io as io
from fullrank_protocol.checkpoint import Checkpoint
from fullrank_protocol.contribution import make_contribution
from fullrank_protocol.envelope import Envelope, open_envelope, seal
from fullrank_protocol.errors import Rule
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.hints import make_announcement
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.membership import make_take_up
from fullrank_protocol.round import step_all
from fullrank_protocol.round_state import RoundState, is_held
from fullrank_protocol.vote import make_evidence, make_refusal, make_vote, open_vote
from fullrank_protocol.wire import objects_pb2 as wire

log = logging.getLogger(__name__)

MAX_DELTA_FETCHES = 8
"""Deltas fetched and decoded at a time: enough to fill a home connection, few enough to stay polite."""

TICK_S = 0.1
"""Time between two looks at the clock; turns and deadlines are met this closely."""

STILL_MS = 10_000
"""Between two looks at the clock: the busiest machine takes seconds, so it slept or the process was frozen."""

LISTEN_MS = 10_000
"""How long a certifier that voted before listens for its own earlier votes when it starts again."""

FOR_EVER_MS = 1 << 53
"""Later than any clock here: what ends such a wait is an event."""

MAX_REPEATED_VOTES = 16
"""Newest own votes sent again at a start; older ones are carried by checkpoints or no longer matter."""

_HINT_KINDS: dict[int, str] = {
    wire.CONTRIBUTION: "contribution",
    wire.VOTE: "vote",
    wire.ADMISSION: "record",
    wire.TAKE_UP: "record",
    wire.LEAVE: "record",
    wire.SNAPSHOT: "record",
}


class Runner:
    """One node's life in one swarm."""

    def __init__(
        self,
        *,
        key: SigningKey,
        genesis: Genesis,
        state: RoundState,
        store: Store,
        merger: Merger,
        masters: Masters,
        trainer: TrainerDriver | None,
        clock: Clock,
        conduct: Conduct | None = None,
    ) -> None:
        self.key = key
        self.genesis = genesis
        self.state = state
        self.store = store
        self.merger = merger
        self.masters = masters
        self.trainer = trainer
        self.clock = clock
        self.conduct = conduct or Conduct(time.monotonic)
        self._taker = Taker(state=state, feed=self.feed, conduct=self.conduct)
        self.exchange = Exchange(
            store=store, clock=clock, state=state, feed=self.feed, conduct=self.conduct, taker=self._taker
        )
        self.chain_log = ChainLog(store=store, state=state, key=key.public_key, clock=clock)
        self.network: Network | None = None
        self.warnings: dict[str, str] = {}
        self.on_adopt: list[Callable[[], None]] = []
        self.on_trained: list[Callable[[], None]] = []
        self.on_final: list[Callable[[], None]] = []
        self.snapshots = Snapshots(
            home=merger.home,
            key=key,
            genesis=genesis,
            state=state,
            store=store,
            merger=merger,
            masters=masters,
            feed=self.feed,
        )
        self._events: deque[io.Event] = deque()
        self._draining = False
        self.failure: NodeError | None = None
        self._group: asyncio.TaskGroup | None = None
        self._fetches = asyncio.Semaphore(MAX_DELTA_FETCHES)
        self._training: asyncio.Task[None] | None = None

    def attach(self, network: Network) -> None:
        """The network, once it exists."""
        self.network = network
        self.exchange.attach(network)
        self.masters.network = network
        self.snapshots.network = network

    async def run(self) -> None:
        """Live until cancelled.

        Raises:
            NodeError: What must be durable cannot be written; everything written before is whole.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._live(group)
            finally:
                self._group = None  # What the work under way still tells is not acted on any more.

    async def _live(self, group: asyncio.TaskGroup) -> None:
        assert self.network is not None
        window_s = self.genesis.timing.slot_window_ms / 1000
        is_reader = self.trainer is None
        is_lost = not is_reader and self.store.get_meta(BEGUN_KEY) is None
        if is_lost:
            # By a vote on an old chain it could break the voting rules with one that is in the lost log.
            self.warnings["log"] = "the log of this node was lost: it votes when a peer has told it what it had"
            log.warning("%s.", self.warnings["log"])
        if self.state.own_votes or is_lost:
            self.state.listen_until_ms = FOR_EVER_MS if is_lost else self.clock.now_ms() + LISTEN_MS
            group.create_task(self._tell_when_synced())
            self._store_recorded_votes()
        group.create_task(self.exchange.run(interval_s=min(max(window_s / 5, 0.5), 10.0)))
        group.create_task(self._look_up_hints(interval_s=min(max(window_s / 2, 2.0), 30.0)))
        looked_ms = self.clock.now_ms()
        while self.failure is None:
            now_ms = self.clock.now_ms()
            if now_ms - looked_ms > STILL_MS:
                log.warning(
                    "This node stood still for %d s (the machine slept, the process was frozen, or the clock was set): "
                    "it catches up.",
                    (now_ms - looked_ms) // 1000,
                )
            looked_ms = now_ms
            self.feed(io.Tick())
            await asyncio.sleep(TICK_S)
        raise self.failure

    # ---- events in -------------------------------------------------------------------------------

    def feed(self, *events: io.Event) -> None:
        """Hand events to the machine and carry out what it asks; actions may cause further events.

        Before `run` has begun, events wait for it.
        Where an action fails, the machine believes in something that is not so: nothing is fed to it any more,
        and `run` ends with the error, whoever called.
        """
        self._events.extend(events)
        if self._draining or self._group is None or self.failure is not None:
            return
        self._draining = True
        try:
            while self._events:
                batch = list(self._events)
                self._events.clear()
                _, actions = step_all(self.state, batch, self.clock.now_ms())
                for action in actions:
                    self._carry_out(action)
        except NodeError as error:
            self.failure = error
        finally:
            self._draining = False

    def submit(self, envelope: Envelope) -> None:
        """Take in an object of our own."""
        self.feed(io.ObjectReceived(envelope=envelope))

    def adopt_choice(self, checkpoint: bytes) -> None:
        """Follow the root's choice of a checkpoint, off this node's own final checkpoint if need be; lasts."""
        self.store.set_meta(ADOPTED_KEY, checkpoint)
        self.feed(io.ChoiceAdopted(checkpoint=checkpoint))

    def stop_training(self) -> None:
        """End the current training without a contribution."""
        if self._training is not None:
            self._training.cancel()

    @property
    def is_training(self) -> bool:
        """Whether a delta is in the making."""
        return self._training is not None

    # ---- actions out -----------------------------------------------------------------------------

    def _carry_out(self, action: io.Action) -> None:  # noqa: C901, PLR0912 - one flat table
        match action:
            case io.Keep():
                self._keep(action)
            case io.Drop():
                self._drop(action)
            case io.FetchObjects(ids=ids):
                self._spawn(self.exchange.fetch(ids))
            case io.CheckDelta():
                self._spawn(self._check_delta(action))
            case io.Merge():
                self._spawn(self._merge(action))
            case io.SignCheckpoint(checkpoint=message):
                self.submit(seal(self.key, swarm=self.genesis.swarm, type=wire.CHECKPOINT, message=message))
            case io.CastVote():
                self._cast_vote(action)
            case io.SignRefusal():
                log.warning("Checkpoint %s refused: %s.", action.checkpoint.hex()[:12], action.detail)
                swarm, checkpoint = self.genesis.swarm, action.checkpoint
                self.submit(
                    make_refusal(self.key, swarm=swarm, checkpoint=checkpoint, rule=action.rule, detail=action.detail)
                )
            case io.SignEvidence(first=first, second=second):
                log.warning("Certifier %s broke a voting rule; evidence published.", first.voter.hex()[:12])
                self.submit(make_evidence(self.key, swarm=self.genesis.swarm, one=first, other=second))
            case io.SignTakeUp():
                now_ms = self.clock.now_ms()
                self.submit(make_take_up(self.key, swarm=self.genesis.swarm, issued_at_ms=now_ms))
            case io.Verified():
                self._note_verdict(action)
            case io.Adopt(head=head):
                self._adopt(head.checkpoint)
            case io.Finalised(final=final):
                self._finalise(final.checkpoint)
            case io.Train():
                self._start_training(action)
            case io.FetchSnapshot():
                self._spawn(self.snapshots.fetch(action))
            case io.Alarm() | io.Settled():
                self.tell_of_conflict(action)
            case _:
                assert_never(action)

    def _keep(self, action: io.Keep) -> None:
        assert self.network is not None
        envelope = action.envelope
        self._taker.kept(envelope.id)
        self.store.put_object(envelope, slot=action.slot, received_at_ms=self.clock.now_ms())
        self._spawn(self.network.broadcast([envelope.encode()]))
        if envelope.type == wire.CONTRIBUTION:
            self.chain_log.note_contribution(envelope)
        if envelope.type == wire.ADMISSION and envelope.public_key == self.key.public_key:
            self.warnings.pop("admission", None)
        if envelope.public_key != self.key.public_key:
            return
        if envelope.type == wire.CHECKPOINT:
            announcement = make_announcement(
                self.key,
                swarm=self.genesis.swarm,
                object_id=envelope.id,
                object_type=wire.CHECKPOINT,
                slot=action.slot,
                num_bytes=len(envelope.encode()),
            )
            self._spawn(self.network.publish("checkpoint", action.slot, announcement))
        elif (kind := _HINT_KINDS.get(envelope.type)) is not None:
            is_old = envelope.type == wire.SNAPSHOT  # Its checkpoint is some slots back, and nobody looks there.
            slot = self.genesis.slot_at(self.clock.now_ms()) if is_old else action.slot
            self._spawn(self.network.publish(kind, slot, envelope))

    def _drop(self, action: io.Drop) -> None:
        envelope = action.envelope
        self._taker.dropped(action)
        kind = wire.ObjectType.Name(envelope.type).lower()
        if envelope.public_key == self.key.public_key:
            log.warning("Our own %s was not taken: %s.", kind, action.detail)
            if envelope.type == wire.ADMISSION:
                self.warnings["admission"] = f"this node was not admitted: {action.detail}"
        elif action.rule is Rule.STALE:
            log.info("A %s of %s comes too late: it %s.", kind, envelope.public_key.hex()[:8], action.detail)
        elif action.rule is not None:
            author = envelope.public_key.hex()[:8]
            log.warning("%s of %s refused by rule %s: %s.", kind, author, action.rule.name, action.detail)
        if envelope.type == wire.CONTRIBUTION:
            self.chain_log.note_drop(envelope, rule=action.rule, detail=action.detail)

    def _cast_vote(self, action: io.CastVote) -> None:
        envelope = make_vote(
            self.key,
            swarm=self.genesis.swarm,
            source=action.source.checkpoint,
            source_slot=action.source.slot,
            target=action.target.checkpoint,
            target_slot=action.target.slot,
        )
        self.store.record_vote(envelope.encode(), action.target.slot)
        self.submit(envelope)

    def _note_verdict(self, action: io.Verified) -> None:
        node = self.state.tree.nodes[action.checkpoint]
        assert node.checkpoint is not None
        if action.believed:
            self.store.set_meta(verdict_key(action.checkpoint), BELIEVED)
            return
        if action.holds:
            manifest = self._manifest_after(node.checkpoint, action.key)
            if manifest is not None:
                self.store.put_manifest(action.checkpoint, manifest)
        self.store.set_meta(verdict_key(action.checkpoint), b"\x01" if action.holds else b"\x00")

    def _manifest_after(self, checkpoint: Checkpoint, key: io.MergeKey) -> dict[str, str] | None:
        if checkpoint.accepted:
            return self.merger.manifest_of(key)
        return self.store.manifest(checkpoint.parent)

    def _adopt(self, checkpoint: bytes) -> None:
        state = self.state.tree.state(checkpoint)
        manifest = self.store.manifest(checkpoint)
        if manifest is not None:
            self.store.set_head(checkpoint, manifest)
        self.chain_log.note_chain(checkpoint)
        log.info("Round %d, slot %d: building on %s.", state.round, state.slot, checkpoint.hex()[:12])
        for callback in self.on_adopt:
            callback()

    def _finalise(self, checkpoint: bytes) -> None:
        state = self.state.tree.state(checkpoint)
        self.store.set_final(checkpoint)
        log.info("Round %d, slot %d: %s is final.", state.round, state.slot, checkpoint.hex()[:12])
        self.masters.collect(self.state)
        for callback in self.on_final:
            callback()

    def tell_of_conflict(self, action: io.Alarm | io.Settled) -> None:
        """Say loudly that two final checkpoints contradict each other, or that this is over."""
        if isinstance(action, io.Settled):
            self.warnings.pop("conflict", None)
            final = action.final
            log.warning("The root has chosen: going on from %s, slot %d.", final.checkpoint.hex()[:12], final.slot)
            return
        ours, theirs = (f"{mark.checkpoint.hex()[:12]} of slot {mark.slot}" for mark in (action.ours, action.theirs))
        self.warnings["conflict"] = f"two final checkpoints contradict each other: {ours}, kept here, and {theirs}"
        log.error(
            "%s. More than a third of the certifiers have signed on both sides, or the root has retired some that "
            "were alive. This node neither votes nor proposes until the root has chosen one: `fullrank status` says "
            "what to do, `fullrank adopt` does it.",
            self.warnings["conflict"].capitalize(),
        )

    def _start_training(self, action: io.Train) -> None:
        if self.trainer is None:
            self.feed(io.TrainingAllowed(allowed=False))
            self.feed(io.TrainingEnded(base=action.base.checkpoint, produced=False))
            return
        self._training = self._spawn(self._train(action))

    async def _tell_when_synced(self) -> None:
        assert self.network is not None
        await self.exchange.synced.wait()
        await self.network.broadcast(self.store.own_votes()[-MAX_REPEATED_VOTES:])
        self.warnings.pop("log", None)
        self.store.set_meta(BEGUN_KEY, b"\x01")
        self.feed(io.Synced())

    def _store_recorded_votes(self) -> None:
        """Where the end came between a vote's record and the vote, let neighbours find those very bytes here."""
        for data in self.store.own_votes()[-MAX_REPEATED_VOTES:]:
            envelope = open_envelope(data, swarm=self.genesis.swarm)
            slot = open_vote(envelope).target_slot
            self.store.put_object(envelope, slot=slot, received_at_ms=self.clock.now_ms())

    # ---- work --------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._group is not None, "the runner is not running"
        return self._group.create_task(work)

    async def _check_delta(self, action: io.CheckDelta) -> None:
        assert self.network is not None
        contribution = action.contribution
        unavailable = io.DeltaUnavailable(contribution_id=contribution.id)
        async with self._fetches:
            if is_held(self.state, contribution, self.clock.now_ms()):
                self.feed(unavailable)
                return
            try:
                if not self.store.blobs.has(contribution.blob.id):
                    providers = [contribution.member, *self._proposers_with(contribution.id), *self.exchange.archives]
                    await self.network.fetch_blob(contribution.blob, providers=providers, blobs=self.store.blobs)
                rule, detail = await self.merger.check(contribution, base_round=action.base_round)
            except BlobUnavailable as error:
                log.info("Delta of %s is not to be had yet: %s", contribution.member.hex()[:8], error)
                self.feed(unavailable)
                return
            except NodeError as error:
                self.warnings["delta"] = str(error)
                log.warning("A delta could not be checked here: %s", error)
                await asyncio.to_thread(self.store.blobs.drop_spoilt, contribution.blob.id)  # Fetched again, then.
                self.feed(unavailable)
                return
        self.warnings.pop("delta", None)
        if rule is not None:
            log.warning("Delta of %s refused by rule %s: %s.", contribution.member.hex()[:8], rule.name, detail)
            self.store.record_verdict(contribution.id, status="refused", rule=rule, detail=detail)
        self.feed(io.DeltaChecked(contribution_id=contribution.id, rule=rule, detail=detail))

    def _proposers_with(self, contribution_id: bytes) -> list[bytes]:
        nodes = (self.state.tree.nodes[checkpoint_id] for checkpoint_id in self.state.unverified)
        return [
            node.checkpoint.proposer
            for node in nodes
            if node.checkpoint is not None
            and any(accepted.contribution.id == contribution_id for accepted in node.checkpoint.accepted)
        ]

    async def _merge(self, action: io.Merge) -> None:
        try:
            merged = await self.masters.using(
                action.key.parent, self.state, lambda parent: self.merger.merge(action, parent_manifest=parent)
            )
        except MergeRejectedError as error:
            self.masters.collect_if_due(self.state, merged=action.key)
            self.feed(io.MergeFailed(key=action.key, rule=error.rule, detail=error.detail))
        except NodeError as error:
            self.warnings["merge"] = str(error)
            for entry in action.entries:
                await asyncio.to_thread(self.store.blobs.drop_spoilt, entry.contribution.blob.id)
            log.warning("A merge could not be carried out here: %s", error)
            self.masters.collect_if_due(self.state, merged=action.key)
            self.feed(io.MergeFailed(key=action.key, rule=None, detail=str(error)))
        else:
            self.warnings.pop("merge", None)
            self.masters.collect_if_due(self.state, merged=action.key)
            self.feed(merged)

    async def _train(self, action: io.Train) -> None:
        trainer = self.trainer
        assert trainer is not None
        produced = False
        try:
            delta = await self.masters.using(
                action.base.checkpoint,
                self.state,
                lambda manifest: trainer.train(action, manifest=manifest),
            )
            self.submit(self._contribution(action, delta))
            produced = True
            self.warnings.pop("training", None)
        except NodeError as error:
            self.warnings["training"] = f"training failed: {error}"
            log.warning("Training failed: %s", error)
        finally:
            self._training = None
            self.feed(io.TrainingEnded(base=action.base.checkpoint, produced=produced))
            for callback in self.on_trained:
                callback()

    def _contribution(self, action: io.Train, delta: TrainedDelta) -> Envelope:
        return make_contribution(
            self.key,
            swarm=self.genesis.swarm,
            base_checkpoint=action.base.checkpoint,
            base_slot=action.base.slot,
            blob=delta.blob,
            codec=delta.codec,
            num_tokens=delta.num_tokens,
            num_steps=delta.num_steps,
            loss_first_micro=delta.loss_first_micro,
            loss_last_micro=delta.loss_last_micro,
            created_at_ms=self.clock.now_ms(),
        )

    async def _look_up_hints(self, *, interval_s: float) -> None:
        """Read the DHT's hints of the newest two slots: objects reach us even from nodes we never met."""
        while True:
            await asyncio.sleep(interval_s)
            slot = self.genesis.slot_at(self.clock.now_ms())
            for recent in (slot - 1, slot):
                if recent >= 0:
                    await self.exchange.look_up(slot=recent)
