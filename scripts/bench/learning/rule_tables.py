"""The tables of the aggregation rule's constants, each from the inner products of real rounds.

A figure is a mean over the rounds of all seeds, with the lowest and the highest of them beside it in JSON.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from statistics import fmean

from learning.rule_figures import FULL, TITLES, Cell, Cohort, Runs, Table, cell, each, rounds_of, weighed
from learning.rule_limits import declared_tokens, hostile_cohorts, open_shares, update_norms
from learning.rule_replay import (
    RULE,
    Sender,
    apart,
    at_random,
    averaged,
    concerted,
    copies,
    crowding,
    disguised,
    distance,
    honest,
    projected,
)
from learning.rule_rounds import COPY, HALF, MEMBER, RANDOM, STRANGER, TWIN, Round, cosine_of
from learning.setting import DOMAINS, IID

STEPS = (0, 1, 2, 4, 8, 16, 64)
SETTLED_STEPS = 1024
"""The median moves by less than a millionth of a norm from here on."""

THRESHOLDS = (0.4, 0.5, 0.6, 0.8, 0.9, None)

CROWDED = ((1, 2), (1, 4), (3, 2), (3, 4))
"""So many attackers send the sum of so many members' deltas, for these to count less."""


def all_tables(runs: Mapping[str, Runs]) -> list[Table]:
    """Every table; runs go by how their texts are dealt, and the long ones apart."""
    with_others = {split: runs[split] for split in (IID, DOMAINS)}
    return [
        honest_steps(with_others),
        *(attacked_steps(found, split) for split, found in with_others.items()),
        likeness({**with_others, FULL: runs[FULL]}),
        copying(with_others),
        update_norms({split: found for split, found in runs.items() if split != FULL}),
        hostile_cohorts(runs[IID]),
        declared_tokens(runs[IID]),
        open_shares(runs[IID]),
    ]


def honest_steps(runs: Mapping[str, Runs]) -> Table:
    """How far the median has come after so many steps, and what it costs where nobody attacks."""
    rows: dict[str, tuple[Cell | None, ...]] = {}
    for split, found in runs.items():
        rounds = rounds_of(found)
        cohorts = [(one, honest(one)) for one in rounds]
        outcomes = {steps: each(cohorts, replace(RULE, weiszfeld_steps=steps)) for steps in STEPS}
        rows[f"{TITLES[split]}: cosine with the mean"] = tuple(
            cell("{cosine:.4f}", cosine=[one.cosine for one in outcomes[steps]]) for steps in STEPS
        )
        rows[f"{TITLES[split]}: distance to the median, of a delta's norm"] = _distances(cohorts)
        rows[f"{TITLES[split]}: the same, 3 of 8 turning the mean in concert"] = _distances(
            [(one, [*honest(one, 5), *concerted(one, 3)]) for one in rounds]
        )
    return Table(
        name="weiszfeld_steps, honest",
        title="Weiszfeld steps, eight members",
        head=tuple(map(str, STEPS)),
        rows=rows,
    )


def attacked_steps(runs: Runs, split: str) -> Table:
    """What attackers among eight members are left with."""
    rounds = rounds_of(runs)
    rows: dict[str, tuple[Cell | None, ...]] = {}
    attacks = (
        ("own delta turned, ten times", apart),
        ("the mean turned, ten times, in concert", concerted),
        ("random integers", at_random),
    )
    for label, attack in attacks:
        for count in (1, 2, 3):
            cohorts = [(one, [*honest(one, 8 - count), *attack(one, count)]) for one in rounds]
            rows[f"{count} of 8: {label}"] = (
                weighed([averaged(one, senders) for one, senders in cohorts]),
                *(weighed(each(cohorts, replace(RULE, weiszfeld_steps=steps))) for steps in STEPS),
            )
    return Table(
        name=f"weiszfeld_steps, attacked, {split}",
        title=f"Weiszfeld steps, attackers among eight members, texts {TITLES[split]}: "
        "their share of the weights; cosine of the update with the honest mean",
        head=("plain mean", *map(str, STEPS)),
        rows=rows,
    )


def likeness(runs: Mapping[str, Runs]) -> Table:
    """Cosines of honest deltas with each other, and of copies with what they copy."""
    pairs: dict[str, Callable[[Round], Iterable[float]]] = {
        "two members": lambda one: _pairs(one, one.places(MEMBER), one.places(MEMBER)),
        "a member and an honest stranger": lambda one: _pairs(one, one.places(MEMBER), one.places(STRANGER)),
        "two members who share half of their texts": lambda one: _pairs(one, [0], one.places(HALF)),
        "two members with the same texts in the same order": lambda one: _pairs(one, [0], one.places(TWIN)),
        "a member, and the same one round later": lambda one: one.consecutive,
        "a member and random integers": lambda one: _pairs(one, one.places(MEMBER), one.places(RANDOM)),
        "a copy on the rows of another key's A": lambda one: _pairs(one, [0], one.places(COPY)),
        "two such copies of one delta": lambda one: _pairs(one, one.places(COPY), one.places(COPY)),
    }
    rows: dict[str, tuple[Cell | None, ...]] = {}
    for label, cosines_of in pairs.items():
        by_run = [[cosine for one in rounds_of(found) for cosine in cosines_of(one)] for found in runs.values()]
        rows[label] = tuple(
            cell("{cosine:.2f} ({least_cosine:.2f} to {most_cosine:.2f})", cosine=cosines) if cosines else None
            for cosines in by_run
        )
    head = tuple(TITLES[split] for split in runs)
    return Table(
        name="duplicate_cosine, likeness", title="Cosines of deltas: mean (least to largest)", head=head, rows=rows
    )


def copying(runs: Mapping[str, Runs]) -> Table:
    """What four keys with one member's delta weigh together beside seven others, who weigh an eighth each."""
    rounds = rounds_of(runs[IID])
    ways: dict[str, Callable[[Round, float], list[Sender]]] = {
        "exact copies (A sent along)": lambda one, _: copies(one),
        "copies on the rows of their own A": lambda one, _: projected(one),
        "copies with noise, just below the threshold": disguised,
        "… below 0.9": lambda one, _: disguised(one, 0.9),
    }
    rows: dict[str, tuple[Cell | None, ...]] = {}
    for label, way in ways.items():
        cells: list[Cell | None] = []
        for threshold in THRESHOLDS:
            rule = replace(RULE, duplicate_cosine_micro=round(1e6 * _none(threshold, 1.01)))
            cohorts = [(one, [*way(one, _none(threshold, 1.01)), *honest(one)[1:]]) for one in rounds]
            cells.append(weighed(each(cohorts, rule)))
        rows[label] = tuple(cells)
    for count in (2, 3):
        rows[f"{count} of 8 turn the mean, in concert, just below the threshold"] = tuple(
            weighed(
                each(
                    [
                        (one, [*honest(one, 8 - count), *concerted(one, count, threshold=_none(threshold, 1.0))])
                        for one in rounds
                    ],
                    replace(RULE, duplicate_cosine_micro=round(1e6 * _none(threshold, 1.01))),
                )
            )
            for threshold in THRESHOLDS
        )
    for attackers, victims in CROWDED:
        label = f"the share of {victims} whose sum {attackers} of 8 send (A sent along)"
        cohorts = [(one, crowding(one, attackers, victims)) for one in rounds]
        rows[label] = tuple(
            weighed(each(cohorts, replace(RULE, duplicate_cosine_micro=round(1e6 * _none(threshold, 1.01)))))
            for threshold in THRESHOLDS
        )
    for split, found in runs.items():
        counted = rounds_of(found)
        members = [list(_pairs(one, one.places(MEMBER), one.places(MEMBER))) for one in counted]
        rows[f"share of honest pairs above it, {TITLES[split]}"] = tuple(
            cell("{above:.0%}", above=[_share_above(cosines, _none(threshold, 2.0)) for cosines in members])
            for threshold in THRESHOLDS
        )
    return Table(
        name="duplicate_cosine, copying",
        title="One member's delta under four keys beside seven others, and attackers in concert: "
        "their share of the weights; cosine of the update with the honest mean",
        head=tuple("none" if threshold is None else str(threshold) for threshold in THRESHOLDS),
        rows=rows,
    )


def _distances(cohorts: Sequence[Cohort]) -> tuple[Cell, ...]:
    """Of the updates after so many steps to that of the settled median."""
    settled = each(cohorts, replace(RULE, weiszfeld_steps=SETTLED_STEPS))
    found: list[Cell] = []
    for steps in STEPS:
        outcomes = each(cohorts, replace(RULE, weiszfeld_steps=steps))
        distances = [
            distance(one, senders, mine, last)
            for (one, senders), mine, last in zip(cohorts, outcomes, settled, strict=True)
        ]
        found.append(cell("{distance:.4f}", distance=distances))
    return tuple(found)


def _pairs(one: Round, first: Sequence[int], second: Sequence[int]) -> list[float]:
    """Cosines of every pair of two different deltas, one of the first and one of the second."""
    pairs = combinations(first, 2) if first == second else product(first, second)
    return [cosine_of(one.gram_DD, i, j) for i, j in pairs]


def _share_above(cosines: Sequence[float], threshold: float) -> float:
    return fmean(cosine > threshold for cosine in cosines)


def _none(value: float | None, instead: float) -> float:
    return instead if value is None else value
