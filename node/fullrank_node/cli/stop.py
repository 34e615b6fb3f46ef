"""`fullrank stop`: ends the daemon."""

import typer

from fullrank_node.cli import lifecycle
from fullrank_node.cli.options import HomeOption, home_of


def stop(home: HomeOption = None) -> None:
    """End the node's daemon, and wait until it is gone."""
    run = lifecycle.stop(home_of(home))
    typer.echo(f"stopped (process {run.pid})", err=True)
