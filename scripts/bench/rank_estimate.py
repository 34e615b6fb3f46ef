#!/usr/bin/env python3
"""Measures how far the effective rank that `status` shows is off, and what it costs (model/rank_estimate.py).

    scripts/bench/rank_estimate.py            # matrices of 2304 columns, and updates of the embedded base; minutes
    scripts/bench/rank_estimate.py --side 4096

First the sketch against all singular values, on sums of low-rank products as a swarm makes them and on matrices with
given singular values. Then the sample against all matrices, on what a swarm and full fine-tuning do to the embedded
base, round by round. The exact figure on the same machine is what times are compared with. Writes JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts/bench"), str(ROOT / "node"), str(ROOT / "protocol")]

import numpy as np  # noqa: E402 - after the path is set.
from learning.arm import Arm, Float32Array  # noqa: E402
from learning.arms_whole import Parallel  # noqa: E402
from learning.bench import Bench, open_bench  # noqa: E402
from learning.catalogue import OURS  # noqa: E402
from learning.corpus import embedded_sources  # noqa: E402
from learning.run import Run  # noqa: E402
from learning.setting import IID, Setting  # noqa: E402
from learning.trial import machine  # noqa: E402

from fullrank_node.model.base import resolve_base  # noqa: E402
from fullrank_node.model.rank import effective_rank as exact_effective_rank  # noqa: E402
from fullrank_node.model.rank import rank_of_change, singular_values  # noqa: E402
from fullrank_node.model.rank_estimate import (  # noqa: E402
    SAMPLE_ERROR,
    SKETCH_ERROR,
    estimated_effective_rank,
    sample_of,
    sketched_effective_rank,
)

SEED = 1

RATES: Mapping[str, float] = {OURS.name: OURS.anchor_rate, Parallel().name: Parallel().anchor_rate}


def main(command: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; the exit code is 1 where a stated error is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2304, help="columns of the large matrices, more than 512")
    parser.add_argument("--rounds", type=int, default=6, help="of the updates of the embedded base")
    parser.add_argument("--results", type=Path, default=ROOT / "scripts/bench/results/rank_estimate.json")
    options = parser.parse_args(command)
    sketches = [sketch_line(name, matrix) for name, matrix in large_matrices(options.side)]
    samples = sample_lines(options.rounds)
    found = {**machine(), "seed": SEED, "side": options.side, "sketches": sketches, "samples": samples}
    print(text(found))
    options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    worst_sketch = max(abs(line["error"]) for line in sketches)
    worst_sample = max(abs(line["error"]) for line in samples)
    return int(worst_sketch > SKETCH_ERROR or worst_sample > SAMPLE_ERROR)


def large_matrices(side: int) -> Iterator[tuple[str, Float32Array]]:
    """Names and matrices (5/4 side, side): what merged rounds look like, and given singular values."""
    rng = np.random.default_rng(SEED)
    rows = side * 5 // 4
    for rounds, rank, steepness in ((1, 32, 0.0), (8, 32, 0.0), (8, 32, 2.0), (40, 32, 2.0), (40, 128, 1.0)):
        total = np.zeros((rows, side))
        for _ in range(rounds):
            scale_R = np.exp(-steepness * rng.exponential(size=rank))
            total += (rng.standard_normal((rows, rank)) * scale_R) @ rng.standard_normal((rank, side))
        yield f"{rounds} products of rank {rank}, spread {steepness:g}", total.astype(np.float32)
    left_OI = np.linalg.qr(rng.standard_normal((rows, side)))[0]
    right_II = np.linalg.qr(rng.standard_normal((side, side)))[0]
    number_I = np.arange(1, side + 1)
    for name, values_I in (
        ("all singular values equal", np.ones(side)),
        ("one a hundred times the others", np.r_[100.0, np.ones(side - 1)]),
        ("falling as 1/n", 1.0 / number_I),
        ("falling as 1/sqrt(n)", number_I**-0.5),
        ("falling as exp(-8 n/side)", np.exp(-8.0 * number_I / side)),
    ):
        yield name, ((left_OI * values_I) @ right_II).astype(np.float32)


def sketch_line(name: str, matrix: Float32Array) -> dict[str, Any]:
    """One large matrix: exact and sketched."""
    began_s = time.monotonic()
    exact = exact_effective_rank(singular_values(matrix.astype(np.float64)))
    exact_s = time.monotonic() - began_s
    began_s = time.monotonic()
    sketched = sketched_effective_rank(matrix)
    return {
        "matrix": name,
        "exact": round(exact, 2),
        "estimate": round(sketched, 2),
        "error": round(sketched / exact - 1.0, 5),
        "exact_s": round(exact_s, 2),
        "estimate_s": round(time.monotonic() - began_s, 2),
    }


def sample_lines(rounds: int) -> list[dict[str, Any]]:
    """Real updates of the embedded base: all matrices and the sample, after each round."""
    with tempfile.TemporaryDirectory(prefix="rank-estimate-") as directory:
        sources = embedded_sources(Path(directory), block_length=128, valid_blocks=8, test_blocks=8)
        bench = open_bench(resolve_base("embedded:demo"), sources, base_name="embedded:demo")
        return [line for arm in (OURS, Parallel()) for line in _arm_lines(bench, arm, rounds, Path(directory))]


def _arm_lines(bench: Bench, arm: Arm, rounds: int, directory: Path) -> Iterator[dict[str, Any]]:
    setting = Setting(
        base=bench.name,
        corpus=bench.corpus.name,
        nodes=4,
        rounds=rounds,
        steps=20,
        batch=4,
        warmup=3,
        split=IID,
    )
    work = directory / arm.name
    work.mkdir()
    run = Run(bench, setting, rate=RATES[arm.name], seed=SEED, directory=work)
    sample = sample_of(bench.modules)
    for number, after in enumerate(arm.rounds(run), 1):
        model = after.models[0]
        matrices = [module.name for module in bench.modules if min(module.out_features, module.in_features) > 1]
        began_s = time.monotonic()
        exact = float(np.mean([rank_of_change(name, bench.initial[name], model[name]).effective for name in matrices]))
        exact_s = time.monotonic() - began_s
        began_s = time.monotonic()
        changes = [model[one.name] - bench.initial[one.name] for one in sample.matrices]
        estimate = sample.mean(map(estimated_effective_rank, changes))
        yield {
            "arm": arm.name,
            "round": number,
            "sampled": len(sample.matrices),
            "matrices": sample.num_matrices,
            "exact": round(exact, 2),
            "estimate": round(estimate, 2),
            "error": round(estimate / exact - 1.0, 5),
            "exact_s": round(exact_s, 3),
            "estimate_s": round(time.monotonic() - began_s, 3),
        }


def text(found: Mapping[str, Any]) -> str:
    """Two tables for people."""
    side = found["side"]
    lines = [
        f"the sketch, on matrices of {side * 5 // 4} x {side} (stated: within {SKETCH_ERROR:.0%})",
        f"{'matrix':36} {_heads('sketch')}",
    ]
    lines += [f"{line['matrix']:36} {_figures(line)}" for line in found["sketches"]]
    lines += [
        "",
        f"the sample, on updates of the embedded base (stated: within {SAMPLE_ERROR:.0%})",
        f"{'arm, round, matrices':36} {_heads('sample')}",
    ]
    for line in found["samples"]:
        name = f"{line['arm']}, {line['round']}, {line['sampled']} of {line['matrices']}"
        lines.append(f"{name:36} {_figures(line)}")
    return "\n".join([*lines, "", f"{found['machine']}; {found['versions']}; seed {found['seed']}"])


def _heads(way: str) -> str:
    return f"{'exact':>8} {way:>8} {'error':>8} {'exact s':>8} {way + ' s':>8} {'ratio':>6}"


def _figures(line: Mapping[str, Any]) -> str:
    return (
        f"{line['exact']:>8.1f} {line['estimate']:>8.1f} {100 * line['error']:>+7.2f}% {line['exact_s']:>8.2f} "
        f"{line['estimate_s']:>8.2f} {line['exact_s'] / max(line['estimate_s'], 0.001):>6.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
