"""The database file of a node: its schema, how it is opened and checked, and what its failures mean."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.files import disk_full

MIGRATIONS = (
    """
    CREATE TABLE objects (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id BLOB NOT NULL UNIQUE,
        type INTEGER NOT NULL,
        slot INTEGER NOT NULL,
        envelope BLOB NOT NULL,
        received_at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX objects_by_slot ON objects (slot, type);
    CREATE TABLE votes (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        target_slot INTEGER NOT NULL,
        envelope BLOB NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE contributions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id BLOB NOT NULL UNIQUE,
        member BLOB NOT NULL,
        base_checkpoint BLOB NOT NULL,
        base_slot INTEGER NOT NULL,
        num_tokens INTEGER NOT NULL,
        num_steps INTEGER NOT NULL,
        loss_first_micro INTEGER NOT NULL,
        loss_last_micro INTEGER NOT NULL,
        num_bytes INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        status TEXT NOT NULL,
        rule INTEGER NOT NULL DEFAULT 0,
        detail TEXT NOT NULL DEFAULT '',
        weight_mantissa INTEGER,
        weight_exponent INTEGER,
        checkpoint BLOB,
        round INTEGER
    ) STRICT;
    CREATE INDEX contributions_by_member ON contributions (member, seq);
    CREATE TABLE rounds (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        checkpoint BLOB NOT NULL UNIQUE,
        slot INTEGER NOT NULL,
        round INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        digest BLOB NOT NULL,
        num_accepted INTEGER NOT NULL,
        received_at_ms INTEGER NOT NULL,
        effective_rank REAL,
        heldout_loss REAL
    ) STRICT;
    CREATE TABLE manifests (checkpoint BLOB PRIMARY KEY, manifest TEXT NOT NULL) STRICT;
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
    """,
    """
    CREATE TABLE switches (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        left_checkpoint BLOB NOT NULL,
        left_round INTEGER NOT NULL,
        fork_round INTEGER NOT NULL,
        contributions BLOB NOT NULL
    ) STRICT;
    """,
)
"""One script per schema version, in order; `PRAGMA user_version` says how many were run."""

_SHARED_MEMORY_BYTES = 32 << 10
"""Size of the file beside the database by which its users agree; where it does not fit, SQLite speaks of I/O errors."""

_BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another process. Readers never block writers in WAL mode; recovery does, briefly."""


def open_database(path: Path, *, readonly: bool) -> sqlite3.Connection:
    """Opens the database at `path`, checks it and brings its schema up to date.

    Raises:
        NodeError: Damaged, missing (readonly), written by a newer version, or the disk is full.
    """
    with database_errors(path):
        mode = "ro" if readonly else "rwc"
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}", uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None
        )
        try:
            connection.row_factory = sqlite3.Row
            if not readonly:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                _check(connection, path)
            _migrate(connection, path, readonly=readonly)
        except BaseException:
            connection.close()
            raise
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _damaged(path, str(found))


def _migrate(connection: sqlite3.Connection, path: Path, *, readonly: bool) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise NodeError(
            f"{path} has schema version {version}, this fullrank knows up to {len(MIGRATIONS)}",
            hint="Install the newer fullrank that wrote it.",
            exit_code=ExitCode.CONFIG,
        )
    if readonly and version < len(MIGRATIONS):
        raise NodeError(
            f"{path} has schema version {version}, this fullrank reads version {len(MIGRATIONS)}",
            hint="Start the daemon once: it brings the file up to date.",
            exit_code=ExitCode.RETRY,
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


def _damaged(path: Path, found: str) -> NodeError:
    return NodeError(
        f"the database {path} is damaged: {found}",
        hint=f"Move {path} (and its -wal and -shm) away and start again: the log and your own votes are fetched from "
        "peers; the key, blobs and weights are other files and stay.",
        exit_code=ExitCode.DISK,
    )


def _has_no_room(path: Path) -> bool:
    return shutil.disk_usage(path.parent).free < _SHARED_MEMORY_BYTES


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turns what the operator can cure into a NodeError; misuse by our own code passes through."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and _has_no_room(path)):
            raise disk_full(path) from error
        if primary == sqlite3.SQLITE_IOERR:
            raise NodeError(
                f"the disk that holds the database {path} fails: {error}",
                hint="Check the disk. On another one, move the node's home there; with only the key, join again.",
                exit_code=ExitCode.DISK,
            ) from error
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _damaged(path, str(error)) from error
        if primary == sqlite3.SQLITE_CANTOPEN:
            raise NodeError(
                f"cannot open the database {path}",
                hint="Set this node up first, with `fullrank create` or `fullrank join LINK`, or check --home DIR.",
                exit_code=ExitCode.CONFIG,
            ) from error
        raise
