"""`fullrank pull`: the latest final model, checked, as files that other tools load."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, finished, home_of
from fullrank_node.operations import PullReport, no_progress

TargetArgument = Annotated[
    str | None,
    typer.Argument(metavar="LINK", help="Link of the swarm; default: the swarm of this home.", show_default=False),
]
BaseOption = Annotated[
    Path | None,
    typer.Option("--base", metavar="DIR", help="The base model, where it is on this machine.", show_default=False),
]


def pull(
    *,
    target: TargetArgument = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the model is written.")] = Path(
        "fullrank-model"
    ),
    form: Annotated[
        Literal["hf", "peft"], typer.Option("--format", help="A whole model, or an adapter on the base.")
    ] = "hf",
    number: Annotated[
        int | None, typer.Option("--round", metavar="N", min=0, help="That round; default: the latest final one.")
    ] = None,
    base: BaseOption = None,
    provisional: Annotated[
        bool,
        typer.Option(
            "--provisional",
            help="Newer than final: in a stall what those present stand behind, otherwise the newest there is.",
        ),
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch and check the latest final model. Needs no membership and no GPU."""
    from fullrank_node import pull as puller

    with render.progress() as shown:
        report = finished(
            puller.pull(
                home_of(home),
                target or "",
                out=out.expanduser().absolute(),
                format=form,
                round=number,
                base=base.expanduser().absolute() if base else None,
                provisional=provisional,
                progress=no_progress if as_json else shown,
            )
        )
    if as_json:
        render.print_json(as_fields(report))
    else:
        render.print_lines(report_lines(report))


def as_fields(report: Any) -> dict[str, Any]:
    """A report as JSON knows it: ids in hex, paths as text."""
    values = {name: getattr(report, name) for name in report.__dataclass_fields__}
    return {
        name: value.hex() if isinstance(value, bytes) else str(value) if isinstance(value, Path) else value
        for name, value in values.items()
    }


def standing_text(standing: str) -> str:
    """How sure a checkpoint is; loud where it is not."""
    return {"final": "final", "provisional": "NOT final: provisional"}.get(standing, "NOT final")


def report_lines(report: PullReport) -> list[render.Line]:
    """What was pulled, and how far it can be trusted."""
    votes = f"{report.votes} of {render.plural(report.certifiers, 'certifier')}"
    lines = [
        ("swarm", f"{render.clean(report.swarm_name)}  {render.short(report.swarm)}"),
        ("model", f"round {report.round} {standing_text(report.standing)} ({votes}), digest {report.digest.hex()}"),
        ("files", f"{report.path}  {report.format}, {render.bytes_text(report.num_bytes)}"),
    ]
    if report.format == "peft":
        exact = "exact" if not report.energy_lost else f"{100 * report.energy_lost:.2g} % of the update's energy lost"
        lines.append(("adapter", f"rank {report.rank}, {exact}"))
    lines += [("note", render.clean(note, limit=600)) for note in report.notes]
    return lines
