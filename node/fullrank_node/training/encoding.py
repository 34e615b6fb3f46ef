"""Rows become documents of tokens.

Decides how a row is written as text (the tokenizer's chat template, or the plain form below) and which
tokens are targets. One promise: nothing that a row says becomes a control token. Plain text is encoded
with control tokens split into ordinary ones; where a chat template needs real ones, a row that spells
one is left out.

The plain form, for chats where the tokenizer has no chat template:

    ### User
    What is 2 + 2?

    ### Assistant
    4
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import Any, Protocol, cast

import numpy as np

from fullrank_node.training.blocks import Document
from fullrank_node.training.formats import Row

_BATCH_ROWS = 256
"""Rows tokenised in one call: enough to keep a fast tokenizer busy, small enough to bound memory."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    is_fast: bool
    chat_template: Any
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    added_tokens_decoder: dict[int, Any]

    def __call__(self, text: Any, **options: Any) -> Any:
        """Encode one text or a list of texts."""

    def decode(self, token_ids: Any, **options: Any) -> str:
        """The text of token ids."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Write a conversation as the model expects it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A row as text, with the character ranges to learn."""

    row: Row
    text: str
    spans: tuple[tuple[int, int], ...]
    from_template: bool


def encode_rows(rows: Iterable[Row], tokenizer: Tokenizer) -> tuple[list[Document], list[tuple[int, str]]]:
    """Tokenise rows.

    Returns:
        The documents, and (line, reason) of rows that this tokenizer cannot take.

    Raises:
        ValueError: When the tokenizer cannot say which characters a token covers.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is required")
    control = [str(token) for token in tokenizer.added_tokens_decoder.values() if getattr(token, "special", False)]
    documents: list[Document] = []
    unusable: list[tuple[int, str]] = []

    def written() -> Iterator[_Written]:
        for row in rows:
            try:
                yield _write(row, tokenizer, control=control)
            except ValueError as error:
                unusable.append((row.line, str(error)))

    for _, group in groupby(written(), key=lambda item: item.from_template):
        while batch := list(islice(group, _BATCH_ROWS)):
            documents += _encode_batch(batch, tokenizer)
    return documents, unusable


def preview_document(document: Document, tokenizer: Tokenizer) -> tuple[tuple[str, bool], ...]:
    """A document in readable pieces, each with whether it is learned."""
    edges = np.flatnonzero(np.diff(document.targets)) + 1
    bounds = [0, *edges.tolist(), document.tokens.size]
    return tuple(
        (tokenizer.decode(document.tokens[start:end].tolist()), bool(document.targets[start]))
        for start, end in pairwise(bounds)
        if end > start
    )


def _write(row: Row, tokenizer: Tokenizer, *, control: Sequence[str]) -> _Written:
    if row.is_chat and tokenizer.chat_template:
        return _write_with_template(row, tokenizer, control=control)
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    position = 0
    for turn in row.turns:
        header = f"### {turn.role.capitalize()}\n" if row.is_chat else ""
        footer = "\n\n" if row.is_chat and turn is not row.turns[-1] else ""
        parts += [header, turn.text, footer]
        position += len(header)
        if turn.learn:
            spans.append((position, position + len(turn.text) + len(footer)))
        position += len(turn.text) + len(footer)
    return _Written(row=row, text="".join(parts), spans=tuple(spans), from_template=False)


def _write_with_template(row: Row, tokenizer: Tokenizer, *, control: Sequence[str]) -> _Written:
    """Write a chat by the tokenizer's template; what a learned turn adds to the text is its span.

    Raises:
        ValueError: When a turn contains a control token (it would be encoded as one), or the template
            rewrites earlier turns so that the last answer cannot be told apart.
    """
    for turn in row.turns:
        if found := next((token for token in control if token in turn.text), None):
            raise ValueError(f"the text contains the control token {found!r}")
    messages = [{"role": turn.role, "content": turn.text} for turn in row.turns]

    def render(count: int, *, prompt: bool = False) -> str:
        try:
            text = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # A template may raise anything, jinja2's own errors included.
            raise ValueError(f"the chat template refuses this conversation: {error}") from error
        return cast("str", text)

    whole = render(len(messages))
    spans: list[tuple[int, int]] = []
    for index, turn in enumerate(row.turns):
        if not turn.learn:
            continue
        after = render(index + 1)
        before = render(index, prompt=True) if index else ""
        if whole.startswith(after) and after.startswith(before) and len(after) > len(before):
            spans.append((len(before), len(after)))
    if not spans:
        raise ValueError("the chat template does not keep earlier turns as they are: no answer can be told apart")
    return _Written(row=row, text=whole, spans=tuple(spans), from_template=True)


def _encode_batch(batch: Sequence[_Written], tokenizer: Tokenizer) -> list[Document]:
    from_template = batch[0].from_template
    encoded = tokenizer(
        [item.text for item in batch],
        add_special_tokens=False,
        split_special_tokens=not from_template,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    begin, end = _frame(tokenizer)
    documents: list[Document] = []
    for item, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        tokens = np.array(ids, dtype=np.int32)
        targets = np.zeros(tokens.size, dtype=np.bool_)
        for first, last in item.spans:
            targets |= (starts < last) & (ends > first)  # Also a token that begins just before an answer.
        if not from_template:
            closes = item.row.is_complete and bool(item.spans) and item.spans[-1][1] == len(item.text)
            after = end if closes else []
            tokens = np.concatenate([begin, tokens, np.array(after, dtype=np.int32)]).astype(np.int32)
            targets = np.concatenate([np.zeros(len(begin), bool), targets, np.ones(len(after), bool)])
        documents.append(Document(tokens=tokens, targets=targets))
    return documents


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokens before and after a document: what the tokenizer itself puts first, and its end of text."""
    own = tokenizer("")["input_ids"]
    begin = [own[0]] if own and own[0] == tokenizer.bos_token_id else []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return begin, end


def pad_token_of(tokenizer: Tokenizer) -> int:
    """What fills the end of a block; never a target, and no document sees it."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
