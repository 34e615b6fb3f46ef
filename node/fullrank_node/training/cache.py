"""The data cache: tokenised blocks in one file, read a few rows at a time.

Made once for a data file, a tokenizer and a block length; made again when one of them has changed.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fullrank_node.files import write_atomically
from fullrank_node.training.blocks import Blocks, pack
from fullrank_node.training.data import MAX_REPORTED_ROWS, BadRow, DataError, load_rows
from fullrank_node.training.encoding import Tokenizer, encode_rows, pad_token_of
from fullrank_node.training.formats import Row

_VERSION = "fullrank-blocks-1"
"""Goes up when the meaning of a cache changes: older ones are made again."""

PARTS = ("train", "valid")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSummary:
    """What a cache holds, and which rows it leaves out.

    Attributes:
        num_rows: Usable training rows.
        num_blocks: Training blocks.
        num_tokens: Tokens of the training blocks that are learned.
        num_valid_blocks: Held-out blocks; 0 when the data is too small to hold any out.
        num_skipped: Rows left out; `skipped` lists the first of them.
        skipped: (line, reason).
        fingerprint: Names the source, the tokenizer and the options, hex.
    """

    num_rows: int
    num_blocks: int
    num_tokens: int
    num_valid_rows: int
    num_valid_blocks: int
    num_skipped: int
    skipped: list[tuple[int, str]]
    fingerprint: str


class BlockSource(Protocol):
    """Where training reads its blocks: a cache, or what stands for one."""

    @property
    def summary(self) -> CacheSummary:
        """What it holds."""

    def read(self, part: str, rows: npt.NDArray[np.int64]) -> Blocks:
        """Read some blocks of a part, in the order given."""


class BlockCache:
    """An open cache file.

    Attributes:
        summary: What it holds.
    """

    def __init__(self, path: Path) -> None:
        """Open a cache.

        Raises:
            DataError: When the file is missing or is no cache of this version.
        """
        try:
            self._file = safe_open(path, framework="numpy")
            metadata = self._file.metadata() or {}  # type: ignore[no-untyped-call]
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot read the data cache {path}: {error}", hint="Prepare the data again.") from error
        if metadata.get("version") != _VERSION:
            raise DataError(
                f"{path} is {metadata.get('version', 'no data cache')}, required {_VERSION}",
                hint="Prepare the data again.",
            )
        self.summary = CacheSummary(**json.loads(metadata["summary"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]

    def size(self, part: str) -> int:
        """Blocks in `train` or `valid`."""
        return self.summary.num_blocks if part == "train" else self.summary.num_valid_blocks

    def read(self, part: str, rows: npt.NDArray[np.int64]) -> Blocks:
        """Read some blocks of a part, in the order given."""
        tokens = self._file.get_slice(f"{part}.tokens")  # type: ignore[no-untyped-call]
        flags = self._file.get_slice(f"{part}.flags")  # type: ignore[no-untyped-call]
        return Blocks(
            tokens=np.concatenate([tokens[int(row) : int(row) + 1] for row in rows]),
            flags=np.concatenate([flags[int(row) : int(row) + 1] for row in rows]),
        )


def build_cache(
    path: Path,
    tokenizer: Tokenizer,
    *,
    tokenizer_id: str,
    block_length: int,
    valid_fraction: float,
    cache_path: Path,
    valid_path: Path | None = None,
) -> CacheSummary:
    """Tokenise and pack a data file into `cache_path`, unless the cache is there and still right.

    `tokenizer_id` must change whenever the tokenizer does.

    Raises:
        DataError: When the data cannot be read, or nothing in it can be learned.
    """
    fingerprint = _fingerprint(path, valid_path, tokenizer_id, _VERSION, str(block_length), repr(valid_fraction))
    if cache_path.exists():
        try:
            with BlockCache(cache_path) as cache:
                if cache.summary.fingerprint == fingerprint:
                    return cache.summary
        except DataError:
            cache_path.unlink(missing_ok=True)
    rows = load_rows(path, valid_path=valid_path, valid_fraction=valid_fraction)
    train, skipped = make_blocks(rows.train, tokenizer, block_length=block_length)
    valid, skipped_valid = make_blocks(rows.valid, tokenizer, block_length=block_length)
    bad = sorted(rows.skipped + skipped + skipped_valid, key=lambda row: row.line)
    if not len(train):
        raise DataError(
            f"nothing to learn in {path}"
            + "".join(f"; line {row.line}: {row.reason}" for row in bad[:MAX_REPORTED_ROWS]),
            problems=tuple(bad),
            hint=f"A row must have at least one answer within {block_length} tokens.",
        )
    summary = CacheSummary(
        num_rows=len(rows.train) - len(skipped),
        num_blocks=len(train),
        num_tokens=train.num_targets,
        num_valid_rows=len(rows.valid) - len(skipped_valid),
        num_valid_blocks=len(valid),
        num_skipped=len(bad),
        skipped=[(row.line, row.reason) for row in bad[:MAX_REPORTED_ROWS]],
        fingerprint=fingerprint,
    )
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, blocks in zip(PARTS, (train, valid), strict=True):
        arrays |= {f"{name}.tokens": blocks.tokens, f"{name}.flags": blocks.flags}
    metadata = {"version": _VERSION, "summary": json.dumps(asdict(summary))}
    cache_path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cache_path, cast("bytes", save(arrays, metadata=metadata)))
    return summary


def make_blocks(rows: list[Row], tokenizer: Tokenizer, *, block_length: int) -> tuple[Blocks, list[BadRow]]:
    """Tokenise and pack rows; also which of them this tokenizer cannot take."""
    documents, unusable = encode_rows(rows, tokenizer)
    blocks = pack(documents, block_length=block_length, pad_token=pad_token_of(tokenizer))
    return blocks, [BadRow(line=line, reason=reason) for line, reason in unusable]


def _fingerprint(path: Path, valid_path: Path | None, *options: str) -> str:
    """Names the files as they are now (path, size, time of change) and every option."""
    sources = [path, *sorted(path.glob("*.jsonl"))] if path.is_dir() else [path]
    if valid_path is not None:
        sources.append(valid_path)
    parts: list[str] = list(options)
    for source in sources:
        if source.is_file():
            facts = source.stat()
            parts += [str(source.resolve()), str(facts.st_size), str(facts.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
