#!/usr/bin/env python3
"""Times merges beside the plain float64 arithmetic, prints a table and writes JSON; goes on where it was stopped.

    scripts/bench/aggregation.py                       64 deltas of rank 16 on 1 billion parameters, and scaling
    scripts/bench/aggregation.py --pairs 1 --profile   once each, and where the time goes

Each case is measured in pairs, merge and reference one after the other, so that whatever else the machine does hits
both. What is done is kept in the folder of --work, which also holds the model (4 GB of masters, and as much again
during a merge) and may be deleted afterwards.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / room) for room in ("scripts/bench", "tests", "node", "protocol")]
# One thread a product, as in the worker; before numpy is imported, which reads it then.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

from aggregating.parts import CODE, Bench, planned, say  # noqa: E402 - after the path is set.
from aggregating.profile import profile  # noqa: E402
from aggregating.report import digests_differ, missed_aims, summary, tables  # noqa: E402
from aggregating.setting import SHAPES  # noqa: E402


def main() -> int:
    """Measures what is missing, then reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3, help="pairs of each case")
    parser.add_argument("--full", choices=SHAPES, default="1b", help="shape of the headline")
    parser.add_argument("--small", choices=SHAPES, default="100m", help="shape of the scaling table")
    parser.add_argument("--profile", action="store_true", help="also one merge by lines; kept for later reports")
    parser.add_argument("--report", action="store_true", help="only report on what was measured")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fullrank-aggregation")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/bench/results/aggregation.json", help="the report")
    arguments = parser.parse_args()
    bench = Bench(arguments.work)
    parts = planned(full=arguments.full, small=arguments.small, pairs=arguments.pairs)
    missing = [part for part in parts if part not in bench.lines]
    say(f"{len(parts)} pairs, {len(parts) - len(missing)} done")
    lines_path = arguments.work / "profile.json"
    if arguments.profile:
        lines_path.write_text(json.dumps(_profile(bench, arguments.full)), encoding="utf-8")
    for part in [] if arguments.report else missing:
        line = bench.measure(part)
        merge_s, plain_s = line["product"]["wall_s"], line["reference"]["wall_s"]
        say(f"{part}: {merge_s:.2f} s, plain {plain_s:.2f} s, ratio {merge_s / plain_s:.2f}")
    report = summary(bench.lines, _kept_profile(lines_path), parts=parts, full=arguments.full)
    print(tables(report))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if digests_differ(report):
        print("aggregation: the same deltas gave two models", file=sys.stderr)
        return 1
    if missed := missed_aims(report):
        print("\n".join(f"aggregation: {line}" for line in missed), file=sys.stderr)
        return 1
    return 0 if all(part in bench.lines for part in parts) else 75


def _profile(bench: Bench, shape: str) -> dict[str, Any]:
    setting = bench.setting(shape)
    entries = setting.entries(mode="b", num_deltas=64, rank=16)
    return {"code": CODE, "rows": profile(setting, entries, threads=1)}


def _kept_profile(path: Path) -> list[dict[str, Any]]:
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"code": ""}
    return list(kept["rows"]) if kept["code"] == CODE else []


if __name__ == "__main__":
    sys.exit(main())
