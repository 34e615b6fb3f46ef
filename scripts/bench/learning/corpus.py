"""Texts as blocks of tokens, in three parts: to train on, to tune rates on, to test on.

Every text file is a domain. The last rows of a file are held out, so that neighbouring rows, which often come from
one document, are not on both sides: first the validation rows, then, where no test files are given, the test rows.

Shape legend: N blocks, T tokens in a block.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullrank_node.demo.texts import DOMAINS, write_texts
from fullrank_node.training.blocks import Blocks
from fullrank_node.training.cache import make_blocks
from fullrank_node.training.data import load_rows
from fullrank_node.training.formats import Row

HELD_OUT_SHARE = 0.1
"""Rows of each file for validation, and again for the test where no test files are given."""

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the texts of a corpus lie.

    Attributes:
        name: For people.
        train: One file a domain.
        test: Files of held-out rows; empty to take them from the training files.
        block_length: Tokens in one block.
        valid_blocks: Blocks that rates are tuned on, at most.
        test_blocks: Blocks that results are measured on, at most.
    """

    name: str
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    block_length: int
    valid_blocks: int
    test_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """All blocks of a benchmark.

    Attributes:
        name: Of the sources, with the digest of all that follows.
        train: Blocks to learn from.
        domains: For each of them, the number of the file that it comes from, shape (N,).
        valid: Blocks to tune rates on.
        test: Blocks to measure on.
    """

    name: str
    train: Blocks
    domains: Int64Array
    valid: Blocks
    test: Blocks


def embedded_sources(directory: Path, *, block_length: int, valid_blocks: int, test_blocks: int) -> Sources:
    """The demo's texts, all eight domains, written into `directory`; they follow the Python version."""
    texts = write_texts(directory, len(DOMAINS))
    return Sources(
        name=f"library code, {len(DOMAINS)} domains",
        train=texts.parts,
        test=(texts.heldout,),
        block_length=block_length,
        valid_blocks=valid_blocks,
        test_blocks=test_blocks,
    )


def read_corpus(sources: Sources, tokenizer: Any) -> Corpus:
    """Read, tokenise and pack everything.

    Raises:
        NodeError: A file cannot be read or holds no usable row.
        ValueError: A part has no block.
    """
    train: list[Blocks] = []
    valid_rows: list[Row] = []
    test_rows: list[Row] = [row for path in sources.test for row in load_rows(path).train]
    for path in sources.train:
        rows = load_rows(path).train
        held_out = max(1, round(HELD_OUT_SHARE * len(rows)))
        if not sources.test:
            test_rows += rows[-held_out:]
            rows = rows[:-held_out]
        valid_rows += rows[-held_out:]
        blocks, _ = make_blocks(rows[:-held_out], tokenizer, block_length=sources.block_length)
        train.append(blocks)
    valid, _ = make_blocks(valid_rows, tokenizer, block_length=sources.block_length)
    test, _ = make_blocks(test_rows, tokenizer, block_length=sources.block_length)
    for part, blocks in (("training", train[0]), ("validation", valid), ("test", test)):
        if not len(blocks):
            raise ValueError(f"{sources.name}: found no {part} block, required at least one")
    whole = Blocks(
        tokens=np.concatenate([blocks.tokens for blocks in train]),
        flags=np.concatenate([blocks.flags for blocks in train]),
    )
    domains = np.repeat(np.arange(len(train)), [len(blocks) for blocks in train])
    valid, test = some_of(valid, sources.valid_blocks), some_of(test, sources.test_blocks)
    return Corpus(
        name=f"{sources.name} ({_digest([whole, valid, test], domains)})",
        train=whole,
        domains=domains.astype(np.int64),
        valid=valid,
        test=test,
    )


def some_of(blocks: Blocks, at_most: int) -> Blocks:
    """So many of the blocks, evenly spread: packing leaves them sorted by the length of their documents."""
    wanted = min(len(blocks), at_most)
    rows = np.arange(wanted) * len(blocks) // max(wanted, 1)
    return Blocks(tokens=blocks.tokens[rows], flags=blocks.flags[rows])


def _digest(parts: Sequence[Blocks], domains: Int64Array) -> str:
    """Names the blocks: results of other texts, or of other tokens of the same texts, are not comparable."""
    digest = hashlib.sha256()
    for blocks in parts:
        digest.update(np.array(blocks.tokens.shape, dtype="<i8").tobytes())
        digest.update(blocks.tokens.astype("<i4").tobytes())
        digest.update(blocks.flags.tobytes())
    digest.update(domains.astype("<i8").tobytes())
    return digest.hexdigest()[:12]
