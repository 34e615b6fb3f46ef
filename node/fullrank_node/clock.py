"""The one clock of a node: everything else is handed the time as an argument."""

import time
from typing import Protocol


class Clock(Protocol):
    """Tells wall-clock time."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""


class SystemClock:
    """The machine's own clock. It may jump: nothing durable is ordered by it."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000
