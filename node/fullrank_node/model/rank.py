"""How much room the accumulated update W_t - W_0 fills: the claim that small adapters add up to a full-rank change.

Three measures of one module, from its singular values s (float64, numpy):

- numerical rank: values above the rounding noise of float32 weights. Nearly automatic, hence not enough;
- stable rank sum(s²) / max(s)²: small when one direction holds most of the energy;
- effective rank exp(entropy of s / sum(s)) (Roy and Vetterli 2007, "The effective rank"): as many equal
  values would have it.

`noise_control` says what random updates of the same ranks and norms would give, so that a figure can be judged.
For people and benchmarks only: singular values differ in their last bits between machines, and nothing signed
depends on them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]


class MatrixModule(Protocol):
    """An adapted tensor as the genesis names it."""

    @property
    def name(self) -> str:
        """Parameter name."""

    @property
    def out_features(self) -> int:
        """Rows."""

    @property
    def in_features(self) -> int:
        """Columns; 1 for a dense module, which has no rank to speak of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRank:
    """Ranks of the update of one module.

    Attributes:
        name: Parameter name.
        full: min(out_features, in_features), the most that any of them can be.
        numerical: Singular values above rounding noise.
        stable: 1 to `full`; 0 for no update.
        effective: 1 to `full`; 0 for no update.
        norm: Frobenius norm of the update.
    """

    name: str
    full: int
    numerical: int
    stable: float
    effective: float
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRankReport:
    """Ranks of the update of a model.

    Attributes:
        modules: Linear modules, ascending by name.
    """

    modules: tuple[ModuleRank, ...]

    @property
    def effective(self) -> float:
        """Mean effective rank over the modules."""
        return _mean(module.effective for module in self.modules)

    @property
    def stable(self) -> float:
        """Mean stable rank over the modules."""
        return _mean(module.stable for module in self.modules)

    @property
    def numerical(self) -> float:
        """Mean numerical rank over the modules."""
        return _mean(module.numerical for module in self.modules)

    @property
    def full(self) -> float:
        """Mean of the largest possible ranks of the modules."""
        return _mean(module.full for module in self.modules)

    def to_json(self) -> dict[str, object]:
        """The means for a report."""
        return {
            "effective": round(self.effective, 3),
            "stable": round(self.stable, 3),
            "numerical": round(self.numerical, 3),
            "full": round(self.full, 3),
        }


def measure_rank(
    modules: Sequence[MatrixModule],
    before: Callable[[str], Float32Array],
    after: Callable[[str], Float32Array],
    *,
    num_rounds: int = 1,
) -> EffectiveRankReport:
    """Measures the update of every linear module; `rank_estimate` does some of them in less time.

    Args:
        modules: Adapted tensors of the genesis; dense ones are left out.
        before: Parameter name to W_0 (out_features, in_features).
        after: Parameter name to W_t, for example `lambda name: masters.open(manifest[name], shapes[name])`.
        num_rounds: How often the weights were rounded to float32 between the two.
    """
    names = sorted(module.name for module in modules if min(module.out_features, module.in_features) > 1)
    return EffectiveRankReport(
        modules=tuple(rank_of_change(name, before(name), after(name), num_rounds=num_rounds) for name in names)
    )


def rank_of_change(name: str, before: Float32Array, after: Float32Array, *, num_rounds: int = 1) -> ModuleRank:
    """Measures after - before of one matrix.

    Each rounding of W to float32 moves an entry by up to 2^-24 of its size. Such noise has independent entries, so
    its largest singular value is about its standard deviation times √out + √in, and grows with √num_rounds; values
    below that are not counted as rank.
    """
    last = after.astype(np.float64)
    update = last - before.astype(np.float64)
    noise = float(np.abs(last).max(initial=0.0)) * 2.0**-24 * sum(math.sqrt(size) for size in update.shape)
    return rank_of_update(name, update, noise=noise * math.sqrt(max(1, num_rounds)))


def rank_of_update(name: str, update: FloatArray, *, noise: float = 0.0) -> ModuleRank:
    """Measures a matrix whose singular values up to `noise` mean nothing."""
    values = singular_values(update)
    largest = float(values.max(initial=0.0))
    rounding = largest * max(update.shape) * float(np.finfo(np.float64).eps)
    return ModuleRank(
        name=name,
        full=min(update.shape),
        numerical=int(np.count_nonzero(values > max(noise, rounding))),
        stable=float(np.sum((values / largest) ** 2)) if largest > 0.0 else 0.0,
        effective=effective_rank(values),
        norm=float(np.sqrt(np.sum(values**2))),
    )


def singular_values(matrix: FloatArray) -> FloatArray:
    """Singular values in descending order."""
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


def effective_rank(values: FloatArray) -> float:
    """Exponential of the Shannon entropy of singular values normalised to sum 1; 0 when all are 0."""
    total = float(values.sum())
    if total <= 0.0:
        return 0.0
    share = values[values > 0.0] / total
    return float(np.exp(-np.sum(share * np.log(share))))


def noise_control(
    shapes: Sequence[tuple[int, int]],
    ranks_per_round: Sequence[Sequence[int]],
    *,
    norms_per_round: Sequence[Sequence[float]] | None = None,
    period_rounds: int = 1,
    max_modules: int | None = None,
    seed: int = 0,
) -> list[float]:
    """Effective rank after each round if every delta had been random.

    Each delta is a product of Gaussian factors of its rank, scaled to its norm. What learns has preferred directions
    and comes out lower; what only jitters comes out the same.

    Args:
        shapes: (out_features, in_features) of each linear module.
        ranks_per_round: Ranks of the deltas merged in each round; rounds may differ.
        norms_per_round: Weighted Frobenius norms of the same deltas, for one module; all 1 when left out.
        period_rounds: The n-th delta of a round keeps its A for so many rounds, as in mode B.
        max_modules: Simulate at most so many of the shapes, evenly spread.
        seed: Of the random numbers.

    Returns:
        The mean over modules of the effective rank, one number a round.

    Raises:
        ValueError: Norms and ranks do not pair up.
    """
    norms = norms_per_round if norms_per_round is not None else [[1.0] * len(ranks) for ranks in ranks_per_round]
    if [len(one) for one in norms] != [len(one) for one in ranks_per_round]:
        raise ValueError("found norms for other deltas than the ranks, required one norm a rank")
    rng = np.random.default_rng(seed)
    per_module = []
    for index in spread(len(shapes), max_modules):
        out_features, in_features = shapes[index]
        total = np.zeros(shapes[index])
        effective = []
        kept: dict[tuple[int, int], FloatArray] = {}
        for number, (ranks, sizes) in enumerate(zip(ranks_per_round, norms, strict=True)):
            if number % period_rounds == 0:
                kept.clear()
            for key, size in zip(enumerate(ranks), sizes, strict=True):
                if key not in kept:
                    kept[key] = rng.standard_normal((key[1], in_features))
                product = rng.standard_normal((out_features, key[1])) @ kept[key]
                total += product * (size / np.linalg.norm(product)) if key[1] > 0 else 0.0
            effective.append(effective_rank(singular_values(total)))
        per_module.append(effective)
    return [_mean(round_values) for round_values in zip(*per_module, strict=True)]


def spread(number: int, at_most: int | None) -> list[int]:
    """Indices of `at_most` of `number` things, evenly spread with both ends; all of them when None."""
    if at_most is None or number <= at_most:
        return list(range(number))
    return sorted({round(i * (number - 1) / max(1, at_most - 1)) for i in range(at_most)})


def shapes_of(modules: Iterable[MatrixModule]) -> dict[str, tuple[int, int]]:
    """Shape of each linear module by name, as `noise_control` and `MasterStore.open` want it."""
    return {m.name: (m.out_features, m.in_features) for m in modules if min(m.out_features, m.in_features) > 1}


def opener(
    open_master: Callable[[str, tuple[int, ...]], Float32Array],
    manifest: Mapping[str, str],
    shapes: Mapping[str, tuple[int, int]],
) -> Callable[[str], Float32Array]:
    """The `before` or `after` of `measure_rank` for a manifest in a `MasterStore`."""
    return lambda name: open_master(manifest[name], shapes[name])


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return math.fsum(values) / len(values) if values else 0.0
