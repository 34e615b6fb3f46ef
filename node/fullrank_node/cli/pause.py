"""`fullrank pause`: no training for a while; the node goes on serving and certifying."""

from typing import Annotated

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, duration_ms, home_of


def pause(
    duration: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="For example 2h or 30m; default: until `resume`.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Stop training for a while. The node goes on serving and certifying."""
    from fullrank_node.api.client import connect

    for_ms = duration_ms(duration) if duration else 0
    with connect(home_of(home)) as client:
        reply = client.pause(for_ms=for_ms)
    until = f"for {render.duration_text(for_ms)}" if for_ms else "until `fullrank resume`"
    typer.echo(render.clean(reply.note or f"paused {until}", limit=400))
