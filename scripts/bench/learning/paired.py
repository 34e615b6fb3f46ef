"""Means over seeds with the interval that few seeds allow: Student's t, 95 %, two-sided."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

QUANTILES = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    10: 2.228,
    15: 2.131,
    20: 2.086,
    30: 2.042,
    60: 2.000,
}
"""The 97.5 % quantile of Student's distribution by degrees of freedom; between two, the larger one is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean over seeds.

    Attributes:
        half_width: The mean lies within so much with 95 % confidence; None for a single seed.
    """

    value: float
    half_width: float | None
    count: int

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.half_width is not None and self.value + self.half_width < 0.0

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.half_width is not None and self.value - self.half_width > 0.0

    def to_json(self) -> dict[str, float | int | None]:
        """For the summary."""
        half_width = None if self.half_width is None else round(self.half_width, 6)
        return {"mean": round(self.value, 6), "half_width": half_width, "count": self.count}


def mean_of(values: Sequence[float]) -> Mean | None:
    """The mean of one number a seed; None without any. Give differences of the same seeds to compare in pairs."""
    if not values:
        return None
    half_width = None
    if len(values) > 1:
        freedom = max(known for known in QUANTILES if known <= len(values) - 1)
        half_width = QUANTILES[freedom] * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(value=statistics.fmean(values), half_width=half_width, count=len(values))
