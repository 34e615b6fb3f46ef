"""What a delta consists of: integer factors and their scales (protocol section 6).

A low-rank part stands for the sum over k of s_k * 2^e_k * B_k * A_k, with B_k a column of B_OR and A_k a row
of A_RI. A dense part stands for its integers times one scale. These values hold any integers of the right
shape; whether they are canonical, and fit a swarm, is `delta.validate`'s question.

Legend of array names: O = out_features, I = in_features, R = components of the part.
"""

# ruff: noqa: N815  (attributes named like the arrays that they hold)

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Int8Array: TypeAlias = npt.NDArray[np.int8]
FloatArray: TypeAlias = npt.NDArray[np.float64]

KIND_LINEAR = 1
"""Matrix (out_features, in_features), changed by low-rank components. The wire's ModuleKind."""

KIND_DENSE = 2
"""Any tensor, flattened to out_features entries with in_features = 1, changed entry by entry."""

LARGEST = 127
"""Largest absolute value of a component's integers."""

SMALLEST_MAXIMUM = 64
"""Least largest entry of a component's integers: below it, they could be doubled and the scale halved."""

LARGEST_SCALE_MANTISSA = 15
"""Largest scale mantissa; odd, so that a scale has one form."""


class ModuleShape(Protocol):
    """One adapted tensor, as the genesis names it."""

    @property
    def name(self) -> str:
        """Parameter name in the base."""

    @property
    def kind(self) -> int:
        """KIND_LINEAR or KIND_DENSE."""

    @property
    def out_features(self) -> int:
        """Rows of the matrix, or entries of the flattened tensor."""

    @property
    def in_features(self) -> int:
        """Columns of the matrix; 1 for a dense module."""


class DeltaLimits(Protocol):
    """The genesis' bounds on one delta."""

    @property
    def max_delta_bytes(self) -> int:
        """Most bytes, encoded and also unpacked before entropy decoding."""

    @property
    def min_scale_exponent(self) -> int:
        """Smallest e of a scale s * 2^e."""

    @property
    def max_scale_exponent(self) -> int:
        """Largest e of a scale s * 2^e."""


class DeltaRules(Protocol):
    """What of a genesis decides about a delta."""

    @property
    def modules(self) -> Sequence[ModuleShape]:
        """Adapted tensors, ascending by name."""

    @property
    def max_rank(self) -> int:
        """Most components for one module."""

    @property
    def codecs(self) -> Sequence[int]:
        """Encodings allowed."""

    @property
    def limits(self) -> DeltaLimits:
        """Sizes and scale exponents."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRank:
    """Components of one linear module.

    Attributes:
        module: Module name.
        B_OR: int8, one column a component.
        A_RI: int8, one row a component; None while it is only named by `row_R`.
        scale_mantissa_R: s of each scale s * 2^e.
        scale_exponent_R: e of each scale s * 2^e.
        row_R: Rows of the seeded A that the components use; None when A was sent.
    """

    module: str
    B_OR: Int8Array
    A_RI: Int8Array | None
    scale_mantissa_R: tuple[int, ...]
    scale_exponent_R: tuple[int, ...]
    row_R: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        rank = len(self.scale_mantissa_R)
        if self.B_OR.dtype != np.int8 or self.B_OR.ndim != 2 or self.B_OR.shape[1] != rank:
            raise ValueError(f"found B of {self.B_OR.dtype} {self.B_OR.shape}, required int8 with {rank} columns")
        if self.A_RI is not None and (self.A_RI.dtype != np.int8 or self.A_RI.ndim != 2 or self.A_RI.shape[0] != rank):
            raise ValueError(f"found A of {self.A_RI.dtype} {self.A_RI.shape}, required int8 with {rank} rows")
        if len(self.scale_exponent_R) != rank:
            raise ValueError(f"found {len(self.scale_exponent_R)} exponents, required {rank}")
        if self.row_R is None and self.A_RI is None:
            raise ValueError("found neither A nor the rows of a seeded A")
        if self.row_R is not None and len(self.row_R) != rank:
            raise ValueError(f"found {len(self.row_R)} row numbers, required {rank}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LowRank):
            return NotImplemented
        return (
            (self.module, self.scale_mantissa_R, self.scale_exponent_R, self.row_R)
            == (other.module, other.scale_mantissa_R, other.scale_exponent_R, other.row_R)
            and np.array_equal(self.B_OR, other.B_OR)
            and _same_array(self.A_RI, other.A_RI)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def rank(self) -> int:
        """Number of components."""
        return len(self.scale_mantissa_R)

    @property
    def seeded(self) -> bool:
        """Whether A is drawn from a seed instead of sent."""
        return self.row_R is not None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense:
    """The change of one dense module: values_O * scale_mantissa * 2^scale_exponent.

    Attributes:
        module: Module name.
        values_O: int8, the flattened tensor in row-major order.
    """

    module: str
    values_O: Int8Array
    scale_mantissa: int
    scale_exponent: int

    def __post_init__(self) -> None:
        if self.values_O.dtype != np.int8 or self.values_O.ndim != 1:
            raise ValueError(f"found {self.values_O.dtype} {self.values_O.shape}, required a vector of int8")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dense):
            return NotImplemented
        return (self.module, self.scale_mantissa, self.scale_exponent) == (
            other.module,
            other.scale_mantissa,
            other.scale_exponent,
        ) and np.array_equal(self.values_O, other.values_O)

    __hash__ = None  # type: ignore[assignment]


Part: TypeAlias = LowRank | Dense


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One node's change of the shared weights.

    Attributes:
        parts: At most one a module, ascending by module name; modules left out do not change.
    """

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, parts: Iterable[Part]) -> "Delta":
        """Order `parts` and leave out those without any component."""
        kept = (part for part in parts if not (isinstance(part, LowRank) and part.rank == 0))
        return cls(parts=tuple(sorted(kept, key=lambda part: part.module)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """One part seen as components, whatever its kind: a dense part is one component with A = [[1]].

    Attributes:
        B_OR: int8.
        A_RI: int8.
        mantissa_R: int64, odd.
        exponent_R: int64.
    """

    B_OR: Int8Array
    A_RI: Int8Array
    mantissa_R: npt.NDArray[np.int64]
    exponent_R: npt.NDArray[np.int64]


def components(part: Part) -> Components:
    """Return the components of an expanded part."""
    if isinstance(part, Dense):
        return Components(
            B_OR=part.values_O[:, np.newaxis],
            A_RI=np.ones((1, 1), dtype=np.int8),
            mantissa_R=np.array([part.scale_mantissa], dtype=np.int64),
            exponent_R=np.array([part.scale_exponent], dtype=np.int64),
        )
    if part.A_RI is None:
        raise ValueError(f"the seeded A of {part.module} has not been drawn: expand the delta first")
    return Components(
        B_OR=part.B_OR,
        A_RI=part.A_RI,
        mantissa_R=np.array(part.scale_mantissa_R, dtype=np.int64),
        exponent_R=np.array(part.scale_exponent_R, dtype=np.int64),
    )


def to_float(part: Part) -> FloatArray:
    """Return the dense float64 matrix (O, I), or vector (O,), that an expanded part stands for.

    For people and tests: it is rounded where a sum of components needs more than 53 bits.
    """
    one = components(part)
    scaled_B_OR = one.B_OR.astype(np.float64) * np.ldexp(one.mantissa_R.astype(np.float64), one.exponent_R)
    product: FloatArray = scaled_B_OR @ one.A_RI.astype(np.float64)
    return product[:, 0] if isinstance(part, Dense) else product


def _same_array(first: Int8Array | None, second: Int8Array | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)
