"""The same arithmetic without everything else: plain float64 products, operands in memory.

No files, no hashes, no decoding, no rounding to float32, no exactness. Operands are made ready module by module,
outside the clock: W, B, A and the coefficients as float64, and room for what comes out. The clock runs over

    inner products   (B^T B) * (A A^T) with B scaled, summed for every pair of deltas
    apply            (B * coefficients) @ A + W, in tiles of rows, the tile size being the best of those tried

Modules are spread over threads, each product on one, as in the product; the groups are large enough to balance.
"""

# ruff: noqa: N815  (attributes named like the arrays that they hold)

import itertools
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullrank_protocol.delta import Delta
from fullrank_protocol.parts import ModuleShape, components

FloatArray = npt.NDArray[np.float64]

TILE_ELEMENTS = (1 << 18, 1 << 20, 1 << 22, 1 << 26)
"""Tried on the first group; the last is larger than any module."""

_GROUP_ELEMENTS = 1 << 27
"""Entries of the matrices that are in memory at a time: 1 GiB as float64, twice with what comes out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the plain arithmetic took and gave.

    Attributes:
        gram_s: Wall time of the inner products.
        apply_s: Wall time of the apply.
        cpu_s: Processor time of both.
        tile_elements: The tile size that was fastest.
        gram_NN: Inner products of the deltas, rounded anyhow.
        new: New weights by module, where they were asked for.
    """

    gram_s: float
    apply_s: float
    cpu_s: float
    tile_elements: int
    gram_NN: FloatArray
    new: Mapping[str, FloatArray]

    @property
    def wall_s(self) -> float:
        """Of both."""
        return self.gram_s + self.apply_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Operands:
    name: str
    W_OI: FloatArray
    B_OR: FloatArray
    A_RI: FloatArray
    scale_R: FloatArray
    coefficient_R: FloatArray
    out_OI: FloatArray
    starts_N: npt.NDArray[np.int64]


def run_reference(
    deltas: Sequence[Delta],
    weights: Sequence[float],
    modules: Sequence[ModuleShape],
    read: Callable[[ModuleShape], npt.NDArray[np.float32]],
    *,
    threads: int,
    keep: bool = False,
) -> Reference:
    """Inner products and apply of all modules.

    Args:
        deltas: Expanded; each has a part for every module.
        weights: What each counts.
        modules: The genesis'.
        read: A module's old weights.
        threads: Modules worked on at the same time.
        keep: Whether the new weights are wanted.
    """
    gram_NN = np.zeros((len(deltas), len(deltas)))
    gram_s = apply_s = cpu_s = 0.0
    tile_elements = 0
    new: dict[str, FloatArray] = {}
    parts = [{part.module: part for part in delta.parts} for delta in deltas]

    def prepare(module: ModuleShape) -> _Operands:
        each = [components(of_delta[module.name]) for of_delta in parts]
        scales = [np.ldexp(one.mantissa_R.astype(np.float64), one.exponent_R) for one in each]
        W_OI = read(module).astype(np.float64).reshape(module.out_features, module.in_features)
        return _Operands(
            name=module.name,
            W_OI=W_OI,
            B_OR=np.concatenate([one.B_OR for one in each], axis=1).astype(np.float64, order="C"),
            A_RI=np.concatenate([one.A_RI for one in each], axis=0).astype(np.float64, order="C"),
            scale_R=np.concatenate(scales),
            coefficient_R=np.concatenate([weight * scale for weight, scale in zip(weights, scales, strict=True)]),
            out_OI=W_OI.copy(),  # Touched: first use of fresh memory costs, and is not arithmetic.
            starts_N=np.cumsum([0, *(len(scale) for scale in scales[:-1])]),
        )

    with ThreadPoolExecutor(threads) as pool:
        for group in _groups(modules):
            operands = [prepare(module) for module in group]
            if not tile_elements:
                tile_elements = min(TILE_ELEMENTS, key=lambda tile: _timed(pool, operands, tile))
            cpu_before_s = _cpu_s()
            began_s = time.perf_counter()
            for found_NN in pool.map(_gram, operands):
                gram_NN += found_NN
            between_s = time.perf_counter()
            list(pool.map(_apply, operands, itertools.repeat(tile_elements)))
            apply_s += time.perf_counter() - between_s
            gram_s += between_s - began_s
            cpu_s += _cpu_s() - cpu_before_s
            if keep:
                new |= {one.name: one.out_OI for one in operands}
    return Reference(gram_s=gram_s, apply_s=apply_s, cpu_s=cpu_s, tile_elements=tile_elements, gram_NN=gram_NN, new=new)


def _gram(one: _Operands) -> FloatArray:
    scaled_B_OR = one.B_OR * one.scale_R
    products_RR = scaled_B_OR.T @ scaled_B_OR
    products_RR *= one.A_RI @ one.A_RI.T
    found: FloatArray = np.add.reduceat(np.add.reduceat(products_RR, one.starts_N, axis=0), one.starts_N, axis=1)
    return found


def _apply(one: _Operands, tile_elements: int) -> None:
    num_rows = max(1, tile_elements // one.W_OI.shape[1])
    for start in range(0, len(one.W_OI), num_rows):
        rows = slice(start, start + num_rows)
        np.matmul(one.B_OR[rows] * one.coefficient_R, one.A_RI, out=one.out_OI[rows])
        one.out_OI[rows] += one.W_OI[rows]


def _timed(pool: ThreadPoolExecutor, operands: Sequence[_Operands], tile_elements: int) -> float:
    began_s = _cpu_s()
    list(pool.map(_apply, operands, itertools.repeat(tile_elements)))
    return _cpu_s() - began_s


def _groups(modules: Sequence[ModuleShape]) -> list[list[ModuleShape]]:
    """Modules that are in memory together, in each group the largest first."""
    groups: list[list[ModuleShape]] = []
    room = 0
    for module in modules:
        size = module.out_features * module.in_features
        if not groups or size > room:
            groups.append([])
            room = _GROUP_ELEMENTS
        groups[-1].append(module)
        room -= size
    return [sorted(group, key=lambda module: -module.out_features * module.in_features) for group in groups]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
