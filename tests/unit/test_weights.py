"""The aggregation rule (protocol section 7), step by step, with numbers to check by hand."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fullrank_protocol.genesis import AggregationRule
from fullrank_protocol.scaled import MAX_SCALED_EXPONENT, MIN_SCALED_EXPONENT, ZERO, Scaled
from fullrank_protocol.weights import Entry, PastUpdate, WeighResult, past_update, weigh

RULE = AggregationRule(
    max_contributions=64,
    token_cap=1000,
    max_staleness_rounds=3,
    duplicate_cosine_micro=900_000,
    weiszfeld_steps=8,
    update_norm_cap_milli=1500,
    trailing_rounds=3,
    outer_step=Scaled.of(1.0),
    open_share_micro=200_000,
)
MEAN = replace(RULE, weiszfeld_steps=0)
EIGHT_BITS = 1 / 256


@dataclass(frozen=True)
class Volunteer:
    """A contribution and its delta as a vector, from which tests make the Gram matrix."""

    delta: tuple[float, ...]
    tokens: int = 100
    staleness: int = 0
    stranger: bool = False
    member: int | None = None


def entries_of(volunteers: list[Volunteer]) -> list[Entry]:
    return [
        Entry(
            contribution_id=bytes([i]) * 32,
            member=bytes([i if one.member is None else one.member]) * 32,
            num_tokens=one.tokens,
            staleness=one.staleness,
            stranger=one.stranger,
        )
        for i, one in enumerate(volunteers)
    ]


def gram_of(volunteers: list[Volunteer]) -> list[list[float]]:
    return [[math.fsum(a * b for a, b in zip(i.delta, j.delta, strict=True)) for j in volunteers] for i in volunteers]


def result(
    volunteers: list[Volunteer],
    rule: AggregationRule = RULE,
    norms: tuple[float, ...] = (),
    breadths: tuple[float, ...] = (),
) -> WeighResult:
    """Weighed after updates of these norms, or of these breadths."""
    past = [PastUpdate(full_norm=norm, breadth=0.0) for norm in norms]
    past += [PastUpdate(full_norm=0.0, breadth=breadth) for breadth in breadths]
    return weigh(entries_of(volunteers), gram_of(volunteers), rule, past)


def weights(
    volunteers: list[Volunteer],
    rule: AggregationRule = RULE,
    norms: tuple[float, ...] = (),
    breadths: tuple[float, ...] = (),
) -> list[float]:
    return [weight.value() for weight in result(volunteers, rule, norms, breadths).weights]


def axis(at: int, *, length: float = 1.0, dimensions: int = 8) -> tuple[float, ...]:
    return tuple(length if i == at else 0.0 for i in range(dimensions))


def test_a_single_contribution_gets_the_outer_step() -> None:
    assert weights([Volunteer(axis(0, length=7.0))]) == [1.0]
    assert weights([Volunteer(axis(0))], replace(RULE, outer_step=Scaled.of(0.75))) == [0.75]


def test_nobody_and_nothing_gives_no_weights() -> None:
    assert result([]) == WeighResult(weights=(), update_norm=ZERO)


def test_equal_volunteers_share_equally() -> None:
    assert weights([Volunteer(axis(i)) for i in range(4)]) == [0.25] * 4


def test_weights_follow_capped_tokens() -> None:
    volunteers = [Volunteer(axis(0), tokens=250), Volunteer(axis(1), tokens=250), Volunteer(axis(2), tokens=500)]
    assert weights(volunteers, MEAN) == [0.25, 0.25, 0.5]
    assert weights(volunteers, replace(MEAN, token_cap=250)) == [Scaled.of(1 / 3).value()] * 3
    volunteers[2] = replace(volunteers[2], tokens=10**9)
    assert weights(volunteers, MEAN) == [Scaled.of(1 / 6).value()] * 2 + [Scaled.of(2 / 3).value()]


def test_a_busy_honest_volunteer_does_not_silence_the_others() -> None:
    # Weighted by tokens, the geometric median of these three would be all but the first one's delta (0.89).
    volunteers = [Volunteer(axis(0), tokens=200), Volunteer(axis(1)), Volunteer(axis(2))]
    assert weights(volunteers) == [0.5, 0.25, 0.25]


def test_a_late_delta_counts_less_by_the_root_of_its_age() -> None:
    volunteers = [Volunteer(axis(0)), Volunteer(axis(1), staleness=3)]
    assert weights(volunteers, MEAN) == [Scaled.of(2 / 3).value(), Scaled.of(1 / 3).value()]


def test_without_tokens_nothing_counts() -> None:
    assert weights([Volunteer(axis(0), tokens=0), Volunteer(axis(1))]) == [0.0, 1.0]
    nothing = result([Volunteer(axis(0), tokens=0), Volunteer(axis(1), tokens=0)])
    assert nothing == WeighResult(weights=(ZERO, ZERO), update_norm=ZERO)


def test_near_duplicates_share_one_weight() -> None:
    twin = (1.0, 0.4, 0.0)  # Cosine 0.93 to the first axis.
    volunteers = [Volunteer((1.0, 0.0, 0.0)), Volunteer(twin), Volunteer((0.0, 0.0, 1.0))]
    assert weights(volunteers, replace(MEAN, token_cap=10)) == [
        0.25,
        Scaled.of(0.25 / math.hypot(1.0, 0.4)).value(),
        0.5,
    ]
    apart = replace(MEAN, duplicate_cosine_micro=950_000)
    assert weights(volunteers, apart)[0] == Scaled.of(1 / 3).value()


def test_an_opposite_delta_is_no_duplicate() -> None:
    assert weights([Volunteer((1.0, 0.0)), Volunteer((-1.0, 0.0))], MEAN) == [0.5, 0.5]


def test_norms_are_clipped_to_the_median() -> None:
    volunteers = [Volunteer(axis(i, length=length)) for i, length in enumerate((1.0, 2.0, 8.0))]
    third = 1 / 3
    assert weights(volunteers, MEAN) == [Scaled.of(w).value() for w in (third, third, third / 4)]


def test_the_median_counts_members_by_capped_tokens_and_takes_the_lower_middle() -> None:
    heavy = [Volunteer(axis(0, length=8.0), tokens=900), Volunteer(axis(1)), Volunteer(axis(2))]
    # The heavy one's norm is the median, so it is not clipped.
    assert weights(heavy, MEAN)[0] == Scaled.of(900 / 1100).value()
    pair = [Volunteer(axis(0, length=8.0)), Volunteer(axis(1))]
    assert weights(pair, MEAN) == [0.5 / 8, 0.5]


def test_several_contributions_of_one_member_count_once_in_the_median() -> None:
    late = [Volunteer(axis(i, length=8.0), member=9) for i in range(3)]
    others = [Volunteer(axis(3)), Volunteer(axis(4))]
    assert weights(late + others, MEAN)[0] == Scaled.of(0.2 / 8).value()


def test_an_outlier_is_pulled_down_by_the_geometric_median() -> None:
    shared = [Volunteer((1.0, *axis(i, length=0.6, dimensions=6))) for i in range(5)]
    reversed_ = Volunteer((-1.0, *axis(5, length=0.6, dimensions=6)))
    found = weights([*shared, reversed_])
    plain = weights([*shared, reversed_], MEAN)
    assert found[5] < 0.5 * plain[5]
    assert sum(found) == pytest.approx(1, abs=6 * EIGHT_BITS)


def test_the_geometric_median_is_that_of_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(7, 20))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = -vectors[1]
    volunteers = [Volunteer(tuple(vector)) for vector in vectors.tolist()]
    centre = vectors.mean(axis=0)
    for _ in range(7):
        pull = 1 / np.linalg.norm(vectors - centre, axis=1)
        centre = (pull[:, np.newaxis] * vectors).sum(axis=0) / pull.sum()
    expected = 1 / np.linalg.norm(vectors - centre, axis=1)
    found = weights(volunteers)
    assert np.allclose(found, expected / expected.sum(), rtol=1.01 * EIGHT_BITS)


def test_identical_deltas_do_not_divide_by_zero() -> None:
    volunteers = [Volunteer(axis(0))] * 3
    assert weights(volunteers) == [Scaled.of(1 / 3).value()] * 3


def test_strangers_get_at_most_their_share() -> None:
    volunteers = [Volunteer(axis(0)), Volunteer(axis(1))]
    crowd = [Volunteer(axis(i), tokens=1000, stranger=True) for i in range(2, 8)]
    found = weights(volunteers + crowd)
    assert found[:2] == [Scaled.of(0.4).value()] * 2
    assert sum(found[2:]) == pytest.approx(0.2, rel=EIGHT_BITS)


def test_few_strangers_count_like_anybody() -> None:
    volunteers = [Volunteer(axis(i)) for i in range(7)] + [Volunteer(axis(7), stranger=True)]
    assert weights(volunteers) == [0.125] * 8


def test_strangers_alone_get_nothing() -> None:
    assert weights([Volunteer(axis(0), stranger=True), Volunteer(axis(1), tokens=0)]) == [0.0, 0.0]


def test_strangers_do_not_move_the_median_norm_beyond_their_share() -> None:
    volunteers = [Volunteer(axis(i, length=1.0)) for i in range(3)]
    crowd = [Volunteer(axis(i, length=0.001), tokens=1000, stranger=True) for i in range(3, 8)]
    assert weights(volunteers + crowd, MEAN)[0] == Scaled.of(0.8 / 3).value()


def test_the_update_norm_is_capped_by_its_trailing_median() -> None:
    one = [Volunteer(axis(0, length=8.0))]
    assert weights(one, norms=(2.0, 100.0, 1.0)) == [1.5 * 2 / 8]
    assert result(one, norms=(2.0, 100.0, 1.0)).update_norm.value() == 3.0
    assert weights(one, norms=(16.0,)) == [1.0]


def test_only_recent_rounds_with_an_update_count_for_the_cap() -> None:
    one = [Volunteer(axis(0, length=8.0))]
    assert weights(one, norms=(1.0, 1.0, 1.0, 4.0, 4.0, 4.0)) == [6 / 8]
    assert weights(one, norms=(0.0, 0.0, 2.0)) == [3 / 8]
    assert weights(one, norms=(0.0, 0.0, 0.0)) == [1.0]
    assert weights(one, replace(RULE, update_norm_cap_milli=0), norms=(1.0,)) == [1.0]


def breadth_of(weights: list[Scaled]) -> float:
    return past_update(weights, ZERO, RULE, []).breadth


def test_the_breadth_is_the_number_of_equal_deltas_with_as_much_noise() -> None:
    assert breadth_of([Scaled.of(0.25)] * 4) == 4.0
    assert breadth_of([Scaled.of(0.5), Scaled.of(0.25), Scaled.of(0.25)]) == 1 / (0.25 + 0.125)
    assert breadth_of([Scaled.of(1.0), ZERO]) == 1.0
    assert breadth_of([ZERO, ZERO]) == 0.0
    extreme = [Scaled(mantissa=255, exponent=MAX_SCALED_EXPONENT), Scaled(mantissa=128, exponent=MIN_SCALED_EXPONENT)]
    assert breadth_of(extreme[:1] * 64) == 64.0
    assert breadth_of(extreme) == 1.0


def test_a_round_of_fewer_deltas_than_usual_is_shortened_in_proportion() -> None:
    one = [Volunteer(axis(0))]
    usual = (4 + 4 + 1) / 3
    assert weights(one, breadths=(4.0, 4.0)) == [Scaled.of(1 / (0.9 * usual)).value()]
    assert weights(one, replace(RULE, outer_step=Scaled.of(0.5)), breadths=(4.0, 4.0)) == [
        Scaled.of(0.5 / (0.9 * usual)).value()
    ]


def test_a_tenth_fewer_than_usual_or_any_more_change_nothing() -> None:
    four = [Volunteer(axis(i)) for i in range(4)]
    assert weights(four, breadths=(4.5, 4.5)) == [0.25] * 4
    assert weights(four, breadths=(1.0, 1.0)) == [0.25] * 4
    assert weights(four, breadths=(5.0, 5.0))[0] < 0.25


def test_only_recent_rounds_with_weights_are_usual() -> None:
    one = [Volunteer(axis(0))]
    assert weights(one, breadths=(64.0, 1.0, 1.0, 1.0)) == [1.0]
    assert weights(one, breadths=(0.0, 0.0, 2.0)) == [Scaled.of(1 / (0.9 * 1.5)).value()]
    assert weights(one, breadths=(0.0, 0.0, 0.0)) == [1.0]


def test_the_cap_is_for_what_is_left_after_shortening() -> None:
    one = [Volunteer(axis(0, length=8.0))]
    past = [PastUpdate(full_norm=4.0, breadth=9.0)]
    found = weigh(entries_of(one), gram_of(one), RULE, past)
    assert found.weights == (Scaled.of(1 / (0.9 * 5.0)),)
    past = [PastUpdate(full_norm=1.0, breadth=9.0)]
    assert weigh(entries_of(one), gram_of(one), RULE, past).update_norm == Scaled.of(1.5)


def test_what_is_remembered_of_a_short_round_is_its_whole_norm() -> None:
    before = [PastUpdate(full_norm=1.0, breadth=4.0)] * 3
    found = past_update([Scaled.of(0.25)], Scaled.of(2.0), RULE, before)
    usual = (4 + 4 + 4 + 1) / 4
    assert found == PastUpdate(full_norm=2.0 * 0.9 * usual, breadth=1.0)
    assert past_update([Scaled.of(0.25)] * 4, Scaled.of(2.0), RULE, before).full_norm == 2.0
    largest = Scaled(mantissa=255, exponent=MAX_SCALED_EXPONENT)
    assert math.isfinite(
        past_update([Scaled.of(1.0)], largest, RULE, [PastUpdate(full_norm=1.0, breadth=1e4)]).full_norm
    )


def test_a_swarm_that_shrinks_to_one_is_back_to_whole_steps_when_nobody_remembers_more() -> None:
    eight, past, totals = [Volunteer(axis(i)) for i in range(8)], [], []
    for turn in range(8):
        volunteers = eight if turn < 4 else eight[:1]
        found = weigh(entries_of(volunteers), gram_of(volunteers), RULE, past)
        totals.append(sum(weight.value() for weight in found.weights))
        past.append(past_update(found.weights, found.update_norm, RULE, past))
    assert totals[:4] == [1.0] * 4
    assert totals[4] < totals[5] < totals[6] < totals[7] == 1.0


def test_narrow_rounds_do_not_lower_the_cap_of_broad_ones() -> None:
    """Eight deltas and one take turns; the eight keep their step, though they agree and are longer than the one."""
    eight = [Volunteer((*axis(i, length=math.sqrt(0.7)), math.sqrt(0.3))) for i in range(8)]
    past: list[PastUpdate] = []
    for turn in range(12):
        volunteers = eight if turn % 2 == 0 else eight[:1]
        found = weigh(entries_of(volunteers), gram_of(volunteers), RULE, past)
        total = sum(weight.value() for weight in found.weights)
        assert total == 1.0 if turn % 2 == 0 else total < 0.4
        past.append(past_update(found.weights, found.update_norm, RULE, past))


def test_the_outer_step_comes_before_the_cap() -> None:
    doubled = replace(RULE, outer_step=Scaled.of(2.0))
    assert weights([Volunteer(axis(0))], doubled, norms=(1.0,)) == [1.5]


def test_the_update_norm_is_that_of_the_rounded_weights() -> None:
    volunteers = [Volunteer(axis(0, length=3.0)), Volunteer(axis(1, length=3.0)), Volunteer(axis(2, length=3.0))]
    third = Scaled.of(1 / 3).value()
    assert result(volunteers).update_norm == Scaled.of(math.sqrt(3 * (third * 3.0) ** 2))


def test_the_order_of_entries_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    volunteers = [
        Volunteer(
            tuple(rng.normal(size=6).tolist()),
            tokens=int(rng.integers(0, 2000)),
            staleness=int(rng.integers(0, 4)),
            stranger=bool(rng.random() < 0.3),
            member=int(rng.integers(0, 6)),
        )
        for _ in range(9)
    ]
    entries, gram = entries_of(volunteers), gram_of(volunteers)
    past = [PastUpdate(full_norm=2.0, breadth=9.0)] * 3
    straight = weigh(entries, gram, RULE, past)
    order = rng.permutation(9).tolist()
    shuffled = weigh(
        tuple(entries[i] for i in order),
        np.array(gram)[np.ix_(order, order)],  # type: ignore[arg-type]
        RULE,
        tuple(past),
    )
    assert shuffled.weights == tuple(straight.weights[i] for i in order)
    assert shuffled.update_norm == straight.update_norm


def test_input_that_cannot_be_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="distinct"):
        weigh(entries_of([Volunteer(axis(0))]) * 2, [[1.0, 0.0], [0.0, 1.0]], RULE, [])
    with pytest.raises(ValueError, match="found squared norm"):
        result([Volunteer(axis(0, length=0.0))])
    with pytest.raises(ValueError, match="at least 0"):
        result([Volunteer(axis(0), staleness=-1)])
    with pytest.raises(ValueError, match="required 2"):
        weigh(entries_of([Volunteer(axis(0)), Volunteer(axis(1))]), [[1.0]], RULE, [])
