"""`fullrank config`: reads, sets and checks the node's configuration."""

from typing import Annotated, Any

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, home_of
from fullrank_node.errors import ExitCode, NodeError

app = typer.Typer(help="The node's configuration.", no_args_is_help=True, rich_markup_mode=None)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="For example limits.cpu_threads.")]


@app.callback()
def config() -> None:
    """Read, set and check the configuration."""


@app.command("get")
def get(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="Only this one.", show_default=False)] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the values in force, from environment, file and defaults."""
    from fullrank_node.config import describe, flattened, load_config, require_known

    if key is not None:
        require_known(key, origin="the command line")
    values = flattened(load_config(home_of(home).config_file))
    if as_json:
        render.print_json({"values": {key: values[key]} if key is not None else values})
    elif key is not None:
        typer.echo(_text(values[key]))
    else:
        rows = [(name, _text(value), describe(name)) for name, value in values.items()]
        render.print_table("configuration", ("key", "value", "meaning"), rows)


@app.command("set")
def set_key(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help='An empty text ("") unsets.')],
    home: HomeOption = None,
) -> None:
    """Set one value in the home's config.toml. A running daemon reads it at its next start."""
    from fullrank_node.config import set_value

    place = home_of(home)
    if not place.path.is_dir():
        raise NodeError(
            f"there is no node at {place.path}",
            hint="Set one up with `fullrank join LINK` or `fullrank create`.",
            exit_code=ExitCode.CONFIG,
        )
    set_value(place.config_file, key, value)
    if place.is_locked():
        typer.echo("set; it counts from the daemon's next start (`fullrank stop`, `fullrank start`)", err=True)


@app.command("validate")
def validate(home: HomeOption = None) -> None:
    """Check the configuration, from environment and file."""
    from fullrank_node.config import load_config

    place = home_of(home)
    load_config(place.config_file)
    typer.echo(f"ok: {place.config_file}" if place.config_file.exists() else "ok: nothing is set, all is default")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
