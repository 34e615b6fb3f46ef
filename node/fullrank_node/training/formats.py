"""Rows of training data: what one line says, and which part of it is to be learned.

A row never trains on what its format marks as somebody else's words: prompts, instructions and user
turns are context, completions and assistant turns are targets.

Formats, recognised row by row by their keys, in this order:
    messages                        [{"role", "content"}, ...]
    conversations                   [{"from", "value"}, ...] (human, gpt, system) or role/content
    prompt, completion              two texts, or two lists of messages
    instruction[, input], output    one user turn and one assistant turn
    question, answer                one user turn and one assistant turn
    text                            a document; all of it is learned
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
}


class RowError(ValueError):
    """A single row is unusable; the text says what was found and what was required."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A part of a row: who speaks, what is said, and whether it is to be learned."""

    role: str
    """`text` in a document, `prompt` or `completion` in a pair, else `system`, `user`, `assistant` or `tool`."""
    text: str
    learn: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A usable row.

    Attributes:
        turns: In reading order; at least one of them is to be learned.
        is_chat: Whether a chat template applies to it.
        is_complete: False where the document goes on in the next row (sections of a plain text file).
    """

    line: int
    format: str
    turns: tuple[Turn, ...]
    is_chat: bool = False
    is_complete: bool = True

    def content_hash(self) -> int:
        """64 bits that depend on the row's words only: equal rows always land in the same part."""
        words = json.dumps([[turn.role, turn.text] for turn in self.turns], ensure_ascii=True).encode()
        return int.from_bytes(hashlib.sha256(words).digest()[:8], "big")


def parse_row(value: object, *, line: int) -> Row:
    """Turn one decoded JSON value into a row.

    Raises:
        RowError: When the value is no object, has no known format, or has nothing to learn.
    """
    if not isinstance(value, Mapping):
        raise RowError(f"found {_kind(value)}, required a JSON object")
    for keys, name, parse in _FORMATS:
        if all(key in value for key in keys):
            turns, is_chat = parse(value)
            turns = tuple(turn for turn in turns if turn.text)
            if not any(turn.learn and turn.text.strip() for turn in turns):
                raise RowError(f"{name}: nothing to learn (the part to be learned is empty)")
            return Row(line=line, format=name, turns=turns, is_chat=is_chat)
    found = ", ".join(sorted(str(key) for key in value)[:6]) or "no keys"
    raise RowError(
        f"found keys {found}; required text, prompt/completion, messages, conversations or instruction/output"
    )


_Parsed = tuple[tuple[Turn, ...], bool]


def _messages(row: Mapping[str, Any]) -> _Parsed:
    return _turns(row["messages"], name="messages"), True


def _conversations(row: Mapping[str, Any]) -> _Parsed:
    return _turns(row["conversations"], name="conversations"), True


def _pair(row: Mapping[str, Any]) -> _Parsed:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        context = _turns(prompt, name="prompt")
        context = tuple(Turn(role=turn.role, text=turn.text, learn=False) for turn in context)
        return context + _turns(completion, name="completion"), True
    prompt_turn = Turn(role="prompt", text=_text(prompt, name="prompt"), learn=False)
    return (prompt_turn, Turn(role="completion", text=_text(completion, name="completion"), learn=True)), False


def _instruction(row: Mapping[str, Any]) -> _Parsed:
    request = _text(row["instruction"], name="instruction")
    if extra := _text(row.get("input") or "", name="input"):
        request = f"{request}\n\n{extra}"
    return _exchange(request, _text(row["output"], name="output"))


def _question(row: Mapping[str, Any]) -> _Parsed:
    return _exchange(_text(row["question"], name="question"), _text(row["answer"], name="answer"))


def _document(row: Mapping[str, Any]) -> _Parsed:
    return (Turn(role="text", text=_text(row["text"], name="text"), learn=True),), False


def _exchange(request: str, reply: str) -> _Parsed:
    return (Turn(role="user", text=request, learn=False), Turn(role="assistant", text=reply, learn=True)), True


def _turns(value: object, *, name: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{name}: found {_kind(value)}, required a list of messages that is not empty")
    turns: list[Turn] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping):
            raise RowError(f"{name}, message {number}: found {_kind(message)}, required an object")
        speaker = message.get("role", message.get("from"))
        role = _ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            raise RowError(f"{name}, message {number}: found role {speaker!r}, required one of {', '.join(_ROLES)}")
        content = message.get("content", message.get("value"))
        turns.append(Turn(role=role, text=_text(content, name=f"{name}, message {number}"), learn=role == "assistant"))
    return tuple(turns)


def _text(value: object, *, name: str) -> str:
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        raise RowError(f"{name}: found {_kind(value)}, required a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair; no tokenizer takes it.
        raise RowError(f"{name}: half a surrogate pair at character {error.start}") from error
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(type(value), "a number")


_FORMATS: tuple[tuple[tuple[str, ...], str, Callable[[Mapping[str, Any]], _Parsed]], ...] = (
    (("messages",), "messages", _messages),
    (("conversations",), "conversations", _conversations),
    (("prompt", "completion"), "prompt/completion", _pair),
    (("instruction", "output"), "instruction/output", _instruction),
    (("question", "answer"), "question/answer", _question),
    (("text",), "text", _document),
)
