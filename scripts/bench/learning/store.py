"""Results on disk: one JSON line a trial, added as soon as the trial is done.

Files of several machines may be put together with `cat`: a trial that is there twice counts once, the first time.
"""

import json
from pathlib import Path

from learning.setting import VERSION, Trial
from learning.trial import Line, trial_from_json


class Results:
    """The lines of one file.

    Attributes:
        lines: Those of this version, by key.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that was cut off by a kill is not counted, and its trial is run again.

        Raises:
            ValueError: Another line is no JSON.
        """
        self._path = path
        self.lines: dict[str, Line] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole, _, self._torn = text.rpartition("\n")
        for line in whole.splitlines():
            if line:
                self._keep(json.loads(line))

    def add(self, line: Line) -> None:
        """Keep a line, on disk first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._torn:
            text = self._path.read_text(encoding="utf-8")
            self._path.write_text(text[: len(text) - len(self._torn)], encoding="utf-8")
            self._torn = ""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._keep(line)

    def of(self, trial: Trial) -> Line | None:
        """The line of a trial, if it has been run."""
        return self.lines.get(trial.key)

    def trials(self) -> list[tuple[Trial, Line]]:
        """All lines with the trials that they tell of, in the order in which they were added."""
        return [(trial_from_json(line["trial"]), line) for line in self.lines.values()]

    def _keep(self, line: Line) -> None:
        if line["trial"]["version"] == VERSION:
            self.lines.setdefault(line["key"], line)
