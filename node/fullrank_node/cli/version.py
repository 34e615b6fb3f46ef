"""`fullrank version`: of the program and of the protocol that it speaks."""

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import JsonOption


def version(as_json: JsonOption = False) -> None:
    """Show the version of the program and of the protocol."""
    from fullrank_protocol.limits import PROTOCOL_VERSION

    if as_json:
        render.print_json({"fullrank": installed_version(), "protocol_version": PROTOCOL_VERSION})
    else:
        typer.echo(f"fullrank {installed_version()}, protocol {PROTOCOL_VERSION}")


def installed_version() -> str:
    """The version that is installed, as its metadata says."""
    from importlib.metadata import version as version_of

    return version_of("fullrank")
