"""The secret that every control call carries: drawn at each start of the daemon, readable by the owner alone."""

import secrets
from pathlib import Path

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import check_private, write_atomically

TOKEN_BYTES = 32
"""Too many to guess, whoever may reach the socket."""

METADATA_KEY = "authorization"


def create_token(path: Path) -> str:
    """Draws a fresh token and writes it to `path` (0600), replacing the one of an earlier daemon.

    Raises:
        NodeError: The disk is full.
    """
    token = secrets.token_hex(TOKEN_BYTES)
    write_atomically(path, token.encode("ascii"))
    return token


def read_token(path: Path) -> str:
    """Reads the running daemon's token.

    Raises:
        NodeError: The file is missing, not ours to read, or readable by others.
    """
    try:
        hint = f"chmod 600 {path}, and restart the daemon so that it draws a new one."
        check_private(path, what="the daemon's token", hint=hint)
        return path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError as error:
        raise NodeError(
            f"the daemon's token {path} is gone",
            hint="Stop the daemon and start it again: it then writes a new one.",
            exit_code=ExitCode.PERMISSION,
        ) from error
    except PermissionError as error:
        raise NodeError(
            f"the daemon's token {path} cannot be read by this user",
            hint="Run as the user who started the daemon.",
            exit_code=ExitCode.PERMISSION,
        ) from error


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Call metadata that carries the token."""
    return ((METADATA_KEY, f"Bearer {token}"),)
