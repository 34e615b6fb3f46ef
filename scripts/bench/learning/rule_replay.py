"""What the aggregation rule makes of a round's deltas, under any constants and with anybody among them.

Every delta that is sent here is a sum of deltas of a real round, times numbers: minus ten times a member's own, or the
members' mean with somebody's own noise. So the inner products of what is sent follow from those of the round, and the
rule, which sees nothing else, is the protocol's own.

Legend of array names: S = senders, A = attackers, D = deltas of the round.
"""

# ruff: noqa: N815  (attributes named like the arrays that they hold)

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fullrank_protocol.genesis import rule_from_wire
from fullrank_protocol.genesis_defaults import default_rule
from fullrank_protocol.genesis_parts import AggregationRule
from fullrank_protocol.weights import Entry, PastUpdate, weigh
from learning.arm import FloatArray
from learning.rule_rounds import COPY, MEMBER, RANDOM, STRANGER, Round

USUAL_TOKENS = 200 * 4 * 512
"""Tokens of a contribution of as many steps as the defaults allow."""

UNBOUNDED_TOKENS = 1 << 40
"""As many as a contribution can declare."""

TEN_TIMES = 10.0
"""How much longer than others' the deltas of a noisy attacker are."""


CLEARANCE = 0.01
"""How far below the threshold for copies they stay who do not want to be taken for some."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sender:
    """Who sends what.

    Attributes:
        mix_D: How often each delta of the round is in it.
        hostile: Its delta is not what it learned: it is left out of the mean that an update should follow.
        favoured: Whether its share is asked for.
    """

    mix_D: FloatArray
    hostile: bool = False
    favoured: bool = False
    stranger: bool = False
    num_tokens: int = USUAL_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An update.

    Attributes:
        share: Of those whose share is asked for, in the sum of the lengths of all weighted deltas.
        cosine: Of the update with the mean of the honest deltas.
        progress: How far the update goes along that mean, over the mean's own norm.
        norm: Of the update, over that mean's norm.
        update_norm: The same as it is.
        weights: Of the senders.
    """

    share: float
    cosine: float
    progress: float
    norm: float
    update_norm: float
    weights: tuple[float, ...]


RULE = rule_from_wire(default_rule())
"""As a founder gets it."""

THRESHOLD = RULE.duplicate_cosine_micro / 1e6
"""Cosine above which deltas share one weight."""


def replayed(
    one: Round, senders: Sequence[Sender], rule: AggregationRule = RULE, trailing: Sequence[PastUpdate] = ()
) -> Outcome:
    """What the rule makes of these senders' deltas, without a history unless there is one."""
    gram_SS = _gram(one, senders)
    entries = [
        Entry(
            contribution_id=place.to_bytes(32, "big"),
            member=hashlib.sha256(b"sender %d" % place).digest(),
            num_tokens=sender.num_tokens,
            staleness=0,
            stranger=sender.stranger,
        )
        for place, sender in enumerate(senders)
    ]
    weighed = weigh(entries, gram_SS.tolist(), rule, trailing)
    return outcome_of(one, senders, [weight.value() for weight in weighed.weights])


def averaged(one: Round, senders: Sequence[Sender]) -> Outcome:
    """What a plain mean makes of them."""
    return outcome_of(one, senders, [1.0 / len(senders)] * len(senders))


def outcome_of(one: Round, senders: Sequence[Sender], weights: Sequence[float]) -> Outcome:
    """The update that weights make."""
    gram_SS, weights_S = _gram(one, senders), np.array(weights)
    honest_S = np.array([not sender.hostile for sender in senders], dtype=np.float64)
    honest_S /= honest_S.sum()
    lengths_S = weights_S * np.sqrt(np.diag(gram_SS))
    favoured_S = np.array([sender.favoured for sender in senders])
    along = float(weights_S @ gram_SS @ honest_S)
    mean_norm = math.sqrt(honest_S @ gram_SS @ honest_S)
    norm = math.sqrt(weights_S @ gram_SS @ weights_S)
    return Outcome(
        share=float(lengths_S[favoured_S].sum() / lengths_S.sum()),
        cosine=along / (norm * mean_norm),
        progress=along / mean_norm**2,
        norm=norm / mean_norm,
        update_norm=norm,
        weights=tuple(weights),
    )


def distance(one: Round, senders: Sequence[Sender], first: Outcome, second: Outcome) -> float:
    """Between two updates of the same senders, over the median norm of the members' deltas."""
    mix_SD = np.array([sender.mix_D for sender in senders])
    difference_D = (np.array(first.weights) - np.array(second.weights)) @ mix_SD
    return math.sqrt(max(float(difference_D @ one.gram_DD @ difference_D), 0.0)) / median_norm(one)


def median_norm(one: Round) -> float:
    """Of the members' deltas."""
    return float(np.median(norms(one)[one.places(MEMBER)]))


def norms(one: Round) -> FloatArray:
    """Of all deltas, shape (D,)."""
    found_D: FloatArray = np.sqrt(np.diag(one.gram_DD))
    return found_D


def unit(one: Round, place: int, factor: float = 1.0) -> FloatArray:
    """One delta of the round, times a number."""
    mix_D = np.zeros(len(one.names))
    mix_D[place] = factor
    return mix_D


def honest(one: Round, count: int | None = None) -> list[Sender]:
    """The members, or the first of them."""
    return [Sender(mix_D=unit(one, place)) for place in one.places(MEMBER)[:count]]


def grown(one: Round) -> list[Sender]:
    """The members, and the honest strangers as members, too: 24 of them."""
    return [Sender(mix_D=unit(one, place)) for kind in (MEMBER, STRANGER) for place in one.places(kind)]


def apart(one: Round, count: int) -> list[Sender]:
    """Attackers who each send their own delta, ten times and with the sign turned: the last of the members."""
    return [_hostile(unit(one, place, -TEN_TIMES)) for place in one.places(MEMBER)[len(one.places(MEMBER)) - count :]]


def concerted(
    one: Round, count: int, kind: str = MEMBER, *, threshold: float = THRESHOLD, against: Sequence[str] = (MEMBER,)
) -> list[Sender]:
    """Attackers who agree on minus the mean of others, with so much noise that they are no copies.

    They agree on the noise, too: it adds up to nothing, and all their cosines lie a hundredth below the threshold.
    One alone is like nobody and adds none.
    """
    victims = [place for victim in against for place in one.places(victim)]
    away_D = _normed(one, sum((unit(one, place) for place in victims), np.zeros(len(one.names))))
    mix_AD = np.tile(away_D, (count, 1))
    if count > 1 and threshold < 1.0:
        agreed = ((threshold - CLEARANCE) * (count - 1) + 1.0) / count
        noise_AD = _cancelling(one, one.places(kind)[-count:], away_D)
        mix_AD = math.sqrt(agreed) * mix_AD + math.sqrt(1.0 - agreed) * noise_AD
    return [_hostile(-TEN_TIMES * median_norm(one) * mix_D) for mix_D in mix_AD]


def at_random(one: Round, count: int) -> list[Sender]:
    """Attackers who send random integers, as long as others' deltas."""
    norms_D = norms(one)
    return [_hostile(unit(one, place, median_norm(one) / norms_D[place])) for place in one.places(RANDOM)[:count]]


def strangers(one: Round, count: int) -> list[Sender]:
    """Honest ones."""
    return [Sender(mix_D=unit(one, place), stranger=True, favoured=True) for place in one.places(STRANGER)[:count]]


def strange(senders: Sequence[Sender]) -> list[Sender]:
    """The same, as strangers."""
    return [replace(sender, stranger=True) for sender in senders]


def copies(one: Round) -> list[Sender]:
    """The first member and three other keys with exactly its delta, as where A is sent along."""
    first = one.places(MEMBER)[0]
    return [Sender(mix_D=unit(one, first), favoured=True)] + [_copy(unit(one, first)) for _ in one.places(COPY)]


def projected(one: Round) -> list[Sender]:
    """The first member and three other keys with what the rows of their own A can hold of its delta."""
    first = one.places(MEMBER)[0]
    return [Sender(mix_D=unit(one, first), favoured=True)] + [_copy(unit(one, place)) for place in one.places(COPY)]


def disguised(one: Round, threshold: float) -> list[Sender]:
    """The first member, and three other keys who add as much noise to its delta as it takes to lie below a threshold.

    Their cosine with it is a hundredth below; among each other they are less alike than that.
    """
    first = one.places(MEMBER)[0]
    norms_D, near = norms(one), min(threshold - CLEARANCE, 1.0)
    found = [Sender(mix_D=unit(one, first), favoured=True)]
    for place in one.places(RANDOM):
        noise_D = unit(one, place) - one.gram_DD[place, first] / one.gram_DD[first, first] * unit(one, first)
        mix_D = near * unit(one, first, 1.0 / norms_D[first]) + math.sqrt(1.0 - near**2) * _normed(one, noise_D)
        found.append(_copy(norms_D[first] * mix_D))
    return found


def crowding(one: Round, attackers: int, victims: int) -> list[Sender]:
    """The members, the last of whom each send the sum of the first ones' deltas, as where A is sent along.

    The share that is asked for is that of those first ones: they share their weight with whoever is like them.
    """
    found = honest(one)
    summed_D = _normed(one, np.sum([sender.mix_D for sender in found[:victims]], axis=0))
    crowd = [Sender(mix_D=median_norm(one) * summed_D, hostile=True)] * attackers
    return [*(replace(sender, favoured=True) for sender in found[:victims]), *found[victims:-attackers], *crowd]


def boasting(one: Round, members: int, *, num_tokens: int, hostile: bool) -> list[Sender]:
    """The first members, the last of whom declares more tokens than anybody can have trained on."""
    found = [replace(sender, num_tokens=num_tokens) for sender in honest(one, members)]
    last = found[-1]
    mix_D = -TEN_TIMES * last.mix_D if hostile else last.mix_D
    found[-1] = replace(last, mix_D=mix_D, hostile=hostile, favoured=True, num_tokens=UNBOUNDED_TOKENS)
    return found


def _gram(one: Round, senders: Sequence[Sender]) -> FloatArray:
    mix_SD = np.array([sender.mix_D for sender in senders])
    found_SS: FloatArray = mix_SD @ one.gram_DD @ mix_SD.T
    return found_SS


def _hostile(mix_D: FloatArray) -> Sender:
    return Sender(mix_D=mix_D, hostile=True, favoured=True)


def _copy(mix_D: FloatArray) -> Sender:
    """Not among those whose mean should be followed, else copies would move it."""
    return _hostile(mix_D)


def _cancelling(one: Round, places: Sequence[int], away_D: FloatArray) -> FloatArray:
    """Noise of norm 1 for each of these, at right angles to a direction, that adds up to nothing.

    It is what is left of their own deltas: brought to right angles with each other, then without what is common.
    """
    own_AD = np.array([unit(one, place) for place in places])
    own_AD -= np.outer(own_AD @ one.gram_DD @ away_D, away_D)
    values_A, vectors_AA = np.linalg.eigh(own_AD @ one.gram_DD @ own_AD.T)
    apart_AD = vectors_AA @ np.diag(values_A**-0.5) @ vectors_AA.T @ own_AD
    return np.array([_normed(one, mix_D) for mix_D in apart_AD - apart_AD.mean(axis=0)])


def _normed(one: Round, mix_D: FloatArray) -> FloatArray:
    found_D: FloatArray = mix_D / math.sqrt(float(mix_D @ one.gram_DD @ mix_D))
    return found_D
