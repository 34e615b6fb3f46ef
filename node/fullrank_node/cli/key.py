"""`fullrank key`: the public half of the node's key."""

import typer

from fullrank_node.cli import render
from fullrank_node.cli.options import HomeOption, JsonOption, home_of

app = typer.Typer(help="The node's key.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def key() -> None:
    """Show the node's key."""


@app.command()
def show(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the public key and peer id. The secret stays in its file."""
    from fullrank_node.identity_file import load_identity
    from fullrank_node.names import name_of
    from fullrank_protocol.identity import peer_id

    place = home_of(home)
    public_key = load_identity(place.identity_file).public_key
    if as_json:
        render.print_json(
            {"public_key": public_key.hex(), "peer_id": peer_id(public_key), "file": str(place.identity_file)}
        )
        return
    lines = [
        ("member", public_key.hex()),
        ("peer", peer_id(public_key)),
        ("name", f"{name_of(public_key)}, unless node.name is set"),
        ("file", f"{place.identity_file}: back it up, and show it to nobody"),
    ]
    render.print_lines(lines)
