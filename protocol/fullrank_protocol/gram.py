"""Inner products of deltas, correctly rounded whatever the machine (protocol section 7).

<dW_i, dW_j> = sum over modules and components k of i, l of j of
    s_k * s_l * 2^(e_k + e_l) * (B_k . B_l) * (A_k . A_l)

No dense product is formed. B_k . B_l and A_k . A_l come out of float32 matrix products of integers, exact in any
order: they run over so few elements at a time that partial sums stay within 2^24, and are added up in float64, below
127^2 * MAX_ELEMENTS < 2^49. The product of the two stays below 127^4 * MAX_ELEMENTS < 2^63; it is split into limbs
of 32 bits, which times s_k * s_l are below 2^40, and of which at most MAX_RANK^2 = 2^20 are summed in int64 before
a carry, separately for each e_k and e_l. The limbs are joined in Python integers and the sum is rounded once.

Legend of array names: N = deltas, R = components, K = components of a block, G = groups of components that belong
to one delta and have one exponent, D = dimensions of the vectors (out_features or in_features).
"""

# ruff: noqa: N815  (attributes named like the arrays that they hold)

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parts import Components, Delta, Int8Array, ModuleShape, components

Int64Array = npt.NDArray[np.int64]

_LIMB_BITS = 32
_LOW = 0xFFFF_FFFF

_EXACT_FLOAT32 = 1 << 24
"""Sums of integers up to here are exact in float32."""

_BLOCK_COMPONENTS = 1024
"""Components whose products with all others are in memory at a time, rounded up to whole deltas."""

_Parts = list[tuple[int, Components]]
_Limbs = tuple[Int64Array, Int64Array, Int64Array]

Each = Callable[[Callable[[_Parts], "_LimbSums"], Iterable[_Parts]], Iterable["_LimbSums"]]
"""As `map`: calls a function with every item, in whatever threads, and hands the results on."""


def gram(deltas: Sequence[Delta], modules: Sequence[ModuleShape], *, each: Each = map) -> list[list[float]]:
    """Inner products of every pair of deltas, each the exact value rounded once to float64.

    Needs for every module worked on at the same time about 5 * R * (O + I) bytes, R components of all deltas
    together, and 60 KiB for each of them.

    Args:
        deltas: Valid, with every seeded A drawn.
        modules: The genesis'.
        each: How modules are gone through: `map` or that of a pool of threads.

    Returns:
        A symmetric matrix; permuting `deltas` permutes it.
    """
    present: dict[str, _Parts] = {}
    for index, delta in enumerate(deltas):
        for part in delta.parts:
            present.setdefault(part.module, []).append((index, components(part)))
    if not present:
        return [[0.0] * len(deltas) for _ in deltas]
    exponents = np.concatenate([one.exponent_R for parts in present.values() for _, one in parts])
    lowest, highest = int(exponents.min()), int(exponents.max())

    def of_module(parts: _Parts) -> _LimbSums:
        sums = _LimbSums(len(deltas), lowest=lowest, num_exponents=2 * (highest - lowest) + 1)
        sums.add_module(parts)
        return sums

    total = _LimbSums(len(deltas), lowest=lowest, num_exponents=2 * (highest - lowest) + 1)
    for sums in each(of_module, [present[module.name] for module in modules if module.name in present]):
        total.add(sums)
    found = [[0.0] * len(deltas) for _ in deltas]
    for i in range(len(deltas)):
        for j in range(i, len(deltas)):
            found[i][j] = found[j][i] = total.rounded(i, j)
    return found


def squared_norm(delta: Delta, modules: Sequence[ModuleShape]) -> float:
    """Return the squared Frobenius norm of an expanded delta, correctly rounded."""
    return gram([delta], modules)[0][0]


def require_norm(delta: Delta, modules: Sequence[ModuleShape]) -> float:
    """Return `squared_norm`; components that cancel each other exactly are refused.

    Raises:
        RejectError: ZERO_NORM.
    """
    found = squared_norm(delta, modules)
    if found == 0.0:
        raise RejectError(Rule.ZERO_NORM, "found a delta whose components add up to zero, required a change")
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Vectors:
    """Integer vectors as float32, without the power of two that all their entries share.

    Attributes:
        values_RD: Integers, times 2^shift.
        shift: 0 to 7.
        num_exact: Elements over which sums of products stay exact.
    """

    values_RD: npt.NDArray[np.float32]
    shift: int
    num_exact: int

    @classmethod
    def of(cls, integers_RD: Int8Array) -> "_Vectors":
        used = int(np.bitwise_or.reduce(integers_RD.view(np.uint8), axis=None)) or 1
        shift = (used & -used).bit_length() - 1
        small_RD = integers_RD >> np.int8(shift)
        largest = max(int(small_RD.max()), -int(small_RD.min()), 1)
        return cls(values_RD=small_RD.astype(np.float32), shift=shift, num_exact=_EXACT_FLOAT32 // largest**2)

    def products(self, mine: slice, rest: slice) -> Int64Array:
        """Inner products of some vectors with some others."""
        sum_KR: npt.NDArray[np.floating] | None = None
        for start in range(0, self.values_RD.shape[1], self.num_exact):
            some_RD = self.values_RD[:, start : start + self.num_exact]
            products_KR = some_RD[mine] @ some_RD[rest].T
            sum_KR = products_KR if sum_KR is None else np.add(sum_KR, products_KR, dtype=np.float64)
        assert sum_KR is not None
        found_KR: Int64Array = sum_KR.astype(np.int64)
        found_KR <<= 2 * self.shift
        return found_KR


class _LimbSums:
    """Exact sums for every pair i <= j and every sum of two exponents, as three limbs of 32 bits."""

    def __init__(self, num_deltas: int, *, lowest: int, num_exponents: int) -> None:
        self._lowest = lowest
        shape = (num_deltas, num_deltas, num_exponents)
        self._limbs: _Limbs = (np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64))

    def add_module(self, parts: _Parts) -> None:
        """Add one module's inner products."""
        order_R = np.concatenate([np.argsort(one.exponent_R, kind="stable") for _, one in parts])
        first_R = np.repeat(np.cumsum([0, *(len(one.exponent_R) for _, one in parts[:-1])]), _ranks(parts))
        order_R = order_R + first_R
        b = _Vectors.of(np.concatenate([one.B_OR.T for _, one in parts])[order_R])
        a = _Vectors.of(np.concatenate([one.A_RI for _, one in parts])[order_R])
        mantissa_R = np.concatenate([one.mantissa_R for _, one in parts])[order_R]
        place_R = np.concatenate([one.exponent_R for _, one in parts])[order_R] - self._lowest
        owner_R = np.repeat([index for index, _ in parts], _ranks(parts))
        for mine in _blocks(_ranks(parts)):
            rest = slice(mine.start, None)
            products_KR = b.products(mine, rest)
            products_KR *= a.products(mine, rest)
            scales_KR = mantissa_R[mine, np.newaxis] * mantissa_R[rest]
            rows = _groups(owner_R[mine], place_R[mine])
            columns = _groups(owner_R[rest], place_R[rest])
            at = (
                owner_R[mine][rows][:, np.newaxis],
                owner_R[rest][columns],
                place_R[mine][rows][:, np.newaxis] + place_R[rest][columns],
            )
            np.add.at(self._limbs[0], at, _group_sums((products_KR & _LOW) * scales_KR, rows, columns))
            products_KR >>= _LIMB_BITS
            products_KR *= scales_KR
            np.add.at(self._limbs[1], at, _group_sums(products_KR, rows, columns))
        self._carry()

    def add(self, other: "_LimbSums") -> None:
        """Add another's sums."""
        for mine, theirs in zip(self._limbs, other._limbs, strict=True):
            np.add(mine, theirs, out=mine)
        self._carry()

    def rounded(self, i: int, j: int) -> float:
        """Return the sum of the pair, rounded half to even."""
        total = 0
        low, middle, high = (limbs[i, j].tolist() for limbs in self._limbs)
        for place in range(len(low)):
            limbs = low[place] + (middle[place] << _LIMB_BITS) + (high[place] << 2 * _LIMB_BITS)
            total += limbs << place
        # Dividing integers is correctly rounded, and so is the conversion of an integer.
        shift = 2 * self._lowest
        return total / (1 << -shift) if shift < 0 else float(total << shift)

    def _carry(self) -> None:
        low, middle, high = self._limbs
        middle += low >> _LIMB_BITS
        low &= _LOW
        high += middle >> _LIMB_BITS
        middle &= _LOW


def _ranks(parts: _Parts) -> list[int]:
    return [len(one.mantissa_R) for _, one in parts]


def _blocks(ranks: Sequence[int]) -> list[slice]:
    """Components of consecutive deltas, divided where a block has enough."""
    blocks: list[slice] = []
    start = end = 0
    for rank in ranks:
        end += rank
        if end - start >= _BLOCK_COMPONENTS:
            blocks.append(slice(start, end))
            start = end
    return [*blocks, slice(start, end)] if end > start else blocks


def _groups(owner_R: Int64Array, place_R: Int64Array) -> Int64Array:
    """First component of every run of one owner and one place."""
    begins_R = np.ones(len(owner_R), dtype=bool)
    begins_R[1:] = (owner_R[1:] != owner_R[:-1]) | (place_R[1:] != place_R[:-1])
    return np.flatnonzero(begins_R)


def _group_sums(values_KR: Int64Array, rows: Int64Array, columns: Int64Array) -> Int64Array:
    sums: Int64Array = np.add.reduceat(np.add.reduceat(values_KR, columns, axis=1), rows, axis=0)
    return sums
