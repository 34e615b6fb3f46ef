"""What peers send that nobody honest sends, and what it costs them (protocol section 13).

Whoever passes on an object that is wrong wherever it is looked at has not looked, or lies. Each such object costs
its sender points; points are forgotten slowly; with too many a peer is shut out for a while, longer each time. Nothing
is held against a peer that passes on what may be sound elsewhere, or what refers to something unknown.

A peer is a key that the transport has proved, and keys are free: so this bounds what one connection can cost, and a
hostile sender pays with a new connection for every handful of objects.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fullrank_node.network.asking import short

log = logging.getLogger(__name__)

LIMIT: Final = 20.0
"""Points with which a peer is shut out: five small false objects, or one false checkpoint of a megabyte."""

FALSE_OBJECT: Final = 4.0
"""Points of an object that is wrong wherever it is looked at."""

BYTES_OF_A_POINT: Final = 64 << 10
"""A point for each of these of a false object: what is large takes long to look at."""

REPLAY: Final = 0.05
"""Points of offering once more what the same peer has offered: four hundred in a row are a flood."""

UNASKED: Final = 1.0
"""Points of an object in an answer that was not asked for."""

TOO_MUCH: Final = 0.5
"""Points of an offer beyond the share of one peer, which is not taken in."""

FORGIVEN_PER_S: Final = 1 / 60
"""Points forgotten in a second: one a minute."""

FIRST_SHUT_OUT_S: Final = 60.0
"""For so long a peer is shut out the first time; then twice as long each time ..."""

LONGEST_SHUT_OUT_S: Final = 86_400.0
"""... up to a day."""

UNITS_PER_S: Final = 500.0
"""Sustained share of one peer in what is taken in: objects, or 4 KiB of one, a second."""

UNITS_AT_ONCE: Final = 20_000.0
"""What one peer may bring at once after a pause: its whole queue of offers, four times over."""

UNIT_BYTES: Final = 4096

MAX_REMEMBERED: Final = 1024
"""Peers remembered, the least recent forgotten first, ..."""

MAX_OFFERS_REMEMBERED: Final = 256
"""... and of each the newest objects that it offered."""


@dataclass(slots=True)
class _Record:
    """What is remembered of one peer.

    Attributes:
        points: As of `counted_s`.
        units: What it may still bring, as of `counted_s`.
        times: How often it was shut out.
        until_s: Shut out until then.
        why: The last straw.
        offered: Hashes of the objects that it brought, the oldest first.
    """

    counted_s: float
    points: float = 0.0
    units: float = UNITS_AT_ONCE
    times: int = 0
    until_s: float = 0.0
    why: str = ""
    offered: OrderedDict[int, None] = field(default_factory=OrderedDict)


class Conduct:
    """The conduct of all peers, as far as it is remembered: it is not kept on disk."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Initialises.

        Args:
            now: Seconds on a clock that only goes forward.
        """
        self._now = now
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def refusal(self, peer: bytes) -> str | None:
        """Why nothing is taken from a peer now, as a sentence that it can read; None where it is welcome."""
        record = self._records.get(peer)
        left_s = record.until_s - self._now() if record is not None else 0.0
        return f"shut out for {left_s:.0f} s more: {record.why}" if record is not None and left_s > 0 else None

    def shut_out(self) -> dict[bytes, str]:
        """All peers that are shut out, with the reason."""
        found = {peer: self.refusal(peer) for peer in self._records}
        return {peer: why for peer, why in found.items() if why is not None}

    def false_object(self, peer: bytes, why: str, *, num_bytes: int) -> None:
        """It sent an object that is wrong wherever it is looked at."""
        self._charge(peer, FALSE_OBJECT + num_bytes / BYTES_OF_A_POINT, why)

    def unasked(self, peer: bytes) -> None:
        """Its answer held an object that nobody had asked for."""
        self._charge(peer, UNASKED, "answered with objects that were not asked for")

    def offered(self, peer: bytes, data: bytes) -> None:
        """It brought an object; once more, and again and again, is a flood."""
        record = self._record(peer)
        short = hash(data)
        if short in record.offered:
            self._charge(peer, REPLAY, "offered the same objects again and again")
        record.offered[short] = None
        record.offered.move_to_end(short)
        if len(record.offered) > MAX_OFFERS_REMEMBERED:
            record.offered.popitem(last=False)

    def has_room(self, peer: bytes, *, num_objects: int, num_bytes: int) -> bool:
        """Whether so much more may be taken in from a peer now; what may not be costs it a little."""
        record = self._record(peer)
        units = num_objects + num_bytes / UNIT_BYTES
        if units <= record.units:
            record.units -= units
            return True
        self._charge(peer, TOO_MUCH, "offered more than one peer may")
        return False

    def _record(self, peer: bytes) -> _Record:
        """What is remembered of a peer, as of now."""
        now_s = self._now()
        record = self._records.setdefault(peer, _Record(counted_s=now_s))
        self._records.move_to_end(peer)
        if len(self._records) > MAX_REMEMBERED:
            self._records.popitem(last=False)
        passed_s = now_s - record.counted_s
        record.points = max(record.points - passed_s * FORGIVEN_PER_S, 0.0)
        record.units = min(record.units + passed_s * UNITS_PER_S, UNITS_AT_ONCE)
        record.counted_s = now_s
        return record

    def _charge(self, peer: bytes, points: float, why: str) -> None:
        record = self._record(peer)
        if record.until_s > record.counted_s:
            return
        record.points += points
        if record.points < LIMIT:
            return
        pause_s = min(FIRST_SHUT_OUT_S * 2.0**record.times, LONGEST_SHUT_OUT_S)
        record.points = 0.0
        record.times += 1
        record.until_s = record.counted_s + pause_s
        record.why = why
        log.warning("Peer %s is shut out for %.0f s: it %s.", short(peer), pause_s, why)
