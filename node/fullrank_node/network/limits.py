"""What one peer may take of this node: streams, bytes in memory, requests a second.

All of it is counted in the event loop's thread; nothing here waits.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Bounds on what others ask of this node.

    Attributes:
        streams_per_peer: Requests of one peer answered at a time; a neighbour needs three or four.
        streams_total: Requests answered at a time, so that many peers cannot exhaust file descriptors (1024 is usual).
        uploads_per_peer: Blobs sent to one peer at a time.
        uploads_total: Blobs sent at a time; each holds one chunk (1 MiB) in memory.
        frame_bytes_total: Bytes of all request frames being read at a time.
        requests_per_second: Sustained requests of one peer; a busy neighbour in a demo makes about ten.
        burst: Requests that one peer may make at once after a pause.
        frame_timeout_s: A whole request must have arrived by then: 5 MiB at 90 KB/s.
        write_timeout_s: A reader that takes no 256 KiB in this time is cut off.
        answer_timeout_s: How long a request may be worked on before the stream is closed.
    """

    streams_per_peer: int = 16
    streams_total: int = 192
    uploads_per_peer: int = 4
    uploads_total: int = 16
    frame_bytes_total: int = 64 << 20
    requests_per_second: float = 50.0
    burst: int = 200
    frame_timeout_s: float = 60.0
    write_timeout_s: float = 30.0
    answer_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """Bounds on what this node fetches.

    Attributes:
        concurrent: Blobs fetched at a time.
        open_timeout_s: To open a stream, dialling included.
        header_timeout_s: From the request to the blob's header.
        idle_timeout_s: Without a byte, the provider is given up.
        window_s: Over which speed is measured.
        min_bytes_per_s: Below it another provider is tried.
        min_bytes_per_s_alone: Below it even the only provider is given up: a chunk would take over four minutes.
        requests_per_second: Sustained requests for blobs to one peer: half of what peers answer, so that a replay of
            many small deltas leaves the other half to everything else.
        burst: Requests for blobs that may be made of one peer at once.
        busy_pause_s: After this, a peer that said it was busy is asked again.
        busy_timeout_s: Peers that are busy for so long count as those that do not give the blob.
    """

    concurrent: int = 4
    open_timeout_s: float = 10.0
    header_timeout_s: float = 15.0
    idle_timeout_s: float = 15.0
    window_s: float = 10.0
    min_bytes_per_s: int = 64 << 10
    min_bytes_per_s_alone: int = 4 << 10
    requests_per_second: float = 25.0
    burst: int = 50
    busy_pause_s: float = 1.0
    busy_timeout_s: float = 30.0


class Quota:
    """Counts things in use, for each peer and together."""

    def __init__(self, *, per_peer: int, total: int) -> None:
        self._per_peer = per_peer
        self._total = total
        self._used: Counter[bytes] = Counter()
        self._sum = 0

    @contextlib.contextmanager
    def use(self, peer: bytes, amount: int = 1) -> Iterator[bool]:
        """Takes `amount` for the length of the block; yields False, and takes nothing, when there is not enough."""
        granted = self._used[peer] + amount <= self._per_peer and self._sum + amount <= self._total
        if granted:
            self._used[peer] += amount
            self._sum += amount
        try:
            yield granted
        finally:
            if granted:
                self._used[peer] -= amount
                self._sum -= amount
            if not self._used[peer]:
                del self._used[peer]


_MAX_BUCKETS = 4096


class RateLimiter:
    """Token buckets, one a peer; time comes from the caller's clock."""

    def __init__(self, *, per_second: float, burst: int, now: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = burst
        self._now = now
        self._buckets: dict[bytes, tuple[float, float]] = {}

    def allow(self, peer: bytes) -> bool:
        """Whether `peer` may make one more request now."""
        now = self._now()
        if len(self._buckets) > _MAX_BUCKETS:  # Only strangers who come in great numbers get here; all begin anew.
            self._buckets.clear()
        tokens, filled_at = self._buckets.get(peer, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - filled_at) * self._per_second)
        allowed = tokens >= 1
        self._buckets[peer] = (tokens - 1 if allowed else tokens, now)
        return allowed

    def forget(self, peer: bytes) -> None:
        """Drops what is remembered of a peer that is gone."""
        self._buckets.pop(peer, None)


@dataclass(slots=True)
class Traffic:
    """Bytes that this node sent and received."""

    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, *, up: int = 0, down: int = 0) -> None:
        """Counts more."""
        self.bytes_up += up
        self.bytes_down += down
