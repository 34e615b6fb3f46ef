"""Files that are whole or absent: temporary file, fsync, rename, fsync of the directory.

A process killed (or a machine losing power) between any two steps leaves either the old file or
the new one, and perhaps a file ending in `TEMP_SUFFIX`, which the next start removes.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fullrank_node.errors import ExitCode, NodeError

TEMP_SUFFIX = ".tmp"
"""Ending of every file that is not whole yet; whoever owns the directory deletes such files at start."""

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def disk_full(path: Path) -> NodeError:
    """The error for a full disk (or quota) met while writing at `path`."""
    return NodeError(
        f"no space left on the disk that holds {path}",
        hint="Free some space there, or move the node's home to a larger disk; nothing whole was lost.",
        exit_code=ExitCode.DISK,
    )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns "no space left" into the operator's error; every other OSError passes through.

    Raises:
        NodeError: The disk or the quota is full (exit code DISK).
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise disk_full(path) from error
        raise


def fsync_directory(path: Path) -> None:
    """Makes renames and deletions inside `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(directory: Path) -> Path:
    """A fresh name in `directory` for a file that is not whole yet."""
    return directory / f"{secrets.token_hex(8)}{TEMP_SUFFIX}"


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces `path` by a file holding `data`; readers see the old bytes or the new ones.

    Raises:
        NodeError: The disk is full.
    """
    temporary = temporary_path(path.parent)
    with disk_errors(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def remove_temporary_files(directory: Path) -> int:
    """Deletes what a killed process left half-written in `directory`; returns how many files."""
    removed = 0
    for path in directory.glob(f"*{TEMP_SUFFIX}"):
        path.unlink(missing_ok=True)
        removed += 1
    return removed
