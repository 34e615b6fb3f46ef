"""What the pairs say, as JSON and as tables for people."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from measured_on import facts

from aggregating.parts import CODE, Part
from aggregating.setting import SHAPES

MAX_RATIO = 2.0
"""Aim: the merge takes at most this much of the plain arithmetic's time."""

MAX_ANONYMOUS_BYTES = 2_000_000_000
"""Aim: memory beyond the mapped files."""


def summary(
    lines: Mapping[Part, dict[str, Any]], profile: Sequence[dict[str, Any]], *, parts: Sequence[Part], full: str
) -> dict[str, Any]:
    """All figures, by what was merged and how, and which of the planned parts are missing."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for part, line in sorted(lines.items(), key=lambda item: item[0].pair):
        groups.setdefault((part.shape, part.mode, part.num_deltas, part.rank, part.threads), []).append(line)
    rows = [
        dict(zip(("shape", "mode", "num_deltas", "rank", "threads"), key, strict=True)) | figures(groups[key])
        for key in sorted(groups, key=lambda key: (key[1] != "b", *key[2:]))
    ]
    return {
        "machine": machine(),
        "code": CODE,
        "aims": {"ratio": MAX_RATIO, "anonymous_bytes": MAX_ANONYMOUS_BYTES},
        "shapes": {
            name: {"parameters": SHAPES[name].num_parameters} for name in sorted({row["shape"] for row in rows})
        },
        "headline": [row for row in rows if row["shape"] == full],
        "scaling": [row for row in rows if row["shape"] != full],
        "missing": [asdict(part) for part in parts if part not in lines],
        "profile": list(profile),
    }


def figures(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the pairs of one case; the ratio is the median of the pairs' own ratios."""
    products, references = [line["product"] for line in lines], [line["reference"] for line in lines]
    pairs = list(zip(products, references, strict=True))
    return {
        "pairs": len(lines),
        "ratio": _median(product["wall_s"] / reference["wall_s"] for product, reference in pairs),
        "ratios": [round(product["wall_s"] / reference["wall_s"], 3) for product, reference in pairs],
        "cpu_ratio": _median(product["cpu_s"] / reference["cpu_s"] for product, reference in pairs),
        "product_s": _median(product["wall_s"] for product in products),
        "product_cpu_s": _median(product["cpu_s"] for product in products),
        "stages_s": {stage: _median(product["stages_s"][stage] for product in products) for stage in STAGES},
        "reference_s": _median(reference["wall_s"] for reference in references),
        "reference_cpu_s": _median(reference["cpu_s"] for reference in references),
        "reference_gram_s": _median(reference["gram_s"] for reference in references),
        "reference_apply_s": _median(reference["apply_s"] for reference in references),
        "reference_tile_elements": sorted({reference["tile_elements"] for reference in references}),
        "peak_anonymous_mb": max(round(product["peak_anonymous_bytes"] / 1e6) for product in products),
        "peak_mapped_mb": max(round(product["peak_mapped_bytes"] / 1e6) for product in products),
        "read_from_disk_mb": max(round(product["read_bytes"] / 1e6) for product in products),
        "load": [line["load"] for line in lines],
        "digests": sorted({product["digest"] for product in products}),
    }


STAGES = ("decode", "weigh", "apply")


def digests_differ(report: dict[str, Any]) -> bool:
    """Whether the same deltas gave two models, which threads or repetitions must never do."""
    found: dict[tuple[Any, ...], set[str]] = {}
    for row in (*report["headline"], *report["scaling"]):
        key = (row["shape"], row["mode"], row["num_deltas"], row["rank"])
        found.setdefault(key, set()).update(row["digests"])
    return any(len(digests) != 1 for digests in found.values())


def missed_aims(report: dict[str, Any]) -> list[str]:
    """What of the headline is above its aim, in words."""
    return [
        f"{row['mode']}, {row['num_deltas']} deltas of rank {row['rank']}, {row['threads']} threads: {what}"
        for row in report["headline"]
        for what, is_above in (
            (f"{row['ratio']:.2f} times the plain arithmetic, aim {MAX_RATIO:g}", row["ratio"] > MAX_RATIO),
            (
                f"{row['peak_anonymous_mb']} MB, aim {MAX_ANONYMOUS_BYTES / 1e6:.0f}",
                row["peak_anonymous_mb"] * 1e6 > MAX_ANONYMOUS_BYTES,
            ),
        )
        if is_above
    ]


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    return {**facts("numpy"), "blas": f"{blas['name']} {blas['version']}"}


HEAD = (
    ("mode", 4),
    ("deltas", 6),
    ("rank", 4),
    ("threads", 7),
    ("merge s", 8),
    ("decode", 7),
    ("weigh", 7),
    ("apply", 7),
    ("plain s", 8),
    ("gram", 7),
    ("apply", 7),
    ("ratio", 6),
    ("of CPU", 6),
    ("own MB", 7),
    ("mapped", 7),
    ("pairs", 5),
)
"""Of the table, with widths: the product's merge by stages, then the plain arithmetic."""


def tables(report: dict[str, Any]) -> str:
    """The report for people."""
    parts = [f"{name} {value}" for name, value in report["machine"].items()]
    text = ["; ".join(parts)]
    for title, rows in (("headline", report["headline"]), ("scaling", report["scaling"])):
        if not rows:
            continue
        sizes = {row["shape"]: report["shapes"][row["shape"]]["parameters"] / 1e6 for row in rows}
        text += ["", f"{title}: " + ", ".join(f"{name}, {size:.0f} M parameters" for name, size in sizes.items())]
        text.append("  ".join(f"{name:>{width}}" for name, width in HEAD))
        text += ["  ".join(f"{cell!s:>{w}}" for cell, (_, w) in zip(_cells(row), HEAD, strict=True)) for row in rows]
    if report["missing"]:
        text += ["", f"not measured: {len(report['missing'])} pairs; the same command without --report measures them"]
    if report["profile"]:
        text += ["", "profile: share of the threads' time, by the innermost line of ours"]
        text += [f"{100 * row['share']:5.1f} %  {row['where']:<28}  {row['line']}" for row in report["profile"]]
    read_mb = max((row["read_from_disk_mb"] for row in (*report["headline"], *report["scaling"])), default=0)
    text += [
        "",
        "merge: the worker's answer to the daemon's call, new masters durable. plain: the same products in float64,",
        "operands in memory, best tile, no files, hashes, decoding or exactness. own MB: peak of the worker's memory",
        "that is no file's. Old masters were read before each merge and came out of the page cache; from the disk were",
        f"read at most {read_mb} MB. Ratios are medians of pairs.",
    ]
    return "\n".join(text)


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["mode"],
        row["num_deltas"],
        row["rank"],
        row["threads"],
        f"{row['product_s']:.2f}",
        *(f"{row['stages_s'][stage]:.2f}" for stage in STAGES),
        f"{row['reference_s']:.2f}",
        f"{row['reference_gram_s']:.2f}",
        f"{row['reference_apply_s']:.2f}",
        f"{row['ratio']:.2f}",
        f"{row['cpu_ratio']:.2f}",
        row["peak_anonymous_mb"],
        row["peak_mapped_mb"],
        row["pairs"],
    )


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)
