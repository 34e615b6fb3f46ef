"""What the lines say: a table for each setting, and the same as JSON.

The gain of an arm is the share of what the mark gains, seed by seed: (start - loss) / (start - loss of the mark).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learning.arm import Arm
from learning.catalogue import MARK
from learning.paired import Mean, mean_of
from learning.plan import best_rate
from learning.setting import TEST, TUNE, Setting, Trial
from learning.store import Results
from learning.trial import Line

Entry = tuple[Trial, Line]
"""A trial and what came of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm in one setting.

    Attributes:
        rate: The best on validation blocks, at which it was tested; None where every rate failed.
        at_edge: Whether no worse rate was tried on one side.
        loss: On test blocks.
        gain: Share of the mark's.
        difference: Its loss minus ours, in pairs; None for ours itself.
        num_bytes: Of a contribution; None where nothing is sent.
        ranks: Last round's, by name; those of the noise control as `noise_*`.
        cpu_s: Of one test trial.
        lines: Test lines by seed.
    """

    arm: Arm
    rate: float | None
    at_edge: bool
    loss: Mean | None
    gain: Mean | None
    difference: Mean | None
    num_bytes: float | None
    ranks: Mapping[str, float]
    cpu_s: float
    lines: Mapping[int, Line]

    def to_json(self) -> dict[str, Any]:
        """For the summary, with the curves that pictures need."""
        first = self.lines[min(self.lines)]["result"] if self.lines else {}
        return {
            "arm": self.arm.name,
            **self.arm.to_json(),
            "rate": self.rate,
            "rate_at_edge": self.at_edge,
            **{name: _json(mean) for name, mean in self._means().items()},
            "num_bytes": self.num_bytes,
            "ranks": dict(self.ranks),
            "cpu_s": self.cpu_s,
            "curves": {str(seed): line["result"]["curve"] for seed, line in sorted(self.lines.items())},
            "rank_per_round": first.get("rank"),
            "rank_noise_per_round": first.get("rank_noise"),
        }

    def _means(self) -> dict[str, Mean | None]:
        return {"loss": self.loss, "gain": self.gain, "difference_to_ours": self.difference}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All arms of one setting, the best first.

    Attributes:
        start: Test loss of the base.
        ours: Name of the arm that others are compared with.
    """

    setting: Setting
    start: float
    ours: str
    rows: tuple[Row, ...]


def compare(results: Results, *, ours: str) -> list[Comparison]:
    """Everything that has been tested, setting by setting.

    Raises:
        ValueError: Two arms of a setting and seed have read different data: they must not be compared.
    """
    by_setting: dict[str, list[Entry]] = {}
    for trial, line in results.trials():
        by_setting.setdefault(json.dumps(trial.setting.to_json()), []).append((trial, line))
    found = []
    for entries in by_setting.values():
        setting = entries[0][0].setting
        tuning = by_setting.get(json.dumps(setting.tuned_in.to_json()), [])
        found.append(_compare(setting, entries, ours, tuning=tuning))
    return [comparison for comparison in found if comparison.rows]


def summary(comparisons: Sequence[Comparison], results: Results) -> dict[str, Any]:
    """The report as JSON."""
    costs = [line["cost"] for line in results.lines.values()]
    return {
        "machines": sorted({f"{cost['machine']}; {cost['versions']}" for cost in costs}),
        "trials": len(costs),
        "cpu_h": round(sum(cost["cpu_s"] for cost in costs) / 3600, 2),
        "comparisons": [
            {
                "setting": comparison.setting.to_json(),
                "start": comparison.start,
                "ours": comparison.ours,
                "rows": [row.to_json() for row in comparison.rows],
            }
            for comparison in comparisons
        ],
    }


def table(comparison: Comparison) -> str:
    """One setting for people."""
    setting = comparison.setting
    lines = [
        f"{setting.title}; seeds {seeds_of(comparison.rows)}",
        f"{setting.base}, {setting.corpus}; loss before {comparison.start:.4f}",
        "",
        f"{'arm':28} {'rate':>9} {'loss':>15} {'gain':>13} {'loss - ours':>17} {'kB sent':>8} "
        f"{'rank of the change':>19} {'noise':>6} {'CPU s':>6}",
        f"{'':28} {'':>9} {'':>15} {'':>13} {'':>17} {'':>8} {'num.  stable  eff.':>19} {'eff.':>6} {'':>6}",
    ]
    lines += [_text(row) for row in comparison.rows]
    full = next((row.ranks["full"] for row in comparison.rows if row.ranks), 0.0)
    lines += [
        "",
        "intervals are 95 % over seeds; * no worse rate was tried on one side; kB sent: by one node in one round",
        f"ranks: mean over the linear layers, {full:g} at most; noise: random products of the same norms",
        *_verdict(comparison),
    ]
    return "\n".join(lines)


def seeds_of(rows: Sequence[Row]) -> str:
    """Test seeds of these arms; where some have others than most, those by name first."""
    names: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        if row.lines:
            names.setdefault(tuple(sorted(row.lines)), []).append(row.arm.name)
    usual = max(names, key=lambda seeds: len(names[seeds]), default=())
    parts = [f"{_listed(seeds)} ({', '.join(found)})" for seeds, found in names.items() if seeds != usual]
    return "; ".join([*parts, _listed(usual) + (" (all others)" if parts else "")])


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _verdict(comparison: Comparison) -> list[str]:
    """Who is better and worse than ours for certain."""
    if not any(row.arm.name == comparison.ours for row in comparison.rows):
        return [f"ours, {comparison.ours}, was not tested"]
    compared = [row for row in comparison.rows if row.difference is not None]
    better = [row.arm.name for row in compared if row.difference and row.difference.is_below_zero]
    worse = [row.arm.name for row in compared if row.difference and row.difference.is_above_zero]
    return [
        f"ours is {comparison.ours}",
        f"certainly better: {', '.join(better) or 'none'}",
        f"certainly worse: {', '.join(worse) or 'none'}",
    ]


def _compare(setting: Setting, entries: Sequence[Entry], ours: str, *, tuning: Sequence[Entry]) -> Comparison:
    _check_data(entries)
    arms = {trial.arm.name: trial.arm for trial, _ in entries}
    tested = {name: _at_best_rate(entries, arm, tuning=tuning) for name, arm in arms.items()}
    rows = []
    for name, (rate, at_edge, lines) in tested.items():
        if not lines and rate is not None:
            continue  # Still being tuned.
        rows.append(
            _row(arms[name], rate, lines, at_edge=at_edge, mark=tested.get(MARK.name), ours=tested.get(ours), own=ours)
        )
    starts = [float(line["result"]["start"]) for row in rows for line in row.lines.values()]
    rows.sort(key=lambda row: (row.loss is None, row.loss.value if row.loss else 0.0))
    return Comparison(setting=setting, start=starts[0] if starts else 0.0, ours=ours, rows=tuple(rows))


Tested = tuple[float | None, bool, dict[int, Line]]
"""Rate, whether it is at the edge of those tried, and test lines by seed."""


def _at_best_rate(entries: Sequence[Entry], arm: Arm, *, tuning: Sequence[Entry]) -> Tested:
    losses = {
        trial.rate: float("inf") if line["result"]["loss"] is None else float(line["result"]["loss"])
        for trial, line in tuning
        if trial.arm == arm and trial.purpose == TUNE
    }
    if not losses or losses[best_rate(losses)] == float("inf"):
        return None, False, {}
    rate = best_rate(losses)
    lines = {
        trial.seed: line
        for trial, line in entries
        if trial.arm == arm and trial.purpose == TEST and trial.rate == rate and line["result"]["loss"] is not None
    }
    return rate, rate in (min(losses), max(losses)), lines


def _row(
    arm: Arm,
    rate: float | None,
    lines: dict[int, Line],
    *,
    at_edge: bool,
    mark: Tested | None,
    ours: Tested | None,
    own: str,
) -> Row:
    results = {seed: line["result"] for seed, line in lines.items()}
    marks = {seed: line["result"] for seed, line in mark[2].items()} if mark else {}
    theirs = {seed: line["result"] for seed, line in ours[2].items()} if ours and arm.name != own else {}
    gains = [
        (result["start"] - result["loss"]) / (result["start"] - marks[seed]["loss"])
        for seed, result in results.items()
        if seed in marks and marks[seed]["loss"] < marks[seed]["start"]
    ]
    sent = [result["num_bytes"] for result in results.values() if result["num_bytes"] is not None]
    ranks: dict[str, float] = {}
    for prefix, key in (("", "rank"), ("noise_", "rank_noise")):
        for name in ("numerical", "stable", "effective", "full"):
            last = [result[key][name][-1] for result in results.values() if key in result]
            ranks |= {prefix + name: round(sum(last) / len(last), 3)} if last else {}
    return Row(
        arm=arm,
        rate=rate,
        at_edge=at_edge,
        loss=mean_of([result["loss"] for result in results.values()]),
        gain=mean_of(gains),
        difference=mean_of(
            [result["loss"] - theirs[seed]["loss"] for seed, result in results.items() if seed in theirs]
        ),
        num_bytes=round(sum(sent) / len(sent), 1) if sent else None,
        ranks=ranks,
        cpu_s=round(sum(line["cost"]["cpu_s"] for line in lines.values()) / max(1, len(lines)), 1),
        lines=lines,
    )


def _check_data(entries: Sequence[Entry]) -> None:
    seen: dict[int, tuple[str, tuple[Any, Any]]] = {}
    for trial, line in entries:
        if line["result"]["loss"] is None:
            continue
        found = (line["result"]["num_tokens"], line["result"]["data"])
        name, required = seen.setdefault(trial.seed, (trial.arm.name, found))
        if found != required:
            raise ValueError(
                f"seed {trial.seed}: {trial.arm.name} has read {found[0]} tokens of data {found[1]}, "
                f"{name} {required[0]} of {required[1]}: required the same"
            )


def _text(row: Row) -> str:
    rate = "failed" if row.rate is None else f"{row.rate:.4g}{'*' if row.at_edge else ''}"
    sent = "" if row.num_bytes is None else f"{row.num_bytes / 1000:.1f}"
    ranks = row.ranks
    shown = f"{ranks['numerical']:.0f} {ranks['stable']:6.1f} {ranks['effective']:6.1f}" if "effective" in ranks else ""
    noise = f"{ranks['noise_effective']:.1f}" if "noise_effective" in ranks else ""
    return (
        f"{row.arm.name:28} {rate:>9} {_pm(row.loss, 4):>15} {_pm(row.gain, 3):>13} {_pm(row.difference, 4, '+'):>17} "
        f"{sent:>8} {shown:>19} {noise:>6} {row.cpu_s:>6.0f}"
    ).rstrip()


def _pm(mean: Mean | None, digits: int, sign: str = "") -> str:
    """A mean with its interval, as 3.669±.012."""
    if mean is None:
        return ""
    value = f"{mean.value:{sign}.{digits}f}"
    if mean.half_width is None:
        return value
    return f"{value}±{f'{mean.half_width:.{digits}f}'.removeprefix('0')}"


def _json(mean: Mean | None) -> dict[str, float | int | None] | None:
    return None if mean is None else mean.to_json()
