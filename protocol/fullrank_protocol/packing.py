"""How integers of 2, 4 or 8 bits stand in bytes (protocol section 6, codec 1).

A packed array holds two's complement integers q of b bits, from the lowest bits of the first byte on; unused bits of
the last byte are zero. q stands for the integer q * 2^(8 - b), so the b highest bits of an int8 are what is packed,
and the others are zero.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.parts import Int8Array

Octets = npt.NDArray[np.uint8]

WIDTHS: Final = (2, 4, 8)
"""Bits of a packed integer; they divide a byte, so that entropy coding sees whole integers."""

_BLOCK_OCTETS: Final = 1 << 14
"""Packed bytes handled at a time: numbers in between take 8 times that, and stay in a core's second cache."""

_WORDS: Final[dict[int, np.dtype[np.unsignedinteger]]] = {2: np.dtype("<u4"), 4: np.dtype("<u2")}
"""Of a width, the entries that share a byte, seen as one word with the first entry in its lowest byte."""

_GATHERING: Final = {2: 1 | 1 << 6 | 1 << 12 | 1 << 18, 4: 1 | 1 << 4}
"""A word times this has the packed byte on top: each entry's bits arrive there once, and nothing carries over."""


def packed_size(num_entries: int, width: int) -> int:
    """Bytes of a packed array."""
    return (num_entries * width + 7) // 8


def width_needed(entries: Octets) -> int:
    """Least width whose integers stand for these, seen as bytes; they reach 64 and so need at least two bits."""
    used = int(np.bitwise_or.reduce(entries))
    return next(width for width in WIDTHS if used % (1 << (8 - width)) == 0)


def pack(entries: Octets, width: int) -> Octets:
    """Pack a contiguous vector of int8, seen as bytes, of which only the `width` highest bits are used."""
    if width == 8:
        return entries
    word = _WORDS[width]
    factor, shift = word.type(_GATHERING[width]), word.type(8 * (word.itemsize - 1))
    whole = len(entries) // word.itemsize
    packed = np.empty(packed_size(len(entries), width), dtype=np.uint8)
    words = entries[: whole * word.itemsize].view(word)
    for start in range(0, whole, _BLOCK_OCTETS):
        end = min(start + _BLOCK_OCTETS, whole)
        packed[start:end] = (words[start:end] * factor) >> shift
    if whole < len(packed):
        last = entries[whole * word.itemsize :]
        packed[whole] = sum(int(entry) >> (8 - width) << (width * place) for place, entry in enumerate(last))
    return packed


def unpack(packed: Octets, num_entries: int, width: int) -> Int8Array:
    """Unpack a vector of `packed_size` bytes.

    Raises:
        RejectError: CODEC, when an unused bit is set.
    """
    if width == 8:
        return packed.view(np.int8).copy()
    spread = _SPREAD[width]
    words = np.empty(len(packed), dtype=spread.dtype)
    for start in range(0, len(packed), _BLOCK_OCTETS):
        end = start + _BLOCK_OCTETS
        # Every byte is a place in the table, so nothing is clipped: NumPy then writes without a copy in between.
        spread.take(packed[start:end], out=words[start:end], mode="clip")
    flat = words.view(np.int8)
    if len(flat) > num_entries and flat[num_entries:].any():
        raise RejectError(
            Rule.CODEC, f"found set bits behind the {num_entries} entries of a packed array, required zeros"
        )
    return flat[:num_entries]


def _spread(width: int) -> npt.NDArray[np.unsignedinteger]:
    """For every byte, the integers packed in it, one a byte of a little-endian word."""
    octets = np.arange(256, dtype=np.uint32)
    highest = (1 << 8) - (1 << (8 - width))
    words = sum((octets >> width * place << (8 - width) & highest) << 8 * place for place in range(8 // width))
    return np.asarray(words).astype(f"<u{8 // width}")


_SPREAD: Final = {width: _spread(width) for width in (2, 4)}
