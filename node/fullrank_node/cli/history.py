"""`fullrank history`: what became of every own contribution, and how the shared model grew."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from fullrank_node.api import control_pb2 as wire
from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, home_of


def history(
    number: Annotated[int | None, typer.Argument(metavar="ROUND", min=0, help="Only this round, in full.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Newest lines to show.")] = 20,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show own contributions with their verdicts, and the rounds."""
    from fullrank_node.api.client import connect

    with connect(home_of(home)) as client:
        reply = client.history(round=number, limit=limit)
    if as_json:
        render.print_json(render.plain(reply))
        return
    whose = "contributions" if number is not None else "own contributions"
    if reply.rounds:
        columns = (">round", ">slot", "standing", ">merged", ">refused", ">tokens", ">norm", ">rank", ">loss", "digest")
        render.print_table("rounds", columns, map(_round_cells, reply.rounds))
    else:
        typer.echo("no rounds yet")
    if reply.switches:
        left = ("left", ">at round", ">fork at", ">deltas", ">kept", ">waiting", ">tokens", ">kept tokens")
        render.print_table("\nbranches left for a heavier one", left, map(_switch_cells, reply.switches))
    if reply.contributions:
        columns = ("id", "member", ">base", "verdict", ">round", ">weight", ">tokens", ">loss", ">size", "reason")
        rows = [_contribution_cells(line, with_member=number is not None) for line in reply.contributions]
        render.print_table(f"\n{whose}", columns, rows)
    else:
        typer.echo(f"no {whose} yet")


def _round_cells(line: wire.RoundLine) -> list[str]:
    checkpoint = line.checkpoint
    kind = f" ({line.kind})" if line.kind not in ("", "normal") else ""
    return [
        str(checkpoint.round),
        str(checkpoint.slot),
        line.standing + kind,
        str(line.accepted),
        str(line.refused),
        f"{line.num_tokens:,}",
        f"{line.update_norm:.3g}",
        f"{line.effective_rank:.0f}" if line.effective_rank else "",
        f"{line.held_out_loss:.3f}" if line.HasField("held_out_loss") else "",
        checkpoint.digest.hex()[:12],
    ]


def _switch_cells(line: wire.SwitchLine) -> list[str]:
    return [
        f"{datetime.fromtimestamp(line.at_ms / 1000, UTC):%Y-%m-%d %H:%M UTC}",
        str(line.left_round),
        str(line.fork_round),
        str(line.deltas),
        str(line.deltas_kept),
        str(line.deltas_waiting),
        f"{line.tokens:,}",
        f"{line.tokens_kept / line.tokens:.0%}" if line.tokens else "",
    ]


def _contribution_cells(line: wire.ContributionLine, *, with_member: bool) -> list[str]:
    reason = ": ".join(part for part in (line.rule, line.detail) if part)
    member = "this node" if line.mine else line.member_name or render.short(line.member)
    return [
        render.short(line.id),
        member if with_member else "",
        str(line.base_round),
        line.verdict,
        str(line.round) if line.HasField("round") else "",
        f"{line.weight:.3g}" if line.verdict == "accepted" else "",
        f"{line.num_tokens:,}",
        f"{line.loss_last:.3f}" if line.HasField("loss_last") else "",
        render.bytes_text(line.num_bytes) if line.num_bytes else "",
        reason,
    ]
