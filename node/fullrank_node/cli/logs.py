"""`fullrank logs`: the daemon's log."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fullrank_node.cli import lifecycle
from fullrank_node.cli.options import HomeOption, home_of
from fullrank_node.cli.render import clean
from fullrank_node.errors import ExitCode, NodeError

FOLLOW_INTERVAL_S = 0.3
MAX_LINE_CHARACTERS = 2000


def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=100_000, help="Last lines to show.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    home: HomeOption = None,
) -> None:
    """Show the daemon's log."""
    from fullrank_node.api.client import not_running

    place = home_of(home)
    if not place.exists():
        raise not_running(place)
    if not place.log_file.exists():
        raise NodeError(
            f"there is no log at {place.log_file}",
            hint="It begins with the first `fullrank start`; a daemon in the foreground logs to its terminal.",
            exit_code=ExitCode.ERROR,
        )
    offset = place.log_file.stat().st_size
    for line in lifecycle.tail(place.log_file, lines=lines):
        typer.echo(line)
    if follow:
        try:
            for line in _new_lines(place.log_file, offset):
                typer.echo(clean(line, limit=MAX_LINE_CHARACTERS))
        except KeyboardInterrupt as interrupt:
            raise typer.Exit from interrupt


def _new_lines(path: Path, offset: int) -> Iterator[str]:
    """Lines as they are written, also when a start sets the old log aside and begins a new one."""
    rest = b""
    while True:
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            offset, rest = 0, b""
        if size > offset:
            with path.open("rb") as log:
                log.seek(offset, os.SEEK_SET)
                data = log.read(size - offset)
            offset += len(data)
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
        else:
            time.sleep(FOLLOW_INTERVAL_S)
