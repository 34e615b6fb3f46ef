"""`fullrank revoke`: takes a member's or an invite's rights away."""

from typing import Annotated

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, YesOption, home_of, require_consent


def revoke(
    subject: Annotated[str, typer.Argument(metavar="MEMBER_OR_INVITE", help="A name, or the first digits of a key.")],
    whole_tree: Annotated[
        bool, typer.Option("--whole-tree", help="With an invite: also every member it admitted.")
    ] = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Take a member's or an invite's rights away. Needs a root key; what was merged stays merged."""
    from fullrank_node.api.client import connect

    with connect(home_of(home)) as client:
        scope = " and every member that it admitted" if whole_tree else ""
        if not require_consent(f"Revoke {render.clean(subject)}{scope}?", yes=yes):
            raise typer.Abort
        reply = client.revoke(subject, whole_tree=whole_tree)
    typer.echo(render.clean(reply.note or f"revoked {render.short(reply.subject)}", limit=400))
