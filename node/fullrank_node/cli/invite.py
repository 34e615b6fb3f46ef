"""`fullrank invite`: a link that admits new members."""

from typing import Annotated

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, home_of

MS_PER_DAY = 24 * 3600 * 1000

CountOption = Annotated[int, typer.Option("--count", min=1, max=100_000, help="Members that one link admits.")]
DaysOption = Annotated[int, typer.Option("--days", min=1, max=3650, help="Days for which it admits.")]


def invite(
    count: CountOption = 1,
    days: DaysOption = 14,
    no_certify: Annotated[bool, typer.Option("--no-certify", help="Admits members that may not certify.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a link that admits new members. Whoever has the link can use it: pass it on privately."""
    from fullrank_node.api.client import connect

    with connect(home_of(home)) as client:
        reply = client.invite(count=count, valid_for_ms=days * MS_PER_DAY, certify=not no_certify)
    if as_json:
        render.print_json(render.plain(reply))
        return
    if reply.note:
        typer.echo(render.clean(reply.note, limit=400), err=True)
    typer.echo(render.clean(reply.link, limit=4000))
