"""Low-rank factors of the accumulated update of one module: exact from its deltas, or the best of a given rank.

The deltas of a swarm are exact integers with exact scales (protocol section 6), so their columns and rows, put side
by side, are factors of the whole update without any rounding. When there are too many of them, the best
approximation of a given rank follows from the singular values (Eckart and Young 1936): of the stacked factors by QR
and a small SVD when they are thin, of W_t - W_0 itself when they are not.

Legend of array names: O = out_features, I = in_features, R = rank of the factors, K = any number between.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fullrank_protocol.delta import Delta, LowRank
from fullrank_protocol.parts import components

FloatArray = npt.NDArray[np.float64]
Method = Literal["stacked", "svd of stack", "svd"]

STACK_TOLERANCE = 1e-6
"""Largest part of the update's energy that stacked deltas may miss and still count as all of it.

Rounding to float32 after each round loses about 1e-10; a delta that is missing from the list loses percents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """All components that changed one module, in the order of the chain: the sum of their products is B_OR @ A_RI.

    Attributes:
        B_OR: float64, columns times their weights and scales. Every entry is an integer of at most 19 bits times a
            power of two, so it is exact as float32 too.
        A_RI: float64, small integers.
    """

    B_OR: FloatArray
    A_RI: FloatArray

    @property
    def rank(self) -> int:
        """Number of components, an upper bound of the rank of their sum."""
        return len(self.A_RI)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What stands for the update of one module in an adapter.

    Attributes:
        B_OR: float32.
        A_RI: float32.
        method: How they were found; only `stacked` is free of truncation by its kind.
        energy: Squared Frobenius norm of the update.
        energy_lost: Share of the update's squared Frobenius norm that the product misses; 0 for no update.
        max_abs_difference: Largest absolute entry of W_t - W_0 - B_OR @ A_RI, with the product in float64.
    """

    B_OR: npt.NDArray[np.float32]
    A_RI: npt.NDArray[np.float32]
    method: Method
    energy: float
    energy_lost: float
    max_abs_difference: float


def stack(module: str, deltas: Iterable[tuple[Delta, float]]) -> Stack | None:
    """Puts side by side what `deltas` (expanded, each with the weight it was given) have for one module.

    Returns None when there is nothing, or when the module is dense and has no low-rank factors.
    """
    columns, rows = [], []
    for delta, weight in deltas:
        for part in delta.parts:
            if part.module == module and isinstance(part, LowRank) and weight != 0.0:
                one = components(part)
                scale_R = np.ldexp(one.mantissa_R.astype(np.float64), one.exponent_R) * weight
                columns.append(one.B_OR * scale_R)
                rows.append(one.A_RI.astype(np.float64))
    if not columns:
        return None
    return Stack(B_OR=np.concatenate(columns, axis=1), A_RI=np.concatenate(rows, axis=0))


def factorise(update_OI: FloatArray, stacked: Stack | None, *, max_rank: int) -> Factors:
    """Finds factors of rank at most `max_rank` of the update W_t - W_0.

    Args:
        update_OI: The update itself: it decides what was lost, whatever the deltas say.
        stacked: The components it was made of, if they are known.
        max_rank: At least 1.
    """
    limit = min(*update_OI.shape, max_rank)
    if stacked is not None and stacked.rank <= limit:
        found = _measured(update_OI, stacked.B_OR, stacked.A_RI, "stacked")
        if found.energy_lost <= STACK_TOLERANCE:
            return found
    # A stack as wide as half the matrix costs as much as the matrix.
    if stacked is not None and limit < stacked.rank <= min(update_OI.shape) // 2:
        found = _measured(update_OI, *_truncate_stack(stacked, limit), "svd of stack")
        if found.energy_lost <= STACK_TOLERANCE or _stack_covers(update_OI, stacked):
            return found
    return _measured(update_OI, *_truncate(update_OI, limit), "svd")


def _truncate(matrix_OI: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """The best factors of that rank, the singular values shared between both sides."""
    U_OK, s_K, V_KI = np.linalg.svd(matrix_OI, full_matrices=False)
    rounding = s_K[0] * max(matrix_OI.shape) * np.finfo(np.float64).eps
    kept = max(1, min(rank, int(np.count_nonzero(s_K > rounding))))
    root_R = np.sqrt(s_K[:kept])
    return U_OK[:, :kept] * root_R, root_R[:, np.newaxis] * V_KI[:kept]


def _truncate_stack(stacked: Stack, rank: int) -> tuple[FloatArray, FloatArray]:
    """The same for a product of thin factors: B A = Q_B (R_B R_A^T) Q_A^T, and only the middle needs an SVD."""
    Q_OK, R_KK = np.linalg.qr(stacked.B_OR)
    P_IK, S_KK = np.linalg.qr(stacked.A_RI.T)
    left_KR, right_RK = _truncate(R_KK @ S_KK.T, rank)
    return Q_OK @ left_KR, right_RK @ P_IK.T


def _stack_covers(update_OI: FloatArray, stacked: Stack) -> bool:
    missed = update_OI - stacked.B_OR @ stacked.A_RI
    return float(np.vdot(missed, missed)) <= STACK_TOLERANCE * float(np.vdot(update_OI, update_OI))


def _measured(update_OI: FloatArray, B_OR: FloatArray, A_RI: FloatArray, method: Method) -> Factors:
    B, A = B_OR.astype(np.float32), A_RI.astype(np.float32)
    missed = update_OI - B.astype(np.float64) @ A.astype(np.float64)
    energy = float(np.vdot(update_OI, update_OI))
    lost = float(np.vdot(missed, missed))
    return Factors(
        B_OR=B,
        A_RI=A,
        method=method,
        energy=energy,
        energy_lost=lost / energy if energy > 0.0 else float(lost > 0.0),
        max_abs_difference=float(np.abs(missed).max(initial=0.0)),
    )


def pad(factors: Sequence[Factors], rank: int) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Fills up (B, A) with zeros to one common rank, which every adapter loader understands."""
    return [
        (
            np.pad(one.B_OR, ((0, 0), (0, rank - one.B_OR.shape[1]))),
            np.pad(one.A_RI, ((0, rank - one.A_RI.shape[0]), (0, 0))),
        )
        for one in factors
    ]
