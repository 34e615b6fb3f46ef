"""`fullrank doctor`: looks at everything a node stands on; each line is ok, a warning or a failure with its cure."""

import sys

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, home_of
from fullrank_node.errors import ExitCode

_MARKS = {"ok": "ok", "warning": "warning", "failure": "FAILURE"}


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check this machine, and name the cure of what is wrong."""
    from fullrank_node.cli import checks

    place = home_of(home)
    done = []
    for look in checks.ALL:
        check = look(place)
        done.append(check)
        if as_json:
            continue
        typer.echo(f"{_MARKS[check.level]:<9}{check.name:<10}{render.clean(check.detail, limit=400)}")
        if check.cure:
            typer.echo(f"{'':<19}cure: {render.clean(check.cure, limit=400)}")
        sys.stdout.flush()
    failed = any(check.level == "failure" for check in done)
    if as_json:
        render.print_json({"ok": not failed, "checks": [checks.as_fields(check) for check in done]})
    if failed:
        raise typer.Exit(ExitCode.ERROR)
