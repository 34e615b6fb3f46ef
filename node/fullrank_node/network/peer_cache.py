"""Who was seen where, kept over restarts: the first bootstrap may be gone (protocol section 3).

An address book in memory with a pause for each peer that does not answer, and a small JSON file of
those that were connected. Every address is only a hint: the transport checks who answers there.
"""

import json
import logging
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fullrank_node.addresses import Address, parse_address, usefulness
from fullrank_node.errors import NodeError
from fullrank_node.files import write_atomically
from fullrank_protocol.limits import MAX_ADDRESSES

logger = logging.getLogger(__name__)

MAX_CACHED_PEERS: Final = 256
"""Peers kept in the file: enough that some of them are still there a month later."""

MAX_KNOWN_PEERS: Final = 2048
"""Peers in memory. Anybody can publish peer records; those that never answered go first."""

MAX_FILE_BYTES: Final = 1 << 20

_FIRST_PAUSE_S: Final = 1.0

_SEEN_AGAIN_MS: Final = 60_000
"""A peer that stays connected is noted as seen this often: the file need not be written for less."""

_FORMAT: Final = 1


@dataclass(slots=True, kw_only=True)
class KnownPeer:
    """What is known about one peer's whereabouts.

    Attributes:
        bases: Addresses without peer id, the newest last, and why each did not answer last time.
        pinned: From the link or the configuration: never forgotten.
        last_seen_ms: When it was last connected, whoever had dialled; 0 when never.
        next_try_s: Loop time before which it is left in peace.
    """

    key: bytes
    bases: dict[str, str] = field(default_factory=dict)
    pinned: bool = False
    last_seen_ms: int = 0
    num_failures: int = 0
    next_try_s: float = 0.0

    def addresses(self) -> list[str]:
        """With peer id, the most useful first."""
        return [str(Address(base=base, key=self.key)) for base in sorted(self.bases, key=usefulness)]


class PeerCache:
    """The address book.

    Attributes:
        ports: Where this node listened when it last ran.
    """

    def __init__(self, path: Path | None, *, own_key: bytes, max_pause_s: float) -> None:
        """Reads the file at `path`, if there is one; a damaged one is as good as none."""
        self.ports: tuple[int, ...] = ()
        self._path = path
        self._own_key = own_key
        self._max_pause_s = max_pause_s
        self._peers: dict[bytes, KnownPeer] = {}
        self._changed = False
        self._load()

    def add(self, text: str, *, pinned: bool = False) -> KnownPeer | None:
        """Notes an address; None when it is this node's own.

        Raises:
            ValueError: It is no address; the message is fit for people.
        """
        address = parse_address(text)
        if address.key == self._own_key:
            return None
        peer = self._peers.setdefault(address.key, KnownPeer(key=address.key))
        if address.base not in peer.bases:
            peer.bases[address.base] = ""
            peer.next_try_s = 0.0
            while len(peer.bases) > MAX_ADDRESSES:
                peer.bases.pop(next(iter(peer.bases)))
        peer.pinned |= pinned
        self._shrink()
        return peer

    def keys(self) -> frozenset[bytes]:
        """All peers of which an address is known."""
        return frozenset(self._peers)

    def known(self, key: bytes) -> KnownPeer | None:
        """What is known about a peer."""
        return self._peers.get(key)

    def due(self, now_s: float, *, without: Collection[bytes]) -> list[KnownPeer]:
        """Peers to try now: those of the link first, then those seen last."""
        due = [peer for peer in self._peers.values() if peer.next_try_s <= now_s and peer.key not in without]
        return sorted(due, key=lambda peer: (not peer.pinned, -peer.last_seen_ms))

    def seen(self, key: bytes, *, now_ms: int) -> None:
        """A peer is connected; who dialled does not matter. Whoever starts again may have to dial it."""
        peer = self._peers.get(key)
        if peer is not None and (not peer.last_seen_ms or now_ms - peer.last_seen_ms >= _SEEN_AGAIN_MS):
            peer.last_seen_ms = now_ms
            self._changed = True

    def succeeded(self, key: bytes, *, now_ms: int) -> None:
        """A peer answered at one of its addresses."""
        peer = self._peers.get(key)
        if peer is None:
            return
        peer.last_seen_ms = now_ms
        peer.num_failures = 0
        peer.next_try_s = 0.0
        peer.bases = dict.fromkeys(peer.bases, "")
        self._changed = True

    def failed(
        self, key: bytes, reason: str, *, by_address: dict[str, str], now_s: float, again_soon: bool = False
    ) -> None:
        """A peer did not answer; it is tried again after a pause that doubles each time, unless `again_soon`."""
        peer = self._peers.get(key)
        if peer is None:
            return
        peer.bases = {base: by_address.get(base, reason) for base in peer.bases}
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(peer.num_failures, 16), self._max_pause_s)
        if again_soon:
            pause_s = _FIRST_PAUSE_S
        else:
            peer.num_failures += 1
        peer.next_try_s = now_s + pause_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads retries, hides nothing.

    def lost(self, key: bytes, *, now_s: float) -> None:
        """A connection broke: worth trying again soon, when the peer may have restarted."""
        peer = self._peers.get(key)
        if peer is not None:
            peer.num_failures = 0
            peer.next_try_s = now_s + _FIRST_PAUSE_S

    def errors(self, *, connected: Collection[bytes]) -> dict[str, str]:
        """Why peers that are not connected are not, by address."""
        return {
            str(Address(base=base, key=peer.key)): reason
            for peer in self._peers.values()
            if peer.key not in connected
            for base, reason in peer.bases.items()
            if reason
        }

    def save(self, *, ports: Iterable[int]) -> None:
        """Writes the file where something has changed; a disk that is full costs the cache only."""
        ports = tuple(ports)
        if self._path is None or not (self._changed or ports != self.ports):
            return
        seen = sorted((p for p in self._peers.values() if p.last_seen_ms), key=lambda p: -p.last_seen_ms)
        entries = [{"addresses": p.addresses(), "last_seen_ms": p.last_seen_ms} for p in seen[:MAX_CACHED_PEERS]]
        document = {"format": _FORMAT, "ports": list(ports), "peers": entries}
        try:
            write_atomically(self._path, json.dumps(document, indent=1).encode())
        except (OSError, NodeError) as error:
            logger.warning("The peer cache could not be written: %s", error)
            return
        self._changed, self.ports = False, ports

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                document = json.loads(file.read(MAX_FILE_BYTES))
            self.ports = tuple(int(port) for port in document["ports"] if 0 < int(port) < 1 << 16)
            for entry in document["peers"][:MAX_CACHED_PEERS]:
                for text in entry["addresses"]:
                    peer = self.add(text)
                    if peer is not None:
                        peer.last_seen_ms = int(entry["last_seen_ms"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("The peer cache %s cannot be used and starts anew: %s", self._path, error)

    def _shrink(self) -> None:
        if len(self._peers) <= MAX_KNOWN_PEERS:
            return
        expendable = [peer for peer in self._peers.values() if not peer.pinned]
        worst = max(expendable, key=lambda peer: (not peer.last_seen_ms, peer.num_failures, -peer.last_seen_ms))
        del self._peers[worst.key]
