"""Options that many commands share, and the reading of what people type into them."""

import re
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.home import Home

if TYPE_CHECKING:
    from fullrank_protocol.link import Link

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Directory of the node, instead of FULLRANK_HOME.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="PATH", help="JSONL file, or directory with train.jsonl.", show_default=False),
]
ListenOption = Annotated[
    list[str] | None,
    typer.Option("--listen", metavar="MULTIADDR", help="Where others can dial, e.g. /ip4/0.0.0.0/tcp/7700."),
]
AnnounceOption = Annotated[
    list[str] | None, typer.Option("--announce", metavar="MULTIADDR", help="Address to tell others instead.")
]
NoListenOption = Annotated[bool, typer.Option("--no-listen", help="Only dial out.")]
NoCertifyOption = Annotated[bool, typer.Option("--no-certify", help="Train, but do not check and vote.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps; default: the best there is.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Processor threads for training.")
]

home_before_command: ContextVar[Path | None] = ContextVar("home_before_command", default=None)
"""`--home` as given before the command's name."""

KEPT_PORTS = range(20_000, 32_000)
"""Where a new node finds its port: below those that systems hand out to outgoing connections, so it stays free."""

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def home_of(flag: Path | None) -> Home:
    """The home meant: the command's `--home`, the one before the command, FULLRANK_HOME, or the user's own."""
    return Home.resolve(flag or home_before_command.get())


def require_node(home: Home) -> None:
    """Raises NodeError unless a swarm was created or joined in this home."""
    if not home.exists() or not home.genesis_file.exists():
        raise NodeError(
            f"there is no node at {home.path}",
            hint="Set one up with `fullrank join LINK` or `fullrank create`, or name another home with --home DIR.",
            exit_code=ExitCode.CONFIG,
        )


def require_no_node(home: Home) -> None:
    """Raises NodeError where a home already belongs to a swarm: one home, one node, one swarm."""
    if home.genesis_file.exists():
        raise NodeError(
            f"the home {home.path} already belongs to a swarm",
            hint="Start it with `fullrank start`, or name another home with --home DIR.",
            exit_code=ExitCode.CONFIG,
        )


def require_data(data: Path | None) -> Path | None:
    """The data's absolute path; NodeError where nothing is there, before any work is done."""
    if data is None:
        return None
    path = data.expanduser().absolute()
    if not path.exists():
        raise NodeError(
            f"there is no data at {path}",
            hint="Give a JSONL file, or a directory with train.jsonl; `fullrank data check PATH` explains.",
            exit_code=ExitCode.CONFIG,
        )
    return path


def read_link(text: str) -> "Link":
    """The link that a person was given; NodeError where it is none."""
    from fullrank_node.addresses import parse_address
    from fullrank_protocol.errors import ProtocolError
    from fullrank_protocol.link import parse_link

    try:
        link = parse_link(text)
        for peer in link.peers:
            parse_address(peer)  # A link may name peers without their id; a connection needs it.
    except (ProtocolError, ValueError) as error:
        raise NodeError(
            f"this is not a swarm's link: {error}",
            hint="A link looks like fullrank:<64 hex digits>?peer=<multiaddr>; quote it, the shell reads & and ?.",
            exit_code=ExitCode.USAGE,
        ) from error
    return link


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as "2h", "1h30m", "45s" or "3d"."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise typer.BadParameter(f"{text!r} is no duration; write for example 2h, 1h30m or 45s")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000


def require_consent(question: str, *, yes: bool, default: bool = True) -> bool:
    """Asks on the terminal unless `yes`; NodeError where nobody can answer.

    Args:
        question: What is agreed to.
        yes: Agreed to on the command line.
        default: What Enter alone means.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise NodeError(
            f"nobody is at the terminal to answer: {question}",
            hint="Add --yes where that is meant.",
            exit_code=ExitCode.USAGE,
        )
    return typer.confirm(question, default=default, err=True)


def network_values(
    *, listen: list[str] | None, announce: list[str] | None, no_listen: bool
) -> dict[str, list[str] | bool | None]:
    """The section `network` of a new node's configuration.

    Without a choice, a free port is drawn once and kept, so that the links given out go on working after a restart.
    """
    if no_listen:
        return {"no_listen": True}
    return {"listen": listen or [f"/ip4/0.0.0.0/tcp/{_free_port()}"], "announce": announce or None}


def _free_port() -> int:
    import random
    import socket

    # Sampled, not counted up: several nodes that are set up at the same time on one machine rarely meet.
    for port in random.sample(KEPT_PORTS, len(KEPT_PORTS)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise NodeError(
        f"no free TCP port between {KEPT_PORTS[0]} and {KEPT_PORTS[-1]}",
        hint="Choose an address with --listen, or use --no-listen.",
    )


def finished(result: Any) -> Any:
    """The result of a long command, which may be a coroutine that still has to run."""
    import asyncio
    import inspect

    return asyncio.run(result) if inspect.iscoroutine(result) else result
