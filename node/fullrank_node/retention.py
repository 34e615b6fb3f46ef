"""Which blobs a node keeps (protocol section 10): pure decisions, carried out by `keeping`.

Nothing goes that somebody may need from this node: what is above the last final checkpoint, what a replay needs
unless a snapshot served here replaces it, the snapshot itself, and the base's files. Of the rest, what no
checkpoint names goes first, then the oldest, and only as much as the limit asks for.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

ROOM_SHARE = 10
"""Where something has to go, so much goes that a tenth of the limit is free: not a little at every round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """The blobs of a node, and what they are for.

    Attributes:
        sizes: Bytes of what is here of every blob, also of downloads that were broken off.
        needed: Blobs that are never removed.
        decided: Blobs of contributions that the final chain decided on, with the slot in which it did.
        covered_slot: Slot of the newest snapshot that is served here; 0 without one.
        snapshot_bytes: What a snapshot takes, by the last one or by the size of the weights.
    """

    sizes: Mapping[bytes, int]
    needed: Set[bytes]
    decided: Mapping[bytes, int]
    covered_slot: int = 0
    snapshot_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """Bytes taken by all blobs."""
        return sum(self.sizes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do.

    Attributes:
        remove: Blobs to delete, in this order.
        makes_snapshot: Make a snapshot first: it lets more go than it takes.
        over_bytes: Bytes above the limit that cannot be helped.
    """

    remove: tuple[bytes, ...] = ()
    makes_snapshot: bool = False
    over_bytes: int = 0


def plan_removal(holdings: Holdings, *, limit_bytes: int | None) -> Plan:
    """What has to go so that the blobs stay within a limit; nothing without one."""
    used = holdings.used_bytes
    if limit_bytes is None or used <= limit_bytes:
        return Plan()
    target = limit_bytes - limit_bytes // ROOM_SHARE
    free = [blob for blob in holdings.sizes if blob not in holdings.needed]
    strays = sorted(blob for blob in free if blob not in holdings.decided)
    settled = sorted((holdings.decided[blob], blob) for blob in free if blob in holdings.decided)
    covered = [blob for slot, blob in settled if slot <= holdings.covered_slot]
    remove: list[bytes] = []
    for blob in [*strays, *covered]:
        if used <= target:
            break
        remove.append(blob)
        used -= holdings.sizes[blob]
    uncovered = sum(holdings.sizes[blob] for slot, blob in settled if slot > holdings.covered_slot)
    helps = used > limit_bytes and uncovered > holdings.snapshot_bytes
    return Plan(remove=tuple(remove), makes_snapshot=helps, over_bytes=max(used - limit_bytes, 0))


def is_snapshot_due(*, delta_bytes: int, snapshot_bytes: int) -> bool:
    """Whether the deltas since the last snapshot have more bytes than it: a newcomer would gain by a new one."""
    return delta_bytes > snapshot_bytes
