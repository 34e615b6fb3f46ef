"""Inner products of deltas, correctly rounded whatever the machine (protocol section 7).

<dW_i, dW_j> = sum over modules and components k of i, l of j of
    s_k * s_l * 2^(e_k + e_l) * (B_k . B_l) * (A_k . A_l)

No dense product is formed. B_k . B_l and A_k . A_l come out of float64 matrix products of integers, exact in any
order: partial sums stay below 127^2 * MAX_ELEMENTS < 2^49. Their product stays below 127^4 * MAX_ELEMENTS < 2^63;
it is split into limbs of 32 bits, which times s_k * s_l are below 2^40, and of which at most MAX_RANK^2 = 2^20 are
summed in int64 before a carry, separately for each e_k + e_l. The limbs are joined in Python integers and the sum
is rounded once.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parts import Components, Delta, ModuleShape, components

Int64Array = npt.NDArray[np.int64]

_LIMB_BITS = 32


def gram(deltas: Sequence[Delta], modules: Sequence[ModuleShape]) -> list[list[float]]:
    """Inner products of every pair of deltas, each the exact value rounded once to float64.

    Needs about 8 * R * (O + I) bytes for the largest module, R components of all deltas together, and 24 bytes
    for each pair and each sum of exponents in use.

    Args:
        deltas: Valid, with every seeded A drawn.
        modules: The genesis'.

    Returns:
        A symmetric matrix; permuting `deltas` permutes it.
    """
    present: dict[str, list[tuple[int, Components]]] = {}
    for index, delta in enumerate(deltas):
        for part in delta.parts:
            present.setdefault(part.module, []).append((index, components(part)))
    if not present:
        return [[0.0] * len(deltas) for _ in deltas]
    exponents = np.concatenate([one.exponent_R for parts in present.values() for _, one in parts])
    lowest, highest = int(exponents.min()), int(exponents.max())
    sums = _LimbSums(len(deltas), lowest=lowest, num_exponents=2 * (highest - lowest) + 1)
    for module in modules:
        if module.name in present:
            sums.add_module(present[module.name])
    return [[sums.rounded(min(i, j), max(i, j)) for j in range(len(deltas))] for i in range(len(deltas))]


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


class _LimbSums:
    """Exact sums for every pair i <= j and every sum of two exponents, as three limbs of 32 bits."""

    def __init__(self, num_deltas: int, *, lowest: int, num_exponents: int) -> None:
        self._lowest = lowest
        shape = (num_deltas, num_deltas, num_exponents)
        self._limbs: tuple[Int64Array, Int64Array, Int64Array] = (
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
        )

    def add_module(self, parts: list[tuple[int, Components]]) -> None:
        """Add one module's inner products."""
        B_OR = np.concatenate([one.B_OR for _, one in parts], axis=1).astype(np.float64)
        A_RI = np.concatenate([one.A_RI for _, one in parts], axis=0).astype(np.float64)
        mantissa_R = np.concatenate([one.mantissa_R for _, one in parts])
        place_R = np.concatenate([one.exponent_R for _, one in parts]) - self._lowest
        owner_R = np.concatenate([np.full(len(one.mantissa_R), index) for index, one in parts])
        start = 0
        for index, one in parts:
            mine = slice(start, start + len(one.mantissa_R))
            rest = slice(start, None)
            products = (B_OR[:, mine].T @ B_OR[:, rest]).astype(np.int64)
            products *= (A_RI[mine] @ A_RI[rest].T).astype(np.int64)
            scales = mantissa_R[mine, np.newaxis] * mantissa_R[rest]
            places = place_R[mine, np.newaxis] + place_R[rest]
            owners = np.broadcast_to(owner_R[rest], places.shape)
            np.add.at(self._limbs[0][index], (owners, places), (products & 0xFFFF_FFFF) * scales)
            np.add.at(self._limbs[1][index], (owners, places), (products >> _LIMB_BITS) * scales)
            start = mine.stop
        low, middle, high = self._limbs
        middle += low >> _LIMB_BITS
        low &= 0xFFFF_FFFF
        high += middle >> _LIMB_BITS
        middle &= 0xFFFF_FFFF

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
