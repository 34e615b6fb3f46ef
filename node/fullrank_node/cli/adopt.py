"""`fullrank adopt`: after two checkpoints became final that contradict each other, people decide which one stays."""

from typing import Annotated

import typer

from fullrank_node.api import control_pb2 as wire
from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, YesOption, home_of, require_consent
from fullrank_node.cli.status_screen import ID_DIGITS, conflict_text


def adopt(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="The first digits of its id.")],
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """After a conflict of two final checkpoints: choose one with a root key, or follow the founder's choice."""
    from fullrank_node.api.client import connect

    with connect(home_of(home)) as client:
        reply = client.adopt(checkpoint, preview=True)
        if reply.HasField("conflict"):
            typer.echo("\n".join(consent_lines(reply)), err=True)
            if not require_consent(question(reply), yes=yes, default=False):
                raise typer.Abort
            reply = client.adopt(reply.checkpoint.id.hex(), preview=False)
    if as_json:
        render.print_json(render.plain(reply))
    else:
        typer.echo(render.clean(reply.note, limit=600))


def consent_lines(planned: wire.AdoptReply) -> list[str]:
    """The two histories, what is signed, and what this node leaves behind."""
    conflict = planned.conflict
    lines = [
        ("here", conflict_text(conflict.ours)),
        ("other", conflict_text(conflict.theirs)),
    ]
    if planned.signs:
        lines.append(
            ("signs", f"the root's choice of {planned.checkpoint.id.hex()[:ID_DIGITS]}, for the whole swarm to follow")
        )
        if planned.signatures_needed > 1:
            lines.append(("", f"it counts when {planned.signatures_needed} root keys have signed the same"))
    if planned.follows:
        lines += [
            (
                "leaves",
                f"{render.plural(planned.rounds_left, 'round')} of this node's history after round "
                f"{planned.fork_round}, {planned.final_rounds_left} of them final here",
            ),
            ("deltas", _deltas(planned)),
        ]
    return ["", *render.indented(lines), ""]


def question(planned: wire.AdoptReply) -> str:
    """What is consented to."""
    chosen = planned.checkpoint
    name = f"{chosen.id.hex()[:ID_DIGITS]} of slot {chosen.slot}"
    if not planned.signs:
        return f"Leave this node's final checkpoint and follow the founder's choice, {name}?"
    return f"Choose {name} for the whole swarm" + (", and leave this node's own?" if planned.follows else "?")


def _deltas(planned: wire.AdoptReply) -> str:
    if not planned.deltas_left:
        return "none of this node's own are among them"
    own = f"{render.plural(planned.deltas_left, 'delta')} of this node's own"
    if planned.deltas_offered:
        return f"{own}: offered again, to count as late ones"
    return f"{own}: lost, for too many rounds have passed to offer them again"
