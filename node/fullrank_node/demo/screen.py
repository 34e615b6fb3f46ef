"""What the demo shows while it runs, on standard error: one line a node that moves, or plain lines in a pipe."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import TaskID


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLine:
    """One node at one moment.

    Attributes:
        domain: What its texts are about.
        text: What it is doing.
        done: Steps trained, over all rounds.
        total: Steps of the whole demo.
        milestone: What has been reached; on a plain screen a line is printed when it changes, unless it is empty.
        figures: What a plain screen adds to it.
    """

    name: str
    domain: str
    text: str
    done: int
    total: int
    milestone: str
    figures: str


class Screen(Protocol):
    """Shows how far the demo has come; a context manager."""

    def phase(self, text: str) -> None:
        """What happens now."""

    def nodes(self, lines: Sequence[NodeLine]) -> None:
        """Where every node stands."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; what was shown last stays."""


class PlainScreen:
    """Lines with the seconds since the start, for pipes and logs."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._phase = ""
        self._milestones: dict[str, str] = {}

    def phase(self, text: str) -> None:
        """Print the phase if it is new."""
        if text != self._phase:
            self._phase = text
            self._print(text)

    def nodes(self, lines: Sequence[NodeLine]) -> None:
        """Print the nodes that have reached something new."""
        for line in lines:
            if line.milestone and self._milestones.get(line.name) != line.milestone:
                self._milestones[line.name] = line.milestone
                self._print(f"  {line.name}  {line.domain}  {line.milestone}  {line.figures}".rstrip())

    def _print(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._started_s:5.0f} s  {text}\n")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LiveScreen:
    """Bars that move, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._top = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=console
        )
        self._nodes = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),  # All of it fits into 80 columns.
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._console = console
        self._phase: TaskID = self._top.add_task("")
        self._tasks: dict[str, TaskID] = {}
        self._stack = contextlib.ExitStack()

    def phase(self, text: str) -> None:
        """Show the phase beside the spinner."""
        self._top.update(self._phase, description=text)

    def nodes(self, lines: Sequence[NodeLine]) -> None:
        """Move every node's bar."""
        for line in lines:
            if line.name not in self._tasks:
                self._tasks[line.name] = self._nodes.add_task(f"{line.name}  {line.domain}", total=line.total, text="")
            self._nodes.update(self._tasks[line.name], completed=line.done, total=line.total, text=line.text)

    def __enter__(self) -> Self:
        from rich.console import Group
        from rich.live import Live

        self._stack.enter_context(Live(Group(self._top, self._nodes), console=self._console, refresh_per_second=5))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


@contextlib.contextmanager
def shown() -> Iterator[Screen]:
    """The screen that suits standard error."""
    screen: Screen = LiveScreen() if sys.stderr.isatty() else PlainScreen()
    with screen:
        yield screen
