"""Integers of 2, 4 or 8 bits in bytes: the fast way is the described way (protocol section 6, codec 1)."""

import numpy as np
import pytest

from fullrank_protocol import packing
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.packing import Octets, pack, packed_size, unpack, width_needed


def some_integers(count: int, width: int) -> Octets:
    """int8 whose `width` highest bits are random and whose others are zero, seen as bytes."""
    lowest, highest = -(1 << (width - 1)), 1 << (width - 1)
    drawn = np.random.default_rng(count).integers(lowest, highest, size=count)
    return (drawn << (8 - width)).astype(np.int8).view(np.uint8)


def as_described(integers: Octets, width: int) -> bytes:
    """One after the other from the lowest bits of the first byte on."""
    whole = sum((int(each) >> (8 - width)) << (width * place) for place, each in enumerate(integers))
    return whole.to_bytes((len(integers) * width + 7) // 8, "little")


@pytest.mark.parametrize("width", packing.WIDTHS)
@pytest.mark.parametrize("block", [1, 3, 1 << 14])
def test_packed_as_described_and_back(width: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_BLOCK_OCTETS", block)
    for count in (*range(1, 18), 200):
        integers = some_integers(count, width)
        packed = pack(integers, width)
        assert packed.tobytes() == as_described(integers, width)
        assert len(packed) == packed_size(count, width)
        assert np.array_equal(unpack(packed, count, width), integers.view(np.int8))


def test_every_byte_has_its_integers() -> None:
    octets = np.arange(256, dtype=np.uint8)
    for width in packing.WIDTHS:
        integers = unpack(octets, 256 * 8 // width, width)
        assert pack(integers.view(np.uint8), width).tobytes() == octets.tobytes()
    assert unpack(np.array([0b11_10_01_00], np.uint8), 4, 2).tolist() == [0, 64, -128, -64]
    assert unpack(np.array([0x8F], np.uint8), 2, 4).tolist() == [-16, -128]


def test_unused_bits_that_are_set_are_refused() -> None:
    for width, count in ((2, 5), (2, 6), (2, 7), (4, 3)):
        packed = pack(some_integers(count, width), width).copy()
        unpack(packed, count, width)
        packed[-1] |= 0x80
        with pytest.raises(RejectError) as caught:
            unpack(packed, count, width)
        assert caught.value.rule == Rule.CODEC


def test_the_least_width_that_holds_all() -> None:
    for found, integers in ((2, [64, -64, 0]), (4, [64, -16]), (8, [64, 1]), (8, [-127]), (4, [112, -112])):
        assert width_needed(np.array(integers, np.int8).view(np.uint8)) == found


def test_what_is_unpacked_is_no_view_of_what_came() -> None:
    """The bytes of a whole frame would stay as long as any of its parts."""
    packed = np.zeros(8, np.uint8)
    for width in packing.WIDTHS:
        assert not np.shares_memory(unpack(packed, 8 * 8 // width, width), packed)
