"""The store remembers what it was told, across kills and beside readers, and names its cures."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fullrank_node.database import MIGRATIONS, database_errors
from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.history import ContributionRow, RoundRow
from fullrank_node.home import Home
from fullrank_node.store import Store
from fullrank_protocol.envelope import Envelope, seal
from fullrank_protocol.identity import SigningKey
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire

KEY = SigningKey.from_seed(bytes(32))
SWARM = b"s" * 32


def vote(slot: int) -> Envelope:
    message = wire.Vote(source=SWARM, source_slot=0, target=bytes([slot]) * 32, target_slot=slot)
    return seal(KEY, swarm=SWARM, type=wire.VOTE, message=message)


def contribution(number: int, member: bytes = b"m" * 32) -> ContributionRow:
    return ContributionRow(
        contribution_id=bytes([number]) * 32,
        member=member,
        base_checkpoint=SWARM,
        base_slot=3,
        num_tokens=4096,
        num_steps=20,
        loss_first_micro=3_000_000,
        loss_last_micro=2_500_000,
        num_bytes=70_000,
        created_at_ms=1000 + number,
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_objects_come_back_in_the_order_of_arrival_and_once(home: Home) -> None:
    envelopes = [vote(slot) for slot in (5, 3, 4)]
    with Store(home) as store:
        assert [
            store.put_object(each, slot=slot, received_at_ms=1) for each, slot in zip(envelopes, (5, 3, 4), strict=True)
        ] == [
            True,
            True,
            True,
        ]
        assert store.put_object(envelopes[0], slot=5, received_at_ms=2) is False
    with Store(home) as store:
        assert list(store.objects()) == [each.encode() for each in envelopes]
        assert list(store.objects(type=wire.VOTE, from_slot=4)) == [envelopes[0].encode(), envelopes[2].encode()]
        assert list(store.objects(type=wire.CHECKPOINT)) == []
        assert store.object_ids(from_slot=4) == [(envelopes[0].id, wire.VOTE, 5), (envelopes[2].id, wire.VOTE, 4)]
        assert store.get_object(envelopes[1].id) == envelopes[1].encode()
        assert store.has_object(envelopes[1].id)
        assert store.get_object(bytes(32)) is None
        assert not store.has_object(bytes(32))


def test_objects_that_arrive_while_iterating_are_seen_too(home: Home) -> None:
    with Store(home) as store:
        for slot in range(64):
            store.put_object(vote(slot), slot=slot, received_at_ms=1)
        seen = 0
        for _ in store.objects():
            seen += 1
            if seen == 1:
                store.put_object(vote(200), slot=200, received_at_ms=2)
        assert seen == 65


def test_own_votes_are_kept_in_order_and_verbatim(home: Home) -> None:
    with Store(home) as store:
        for slot in (1, 2, 2):
            store.record_vote(vote(slot).encode(), slot)
    with Store(home) as store:
        assert store.own_votes() == [vote(1).encode(), vote(2).encode()]


def test_a_verdict_replaces_the_one_before(home: Home) -> None:
    with Store(home) as store:
        store.note_contribution(contribution(1))
        store.note_contribution(contribution(1))
        weight = Scaled(mantissa=128, exponent=-9)
        assert store.record_verdict(bytes([1]) * 32, status="late")
        assert store.record_verdict(bytes([1]) * 32, status="accepted", weight=weight, checkpoint=b"c" * 32, round=7)
        (row,) = store.contributions()
        assert (row.status, row.weight, row.checkpoint, row.round) == ("accepted", weight, b"c" * 32, 7)
        assert (row.num_tokens, row.loss_last_micro, row.created_at_ms) == (4096, 2_500_000, 1001)
        assert store.record_verdict(bytes([1]) * 32, status="refused", rule=10, detail="found rank 65, required 64")
        (row,) = store.contributions()
        assert (row.status, row.rule, row.detail, row.weight, row.round) == (
            "refused",
            10,
            "found rank 65, required 64",
            None,
            None,
        )


def test_a_verdict_on_an_unknown_contribution_says_so(home: Home) -> None:
    with Store(home) as store:
        assert not store.record_verdict(bytes(32), status="accepted")


def test_contributions_are_listed_newest_first_per_member(home: Home) -> None:
    with Store(home) as store:
        for number in range(1, 4):
            store.note_contribution(contribution(number, member=bytes([number % 2]) * 32))
        assert [row.contribution_id[0] for row in store.contributions()] == [3, 2, 1]
        assert [row.contribution_id[0] for row in store.contributions(member=bytes([1]) * 32)] == [3, 1]
        assert [row.contribution_id[0] for row in store.contributions(limit=1)] == [3]


def test_rounds_keep_what_was_measured_later(home: Home) -> None:
    row = RoundRow(
        checkpoint=b"c" * 32, slot=4, round=2, kind=wire.NORMAL, digest=b"d" * 32, num_accepted=3, received_at_ms=9
    )
    with Store(home) as store:
        store.note_round(row)
        store.measure_round(b"c" * 32, effective_rank=41.5)
        store.measure_round(b"c" * 32, heldout_loss=2.25)
        store.note_round(row)
        (found,) = store.rounds()
        assert (found.effective_rank, found.heldout_loss, found.slot) == (41.5, 2.25, 4)


def test_the_newest_rounds_are_listed_oldest_first(home: Home) -> None:
    with Store(home) as store:
        for slot in range(1, 5):
            store.note_round(
                RoundRow(
                    checkpoint=bytes([slot]) * 32,
                    slot=slot,
                    round=slot,
                    kind=wire.EMPTY,
                    digest=b"d" * 32,
                    num_accepted=0,
                    received_at_ms=9,
                )
            )
        assert [row.slot for row in store.rounds(limit=2)] == [3, 4]


def test_running_figures_survive_a_restart(home: Home) -> None:
    with Store(home) as store:
        store.count("tokens_trained", 100)
        store.count("tokens_trained", 50)
        store.count("deltas_lost")
    with Store(home) as store:
        assert store.counters() == {"deltas_lost": 1, "tokens_trained": 150}


def test_the_head_moves_together_with_its_manifest(home: Home) -> None:
    with Store(home) as store:
        assert store.head() is None
        assert store.final() is None
        store.set_head(b"a" * 32, {"w": "00"})
        store.set_head(b"b" * 32, {"w": "11"})
        store.set_final(b"a" * 32)
    with Store(home) as store:
        assert store.head() == b"b" * 32
        assert store.final() == b"a" * 32
        assert store.manifest(b"a" * 32) == {"w": "00"}
        store.put_manifest(b"c" * 32, {"w": "22"})
        store.forget_manifests(keep={b"a" * 32, b"b" * 32})
        assert store.manifests() == {b"a" * 32: {"w": "00"}, b"b" * 32: {"w": "11"}}
        assert store.manifest(b"c" * 32) is None


def test_blobs_lie_beside_the_database(home: Home) -> None:
    with Store(home) as store:
        ref = store.blobs.put_bytes(b"delta")
        assert store.blobs.path(ref.id).parent == home.blobs_dir


WRITER = """
import sys
from pathlib import Path
from fullrank_node.home import Home
from fullrank_node.store import Store
store = Store(Home(Path(sys.argv[1])))
slot = 0
while True:
    slot += 1
    store.record_vote(slot.to_bytes(8, "big") * 40, slot)
    print(slot, flush=True)
"""


def test_every_vote_recorded_before_a_kill_is_there_after_it(home: Home) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(home.path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(5)]
    writer.send_signal(signal.SIGKILL)
    lines += writer.stdout.read().splitlines(keepends=True)
    writer.stdout.close()
    writer.wait()
    acknowledged = [int(line) for line in lines if line.endswith("\n")]
    with Store(home) as store:
        slots = [int.from_bytes(each[:8], "big") for each in store.own_votes()]
    assert slots == list(range(1, len(slots) + 1))
    assert len(slots) >= acknowledged[-1] >= 5


READER = """
import sys
from pathlib import Path
from fullrank_node.home import Home
from fullrank_node.store import Store
with Store(Home(Path(sys.argv[1])), readonly=True) as store:
    print(len(store.contributions()))
"""


def test_another_process_reads_while_the_daemon_writes(home: Home) -> None:
    with Store(home) as store:
        store.note_contribution(contribution(1))
        output = subprocess.run(
            [sys.executable, "-c", READER, str(home.path)], check=True, capture_output=True, text=True
        ).stdout
        store.note_contribution(contribution(2))
    assert output.strip() == "1"


def test_a_reader_cannot_write(home: Home) -> None:
    Store(home).close()
    with Store(home, readonly=True) as store, pytest.raises(sqlite3.OperationalError, match="readonly"):
        store.set_meta("key", b"value")


def test_reading_a_home_that_was_never_set_up_says_so(home: Home) -> None:
    with pytest.raises(NodeError, match="cannot open") as caught:
        Store(home, readonly=True)
    assert "fullrank join" in caught.value.hint
    assert not home.path.exists()


def test_a_move_of_the_head_that_fails_half_way_leaves_nothing(home: Home) -> None:
    with Store(home) as store:
        run = store._connection.execute
        run("CREATE TRIGGER stop BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'half way'); END")
        with pytest.raises(sqlite3.IntegrityError, match="half way"):
            store.set_head(b"a" * 32, {"w": "00"})
        assert store.manifest(b"a" * 32) is None
        run("DROP TRIGGER stop")
        store.set_head(b"a" * 32, {"w": "00"})
        assert store.manifest(b"a" * 32) == {"w": "00"}


def test_a_file_that_is_no_database_is_named_with_a_cure(home: Home) -> None:
    Store(home).close()
    home.state_file.write_bytes(b"not a database" * 1000)
    with pytest.raises(NodeError, match="damaged") as caught:
        Store(home)
    assert str(home.state_file) in str(caught.value)
    assert "away" in caught.value.hint
    assert caught.value.exit_code == ExitCode.DISK


def test_a_database_with_spoilt_pages_is_found_at_open(home: Home) -> None:
    with Store(home) as store:
        for slot in range(100):
            store.put_object(vote(slot), slot=slot, received_at_ms=1)
    size = home.state_file.stat().st_size
    with home.state_file.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(NodeError, match="damaged"):
        Store(home)


def test_a_database_of_a_newer_version_is_left_alone(home: Home) -> None:
    Store(home).close()
    connection = sqlite3.connect(home.state_file)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(NodeError, match="schema version") as caught:
        Store(home)
    assert caught.value.exit_code == ExitCode.CONFIG


def test_a_full_disk_is_the_operators_error_and_loses_nothing_written_before(home: Home) -> None:
    with Store(home) as store:
        store.put_object(vote(1), slot=1, received_at_ms=1)
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(NodeError, match="no space left") as caught:
            store.set_meta("large", bytes(1 << 20))
        assert caught.value.exit_code == ExitCode.DISK
        assert store.has_object(vote(1).id)
        assert store.get_meta("large") is None


@pytest.mark.parametrize(
    ("free", "said"), [(4096, "no space left on the disk"), (1 << 30, "the disk that holds .* fails")]
)
def test_an_io_error_is_a_full_disk_or_a_failing_one(
    home: Home, monkeypatch: pytest.MonkeyPatch, free: int, said: str
) -> None:
    """SQLite calls it an I/O error when there is no room for the memory that its users share."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | (19 << 8)  # SQLITE_IOERR_SHMSIZE
    with pytest.raises(NodeError, match=said) as caught, database_errors(home.state_file):
        raise error
    assert caught.value.exit_code == ExitCode.DISK
