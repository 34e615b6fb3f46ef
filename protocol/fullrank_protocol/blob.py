"""Content addressing of large bytes: chunk hashes and the id over them (protocol section 10).

id = SHA-256 over (domain tag, number of bytes, SHA-256 of each 1 MiB chunk in order), each behind its length. Whoever
knows the reference can check the list of chunk hashes, and with the list every chunk on its own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fullrank_protocol.canonical import check_id, check_range, tagged_sha256, uint64
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.limits import CHUNK_BYTES, ID_BYTES, MAX_BLOB_BYTES
from fullrank_protocol.wire import objects_pb2 as wire

DOMAIN_TAG: Final = b"fullrank.v1.blob"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """The name of immutable bytes.

    Attributes:
        id: Hash over length and chunk hashes, 32 bytes.
        num_bytes: Length of the content.
    """

    id: bytes
    num_bytes: int

    @property
    def num_chunks(self) -> int:
        """Number of 1 MiB chunks; the last one may be shorter."""
        return num_chunks(self.num_bytes)

    def to_wire(self) -> wire.BlobRef:
        """The same as a message."""
        return wire.BlobRef(id=self.id, num_bytes=self.num_bytes)

    @classmethod
    def from_wire(cls, message: wire.BlobRef, *, what: str = "blob") -> "BlobRef":
        """Checks a message.

        Raises:
            RejectError: SCHEMA or SIZE.
        """
        check_id(message.id, what=f"the id of the {what}")
        check_range(message.num_bytes, 0, MAX_BLOB_BYTES, what=f"the number of bytes of the {what}", rule=Rule.SIZE)
        return cls(id=message.id, num_bytes=message.num_bytes)


def num_chunks(num_bytes: int) -> int:
    """Chunks of a blob of `num_bytes`; none for an empty one."""
    return -(-num_bytes // CHUNK_BYTES)


def chunk_size(num_bytes: int, index: int) -> int:
    """Length in bytes of chunk `index` of a blob of `num_bytes`."""
    return min(CHUNK_BYTES, num_bytes - index * CHUNK_BYTES)


def chunk_hashes(data: bytes) -> tuple[bytes, ...]:
    """SHA-256 of each chunk of `data`."""
    view = memoryview(data)
    return tuple(
        hashlib.sha256(view[start : start + CHUNK_BYTES]).digest() for start in range(0, len(data), CHUNK_BYTES)
    )


def blob_id(num_bytes: int, chunk_sha256s: Sequence[bytes]) -> bytes:
    """The id of a blob from its length and chunk hashes."""
    return tagged_sha256(DOMAIN_TAG, uint64(num_bytes), *chunk_sha256s)


def blob_ref(data: bytes) -> BlobRef:
    """The name of `data`."""
    return BlobRef(id=blob_id(len(data), chunk_hashes(data)), num_bytes=len(data))


def check_header(ref: BlobRef, num_bytes: int, chunk_sha256s: Sequence[bytes]) -> None:
    """Refuses a peer's length and list of chunk hashes unless `ref` names exactly them.

    Raises:
        RejectError: BLOB.
    """
    if num_bytes != ref.num_bytes:
        raise RejectError(Rule.BLOB, f"blob {ref.id.hex()} is offered with {num_bytes} bytes, {ref.num_bytes} required")
    if len(chunk_sha256s) != ref.num_chunks:
        raise RejectError(
            Rule.BLOB, f"blob {ref.id.hex()} is offered with {len(chunk_sha256s)} chunks, {ref.num_chunks} required"
        )
    if any(len(digest) != ID_BYTES for digest in chunk_sha256s) or blob_id(num_bytes, chunk_sha256s) != ref.id:
        raise RejectError(Rule.BLOB, f"the chunk hashes offered for blob {ref.id.hex()} are not its own")


def check_chunk(ref: BlobRef, chunk_sha256s: Sequence[bytes], index: int, data: bytes) -> None:
    """Refuses `data` unless it is chunk `index`; the list of hashes must have passed `check_header`.

    Raises:
        RejectError: BLOB.
    """
    if not 0 <= index < ref.num_chunks:
        raise RejectError(Rule.BLOB, f"blob {ref.id.hex()} has no chunk {index}: it has {ref.num_chunks}")
    size = chunk_size(ref.num_bytes, index)
    if len(data) != size:
        raise RejectError(Rule.BLOB, f"chunk {index} of blob {ref.id.hex()} has {len(data)} bytes, {size} required")
    if hashlib.sha256(data).digest() != chunk_sha256s[index]:
        raise RejectError(Rule.BLOB, f"chunk {index} of blob {ref.id.hex()} has the wrong hash")
