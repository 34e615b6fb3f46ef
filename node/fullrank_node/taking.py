"""Objects of neighbours on their way in: opened, handed to the round machine, and their senders held to account.

Who brought an object is remembered until the machine has judged it, also where it is set aside first.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING

from fullrank_node.conduct import Conduct
from fullrank_node.network.asking import short
from fullrank_node.network.interface import NetworkError
from fullrank_protocol import round_io
from fullrank_protocol.envelope import Envelope, open_envelope, type_name
from fullrank_protocol.errors import IgnoreError, RejectError
from fullrank_protocol.wire import peer_pb2

if TYPE_CHECKING:
    from fullrank_protocol.round_state import RoundState

log = logging.getLogger(__name__)

MAX_TAKEN_AT_ONCE = 100
"""Objects taken in before other work of the daemon goes on: a tenth of a second or two."""

MAX_REFUSALS_TOLD = 16
"""Refused objects of one offer of which the sender is told."""

MAX_SENDERS_REMEMBERED = 8192
"""Objects on their way through the round machine, and set aside there, of which the sender is remembered."""


class Taker:
    """Takes objects in."""

    def __init__(self, *, state: "RoundState", feed: Callable[..., None], conduct: Conduct) -> None:
        """Initialises.

        Args:
            state: The round machine's, read only.
            feed: Takes events for the round machine; several at a time are cheaper than one after another.
            conduct: What peers have sent that nobody honest sends.
        """
        self._state = state
        self._feed = feed
        self._conduct = conduct
        self._senders: OrderedDict[bytes, bytes] = OrderedDict()
        self._dropped: deque[round_io.Drop] = deque(maxlen=MAX_TAKEN_AT_ONCE)

    async def take_offer(self, objects: Sequence[bytes], peer: bytes) -> peer_pb2.Received:
        """Take in what a neighbour pushes: how much of it was new, and what was refused.

        Raises:
            NetworkError: The neighbour was shut out for what it held.
        """
        received = peer_pb2.Received()
        for start in range(0, len(objects), MAX_TAKEN_AT_ONCE):
            num_new, refused = self.take(objects[start : start + MAX_TAKEN_AT_ONCE], peer, is_offer=True)
            received.num_new += num_new
            received.refused.extend(refused[: MAX_REFUSALS_TOLD - len(received.refused)])
            await self._pause(peer)
        return received

    def take(
        self,
        objects: Iterable[bytes],
        peer: bytes | None,
        *,
        is_offer: bool = False,
        asked: Set[bytes] | None = None,
    ) -> tuple[int, list[peer_pb2.RefusedObject]]:
        """Open objects of a neighbour and hand them on together; how many were new, and what was refused."""
        refused: list[peer_pb2.RefusedObject] = []
        new = list(self._opened(objects, peer, refused, is_offer=is_offer, asked=asked))
        if new:
            ids = {envelope.id for envelope in new}
            self._dropped.clear()
            self._feed(*(round_io.ObjectReceived(envelope=envelope) for envelope in new))
            refused += [
                peer_pb2.RefusedObject(id=drop.envelope.id, rule=drop.rule, detail=drop.detail)
                for drop in self._dropped
                if drop.rule is not None and drop.envelope.id in ids
            ]
        return len(new), refused

    async def take_many(self, objects: Sequence[bytes], peer: bytes | None, *, asked: Set[bytes] | None = None) -> None:
        """Take in a long answer without holding up everything else; where it is known, only what was asked for.

        Args:
            objects: Envelopes.
            peer: Who answered; None where nobody can be named, as on the DHT.
            asked: Ids that were asked for; None where no ids were named.

        Raises:
            NetworkError: The neighbour was shut out for what it held.
        """
        for start in range(0, len(objects), MAX_TAKEN_AT_ONCE):
            self.take(objects[start : start + MAX_TAKEN_AT_ONCE], peer, asked=asked)
            await self._pause(peer)

    def _opened(
        self,
        objects: Iterable[bytes],
        peer: bytes | None,
        refused: list[peer_pb2.RefusedObject],
        *,
        is_offer: bool,
        asked: Set[bytes] | None,
    ) -> Iterator[Envelope]:
        for data in objects:
            if peer is not None and self._conduct.refusal(peer) is not None:
                return
            try:
                envelope = open_envelope(data, swarm=self._state.genesis.swarm, is_known=self._state.has)
            except RejectError as error:
                sender = short(peer) if peer is not None else "the DHT"
                log.warning("Object from %s refused: %s.", sender, error.detail)
                refused.append(peer_pb2.RefusedObject(rule=error.rule, detail=error.detail))
                if peer is not None:
                    why = f"sent an object that was refused by rule {error.rule.name}: {error.detail}"
                    self._conduct.false_object(peer, why, num_bytes=len(data))
            except IgnoreError:
                if peer is not None and is_offer:
                    self._conduct.offered(peer, data)
            else:
                if peer is not None and asked is not None and envelope.id not in asked:
                    self._conduct.unasked(peer)
                    continue
                if peer is not None:
                    self._note_sender(envelope, peer)
                    self._conduct.offered(peer, data)
                yield envelope

    def _note_sender(self, envelope: Envelope, peer: bytes) -> None:
        self._senders.setdefault(envelope.id, peer)
        if len(self._senders) > MAX_SENDERS_REMEMBERED:
            self._senders.popitem(last=False)

    def kept(self, object_id: bytes) -> None:
        """An object was sound: who brought it does not matter any more."""
        self._senders.pop(object_id, None)

    def dropped(self, drop: round_io.Drop) -> None:
        """An object was not taken: where it is wrong wherever it is looked at, whoever brought it pays for it."""
        self._dropped.append(drop)
        peer = self._senders.pop(drop.envelope.id, None)
        if peer is None or drop.rule is None or not drop.blames_sender:
            return
        kind = type_name(drop.envelope.type)
        why = f"sent {_a(kind)} that was refused by rule {drop.rule.name}: {drop.detail}"
        self._conduct.false_object(peer, why, num_bytes=len(drop.envelope.payload))

    async def _pause(self, peer: bytes | None) -> None:
        """Let other work of the daemon go on."""
        if peer is not None and (why := self._conduct.refusal(peer)) is not None:
            raise NetworkError(why)
        await asyncio.sleep(0)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
