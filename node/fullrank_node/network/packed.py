"""MessagePack measured before it is unpacked: size, number of values, nesting.

hivemind unpacks what strangers send, recursively through extension types, before any validator sees it.
This walks over the bytes without building anything from them.
"""

from dataclasses import dataclass
from typing import Final, Literal

from fullrank_protocol.errors import RejectError, Rule

MAX_NESTING: Final = 6
"""Containers inside one another. A whole dictionary of records takes four."""

MAX_PACKED_BYTES: Final = 4 << 20
"""Largest packed value: no message of the DHT is larger."""

MAX_VALUES: Final = 65_536
"""Values in one packed value; 3000 records take about 12 000."""

UNPACKED_EXTENSIONS: Final = frozenset({0x40, 0x50})
"""Extension types whose content hivemind unpacks again: tuples and dictionaries."""


@dataclass(frozen=True, slots=True)
class _Form:
    """What a first byte announces.

    Attributes:
        content: What follows the head.
        width: Bytes of the length that follows; 0 when `size` is fixed.
        size: Bytes, or for containers values, that follow the head.
    """

    content: Literal["bytes", "extension", "array", "map"]
    width: int
    size: int = 0


def _forms() -> dict[int, _Form]:
    forms = {first: _Form("bytes", 0, 0) for first in (*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100))}
    forms |= {0x80 + size: _Form("map", 0, size) for size in range(16)}
    forms |= {0x90 + size: _Form("array", 0, size) for size in range(16)}
    forms |= {0xA0 + size: _Form("bytes", 0, size) for size in range(32)}
    numbers = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    forms |= {first: _Form("bytes", 0, size) for first, size in numbers.items()}
    forms |= {0xD4 + i: _Form("extension", 0, 1 << i) for i in range(5)}
    for i, width in enumerate((1, 2, 4)):
        forms[0xC4 + i] = _Form("bytes", width)
        forms[0xC7 + i] = _Form("extension", width)
        forms[0xD9 + i] = _Form("bytes", width)
    for i, width in enumerate((2, 4)):
        forms[0xDC + i] = _Form("array", width)
        forms[0xDE + i] = _Form("map", width)
    return forms


_FORMS: Final = _forms()


def check_packed(data: bytes) -> None:
    """Passes one packed value that may be unpacked.

    Raises:
        RejectError: SIZE or SCHEMA: it is large, deep, broken, or something follows it.
    """
    if len(data) > MAX_PACKED_BYTES:
        raise RejectError(Rule.SIZE, f"a packed value has {len(data)} bytes, at most {MAX_PACKED_BYTES} allowed")
    num_values = 0
    parts = [(data, 0)]  # Packed values to look at, and how deep each lies.
    while parts:
        num_values += _walk(*parts.pop(), parts)
        if num_values > MAX_VALUES:
            raise RejectError(Rule.SIZE, f"a packed value holds more than {MAX_VALUES} values")


def _walk(data: bytes, depth: int, parts: list[tuple[bytes, int]]) -> int:
    """Walks over one packed value and returns how many values it holds; those packed inside it go to `parts`."""
    at = num_values = 0
    to_come = [1]  # Values still to come, for each container that is open.
    while to_come:
        if not to_come[-1]:
            to_come.pop()
            continue
        to_come[-1] -= 1
        num_values += 1
        form, size, at = _head(data, at)
        if form.content in {"array", "map"}:
            to_come.append(size * (2 if form.content == "map" else 1))
        else:
            extension = data[at] if form.content == "extension" and at < len(data) else None
            start = at + (form.content == "extension")
            at = start + size
            if extension in UNPACKED_EXTENSIONS:
                parts.append((data[start:at], depth + len(to_come)))
        if at > len(data) or sum(to_come) > MAX_VALUES:
            raise RejectError(Rule.SCHEMA, "a packed value is cut short or announces too much")
        if depth + len(to_come) - 1 > MAX_NESTING:
            raise RejectError(Rule.SCHEMA, f"a packed value is nested more than {MAX_NESTING} deep")
    if at != len(data):
        raise RejectError(Rule.SCHEMA, f"{len(data) - at} bytes follow a packed value")
    return num_values


def _head(data: bytes, at: int) -> tuple[_Form, int, int]:
    """The form of the value at `at`, its size, and where its content begins."""
    form = _FORMS.get(data[at]) if at < len(data) else None
    if form is None:
        raise RejectError(Rule.SCHEMA, f"no packed value begins at byte {at} of {len(data)}")
    end = at + 1 + form.width
    size = int.from_bytes(data[at + 1 : end], "big") if form.width else form.size
    return form, size, end
