"""What each accepted delta counts: the aggregation rule, Gram matrix in, weights out (protocol section 7).

Everything is float64 + - * / and square root, in the order written here, on entries ascending by contribution
id: IEEE 754 fixes each result, so nodes agree bit for bit. No library reduction, power or exponential takes part,
and nothing runs until it converges. With n_i = sqrt(G_ii), t_i = min(num_tokens_i, token_cap):

1. Mass. m_i = t_i / (contributions of the same member). Voice. v_i = 1 / (the same number), 0 without tokens.
   Strangers' masses, and voices, are scaled to at most the open share of the total; 0 without any member's.
2. Claim. a_i = t_i / sqrt(1 + staleness_i) (FedBuff, Nguyen et al. 2021, arXiv:2106.06639), divided by the
   number of deltas, itself included, whose cosine with it exceeds the threshold; so is v_i.
3. Clip. f_i = min(1, median / n_i) with the lower median of the n_i, weighted by mass. H_ij = f_i * f_j * G_ij.
4. Robust mean. The geometric median z of the clipped deltas with voices v_i, by the smoothed Weiszfeld algorithm
   (Pillutla, Kakade and Harchaoui 2019, arXiv:1912.13445, algorithm 2): z is their voiced mean at first, then
   a mean with v_i / d_i, d_i being the distance to z, at least 2^-20 of the median norm. After the last step
   b_i = a_i / d_i. Voices are counted by head and not by tokens: a weighted geometric median of a few deltas is
   nearly the delta of whoever trained most, which would silence all others.
5. Open share, on the b_i as on the masses; then the b_i are divided by their sum.
6. Outer step and breadth. c_i = outer_step * b_i * f_i. The breadth of weights, (sum c_i)^2 / sum c_i^2, is the
   number of equal deltas whose mean has as much noise (Kish 1965). Where it is less than nine tenths of what is
   usual, the mean of trailing breadths and this one, the c_i are shortened in proportion: few deltas in a round are
   noise that the next rounds have to take back.
7. Update norm. If the norm of sum c_i dW_i exceeds update_norm_cap times the lower median of the trailing full norms
   above zero, the c_i are scaled down to it. The full norm of an update is its norm had it not been shortened for its
   breadth, so that narrow rounds do not lower the cap of others.
8. The weights are the c_i rounded to 8 bits, half to even.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fullrank_protocol.scaled import ZERO, Scaled

DISTANCE_FLOOR = 2.0**-20
"""Least distance in the geometric median, as a share of the median norm: far above the 2^-26 of rounding."""

LEAST_USUAL_BREADTH = 0.9
"""Share of the usual breadth from which an update keeps its length: uniform rounds differ by less than the rest."""


class WeightRule(Protocol):
    """The genesis' constants of this rule, named as on the wire."""

    @property
    def token_cap(self) -> int:
        """Most tokens that count for one contribution."""

    @property
    def duplicate_cosine_micro(self) -> int:
        """Above this cosine two deltas share one weight."""

    @property
    def weiszfeld_steps(self) -> int:
        """Steps of the geometric median; 0 switches it off."""

    @property
    def update_norm_cap_milli(self) -> int:
        """Largest update norm over its trailing median; 0 for no cap."""

    @property
    def trailing_rounds(self) -> int:
        """Updates that trailing norms and breadths are taken from."""

    @property
    def outer_step(self) -> Scaled:
        """Length of the step along the mean."""

    @property
    def open_share_micro(self) -> int:
        """Most weight for strangers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the rule knows of one accepted contribution besides its delta.

    Attributes:
        contribution_id: Fixes the order of the arithmetic.
        member: Public key.
        num_tokens: As declared; capped here.
        staleness: Rounds between its base and the parent, at least 0.
        stranger: Whether its author is not a member.
    """

    contribution_id: bytes
    member: bytes
    num_tokens: int
    staleness: int
    stranger: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PastUpdate:
    """What the rule remembers of an update.

    Attributes:
        full_norm: Its norm, without the shortening for its breadth.
        breadth: Of its weights; 0 where nothing counted.
    """

    full_norm: float
    breadth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeighResult:
    """Weights in the order of the entries, and the norm of the update that they make."""

    weights: tuple[Scaled, ...]
    update_norm: Scaled


def past_update(
    weights: Sequence[Scaled], update_norm: Scaled, rule: WeightRule, trailing: Sequence[PastUpdate]
) -> PastUpdate:
    """What is remembered of an update.

    Args:
        weights: Of its contributions, ascending by contribution id.
        update_norm: Of the update as applied.
        rule: The genesis'.
        trailing: Updates before it on its chain, oldest first.
    """
    breadth = _breadth([weight.value() for weight in weights])
    factor = _shortening(breadth, _recent(trailing, rule))
    return PastUpdate(full_norm=update_norm.value() / factor, breadth=breadth)


def weigh(
    entries: Sequence[Entry],
    gram: Sequence[Sequence[float]],
    rule: WeightRule,
    trailing: Sequence[PastUpdate],
) -> WeighResult:
    """Weigh a checkpoint's contributions.

    Args:
        entries: In any order, ids distinct.
        gram: Their inner products in the same order; no zero on the diagonal.
        rule: The genesis'.
        trailing: Updates of the normal checkpoints on the chain up to the parent, oldest first.

    Returns:
        All weights zero when nobody's tokens count.

    Raises:
        ValueError: ids repeat, shapes differ, or a delta has no norm.
    """
    if [len(row) for row in gram] != [len(entries)] * len(entries):
        raise ValueError(f"found a Gram matrix of {len(gram)} rows, required {len(entries)} of {len(entries)} each")
    order = sorted(range(len(entries)), key=lambda i: entries[i].contribution_id)
    ascending = [entries[i] for i in order]
    g = [[float(gram[i][j]) for j in order] for i in order]
    _check(ascending, g)
    coefficients = _coefficients(ascending, g, rule, trailing)
    rounded = [Scaled.of(coefficient) for coefficient in coefficients]
    norm = _norm_of_sum([weight.value() for weight in rounded], g)
    weights = [ZERO] * len(entries)
    for place, i in enumerate(order):
        weights[i] = rounded[place]
    return WeighResult(weights=tuple(weights), update_norm=Scaled.of(norm))


def _coefficients(
    entries: list[Entry], g: list[list[float]], rule: WeightRule, trailing: Sequence[PastUpdate]
) -> list[float]:
    count = len(entries)
    strangers = [entry.stranger for entry in entries]
    open_share = rule.open_share_micro / 1_000_000
    norms = [math.sqrt(g[i][i]) for i in range(count)]
    tokens = [float(min(entry.num_tokens, rule.token_cap)) for entry in entries]
    same_member = [float(_count(entries, entry.member)) for entry in entries]
    masses = _limit_strangers([tokens[i] / same_member[i] for i in range(count)], strangers, open_share)
    if _total(masses) == 0.0:
        return [0.0] * count
    copies = _copies(g, norms, rule.duplicate_cosine_micro / 1_000_000)
    claims = [tokens[i] / math.sqrt(1.0 + entries[i].staleness) / copies[i] for i in range(count)]
    voices = [(1.0 / same_member[i] / copies[i]) if masses[i] > 0.0 else 0.0 for i in range(count)]
    voices = _limit_strangers(voices, strangers, open_share)

    median = _lower_median(norms, masses)
    factors = [median / norms[i] if norms[i] > median else 1.0 for i in range(count)]
    clipped = [[factors[i] * factors[j] * g[i][j] for j in range(count)] for i in range(count)]
    distances = _distances(clipped, voices, rule.weiszfeld_steps, DISTANCE_FLOOR * median)
    shares = _limit_strangers([claims[i] / distances[i] for i in range(count)], strangers, open_share)
    total = _total(shares)

    step = rule.outer_step.value()
    coefficients = [step * (shares[i] / total) * factors[i] for i in range(count)]
    recent = _recent(trailing, rule)
    factor = _shortening(_breadth(coefficients), recent)
    coefficients = [coefficient * factor for coefficient in coefficients]
    cap = _update_norm_cap(rule, recent)
    norm = _norm_of_sum(coefficients, g)
    if cap is not None and norm > cap:
        return [coefficient * (cap / norm) for coefficient in coefficients]
    return coefficients


def _recent(trailing: Sequence[PastUpdate], rule: WeightRule) -> list[PastUpdate]:
    return list(trailing)[-rule.trailing_rounds :] if rule.trailing_rounds else []


def _limit_strangers(amounts: list[float], strangers: list[bool], open_share: float) -> list[float]:
    """Scale strangers' amounts so that together they are at most `open_share` of the total."""
    if open_share >= 1.0:
        return amounts
    members = _total([0.0 if stranger else amount for amount, stranger in zip(amounts, strangers, strict=True)])
    others = _total([amount if stranger else 0.0 for amount, stranger in zip(amounts, strangers, strict=True)])
    most = members * (open_share / (1.0 - open_share))
    if others <= most:
        return amounts
    factor = most / others
    return [amount * factor if stranger else amount for amount, stranger in zip(amounts, strangers, strict=True)]


def _copies(g: list[list[float]], norms: list[float], threshold: float) -> list[float]:
    """Number of deltas, itself included, whose cosine with each exceeds the threshold."""
    counts: list[float] = []
    for i in range(len(norms)):
        copies = 1.0
        for j in range(len(norms)):
            if j != i and g[i][j] > threshold * (norms[i] * norms[j]):
                copies += 1.0
        counts.append(copies)
    return counts


def _lower_median(values: list[float], masses: list[float]) -> float:
    """Smallest value of which at least half of the mass lies at or below it; ties keep the entries' order."""
    order = [i for i in sorted(range(len(values)), key=lambda i: (values[i], i)) if masses[i] > 0.0]
    total = _total([masses[i] for i in order])
    below = 0.0
    for i in order:
        below += masses[i]
        if 2.0 * below >= total:
            return values[i]
    return values[order[-1]]


def _distances(h: list[list[float]], voices: list[float], steps: int, floor: float) -> list[float]:
    """Distances of all deltas to the geometric median, as the last Weiszfeld step sees them; ones without steps."""
    count = len(voices)
    distances = [1.0] * count
    for _ in range(steps):
        pulls = [voices[i] / distances[i] for i in range(count)]
        total = _total(pulls)
        centre = [pull / total for pull in pulls]
        along = [_dot(h[i], centre) for i in range(count)]
        square = _dot(along, centre)
        for i in range(count):
            squared = h[i][i] - 2.0 * along[i] + square
            distances[i] = max(math.sqrt(squared) if squared > 0.0 else 0.0, floor)
    return distances


def _breadth(coefficients: list[float]) -> float:
    total, square = _total(coefficients), _dot(coefficients, coefficients)
    return total * total / square if square > 0.0 else 0.0


def _shortening(breadth: float, recent: Sequence[PastUpdate]) -> float:
    """Factor of an update whose breadth is less than usual; 1 for others."""
    known = [past.breadth for past in recent if past.breadth > 0.0] + [breadth]
    least = LEAST_USUAL_BREADTH * (_total(known) / len(known))
    return breadth / least if 0.0 < breadth < least else 1.0


def _update_norm_cap(rule: WeightRule, recent: Sequence[PastUpdate]) -> float | None:
    history = [past.full_norm for past in recent if past.full_norm > 0.0]
    if not history or rule.update_norm_cap_milli == 0:
        return None
    return rule.update_norm_cap_milli / 1000 * _lower_median(history, [1.0] * len(history))


def _norm_of_sum(coefficients: list[float], g: list[list[float]]) -> float:
    squared = _dot([_dot(row, coefficients) for row in g], coefficients)
    return math.sqrt(squared) if squared > 0.0 else 0.0


def _dot(first: list[float], second: list[float]) -> float:
    total = 0.0
    for i in range(len(first)):
        total += first[i] * second[i]
    return total


def _total(values: list[float]) -> float:
    """Sum in order: the built-in sum compensates since Python 3.12, and would differ between nodes."""
    total = 0.0
    for value in values:
        total += value
    return total


def _count(entries: list[Entry], member: bytes) -> int:
    return len([entry for entry in entries if entry.member == member])


def _check(entries: list[Entry], g: list[list[float]]) -> None:
    if len({entry.contribution_id for entry in entries}) != len(entries):
        raise ValueError("found a contribution twice, required distinct ids")
    for i, entry in enumerate(entries):
        if entry.staleness < 0 or entry.num_tokens < 0:
            raise ValueError(f"found {entry.num_tokens} tokens and staleness {entry.staleness}, required at least 0")
        if not g[i][i] > 0.0:
            raise ValueError(f"found squared norm {g[i][i]}, required above 0")
