"""What this node and its neighbours tell each other: answers to requests, and catching up.

Fresh objects are pushed at once. Whatever a push missed is found by comparing inventories with the
neighbours, so a lost message costs seconds and never a record. The DHT is a third way, for those
who are not connected yet.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fullrank_node.blob_store import BlobStore
from fullrank_node.clock import Clock
from fullrank_node.network.interface import Network, NetworkError
from fullrank_node.store import Store
from fullrank_protocol import round_io
from fullrank_protocol.envelope import Envelope, open_envelope
from fullrank_protocol.errors import ProtocolError
from fullrank_protocol.hints import open_announcement
from fullrank_protocol.wire import objects_pb2, peer_pb2

if TYPE_CHECKING:
    from fullrank_protocol.round_state import RoundState

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""A neighbour that has not answered by then is asked again later; loopback answers in milliseconds."""

MAX_REPLY_BYTES = 3 << 20
"""Objects in one answer: below the frame limit with room for the framing."""

MAX_INVENTORY_IDS = 50_000
"""Ids in one inventory (1.6 MB): some hundred slots of the largest swarm."""

MAX_TAKEN_AT_ONCE = 100
"""Objects taken in before other work of the daemon goes on: a tenth of a second or two."""

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
    ) -> None:
        """Initialises.

        Args:
            store: Objects to tell of.
            clock: Tells the time.
            state: The round machine's, read only.
            feed: Takes events for the round machine; several at a time are cheaper than one after another.
        """
        self._store = store
        self._clock = clock
        self._state = state
        self._feed = feed
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
        """Answer one request of a neighbour."""
        match request.WhichOneof("body"):
            case "get_genesis":
                return self._objects([self._state.genesis.envelope.encode()])
            case "inventory":
                self._note_neighbour(peer, request.inventory)
                return peer_pb2.Response(inventory=self._inventory(request.inventory.from_slot, with_ids=True))
            case "get_objects":
                found = (self._store.get_object(object_id) for object_id in request.get_objects.ids)
                return self._objects(envelope for envelope in found if envelope is not None)
            case "get_chain":
                return self._objects(self._chain(request.get_chain.after_slot))
            case "offer":
                num_new = self._take(request.offer.envelopes, peer)
                return peer_pb2.Response(received=peer_pb2.Received(num_new=num_new))
            case other:
                failure = peer_pb2.Failure(code=peer_pb2.Failure.MALFORMED, detail=f"request {other!r} is not known")
                return peer_pb2.Response(failure=failure)

    def _take(self, objects: Iterable[bytes], peer: bytes | None) -> int:
        """Open objects of a neighbour and hand them on together; how many were new."""
        new = [envelope for envelope in self._opened(objects, peer) if envelope.id not in self._state.known]
        if new:
            self._feed(*(round_io.ObjectReceived(envelope=envelope) for envelope in new))
        return len(new)

    async def _take_many(self, objects: Sequence[bytes], peer: bytes) -> None:
        """The same for a long answer, without holding up everything else."""
        for start in range(0, len(objects), MAX_TAKEN_AT_ONCE):
            self._take(objects[start : start + MAX_TAKEN_AT_ONCE], peer)
            await asyncio.sleep(0)

    def _opened(self, objects: Iterable[bytes], peer: bytes | None) -> Iterator[Envelope]:
        for data in objects:
            try:
                yield open_envelope(data, swarm=self._state.genesis.swarm)
            except ProtocolError as error:
                log.warning("Object from %s refused: %s.", _short(peer), error.detail)

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
        """Remember how far a neighbour is, and dial where it says it can be reached."""
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
        if any(address in info.addresses for info in network.peers()):
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
                try:
                    await self._catch_up(info.key)
                except NetworkError as error:
                    log.debug("Neighbour %s did not answer: %s", _short(info.key), error)
            await asyncio.sleep(interval_s)

    async def fetch(self, ids: tuple[bytes, ...]) -> None:
        """Ask neighbours, one after the other, for objects that others refer to."""
        assert self._network is not None
        missing = set(ids)
        for info in self._network.peers():
            if not missing:
                return
            request = peer_pb2.Request(get_objects=peer_pb2.GetObjects(ids=sorted(missing)))
            try:
                reply = await self._network.request(info.key, request, timeout_s=REQUEST_TIMEOUT_S)
            except NetworkError as error:
                log.debug("Neighbour %s did not answer: %s", _short(info.key), error)
                continue
            await self._take_many(reply.objects.envelopes, info.key)
            missing -= self._state.known

    async def look_up(self, *, slot: int) -> None:
        """Read the DHT's hints of one slot: announced checkpoints, contributions, votes, records."""
        assert self._network is not None
        for kind in ("contribution", "vote", "record"):
            self._take(await self._network.lookup(kind, slot), None)
        unknown: list[bytes] = []
        for data in await self._network.lookup("checkpoint", slot):
            try:
                envelope = open_envelope(data, swarm=self._state.genesis.swarm)
                announcement = open_announcement(envelope)
            except ProtocolError as error:
                log.debug("Announcement refused: %s.", error.detail)
                continue
            if announcement.object_id not in self._state.known:
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
        missing = [object_id for object_id in theirs.object_ids if object_id not in self._state.known]
        while missing:
            batch, missing = missing[:500], missing[500:]
            request = peer_pb2.Request(get_objects=peer_pb2.GetObjects(ids=batch))
            reply = await self._network.request(peer, request, timeout_s=REQUEST_TIMEOUT_S)
            taken = len(reply.objects.envelopes)
            await self._take_many(reply.objects.envelopes, peer)
            if reply.objects.more and taken:
                missing = [i for i in batch if i not in self._state.known][: 500 - taken] + missing
        self.synced.set()
        if is_behind:
            self._feed(round_io.Synced())

    async def _fetch_chain(self, peer: bytes) -> None:
        assert self._network is not None
        after = self._state.tree.final.slot
        while True:
            request = peer_pb2.Request(get_chain=peer_pb2.GetChain(after_slot=after))
            reply = await self._network.request(peer, request, timeout_s=REQUEST_TIMEOUT_S)
            last = after
            await self._take_many(reply.objects.envelopes, peer)
            for data in reply.objects.envelopes:
                last = max(last, _checkpoint_slot(data, swarm=self._state.genesis.swarm))
            if not reply.objects.more or last <= after:
                return
            after = last


def _checkpoint_slot(data: bytes, *, swarm: bytes) -> int:
    try:
        envelope = open_envelope(data, swarm=swarm)
        message = objects_pb2.Checkpoint.FromString(envelope.payload)
    except (ProtocolError, ValueError):
        return 0
    return int(message.slot)


def _short(key: bytes | None) -> str:
    return key.hex()[:8] if key is not None else "the DHT"
