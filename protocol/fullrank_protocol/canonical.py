"""Bytes in exactly one form, and the checks that every payload shares (protocol section 2)."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.limits import ID_BYTES, MAX_TIME_MS

MessageT = TypeVar("MessageT", bound=Message)

_HIDDEN_CHARACTERS = frozenset(
    [
        *range(0x20),
        *range(0x7F, 0xA0),  # C0 and C1 controls
        0xAD,  # soft hyphen
        0x061C,
        *range(0x200B, 0x2010),  # zero-width and direction marks
        *range(0x2028, 0x202F),  # line separators and direction embeddings
        *range(0x2060, 0x2070),
        0xFEFF,
    ]
)
"""Characters that could hide or reorder what a person reads. A fixed list: Unicode tables differ between Pythons."""


def length_prefixed(tag: bytes, *fields: bytes) -> bytes:
    """Joins `tag` and `fields`, each behind its length as 8 bytes little-endian, so that no two inputs collide."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in (tag, *fields))


def tagged_sha256(tag: bytes, *fields: bytes) -> bytes:
    """SHA-256 of `length_prefixed(tag, *fields)`."""
    return hashlib.sha256(length_prefixed(tag, *fields)).digest()


def uint32(number: int) -> bytes:
    """`number` as 4 bytes little-endian."""
    return struct.pack("<I", number)


def uint64(number: int) -> bytes:
    """`number` as 8 bytes little-endian."""
    return struct.pack("<Q", number)


def canonical_bytes(message: Message) -> bytes:
    """The one accepted encoding of `message`: fields ascending, defaults omitted."""
    return message.SerializeToString(deterministic=True)


def parse_canonical(message_class: type[MessageT], data: bytes, *, what: str) -> MessageT:
    """Parses `data`, which must be the canonical encoding of a message without unknown fields.

    Raises:
        RejectError: SCHEMA, whatever is wrong with the bytes.
    """
    message = message_class()
    try:
        message.ParseFromString(data)
        message.DiscardUnknownFields()
        again = canonical_bytes(message)
    except (DecodeError, RecursionError, ValueError) as error:  # UnicodeDecodeError is a ValueError.
        # Without the library's words: they differ from one version to the next.
        raise RejectError(Rule.SCHEMA, f"{what} of {len(data)} bytes does not parse") from error
    if again != data:
        raise RejectError(Rule.SCHEMA, f"{what} of {len(data)} bytes is not in canonical form")
    return message


def require_present(message: Message, fields: Iterable[str], *, what: str) -> None:
    """Refuses `message` when one of its message-valued `fields` is absent."""
    for field in fields:
        if not message.HasField(field):
            raise RejectError(Rule.SCHEMA, f"{what} has no {field}")


def check_length(value: bytes, num_bytes: int, *, what: str) -> bytes:
    """Returns `value` when it has exactly `num_bytes` bytes."""
    if len(value) != num_bytes:
        raise RejectError(Rule.SCHEMA, f"{what} has {len(value)} bytes, {num_bytes} required")
    return value


def check_id(value: bytes, *, what: str) -> bytes:
    """Returns `value` when it has the length of an id."""
    return check_length(value, ID_BYTES, what=what)


def check_range(value: int, low: int, high: int, *, what: str, rule: Rule = Rule.SCHEMA) -> int:
    """Returns `value` when low <= value <= high."""
    if not low <= value <= high:
        raise RejectError(rule, f"{what} is {value}, {low} to {high} required")
    return value


def check_time_ms(value: int, *, what: str) -> int:
    """Returns `value` when it is a time in milliseconds after 1970 and before the year 10000."""
    return check_range(value, 1, MAX_TIME_MS, what=what)


def check_text(value: str, max_bytes: int, *, what: str, empty: bool = True) -> str:
    """Returns `value` when it is short enough and holds no control or invisible characters."""
    size = len(value.encode())
    if size > max_bytes:
        raise RejectError(Rule.SCHEMA, f"{what} has {size} bytes, at most {max_bytes} required")
    if not value and not empty:
        raise RejectError(Rule.SCHEMA, f"{what} is empty")
    hidden = next((character for character in value if ord(character) in _HIDDEN_CHARACTERS), None)
    if hidden is not None:
        raise RejectError(Rule.SCHEMA, f"{what} holds the invisible character U+{ord(hidden):04X}")
    return value


def clip_text(value: str, max_bytes: int) -> str:
    """`value` without invisible characters, cut to `max_bytes` of UTF-8: what `check_text` accepts."""
    visible = "".join(" " if ord(character) in _HIDDEN_CHARACTERS else character for character in value)
    return visible.encode(errors="replace")[:max_bytes].decode(errors="ignore")


def check_ascending(values: Sequence[bytes] | Sequence[str] | Sequence[int], *, what: str) -> None:
    """Refuses `values` that are not strictly ascending; texts compare by code point, which is UTF-8 byte order."""
    for i in range(1, len(values)):
        if not values[i - 1] < values[i]:  # type: ignore[operator]
            raise RejectError(Rule.SCHEMA, f"{what} are not strictly ascending at position {i}")
