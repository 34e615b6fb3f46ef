"""The swarm's notice board: this node's hints onto the DHT, others' hints from it (protocol section 9).

The DHT comes and goes with p2pd; what was published here stays to be published again.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fullrank_node.clock import Clock
from fullrank_node.network.publisher import Publisher
from fullrank_node.network.records import Audience, Kind, envelope_bytes, place_of, places_of
from fullrank_protocol.envelope import Envelope

if TYPE_CHECKING:
    from fullrank_node.network.dht import Directory, IsMember


class Board:
    """Publishes and finds records."""

    def __init__(
        self,
        *,
        own_key: bytes,
        swarm: bytes,
        clock: Clock,
        slot_window_ms: int | None,
        is_member: "IsMember | None",
        directory: "Callable[[], Directory | None]",
    ) -> None:
        """Initialises.

        Args:
            own_key: Author of everything published here.
            swarm: Swarm id.
            clock: Tells when to renew.
            slot_window_ms: Length of a slot; None while the genesis is not known.
            is_member: Whether a key is a member's; None: not known, everybody is a stranger.
            directory: The DHT now; None while p2pd is being replaced.
        """
        self._own_key = own_key
        self._swarm = swarm
        self._is_member = is_member
        self._directory = directory
        self._publisher = Publisher(self._store, swarm=swarm, clock=clock, slot_window_ms=slot_window_ms)

    def publish(self, kind: str, slot: int, envelope: Envelope) -> None:
        """Has `envelope` stored and renewed in the background.

        Raises:
            ValueError: Not a kind, not a type that belongs under it, or signed by another key.
        """
        if envelope.public_key != self._own_key:
            raise ValueError("only this node's own objects can stand under its key on the DHT: announce others")
        record_kind = _kind(kind)
        member = self._is_member is not None and self._is_member(self._own_key)
        audience = Audience.MEMBERS if member else Audience.OTHERS
        slot = 0 if record_kind == Kind.PEER else slot
        self._publisher.put(place_of(record_kind, slot, audience, self._own_key), envelope)

    async def lookup(self, kind: str, slot: int) -> list[bytes]:
        """Envelopes found, to be verified again; none when the DHT fails."""
        directory = self._directory()
        if directory is None:
            return []
        record_kind = _kind(kind)
        places = places_of(record_kind, 0 if record_kind == Kind.PEER else slot)
        bodies = await directory.find([place.dht_key(self._swarm) for place in places])
        return [envelope_bytes(body) for body in bodies]

    def renew_all(self) -> None:
        """Stores everything again: the DHT is another one now."""
        self._publisher.renew_all()

    async def meet(self, peer: bytes) -> None:
        """Gets to know a connected peer in the DHT, and through it those it knows."""
        directory = self._directory()
        if directory is None:
            return
        alone = directory.num_neighbours == 0
        if await directory.greet(peer) and alone:
            self.renew_all()

    async def meet_again(self, peers: Sequence[bytes]) -> None:
        """Meets `peers` in the DHT where it knows nobody, though there are connections."""
        directory = self._directory()
        if directory is not None and directory.num_neighbours == 0:
            await asyncio.gather(*(self.meet(peer) for peer in peers))

    async def run(self) -> None:
        """Keeps this node's records alive, for ever."""
        await self._publisher.run()

    async def _store(self, dht_key: bytes, body: bytes, expiration_s: float) -> bool:
        directory = self._directory()
        if directory is None:
            return False
        return await directory.store(dht_key, subkey=self._own_key, value=body, expiration_s=expiration_s)


def _kind(name: str) -> Kind:
    try:
        return Kind[name.upper()]
    except KeyError:
        raise ValueError(f"{name!r} is no kind of DHT record") from None
