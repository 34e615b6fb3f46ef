"""`fullrank data check`: reads training data as training would, and says what is there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import JsonOption
from fullrank_node.errors import ExitCode

if TYPE_CHECKING:
    from fullrank_node.training.data import DataReport

app = typer.Typer(help="Training data.", no_args_is_help=True, rich_markup_mode=None)

SHOWN_BAD_ROWS = 20
"""Bad rows listed on a screen; JSON has them all."""


@app.callback()
def data() -> None:
    """Look at training data."""


@app.command("check")
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="JSONL file, or directory with train.jsonl.")],
    as_json: JsonOption = False,
) -> None:
    """Check formats and rows, name bad rows with their line numbers, and preview what is learned.

    Exits with 78 where rows cannot be used, although training would go on without them.
    """
    from fullrank_node.training.data import check_data

    report = check_data(path.expanduser().absolute())
    if as_json:
        render.print_json(
            {
                "ok": not report.skipped,
                "formats": report.formats,
                "num_rows": report.num_rows,
                "num_valid_rows": report.num_valid_rows,
                "skipped": [{"line": row.line, "reason": row.reason} for row in report.skipped],
                "preview": [{"text": text, "learned": learned} for text, learned in report.preview],
            }
        )
    else:
        render.print_lines(report_lines(report))
    if report.skipped:
        raise typer.Exit(ExitCode.CONFIG)


def report_lines(report: "DataReport") -> list[render.Line]:
    """What is there, what cannot be used, and what is learned."""
    formats = ", ".join(f"{count} {name}" for name, count in sorted(report.formats.items()))
    rows = f"{report.num_rows} to train on, {report.num_valid_rows} held out"
    if report.skipped:
        rows += f", {len(report.skipped)} LEFT OUT"
    lines = [("rows", rows), ("formats", formats)]
    lines += [("bad row", f"line {row.line}: {row.reason}") for row in report.skipped[:SHOWN_BAD_ROWS]]
    if len(report.skipped) > SHOWN_BAD_ROWS:
        lines.append(("bad row", f"and {len(report.skipped) - SHOWN_BAD_ROWS} more"))
    lines += [("learned" if learned else "context", repr(text)[:200]) for text, learned in report.preview]
    return lines
