"""The exact apply against rational arithmetic, on whatever components and weights."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fullrank_protocol.delta import LowRank
from fullrank_protocol.genesis import Module, ModuleKind
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.state import apply_tile, canonical_float32, plan_module

MODULE = Module(name="m", kind=ModuleKind.LINEAR, out_features=3, in_features=2)
integers = st.integers(-127, 127)


@st.composite
def weighted_parts(draw: st.DrawFn) -> tuple[LowRank, Scaled]:
    rank = draw(st.integers(1, 4))
    part = LowRank(
        module="m",
        B_OR=draw(npst.arrays(np.int8, (3, rank), elements=integers)),
        A_RI=draw(npst.arrays(np.int8, (rank, 2), elements=integers)),
        scale_mantissa_R=tuple(draw(st.lists(st.sampled_from(range(1, 16, 2)), min_size=rank, max_size=rank))),
        scale_exponent_R=tuple(draw(st.lists(st.integers(-60, 0), min_size=rank, max_size=rank))),
    )
    return part, Scaled(mantissa=draw(st.integers(128, 255)), exponent=draw(st.integers(-20, -7)))


def kept_terms(weighted: list[tuple[LowRank, Scaled]]) -> list[tuple[Fraction, list[int], list[int]]]:
    """Components on the grid of section 6, as (scale, column, row)."""
    terms = []
    for part, weight in weighted:
        assert part.A_RI is not None
        for k in range(part.rank):
            power = weight.exponent + part.scale_exponent_R[k]
            scale = weight.mantissa * part.scale_mantissa_R[k] * Fraction(2) ** power
            terms.append((scale, part.B_OR[:, k].tolist(), part.A_RI[k].tolist()))
    bound = sum((scale * max(map(abs, column)) * max(map(abs, row)) for scale, column, row in terms), Fraction(0))
    if not bound:
        return []
    grid = Fraction(2) ** -200
    while grid * 2**52 < bound:
        grid *= 2
    return [term for term in terms if (term[0] / grid).denominator == 1]


@given(
    npst.arrays(np.float32, (3, 2), elements=st.floats(-4, 4, width=32)),
    st.lists(weighted_parts(), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_applying_has_one_result(weights: np.ndarray, weighted: list[tuple[LowRank, Scaled]], random) -> None:  # type: ignore[no-untyped-def]
    old = canonical_float32(weights)
    plan = plan_module(MODULE, weighted)
    new = apply_tile(old, plan, slice(0, 3))
    terms = kept_terms(weighted)
    assert plan.num_dropped == sum(part.rank for part, _ in weighted) - len(terms) or not terms
    for o in range(3):
        for i in range(2):
            change = sum((scale * column[o] * row[i] for scale, column, row in terms), Fraction(0))
            exact = np.float32(float(Fraction(float(old[o, i])) + change))
            assert new[o, i] == (exact if abs(exact) >= 2.0**-126 else 0)
    random.shuffle(weighted)
    again = plan_module(MODULE, weighted)
    tiles = [apply_tile(old[o : o + 1], again, slice(o, o + 1)) for o in range(3)]
    assert np.concatenate(tiles).tobytes() == new.tobytes()
