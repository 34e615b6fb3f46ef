"""Blobs are whole and right, or resumable; what a peer sends is checked before it is written."""

import errno
import os
from pathlib import Path

import pytest

from fullrank_node.blob_store import BlobStore, Held
from fullrank_node.errors import ExitCode, NodeError
from fullrank_protocol.blob import BlobRef, blob_ref, chunk_hashes
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.limits import CHUNK_BYTES

DATA = b"".join(bytes([number]) * CHUNK_BYTES for number in (1, 2)) + b"end"
"""Three chunks, the last of three bytes."""

CHUNKS = [DATA[:CHUNK_BYTES], DATA[CHUNK_BYTES : 2 * CHUNK_BYTES], b"end"]


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_what_is_put_is_named_by_its_content_and_read_back(blobs: BlobStore) -> None:
    ref = blobs.put_bytes(DATA)
    assert ref == blob_ref(DATA)
    assert blobs.has(ref.id)
    assert blobs.read(ref.id) == DATA
    assert blobs.header(ref.id) == (len(DATA), list(chunk_hashes(DATA)))
    assert [blobs.read_chunk(ref.id, index) for index in range(3)] == CHUNKS
    assert blobs.ids() == [ref.id]
    assert blobs.total_bytes() == len(DATA) + 3 * 32


def test_a_survey_tells_whole_blobs_from_downloads_and_when_they_changed(blobs: BlobStore) -> None:
    whole, broken_off = blobs.put_bytes(DATA), blob_ref(DATA[:-1])
    with blobs.writer(broken_off, chunk_hashes(DATA[:-1])) as writer:
        writer.write_chunk(0, CHUNKS[0])
    for file in blobs.directory.iterdir():
        is_whole = file.name.startswith(whole.id.hex())
        os.utime(file, (1000, 1000) if is_whole else (2000, 2000))
    assert blobs.survey() == {
        whole.id: Held(is_whole=True, num_bytes=len(DATA) + 3 * 32, changed_at_s=1000),
        broken_off.id: Held(is_whole=False, num_bytes=len(CHUNKS[0]) + 3 * 32, changed_at_s=2000),
    }


def test_putting_twice_is_putting_once(blobs: BlobStore) -> None:
    assert blobs.put_bytes(b"same") == blobs.put_bytes(b"same")
    assert len(blobs.ids()) == 1
    assert not list(blobs.directory.glob("*.tmp"))


def test_an_empty_blob_is_a_blob(blobs: BlobStore) -> None:
    ref = blobs.put_bytes(b"")
    assert blobs.header(ref.id) == (0, [])
    assert blobs.read(ref.id) == b""


def test_a_file_is_moved_in(blobs: BlobStore, tmp_path: Path) -> None:
    file = tmp_path / "delta"
    file.write_bytes(DATA)
    ref = blobs.put_file(file)
    assert not file.exists()
    assert blobs.read(ref.id) == DATA


def test_a_file_from_another_disk_is_copied_in(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "delta"
    file.write_bytes(DATA)
    replace = Path.replace

    def refuse_across(source: Path, target: Path) -> Path:
        if source.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse_across)
    ref = blobs.put_file(file)
    assert not file.exists()
    assert blobs.read(ref.id) == DATA


def test_an_unknown_blob_is_a_key_error_and_an_unknown_chunk_an_index_error(blobs: BlobStore) -> None:
    ref = blobs.put_bytes(DATA)
    with pytest.raises(KeyError):
        blobs.header(bytes(32))
    with pytest.raises(KeyError):
        blobs.read_chunk(bytes(32), 0)
    with pytest.raises(IndexError):
        blobs.read_chunk(ref.id, 3)


def test_a_download_may_come_in_any_order(blobs: BlobStore) -> None:
    ref = blob_ref(DATA)
    with blobs.writer(ref, chunk_hashes(DATA)) as writer:
        assert writer.missing() == [0, 1, 2]
        for index in (2, 0, 1):
            writer.write_chunk(index, CHUNKS[index])
        assert not blobs.has(ref.id)
        assert writer.finish() == ref
    assert blobs.read(ref.id) == DATA


def test_a_download_goes_on_after_a_kill_with_what_was_written(blobs: BlobStore) -> None:
    ref = blob_ref(DATA)
    writer = blobs.writer(ref, chunk_hashes(DATA))
    writer.write_chunk(1, CHUNKS[1])
    writer.close()
    partial = next(blobs.directory.glob("*.partial"))
    with partial.open("r+b") as file:
        file.seek(0)
        file.write(b"half a chunk, then the power went")

    again = BlobStore(blobs.directory)
    with again.writer(ref, chunk_hashes(DATA)) as resumed:
        assert resumed.missing() == [0, 2]
        resumed.write_chunk(0, CHUNKS[0])
        resumed.write_chunk(2, CHUNKS[2])
        resumed.finish()
    assert again.read(ref.id) == DATA
    assert sorted(path.suffix for path in blobs.directory.iterdir()) == ["", ".chunks"]


def test_a_partial_file_that_grew_too_long_is_cut(blobs: BlobStore) -> None:
    ref = blob_ref(b"short")
    blobs.writer(ref, chunk_hashes(b"short")).close()
    next(blobs.directory.glob("*.partial")).write_bytes(b"short and more")
    with blobs.writer(ref, chunk_hashes(b"short")) as writer:
        assert writer.missing() == []
        writer.finish()
    assert blobs.read(ref.id) == b"short"


def test_a_writer_of_a_blob_that_is_here_misses_nothing(blobs: BlobStore) -> None:
    ref = blobs.put_bytes(DATA)
    with blobs.writer(ref, chunk_hashes(DATA)) as writer:
        assert writer.missing() == []
        assert writer.finish() == ref


def test_two_writers_of_one_blob_do_no_harm(blobs: BlobStore) -> None:
    ref = blob_ref(DATA)
    first, second = (blobs.writer(ref, chunk_hashes(DATA)) for _ in range(2))
    for index in range(3):
        first.write_chunk(index, CHUNKS[index])
        second.write_chunk(index, CHUNKS[index])
    assert first.finish() == second.finish() == ref
    assert blobs.read(ref.id) == DATA


@pytest.mark.parametrize(
    ("index", "data"),
    [(0, CHUNKS[1]), (2, b"end!"), (2, b"en"), (3, b"more"), (-1, b"end")],
    ids=["another chunk's bytes", "too long", "truncated", "one too many", "negative"],
)
def test_a_wrong_chunk_is_the_senders_fault_and_is_not_written(blobs: BlobStore, index: int, data: bytes) -> None:
    with blobs.writer(blob_ref(DATA), chunk_hashes(DATA)) as writer:
        with pytest.raises(RejectError) as caught:
            writer.write_chunk(index, data)
        assert caught.value.rule == Rule.BLOB
        assert writer.missing() == [0, 1, 2]


def test_hashes_that_are_not_the_blobs_are_refused(blobs: BlobStore) -> None:
    ref = blob_ref(DATA)
    for wrong in (chunk_hashes(DATA)[:2], (*chunk_hashes(DATA)[:2], bytes(32))):
        with pytest.raises(RejectError):
            blobs.writer(ref, wrong)
    with pytest.raises(RejectError):
        blobs.writer(BlobRef(id=ref.id, num_bytes=len(DATA) - 1), chunk_hashes(DATA))


def test_an_unfinished_download_cannot_be_finished(blobs: BlobStore) -> None:
    with blobs.writer(blob_ref(DATA), chunk_hashes(DATA)) as writer, pytest.raises(ValueError, match="3 of 3"):
        writer.finish()


def test_a_chunk_that_the_disk_spoilt_is_not_served_but_forgotten(
    blobs: BlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    ref = blobs.put_bytes(DATA)
    with blobs.path(ref.id).open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"\xff")
    assert blobs.read_chunk(ref.id, 0) == CHUNKS[0]
    with pytest.raises(KeyError, match="damaged"):
        blobs.read_chunk(ref.id, 1)
    assert not blobs.has(ref.id)
    assert f"is fetched again when it is needed: {ref.id.hex()}" in caplog.text


def test_opening_removes_what_a_kill_left_and_keeps_downloads(blobs: BlobStore) -> None:
    (blobs.directory / "0123.tmp").write_bytes(b"half")
    orphan = blobs.directory / (bytes(32).hex() + ".chunks")
    orphan.write_bytes(bytes(32))
    blobs.writer(blob_ref(DATA), chunk_hashes(DATA)).close()
    names = {path.name for path in BlobStore(blobs.directory).directory.iterdir()}
    stem = blob_ref(DATA).id.hex()
    assert names == {stem + ".partial", stem + ".chunks"}


def test_a_deleted_blob_leaves_nothing(blobs: BlobStore) -> None:
    ref = blobs.put_bytes(DATA)
    blobs.delete(ref.id)
    blobs.delete(ref.id)
    assert list(blobs.directory.iterdir()) == []


def test_a_full_disk_is_the_operators_error_and_the_file_stays_where_it_was(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "delta"
    file.write_bytes(DATA)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NodeError, match="no space left") as caught:
        blobs.put_file(file)
    assert caught.value.exit_code == ExitCode.DISK
    assert caught.value.hint
    assert file.read_bytes() == DATA
    assert not blobs.has(blob_ref(DATA).id)
