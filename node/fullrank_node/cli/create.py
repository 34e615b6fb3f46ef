"""`fullrank create`: founds a swarm, starts its first node, and prints the link to pass on."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fullrank_node.cli import lifecycle, render
from fullrank_node.cli.invite import MS_PER_DAY
from fullrank_node.cli.options import (
    AnnounceOption,
    DataOption,
    DeviceOption,
    HomeOption,
    ListenOption,
    NoListenOption,
    ThreadsOption,
    finished,
    home_of,
    network_values,
    require_data,
    require_no_node,
)
from fullrank_node.home import Home
from fullrank_node.operations import CreateOptions
from fullrank_protocol.limits import MAX_STALL_SLOTS, MIN_STALL_SLOTS

_GENESIS = "Fixed for ever by the genesis"
_NODE = "This node"


def create(
    *,
    base: Annotated[
        str, typer.Option("--base", metavar="DIR_OR_HUB_NAME", help="Causal language model to start from.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the swarm.")] = "",
    data: DataOption = None,
    window: Annotated[
        float | None, typer.Option("--window", metavar="SECONDS", min=1.0, help="Length of a slot; default 300.")
    ] = None,
    stall_slots: Annotated[
        int | None,
        typer.Option(
            "--stall-slots",
            min=MIN_STALL_SLOTS,
            max=MAX_STALL_SLOTS,
            help="Slots without finality after which vanished certifiers can be retired at once; default a day's.",
        ),
    ] = None,
    policy: Annotated[
        Literal["invite", "open"], typer.Option("--policy", help="Who may contribute: members, or also strangers.")
    ] = "invite",
    serve_base: Annotated[bool, typer.Option("--serve-base", help="Let peers fetch the base from this swarm.")] = False,
    revision: Annotated[str, typer.Option("--revision", metavar="COMMIT", help="Of a base on the hub.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Of the base, as joiners will see it.")] = "",
    mode: Annotated[
        Literal["b", "ab"] | None, typer.Option("--mode", help="b: A is seeded and B travels; ab: both travel.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, max=1024, help="Rank of one delta.")] = None,
    max_rank: Annotated[int | None, typer.Option("--max-rank", min=1, max=1024, help="Highest rank allowed.")] = None,
    bits: Annotated[int | None, typer.Option("--bits", min=2, max=8, help="Bits of one entry of B as sent.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", min=0.0, help="Highest rate.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Most steps in one delta.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Blocks in one step.")] = None,
    block_length: Annotated[int | None, typer.Option("--block-length", min=8, help="Tokens in one block.")] = None,
    period: Annotated[int | None, typer.Option("--period", min=1, help="Rounds for which a node keeps its A.")] = None,
    total_rounds: Annotated[
        int | None, typer.Option("--total-rounds", min=0, help="Length of the rate's schedule; 0: constant.")
    ] = None,
    node_name: Annotated[str, typer.Option("--node-name", metavar="NAME", help="Of this node.")] = "",
    listen: ListenOption = None,
    announce: AnnounceOption = None,
    no_listen: NoListenOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    invites: Annotated[int, typer.Option("--invites", min=1, max=100_000, help="Members that the link admits.")] = 32,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Days for which the link admits.")] = 30,
    no_start: Annotated[bool, typer.Option("--no-start", help="Only write the swarm's files.")] = False,
    home: HomeOption = None,
) -> None:
    """Found a swarm and print the link to pass on."""
    from fullrank_node import founding

    place = home_of(home)
    require_no_node(place)
    path = require_data(data)
    options = CreateOptions(
        window_s=window,
        stall_slots=stall_slots,
        open_policy=policy == "open",
        serve_base=serve_base,
        revision=revision,
        licence=licence,
        mode=mode,
        rank=rank,
        max_rank=max_rank,
        bits_b=bits,
        learning_rate=learning_rate,
        max_steps=max_steps,
        batch_size=batch_size,
        block_length=block_length,
        period_rounds=period,
        total_rounds=total_rounds,
    )
    overrides: dict[str, Any] = {
        "archive": True,
        "node": {"name": node_name or None},
        "data": {"path": path},
        "train": {"device": device, "threads": threads},
        "network": network_values(listen=listen, announce=announce, no_listen=no_listen),
    }
    reference = _absolute_if_directory(base)
    with render.progress() as progress:
        finished(
            founding.create(
                place,
                overrides,
                base=reference,
                name=name or Path(reference).name,
                data=path,
                options=options,
                progress=progress,
            )
        )
    if no_start:
        typer.echo("written; `fullrank start` begins, then `fullrank invite` prints a link", err=True)
        return
    with render.progress() as progress:
        progress("starting the node")
        lifecycle.start_in_background(place)
    _print_link(place, count=invites, days=days)


def _print_link(home: Home, *, count: int, days: int) -> None:
    from fullrank_node.api.client import connect

    with connect(home) as client:
        reply = client.invite(count=count, valid_for_ms=days * MS_PER_DAY, certify=True)
    typer.echo(
        f"The swarm runs. This link admits {render.plural(count, 'member')} within {render.plural(days, 'day')}; "
        "whoever has it can use it:",
        err=True,
    )
    if reply.note:
        typer.echo(render.clean(reply.note, limit=400), err=True)
    typer.echo(reply.link)


def _absolute_if_directory(base: str) -> str:
    path = Path(base).expanduser()
    return str(path.absolute()) if path.is_dir() else base
