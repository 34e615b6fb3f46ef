"""What this node and its neighbours tell each other: answers to requests, and catching up.

Fresh objects are pushed at once. Whatever a push missed is found by comparing inventories with the
neighbours, so a lost message costs seconds and never a record. The DHT is a third way, for those
who are not connected yet.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from fullrank_node.blob_store import BlobStore
from fullrank_node.clock import Clock
from fullrank_node.conduct import Conduct
from fullrank_node.network.asking import short
from fullrank_node.network.interface import Network, NetworkError, PeerFailure
from fullrank_node.store import Store
from fullrank_node.taking import Taker
from fullrank_protocol import round_io
from fullrank_protocol.envelope import open_envelope
from fullrank_protocol.errors import ProtocolError
from fullrank_protocol.hints import open_announcement
from fullrank_protocol.wire import peer_pb2

if TYPE_CHECKING:
    from fullrank_protocol.round_state import RoundState

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""A neighbour that has not answered by then is asked again later; loopback answers in milliseconds."""

MAX_REPLY_BYTES = 3 << 20
"""Objects in one answer: below the frame limit with room for the framing."""

MAX_INVENTORY_IDS = 50_000
"""Ids in one inventory (1.6 MB): some hundred slots of the largest swarm."""

MAX_IDS_ASKED = 4096
"""Objects asked for at once: each costs the answerer a look at its log."""

MAX_FOUND = 4096
"""Hints of one kind and slot that are read from the DHT at a time: eight for each of the most certifiers."""

BATCH_IDS = 500
"""Objects asked for at once by this node."""

PATIENCE_S = 30.0
"""So long one neighbour may take to tell what it has, before the next one's turn ..."""

MIN_PROGRESS = 50
"""... unless each of its answers brings as many objects."""

OVERLAP_SLOTS = 4
"""Slots below the newest final one that inventories still cover: stale contributions live that long."""


class Exchange:
    """Answers neighbours, and asks them for what is missing here."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        state: "RoundState",
        feed: Callable[..., None],
        conduct: Conduct,
        taker: Taker,
    ) -> None:
        """Initialises.

        Args:
            store: Objects to tell of.
            clock: Tells the time.
            state: The round machine's, read only.
            feed: Takes events for the round machine; several at a time are cheaper than one after another.
            conduct: What peers have sent that nobody honest sends.
            taker: Takes objects in.
        """
        self._store = store
        self._clock = clock
        self._state = state
        self._feed = feed
        self._conduct = conduct
        self._taker = taker
        self._network: Network | None = None
        self._dialling: set[asyncio.Task[None]] = set()
        self.head_slots: dict[bytes, int] = {}
        self.final_slots: dict[bytes, int] = {}
        self.archives: dict[bytes, None] = {}
        self.is_archive = False
        self.synced = asyncio.Event()

    def attach(self, network: Network) -> None:
        """The network, once it exists: it needs this object to be made."""
        self._network = network

    # ---- answering -------------------------------------------------------------------------------

    def blobs(self) -> BlobStore:
        """Where blobs are served from."""
        return self._store.blobs

    async def handle(self, peer: bytes, request: peer_pb2.Request) -> peer_pb2.Response:
        """Answer one request of a neighbour; one that is shut out is told why."""
        why = self._conduct.refusal(peer)
        return _failure(peer_pb2.Failure.SHUT_OUT, why) if why is not None else await self._answer(peer, request)

    async def _answer(self, peer: bytes, request: peer_pb2.Request) -> peer_pb2.Response:
        match request.WhichOneof("body"):
            case "get_genesis":
                return self._objects([self._state.genesis.envelope.encode()])
            case "inventory":
                self._note_neighbour(peer, request.inventory)
                return peer_pb2.Response(inventory=self._inventory(request.inventory.from_slot, with_ids=True))
            case "get_objects":
                return self._answer_ids(request.get_objects.ids)
            case "get_chain":
                return self._objects(self._chain(request.get_chain.after_slot))
            case "offer":
                return await self._receive_offer(peer, request.offer.envelopes)
            case other:
                return _failure(peer_pb2.Failure.MALFORMED, f"request {other!r} is not known")

    def _answer_ids(self, ids: Sequence[bytes]) -> peer_pb2.Response:
        if len(ids) > MAX_IDS_ASKED:
            detail = f"{len(ids)} objects asked for at once, at most {MAX_IDS_ASKED} allowed"
            return _failure(peer_pb2.Failure.TOO_LARGE, detail)
        found = (self._store.get_object(object_id) for object_id in ids)
        return self._objects(envelope for envelope in found if envelope is not None)

    async def _receive_offer(self, peer: bytes, objects: Sequence[bytes]) -> peer_pb2.Response:
        """Take in what a neighbour pushes, within its share, and tell it what was refused."""
        if not self._conduct.has_room(peer, num_objects=len(objects), num_bytes=sum(map(len, objects))):
            return _failure(peer_pb2.Failure.BUSY, "more objects than one peer may offer; ask for the inventory later")
        try:
            return peer_pb2.Response(received=await self._taker.take_offer(objects, peer))
        except NetworkError as error:
            return _failure(peer_pb2.Failure.SHUT_OUT, str(error))

    def _objects(self, envelopes: Iterable[bytes]) -> peer_pb2.Response:
        reply = peer_pb2.Objects()
        size = 0
        for envelope in envelopes:
            size += len(envelope)
            if size > MAX_REPLY_BYTES and reply.envelopes:
                reply.more = True
                break
            reply.envelopes.append(envelope)
        return peer_pb2.Response(objects=reply)

    def _chain(self, after_slot: int) -> Iterable[bytes]:
        tree = self._state.tree
        for node in tree.chain(tree.head().id, above_slot=after_slot):
            assert node.checkpoint is not None
            yield node.checkpoint.envelope.encode()

    def _inventory(self, from_slot: int, *, with_ids: bool) -> peer_pb2.Inventory:
        tree = self._state.tree
        head = tree.head()
        inventory = peer_pb2.Inventory(
            from_slot=from_slot,
            head=head.id,
            head_slot=head.slot,
            final=tree.final.checkpoint,
            final_slot=tree.final.slot,
            archive=self.is_archive,
            addresses=self._network.addresses()[:8] if self._network is not None else [],
        )
        if with_ids:
            ids = self._store.object_ids(from_slot)[-MAX_INVENTORY_IDS:]
            inventory.object_ids.extend(object_id for object_id, _, _ in ids)
        return inventory

    def _note_neighbour(self, peer: bytes, inventory: peer_pb2.Inventory) -> None:
        """Remember how far a neighbour is, and where it says it can be reached: dial there, now or after a restart."""
        self.head_slots[peer] = inventory.head_slot
        self.final_slots[peer] = inventory.final_slot
        if inventory.archive:
            self.archives[peer] = None
        else:
            self.archives.pop(peer, None)
        for address in inventory.addresses[:8]:
            self._dial(address)

    def _dial(self, address: str) -> None:
        network = self._network
        if network is None or len(self._dialling) >= 8 or len(address) > 200:
            return

        async def dial() -> None:
            try:
                await network.connect(address)
            except NetworkError as error:
                log.debug("No connection to %s: %s", address, error)

        task = asyncio.get_running_loop().create_task(dial())
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    # ---- asking ----------------------------------------------------------------------------------

    async def run(self, *, interval_s: float) -> None:
        """Compare inventories with every neighbour, again and again."""
        assert self._network is not None
        while True:
            for info in self._network.peers():
                if self._conduct.refusal(info.key) is not None:
                    continue
                try:
                    await self._catch_up(info.key)
                except PeerFailure as error:
                    level = logging.WARNING if error.code == peer_pb2.Failure.SHUT_OUT else logging.DEBUG
                    log.log(level, "Neighbour %s: %s", short(info.key), error)
                except NetworkError as error:
                    log.debug("Neighbour %s did not answer: %s", short(info.key), error)
            await asyncio.sleep(interval_s)

    async def fetch(self, ids: tuple[bytes, ...]) -> None:
        """Ask neighbours, one after the other, for objects that others refer to."""
        assert self._network is not None
        missing = set(ids)
        for info in self._network.peers():
            if not missing:
                return
            if self._conduct.refusal(info.key) is not None:
                continue
            try:
                await self._fetch_from(info.key, sorted(missing))
            except NetworkError as error:
                log.debug("Neighbour %s did not answer: %s", short(info.key), error)
            missing = {object_id for object_id in missing if not self._state.has(object_id)}

    async def _fetch_from(self, peer: bytes, ids: Sequence[bytes]) -> peer_pb2.Objects:
        """Ask a neighbour for objects, and take in those that were asked for.

        Raises:
            NetworkError: It did not answer, or was shut out for what it answered.
        """
        assert self._network is not None
        request = peer_pb2.Request(get_objects=peer_pb2.GetObjects(ids=ids))
        reply = (await self._network.request(peer, request, timeout_s=REQUEST_TIMEOUT_S)).objects
        await self._taker.take_many(reply.envelopes, peer, asked=frozenset(ids))
        return reply

    async def look_up(self, *, slot: int) -> None:
        """Read the DHT's hints of one slot: announced checkpoints, contributions, votes, records."""
        assert self._network is not None
        for kind in ("contribution", "vote", "record"):
            found = await self._network.lookup(kind, slot)
            await self._taker.take_many(found[:MAX_FOUND], None)
        unknown: list[bytes] = []
        for data in (await self._network.lookup("checkpoint", slot))[:MAX_FOUND]:
            try:
                envelope = open_envelope(data, swarm=self._state.genesis.swarm)
                announcement = open_announcement(envelope)
            except ProtocolError as error:
                log.debug("Announcement refused: %s.", error.detail)
                continue
            if not self._state.has(announcement.object_id):
                unknown.append(announcement.object_id)
        if unknown:
            await self.fetch(tuple(unknown))

    async def _catch_up(self, peer: bytes) -> None:
        """First the neighbour's chain, oldest first; then whatever else it has of recent slots."""
        assert self._network is not None
        tree = self._state.tree
        request = peer_pb2.Request(inventory=self._inventory(0, with_ids=False))
        request.inventory.from_slot = max(tree.final.slot - OVERLAP_SLOTS, 0)
        reply = await self._network.request(peer, request, timeout_s=REQUEST_TIMEOUT_S)
        theirs = reply.inventory
        self._note_neighbour(peer, theirs)
        is_behind = theirs.head not in tree.nodes and theirs.head_slot > tree.head().slot + 1
        if is_behind:
            self._feed(round_io.CatchingUp())
            await self._fetch_chain(peer)
        await self._fetch_missing(peer, theirs.object_ids[:MAX_INVENTORY_IDS])
        self.synced.set()
        if is_behind:
            self._feed(round_io.Synced())

    async def _fetch_missing(self, peer: bytes, ids: Sequence[bytes]) -> None:
        """Whatever a neighbour says it has and this node lacks; no longer than it is worth."""
        patience = Patience()
        missing = [object_id for object_id in ids if not self._state.has(object_id)]
        while missing:
            batch, missing = missing[:BATCH_IDS], missing[BATCH_IDS:]
            reply = await self._fetch_from(peer, batch)
            still = [object_id for object_id in batch if not self._state.has(object_id)]
            if not patience.is_worth(len(batch) - len(still)):
                return
            if reply.more:
                missing = still[: BATCH_IDS - len(reply.envelopes)] + missing

    async def _fetch_chain(self, peer: bytes) -> None:
        assert self._network is not None
        patience = Patience()
        tree = self._state.tree
        after = tree.final.slot
        while True:
            request = peer_pb2.Request(get_chain=peer_pb2.GetChain(after_slot=after))
            reply = (await self._network.request(peer, request, timeout_s=REQUEST_TIMEOUT_S)).objects
            await self._taker.take_many(reply.envelopes, peer)
            slots = [slot for slot in map(self._slot_in_tree, reply.envelopes) if slot is not None]
            if not reply.more or not slots or max(slots) <= after or not patience.is_worth(len(slots)):
                return
            after = max(slots)

    def _slot_in_tree(self, data: bytes) -> int | None:
        """The slot of a checkpoint that has a place here; None of anything else."""
        try:
            envelope = open_envelope(data, swarm=self._state.genesis.swarm)
        except ProtocolError:
            return None
        state = self._state.tree.lookup(envelope.id)
        return state.slot if state is not None else None


class Patience:
    """How long one neighbour is listened to while others wait: a while, or as long as it brings much."""

    def __init__(self) -> None:
        self._ends_s = asyncio.get_running_loop().time() + PATIENCE_S

    def is_worth(self, num_objects: int) -> bool:
        """Whether to go on after an answer that brought so many objects."""
        return num_objects >= MIN_PROGRESS or asyncio.get_running_loop().time() < self._ends_s


def _failure(code: peer_pb2.Failure.Code, detail: str) -> peer_pb2.Response:
    return peer_pb2.Response(failure=peer_pb2.Failure(code=code, detail=detail))
