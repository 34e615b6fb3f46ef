"""Inner products against exact rational arithmetic, on whatever components."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fullrank_protocol.delta import Delta, LowRank
from fullrank_protocol.genesis import Module, ModuleKind
from fullrank_protocol.gram import gram

MODULE = Module(name="m", kind=ModuleKind.LINEAR, out_features=3, in_features=4)
integers = st.integers(-127, 127)


@st.composite
def parts(draw: st.DrawFn) -> LowRank:
    rank = draw(st.integers(1, 4))
    return LowRank(
        module="m",
        B_OR=draw(npst.arrays(np.int8, (3, rank), elements=integers)),
        A_RI=draw(npst.arrays(np.int8, (rank, 4), elements=integers)),
        scale_mantissa_R=tuple(draw(st.lists(st.sampled_from(range(1, 16, 2)), min_size=rank, max_size=rank))),
        scale_exponent_R=tuple(draw(st.lists(st.integers(-64, 16), min_size=rank, max_size=rank))),
    )


def matrix(part: LowRank) -> list[Fraction]:
    assert part.A_RI is not None
    scales = [
        mantissa * Fraction(2) ** exponent
        for mantissa, exponent in zip(part.scale_mantissa_R, part.scale_exponent_R, strict=True)
    ]
    return [
        sum((int(part.B_OR[o, k]) * int(part.A_RI[k, i]) * scale for k, scale in enumerate(scales)), Fraction(0))
        for o in range(3)
        for i in range(4)
    ]


@given(st.lists(parts(), min_size=1, max_size=4))
def test_inner_products_are_exact_values_rounded_once(drawn: list[LowRank]) -> None:
    found = gram([Delta(parts=(part,)) for part in drawn], (MODULE,))
    matrices = [matrix(part) for part in drawn]
    for i, first in enumerate(matrices):
        for j, second in enumerate(matrices):
            exact = sum((a * b for a, b in zip(first, second, strict=True)), Fraction(0))
            assert found[i][j] == float(exact)
