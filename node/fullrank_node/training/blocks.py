"""Blocks: documents of tokens share blocks of one length.

Documents in one block do not see each other: their positions start anew, and the attention mask
follows the positions.

Shape legend: N blocks, T tokens in a block.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IS_TARGET = 1
"""Flag bit: the token is to be predicted from the tokens before it."""
IS_START = 2
"""Flag bit: first token of a document (or of a piece of one); nothing before it is its context."""

Int32Array = npt.NDArray[np.int32]
FlagArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The tokens of one row.

    Attributes:
        targets: True where the token is to be learned, same length as `tokens`.
    """

    tokens: Int32Array
    targets: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Equal blocks of tokens, ready for a model.

    Attributes:
        tokens: Token ids, int32, shape (N, T).
        flags: IS_TARGET and IS_START bits, uint8, shape (N, T).
    """

    tokens: Int32Array
    flags: FlagArray

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def num_targets(self) -> int:
        """Tokens that a pass over all blocks predicts."""
        return int((self.flags[:, 1:] & IS_TARGET).sum())

    def positions(self) -> Int32Array:
        """Position of every token in its own document, from 0."""
        index_T = np.arange(self.flags.shape[1], dtype=np.int32)
        starts_NT = np.where(self.flags & IS_START, index_T, 0).astype(np.int32)
        return index_T - np.maximum.accumulate(starts_NT, axis=1)


def pack(documents: Iterable[Document], *, block_length: int, pad_token: int) -> Blocks:
    """Put documents into blocks of `block_length` tokens, each wholly in one block where it fits.

    Longer documents are cut into pieces that overlap by one token, so that every token is predicted
    once. Pieces are placed best fit, longest first (Ding et al. 2024, arXiv:2404.10830): little padding,
    and few answers cut off from their questions. Pieces without a target are left out.
    """
    pieces = [piece for document in documents for piece in _pieces(document, block_length=block_length)]
    bins = _best_fit([piece.tokens.size for piece in pieces], capacity=block_length)
    tokens_NT = np.full((len(bins), block_length), pad_token, dtype=np.int32)
    flags_NT = np.zeros((len(bins), block_length), dtype=np.uint8)
    for row, members in enumerate(bins):
        column = 0
        for index in members:
            piece = pieces[index]
            end = column + piece.tokens.size
            tokens_NT[row, column:end] = piece.tokens
            flags_NT[row, column:end] = piece.targets.astype(np.uint8) * IS_TARGET
            flags_NT[row, column] = IS_START
            column = end
        if column < block_length:
            flags_NT[row, column] = IS_START
    return Blocks(tokens=tokens_NT, flags=flags_NT)


def _pieces(document: Document, *, block_length: int) -> Iterator[Document]:
    size = document.tokens.size
    for start in range(0, max(1, size - 1), block_length - 1):
        piece = slice(start, start + block_length)
        if document.targets[piece][1:].any():
            yield Document(tokens=document.tokens[piece], targets=document.targets[piece])


def _best_fit(sizes: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Bins of item indices; every item goes to the fullest bin that still takes it."""
    bins: list[list[int]] = []
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # By space left.
    spaces: list[int] = []  # Ascending: which of them are not empty.
    for index in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        size = sizes[index]
        slot = bisect_left(spaces, size)
        if slot == len(spaces):
            target, space = len(bins), capacity
            bins.append([])
        else:
            space = spaces[slot]
            target = open_bins[space].pop()
            if not open_bins[space]:
                spaces.pop(slot)
        bins[target].append(index)
        left = space - size
        if left:
            if not open_bins[left]:
                insort(spaces, left)
            open_bins[left].append(target)
    return bins
