"""Training data on disk: which files are read, which rows are unusable and why, which rows are held out.

Formats of a row are in `formats.py`; tokens and blocks are in `blocks.py`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.training.encoding import Tokenizer, encode_rows, preview_document
from fullrank_node.training.formats import Row, Turn, parse_row

MAX_REPORTED_ROWS = 20
"""Bad rows that an error message or a report lists; the rest is counted. A terminal holds about 20 lines."""

MIN_SECTION_CHARACTERS = 2_000
"""A plain text file is held out by sections of about this size: small enough that a short file has several."""

MAX_SECTION_CHARACTERS = 8_000
"""Longest section of a plain text file without a blank line: tokenisers slow down on very long strings."""


class DataError(NodeError):
    """Training data that cannot be used.

    Attributes:
        problems: What is wrong, row by row; empty when the file itself cannot be read.
    """

    def __init__(self, message: str, *, problems: "tuple[BadRow, ...]" = (), hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=ExitCode.CONFIG)
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that was left out."""

    line: int
    """Counted from 1, in the file as it lies on the disk."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a file or directory, divided into what is trained on and what is held out."""

    train: list[Row] = field(default_factory=list)
    valid: list[Row] = field(default_factory=list)
    skipped: list[BadRow] = field(default_factory=list)


def load_rows(path: Path, *, valid_path: Path | None = None, valid_fraction: float = 0.0) -> Rows:
    """Read a `.jsonl` or `.txt` file, or a directory with `train.jsonl` and perhaps `valid.jsonl`.

    Without a `valid_path` or `valid.jsonl`, a row is held out when the hash of its content falls below
    `valid_fraction`: the same rows whatever their order, on every machine. Unusable rows are left out and listed.

    Raises:
        DataError: When nothing can be read, or no row is usable.
    """
    train_path, found_valid_path = _locate(path)
    valid_path = valid_path or found_valid_path
    train, skipped = _read(train_path)
    valid: list[Row] = []
    if valid_path is not None:
        valid, skipped_valid = _read(valid_path)
        skipped += [BadRow(line=bad.line, reason=f"{valid_path.name}: {bad.reason}") for bad in skipped_valid]
    if not train:
        raise DataError(
            f"no usable row in {train_path}" + _listed(skipped),
            problems=tuple(skipped),
            hint="Each line of a .jsonl file is one JSON object with text, prompt/completion, messages, "
            "conversations or instruction/output.",
        )
    if valid_path is None and valid_fraction > 0:
        train, valid = _hold_out(train, fraction=valid_fraction)
    return Rows(train=train, valid=valid, skipped=skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What `fullrank data check` prints.

    Attributes:
        formats: Rows by format.
        num_tokens: Tokens of the training rows; None without a tokenizer.
        num_targets: How many of them are learned.
        preview: The first row in pieces, each with whether it is learned, as the tokenizer sees it.
    """

    formats: dict[str, int]
    num_rows: int
    num_valid_rows: int
    skipped: list[BadRow]
    num_tokens: int | None = None
    num_targets: int | None = None
    preview: tuple[tuple[str, bool], ...] = ()


def check_data(path: Path, tokenizer: Tokenizer | None = None, *, valid_fraction: float = 0.0) -> DataReport:
    """Read everything as training would and say what is there.

    Raises:
        DataError: When nothing can be read, or no row is usable.
    """
    rows = load_rows(path, valid_fraction=valid_fraction)
    formats = dict(Counter(row.format for row in rows.train + rows.valid))
    counts = {"num_rows": len(rows.train), "num_valid_rows": len(rows.valid)}
    if tokenizer is None:
        preview = tuple((turn.text, turn.learn) for turn in rows.train[0].turns)
        return DataReport(formats=formats, skipped=rows.skipped, preview=preview, **counts)
    documents, unusable = encode_rows(rows.train, tokenizer)
    skipped = rows.skipped + [BadRow(line=line, reason=reason) for line, reason in unusable]
    return DataReport(
        formats=formats,
        skipped=sorted(skipped, key=lambda bad: bad.line),
        num_tokens=sum(document.tokens.size for document in documents),
        num_targets=sum(int(document.targets.sum()) for document in documents),
        preview=preview_document(documents[0], tokenizer) if documents else (),
        **counts,
    )


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The training file and, if there is one, the file of held-out rows."""
    if path.is_dir():
        train = path / "train.jsonl"
        if not train.is_file():
            raise DataError(
                f"no train.jsonl in the directory {path}", hint="Name the file train.jsonl or give its path."
            )
        valid = path / "valid.jsonl"
        return train, valid if valid.is_file() else None
    if not path.exists():
        raise DataError(
            f"no such data file: {path}", hint="Give a .jsonl or .txt file, or a directory with train.jsonl."
        )
    return path, None


def _read(path: Path) -> tuple[list[Row], list[BadRow]]:
    try:
        if path.suffix.lower() in {".txt", ".md"}:
            return list(_text_sections(path)), []
        return _read_lines(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}", hint="Convert it, for instance with iconv.") from error


def _read_lines(path: Path) -> tuple[list[Row], list[BadRow]]:
    rows: list[Row] = []
    skipped: list[BadRow] = []
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            content = raw.removeprefix(b"\xef\xbb\xbf").strip() if line == 1 else raw.strip()
            if not content:
                continue
            try:
                rows.append(parse_row(json.loads(content), line=line))
            except UnicodeDecodeError as error:
                skipped.append(BadRow(line=line, reason=f"not UTF-8 at byte {error.start}"))
            except json.JSONDecodeError as error:
                skipped.append(BadRow(line=line, reason=f"not JSON at column {error.colno}: {error.msg}"))
            except RecursionError:
                skipped.append(BadRow(line=line, reason="JSON nested too deeply"))
            except ValueError as error:  # RowError, or a number of thousands of digits.
                skipped.append(BadRow(line=line, reason=str(error)))
    return rows, skipped


def _text_sections(path: Path) -> Iterator[Row]:
    """One document in sections that end at blank lines, so that a part of it can be held out."""
    sections: list[tuple[int, str]] = []
    lines: list[str] = []
    size, start = 0, 1
    with path.open(encoding="utf-8-sig", newline=None) as file:
        for number, text in enumerate(file, start=1):
            lines.append(text)
            size += len(text)
            is_end = (size >= MIN_SECTION_CHARACTERS and not text.strip()) or size >= MAX_SECTION_CHARACTERS
            if is_end:
                sections.append((start, "".join(lines)))
                lines, size, start = [], 0, number + 1
    if lines:
        sections.append((start, "".join(lines)))
    sections = [(line, text) for line, text in sections if text.strip()]
    for index, (line, text) in enumerate(sections):
        turn = Turn(role="text", text=text, learn=True)
        yield Row(line=line, format="plain text", turns=(turn,), is_complete=index == len(sections) - 1)


def _hold_out(rows: list[Row], *, fraction: float) -> tuple[list[Row], list[Row]]:
    threshold = int(fraction * 2**64)
    valid = [row for row in rows if row.content_hash() < threshold]
    train = [row for row in rows if row.content_hash() >= threshold]
    if not train:  # A handful of rows: learning comes first.
        return rows, []
    return train, valid


def _listed(problems: list[BadRow]) -> str:
    if not problems:
        return ": it is empty"
    shown = "; ".join(f"line {bad.line}: {bad.reason}" for bad in problems[:MAX_REPORTED_ROWS])
    more = len(problems) - MAX_REPORTED_ROWS
    return f": {shown}" + (f"; and {more} more" if more > 0 else "")
