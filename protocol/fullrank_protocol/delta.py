"""When a delta is canonical and fits a swarm, and how its seeded factors are drawn (protocol section 6).

This is the module to import deltas from: it hands on the values of `parts`, the rounding of `quantize` and
the seeded rows of `seeded`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parts import (
    KIND_DENSE,
    KIND_LINEAR,
    LARGEST,
    LARGEST_SCALE_MANTISSA,
    SMALLEST_MAXIMUM,
    Delta,
    DeltaLimits,
    DeltaRules,
    Dense,
    Int8Array,
    LowRank,
    ModuleShape,
    Part,
    to_float,
)
from fullrank_protocol.quantize import quantize_dense, quantize_low_rank
from fullrank_protocol.seeded import SeedContext, seeded_rows

__all__ = [
    "KIND_DENSE",
    "KIND_LINEAR",
    "Delta",
    "DeltaLimits",
    "DeltaRules",
    "Dense",
    "LowRank",
    "ModuleShape",
    "Part",
    "SeedContext",
    "expand",
    "quantize_dense",
    "quantize_low_rank",
    "seeded_rows",
    "to_float",
    "validate",
]

_MANTISSAS = frozenset(range(1, LARGEST_SCALE_MANTISSA + 1, 2))

_FIRST_ENTRIES = 16
"""Entries of each B column that are compared before whole columns: equal ones are rare, and copying all is slow."""

_BLOCK_INTEGERS = 1 << 18
"""Integers looked at together, so that what is made of them stays in a core's second cache."""


def validate(delta: Delta, rules: DeltaRules) -> None:
    """Check that `delta` is canonical and fits the genesis.

    Parts ascend strictly by module name. Components whose A was sent ascend strictly by (scale exponent, scale
    mantissa, B column as bytes, A row as bytes), bytes being two's complement and compared as unsigned; those
    with a seeded A ascend strictly by row.

    Raises:
        RejectError: SHAPE, RANK, SCALE, NON_CANONICAL or ZERO_NORM.
    """
    if not delta.parts:
        raise RejectError(Rule.ZERO_NORM, "found a delta without parts, required at least one component")
    modules = {module.name: module for module in rules.modules}
    before: str | None = None
    for part in delta.parts:
        if before is not None and part.module <= before:
            raise RejectError(Rule.NON_CANONICAL, f"found part {part.module!r} after {before!r}, required ascending")
        before = part.module
        module = modules.get(part.module)
        if module is None:
            raise RejectError(Rule.SHAPE, f"found a part for {part.module!r}, which the genesis does not adapt")
        if isinstance(part, Dense):
            _validate_dense(part, module, rules)
        else:
            _validate_low_rank(part, module, rules)


def expand(delta: Delta, context: SeedContext, modules: Sequence[ModuleShape]) -> Delta:
    """Return a valid `delta` with the rows of every seeded A drawn; `row_R` is kept."""
    columns = {module.name: module.in_features for module in modules}
    parts: list[Part] = []
    for part in delta.parts:
        if isinstance(part, LowRank) and part.row_R is not None:
            drawn = seeded_rows(context, part.module, rows=max(part.row_R) + 1, columns=columns[part.module])
            parts.append(replace(part, A_RI=drawn[list(part.row_R)]))
        else:
            parts.append(part)
    return Delta(parts=tuple(parts))


def _validate_dense(part: Dense, module: ModuleShape, rules: DeltaRules) -> None:
    if module.kind != KIND_DENSE:
        raise RejectError(Rule.SHAPE, f"{part.module}: found a dense part, required low-rank components")
    if part.values_O.shape != (module.out_features,):
        raise RejectError(
            Rule.SHAPE, f"{part.module}: found {part.values_O.shape[0]} values, required {module.out_features}"
        )
    _check_scales(part.module, (part.scale_mantissa,), (part.scale_exponent,), rules.limits)
    _check_integers(f"{part.module}: values", part.values_O[np.newaxis])


def _validate_low_rank(part: LowRank, module: ModuleShape, rules: DeltaRules) -> None:
    if module.kind != KIND_LINEAR:
        raise RejectError(Rule.SHAPE, f"{part.module}: found low-rank components, required a dense part")
    if not 1 <= part.rank <= rules.max_rank:
        raise RejectError(Rule.RANK, f"{part.module}: found rank {part.rank}, required 1 to {rules.max_rank}")
    if part.B_OR.shape[0] != module.out_features:
        raise RejectError(
            Rule.SHAPE, f"{part.module}: found B with {part.B_OR.shape[0]} rows, required {module.out_features}"
        )
    if part.A_RI is not None and part.A_RI.shape[1] != module.in_features:
        raise RejectError(
            Rule.SHAPE, f"{part.module}: found A with {part.A_RI.shape[1]} columns, required {module.in_features}"
        )
    _check_scales(part.module, part.scale_mantissa_R, part.scale_exponent_R, rules.limits)
    _check_integers(f"{part.module}: B column", part.B_OR.T)
    if part.row_R is not None:
        _check_rows(part.module, part.row_R, rules.max_rank)
    elif part.A_RI is not None:
        _check_integers(f"{part.module}: A row", part.A_RI)
        _check_order(part, part.A_RI)


def _check_scales(name: str, mantissas: tuple[int, ...], exponents: tuple[int, ...], limits: DeltaLimits) -> None:
    lowest, highest = limits.min_scale_exponent, limits.max_scale_exponent
    if _MANTISSAS.issuperset(mantissas) and lowest <= min(exponents) and max(exponents) <= highest:
        return
    for mantissa, exponent in zip(mantissas, exponents, strict=True):
        if mantissa not in _MANTISSAS:
            raise RejectError(Rule.SCALE, f"{name}: found scale mantissa {mantissa}, required 1, 3, 5 ... 15")
        if not lowest <= exponent <= highest:
            raise RejectError(Rule.SCALE, f"{name}: found scale exponent {exponent}, required {lowest} to {highest}")


def _check_integers(what: str, rows: Int8Array) -> None:
    """Check the integers of components, one a row."""
    step = max(1, _BLOCK_INTEGERS // rows.shape[1])
    largest: list[int] = []
    for start in range(0, len(rows), step):
        # Seen as a byte, the absolute value of -128 is 128.
        absolute = np.abs(rows[start : start + step]).view(np.uint8)
        largest += np.maximum.reduce(absolute, axis=1).tolist()
    if max(largest) > LARGEST:
        raise RejectError(Rule.NON_CANONICAL, f"{what}: found -128, required -127 to 127")
    if min(largest) < SMALLEST_MAXIMUM:
        at = next(at for at, found in enumerate(largest) if found < SMALLEST_MAXIMUM)
        raise RejectError(
            Rule.NON_CANONICAL,
            f"{what} {at}: found largest absolute value {largest[at]}, required {SMALLEST_MAXIMUM} to {LARGEST}",
        )


def _check_rows(name: str, rows: tuple[int, ...], max_rank: int) -> None:
    if min(rows) < 0 or max(rows) >= max_rank:
        raise RejectError(Rule.RANK, f"{name}: found seeded row {max(rows)}, required below {max_rank}")
    if sorted(set(rows)) != list(rows):
        raise RejectError(Rule.NON_CANONICAL, f"{name}: found seeded rows out of order, required strictly ascending")


def _check_order(part: LowRank, A_RI: Int8Array) -> None:
    """Compare neighbours by their scales and first entries, which nearly always decide, then by everything."""
    first = part.B_OR[:_FIRST_ENTRIES].T.tobytes()
    size = len(first) // part.rank
    keys = [
        (exponent, mantissa, first[k * size : (k + 1) * size])
        for k, (exponent, mantissa) in enumerate(zip(part.scale_exponent_R, part.scale_mantissa_R, strict=True))
    ]
    for k, (before, key) in enumerate(pairwise(keys)):
        if key < before or (key == before and _integers(part, A_RI, k + 1) <= _integers(part, A_RI, k)):
            raise RejectError(
                Rule.NON_CANONICAL, f"{part.module}: found component {k + 1} out of order, required strictly ascending"
            )


def _integers(part: LowRank, A_RI: Int8Array, k: int) -> tuple[bytes, bytes]:
    return part.B_OR[:, k].tobytes(), A_RI[k].tobytes()
