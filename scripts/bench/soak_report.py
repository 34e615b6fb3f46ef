"""What a soak measured, as figures and as a table: growth of processes, finality, refusals, faults."""

import dataclasses
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROLES = ("daemon", "p2pd", "worker", "trainer")

MIN_LIFE = 0.25
"""Share of the time after warm-up that a process must have lived for its growth to be counted."""

TIMELINE_S = 300.0
"""From one line of the timeline in the JSON to the next."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One process at one moment."""

    at_s: float
    rss: int
    fds: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One process from its start to its end."""

    node: str
    role: str
    pid: int
    created: float


Lives = Mapping[Life, Sequence[Sample]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finality:
    """What the founder said of the chain at one moment."""

    at_s: float
    slot: int
    final_slot: int
    final_round: int


def slope_per_hour(points: Sequence[tuple[float, float]]) -> float:
    """Growth per hour by the median of all pairwise slopes (Theil 1950, Sen 1968): single jumps do not move it.

    Args:
        points: (seconds, value), at least two of them.
    """
    times_N = np.array([at for at, _ in points])
    values_N = np.array([value for _, value in points])
    first, second = np.triu_indices(len(points), k=1)
    return float(np.median((values_N[second] - values_N[first]) / (times_N[second] - times_N[first]))) * 3600


def growth(lives: Lives, *, spared: Sequence[str], warm_up_s: float, until_s: float) -> dict[str, dict[str, Any]]:
    """By role: size and growth after the warm-up, of spared nodes' processes one by one, of all others' in short.

    Args:
        lives: Samples of every process.
        spared: Nodes that no fault hit, whose processes are as old as the run.
        warm_up_s: Samples of the first so many seconds of each process's life are left out.
        until_s: When the run ended.
    """
    result: dict[str, dict[str, Any]] = {}
    for role in ROLES:
        warm = {
            life: kept
            for life, samples in lives.items()
            if life.role == role
            and len(kept := [sample for sample in samples if sample.at_s >= samples[0].at_s + warm_up_s]) > 2
            and kept[-1].at_s - kept[0].at_s >= MIN_LIFE * (until_s - warm_up_s)
        }
        if not warm:
            continue
        grown = [_grown(life, samples) for life, samples in warm.items()]
        old = [each for each in grown if each["node"] in spared]
        result[role] = {
            "processes_all": sum(life.role == role for life in lives),
            "processes_long": len(grown),
            "rss_mb_median": statistics.median(each["rss_mb"] for each in grown),
            "rss_mb_max": max(each["rss_mb"] for each in grown),
            "rss_percent_per_hour_median": statistics.median(each["rss_percent_per_hour"] for each in grown),
            "rss_mb_by_minutes_lived": _by_age(lives, role),
            "fds_max": max(sample.fds for samples in warm.values() for sample in samples),
            "fds_percent_per_hour_median": statistics.median(each["fds_percent_per_hour"] for each in grown),
            "spared": old,
        }
    return result


def grown_too_much(growth: Mapping[str, Mapping[str, Any]], *, most: float) -> list[str]:
    """A sentence for every role that grew more: a spared node's process, or the median of all long-lived ones.

    Args:
        growth: What `growth` found.
        most: Percent per hour.
    """
    found = []
    for role, grown in growth.items():
        for what in ("rss", "fds"):
            rates = {each["node"]: each[f"{what}_percent_per_hour"] for each in grown["spared"]}
            rates["the median node"] = grown[f"{what}_percent_per_hour_median"]
            unit = "resident memory" if what == "rss" else "file descriptors"
            found += [
                f"{unit} of the {role} of {node} grew by {rate:.1f} % an hour, {most:g} % are allowed"
                for node, rate in rates.items()
                if rate >= most
            ]
    return found


def _by_age(lives: Lives, role: str) -> list[tuple[float, float]]:
    """(minutes lived, MB) of the processes seen last: where the young are as large as the old, nothing leaks."""
    last_s = max(samples[-1].at_s for samples in lives.values())
    here = [samples for life, samples in lives.items() if life.role == role and samples[-1].at_s == last_s]
    return sorted(((each[-1].at_s - each[0].at_s) / 60, each[-1].rss / 1e6) for each in here)


def _grown(life: Life, samples: Sequence[Sample]) -> dict[str, Any]:
    rss = [sample.rss / 1e6 for sample in samples]
    fds = [float(sample.fds) for sample in samples]
    times = [sample.at_s for sample in samples]
    rss_slope = slope_per_hour(list(zip(times, rss, strict=True)))
    fds_slope = slope_per_hour(list(zip(times, fds, strict=True)))
    return {
        "node": life.node,
        "minutes": (times[-1] - times[0]) / 60,
        "rss_mb": rss[-1],
        "rss_mb_per_hour": rss_slope,
        "rss_percent_per_hour": 100 * rss_slope / statistics.median(rss),
        "fds": fds[-1],
        "fds_per_hour": fds_slope,
        "fds_percent_per_hour": 100 * fds_slope / max(statistics.median(fds), 1.0),
    }


def finality(seen: Sequence[Finality]) -> dict[str, Any]:
    """How steadily rounds became final, as the founder saw it."""
    if not seen:
        return {}
    lags = [each.slot - each.final_slot for each in seen]
    moments = [seen[0].at_s, *(b.at_s for a, b in itertools.pairwise(seen) if b.final_slot > a.final_slot)]
    gaps = [later - earlier for earlier, later in itertools.pairwise([*moments, seen[-1].at_s])]
    return {
        "slots": seen[-1].slot - seen[0].slot,
        "rounds_final": seen[-1].final_round - seen[0].final_round,
        "slots_behind_final_median": statistics.median(lags),
        "slots_behind_final_max": max(lags),
        "seconds_without_new_final_max": max(gaps),
    }


def timeline(lives: Lives, *, spared: Sequence[str]) -> list[dict[str, Any]]:
    """Every few minutes, the sizes of the spared nodes' processes: the growth for the eye."""
    lines: dict[int, dict[str, Any]] = {}
    for life, samples in lives.items():
        if life.node not in spared:
            continue
        for sample in samples:
            line = lines.setdefault(int(sample.at_s // TIMELINE_S), {"minute": round(sample.at_s / 60, 1)})
            line.setdefault(f"{life.node} {life.role}", [round(sample.rss / 1e6, 1), sample.fds])
    return [lines[number] for number in sorted(lines)]


def short_counts(counts: Counter[str], *, most: int) -> dict[str, int]:
    """The most frequent ones."""
    return dict(counts.most_common(most))


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    figures = report["figures"]
    lines = [f"{key:32} {value}" for key, value in (report["machine"] | report["run"]).items()]
    lines += [f"{key:32} {_short(value)}" for key, value in figures.items() if key not in ("growth", "timeline")]
    lines += ["", f"{'role':8} {'node':8} {'min':>5} {'RSS MB':>7} {'MB/h':>7} {'%/h':>6} {'fds':>5} {'fds/h':>6}"]
    for role, grown in figures["growth"].items():
        for each in grown["spared"]:
            lines.append(
                f"{role:8} {each['node']:8} {each['minutes']:5.0f} {each['rss_mb']:7.0f} "
                f"{each['rss_mb_per_hour']:7.1f} {each['rss_percent_per_hour']:6.1f} "
                f"{each['fds']:5.0f} {each['fds_per_hour']:6.1f}"
            )
        lines.append(
            f"{role:8} {'median':8} {'':5} {grown['rss_mb_median']:7.0f} {'':7} "
            f"{grown['rss_percent_per_hour_median']:6.1f} {grown['fds_max']:5.0f} "
            f"  of {grown['processes_long']} long-lived of {grown['processes_all']}"
        )
    lines += ["", *(f"WRONG: {fault}" for fault in report["wrong"])] if report["wrong"] else ["", "nothing is wrong"]
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else json.dumps(value)
