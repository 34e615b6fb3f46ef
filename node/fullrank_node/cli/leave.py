"""`fullrank leave`: this member leaves the swarm."""

from typing import Annotated

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, YesOption, home_of, require_consent


def leave(
    certifier_role_only: Annotated[
        bool, typer.Option("--certifier-role-only", help="Stay a member, and no longer check and vote.")
    ] = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Leave the swarm. What was merged stays; coming back needs a new invite."""
    from fullrank_node.api.client import connect

    with connect(home_of(home)) as client:
        what = "Give up the certifier's role?" if certifier_role_only else "Leave the swarm?"
        if not require_consent(what, yes=yes):
            raise typer.Abort
        reply = client.leave_swarm(certifier_role_only=certifier_role_only)
    typer.echo(render.clean(reply.note or "the record that says so is on its way to the swarm", limit=400))
