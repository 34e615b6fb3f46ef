"""The node's secret key on disk: created once, never overwritten, readable by its owner alone.

One Ed25519 key signs, names the member and is the libp2p identity (protocol section 2). The seed
lies in a short text file; the 68-byte file that p2pd wants is derived from it and lies beside it.
"""

import os
import re
import stat
from pathlib import Path

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import check_private, disk_errors, fsync_directory, write_atomically
from fullrank_protocol.identity import SigningKey, libp2p_identity_file

_HEADER = "fullrank identity 1"
_MAX_FILE_BYTES = 1024
"""A well-formed file has 158 bytes; anything much larger is another file."""


def libp2p_path(path: Path) -> Path:
    """Where the identity file for p2pd lies, beside the identity at `path`."""
    return path.with_suffix(".p2p")


def create_identity(path: Path) -> SigningKey:
    """Draws a new key and writes it to `path`, which must not exist yet.

    Raises:
        NodeError: There is an identity already, or the disk is full.
    """
    key = SigningKey.generate()
    text = f"{_HEADER}\nseed {key.seed.hex()}\npublic {key.public_key.hex()}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise NodeError(
            f"there is an identity already at {path}",
            hint="Use it, or choose another home with --home DIR: a key once lost cannot be made again.",
            exit_code=ExitCode.PERMISSION,
        ) from error
    with disk_errors(path):
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(text.encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)
    _write_libp2p_file(path, key)
    return key


def load_identity(path: Path) -> SigningKey:
    """Reads the key at `path`, and makes the file for p2pd again where it is missing or differs.

    Raises:
        NodeError: No identity, readable by others, or damaged.
    """
    try:
        check_private(path, what="the identity", hint=f"chmod 600 {path}")
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise NodeError(
            f"no identity at {path}",
            hint="Set this node up first, with `fullrank create` or `fullrank join LINK`.",
            exit_code=ExitCode.CONFIG,
        ) from error
    except PermissionError as error:
        raise NodeError(
            f"the identity {path} cannot be read by this user",
            hint="Run as the user who owns it, or give --home DIR.",
            exit_code=ExitCode.PERMISSION,
        ) from error
    key = _parse(text, path)
    _write_libp2p_file(path, key)
    return key


def _parse(data: bytes, path: Path) -> SigningKey:
    found = re.fullmatch(_HEADER + r"\nseed ([0-9a-f]{64})\npublic ([0-9a-f]{64})\n", data.decode("ascii", "replace"))
    key = None if found is None else SigningKey.from_seed(bytes.fromhex(found[1]))
    if key is None or found is None or key.public_key.hex() != found[2]:
        raise NodeError(
            f"the identity {path} is damaged ({len(data)} bytes that are not one)",
            hint="Put the file back from a copy; without one, set up a new home and ask for a new invite.",
            exit_code=ExitCode.PERMISSION,
        )
    return key


def _write_libp2p_file(path: Path, key: SigningKey) -> None:
    target = libp2p_path(path)
    wanted = libp2p_identity_file(key.seed, key.public_key)
    try:
        found = target.read_bytes()
        private = not stat.S_IMODE(target.stat().st_mode) & 0o077
    except OSError:
        found, private = b"", False
    if found != wanted or not private:
        write_atomically(target, wanted)
