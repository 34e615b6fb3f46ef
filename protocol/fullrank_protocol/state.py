"""The exact apply of an update to the shared weights, and the digest of a model (protocol sections 6 and 7).

Every node must arrive at the same bytes whatever its library, thread count, tile size or order of summation.
Per module, N = sum of |w_k| * s_k * 2^e_k * max|B_k| * max|A_k| bounds every partial sum of the update. All
components are put on the grid 2^(ceil(log2 N) - 52); one that does not lie on it is dropped by every node alike.
In units of the grid all factors are integers and all partial sums at most 2^52, so a float64 matrix product is
exact in any order, and W <- float32(float64(W) + dW) has one result.

Legend of array names: O = out_features, I = in_features, R = components kept, T = rows of a tile.
"""

# ruff: noqa: N815  (attributes named like the arrays that they hold)

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fullrank_protocol.canonical import length_prefixed
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parts import Delta, FloatArray, Int8Array, ModuleShape, Part, components
from fullrank_protocol.scaled import Scaled

Float32Array = npt.NDArray[np.float32]

GRID_BITS = 52
"""Partial sums reach at most 2^52 grid steps: one bit below what float64 holds exactly."""

SMALLEST_NORMAL = 2.0**-126
"""Smallest normal float32. Smaller ones become zero, since some processors flush them on their own."""

_DIGEST_DOMAIN = b"fullrank.v1.model-digest"
_HASHED_ELEMENTS = 1 << 22

_STRIP_ELEMENTS = 1 << 16
"""Elements rounded at a time: 1 MiB for all that rounding touches, which stays in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """One part of an accepted delta and what it counts.

    Attributes:
        part: Expanded.
        weight: The checkpoint's weight.
        taken_back: Whether a correction subtracts it.
    """

    part: Part
    weight: Scaled
    taken_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModulePlan:
    """What one update does to one module: 2^grid_exponent * (B_OR * coefficient_R) @ A_RI.

    Attributes:
        module: Module name.
        grid_exponent: The grid is 2^grid_exponent.
        B_OR: int8 columns of the components kept.
        A_RI: int8 rows of the components kept; float64 where many tiles are to be computed (`widened`).
        coefficient_R: float64 integers, at most 2^52.
        num_dropped: Components that do not lie on the grid.
    """

    module: str
    grid_exponent: int
    B_OR: Int8Array
    A_RI: Int8Array | FloatArray
    coefficient_R: FloatArray
    num_dropped: int

    @property
    def changes_nothing(self) -> bool:
        """Whether applying the plan leaves canonical weights as they are, so that their file can be kept."""
        return len(self.coefficient_R) == 0

    def widened(self) -> "ModulePlan":
        """The same plan with A as float64, converted once for all tiles: eight times the bytes."""
        return replace(self, A_RI=self.A_RI.astype(np.float64, copy=False))


def grid_exponent(bounds: Iterable[tuple[int, int]]) -> int | None:
    """Exponent of the grid for components that are bounded by numbers n * 2^e.

    Args:
        bounds: (n, e) of |w_k| * s_k * 2^e_k * max|B_k| * max|A_k| for every component, n >= 0.

    Returns:
        ceil(log2(sum)) - 52, exactly; None when the sum is zero.
    """
    terms = [term for term in bounds if term[0]]
    if not terms:
        return None
    lowest = min(exponent for _, exponent in terms)
    total = sum(number << (exponent - lowest) for number, exponent in terms)
    return (total - 1).bit_length() + lowest - GRID_BITS


def plan_module(module: ModuleShape, weighted: Sequence[Weighted | tuple[Part, Scaled]]) -> ModulePlan:
    """Put all components of one module on their common grid.

    The order of `weighted` changes neither the plan's meaning nor any byte of what `apply_tile` returns.

    Raises:
        ValueError: a part is not expanded, or not this module's.
    """
    entries = [one if isinstance(one, Weighted) else Weighted(part=one[0], weight=one[1]) for one in weighted]
    blocks_B: list[Int8Array] = []
    blocks_A: list[Int8Array] = []
    numbers: list[int] = []
    exponents: list[int] = []
    bounds: list[tuple[int, int]] = []
    for entry in entries:
        if entry.part.module != module.name:
            raise ValueError(f"found a part of {entry.part.module!r}, required {module.name!r}")
        if entry.weight.mantissa == 0:
            continue
        one = components(entry.part)
        sign = -1 if entry.taken_back else 1
        numbers += [sign * entry.weight.mantissa * mantissa for mantissa in one.mantissa_R.tolist()]
        exponents += [entry.weight.exponent + exponent for exponent in one.exponent_R.tolist()]
        reach_R = _largest(one.B_OR, axis=0) * _largest(one.A_RI, axis=1)
        bounds += [
            (abs(number) * reach, exponent)
            for number, exponent, reach in zip(
                numbers[-len(reach_R) :], exponents[-len(reach_R) :], reach_R.tolist(), strict=True
            )
        ]
        blocks_B.append(one.B_OR)
        blocks_A.append(one.A_RI)
    grid = grid_exponent(bounds)
    if grid is None:
        return _empty_plan(module)
    kept = [k for k in range(len(numbers)) if _on_grid(numbers[k], exponents[k], grid)]
    if not kept:
        return _empty_plan(module, num_dropped=len(numbers))
    B_RO, A_RI = np.concatenate([block.T for block in blocks_B]), np.concatenate(blocks_A)
    return ModulePlan(
        module=module.name,
        grid_exponent=grid,
        B_OR=(B_RO if len(kept) == len(numbers) else B_RO[kept]).T,
        A_RI=A_RI if len(kept) == len(numbers) else A_RI[kept],
        coefficient_R=np.array([_in_grid_steps(numbers[k], exponents[k], grid) for k in kept], dtype=np.float64),
        num_dropped=len(numbers) - len(kept),
    )


def plan_update(
    deltas: Sequence[Delta],
    weights: Sequence[Scaled],
    modules: Sequence[ModuleShape],
    *,
    taken_back: bool = False,
) -> Iterator[tuple[ModuleShape, ModulePlan]]:
    """Plan every module that the expanded `deltas` change, one at a time to bound memory.

    Modules that stay as they are do not appear.
    """
    by_module: dict[str, list[Weighted]] = {}
    for delta, weight in zip(deltas, weights, strict=True):
        for part in delta.parts:
            entry = Weighted(part=part, weight=weight, taken_back=taken_back)
            by_module.setdefault(part.module, []).append(entry)
    for module in modules:
        if module.name in by_module:
            plan = plan_module(module, by_module[module.name])
            if not plan.changes_nothing:
                yield module, plan


def apply_tile(tile: Float32Array, plan: ModulePlan, rows: slice) -> Float32Array:
    """Return the new weights of some rows of a module.

    Args:
        tile: float32, canonical: the rows of the old weights, (T, I), or (T,) of a flattened dense module.
        plan: The module's.
        rows: Which rows of the module `tile` holds.

    Returns:
        float32 of the same shape, canonical.

    Raises:
        RejectError: NON_FINITE, when a new weight is not finite.
        ValueError: the tile does not fit the rows.
    """
    B_TR = plan.B_OR[rows]
    if tile.dtype != np.float32 or tile.reshape(len(tile), -1).shape != (len(B_TR), plan.A_RI.shape[1]):
        raise ValueError(f"{plan.module}: found a tile of {tile.dtype} {tile.shape} for rows {rows}")
    # Units of the grid times 2^grid_exponent: as exact, for all are far above the smallest normal float64.
    coefficient_R = np.ldexp(plan.coefficient_R, plan.grid_exponent)
    change_TI = (B_TR.astype(np.float64) * coefficient_R) @ plan.A_RI.astype(np.float64, copy=False)
    old_TI = tile.reshape(change_TI.shape)
    new_TI = np.empty(change_TI.shape, dtype=np.float32)
    num_rows = max(1, _STRIP_ELEMENTS // max(1, change_TI.shape[1]))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start in range(0, len(change_TI), num_rows):
            strip = slice(start, start + num_rows)
            np.copyto(new_TI[strip], np.add(change_TI[strip], old_TI[strip], out=change_TI[strip]), casting="same_kind")
            _canonical(new_TI[strip], plan.module)
    return new_TI.reshape(tile.shape)


def canonical_float32(weights: npt.NDArray[np.float32], *, name: str = "tensor") -> Float32Array:
    """Return a contiguous copy in which |w| < 2^-126 and -0 have become +0.

    Raises:
        RejectError: NON_FINITE.
        ValueError: `weights` are not float32.
    """
    if weights.dtype != np.float32:
        raise ValueError(f"{name}: found {weights.dtype}, required float32")
    return _canonical(np.array(weights, dtype=np.float32, order="C"), name)


def tensor_sha256(weights: Float32Array) -> bytes:
    """SHA-256 of a float32 tensor's bytes: row-major, little-endian."""
    if weights.dtype != np.float32:
        raise ValueError(f"found {weights.dtype}, required float32")
    digest = hashlib.sha256()
    flat = np.ascontiguousarray(weights).reshape(-1)
    for start in range(0, len(flat), _HASHED_ELEMENTS):
        digest.update(flat[start : start + _HASHED_ELEMENTS].astype("<f4", copy=False).data)
    return digest.digest()


def model_digest(tensors: Mapping[str, bytes]) -> bytes:
    """SHA-256 over all adapted tensors: the domain tag, then name and SHA-256 of each, ascending by name.

    The tag and every field stand behind their length as 8 bytes little-endian. Names are compared as UTF-8.
    """
    fields: list[bytes] = []
    for name in sorted(tensors, key=str.encode):
        if len(tensors[name]) != 32:
            raise ValueError(f"{name}: found {len(tensors[name])} bytes, required a SHA-256")
        fields += [name.encode(), tensors[name]]
    return hashlib.sha256(length_prefixed(_DIGEST_DOMAIN, *fields)).digest()


def _canonical(weights: Float32Array, name: str) -> Float32Array:
    """Flush `weights` in place."""
    if weights.size:
        magnitudes = np.abs(weights)
        if not magnitudes.max() < np.inf:  # Also when it is no number.
            raise RejectError(Rule.NON_FINITE, f"{name}: found a weight that is not finite, required finite weights")
        if magnitudes.min() < np.float32(SMALLEST_NORMAL):
            weights[magnitudes < np.float32(SMALLEST_NORMAL)] = 0.0
    return weights


def _largest(integers: Int8Array, *, axis: int) -> npt.NDArray[np.int64]:
    wide = integers.astype(np.int16)
    largest: npt.NDArray[np.int64] = np.abs(wide).max(axis=axis).astype(np.int64)
    return largest


def _on_grid(number: int, exponent: int, grid: int) -> bool:
    """Whether number * 2^exponent is a multiple of 2^grid."""
    return exponent >= grid or number % (1 << (grid - exponent)) == 0


def _in_grid_steps(number: int, exponent: int, grid: int) -> int:
    return number << (exponent - grid) if exponent >= grid else number >> (grid - exponent)


def _empty_plan(module: ModuleShape, *, num_dropped: int = 0) -> ModulePlan:
    return ModulePlan(
        module=module.name,
        grid_exponent=0,
        B_OR=np.zeros((module.out_features, 0), dtype=np.int8),
        A_RI=np.zeros((0, module.in_features), dtype=np.int8),
        coefficient_R=np.zeros(0, dtype=np.float64),
        num_dropped=num_dropped,
    )
