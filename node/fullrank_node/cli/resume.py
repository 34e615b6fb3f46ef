"""`fullrank resume`: trains again."""

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, home_of


def resume(home: HomeOption = None) -> None:
    """Train again after a pause."""
    from fullrank_node.api.client import connect

    with connect(home_of(home)) as client:
        reply = client.resume()
    typer.echo(render.clean(reply.note or "training again", limit=400))
