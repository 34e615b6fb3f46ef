"""`fullrank verify`: replays the signed log from the base and names the first thing that does not agree."""

from typing import Annotated

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, finished, home_of
from fullrank_node.cli.pull import BaseOption, as_fields, standing_text
from fullrank_node.errors import ExitCode
from fullrank_node.operations import no_progress


def verify(
    target: Annotated[
        str | None,
        typer.Argument(metavar="LINK_OR_DIR", help="A swarm's link, or what `pull` wrote; default: this home's swarm."),
    ] = None,
    base: BaseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the signed log from the base and compare every digest."""
    from fullrank_node import verify as verifier

    with render.progress() as shown:
        report = finished(
            verifier.verify(
                home_of(home),
                target or "",
                base=base.expanduser().absolute() if base else None,
                progress=no_progress if as_json else shown,
            )
        )
    if as_json:
        render.print_json(as_fields(report) | {"ok": not report.mismatch})
    else:
        merged = f"{render.plural(report.checkpoints, 'checkpoint')}, {report.contributions} deltas merged"
        lines = [
            ("swarm", f"{render.clean(report.swarm_name)}  {render.short(report.swarm)}"),
            ("replayed", merged),
            ("result", f"MISMATCH: {render.clean(report.mismatch, limit=400)}" if report.mismatch else "all agrees"),
            ("model", f"round {report.round} {standing_text(report.standing)}, digest {report.digest.hex()}"),
        ]
        render.print_lines(lines + [("note", render.clean(note, limit=400)) for note in report.notes])
    if report.mismatch:
        raise typer.Exit(ExitCode.PROTOCOL)
