"""This node's own records on the DHT, renewed before they expire for as long as they matter (protocol section 9).

Nothing is re-published by the DHT itself. Storing never holds anybody up: it happens here, in
the background, and a failure only means that it is tried again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fullrank_node.clock import Clock
from fullrank_node.network.records import Kind, Place, encode_body
from fullrank_protocol.envelope import Envelope

logger = logging.getLogger(__name__)

Store = Callable[[bytes, bytes, float], Awaitable[bool]]
"""Stores (DHT key, body, expiry in Unix seconds) under this node's own subkey."""

CONCURRENT_STORES: Final = 4

MIN_LIFETIME_MS: Final = 120_000
"""Shortest life of a record: renewing in a demo of two-second slots must not take all the time there is."""

LIFETIME_SLOTS: Final = 4
"""Life of a record in slots: "at most a few slots ahead"."""

RELEVANT_SLOTS: Final = 4
"""For how many slots a hint is renewed; older objects are found by inventories."""

_RETRY_MS: Final = 5_000
_LOOK_S: Final = 1.0


def lifetime_ms(slot_window_ms: int | None) -> int:
    """Life of a record from its publication, for slots of this length."""
    return max(MIN_LIFETIME_MS, LIFETIME_SLOTS * (slot_window_ms or 0))


@dataclass(slots=True, kw_only=True)
class _Published:
    place: Place
    body: bytes
    relevant_until_ms: int
    renew_at_ms: int = 0


class Publisher:
    """Keeps this node's records alive."""

    def __init__(self, store: Store, *, swarm: bytes, clock: Clock, slot_window_ms: int | None) -> None:
        self._store = store
        self._swarm = swarm
        self._clock = clock
        self._lifetime_ms = lifetime_ms(slot_window_ms)
        self._relevant_ms = max(MIN_LIFETIME_MS, RELEVANT_SLOTS * (slot_window_ms or 0))
        self._published: dict[tuple[Kind, int], _Published] = {}
        self._wake = asyncio.Event()

    def put(self, place: Place, envelope: Envelope) -> None:
        """Publishes `envelope`, in place of an earlier one of the same kind and slot.

        Raises:
            ValueError: That type does not belong under that kind.
        """
        self._published[place.kind, place.slot] = _Published(
            place=place,
            body=encode_body(place, envelope),
            relevant_until_ms=self._clock.now_ms() + self._relevant_ms,
        )
        self._wake.set()

    def renew_all(self) -> None:
        """Publishes everything again: the DHT nodes that held it may be gone, or the first ones have appeared."""
        for item in self._published.values():
            item.renew_at_ms = 0
        self._wake.set()

    async def run(self) -> None:
        """Stores what is due, for ever."""
        limit = asyncio.Semaphore(CONCURRENT_STORES)
        while True:
            self._wake.clear()
            now_ms = self._clock.now_ms()
            self._published = {key: item for key, item in self._published.items() if item.relevant_until_ms > now_ms}
            due = [item for item in self._published.values() if item.renew_at_ms <= now_ms]
            await asyncio.gather(*(self._renew(item, limit) for item in due))
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _renew(self, item: _Published, limit: asyncio.Semaphore) -> None:
        async with limit:
            now_ms = self._clock.now_ms()
            # Set first: a request to renew that comes in meanwhile must win.
            item.renew_at_ms = now_ms + self._lifetime_ms // 2
            stored = await self._store(item.place.dht_key(self._swarm), item.body, (now_ms + self._lifetime_ms) / 1000)
            if not stored:
                item.renew_at_ms = min(item.renew_at_ms, now_ms + _RETRY_MS)
                logger.debug("No DHT node took the %s record of slot %d", item.place.kind.name.lower(), item.place.slot)
