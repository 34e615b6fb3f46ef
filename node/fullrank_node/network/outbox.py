"""Offers to neighbours: one bounded queue and one sender for each, so that a slow peer delays nobody.

What a queue cannot hold is dropped, oldest first; the peers' inventories bring it later.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from fullrank_node.network.asking import short
from fullrank_node.network.frames import batches
from fullrank_node.network.interface import NetworkError
from fullrank_protocol.canonical import clip_text
from fullrank_protocol.errors import rule_name
from fullrank_protocol.limits import MAX_CHECKPOINT_BYTES, MAX_DETAIL_BYTES
from fullrank_protocol.wire import peer_pb2

logger = logging.getLogger(__name__)

Ask = Callable[[bytes, peer_pb2.Request, float], Awaitable[peer_pb2.Response]]
"""Asks a peer (key, request, seconds to wait)."""

MAX_QUEUED_BYTES: Final = 4 * MAX_CHECKPOINT_BYTES
"""Waiting for one peer: four of the largest checkpoints. Envelopes are shared between the queues."""

MAX_QUEUED: Final = 1024
"""Envelopes waiting for one peer: the votes and contributions of several slots of a large swarm."""

OFFER_TIMEOUT_S: Final = 30.0

MAX_REFUSALS_TOLD: Final = 16
"""Refused objects of one offer that the log names, whatever the peer answers."""


class Outboxes:
    """All neighbours' queues."""

    def __init__(self, ask: Ask, *, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        """Initialises.

        Args:
            ask: Sends a request.
            spawn: Runs a sender for as long as the network lives.
        """
        self._ask = ask
        self._spawn = spawn
        self._boxes: dict[bytes, _Outbox] = {}

    def open(self, peer: bytes) -> None:
        """A peer is connected: begin to send to it."""
        if peer not in self._boxes:
            box = _Outbox(peer, self._ask)
            box.task = self._spawn(box.run())
            self._boxes[peer] = box

    def close(self, peer: bytes) -> None:
        """A peer is gone: drop what waits for it."""
        box = self._boxes.pop(peer, None)
        if box is not None and box.task is not None:
            box.task.cancel()

    def put(self, envelopes: Sequence[bytes]) -> None:
        """Queues `envelopes` for every connected peer."""
        for box in self._boxes.values():
            box.put(envelopes)


class _Outbox:
    def __init__(self, peer: bytes, ask: Ask) -> None:
        self.task: asyncio.Task[None] | None = None
        self._peer = peer
        self._ask = ask
        self._queue: deque[bytes] = deque()
        self._num_bytes = 0
        self._filled = asyncio.Event()

    def put(self, envelopes: Sequence[bytes]) -> None:
        self._queue.extend(envelopes)
        self._num_bytes += sum(map(len, envelopes))
        num_dropped = 0
        while self._queue and (self._num_bytes > MAX_QUEUED_BYTES or len(self._queue) > MAX_QUEUED):
            self._num_bytes -= len(self._queue.popleft())
            num_dropped += 1
        if num_dropped:
            logger.info("Peer %s is slow: dropped %d offers to it", short(self._peer), num_dropped)
        self._filled.set()

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            envelopes = list(self._queue)
            self._queue.clear()
            self._num_bytes = 0
            for batch in batches(envelopes, max_bytes=MAX_CHECKPOINT_BYTES):
                request = peer_pb2.Request(offer=peer_pb2.Offer(envelopes=batch))
                try:
                    reply = await self._ask(self._peer, request, OFFER_TIMEOUT_S)
                    self._tell_of(reply.received.refused)
                except NetworkError as error:
                    logger.debug("Peer %s took no offer: %s", short(self._peer), error)

    def _tell_of(self, refused: Sequence[peer_pb2.RefusedObject]) -> None:
        for each in refused[:MAX_REFUSALS_TOLD]:
            detail = clip_text(each.detail, MAX_DETAIL_BYTES)
            logger.info(
                "Peer %s refused %s by rule %s: %s", short(self._peer), each.id.hex()[:12], rule_name(each.rule), detail
            )
