"""`fullrank finish`: the daemon ends once the delta in the making is published."""

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, home_of


def finish(home: HomeOption = None) -> None:
    """End the daemon after the current delta."""
    from fullrank_node.api.client import connect

    with connect(home_of(home)) as client:
        reply = client.finish()
    typer.echo(render.clean(reply.note or "the daemon ends after the current delta", limit=400))
