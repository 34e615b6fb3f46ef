"""Figures and tables, and what swarms go through round by round, for the tables of the aggregation rule."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from fullrank_protocol.genesis_parts import AggregationRule
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.weights import PastUpdate, past_update
from learning.rule_replay import RULE, TEN_TIMES, Outcome, Sender, honest, replayed
from learning.rule_rounds import MEMBER, Round
from learning.setting import DOMAINS, IID

Runs = Sequence[Sequence[Round]]
"""The rounds of a swarm, for every seed."""

LONG = "long"
"""A swarm of more rounds than a node keeps its A for, of which the update norms are looked at."""

FULL = "full"
"""A swarm with as many steps in a round as the defaults allow, of which the cosines are looked at."""

TITLES: Mapping[str, str] = {
    IID: "dealt at random",
    DOMAINS: "domains apart",
    LONG: "dealt at random, more rounds",
    FULL: "dealt at random, 200 steps",
}

Cohort = tuple[Round, Sequence[Sender]]
"""A round, and who sends what in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One place of a table.

    Attributes:
        text: For people.
        figures: Mean, lowest and highest, by what they are of.
    """

    text: str
    figures: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table, in which None is an empty place."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: Mapping[str, tuple[Cell | None, ...]]

    def text(self) -> str:
        """As a decision record has it."""
        lines = [f"**{self.title}**", "", _lines(("", *self.head)), "|" + "---|" * (1 + len(self.head))]
        for label, cells in self.rows.items():
            lines.append(_lines((label, *("" if one is None else one.text for one in cells))))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Every figure."""
        rows = {label: [None if one is None else one.figures for one in cells] for label, cells in self.rows.items()}
        return {"name": self.name, "title": self.title, "head": self.head, "rows": rows}


def cell(form: str, **values: Sequence[float]) -> Cell:
    """A place of a table from the figures of all rounds; the form names means, or extremes as `least_x`, `most_x`."""
    figures = {
        name: (round(fmean(found), 6), round(min(found), 6), round(max(found), 6)) for name, found in values.items()
    }
    named: dict[str, float] = {}
    for name, (mean, least, most) in figures.items():
        named |= {name: mean, f"least_{name}": least, f"most_{name}": most}
    text = form.format(**named).replace("%", " %").replace("-", "\N{MINUS SIGN}")
    return Cell(text=text, figures=figures)


def weighed(outcomes: Sequence[Outcome], form: str = "{share:.0%}; {cosine:.2f}") -> Cell:
    """A place of a table from an update of each round."""
    return cell(
        form,
        share=[one.share for one in outcomes],
        cosine=[one.cosine for one in outcomes],
        progress=[one.progress for one in outcomes],
        norm=[one.norm for one in outcomes],
    )


def each(cohorts: Iterable[Cohort], rule: AggregationRule) -> list[Outcome]:
    """An update of each cohort, as if its round were the first."""
    return [replayed(one, senders, rule) for one, senders in cohorts]


def rounds_of(runs: Iterable[Sequence[Round]]) -> list[Round]:
    """Of all seeds."""
    return [one for rounds in runs for one in rounds]


def history(rounds: Sequence[Round]) -> list[PastUpdate]:
    """What the rule remembers of a swarm as it was."""
    found: list[PastUpdate] = []
    for one in rounds:
        members = one.places(MEMBER)
        weights_S = np.array(one.weights)
        norm = float(np.sqrt(weights_S @ one.gram_DD[np.ix_(members, members)] @ weights_S))
        weights = [Scaled.of(weight) for weight in one.weights]
        found.append(past_update(weights, Scaled.of(norm), RULE, found))
    return found


def over_trailing(updates: Sequence[PastUpdate], trailing: int = RULE.trailing_rounds) -> list[float | None]:
    """Each norm over the lower median of those before it; None for the first."""
    found: list[float | None] = []
    for number, past in enumerate(updates):
        before = sorted(earlier.full_norm for earlier in updates[max(0, number - trailing) : number])
        found.append(past.full_norm / before[(len(before) - 1) // 2] if before else None)
    return found


def hostile_path(rounds: Sequence[Round], rule: AggregationRule, *, most: int) -> list[float]:
    """Norms of so many updates in which everybody's delta is ten times as large, over that of the last honest one.

    They come after the rounds of a swarm, and are made of the deltas of its last.
    """
    trailing = history(rounds)
    usual = trailing[-1].full_norm
    last = rounds[-1]
    senders = [replace(sender, mix_D=TEN_TIMES * sender.mix_D) for sender in honest(last)]
    path: list[float] = []
    for _ in range(most):
        outcome = replayed(last, senders, rule, trailing)
        weights = [Scaled.of(weight) for weight in outcome.weights]
        trailing.append(past_update(weights, Scaled.of(outcome.update_norm), rule, trailing))
        path.append(outcome.update_norm / usual)
    return path


def _lines(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
