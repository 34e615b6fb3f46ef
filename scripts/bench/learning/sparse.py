"""A change of all weights as its largest entries in two bits each: what a sparse full-rank contribution carries.

Top-k in chunks of 4096 entries, as SparseLoCo does it (Sarfi et al. 2025, arXiv:2508.15706). Of the entries that are
kept, sign and one of two magnitudes travel: the means of a chunk's smaller and larger half. Places are counted with
the bits that an ideal code would need, so the byte counts favour this arm a little.

Legend of array names: C = chunks, E = entries of a chunk, K = entries kept of a chunk.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHUNK = 4096

VALUE_BITS = 2
SCALE_BITS = 2 * 16
"""Two magnitudes a chunk, bfloat16."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What arrives, and what it took.

    Attributes:
        values: As long as what was compressed.
        num_bytes: Size as sent, not rounded up.
    """

    values: FloatArray
    num_bytes: float


def compress(vector: FloatArray, *, density: float) -> Compressed:
    """Keep a share of the entries of each chunk; the last chunk is filled up with zeros."""
    padded = np.zeros(-(-vector.size // CHUNK) * CHUNK)
    padded[: vector.size] = vector
    chunks_CE = padded.reshape(-1, CHUNK)
    count = max(1, round(density * CHUNK))
    places_CK = np.argsort(-np.abs(chunks_CE), axis=1, kind="stable")[:, :count]
    kept_CK = np.take_along_axis(chunks_CE, places_CK, axis=1)
    sizes_CK = np.abs(kept_CK)
    larger = max(1, count // 2)  # Largest first.
    levels_CK = np.empty_like(sizes_CK)
    levels_CK[:, :larger] = sizes_CK[:, :larger].mean(axis=1, keepdims=True)
    if larger < count:
        levels_CK[:, larger:] = sizes_CK[:, larger:].mean(axis=1, keepdims=True)
    found_CE = np.zeros_like(chunks_CE)
    np.put_along_axis(found_CE, places_CK, np.sign(kept_CK) * levels_CK, axis=1)
    bits = len(chunks_CE) * (VALUE_BITS * count + SCALE_BITS + _log2_choices(CHUNK, count))
    return Compressed(values=found_CE.reshape(-1)[: vector.size], num_bytes=bits / 8)


def _log2_choices(total: int, chosen: int) -> float:
    """Bits of an ideal code for which entries were kept."""
    return (math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)) / math.log(2)
