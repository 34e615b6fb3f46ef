"""Blobs are named by their content, chunk by chunk."""

import hashlib
import struct

import pytest
from swarms import id_of

from fullrank_protocol.blob import (
    BlobRef,
    blob_id,
    blob_ref,
    check_chunk,
    check_header,
    chunk_hashes,
    chunk_size,
)
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.limits import CHUNK_BYTES, MAX_BLOB_BYTES
from fullrank_protocol.wire import objects_pb2 as wire

DATA = bytes(range(256)) * 4096 * 2 + b"tail"  # Two whole chunks and 4 bytes.


def test_an_id_is_the_hash_over_length_and_chunk_hashes_written_out_by_hand() -> None:
    tag = b"fullrank.v1.blob"
    chunk = hashlib.sha256(b"abc").digest()
    expected = struct.pack("<Q", len(tag)) + tag + struct.pack("<QQ", 8, 3) + struct.pack("<Q", 32) + chunk
    assert blob_ref(b"abc") == BlobRef(id=hashlib.sha256(expected).digest(), num_bytes=3)


def test_chunks_take_one_mebibyte_and_the_last_one_the_rest() -> None:
    ref = blob_ref(DATA)
    assert ref.num_bytes == 2 * CHUNK_BYTES + 4
    assert ref.num_chunks == 3
    assert [chunk_size(ref.num_bytes, i) for i in range(3)] == [CHUNK_BYTES, CHUNK_BYTES, 4]
    assert chunk_hashes(DATA)[2] == hashlib.sha256(b"tail").digest()


def test_an_empty_blob_has_no_chunks() -> None:
    assert chunk_hashes(b"") == ()
    assert blob_ref(b"").num_chunks == 0


def test_a_whole_number_of_chunks_has_no_empty_last_chunk() -> None:
    assert blob_ref(DATA[: 2 * CHUNK_BYTES]).num_chunks == 2


def test_an_honest_header_and_its_chunks_pass() -> None:
    ref, hashes = blob_ref(DATA), chunk_hashes(DATA)
    check_header(ref, len(DATA), hashes)
    for i in range(3):
        check_chunk(ref, hashes, i, DATA[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES])


def test_a_header_with_another_length_count_or_hash_is_refused() -> None:
    ref, hashes = blob_ref(DATA), chunk_hashes(DATA)
    for num_bytes, found, words in [
        (len(DATA) + 1, hashes, "offered with 2097157 bytes, 2097156 required"),
        (len(DATA), hashes[:2], "offered with 2 chunks, 3 required"),
        (len(DATA), (*hashes[:2], id_of("other")), "not its own"),
        (len(DATA), (hashes[1], hashes[0], b""), "not its own"),
    ]:
        with pytest.raises(RejectError, match=words) as caught:
            check_header(ref, num_bytes, found)
        assert caught.value.rule is Rule.BLOB


def test_a_truncated_a_changed_and_a_surplus_chunk_are_refused() -> None:
    ref, hashes = blob_ref(DATA), chunk_hashes(DATA)
    for index, data, words in [
        (2, b"tai", "has 3 bytes, 4 required"),
        (2, b"tali", "wrong hash"),
        (3, b"", "has no chunk 3: it has 3"),
        (-1, b"tail", "has no chunk -1"),
    ]:
        with pytest.raises(RejectError, match=words) as caught:
            check_chunk(ref, hashes, index, data)
        assert caught.value.rule is Rule.BLOB


def test_length_is_part_of_the_name() -> None:
    hashes = chunk_hashes(b"abc")
    assert blob_id(3, hashes) != blob_id(4, hashes)


def test_a_reference_survives_the_wire() -> None:
    ref = blob_ref(b"abc")
    assert BlobRef.from_wire(ref.to_wire()) == ref


def test_a_reference_with_a_short_id_or_an_absurd_length_is_refused() -> None:
    with pytest.raises(RejectError, match="has 31 bytes, 32 required"):
        BlobRef.from_wire(wire.BlobRef(id=bytes(31), num_bytes=1))
    with pytest.raises(RejectError, match="number of bytes of the delta") as caught:
        BlobRef.from_wire(wire.BlobRef(id=bytes(32), num_bytes=MAX_BLOB_BYTES + 1), what="delta")
    assert caught.value.rule is Rule.SIZE
