#!/usr/bin/env python3
"""Draws what the quality benchmark found, and writes README's table of it. Runs nothing.

    scripts/bench/picture.py                       # scripts/bench/results/quality.svg from quality.jsonl beside it
    scripts/bench/picture.py --ranks               # quality-ranks.svg: numerical, stable and effective rank
    scripts/bench/picture.py --table               # the table in README.md, between its two marks
    scripts/bench/picture.py --rounds 30 --split domains --out OTHER.svg

One setting is shown: of those that fit --nodes, --rounds and --split, the one in which most arms were tested. Arms that
were not tested are left out. The same results give the same bytes. Drawing takes matplotlib, which `scripts/test`
installs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts/bench"), str(ROOT / "node"), str(ROOT / "protocol")]

from learning.catalogue import MARK, OURS  # noqa: E402 - after the path is set.
from learning.paired import Mean  # noqa: E402
from learning.report import Comparison, Row, compare, seeds_of  # noqa: E402
from learning.setting import SPLITS  # noqa: E402
from learning.shown import choose, frontier, full_rank, tabled, words  # noqa: E402
from learning.store import Results  # noqa: E402

BEGIN = "<!-- quality table: begin; written by scripts/bench/picture.py --table -->"
MINUS = "\N{MINUS SIGN}"

END = "<!-- quality table: end -->"


def main(command: Sequence[str] | None = None) -> int:
    """Draws, or writes the table; returns the exit code."""
    options = arguments().parse_args(command)
    results = Results(options.results)
    try:
        comparison = choose(
            compare(results, ours=options.ours), nodes=options.nodes, rounds=options.rounds, split=options.split
        )
        if options.table:
            text = options.readme.read_text(encoding="utf-8")
            options.readme.write_text(with_table(text, table(comparison, results)), encoding="utf-8")
            print(f"{options.readme}: {len(tabled(comparison))} arms")
        else:
            usual = options.results.with_name(options.results.stem + ("-ranks.svg" if options.ranks else ".svg"))
            out = options.out or usual
            from learning.drawing import draw, draw_ranks  # Here, for the table takes no matplotlib.

            out.write_bytes(draw_ranks(comparison) if options.ranks else draw(comparison))
            print(f"{out}: {comparison.setting.title}")
    except ModuleNotFoundError as error:
        print(f"picture: {error.name} is not installed; scripts/test makes an environment with it", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"picture: {error}", file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--results", type=Path, default=ROOT / "scripts/bench/results/quality.jsonl", help="of scripts/bench/quality.py"
    )
    add("--out", type=Path, help="the picture; by default beside the results")
    add("--ranks", action="store_true", help="draw the ranks alone, of all three kinds")
    add("--table", action="store_true", help="write the table into --readme instead of drawing")
    add("--readme", type=Path, default=ROOT / "README.md")
    add("--ours", default=OURS.name, help="the arm that others are compared with")
    add("--nodes", type=int, help="of the setting")
    add("--rounds", type=int, help="of the setting")
    add("--split", choices=SPLITS, help="of the setting")
    return parser


def with_table(text: str, found: str) -> str:
    """A page with what stands between its marks replaced.

    Raises:
        ValueError: The page has not each mark once, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise ValueError(f"found no place for the table, required two lines, once each: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{found}\n{END}{after}"


def table(comparison: Comparison, results: Results) -> str:
    """One setting as Markdown, with where its numbers come from."""
    setting = comparison.setting
    rows = tabled(comparison)
    ahead = {row.arm.name for _, _, row in frontier(comparison)}
    full = full_rank(comparison)
    rank_head = "effective rank of the change" + (f", of {full:g}" if full is not None else "")
    lines = [
        f"| {setting.nodes} nodes, {setting.rounds} rounds | held-out loss | gain | more than the swarm's "
        f"| kB a node sends in a round | {rank_head} |",
        "|---|---|---|---|---|---|",
        *(_line(row, is_ours=row.arm.name == comparison.ours, is_ahead=row.arm.name in ahead) for row in rows),
    ]
    costs = [line["cost"] for line in results.lines.values()]
    machines = "; ".join(sorted({f"{cost['machine']}; {cost['versions']}" for cost in costs}))
    lines += [
        "",
        f"{setting.title}; {setting.base}, {setting.corpus}; loss before {comparison.start:.3f}; "
        f"seeds {seeds_of(rows)}; ± is 95 % over them, differences are paired. Gain: share of what "
        f"`{MARK.name}` gains. ◆: nobody reaches a smaller loss with as few bytes. Rank in brackets: random updates of "
        f"the same sizes. {machines}.",
    ]
    return "\n".join(lines)


def _line(row: Row, *, is_ours: bool, is_ahead: bool) -> str:
    name = f"**{words(row)}**" if is_ours else words(row)
    sent = "" if row.num_bytes is None else f"{_kilobytes(row.num_bytes)}{' ◆' if is_ahead else ''}"
    rank = f"{row.ranks['effective']:.0f}" if "effective" in row.ranks else ""
    noise = f" ({row.ranks['noise_effective']:.0f})" if "noise_effective" in row.ranks else ""
    cells = [
        f"{name} `{row.arm.name}`",
        _with_interval(row.loss, digits=3),
        _with_interval(row.gain, digits=2),
        _with_interval(row.difference, digits=3, sign="+"),
        sent,
        rank + noise,
    ]
    return "| " + " | ".join(cells) + " |"


def _kilobytes(num_bytes: float) -> str:
    kilobytes = num_bytes / 1000
    return f"{kilobytes:.1f}" if kilobytes < 100 else f"{kilobytes:,.0f}"


def _with_interval(mean: Mean | None, *, digits: int, sign: str = "") -> str:
    if mean is None:
        return ""
    shown = f"{mean.value:{sign}.{digits}f}".replace("-", MINUS)
    return shown if mean.half_width is None else f"{shown} ± {mean.half_width:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
