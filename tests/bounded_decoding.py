"""Decodes every file of a folder as a delta with so much memory and no more: `bounded_decoding.py FOLDER NUM_BYTES`.

The system refuses what goes beyond, also to zstd, which Python's own accounts do not see. What became of each file
comes out as JSON: the name of a rule, `decoded`, or `out of memory`.
"""

import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from fullrank_protocol.codec import CODEC_PACKED, decode
from fullrank_protocol.errors import RejectError
from fullrank_protocol.genesis import Limits, Module, ModuleKind

OUT_OF_MEMORY = "out of memory"

DECODED = "decoded"


LIMITS = Limits(
    max_delta_bytes=(16 << 20) + 1000, min_scale_exponent=-20, max_scale_exponent=0, max_checkpoint_bytes=10_000
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A genesis that allows 16 MiB, so much that every lie about it is far beyond."""

    modules: tuple[Module, ...] = (
        Module(name="bias", kind=ModuleKind.DENSE, out_features=1 << 22, in_features=1),
        Module(name="wide", kind=ModuleKind.LINEAR, out_features=1 << 18, in_features=1 << 10),
    )
    max_rank: int = 64
    codecs: tuple[int, ...] = (CODEC_PACKED,)
    limits: Limits = LIMITS


RULES = Rules()


def outcome(data: bytes, num_bytes: int) -> str:
    """What becomes of `data` where decoding may take `num_bytes` more than the process has already."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + num_bytes, hard))
    try:
        decode(data, RULES, CODEC_PACKED)
    except RejectError as error:
        # zstd's own words when it gets no memory; they would otherwise pass for a fault of the bytes.
        return OUT_OF_MEMORY if "Allocation error" in error.detail else error.rule.name
    except MemoryError:
        return OUT_OF_MEMORY
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return DECODED


def main() -> None:
    """Decode all files, each with a limit of its own."""
    folder, num_bytes = Path(sys.argv[1]), int(sys.argv[2])
    found = {path.name: outcome(path.read_bytes(), num_bytes) for path in sorted(folder.iterdir())}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
