"""Files that are whole or absent: temporary file, fsync, rename, fsync of the directory.

A process killed (or a machine losing power) between any two steps leaves either the old file or
the new one, and perhaps a file ending in `TEMP_SUFFIX`, which the next start removes.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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


def check_private(path: Path, *, what: str, hint: str) -> None:
    """Checks that nobody but its owner can open a file that holds a secret.

    Raises:
        NodeError: Others can (exit code PERMISSION); `what` names the file, `hint` says what to do.
        OSError: There is no such file, or it cannot be looked at.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise NodeError(
            f"{what} {path} can be read by others (mode {mode:04o}, required 0600)",
            hint=hint,
            exit_code=ExitCode.PERMISSION,
        )


def fsync_directory(path: Path) -> None:
    """Makes renames and deletions inside `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_file(directory: Path) -> Iterator[BinaryIO]:
    """A fresh file in `directory`, to be filled and then given its name by `replace_with`.

    It is locked while this process has it open, so that a cleaner in another process can tell it from
    one that a killed process left behind. When it was not renamed, or an error occurs, it is deleted.

    Raises:
        NodeError: The disk is full.
    """
    with disk_errors(directory), _create_locked(directory) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def replace_with(file: BinaryIO, path: Path) -> None:
    """Gives a temporary file its name once its bytes are durable; the name is after `fsync_directory`."""
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).replace(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by a file (0600) holding `data`; readers see the old bytes or the new ones.

    Raises:
        NodeError: The disk is full.
    """
    with temporary_file(path.parent) as file:
        file.write(data)
        replace_with(file, path)
        fsync_directory(path.parent)


def remove_temporary_files(directory: Path) -> int:
    """Deletes what killed processes left half-written in `directory`; returns how many files."""
    removed = 0
    for path in directory.glob(f"*{TEMP_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed += 1
    return removed


def _create_locked(directory: Path) -> BinaryIO:
    while True:
        path = directory / f"{secrets.token_hex(8)}{TEMP_SUFFIX}"
        file = open(path, "x+b", opener=_private)  # noqa: SIM115 - pathlib has no opener; the caller closes
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            if os.fstat(file.fileno()).st_nlink:
                return file
        # A cleaner came between creating and locking: it took the file for a leftover.
        file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
