"""Finding peers through peers: own addresses onto the DHT, others' addresses from it (protocol section 9).

After this a founder's departure loses nothing: everybody has met everybody's addresses.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from fullrank_node.addresses import parse_address
from fullrank_node.clock import Clock
from fullrank_node.network.peer_cache import PeerCache
from fullrank_node.network.publisher import MIN_LIFETIME_MS
from fullrank_node.network.settings import NetworkSettings
from fullrank_protocol.envelope import Envelope, open_envelope
from fullrank_protocol.errors import RejectError
from fullrank_protocol.hints import make_peer, open_peer
from fullrank_protocol.identity import SigningKey

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""Pauses between two looks double from the first to the longest, and begin anew when peers come or go."""

_RENEW_MS: Final = MIN_LIFETIME_MS // 3


class Discovery:
    """Publishes where this node is and learns where others are."""

    def __init__(
        self,
        *,
        key: SigningKey,
        swarm: bytes,
        settings: NetworkSettings,
        clock: Clock,
        cache: PeerCache,
        addresses: Callable[[], list[str]],
        publish: Callable[[str, int, Envelope], Awaitable[None]],
        lookup: Callable[[str, int], Awaitable[list[bytes]]],
        meet_again: Callable[[], Awaitable[None]],
        num_peers: Callable[[], int],
    ) -> None:
        """Initialises.

        Args:
            key: Signs the peer record.
            swarm: Swarm id.
            settings: What the record says beside addresses.
            clock: When it was issued.
            cache: Takes the addresses found.
            addresses: Where this node can be dialled.
            publish: Puts an envelope on the DHT.
            lookup: Finds envelopes there.
            meet_again: Meets the connected peers in the DHT when it knows none of them.
            num_peers: How many are connected.
        """
        self._key = key
        self._swarm = swarm
        self._settings = settings
        self._clock = clock
        self._cache = cache
        self._addresses = addresses
        self._publish = publish
        self._lookup = lookup
        self._meet_again = meet_again
        self._num_peers = num_peers
        self._published: list[str] = []
        self._published_at_ms = 0

    async def run(self) -> None:
        """Looks for peers for ever."""
        pause_s = FIRST_PAUSE_S
        num_peers = 0
        while True:
            await self._publish_own()
            if self._num_peers():
                await self._meet_again()
                await self._learn()
            waited_s = 0.0
            while waited_s < pause_s and self._num_peers() == num_peers:
                await asyncio.sleep(FIRST_PAUSE_S)
                waited_s += FIRST_PAUSE_S
            changed = self._num_peers() != num_peers
            num_peers = self._num_peers()
            pause_s = FIRST_PAUSE_S if changed else min(2 * pause_s, LONGEST_PAUSE_S)

    async def _publish_own(self) -> None:
        addresses = self._addresses()
        now_ms = self._clock.now_ms()
        if not addresses or (addresses == self._published and now_ms - self._published_at_ms < _RENEW_MS):
            return
        envelope = make_peer(
            self._key,
            swarm=self._swarm,
            addresses=addresses,
            issued_at_ms=now_ms,
            archive=self._settings.is_archive(),
            software=self._settings.software,
        )
        await self._publish("peer", 0, envelope)
        self._published, self._published_at_ms = addresses, now_ms

    async def _learn(self) -> None:
        for data in await self._lookup("peer", 0):
            try:
                peer = open_peer(open_envelope(data, swarm=self._swarm))
                for text in peer.addresses:
                    if parse_address(text).key == peer.key:
                        self._cache.add(text)
            except (RejectError, ValueError) as error:
                logger.debug("Left out a peer record: %s", error)
