"""`fullrank join`: shows once what will happen, then sets a node up and starts it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fullrank_node.cli import lifecycle, render
from fullrank_node.cli.options import (
    AnnounceOption,
    DataOption,
    DeviceOption,
    HomeOption,
    ListenOption,
    NoCertifyOption,
    NoListenOption,
    ThreadsOption,
    YesOption,
    finished,
    home_of,
    network_values,
    read_link,
    require_consent,
    require_data,
    require_no_node,
)
from fullrank_node.operations import JoinSummary


def join(
    *,
    link: Annotated[str, typer.Argument(metavar="LINK", help="As printed by `create` or `invite`; quote it.")],
    data: DataOption = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="DIR", help="The base model, where it is on this machine.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of this node, shown to others.")] = "",
    listen: ListenOption = None,
    announce: AnnounceOption = None,
    no_listen: NoListenOption = False,
    no_certify: NoCertifyOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    no_start: Annotated[bool, typer.Option("--no-start", help="Only set up.")] = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Join a swarm: show once what will happen, set up, and start."""
    from fullrank_node import founding

    place = home_of(home)
    require_no_node(place)
    target = read_link(link)
    path = require_data(data)
    overrides: dict[str, Any] = {
        "certify": False if no_certify else None,
        "node": {"name": name or None},
        "data": {"path": path},
        "base": {"path": base.expanduser().absolute() if base else None},
        "train": {"device": device, "threads": threads},
        "network": network_values(listen=listen, announce=announce, no_listen=no_listen)
        | {"peers": list(target.peers) or None},
    }

    with render.progress() as progress:

        def confirm(summary: JoinSummary) -> bool:
            with progress.hidden():
                typer.echo("\n".join(consent_lines(summary, data=path)), err=True)
                return require_consent("Go on?", yes=yes)

        summary = finished(
            founding.join(
                place,
                target,
                data=path,
                base=base.expanduser().absolute() if base else None,
                overrides=overrides,
                confirm=confirm,
                progress=progress,
            )
        )
    if summary is None:
        raise typer.Abort
    if no_start:
        typer.echo("set up; `fullrank start` begins", err=True)
        return
    with render.progress() as progress:
        progress("starting the node")
        lifecycle.start_in_background(place)
    typer.echo("The node runs; `fullrank status --watch` shows when the swarm has admitted it.", err=True)


def consent_lines(summary: JoinSummary, *, data: Path | None) -> list[str]:
    """What a person agrees to, once."""
    window = render.duration_text(summary.slot_window_ms)
    base = render.clean(summary.base) + f", {summary.num_parameters / 1e6:,.1f} M parameters"
    fetched = (
        f"{render.bytes_text(summary.base_download_bytes)} to fetch" if summary.base_download_bytes else "already here"
    )
    addresses = ", ".join(_address_text(address) for address in summary.addresses) or "from which it dials"
    update = render.bytes_text(summary.update_bytes)
    lines = [
        ("swarm", f"{render.clean(summary.swarm_name)}  {render.short(summary.swarm)}"),
        ("model", f"{base}, {fetched}"),
        ("licence", render.clean(summary.licence) or "not stated"),
        ("device", "the best there is" if summary.device == "auto" else render.clean(summary.device)),
        ("time", f"a slot takes {window}; trains whenever the node runs" if data else f"a slot takes {window}"),
        ("disk", f"about {render.bytes_text(summary.disk_bytes)}"),
        ("leaves", f"one signed delta a slot, at most {update}" if data else "no delta: there is nothing to train on"),
        ("", f"the name {render.clean(summary.node_name)} and the public key {render.short(summary.member)}…"),
        ("", f"the address {addresses}"),
        ("stays", f"the data: {data} ({render.plural(summary.num_rows, 'row')})" if data else "no data is given"),
        *_bad_row_lines(summary),
        ("role", "checks and votes on others' work" if summary.certifies else "does not check and vote"),
    ]
    return ["", *render.indented(lines), ""]


def _address_text(address: str) -> str:
    everywhere = any(any_host in address for any_host in ("/ip4/0.0.0.0/", "/ip6/::/"))
    return "of this machine, " + render.clean(address) if everywhere else render.clean(address)


def _bad_row_lines(summary: JoinSummary) -> list[tuple[str, str]]:
    """The first row of the data that cannot be used, and how to see the others."""
    if not summary.bad_rows:
        return []
    line, reason = summary.bad_rows[0]
    rows = render.plural(len(summary.bad_rows), "row")
    return [("", f"{rows} cannot be used, first line {line}: {render.clean(reason)}; see `fullrank data check`")]
