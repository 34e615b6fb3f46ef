"""The A factor that nobody sends: rows of +1 and -1 drawn from SHAKE-128 (protocol section 6)."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullrank_protocol.canonical import length_prefixed, uint64

_DOMAIN = b"fullrank.v1.seeded-a"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedContext:
    """Whose A, and for which period.

    Attributes:
        swarm: Swarm id, 32 bytes.
        member: The contributor's Ed25519 public key, 32 bytes.
        period: round of the base checkpoint div the genesis' period_rounds; 0 to 2^64 - 1.
    """

    swarm: bytes
    member: bytes
    period: int

    def __post_init__(self) -> None:
        if len(self.swarm) != 32 or len(self.member) != 32:
            raise ValueError(f"found ids of {len(self.swarm)} and {len(self.member)} bytes, required 32")
        if not 0 <= self.period < 1 << 64:
            raise ValueError(f"found period {self.period}, required 0 to 2^64 - 1")


def seeded_rows(context: SeedContext, module_name: str, *, rows: int, columns: int) -> npt.NDArray[np.int8]:
    """Draw the first rows of a member's A for one module.

    The stream is SHAKE-128 over the domain tag, swarm, member, UTF-8 module name and period (8 bytes,
    little-endian), each preceded by its length as 8 little-endian bytes. Bit i of the stream (the lowest
    bit of a byte first) decides entry i in row-major order: 1 is +1, 0 is -1. Rows are not padded, so a
    row may begin inside a byte, and the first rows do not depend on how many are drawn.

    Returns:
        int8 of shape (rows, columns).
    """
    if rows < 0 or columns < 1:
        raise ValueError(f"found {rows} rows of {columns} columns, required at least 0 rows of 1 column")
    stream = hashlib.shake_128(
        length_prefixed(_DOMAIN, context.swarm, context.member, module_name.encode(), uint64(context.period))
    )
    num_entries = rows * columns
    octets = np.frombuffer(stream.digest((num_entries + 7) // 8), dtype=np.uint8)
    bits = np.unpackbits(octets, count=num_entries, bitorder="little").astype(np.int8)
    return (2 * bits - 1).reshape(rows, columns)
