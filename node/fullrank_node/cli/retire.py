"""`fullrank retire`: certifiers that are gone for good no longer count, so that finality comes back."""

from typing import Annotated

import typer

from fullrank_node.api import control_pb2 as wire
from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, YesOption, home_of, require_consent
from fullrank_node.cli.votes import last_vote_text


def retire(
    certifiers: Annotated[
        list[str], typer.Argument(metavar="CERTIFIER", help="Names, or the first digits of their keys.")
    ],
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take vanished certifiers out of the count. Needs a root key; where several are needed, each holder runs it.

    They stay members, and one that comes back certifies again by itself.
    """
    from fullrank_node.api.client import connect
    from fullrank_node.clock import SystemClock

    with connect(home_of(home)) as client:
        planned = client.retire(certifiers, preview=True)
        names = ", ".join(render.clean(line.name) for line in planned.retired)
        typer.echo("\n".join(consent_lines(planned, now_ms=SystemClock().now_ms())), err=True)
        if not require_consent(f"Retire {names}?", yes=yes, default=False):
            raise typer.Abort
        # By their keys: a name could have come to mean somebody else while the question was being read.
        reply = client.retire([line.key.hex() for line in planned.retired], preview=False)
    if as_json:
        render.print_json(render.plain(reply))
        return
    typer.echo(f"signed: {names}")
    typer.echo(render.clean(reply.note, limit=400) or f"They stop counting {effect_text(reply)}.")


def consent_lines(planned: wire.RetireReply, *, now_ms: int) -> list[str]:
    """Whom it takes out of the count, when that acts, and what it may lead to."""
    stays = ", ".join(map(render.clean, planned.remaining))
    lines = [
        *(
            ("retires" if number == 0 else "", _who(line, planned, now_ms))
            for number, line in enumerate(planned.retired)
        ),
        ("leaves", f"{render.plural(len(planned.remaining), 'certifier')}: {stays}"),
        ("acts", effect_text(planned)),
        *(
            []
            if planned.peers_connected
            else [("ALONE", "this node is connected to nobody: it may be what is cut off")]
        ),
        ("later", "whoever comes back is a member still, and certifies again by itself"),
        ("risk", "if they are alive behind a broken network, and more than two thirds there, both sides may"),
        ("", "go on to final checkpoints that contradict each other. When they meet, every node stops,"),
        ("", "and you have to choose the side that the swarm keeps (`fullrank adopt`)"),
    ]
    return ["", *render.indented(lines), ""]


def effect_text(reply: wire.RetireReply) -> str:
    """When they stop counting, as the end of a sentence."""
    together = len(reply.retired) > 1
    if reply.stalled:
        return "at once: the chain is stalled, the next checkpoint does it" + (", for all together" if together else "")
    if reply.stalls_in_slots:
        wait = f"{render.plural(reply.stalls_in_slots, 'slot')} ({render.duration_text(reply.stalls_in_ms)})"
        return f"in {wait}, when finality has been missing for long enough; earlier if it comes back before"
    if together:
        return "one after another within some slots, each when the one before is final"
    return "within some slots, when the checkpoint that says so is final"


def _who(line: wire.CertifierLine, planned: wire.RetireReply, now_ms: int) -> str:
    vote = last_vote_text(line, now_ms=now_ms)
    parts = [
        f"{render.clean(line.name)} {render.short(line.key)}",
        f"last vote: {vote}" if vote else "no vote of it is known here",
        "CONNECTED TO THIS NODE NOW" if line.connected else "",
    ]
    if line.retirement_signatures:
        ago = render.duration_text(max(0, now_ms - line.retirement_issued_ms))
        parts.append(f"signed by {line.retirement_signatures} of {planned.signatures_needed} root keys, {ago} ago")
    return "   ".join(part for part in parts if part)
