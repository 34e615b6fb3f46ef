"""`fullrank start`: runs the daemon, in the background or as this process."""

from typing import Annotated

import typer

from fullrank_node.cli import lifecycle
from fullrank_node.cli.options import HomeOption, home_of


def start(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Run as this process, for service managers; Ctrl-C ends it.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Start the node's daemon."""
    place = home_of(home)
    if foreground:
        lifecycle.run_in_foreground(place)
    pid = lifecycle.start_in_background(place)
    typer.echo(f"started (process {pid}); see `fullrank status --watch`", err=True)
