"""`fullrank revoke`: takes a member's or an invite's rights away."""

from typing import Annotated

import typer

from fullrank_node.api import control_pb2 as wire
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
        scope = ""
        if whole_tree:
            planned = client.revoke(subject, whole_tree=True, preview=True)
            typer.echo("\n".join(tree_lines(planned)), err=True)
            scope = f" and {render.plural(len(planned.admitted), 'member')} that it admitted"
        if not require_consent(f"Revoke {render.clean(subject)}{scope}?", yes=yes, default=not whole_tree):
            raise typer.Abort
        reply = client.revoke(subject, whole_tree=whole_tree)
    typer.echo(render.clean(reply.note or f"revoked {render.short(reply.subject)}", limit=600))


def tree_lines(planned: wire.RevokeReply) -> list[str]:
    """Whom a whole tree's end hits."""
    lines = [("members", ", ".join(map(render.clean, planned.admitted)) or "none are left")]
    if planned.retiring:
        names = ", ".join(map(render.clean, planned.retiring))
        lines.append(("retires", f"{names}: certifiers leave one after another, in a stall all together"))
    return ["", *render.indented(lines), ""]
