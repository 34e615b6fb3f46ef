"""The effective rank of the accumulated update at little cost, for `status`: a few matrices, large ones by a sketch.

`rank.py` has the exact measures, which take all singular values of all matrices. Here a sample of at most
`MAX_SAMPLED` matrices stands for the others of its kind (all `q_proj`, say), each at another depth. A matrix whose
smaller side is at most `MAX_EXACT_SIDE` is measured exactly, a larger one by `sketched_effective_rank`.

The figure is for people: nothing signed depends on it. `scripts/bench/rank_estimate.py` measures how far it is off.

Tensor dimensions: O rows, I columns (the smaller side), K sketched directions, P probes, S Lanczos steps.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullrank_node.model.rank import Float32Array, FloatArray, MatrixModule, effective_rank

MAX_SAMPLED = 16
"""Matrices: a decoder has seven or eight kinds, and two depths of each are nearer to the mean than one."""

MAX_ELEMENTS = 1 << 26
"""Larger matrices are not sampled: two of them in memory are half a gigabyte (8192 x 8192, or 14336 x 4096)."""

MAX_EXACT_SIDE = 2048
"""Columns. Up to here, all eigenvalues of the Gram matrix take no longer than the sketch: 2 s on one core."""

SAMPLE_ERROR = 0.05
"""By which the mean of the sample misses the mean of all matrices at most, as measured on the embedded base."""

SKETCH_ERROR = 0.06
"""By which a sketch misses the exact figure at most, as measured for falling, flat and low-rank singular values."""

SKETCHED_DIRECTIONS = 512
POWER_STEPS = 2
PROBES = 16
LANCZOS_STEPS = 64

_TILE_ELEMENTS = 1 << 22
"""Float64 copies are made of so many elements at a time: 32 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A matrix that is measured.

    Attributes:
        name: Parameter name.
        out_features: Rows.
        in_features: Columns.
        stands_for: Matrices of its kind, itself among them, that it is counted for.
    """

    name: str
    out_features: int
    in_features: int
    stands_for: float

    @property
    def full(self) -> int:
        """The most that its rank can be."""
        return min(self.out_features, self.in_features)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Which matrices are measured; follows from the genesis alone.

    Attributes:
        matrices: In the order in which they are measured; empty where all are too large.
        num_matrices: Adapted matrices of the model.
    """

    matrices: tuple[Sampled, ...]
    num_matrices: int

    def mean(self, values: Iterable[float]) -> float:
        """The mean over the model of what was found for each matrix of the sample."""
        weights = [matrix.stands_for for matrix in self.matrices]
        return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

    @property
    def full(self) -> float:
        """The mean of the largest possible ranks."""
        return self.mean(matrix.full for matrix in self.matrices)

    @property
    def relative_error(self) -> float:
        """By which the figure misses the mean over all matrices at most, as far as was measured; 0: it is exact."""
        sampled = SAMPLE_ERROR if len(self.matrices) < self.num_matrices else 0.0
        return sampled + (SKETCH_ERROR if any(matrix.full > MAX_EXACT_SIDE for matrix in self.matrices) else 0.0)


def sample_of(modules: Iterable[MatrixModule], *, at_most: int = MAX_SAMPLED) -> Sample:
    """Matrices of every kind, each at another depth of the model; the same ones on every node.

    A kind is a name without its numbers, as `model.layers.#.self_attn.q_proj.weight`. Where there are more kinds than
    may be measured, the most frequent ones are.
    """
    matrices = [module for module in modules if min(module.out_features, module.in_features) > 1]
    kinds: dict[str, list[MatrixModule]] = defaultdict(list)
    for module in sorted(matrices, key=lambda module: _by_number(module.name)):
        if module.out_features * module.in_features <= MAX_ELEMENTS:
            kinds[re.sub(r"\d+", "#", module.name)].append(module)
    chosen = sorted(sorted(kinds), key=lambda kind: -len(kinds[kind]))[:at_most]
    per_kind = max(1, at_most // max(1, len(chosen)))
    found: list[Sampled] = []
    for number, kind in enumerate(chosen):
        members = kinds[kind]
        count = min(per_kind, len(members))
        for turn in range(count):
            depth = (turn + (number + 0.5) / len(chosen)) / count
            module = members[int(depth * len(members))]
            found.append(
                Sampled(
                    name=module.name,
                    out_features=module.out_features,
                    in_features=module.in_features,
                    stands_for=len(members) / count,
                )
            )
    return Sample(matrices=tuple(found), num_matrices=len(matrices))


def estimated_effective_rank(update: Float32Array) -> float:
    """The effective rank of one matrix (out_features, in_features), exact where that is cheap; 0 for no update."""
    if min(update.shape) > MAX_EXACT_SIDE:
        return sketched_effective_rank(update)
    return effective_rank(_gram_singular_values(_upright(update)))


def sketched_effective_rank(update: Float32Array) -> float:
    """The effective rank of one large matrix, as far as a random sketch tells.

    The largest singular values, which carry most of the entropy's sum, are those of the matrix on the subspace that
    some power steps find (Halko, Martinsson and Tropp 2011, "Finding structure with randomness", algorithm 4.4). The
    sums over all others, of s and of s log s, are traces of functions of the Gram matrix on what is left, which
    stochastic Lanczos quadrature estimates (Ubaru, Chen and Saad 2017, "Fast estimation of tr(f(A))"); the Lanczos
    process runs as Golub-Kahan bidiagonalisation, which keeps the precision of s itself. Errors are towards more.

    Args:
        update: (out_features, in_features); both larger than `SKETCHED_DIRECTIONS`.
    """
    update_OI = _upright(update)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(repr(update_OI.shape).encode()).digest()[:8], "little"))
    basis_IK = _orthonormal(rng.standard_normal((update_OI.shape[1], SKETCHED_DIRECTIONS), dtype=np.float32))
    for _ in range(POWER_STEPS):
        basis_IK = _orthonormal(update_OI.T @ (update_OI @ basis_IK))
    largest_K = _gram_singular_values(update_OI @ basis_IK)
    rest_sum, rest_entropy = _rest(update_OI, basis_IK, rng)
    total = float(largest_K.sum()) + rest_sum
    if total <= 0.0:
        return 0.0
    return float(total * np.exp(-(float(_s_log_s(largest_K).sum()) + rest_entropy) / total))


def _rest(update_OI: Float32Array, basis_IK: Float32Array, rng: np.random.Generator) -> tuple[float, float]:
    """The sums of s and of s log s over the singular values of the update outside of a subspace."""

    def outside(vectors_IP: Float32Array) -> Float32Array:
        return vectors_IP - basis_IK @ (basis_IK.T @ vectors_IP)

    num_columns = update_OI.shape[1]
    right_IP = _orthonormal(outside(rng.standard_normal((num_columns, PROBES), dtype=np.float32)))
    left_OP = np.zeros((update_OI.shape[0], PROBES), dtype=np.float32)
    beta_P = np.zeros(PROBES, dtype=np.float32)
    bidiagonal_PSS = np.zeros((PROBES, LANCZOS_STEPS, LANCZOS_STEPS))
    for step in range(LANCZOS_STEPS):
        left_OP, alpha_P = _normalised(update_OI @ right_IP - left_OP * beta_P)
        bidiagonal_PSS[:, step, step] = alpha_P
        right_IP, beta_P = _normalised(outside(update_OI.T @ left_OP - right_IP * alpha_P))
        if step + 1 < LANCZOS_STEPS:
            bidiagonal_PSS[:, step, step + 1] = beta_P
    _, values_PS, turned_PSS = np.linalg.svd(bidiagonal_PSS)
    weight_PS = turned_PSS[:, :, 0] ** 2
    scale = (num_columns - basis_IK.shape[1]) / PROBES
    return scale * float((weight_PS * values_PS).sum()), scale * float((weight_PS * _s_log_s(values_PS)).sum())


def _gram_singular_values(matrix_OI: Float32Array) -> FloatArray:
    """Singular values by the float64 Gram matrix of the columns; below 1e-8 of the largest they mean nothing."""
    num_rows, num_columns = matrix_OI.shape
    gram_II = np.zeros((num_columns, num_columns))
    step = max(1, _TILE_ELEMENTS // num_columns)
    for start in range(0, num_rows, step):
        tile_OI = matrix_OI[start : start + step].astype(np.float64)
        gram_II += tile_OI.T @ tile_OI
    values: FloatArray = np.sqrt(np.maximum(np.linalg.eigvalsh(gram_II), 0.0))
    return np.where(values > 1e-8 * values.max(initial=0.0), values, 0.0)


def _upright(matrix: Float32Array) -> Float32Array:
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def _orthonormal(vectors: Float32Array) -> Float32Array:
    return np.linalg.qr(vectors)[0]


def _normalised(vectors: Float32Array) -> tuple[Float32Array, npt.NDArray[np.float32]]:
    norms: npt.NDArray[np.float32] = np.linalg.norm(vectors, axis=0).astype(np.float32)
    return (vectors / np.where(norms > 0.0, norms, 1.0)).astype(np.float32), norms


def _s_log_s(values: FloatArray) -> FloatArray:
    return values * np.log(np.where(values > 0.0, values, 1.0))


def _by_number(name: str) -> list[tuple[bool, int, str]]:
    """Sorts layer 10 behind layer 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
