"""One non-negative number as a checkpoint carries it: an 8-bit mantissa times a power of two (protocol section 6)."""

import math
from dataclasses import dataclass
from typing import Self

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.wire import objects_pb2

MIN_SCALED_EXPONENT = -256
"""Smallest power of two. An update below 2^-248 moves no float32; grids of such weights stay normal float64."""

MAX_SCALED_EXPONENT = 255
"""Largest power of two. Products of two such numbers with any exact inner product stay finite in float64."""


@dataclass(frozen=True, slots=True, kw_only=True, order=False)
class Scaled:
    """The number mantissa * 2^exponent, in its only canonical form.

    Attributes:
        mantissa: 128 to 255, or 0 for the number zero.
        exponent: MIN_SCALED_EXPONENT to MAX_SCALED_EXPONENT; 0 when the mantissa is 0.
    """

    mantissa: int
    exponent: int

    def __post_init__(self) -> None:
        fault = _fault(self.mantissa, self.exponent)
        if fault:
            raise ValueError(fault)

    @classmethod
    def of(cls, number: float) -> Self:
        """Round `number` to 8 bits, half to even; what is too small becomes zero.

        Raises:
            ValueError: when `number` is negative, not finite or too large.
        """
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"found {number}, required a finite number of at least 0")
        fraction, power = math.frexp(number)
        mantissa = round(fraction * 256)
        if mantissa == 256:
            mantissa, power = 128, power + 1
        if mantissa == 0 or power - 8 < MIN_SCALED_EXPONENT:
            return cls(mantissa=0, exponent=0)
        return cls(mantissa=mantissa, exponent=power - 8)

    def value(self) -> float:
        """Return the exact value as float64."""
        return math.ldexp(self.mantissa, self.exponent)

    def to_wire(self) -> objects_pb2.Scaled:
        """Return the wire message."""
        return objects_pb2.Scaled(mantissa=self.mantissa, exponent=self.exponent)

    @classmethod
    def from_wire(cls, message: objects_pb2.Scaled) -> Self:
        """Read a wire message.

        Raises:
            RejectError: NON_CANONICAL, when the number is not in canonical form.
        """
        fault = _fault(message.mantissa, message.exponent)
        if fault:
            raise RejectError(Rule.NON_CANONICAL, fault)
        return cls(mantissa=message.mantissa, exponent=message.exponent)


def _fault(mantissa: int, exponent: int) -> str:
    if mantissa == 0:
        return "" if exponent == 0 else f"found zero with exponent {exponent}, required exponent 0"
    if not 128 <= mantissa <= 255:
        return f"found mantissa {mantissa}, required 0 or 128 to 255"
    if not MIN_SCALED_EXPONENT <= exponent <= MAX_SCALED_EXPONENT:
        return f"found exponent {exponent}, required {MIN_SCALED_EXPONENT} to {MAX_SCALED_EXPONENT}"
    return ""


ZERO = Scaled(mantissa=0, exponent=0)
