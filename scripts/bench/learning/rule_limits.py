"""What the rule bounds: how long an update is, how many tokens count, and what strangers weigh."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from learning.rule_figures import (
    TITLES,
    Cell,
    Cohort,
    Runs,
    Table,
    cell,
    each,
    history,
    hostile_path,
    over_trailing,
    rounds_of,
    weighed,
)
from learning.rule_replay import (
    RULE,
    UNBOUNDED_TOKENS,
    USUAL_TOKENS,
    boasting,
    concerted,
    grown,
    honest,
    median_norm,
    strange,
    strangers,
)
from learning.rule_rounds import MEMBER, STRANGER

CAPS = (1.0, 1.5, 2.0, None)
TRAILING = (1, 3, 9, 27)
TOKEN_CAPS = (1 << 18, 1 << 19, 1 << 20, 1 << 22, None)
OPEN_SHARES = (0.1, 0.2, 0.3, 0.5, None)
HOSTILE_ROUNDS = (1, 10, 20)

BOASTER = "{share:.0%}; {cosine:.2f}; {norm:.1f}"
STRANGERS = "{share:.0%}; {cosine:.2f}; {progress:.2f}"


def update_norms(runs: Mapping[str, Runs]) -> Table:
    """Updates of honest swarms over the median of those before them."""
    rows: dict[str, tuple[Cell | None, ...]] = {}
    longest = max(len(rounds) for found in runs.values() for rounds in found)
    for split, found in runs.items():
        trailing = zip(*(over_trailing(history(rounds)) for rounds in found), strict=True)
        rows[f"{TITLES[split]}: over the trailing median"] = _by_round(trailing, longest)
        shares = [
            [past.full_norm / median_norm(one) for past, one in zip(history(rounds), rounds, strict=True)]
            for rounds in found
        ]
        rows[f"{TITLES[split]}: over the median norm of its deltas"] = _by_round(zip(*shares, strict=True), longest)
    return Table(
        name="update_norm_cap, honest",
        title="Updates of honest swarms, round by round",
        head=tuple(map(str, range(1, longest + 1))),
        rows=rows,
    )


def hostile_cohorts(runs: Runs) -> Table:
    """How far a cohort that is hostile as a whole moves the model, in honest updates of the last round."""
    rows: dict[str, tuple[Cell | None, ...]] = {}
    for trailing in TRAILING:
        for cap in CAPS:
            if trailing != RULE.trailing_rounds and cap != RULE.update_norm_cap_milli / 1000:
                continue
            rule = replace(RULE, update_norm_cap_milli=round(1000 * (cap or 0.0)), trailing_rounds=trailing)
            paths = [hostile_path(rounds, rule, most=max(HOSTILE_ROUNDS)) for rounds in runs]
            label = f"{'no cap' if cap is None else f'cap {cap:g}'}, median of {trailing}"
            rows[label] = tuple(
                cell("{path:.1f}", path=[sum(path[:count]) for path in paths]) for count in HOSTILE_ROUNDS
            )
    return Table(
        name="update_norm_cap, hostile",
        title="Everybody's delta ten times as large: how far the model moves, in honest updates",
        head=tuple(f"in {count} round{'s' if count > 1 else ''}" for count in HOSTILE_ROUNDS),
        rows=rows,
    )


def declared_tokens(runs: Runs) -> Table:
    """What somebody gains who declares as many tokens as can be written."""
    rounds = rounds_of(runs)
    rows: dict[str, tuple[Cell | None, ...]] = {}
    for members, tokens, hostile in (
        (8, USUAL_TOKENS, False),
        (8, USUAL_TOKENS, True),
        (4, USUAL_TOKENS, True),
        (3, USUAL_TOKENS, True),
        (8, USUAL_TOKENS // 10, False),
        (8, USUAL_TOKENS // 10, True),
    ):
        label = f"one of {members}, {'own delta turned, ten times' if hostile else 'honest delta'}; others {tokens:,}"
        cohorts = [(one, boasting(one, members, num_tokens=tokens, hostile=hostile)) for one in rounds]
        rows[label] = tuple(
            weighed(each(cohorts, replace(RULE, token_cap=cap or 2 * UNBOUNDED_TOKENS)), BOASTER) for cap in TOKEN_CAPS
        )
    return Table(
        name="token_cap",
        title="One member declares 2^40 tokens: its share of the weights; cosine of the update with the honest mean; "
        "norm of the update over that mean's",
        head=tuple("none" if cap is None else f"2^{cap.bit_length() - 1}" for cap in TOKEN_CAPS),
        rows=rows,
    )


def open_shares(runs: Runs) -> Table:
    """What strangers weigh beside eight members."""
    rounds = [one for one in rounds_of(runs) if one.places(STRANGER)]
    rows: dict[str, tuple[Cell | None, ...]] = {}
    cohorts: dict[str, list[Cohort]] = {}
    for count in (1, 4, 16):
        beside = f"{count} stranger{'s' if count > 1 else ''}"
        cohorts[f"{beside}, honest"] = [(one, [*honest(one), *strangers(one, count)]) for one in rounds]
        cohorts[f"{beside}, the mean turned in concert"] = [
            (one, [*honest(one), *strange(concerted(one, count, STRANGER))]) for one in rounds
        ]
    cohorts["the same 16, beside 24 members"] = [
        (one, [*grown(one), *strange(concerted(one, 16, STRANGER, against=(MEMBER, STRANGER)))]) for one in rounds
    ]
    for label, those in cohorts.items():
        rows[label] = tuple(
            weighed(
                each(those, replace(RULE, open_share_micro=round(1e6 * (1.0 if share is None else share)))), STRANGERS
            )
            for share in OPEN_SHARES
        )
    return Table(
        name="open_share",
        title="Strangers beside members: their share of the weights; cosine of the update with the honest mean; "
        "how far it goes along it",
        head=tuple("none" if share is None else str(share) for share in OPEN_SHARES),
        rows=rows,
    )


def _by_round(columns: Iterable[Sequence[float | None]], longest: int) -> tuple[Cell | None, ...]:
    """A cell for each round, from the figures of all seeds; rounds without any are empty."""
    figures = [[figure for figure in column if figure is not None] for column in columns]
    cells = [cell("{norm:.2f}", norm=known) if known else None for known in figures]
    return (*cells, *([None] * (longest - len(cells))))
