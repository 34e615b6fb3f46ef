"""`fullrank demo`: a whole swarm on this machine, offline."""

from pathlib import Path
from typing import Annotated

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import JsonOption, finished


def demo(
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=16, help="Nodes to run.")] = 3,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", min=1, help="Rounds to train.", show_default=False)
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep homes and model there.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a whole swarm on this machine, offline.

    Creates, joins, trains, certifies and pulls, with real nodes on a small embedded model.
    """
    from fullrank_node.demo.run import run_demo

    result = finished(run_demo(nodes, rounds, json=as_json, keep=keep.expanduser().absolute() if keep else None))
    if as_json:
        render.print_json(result)
