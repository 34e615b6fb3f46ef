"""What a DHT node accepts before it stores or believes it (protocol section 9).

hivemind stores any expiry (also infinity and NaN), lets an unsigned plain value with a later expiry
replace a whole dictionary, and unpacks nested MessagePack recursively before it asks a validator.
So: bytes are measured before they are unpacked (packed.py), and a record must be its author's
own, signed for exactly the place and the life that it has.
"""

import logging
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from fullrank_node.clock import Clock
from fullrank_node.network.records import Kind, open_record
from fullrank_protocol.canonical import tagged_sha256
from fullrank_protocol.errors import RejectError, Rule

logger = logging.getLogger(__name__)

LIFETIME_TOLERANCE_MS: Final = 30_000
"""How much a publisher's clock may be ahead; hivemind itself refuses neighbours whose clock differs by 3 s."""

DEFAULT_MAX_LIFETIME_MS: Final = 24 * 3_600_000
"""Longest life of a record where the swarm's slot window is not known (a reader who has no genesis yet)."""

MAX_SLOTS_AHEAD: Final = 4
MAX_SLOTS_BEHIND: Final = 256
"""Slots that records may be about, counted from the current one, so that nobody fills memory under slots to come."""

_MAX_REMEMBERED: Final = 16_384
"""Records known to be good, by digest (about 2 MiB): each is seen again in every answer that holds it."""


class RecordRules:
    """Decides which records a DHT node stores and believes.

    Attributes:
        num_refused: Records refused so far.
    """

    def __init__(
        self,
        *,
        swarm: bytes,
        clock: Clock,
        max_lifetime_ms: int = DEFAULT_MAX_LIFETIME_MS,
        slot_now: Callable[[], int] | None = None,
    ) -> None:
        """Initialises.

        Args:
            swarm: Records of other swarms are refused.
            clock: Tells the time that expiries are compared with.
            max_lifetime_ms: Records that expire later than this from now are refused.
            slot_now: The current slot; None while the genesis is not known.
        """
        self.num_refused = 0
        self._swarm = swarm
        self._clock = clock
        self._max_lifetime_ms = max_lifetime_ms
        self._slot_now = slot_now
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def accepts(self, *, dht_id: bytes, subkey: bytes, value: bytes, expiration_s: float) -> bool:
        """Whether a record may be stored and believed; a refusal is logged with its reason.

        A record that has just expired still passes: one of them would spoil the whole dictionary it travels in.
        """
        try:
            self.check(dht_id=dht_id, subkey=subkey, value=value, expiration_s=expiration_s)
        except RejectError as error:
            self.num_refused += 1
            logger.debug("Refused a DHT record: %s", error.detail)
            return False
        return True

    def check(self, *, dht_id: bytes, subkey: bytes, value: bytes, expiration_s: float) -> None:
        """Passes a good record.

        Raises:
            RejectError: What is wrong with it.
        """
        digest = tagged_sha256(dht_id, subkey, value, struct.pack("<d", expiration_s))
        if digest in self._known:
            self._known.move_to_end(digest)
        else:
            record = open_record(
                swarm=self._swarm, dht_id=dht_id, subkey=subkey, value=value, expiration_s=expiration_s
            )
            self._check_slot(record.place.kind, record.place.slot)
            self._known[digest] = None
            if len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)
        left_ms = expiration_s * 1000 - self._clock.now_ms()
        if left_ms > self._max_lifetime_ms + LIFETIME_TOLERANCE_MS:
            raise RejectError(
                Rule.RECORD, f"the record lives for {left_ms:.0f} ms more, at most {self._max_lifetime_ms} allowed"
            )

    def _check_slot(self, kind: Kind, slot: int) -> None:
        if self._slot_now is None or kind == Kind.PEER:
            return
        now = self._slot_now()
        if not now - MAX_SLOTS_BEHIND <= slot <= now + MAX_SLOTS_AHEAD:
            raise RejectError(
                Rule.SLOT,
                f"the record is about slot {slot}, {now - MAX_SLOTS_BEHIND} to {now + MAX_SLOTS_AHEAD} required",
            )
