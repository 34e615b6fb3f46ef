"""What holds for the weights of any cohort."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fullrank_protocol.genesis import AggregationRule
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.weights import Entry, PastUpdate, past_update, weigh

ROUNDING = 1 + 1 / 128


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[Entry], np.ndarray]:
    count = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = rng.normal(size=(count, 5)) * 10.0 ** rng.uniform(-6, 6, size=(count, 1))
    for i in range(1, count):
        if draw(st.booleans()):
            vectors[i] = vectors[i - 1] * draw(st.sampled_from([1.0, -1.0, 1e6]))
    entries = [
        Entry(
            contribution_id=rng.bytes(32),
            member=bytes([draw(st.integers(0, 5))]) * 32,
            num_tokens=draw(st.sampled_from([0, 1, 100, 10**12])),
            staleness=draw(st.integers(0, 3)),
            stranger=draw(st.booleans()),
        )
        for _ in range(count)
    ]
    return entries, vectors


rules = st.builds(
    AggregationRule,
    max_contributions=st.just(64),
    token_cap=st.sampled_from([1, 1000]),
    max_staleness_rounds=st.just(3),
    duplicate_cosine_micro=st.sampled_from([500_000, 900_000]),
    weiszfeld_steps=st.integers(0, 8),
    update_norm_cap_milli=st.sampled_from([1000, 1500]),
    trailing_rounds=st.integers(1, 4),
    outer_step=st.sampled_from([Scaled.of(1.0), Scaled.of(0.7)]),
    open_share_micro=st.sampled_from([0, 200_000, 999_999]),
)


@given(cohorts(), rules, st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 64)), max_size=5))
def test_weights_keep_every_cap(
    cohort: tuple[list[Entry], np.ndarray], rule: AggregationRule, past: list[tuple[float, float]]
) -> None:
    entries, vectors = cohort
    gram = (vectors @ vectors.T).tolist()
    updates = [PastUpdate(full_norm=norm, breadth=breadth) for norm, breadth in past]
    found = weigh(entries, gram, rule, updates)
    weights = np.array([weight.value() for weight in found.weights])
    step = rule.outer_step.value()
    assert (weights >= 0).all()
    assert weights.sum() <= step * ROUNDING
    assert all(weight == 0 for entry, weight in zip(entries, weights, strict=True) if entry.num_tokens == 0)
    breadths = [breadth for _, breadth in past[-rule.trailing_rounds :] if breadth]
    if breadths and weights.any():
        breadth = past_update(found.weights, found.update_norm, rule, updates).breadth
        usual = (sum(breadths) + breadth) / (len(breadths) + 1)
        assert weights.sum() <= step * min(1.0, breadth / (0.9 * usual)) * ROUNDING**4
    recent = sorted(norm for norm, _ in past[-rule.trailing_rounds :] if norm)
    if recent:
        cap = rule.update_norm_cap_milli / 1000 * recent[(len(recent) - 1) // 2]
        assert found.update_norm.value() <= cap * ROUNDING**2
    if not any(entry.num_tokens and not entry.stranger for entry in entries):
        assert not weights.any()


@given(cohorts(), rules, st.randoms(use_true_random=False))
def test_order_changes_nothing(cohort: tuple[list[Entry], np.ndarray], rule: AggregationRule, random) -> None:  # type: ignore[no-untyped-def]
    entries, vectors = cohort
    gram = vectors @ vectors.T
    gram = (gram + gram.T) / 2
    order = list(range(len(entries)))
    random.shuffle(order)
    straight = weigh(entries, gram.tolist(), rule, [])
    shuffled = weigh([entries[i] for i in order], gram[np.ix_(order, order)].tolist(), rule, [])
    assert list(shuffled.weights) == [straight.weights[i] for i in order]
    assert shuffled.update_norm == straight.update_norm
