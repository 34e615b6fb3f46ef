#!/usr/bin/env python3
"""Measures the delta codec: speed against memcpy and zstd, bytes against the entropy, memory against the genesis.

    scripts/bench/codec.py              about a minute of one core

Factors are Gaussian, rounded to 2, 3, 4 and 8 bits as contributions are, and to -1, 0 and +1 at the scale of the least
squared error of each column ("1.5 bits": their entropy). One integer of a factor counts as one byte. Times are of one
thread's processor time, the best of several; `encode` and `decode` contain `validate`, which is also shown alone. All
of a row is measured in the same minute. A second table packs and compresses the same integers in other ways.

Prints both tables and writes JSON. The exit code is 1 when something is slower than the limit, larger than the
entropy allows for, or takes more memory than the genesis allows.
"""

import argparse
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "protocol"))

from measured_on import facts  # noqa: E402 - after the path is set.

from fullrank_protocol import codec  # noqa: E402
from fullrank_protocol.codec import CODEC_PACKED, decode, encode  # noqa: E402
from fullrank_protocol.delta import KIND_LINEAR, Delta, LowRank, quantize_low_rank, validate  # noqa: E402
from fullrank_protocol.genesis import Limits, Module, ModuleKind  # noqa: E402
from fullrank_protocol.packing import Octets, pack, unpack, width_needed  # noqa: E402

SEED = 1

LIMIT_MB_S = 200.0
"""What encoding and decoding have to reach on one core."""

MOST_OVER_ENTROPY = {128: 1.15, 2048: 1.1}
"""Bytes over the entropy of the integers, by width: a component's scale and row take 5 bytes before compression."""

TERNARY = 0
"""Stands for -1, 0 and +1 where bits are given."""

BITS = (TERNARY, 2, 3, 4, 8)

LEAST_S = 0.05
"""Of one measurement; the best of `REPEATS` counts, for other processes share the machine."""

REPEATS = 7

PACKAGES = ("numpy", "zstandard")

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Adapted modules of a model.

    Attributes:
        features: (out, in) of each module.
    """

    name: str
    width: int
    rank: int
    features: tuple[tuple[int, int], ...]


SHAPES = (
    Shape(
        name="128 wide",
        width=128,
        rank=32,
        features=4 * (*4 * ((128, 128),), *2 * ((352, 128),), (128, 352)) + ((2048, 128),),
    ),
    Shape(
        name="2048 wide",
        width=2048,
        rank=32,
        features=(*4 * ((2048, 2048),), *2 * ((8192, 2048),), (2048, 8192), (32768, 2048)),
    ),
)
"""The embedded base, and one layer of a model of a billion parameters; each with its embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A genesis, as far as deltas go: no more bytes than one with these shapes can need."""

    modules: tuple[Module, ...]
    max_rank: int
    codecs: tuple[int, ...]
    limits: Limits

    @classmethod
    def of(cls, shape: Shape) -> "Rules":
        """Those of a swarm with these shapes."""
        modules = tuple(
            Module(name=f"module {number:03}", kind=ModuleKind(KIND_LINEAR), out_features=rows, in_features=columns)
            for number, (rows, columns) in enumerate(shape.features)
        )
        limits = Limits(
            max_delta_bytes=sum(shape.rank * (rows + columns + 5) for rows, columns in shape.features),
            min_scale_exponent=-40,
            max_scale_exponent=10,
            max_checkpoint_bytes=1 << 20,
        )
        return cls(modules=modules, max_rank=shape.rank, codecs=(CODEC_PACKED,), limits=limits)


# ---- factors -------------------------------------------------------------------------------------


def some_delta(rules: Rules, *, bits: int, seeded: bool, rng: np.random.Generator) -> Delta:
    """Gaussian factors of every module, columns of different sizes, rounded."""
    return Delta.of(_some_part(module, rules, bits=bits, seeded=seeded, rng=rng) for module in rules.modules)


def ternary(values_OR: Float64Array) -> npt.NDArray[np.int8]:
    """Round each column to -1, 0 and +1 times what leaves the least squared error, as packed integers of two bits.

    The k largest entries of a column become its ones, and their mean the scale; then the error is the squared norm
    less (sum of the k largest)^2 / k.
    """
    falling = -np.sort(-np.abs(values_OR), axis=0)
    counts = np.arange(1, len(falling) + 1)[:, np.newaxis]
    best = (falling.cumsum(axis=0) ** 2 / counts).argmax(axis=0)
    threshold = np.take_along_axis(falling, best[np.newaxis], axis=0)
    rounded: npt.NDArray[np.int8] = (np.sign(values_OR) * (np.abs(values_OR) >= threshold)).astype(np.int8)
    return rounded * np.int8(64)


def entropy_bits(arrays: Sequence[npt.NDArray[np.int8]]) -> float:
    """Empirical entropy of order 0 of each array's integers, in bits, added up."""
    total = 0.0
    for array in arrays:
        counts = np.bincount(array.reshape(-1).view(np.uint8))
        counts = counts[counts > 0]
        total += float(-(counts * np.log2(counts / array.size)).sum())
    return total


def _some_part(module: Module, rules: Rules, *, bits: int, seeded: bool, rng: np.random.Generator) -> LowRank:
    sizes_R = 10.0 ** rng.uniform(-4, -2, size=rules.max_rank)
    B_OR = rng.normal(size=(module.out_features, rules.max_rank)) * sizes_R
    A_RI = None if seeded else rng.normal(size=(rules.max_rank, module.in_features))
    if bits != TERNARY:
        return quantize_low_rank(
            module.name, B_OR, A_RI, bits_b=bits, bits_a=bits, scale=1.0, rng=rng, stochastic=True, limits=rules.limits
        )
    rounded_RO = np.ascontiguousarray(ternary(B_OR).T)
    rounded_RI = None if A_RI is None else np.ascontiguousarray(ternary(A_RI.T).T)
    mantissas = (2 * rng.integers(0, 8, size=rules.max_rank) + 1).tolist()
    exponents = rng.integers(-22, -16, size=rules.max_rank).tolist()
    order = list(range(rules.max_rank))
    if rounded_RI is not None:
        order.sort(key=lambda k: (exponents[k], mantissas[k], rounded_RO[k].tobytes(), rounded_RI[k].tobytes()))
    return LowRank(
        module=module.name,
        B_OR=rounded_RO[order].T,
        A_RI=None if rounded_RI is None else rounded_RI[order],
        scale_mantissa_R=tuple(mantissas[k] for k in order),
        scale_exponent_R=tuple(exponents[k] for k in order),
        row_R=tuple(order) if seeded else None,
    )


def _arrays(delta: Delta) -> list[npt.NDArray[np.int8]]:
    """What travels, component after component."""
    low_rank = [part for part in delta.parts if isinstance(part, LowRank)]
    found = [array for part in low_rank for array in (part.B_OR.T, part.A_RI) if array is not None]
    return [np.ascontiguousarray(array) for array in found]


# ---- speed and memory ------------------------------------------------------------------------------


def measured(shape: Shape, *, bits: int, seeded: bool) -> dict[str, Any]:
    """One row of the first table."""
    rules = Rules.of(shape)
    delta = some_delta(rules, bits=bits, seeded=seeded, rng=np.random.default_rng(SEED))
    arrays = _arrays(delta)
    num_integers = sum(array.size for array in arrays)
    data = encode(delta, rules)
    if decode(data, rules, CODEC_PACKED) != delta:
        raise SystemExit("codec: a delta did not come back from its bytes")
    plain = np.concatenate([array.reshape(-1) for array in arrays])
    level_3 = zstandard.ZstdCompressor(level=3)
    compressed = level_3.compress(plain.data)
    flat = [array.reshape(-1).view(np.uint8) for array in arrays]
    width = max(width_needed(array) for array in flat)
    packed = [pack(array, width).copy() for array in flat]

    def speed(act: Callable[[], object]) -> float:
        return round(num_integers / 1e6 / best_s(act), 1)

    peak, held = decoding_peak(data, rules)
    entropy = entropy_bits(arrays)
    return {
        "shape": shape.name,
        "width": shape.width,
        "rank": shape.rank,
        "A": "seeded" if seeded else "sent",
        "bits": bits or "ternary",
        "integers": num_integers,
        "mb_per_s": {
            "encode": speed(lambda: encode(delta, rules)),
            "decode": speed(lambda: decode(data, rules, CODEC_PACKED)),
            "validate": speed(lambda: validate(delta, rules)),
            "pack": None if width == 8 else speed(lambda: [pack(array, width) for array in flat]),
            "unpack": speed(lambda: [unpack(one, array.size, width) for one, array in zip(packed, flat, strict=True)]),
            "zstd_3_compress": speed(lambda: level_3.compress(plain.data)),
            "zstd_3_decompress": speed(lambda: zstandard.ZstdDecompressor().decompress(compressed)),
            "memcpy": speed(plain.copy),
        },
        "bits_per_integer": {
            "codec": round(8 * len(data) / num_integers, 4),
            "entropy": round(entropy / num_integers, 4),
            "over_entropy": round(8 * len(data) / entropy, 4),
            "zstd_3": round(8 * len(compressed) / num_integers, 4),
        },
        "decoding_memory": {"peak": peak, "held": held, "allowed": codec.most_memory(rules)},
    }


def best_s(act: Callable[[], object]) -> float:
    """Processor time of one call in seconds, the best of several measurements."""
    act()
    began_s, calls = time.thread_time(), 0
    while time.thread_time() - began_s < LEAST_S:
        act()
        calls += 1
    best = (time.thread_time() - began_s) / calls
    for _ in range(REPEATS - 1):
        began_s = time.thread_time()
        for _ in range(calls):
            act()
        best = min(best, (time.thread_time() - began_s) / calls)
    return best


def decoding_peak(data: bytes, rules: Rules) -> tuple[int, int]:
    """Bytes that Python and NumPy held at most while decoding, and what the decoded delta holds."""
    tracemalloc.start()
    try:
        decoded = decode(data, rules, CODEC_PACKED)
        held, peak = tracemalloc.get_traced_memory()
        assert decoded.parts
        return peak, held
    finally:
        tracemalloc.stop()


# ---- bytes ---------------------------------------------------------------------------------------


def packings(shape: Shape) -> dict[str, Any]:
    """Bits an integer of ternary factors, packed and compressed in other ways; without scales unless it says so."""
    rules = Rules.of(shape)
    delta = some_delta(rules, bits=TERNARY, seeded=True, rng=np.random.default_rng(SEED))
    low_rank = [part for part in delta.parts if isinstance(part, LowRank)]
    parts = [part.B_OR.T.reshape(-1).view(np.uint8) for part in low_rank]
    num_integers = sum(part.size for part in parts)
    fours = [pack(part, 2).tobytes() for part in parts]
    scales = [_scale_bytes(part) for part in low_rank]
    ours = zstandard.ZstdCompressor(compression_params=codec.COMPRESSION)

    def bits(*frames: bytes) -> float:
        return round(8 * sum(map(len, frames)) / num_integers, 4)

    alone = b"".join(fours)
    rows = [pack(np.ascontiguousarray(part.B_OR).reshape(-1).view(np.uint8), 2).tobytes() for part in low_rank]
    return {
        "entropy": round(entropy_bits([part.view(np.int8) for part in parts]) / num_integers, 4),
        "four a byte": bits(ours.compress(alone)),
        "four a byte, zstd level 3": bits(zstandard.ZstdCompressor(level=3).compress(alone)),
        "four a byte, zstd level 19": bits(zstandard.ZstdCompressor(level=19).compress(alone)),
        "four a byte, row after row": bits(ours.compress(b"".join(rows))),
        "four a byte, a block each module": bits(_in_blocks(fours)),
        "four a byte, a frame each module": bits(*map(ours.compress, fours)),
        "five a byte": bits(ours.compress(b"".join(map(_fives, parts)))),
        "two a byte": bits(ours.compress(b"".join(pack(part, 4).tobytes() for part in parts))),
        "one a byte": bits(ours.compress(b"".join(part.tobytes() for part in parts))),
        "with scales, as codec 1": bits(
            ours.compress(b"".join(one for pair in zip(scales, fours, strict=True) for one in pair))
        ),
        "with scales, these in front": bits(ours.compress(b"".join(scales) + alone)),
        "with scales, these in a block of their own": bits(_in_blocks([b"".join(scales), alone])),
    }


def _scale_bytes(part: LowRank) -> bytes:
    return (
        bytes(part.scale_mantissa_R)
        + np.array(part.scale_exponent_R, dtype="<i2").tobytes()
        + np.array(part.row_R, dtype="<u2").tobytes()
    )


def _fives(entries: Octets) -> bytes:
    """Five digits of base 3 in a byte, 0 for -1."""
    digits = (entries.view(np.int8) // 64 + 1).astype(np.uint8)
    padded = np.pad(digits, (0, -len(digits) % 5)).reshape(-1, 5)
    return (padded @ np.array([1, 3, 9, 27, 81], dtype=np.uint8)).tobytes()


def _in_blocks(pieces: Sequence[bytes]) -> bytes:
    """One frame with a new block, and so with new statistics, for each piece."""
    compressor = zstandard.ZstdCompressor(compression_params=codec.COMPRESSION).compressobj()
    found = b"".join(compressor.compress(one) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for one in pieces)
    return found + compressor.flush()


# ---- report --------------------------------------------------------------------------------------


def faults(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What misses its mark."""
    found: list[str] = []
    for row in rows:
        name = f"{row['shape']}, A {row['A']}, {row['bits']} bits"
        for act in ("encode", "decode"):
            if row["mb_per_s"][act] < LIMIT_MB_S:
                found.append(f"{name}: {act} at {row['mb_per_s'][act]} MB/s, {LIMIT_MB_S:.0f} required")
        if row["bits_per_integer"]["over_entropy"] > MOST_OVER_ENTROPY[row["width"]]:
            found.append(f"{name}: {row['bits_per_integer']['over_entropy']} times the entropy")
        if row["decoding_memory"]["peak"] > row["decoding_memory"]["allowed"]:
            found.append(f"{name}: {row['decoding_memory']['peak']} bytes held while decoding")
    return found


def table(report: dict[str, Any]) -> str:
    """Both tables, for people."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in report["machine"].items()) + f", seed {SEED}",
        "",
        "MB/s of integers of factors, one thread; x is against the limit of 200 MB/s; bytes need no packing",
        f"{'':9} {'A':6} {'bits':>7} {'MB':>5} {'encode':>7} {'x':>5} {'decode':>7} {'x':>5} {'valid.':>7} {'pack':>6} "
        f"{'unpack':>6} {'zstd -3':>11} {'memcpy':>6} {'bits/int':>8} {'entropy':>7} {'ratio':>6} {'zstd -3':>7} "
        f"{'peak/allowed MB':>15}",
    ]
    for row in report["rows"]:
        speed, bits, memory = row["mb_per_s"], row["bits_per_integer"], row["decoding_memory"]
        lines.append(
            f"{row['shape']:9} {row['A']:6} {row['bits']:>7} {row['integers'] / 1e6:>5.2f} "
            f"{speed['encode']:>7.0f} {speed['encode'] / LIMIT_MB_S:>5.1f} "
            f"{speed['decode']:>7.0f} {speed['decode'] / LIMIT_MB_S:>5.1f} {speed['validate']:>7.0f} "
            f"{speed['pack'] or 0:>6.0f} {speed['unpack']:>6.0f} "
            f"{speed['zstd_3_compress']:>5.0f}/{speed['zstd_3_decompress']:<5.0f} {speed['memcpy']:>6.0f} "
            f"{bits['codec']:>8.3f} {bits['entropy']:>7.3f} {bits['over_entropy']:>6.3f} {bits['zstd_3']:>7.3f} "
            f"{memory['peak'] / 1e6:>7.2f}/{memory['allowed'] / 1e6:<7.2f}"
        )
    names = list(report["packings"])
    lines += ["", "bits an integer of ternary factors, seeded A", f"{'':44}" + "".join(f"{name:>12}" for name in names)]
    for way in report["packings"][names[0]]:
        lines.append(f"{way:44}" + "".join(f"{report['packings'][name][way]:>12.4f}" for name in names))
    return "\n".join(lines)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS), choices=BITS, help="0 for -1, 0 and +1")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/bench/results/codec.json")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    rows = [
        measured(shape, bits=bits, seeded=seeded)
        for shape in SHAPES
        for seeded in (True, False)
        for bits in options.bits
    ]
    report = {
        "machine": {
            **facts(*PACKAGES),
            "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
            "load_before": round(load_before, 1),
            "load_after": round(os.getloadavg()[0], 1),
        },
        "seed": SEED,
        "limit_mb_per_s": LIMIT_MB_S,
        "shapes": [asdict(shape) for shape in SHAPES],
        "rows": rows,
        "packings": {shape.name: packings(shape) for shape in SHAPES},
    }
    print(table(report))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    missed = faults(rows)
    for fault in missed:
        print(fault)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
