"""What a node remembers: signed objects, its own votes, verdicts, rounds, pointers (SQLite), and blobs (files).

The database is in WAL mode, so that a command may read while the daemon writes, and a kill between any
two statements leaves the last whole transaction. What must survive a power loss before it acts on the
world (an own vote before its signature leaves, the head pointer) is synced before the call returns.
Every method is short and synchronous, for the daemon's own loop; one thread per store.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

from fullrank_node.blob_store import BlobStore
from fullrank_node.database import database_errors, open_database
from fullrank_node.history import ContributionRow, RoundRow, SwitchRow
from fullrank_node.home import Home
from fullrank_node.node_keys import BEGUN_KEY
from fullrank_protocol.envelope import Envelope
from fullrank_protocol.scaled import Scaled

_HEAD = "head"
_FINAL = "final"
_BATCH = 64
"""Objects fetched at a time while iterating: at most 4 MiB each, so a fraction of them fits in memory."""


class Store:
    """The memory of one node."""

    def __init__(self, home: Home, *, readonly: bool = False) -> None:
        """Opens, checks and, unless `readonly`, creates and migrates the database of `home`.

        Raises:
            NodeError: The database is damaged, missing (readonly) or written by a newer version; the disk is full.
        """
        self.path = home.state_file
        self.readonly = readonly
        if not readonly:
            home.create()
        self._connection = open_database(self.path, readonly=readonly)
        self.blobs = BlobStore(home.blobs_dir)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database; further calls fail."""
        self._connection.close()

    # ---- signed objects --------------------------------------------------------------------------

    def put_object(self, envelope: Envelope, *, slot: int, received_at_ms: int) -> bool:
        """Keeps a checked object; durable when this returns. False if it was known."""
        with self._transaction() as run:
            cursor = run.execute(
                "INSERT OR IGNORE INTO objects (id, type, slot, envelope, received_at_ms) VALUES (?, ?, ?, ?, ?)",
                (envelope.id, envelope.type, slot, envelope.encode(), received_at_ms),
            )
            return cursor.rowcount == 1

    def get_object(self, object_id: bytes) -> bytes | None:
        """The envelope's bytes as they were received."""
        row = self._one("SELECT envelope FROM objects WHERE id = ?", object_id)
        return None if row is None else bytes(row["envelope"])

    def has_object(self, object_id: bytes) -> bool:
        """Whether the object is kept."""
        return self._one("SELECT 1 FROM objects WHERE id = ?", object_id) is not None

    def object_ids(self, from_slot: int = 0) -> list[tuple[bytes, int, int]]:
        """(id, type, slot) of every object of `from_slot` or later, in the order of arrival."""
        rows = self._all("SELECT id, type, slot FROM objects WHERE slot >= ? ORDER BY seq", from_slot)
        return [(bytes(row["id"]), int(row["type"]), int(row["slot"])) for row in rows]

    def objects(self, type: int | None = None, from_slot: int = 0) -> Iterator[bytes]:  # noqa: A002 - the envelope's word
        """Envelopes in the order of arrival, also those that arrive meanwhile."""
        last = 0
        while rows := self._all(
            "SELECT seq, envelope FROM objects WHERE seq > ? AND slot >= ? AND (? IS NULL OR type = ?) "
            "ORDER BY seq LIMIT ?",
            *(last, from_slot, type, type, _BATCH),
        ):
            for row in rows:
                yield bytes(row["envelope"])
            last = int(rows[-1]["seq"])

    def drop_damaged(self, envelope: bytes) -> None:
        """Forgets an object or own vote that the disk has spoilt; where this was opened to read, the next start does.

        A lost vote counts as a lost log: no other may follow before peers have told what they know of it.
        """
        if self.readonly:
            return
        with self._transaction() as run:
            run.execute("DELETE FROM objects WHERE envelope = ?", (envelope,))
            if run.execute("DELETE FROM votes WHERE envelope = ?", (envelope,)).rowcount:
                run.execute("DELETE FROM meta WHERE key = ?", (BEGUN_KEY,))

    # ---- own votes -------------------------------------------------------------------------------

    def record_vote(self, envelope: bytes, target_slot: int) -> None:
        """Keeps an own vote, on the platter when this returns: only then may its signature leave (section 8)."""
        with self._transaction() as run:
            run.execute("INSERT OR IGNORE INTO votes (target_slot, envelope) VALUES (?, ?)", (target_slot, envelope))

    def own_votes(self) -> list[bytes]:
        """Own votes ever recorded, in the order in which they were."""
        return [bytes(row["envelope"]) for row in self._all("SELECT envelope FROM votes ORDER BY seq")]

    # ---- history ---------------------------------------------------------------------------------

    def note_contribution(self, row: ContributionRow) -> None:
        """Remembers a contribution for `history`; its verdict follows. A known one is left as it is."""
        with self._transaction() as run:
            run.execute(
                "INSERT OR IGNORE INTO contributions (id, member, base_checkpoint, base_slot, num_tokens, num_steps, "
                "loss_first_micro, loss_last_micro, num_bytes, created_at_ms, status, rule, detail) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(row.contribution_id, row.member, row.base_checkpoint, row.base_slot, row.num_tokens),
                    *(row.num_steps, row.loss_first_micro, row.loss_last_micro, row.num_bytes, row.created_at_ms),
                    *(row.status, row.rule, row.detail),
                ),
            )

    def record_verdict(
        self,
        contribution_id: bytes,
        *,
        status: str,
        rule: int = 0,
        detail: str = "",
        weight: Scaled | None = None,
        checkpoint: bytes | None = None,
        round: int | None = None,  # noqa: A002 - the protocol's word
    ) -> bool:
        """Replaces the verdict on a noted contribution (a fork may turn one round). False if it was never noted.

        Args:
            contribution_id: The contribution.
            status: One of `history.STATUSES`.
            rule: Number of the rule broken, when refused.
            detail: What was found and what was required.
            weight: Its weight, when accepted.
            checkpoint: The checkpoint that decided.
            round: That checkpoint's round.
        """
        pair = (None, None) if weight is None else (weight.mantissa, weight.exponent)
        with self._transaction() as run:
            cursor = run.execute(
                "UPDATE contributions SET status = ?, rule = ?, detail = ?, weight_mantissa = ?, weight_exponent = ?, "
                "checkpoint = ?, round = ? WHERE id = ?",
                (status, rule, detail, *pair, checkpoint, round, contribution_id),
            )
            return cursor.rowcount == 1

    def contributions(self, member: bytes | None = None, limit: int = 100) -> list[ContributionRow]:
        """The newest contributions (of one member), newest first."""
        rows = self._all(
            "SELECT * FROM contributions WHERE (? IS NULL OR member = ?) ORDER BY seq DESC LIMIT ?",
            *(member, member, limit),
        )
        return [ContributionRow.from_columns(dict(row)) for row in rows]

    def verdicts_on(self, ids: Sequence[bytes]) -> list[ContributionRow]:
        """The noted ones of these contributions, in that order."""
        rows = (self._one("SELECT * FROM contributions WHERE id = ?", each) for each in ids)
        return [ContributionRow.from_columns(dict(row)) for row in rows if row is not None]

    def note_switch(self, row: SwitchRow) -> None:
        """Remembers for `history` that this node went over to another branch."""
        with self._transaction() as run:
            run.execute(
                "INSERT INTO switches (at_ms, left_checkpoint, left_round, fork_round, contributions) "
                "VALUES (?, ?, ?, ?, ?)",
                (row.at_ms, row.left_checkpoint, row.left_round, row.fork_round, b"".join(row.contributions)),
            )

    def switches(self, limit: int = 100) -> list[SwitchRow]:
        """The newest switches to another branch, oldest first."""
        rows = self._all("SELECT * FROM (SELECT * FROM switches ORDER BY seq DESC LIMIT ?) ORDER BY seq", limit)
        return [SwitchRow.from_columns(dict(row)) for row in rows]

    def note_round(self, row: RoundRow) -> None:
        """Remembers a checkpoint of the chain for `history` and `status`; a known one is left as it is."""
        with self._transaction() as run:
            run.execute(
                "INSERT OR IGNORE INTO rounds (checkpoint, slot, round, kind, digest, num_accepted, received_at_ms) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (row.checkpoint, row.slot, row.round, row.kind, row.digest, row.num_accepted, row.received_at_ms),
            )
        self.measure_round(row.checkpoint, effective_rank=row.effective_rank, heldout_loss=row.heldout_loss)

    def measure_round(
        self, checkpoint: bytes, *, effective_rank: float | None = None, heldout_loss: float | None = None
    ) -> None:
        """Adds what was measured of a noted checkpoint's model; None leaves the figure as it is."""
        with self._transaction() as run:
            run.execute(
                "UPDATE rounds SET effective_rank = coalesce(?, effective_rank), "
                "heldout_loss = coalesce(?, heldout_loss) WHERE checkpoint = ?",
                (effective_rank, heldout_loss, checkpoint),
            )

    def rounds(self, limit: int = 1000) -> list[RoundRow]:
        """The newest noted checkpoints, also of abandoned forks, oldest first."""
        rows = self._all("SELECT * FROM (SELECT * FROM rounds ORDER BY seq DESC LIMIT ?) ORDER BY seq", limit)
        return [RoundRow.from_columns(dict(row)) for row in rows]

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to a running figure, such as `tokens_trained` or `bytes_sent`, kept across restarts."""
        with self._transaction() as run:
            run.execute(
                "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + ?",
                (name, amount, amount),
            )

    def counters(self) -> dict[str, int]:
        """All running figures by name."""
        rows = self._all("SELECT name, value FROM counters ORDER BY name")
        return {str(row["name"]): int(row["value"]) for row in rows}

    # ---- pointers and masters --------------------------------------------------------------------

    def set_head(self, checkpoint: bytes, manifest: Mapping[str, str]) -> None:
        """Moves the head, together with the masters' manifest (tensor name to SHA-256 hex): both or neither."""
        with self._transaction() as run:
            run.execute(
                "INSERT OR REPLACE INTO manifests (checkpoint, manifest) VALUES (?, ?)",
                (checkpoint, json.dumps(dict(manifest), sort_keys=True)),
            )
            run.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (_HEAD, checkpoint))

    def head(self) -> bytes | None:
        """The checkpoint whose weights are the local ones."""
        return self.get_meta(_HEAD)

    def set_final(self, checkpoint: bytes) -> None:
        """Moves the pointer to the last final checkpoint."""
        self.set_meta(_FINAL, checkpoint)

    def final(self) -> bytes | None:
        """The last final checkpoint this node knew."""
        return self.get_meta(_FINAL)

    def put_manifest(self, checkpoint: bytes, manifest: Mapping[str, str]) -> None:
        """Remembers which master files are a checkpoint's weights."""
        with self._transaction() as run:
            run.execute(
                "INSERT OR REPLACE INTO manifests (checkpoint, manifest) VALUES (?, ?)",
                (checkpoint, json.dumps(dict(manifest), sort_keys=True)),
            )

    def manifest(self, checkpoint: bytes) -> dict[str, str] | None:
        """Tensor name to SHA-256 hex of its master file, if known for this checkpoint."""
        row = self._one("SELECT manifest FROM manifests WHERE checkpoint = ?", checkpoint)
        return None if row is None else dict(json.loads(row["manifest"]))

    def manifests(self) -> dict[bytes, dict[str, str]]:
        """All known manifests by checkpoint."""
        rows = self._all("SELECT checkpoint, manifest FROM manifests")
        return {bytes(row["checkpoint"]): dict(json.loads(row["manifest"])) for row in rows}

    def forget_manifests(self, *, keep: set[bytes]) -> None:
        """Drops all manifests but those of `keep`; their master files may be collected afterwards."""
        with self._transaction() as run:
            gone = [(checkpoint,) for checkpoint in self.manifests() if checkpoint not in keep]
            run.executemany("DELETE FROM manifests WHERE checkpoint = ?", gone)

    def set_meta(self, key: str, value: bytes) -> None:
        """Keeps one named value; durable when this returns."""
        with self._transaction() as run:
            run.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def get_meta(self, key: str) -> bytes | None:
        """One named value."""
        row = self._one("SELECT value FROM meta WHERE key = ?", key)
        return None if row is None else bytes(row["value"])

    # ---- plumbing --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with database_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _one(self, query: str, *values: object) -> sqlite3.Row | None:
        rows = self._all(query, *values)
        return rows[0] if rows else None

    def _all(self, query: str, *values: object) -> list[sqlite3.Row]:
        with database_errors(self.path):
            return self._connection.execute(query, values).fetchall()
