"""From trained factors to canonical integers (protocol section 6, first item).

The only module of the protocol that sees floats from outside. Nothing here has to agree between machines:
the integers that come out are what is signed.
"""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fullrank_protocol.parts import SMALLEST_MAXIMUM, DeltaLimits, Dense, FloatArray, Int8Array, LowRank

FloatInput = npt.NDArray[np.floating]

REACHES = tuple(1.09**k for k in range(20))
"""How many times the largest integer a column's largest entry may be where it is clipped; 5 is far beyond what
pays even for a long tail in two bits."""

MOST_ERROR = 1.4
"""Squared error, over the least, up to which a scale may be coarser: what is rounded to zero costs hardly any bytes.
Scales tried are a tenth apart; on trained factors at two bits it comes to an eighth more error and a thirteenth fewer
bytes."""

FITTED_ROWS = 4096
"""Rows on which a scale is fitted, at most: twenty passes over a tall matrix would take longer than its rounding."""


def quantize_low_rank(
    module: str,
    B_OR: FloatInput,
    A_RI: FloatInput | None,
    *,
    bits_b: int,
    bits_a: int,
    scale: float,
    rng: np.random.Generator,
    stochastic: bool,
    limits: DeltaLimits,
) -> LowRank:
    """Round scale * B @ A to integers.

    Each column of B and row of A gets the full range of its bits. A row is divided by its largest entry, which
    is multiplied into B's column.

    With stochastic rounding the component's scale s * 2^e is the smallest that B's column fits in without
    clipping, at most 1/8 above the ideal one, and the expectation is exact, as B and A are rounded independently.
    Rounding to the nearest takes the coarsest scale that leaves hardly more than the least squared error, and clips
    what lies beyond it.
    With few bits that is far less noise (2 bits, Gaussian entries: 0.2 of their energy instead of 1.3), but it is
    biased; error feedback makes that good over the rounds (arXiv:1901.09847).

    A component that rounds to zero, or lies below the smallest scale, is left out; equal components are merged,
    so the order is strict.

    Args:
        module: Module name.
        B_OR: Trained B.
        A_RI: Trained A, or None for a seeded A, of which component k uses row k.
        bits_b: Bits of one entry of B, 2 to 8.
        bits_a: Bits of one entry of A, 2 to 8; unused for a seeded A.
        scale: Factor on the product: alpha / r, 1 / sqrt(n) for a seeded A.
        rng: Source of the rounding; unused when not `stochastic`.
        stochastic: Round up with the probability of the fraction, else to the nearest, with clipping.
        limits: The genesis' scale bounds.

    Returns:
        A canonical part; it has no components when everything rounded to zero.

    Raises:
        ValueError: factors not finite, shapes that do not fit, or a component above the largest scale.
    """
    b_OR = np.asarray(B_OR, dtype=np.float64)
    _check_finite(module, b_OR, scale)
    rank = b_OR.shape[1]
    top_R, exponent_R, unit_b_OR = _normalised(b_OR)
    if scale < 0:
        unit_b_OR = -unit_b_OR
    fraction, power = math.frexp(abs(scale))
    top_R, exponent_R = top_R * fraction, exponent_R + power
    source = rng if stochastic else None
    A_int_RI: Int8Array | None = None
    if A_RI is not None:
        a_RI = np.asarray(A_RI, dtype=np.float64)
        _check_finite(module, a_RI, scale)
        if a_RI.shape[0] != rank:
            raise ValueError(f"{module}: found A with {a_RI.shape[0]} rows, required {rank}")
        top_a_R, exponent_a_R, unit_a_IR = _normalised(a_RI.T)
        reach_a_SR = np.array([[reach] * rank for reach in ((1.0,) if stochastic else REACHES)])
        reach_a_R = _best(reach_a_SR, _closest(unit_a_IR, reach_a_SR, bits_a))
        A_int_RI = _rounded(unit_a_IR * reach_a_R, bits_a, source).T
        top_R, exponent_R = top_R * (top_a_R / reach_a_R), exponent_R + exponent_a_R

    # B's integers times A's integers reach at most `full`, which must stand for top_R * 2^exponent_R.
    full = _largest(bits_b) * (1 if A_int_RI is None else _largest(bits_a))
    tried = [_scales(top_R / reach, exponent_R, full, limits) for reach in ((1.0,) if stochastic else REACHES)]
    reach_SR = np.array([_reached(top_R, exponent_R, scales, full) for scales in tried]).reshape(len(tried), rank)
    closest_R = _closest(unit_b_OR, reach_SR, bits_b)
    scales = [tried[chosen][k] for k, chosen in enumerate(closest_R.tolist())]
    B_int_OR = _rounded(unit_b_OR * _best(reach_SR, closest_R), bits_b, source)
    kept = [
        (k, found)
        for k, found in enumerate(scales)
        if found is not None and np.abs(B_int_OR[:, k]).max(initial=0) >= SMALLEST_MAXIMUM
    ]
    if A_int_RI is None:
        return LowRank(
            module=module,
            B_OR=B_int_OR[:, [k for k, _ in kept]],
            A_RI=None,
            scale_mantissa_R=tuple(found[0] for _, found in kept),
            scale_exponent_R=tuple(found[1] for _, found in kept),
            row_R=tuple(k for k, _ in kept),
        )
    explicit = [(found[1], found[0], B_int_OR[:, k].tobytes(), A_int_RI[k].tobytes()) for k, found in kept]
    return _ordered(module, explicit, num_rows=b_OR.shape[0], num_columns=A_int_RI.shape[1], limits=limits)


def quantize_dense(
    module: str,
    values_O: FloatInput,
    *,
    bits: int,
    rng: np.random.Generator,
    stochastic: bool,
    limits: DeltaLimits,
) -> Dense | None:
    """Round a dense change to integers with one scale; None when it rounds to zero.

    Args and errors are those of `quantize_low_rank`.
    """
    part = quantize_low_rank(
        module,
        np.asarray(values_O).reshape(-1, 1),
        None,
        bits_b=bits,
        bits_a=bits,
        scale=1.0,
        rng=rng,
        stochastic=stochastic,
        limits=limits,
    )
    if part.rank == 0:
        return None
    return Dense(
        module=module,
        values_O=part.B_OR[:, 0],
        scale_mantissa=part.scale_mantissa_R[0],
        scale_exponent=part.scale_exponent_R[0],
    )


def _check_finite(module: str, values: FloatArray, scale: float) -> None:
    if values.ndim != 2:
        raise ValueError(f"{module}: found {values.ndim} dimensions, required a matrix")
    if not (np.isfinite(values).all() and math.isfinite(scale)):
        raise ValueError(f"{module}: found a factor or scale that is not finite")


def _largest(bits: int) -> int:
    """Largest integer of a packed entry of so many bits, as decoded."""
    if not 2 <= bits <= 8:
        raise ValueError(f"found {bits} bits, required 2 to 8")
    return ((1 << (bits - 1)) - 1) << (8 - bits)


def _normalised(values_OR: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray]:
    """Split columns into largest absolute value (mantissa, exponent) and columns of largest absolute value 1."""
    largest_R = np.abs(values_OR).max(axis=0, initial=0.0)
    mantissa_R, exponent_R = np.frexp(largest_R)
    unit_OR = values_OR / np.where(largest_R > 0, largest_R, 1.0)
    return mantissa_R, exponent_R.astype(np.int64), unit_OR


def _scales(
    top_R: FloatArray, exponent_R: npt.NDArray[np.int64], full: int, limits: DeltaLimits
) -> list[tuple[int, int] | None]:
    """Scale of each component in which the integer `full` stands for at least top * 2^exponent."""
    return [
        _smallest_scale(float(top) / full, int(exponent), limits) if top > 0 else None
        for top, exponent in zip(top_R, exponent_R, strict=True)
    ]


def _reached(
    top_R: FloatArray, exponent_R: npt.NDArray[np.int64], scales: list[tuple[int, int] | None], full: int
) -> FloatArray:
    """How far B's columns reach into their range at these scales: 1 is the largest integer, above it is clipped."""
    return np.array(
        [
            0.0 if found is None else math.ldexp(float(top) / (full * found[0]), int(exponent) - found[1])
            for found, top, exponent in zip(scales, top_R, exponent_R, strict=True)
        ]
    )


def _closest(unit_OR: FloatArray, reach_SR: FloatArray, bits: int) -> npt.NDArray[np.int64]:
    """Which of the reaches tried for each column is the shortest that lets rounding to the nearest err little.

    Where there are many rows, some of them speak for all.
    """
    if len(reach_SR) == 1:
        return np.zeros(reach_SR.shape[1], dtype=np.int64)
    some_OR = unit_OR[:: max(1, -(-len(unit_OR) // FITTED_ROWS))]
    largest = (1 << (bits - 1)) - 1
    errors_SR = np.empty_like(reach_SR)
    for reach_R, errors_R in zip(reach_SR, errors_SR, strict=True):
        steps_R = reach_R * largest
        integers_OR = np.clip(np.rint(some_OR * steps_R), -largest, largest)
        rounded_OR = np.divide(integers_OR, steps_R, out=np.zeros_like(some_OR), where=steps_R > 0)
        errors_R[:] = np.square(some_OR - rounded_OR).sum(axis=0)
    closest_R: npt.NDArray[np.int64] = (errors_SR <= MOST_ERROR * errors_SR.min(axis=0)).argmax(axis=0)
    return closest_R


def _best(tried_SR: FloatArray, chosen_R: npt.NDArray[np.int64]) -> FloatArray:
    """Of each column, the value with the number chosen for it."""
    best: FloatArray = np.take_along_axis(tried_SR, chosen_R[np.newaxis], axis=0)[0]
    return best


def _smallest_scale(fraction: float, power: int, limits: DeltaLimits) -> tuple[int, int] | None:
    """Return the smallest (s, e) with s * 2^e >= fraction * 2^power; None far below the smallest exponent."""
    mantissa, shift = math.frexp(fraction)
    exponent = power + shift - 4  # s has four bits.
    if exponent < limits.min_scale_exponent - 8:
        return None
    if exponent < limits.min_scale_exponent:
        exponent, mantissa = limits.min_scale_exponent, math.ldexp(mantissa, exponent - limits.min_scale_exponent)
    steps = math.ceil(mantissa * 16)
    while steps % 2 == 0:
        steps, exponent = steps // 2, exponent + 1
    if exponent > limits.max_scale_exponent:
        raise ValueError(f"found scale exponent {exponent}, required at most {limits.max_scale_exponent}")
    return steps, exponent


def _rounded(unit: FloatArray, bits: int, rng: np.random.Generator | None) -> Int8Array:
    """Round entries of -1 to 1 to packed integers of `bits` bits, decoded to int8."""
    largest = (1 << (bits - 1)) - 1
    scaled = unit * largest
    rounded = np.rint(scaled) if rng is None else np.floor(scaled + rng.random(scaled.shape))
    packed: Int8Array = np.clip(rounded, -largest, largest).astype(np.int8)
    return packed << np.int8(8 - bits)


def _ordered(
    module: str,
    explicit: Iterable[tuple[int, int, bytes, bytes]],
    *,
    num_rows: int,
    num_columns: int,
    limits: DeltaLimits,
) -> LowRank:
    """Put components into canonical order; two equal ones become one of twice the scale."""
    seen: set[tuple[int, int, bytes, bytes]] = set()
    for component in explicit:
        merged = component
        while merged in seen:
            seen.remove(merged)
            merged = (merged[0] + 1, *merged[1:])
        if merged[0] > limits.max_scale_exponent:
            raise ValueError(f"{module}: found equal components that add up above the largest scale")
        seen.add(merged)
    ordered = sorted(seen)
    B_RO = np.frombuffer(b"".join(component[2] for component in ordered), dtype=np.int8).reshape(-1, num_rows)
    A_RI = np.frombuffer(b"".join(component[3] for component in ordered), dtype=np.int8).reshape(-1, num_columns)
    return LowRank(
        module=module,
        B_OR=B_RO.T,
        A_RI=A_RI,
        scale_mantissa_R=tuple(component[1] for component in ordered),
        scale_exponent_R=tuple(component[0] for component in ordered),
    )
