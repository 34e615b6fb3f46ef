"""zstd frames put together by hand (RFC 8878, section 3.1), to say what no compressor would write."""

import struct
from collections.abc import Iterable
from typing import Final

MAGIC: Final = 0xFD2FB528

LARGEST_BLOCK: Final = 128 << 10
"""Most bytes that a block may give."""

RAW, RLE, COMPRESSED, RESERVED = range(4)
"""Types of block."""


def block(kind: int, content: bytes, size: int, *, last: bool = False) -> bytes:
    """A block that says it has, or gives, `size` bytes."""
    return struct.pack("<I", size << 3 | kind << 1 | last)[:3] + content


def raw(content: bytes, *, last: bool = False) -> bytes:
    """A block of bytes as they are."""
    return block(RAW, content, len(content), last=last)


def repeated(num_bytes: int, octet: int = 0) -> bytes:
    """Blocks that give one byte so often, four bytes each; the last is the frame's last."""
    whole, rest = divmod(num_bytes, LARGEST_BLOCK)
    one = bytes([octet])
    return block(RLE, one, LARGEST_BLOCK) * whole + block(RLE, one, rest, last=True)


def frame(
    blocks: bytes | Iterable[bytes],
    *,
    content_size: int,
    window_log: int | None = None,
    dictionary: int = 0,
    checksum: bytes = b"",
    reserved: bool = False,
    magic: int = MAGIC,
) -> bytes:
    """A frame that states `content_size` in 8 bytes, and a window of 2^`window_log` bytes, or else has no window."""
    descriptor = 0xC0 | (window_log is None) << 5 | reserved << 3 | bool(checksum) << 2 | bool(dictionary)
    head = struct.pack("<IB", magic, descriptor)
    head += b"" if window_log is None else bytes([(window_log - 10) << 3])
    head += bytes([dictionary]) if dictionary else b""
    return (
        head + struct.pack("<Q", content_size) + b"".join([blocks] if isinstance(blocks, bytes) else blocks) + checksum
    )


def skippable(content: bytes, *, size: int | None = None) -> bytes:
    """A frame that decoders pass over, and that says it has `size` bytes."""
    return struct.pack("<II", 0x184D2A50, len(content) if size is None else size) + content
