"""Everything that is printed: plain text and JSON at once, colours and tables of `rich` only on a terminal.

Names and reasons come from strangers, so whatever is printed for people passes through `clean`.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fullrank_node.errors import NodeError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

JSON_VERSION = 1
"""Version of every object that `--json` prints: fields may be added, and never change their meaning under it."""

SHORT_KEY_DIGITS = 8
"""Digits of a key or id as shown: unlikely to be the same for two members of one swarm, short enough to read out."""

MAX_CELL_CHARACTERS = 160
"""Longest text of a stranger in one place on the screen."""


def clean(text: str, *, limit: int = MAX_CELL_CHARACTERS) -> str:
    """`text` without control characters (which could steer the terminal), cut to `limit` characters."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def short(key: bytes) -> str:
    """The first digits of a key or id."""
    return key.hex()[:SHORT_KEY_DIGITS]


def bytes_text(num_bytes: float) -> str:
    """A size as people say it, in powers of 1000: 412 MB."""
    size, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}" if unit != "B" and size < 9.95 else f"{size:.0f} {unit}"


def duration_text(milliseconds: int) -> str:
    """A duration as people say it: 45 s, 3 min, 2 h 10 min, 4 d 3 h."""
    seconds = milliseconds // 1000
    if seconds < 100:
        return f"{seconds} s"
    minutes = (seconds + 30) // 60
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def plural(count: int, noun: str) -> str:
    """A count with its noun: "1 round", "2 rounds"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


MAX_WORD_WIDTH = 24
"""Columns that one word may claim of a screen that has 80."""


# ---- JSON --------------------------------------------------------------------------------------


def print_json(fields: dict[str, Any]) -> None:
    """Prints one versioned object on standard output."""
    sys.stdout.write(json.dumps({"version": JSON_VERSION, **fields}, allow_nan=False) + "\n")


def plain(message: "Message") -> dict[str, Any]:
    """A reply as JSON knows it: keys and ids in hex, unset optional fields as null, states as lower-case words."""
    return {field.name: _plain_field(message, field) for field in message.DESCRIPTOR.fields}


def _plain_field(message: "Message", field: Any) -> Any:
    if field.is_repeated:
        return [_plain_value(field, item) for item in getattr(message, field.name)]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _plain_value(field, getattr(message, field.name))


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        name: str = field.enum_type.values_by_number[value].name
        return name.partition("_")[2].lower()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---- errors ------------------------------------------------------------------------------------


def print_error(error: NodeError, *, as_json: bool) -> None:
    """What happened on standard error, with the cure; with `as_json` one object on standard output."""
    if as_json:
        print_json({"error": error_fields(error)})
        return
    lines = [f"error: {_clean_lines(str(error))}"]
    if error.hint:
        lines.append(f"hint: {_clean_lines(error.hint)}")
    sys.stderr.write("\n".join(lines) + "\n")


def error_fields(error: NodeError) -> dict[str, Any]:
    """An error as JSON knows it."""
    return {"message": str(error), "hint": error.hint, "exit_code": int(error.exit_code)}


def _clean_lines(text: str) -> str:
    return "\n".join(clean(line, limit=2000) for line in text.splitlines())


# ---- tables ------------------------------------------------------------------------------------


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output, without its empty columns; one whose name begins with ">" is aligned to the right."""
    cells = [[clean(cell) for cell in row] for row in rows]
    kept = [index for index in range(len(columns)) if any(row[index] for row in cells)]
    cells = [[row[index] for index in kept] for row in cells]
    names = [columns[index].removeprefix(">") for index in kept]
    right = [columns[index].startswith(">") for index in kept]
    if sys.stdout.isatty():
        _print_rich_table(title, names, right, cells)
        return
    widths = [max(len(line[index]) for line in [names, *cells]) for index in range(len(names))]
    sys.stdout.write(f"{title}\n")
    for line in [names, *cells]:
        padded = [
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(line, widths, right, strict=True)
        ]
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


def _print_rich_table(title: str, names: Sequence[str], right: Sequence[bool], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, (name, is_right) in enumerate(zip(names, right, strict=True)):
        # Words stay whole on a narrow screen, where only very long ones (addresses, digests) are folded.
        longest = max(len(word) for text in (name, *(row[index] for row in cells)) for word in (text.split() or [""]))
        min_width = min(longest, MAX_WORD_WIDTH)
        table.add_column(Text(name), justify="right" if is_right else "left", overflow="fold", min_width=min_width)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


# ---- screens -----------------------------------------------------------------------------------

Line = tuple[str, str]
"""A label and its text."""

LABEL_WIDTH = 9


def print_lines(lines: Iterable[Line]) -> None:
    """Labelled lines on standard output, as `status` shows them."""
    for label, text in lines:
        sys.stdout.write(f"{label:<{LABEL_WIDTH}}{_clean_lines(text)}\n" if label else f"{_clean_lines(text)}\n")


def indented(lines: Iterable[Line]) -> list[str]:
    """Labelled lines as a question shows them before it asks."""
    return [f"  {label:<{LABEL_WIDTH}}{text}" for label, text in lines]


def watch(make_lines: Callable[[], Sequence[Line]], *, interval_s: float) -> None:
    """Shows labelled lines that are made anew every `interval_s`, until Ctrl-C."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def screen() -> Group:
        return Group(*(Text(f"{label:<{LABEL_WIDTH}}{_clean_lines(text)}") for label, text in make_lines()))

    with Live(screen(), auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(screen(), refresh=True)


COUNT_INTERVAL_S = 5.0
"""Time between two lines of one count where nothing redraws them: often enough to see that it moves."""

MAX_COUNTED = 100_000
"""Totals up to this are shown as they are, above as a share: people count rounds, and not bytes."""


def count_text(done: int, total: int) -> str:
    """How far something is: "12 of 64", or "36 %" of very many; empty where nobody knows."""
    if not total:
        return ""
    return f"{done} of {total}" if total <= MAX_COUNTED else f"{100 * done // total} %"


class ShownProgress:
    """The progress of a long command on standard error: a line for each new thing, and for its count now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is shown yet.

        Args:
            clock: Seconds from any start.
        """
        self._clock = clock
        self._text = ""
        self._shown = ""
        self._shown_at_s = 0.0

    def __call__(self, text: str, *, done: int = 0, total: int = 0) -> None:
        """Tell what is being done now, and how much of it; the end of a count at once."""
        count = count_text(done, total)
        line = f"{clean(text)}: {count}" if count else clean(text)
        is_due = self._clock() - self._shown_at_s >= COUNT_INTERVAL_S or 0 < total <= done
        if line == self._shown or (text == self._text and not is_due):
            return
        self._text, self._shown, self._shown_at_s = text, line, self._clock()
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Keeps the screen still, for a question."""
        yield


class _Bars(ShownProgress):
    """The same as bars that move, on a terminal."""

    def __init__(self, bars: "RichProgress") -> None:
        super().__init__()
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, text: str, *, done: int = 0, total: int = 0) -> None:
        if text not in self._tasks:
            self.complete()
            self._tasks[text] = self._bars.add_task(clean(text), total=None, count="")
        if total:
            self._bars.update(self._tasks[text], completed=done, total=total, count=count_text(done, total))

    @contextmanager
    def hidden(self) -> Iterator[None]:
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()

    def complete(self) -> None:
        """Everything begun so far is done: a new thing has begun."""
        for task in self._tasks.values():
            self._bars.update(task, total=1, completed=1)


@contextmanager
def progress() -> Iterator[ShownProgress]:
    """Shows on standard error what a long command is doing: bars on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield ShownProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    words, count = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[count]"))
    columns = (SpinnerColumn(), words, BarColumn(), count, TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        shown = _Bars(bars)
        yield shown
        shown.complete()
