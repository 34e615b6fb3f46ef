"""Objects set aside until what they refer to is here, in bounds that nobody fills for others (protocol section 5).

Whoever signed the most loses the oldest first, and strangers count as one: whatever one key or a thousand new ones
send, the objects of everybody else stay. What was dropped comes again with the next inventory of a neighbour.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fullrank_protocol.envelope import Envelope
from fullrank_protocol.limits import MAX_CHECKPOINT_BYTES

MAX_PARKED = 4096
"""Objects set aside in all: some slots of the largest swarm."""

MAX_PARKED_BYTES = 64 << 20
"""Bytes of all of them: some hundred checkpoints of the default size."""

STRANGERS = b""
"""Owner of the objects of all keys that are not known here."""

MAX_PARKED_OF_STRANGERS = 512
"""Objects of strangers: contributions and admissions of newcomers, which become good in a slot or two."""

MAX_PARKED_BYTES_OF_STRANGERS = 2 * MAX_CHECKPOINT_BYTES
"""Bytes of theirs."""

_OVERHEAD = 1024
"""Bytes of memory that an object takes beside its own."""


@dataclass(slots=True)
class _Holding:
    """What one owner has here: ids in the order in which they came, with their size."""

    sizes: dict[bytes, int]
    num_bytes: int = 0


class Parking:
    """The objects, by what they wait for."""

    def __init__(self) -> None:
        self._queues: dict[bytes, dict[bytes, Envelope]] = {}
        self._places: dict[bytes, tuple[bytes, bytes]] = {}  # Object id: what it waits for, its owner.
        self._holdings: dict[bytes, _Holding] = {}
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[bytes]:
        """What is waited for, the longest first."""
        return iter(self._queues)

    def __contains__(self, waited_for: bytes) -> bool:
        return waited_for in self._queues

    @property
    def num_bytes(self) -> int:
        """Memory that all of it takes, about."""
        return self._num_bytes

    def holds(self, object_id: bytes) -> bool:
        """Whether an object is set aside here."""
        return object_id in self._places

    def num_of(self, owner: bytes) -> int:
        """Objects of one owner."""
        holding = self._holdings.get(owner)
        return len(holding.sizes) if holding is not None else 0

    def waiting_for(self, waited_for: bytes) -> list[Envelope]:
        """What waits for an object, in the order in which it came."""
        return list(self._queues.get(waited_for, {}).values())

    def add(self, envelope: Envelope, *, waits_for: bytes, owner: bytes) -> bool:
        """Set an object aside, and drop others where it does not fit.

        Returns:
            Whether it is new and still here: an owner may lose its newest object, too.
        """
        if envelope.id in self._places:
            return False
        self._queues.setdefault(waits_for, {})[envelope.id] = envelope
        self._places[envelope.id] = (waits_for, owner)
        holding = self._holdings.setdefault(owner, _Holding({}))
        size = holding.sizes[envelope.id] = len(envelope.payload) + _OVERHEAD
        holding.num_bytes += size
        self._num_bytes += size
        while (over := self._owner_over_bounds()) is not None:
            self._remove(next(iter(self._holdings[over].sizes)))
        return envelope.id in self._places

    def pop(self, waited_for: bytes) -> list[Envelope]:
        """Take out what waits for an object."""
        waiting = self.waiting_for(waited_for)
        for envelope in waiting:
            self._remove(envelope.id)
        return waiting

    def _owner_over_bounds(self) -> bytes | None:
        strangers = self._holdings.get(STRANGERS)
        if strangers is not None and (
            len(strangers.sizes) > MAX_PARKED_OF_STRANGERS or strangers.num_bytes > MAX_PARKED_BYTES_OF_STRANGERS
        ):
            return STRANGERS
        if len(self) <= MAX_PARKED and self._num_bytes <= MAX_PARKED_BYTES:
            return None
        return max(self._holdings, key=lambda owner: self._holdings[owner].num_bytes)

    def _remove(self, object_id: bytes) -> None:
        waits_for, owner = self._places.pop(object_id)
        queue, holding = self._queues[waits_for], self._holdings[owner]
        del queue[object_id]
        size = holding.sizes.pop(object_id)
        holding.num_bytes -= size
        self._num_bytes -= size
        if not queue:
            del self._queues[waits_for]
        if not holding.sizes:
            del self._holdings[owner]
