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
    _check_scale(part.module, part.scale_mantissa, part.scale_exponent, rules.limits)
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
    for mantissa, exponent in zip(part.scale_mantissa_R, part.scale_exponent_R, strict=True):
        _check_scale(part.module, mantissa, exponent, rules.limits)
    _check_integers(f"{part.module}: B column", part.B_OR.T)
    if part.row_R is not None:
        _check_rows(part.module, part.row_R, rules.max_rank)
    elif part.A_RI is not None:
        _check_integers(f"{part.module}: A row", part.A_RI)
        _check_order(part, part.A_RI)


def _check_scale(name: str, mantissa: int, exponent: int, limits: DeltaLimits) -> None:
    if not (1 <= mantissa <= LARGEST_SCALE_MANTISSA and mantissa % 2 == 1):
        raise RejectError(Rule.SCALE, f"{name}: found scale mantissa {mantissa}, required 1, 3, 5 ... 15")
    if not limits.min_scale_exponent <= exponent <= limits.max_scale_exponent:
        raise RejectError(
            Rule.SCALE,
            f"{name}: found scale exponent {exponent}, "
            f"required {limits.min_scale_exponent} to {limits.max_scale_exponent}",
        )


def _check_integers(what: str, rows: Int8Array) -> None:
    """Check the integers of components, one a row."""
    highest, lowest = rows.max(axis=1), rows.min(axis=1)
    if (lowest < -LARGEST).any():
        raise RejectError(Rule.NON_CANONICAL, f"{what}: found -128, required -127 to 127")
    largest = np.maximum(highest, -lowest)
    if (largest < SMALLEST_MAXIMUM).any():
        at = int(np.argmax(largest < SMALLEST_MAXIMUM))
        raise RejectError(
            Rule.NON_CANONICAL,
            f"{what} {at}: found largest absolute value {largest[at]}, required {SMALLEST_MAXIMUM} to {LARGEST}",
        )


def _check_rows(name: str, rows: tuple[int, ...], max_rank: int) -> None:
    if not all(0 <= row < max_rank for row in rows):
        raise RejectError(Rule.RANK, f"{name}: found seeded row {max(rows)}, required below {max_rank}")
    if any(second <= first for first, second in pairwise(rows)):
        raise RejectError(Rule.NON_CANONICAL, f"{name}: found seeded rows out of order, required strictly ascending")


def _check_order(part: LowRank, A_RI: Int8Array) -> None:
    before: tuple[int, int, bytes, bytes] | None = None
    for k in range(part.rank):
        key = (part.scale_exponent_R[k], part.scale_mantissa_R[k], part.B_OR[:, k].tobytes(), A_RI[k].tobytes())
        if before is not None and key <= before:
            raise RejectError(
                Rule.NON_CANONICAL, f"{part.module}: found component {k} out of order, required strictly ascending"
            )
        before = key
