"""The command `fullrank`: its commands, and what each kind of failure prints and exits with.

Exit codes: 0 ok, 1 error, 2 usage, 69 no peers or no daemon, 74 disk, 75 try later, 76 protocol,
77 permission or key, 78 configuration, 130 interrupted.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fullrank_node.cli import config_commands, data_commands, key, render
from fullrank_node.cli.adopt import adopt
from fullrank_node.cli.create import create
from fullrank_node.cli.demo import demo
from fullrank_node.cli.doctor import doctor
from fullrank_node.cli.finish import finish
from fullrank_node.cli.history import history
from fullrank_node.cli.invite import invite
from fullrank_node.cli.join import join
from fullrank_node.cli.leave import leave
from fullrank_node.cli.logs import logs
from fullrank_node.cli.members import members
from fullrank_node.cli.options import HomeOption, home_before_command
from fullrank_node.cli.pause import pause
from fullrank_node.cli.peers import peers
from fullrank_node.cli.pull import pull
from fullrank_node.cli.resume import resume
from fullrank_node.cli.retire import retire
from fullrank_node.cli.revoke import revoke
from fullrank_node.cli.start import start
from fullrank_node.cli.status import status
from fullrank_node.cli.stop import stop
from fullrank_node.cli.verify import verify
from fullrank_node.cli.version import installed_version, version
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_full
from fullrank_protocol.errors import ProtocolError

INTERRUPTED = 130
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Says what is wrong with an option in a sentence, without the name that the checking library gives it."""
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


# Rich's help and error boxes cost 0.1 s at every start, and garble text that is piped into a file.
app = typer.Typer(
    name="fullrank",
    cls=_Commands,
    help="Fine-tune one shared language model together: exact, signed, full-rank.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

_COMMANDS: tuple[Callable[..., None], ...] = (
    demo,
    create,
    join,
    start,
    stop,
    status,
    history,
    peers,
    members,
    logs,
    pause,
    resume,
    finish,
    pull,
    verify,
    invite,
    revoke,
    retire,
    adopt,
    leave,
    doctor,
    version,
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(data_commands.app, name="data")
app.add_typer(config_commands.app, name="config")
app.add_typer(key.app, name="key")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fullrank {installed_version()}")
        raise typer.Exit


@app.callback()
def root(
    home: HomeOption = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune one shared language model together: exact, signed, full-rank."""
    home_before_command.set(home)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; every expected failure is printed with its cure."""
    as_json = "--json" in arguments
    try:
        # Typer's standalone mode would print usage errors as text, also where JSON was asked for.
        result = app(args=list(arguments), prog_name="fullrank", standalone_mode=not as_json)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(bool(ending.code))
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (NodeError, ProtocolError, typer.TyperException, OSError) as error:
        explained = _explained(error)
        render.print_error(explained, as_json=as_json)
        return int(explained.exit_code)
    return result if isinstance(result, int) else ExitCode.OK


def main() -> None:
    """Entry of the installed command."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has left; without this, Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _explained(error: Exception) -> NodeError:
    """What the operator can do about an error; whatever nobody foresaw stays uncaught, as our own mistake."""
    if isinstance(error, NodeError):
        return error
    if isinstance(error, ProtocolError):
        return NodeError(error.detail, exit_code=ExitCode.PROTOCOL)
    if isinstance(error, typer.TyperException):
        return NodeError(error.format_message(), hint="See `fullrank --help`.", exit_code=ExitCode.USAGE)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return disk_full(Path(error.filename or "."))
    if isinstance(error, PermissionError) and error.filename:
        return NodeError(
            f"{error.filename}: {error.strerror}",
            hint="Run as the user who owns it, or name another home with --home DIR.",
            exit_code=ExitCode.PERMISSION,
        )
    raise error
