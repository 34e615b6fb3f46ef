"""`fullrank status`: what the node is doing, and why. Imports no heavy library: it answers within half a second."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, home_of
from fullrank_node.cli.status_screen import status_lines
from fullrank_node.errors import NodeError
from fullrank_node.home import Home

if TYPE_CHECKING:
    from fullrank_node.api.client import ControlClient

INTERVAL_S = 1.0


def status(
    home: HomeOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the node is doing, and why."""
    from fullrank_node.api.client import connect

    place = home_of(home)
    try:
        client = connect(place)
    except NodeError as error:
        _show_last_known(place, error, as_json=as_json)
        raise typer.Exit(error.exit_code) from error
    with client:
        if watch and not as_json:
            _watch(client)
        reply = client.status()
    if as_json:
        render.print_json({"running": True, **render.plain(reply)})
    else:
        render.print_lines(status_lines(reply))


def _watch(client: "ControlClient") -> None:
    def lines() -> Sequence[render.Line]:
        return status_lines(client.status())

    try:
        render.watch(lines, interval_s=INTERVAL_S)
    except KeyboardInterrupt as interrupt:
        raise typer.Exit from interrupt


def _show_last_known(home: Home, error: NodeError, *, as_json: bool) -> None:
    """Nobody answers: say so, and show what the last daemon left behind."""
    from fullrank_node.api import last_status
    from fullrank_node.clock import SystemClock

    remembered = last_status.read(home.path / last_status.FILE_NAME)
    if as_json:
        render.print_json(
            {
                "running": False,
                "error": render.error_fields(error),
                "last": render.plain(remembered.status) if remembered else None,
                "last_at_ms": remembered.at_ms if remembered else None,
            }
        )
        return
    typer.echo(f"not running   home {home.path}")
    if remembered:
        ago = render.duration_text(max(0, SystemClock().now_ms() - remembered.at_ms))
        typer.echo(f"Last known state, {ago} ago:")
        render.print_lines(status_lines(remembered.status))
    render.print_error(error, as_json=False)
