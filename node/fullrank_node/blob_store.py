"""Blobs on disk: files named by their content, whole or resumable, never half-trusted (protocol section 10).

A blob `<id>` is a file of that name; the SHA-256 of each of its chunks lies beside it in `<id>.chunks`,
which is written first. `<id>.partial` is a download under way: what it holds is hashed again when it
is opened, so a kill costs at most the chunk being written. Big blobs belong into a thread
(`asyncio.to_thread`): every method here blocks while it reads, hashes or writes.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fullrank_node.files import (
    disk_errors,
    fsync_directory,
    remove_temporary_files,
    replace_with,
    temporary_file,
    write_atomically,
)
from fullrank_protocol.blob import BlobRef, check_chunk, check_header, chunk_hashes
from fullrank_protocol.blob import blob_id as _blob_id
from fullrank_protocol.limits import CHUNK_BYTES

log = logging.getLogger(__name__)

_HASH_BYTES = 32
_CHUNKS_SUFFIX = ".chunks"
_PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a blob takes on this disk.

    Attributes:
        is_whole: It is here, and no download of it under way or broken off.
        num_bytes: Of all its files.
        changed_at_s: When the last of them was written, Unix time in seconds.
    """

    is_whole: bool
    num_bytes: int
    changed_at_s: float


class BlobStore:
    """The blobs of one node, in one directory."""

    def __init__(self, directory: Path) -> None:
        """Opens `directory` (made when missing) and removes what a killed process left half-written."""
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_temporary_files(directory)
        names = {path.name for path in directory.iterdir()}
        for name in names:
            if name.endswith(_CHUNKS_SUFFIX):
                stem = name.removesuffix(_CHUNKS_SUFFIX)
                if stem not in names and stem + _PARTIAL_SUFFIX not in names:
                    (directory / name).unlink(missing_ok=True)

    def path(self, blob_id: bytes) -> Path:
        """Where the blob lies once it is whole."""
        return self.directory / blob_id.hex()

    def has(self, blob_id: bytes) -> bool:
        """Whether the whole blob is here."""
        return self.path(blob_id).is_file()

    def ids(self) -> list[bytes]:
        """All whole blobs, ascending."""
        names = (path.name for path in self.directory.iterdir())
        return sorted(bytes.fromhex(name) for name in names if len(name) == 2 * _HASH_BYTES)

    def survey(self) -> dict[bytes, "Held"]:
        """What is here of every blob, whole or under way, by id."""
        found: dict[bytes, Held] = {}
        for path in self.directory.iterdir():
            digits = path.name.split(".", 1)[0]
            if len(digits) != 2 * _HASH_BYTES:
                continue
            with contextlib.suppress(FileNotFoundError):
                status, blob_id = path.stat(), bytes.fromhex(digits)
                before = found.get(blob_id, Held(is_whole=False, num_bytes=0, changed_at_s=0.0))
                found[blob_id] = Held(
                    is_whole=before.is_whole or path.name == digits,
                    num_bytes=before.num_bytes + status.st_size,
                    changed_at_s=max(before.changed_at_s, status.st_mtime),
                )
        return found

    def partial_bytes(self, blob_id: bytes) -> int:
        """Bytes of a download under way; 0 when there is none."""
        try:
            return self._partial(blob_id).stat().st_size
        except FileNotFoundError:
            return 0

    def total_bytes(self) -> int:
        """Bytes taken by blobs and by downloads under way."""
        total = 0
        for path in self.directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def put_bytes(self, data: bytes) -> BlobRef:
        """Stores `data`; durable when this returns.

        Raises:
            NodeError: The disk is full.
        """
        hashes = chunk_hashes(data)
        ref = BlobRef(id=_blob_id(len(data), hashes), num_bytes=len(data))
        if not self.has(ref.id):
            with temporary_file(self.directory) as file:
                file.write(data)
                self._finish(file, ref, hashes)
        return ref

    def put_file(self, path: Path) -> BlobRef:
        """Moves the file at `path` in; durable when this returns, and `path` is gone.

        Raises:
            NodeError: The disk is full; the file is still at `path`.
        """
        with path.open("rb") as file:
            num_bytes, hashes = _hash_file(file)
            ref = BlobRef(id=_blob_id(num_bytes, hashes), num_bytes=num_bytes)
            if not self.has(ref.id):
                with disk_errors(self.directory):
                    self._take(file, ref, hashes)
        path.unlink(missing_ok=True)
        return ref

    def header(self, blob_id: bytes) -> tuple[int, list[bytes]]:
        """Length in bytes and the SHA-256 of each chunk.

        Raises:
            KeyError: The blob is not here, or was damaged; a damaged one is deleted, to be fetched again.
        """
        try:
            num_bytes = self.path(blob_id).stat().st_size
        except FileNotFoundError as error:
            raise KeyError(blob_id.hex()) from error
        hashes = self._read_hashes(blob_id)
        if _blob_id(num_bytes, hashes) != blob_id:
            hashes = self._mend(blob_id)
        return num_bytes, hashes

    def read_chunk(self, blob_id: bytes, index: int) -> bytes:
        """One chunk, checked against its hash: a node never serves what its disk has spoilt.

        Raises:
            KeyError: The blob is not here, or its file was damaged; a damaged one is deleted, to be fetched again.
            IndexError: The blob has no such chunk.
        """
        _, hashes = self.header(blob_id)
        if not 0 <= index < len(hashes):
            raise IndexError(f"chunk {index} of {len(hashes)}")
        try:
            with self.path(blob_id).open("rb") as file:
                file.seek(index * CHUNK_BYTES)
                data = file.read(CHUNK_BYTES)
        except FileNotFoundError as error:
            raise KeyError(blob_id.hex()) from error
        if hashlib.sha256(data).digest() != hashes[index]:
            self._delete_damaged(blob_id)
            raise KeyError(f"{blob_id.hex()}: chunk {index} was damaged on disk")
        return data

    def read(self, blob_id: bytes) -> bytes:
        """The whole blob, each chunk checked; for small blobs.

        Raises:
            KeyError: The blob is not here, or was damaged.
        """
        _, hashes = self.header(blob_id)
        return b"".join(self.read_chunk(blob_id, index) for index in range(len(hashes)))

    def writer(self, ref: BlobRef, chunk_sha256s: Sequence[bytes]) -> "BlobWriter":
        """Starts or resumes a download. Two writers of one blob do no harm: both write the same bytes.

        Raises:
            RejectError: Length and hashes are not those of `ref` (rule BLOB).
            NodeError: The disk is full.
        """
        check_header(ref, ref.num_bytes, chunk_sha256s)
        hashes = list(chunk_sha256s)
        if not self.has(ref.id):
            self._write_hashes(ref.id, hashes)
        return BlobWriter(self, ref, hashes)

    def drop_spoilt(self, blob_id: bytes) -> None:
        """Deletes the blob if its file was damaged, so that it is fetched again; reads all of it."""
        with contextlib.suppress(KeyError):
            _, hashes = self.header(blob_id)
            for index in range(len(hashes)):
                self.read_chunk(blob_id, index)

    def delete(self, blob_id: bytes) -> None:
        """Forgets the blob and any download of it."""
        self.path(blob_id).unlink(missing_ok=True)
        self._partial(blob_id).unlink(missing_ok=True)
        self._chunks(blob_id).unlink(missing_ok=True)

    def _delete_damaged(self, blob_id: bytes) -> None:
        log.warning("A blob is damaged on this disk and is fetched again when it is needed: %s.", blob_id.hex())
        self.delete(blob_id)

    def _partial(self, blob_id: bytes) -> Path:
        return self.directory / (blob_id.hex() + _PARTIAL_SUFFIX)

    def _open_partial(self, blob_id: bytes) -> BinaryIO:
        self._partial(blob_id).touch(mode=0o600)
        return self._partial(blob_id).open("r+b")

    def _chunks(self, blob_id: bytes) -> Path:
        return self.directory / (blob_id.hex() + _CHUNKS_SUFFIX)

    def _read_hashes(self, blob_id: bytes) -> list[bytes]:
        try:
            data = self._chunks(blob_id).read_bytes()
        except FileNotFoundError:
            return []
        return [data[at : at + _HASH_BYTES] for at in range(0, len(data), _HASH_BYTES)]

    def _write_hashes(self, blob_id: bytes, hashes: Sequence[bytes]) -> None:
        path = self._chunks(blob_id)
        if not path.is_file():
            write_atomically(path, b"".join(hashes))

    def _mend(self, blob_id: bytes) -> list[bytes]:
        """Writes the hashes of a whole blob again; a blob that is not whole is deleted."""
        with self.path(blob_id).open("rb") as file:
            num_bytes, hashes = _hash_file(file)
        if _blob_id(num_bytes, hashes) != blob_id:
            self._delete_damaged(blob_id)
            raise KeyError(f"{blob_id.hex()} was damaged on disk")
        write_atomically(self._chunks(blob_id), b"".join(hashes))
        return hashes

    def _take(self, source: BinaryIO, ref: BlobRef, hashes: Sequence[bytes]) -> None:
        """Moves a file in, or copies it where it lies on another file system."""
        try:
            self._finish(source, ref, hashes)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            source.seek(0)
            with temporary_file(self.directory) as near:
                shutil.copyfileobj(source, near, CHUNK_BYTES)
                self._finish(near, ref, hashes)

    def _finish(self, source: BinaryIO, ref: BlobRef, hashes: Sequence[bytes]) -> None:
        """Gives a whole file its name, once its bytes and its hashes are durable."""
        self._write_hashes(ref.id, hashes)
        replace_with(source, self.path(ref.id))
        self._partial(ref.id).unlink(missing_ok=True)
        fsync_directory(self.directory)


class BlobWriter:
    """A download under way: chunks in any order, each checked before it is written."""

    def __init__(self, store: BlobStore, ref: BlobRef, chunk_sha256s: list[bytes]) -> None:
        self.ref = ref
        self._store = store
        self._hashes = chunk_sha256s
        self._missing: set[int] = set()
        self._file: BinaryIO | None = None
        if store.has(ref.id):
            return
        with disk_errors(store.directory):
            self._file = file = store._open_partial(ref.id)
            file.truncate(min(file.seek(0, os.SEEK_END), ref.num_bytes))
        file.seek(0)
        for index, expected in enumerate(chunk_sha256s):
            if hashlib.sha256(file.read(CHUNK_BYTES)).digest() != expected:
                self._missing.add(index)

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def missing(self) -> list[int]:
        """Indices of the chunks still to come, ascending."""
        return sorted(self._missing)

    def write_chunk(self, index: int, data: bytes) -> None:
        """Takes one chunk; one that is here already is left alone.

        Raises:
            RejectError: No such chunk, or not its bytes: the sender is to blame (rule BLOB).
            NodeError: The disk is full.
        """
        check_chunk(self.ref, self._hashes, index, data)
        if index not in self._missing:
            return
        if self._file is None:
            raise ValueError("the writer is closed")
        with disk_errors(self._store.directory):
            self._file.seek(index * CHUNK_BYTES)
            self._file.write(data)
            self._file.flush()
        self._missing.discard(index)

    def finish(self) -> BlobRef:
        """Makes the blob whole and durable, and closes the writer.

        Raises:
            ValueError: Chunks are missing.
            NodeError: The disk is full.
        """
        if self._missing:
            raise ValueError(f"{len(self._missing)} of {len(self._hashes)} chunks are missing")
        if self._file is not None:
            with disk_errors(self._store.directory):
                try:
                    self._store._finish(self._file, self.ref, self._hashes)
                except FileNotFoundError:
                    # Another writer of the same blob was first: the bytes are the same.
                    if not self._store.has(self.ref.id):
                        raise
        self.close()
        return self.ref

    def close(self) -> None:
        """Lets go of the partial file; a later writer goes on from it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _hash_file(file: BinaryIO) -> tuple[int, list[bytes]]:
    hashes: list[bytes] = []
    num_bytes = 0
    while data := file.read(CHUNK_BYTES):
        hashes.append(hashlib.sha256(data).digest())
        num_bytes += len(data)
    return num_bytes, hashes
