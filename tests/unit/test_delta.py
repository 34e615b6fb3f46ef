"""What a delta may be (protocol section 6), rule by rule."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fullrank_protocol import delta as delta_module
from fullrank_protocol.delta import Delta, Dense, LowRank, Part, SeedContext, expand, seeded_rows, to_float, validate
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import Limits, Module, ModuleKind

LIMITS = Limits(max_delta_bytes=10_000, min_scale_exponent=-20, max_scale_exponent=0, max_checkpoint_bytes=10_000)


@dataclass(frozen=True, kw_only=True)
class Rules:
    modules: tuple[Module, ...] = (
        Module(name="down", kind=ModuleKind.LINEAR, out_features=2, in_features=3),
        Module(name="norm", kind=ModuleKind.DENSE, out_features=3, in_features=1),
        Module(name="up", kind=ModuleKind.LINEAR, out_features=3, in_features=2),
    )
    max_rank: int = 4
    codecs: tuple[int, ...] = (1,)
    limits: Limits = LIMITS


RULES = Rules()
CONTEXT = SeedContext(swarm=bytes(32), member=bytes([1]) * 32, period=0)


def sent(**changes: object) -> LowRank:
    """Two components for the module `down`, A sent."""
    part = LowRank(
        module="down",
        B_OR=np.array([[64, 100], [0, -127]], dtype=np.int8),
        A_RI=np.array([[1, 2, 64], [-64, 3, 0]], dtype=np.int8),
        scale_mantissa_R=(3, 1),
        scale_exponent_R=(-10, -9),
    )
    return replace(part, **changes)  # type: ignore[arg-type]


def seeded(**changes: object) -> LowRank:
    """The same with rows 0 and 2 of a seeded A."""
    return sent(A_RI=None, row_R=(0, 2), **changes)


def dense(**changes: object) -> Dense:
    part = Dense(module="norm", values_O=np.array([64, 0, -1], dtype=np.int8), scale_mantissa=5, scale_exponent=-3)
    return replace(part, **changes)  # type: ignore[arg-type]


def delta(*parts: Part) -> Delta:
    return Delta(parts=parts)


def refused(*parts: Part) -> Rule:
    with pytest.raises(RejectError) as caught:
        validate(delta(*parts), RULES)
    assert "found" in caught.value.detail
    return caught.value.rule


def test_canonical_parts_of_every_form_pass() -> None:
    validate(delta(sent(), dense()), RULES)
    validate(delta(seeded()), RULES)
    validate(delta(seeded(), dense(), sent(module="up", B_OR=sent().A_RI.T, A_RI=sent().B_OR.T)), RULES)  # type: ignore[union-attr]


def test_a_part_stands_for_the_scaled_sum_of_its_components() -> None:
    first = 3 / 1024 * np.outer([64, 0], [1, 2, 64])
    second = 1 / 512 * np.outer([100, -127], [-64, 3, 0])
    assert np.array_equal(to_float(sent()), first + second)
    assert np.array_equal(to_float(dense()), np.array([40.0, 0.0, -0.625]))


def test_a_delta_without_any_component_is_refused() -> None:
    assert refused() == Rule.ZERO_NORM


def test_parts_ascend_by_module_and_appear_once() -> None:
    assert refused(dense(), sent()) == Rule.NON_CANONICAL
    assert refused(sent(), sent()) == Rule.NON_CANONICAL


def test_delta_of_orders_parts_and_leaves_out_empty_ones() -> None:
    empty = LowRank(
        module="up",
        B_OR=np.zeros((3, 0), np.int8),
        A_RI=np.zeros((0, 2), np.int8),
        scale_mantissa_R=(),
        scale_exponent_R=(),
    )
    assert Delta.of([dense(), empty, sent()]) == delta(sent(), dense())
    assert refused(empty) == Rule.RANK


def test_a_part_for_an_unknown_module_is_refused() -> None:
    assert refused(sent(module="head")) == Rule.SHAPE


def test_the_form_must_fit_the_kind_of_module() -> None:
    assert refused(sent(module="norm")) == Rule.SHAPE
    assert refused(dense(module="up")) == Rule.SHAPE


def test_the_shape_must_fit_the_module() -> None:
    assert refused(sent(B_OR=np.full((3, 2), 64, np.int8))) == Rule.SHAPE
    assert refused(sent(A_RI=np.full((2, 2), 64, np.int8))) == Rule.SHAPE
    assert refused(dense(values_O=np.full(4, 64, np.int8))) == Rule.SHAPE


def test_more_components_than_the_genesis_allows_are_refused() -> None:
    part = LowRank(
        module="down",
        B_OR=np.full((2, 5), 64, np.int8),
        A_RI=np.full((5, 3), 64, np.int8),
        scale_mantissa_R=(1, 3, 5, 7, 9),
        scale_exponent_R=(0,) * 5,
    )
    assert refused(part) == Rule.RANK


def test_seeded_rows_stay_below_the_maximum_rank_and_ascend_strictly() -> None:
    validate(delta(replace(seeded(), row_R=(0, 3))), RULES)
    assert refused(replace(seeded(), row_R=(0, 4))) == Rule.RANK
    assert refused(replace(seeded(), row_R=(2, 0))) == Rule.NON_CANONICAL
    assert refused(replace(seeded(), row_R=(2, 2))) == Rule.NON_CANONICAL
    assert refused(replace(seeded(), row_R=(-1, 2))) == Rule.RANK


@pytest.mark.parametrize("mantissa", [0, 2, 14, 16, 17])
def test_a_scale_mantissa_is_odd_and_at_most_15(mantissa: int) -> None:
    assert refused(sent(scale_mantissa_R=(mantissa, 1))) == Rule.SCALE
    assert refused(dense(scale_mantissa=mantissa)) == Rule.SCALE


@pytest.mark.parametrize("exponent", [-21, 1])
def test_a_scale_exponent_stays_within_the_genesis_bounds(exponent: int) -> None:
    assert refused(sent(scale_exponent_R=(-10, exponent))) == Rule.SCALE
    assert refused(dense(scale_exponent=exponent)) == Rule.SCALE


def test_integers_reach_from_64_to_127_in_every_column_and_row() -> None:
    assert refused(sent(B_OR=np.array([[64, 63], [0, -63]], np.int8))) == Rule.NON_CANONICAL
    assert refused(sent(B_OR=np.array([[64, -128], [0, 1]], np.int8))) == Rule.NON_CANONICAL
    assert refused(sent(B_OR=np.array([[64, 0], [0, 0]], np.int8))) == Rule.NON_CANONICAL
    assert refused(sent(A_RI=np.array([[1, 2, 63], [64, 0, 0]], np.int8))) == Rule.NON_CANONICAL
    assert refused(sent(A_RI=np.array([[1, 2, 64], [-128, 0, 0]], np.int8))) == Rule.NON_CANONICAL
    assert refused(dense(values_O=np.array([63, -63, 0], np.int8))) == Rule.NON_CANONICAL
    assert refused(dense(values_O=np.array([-128, 64, 0], np.int8))) == Rule.NON_CANONICAL
    validate(delta(sent(B_OR=np.array([[-64, 127], [0, -127]], np.int8))), RULES)


def test_sent_components_ascend_by_exponent_then_mantissa_then_bytes() -> None:
    columns = np.array([[64, 64], [0, 0]], np.int8)
    rows = np.array([[64, 0, 0], [64, 0, 0]], np.int8)

    def pair(mantissas: tuple[int, int], exponents: tuple[int, int], b: int = 0, a: int = 0) -> LowRank:
        second_columns, second_rows = columns.copy(), rows.copy()
        second_columns[1, 1], second_rows[1, 2] = b, a
        return LowRank(
            module="down",
            B_OR=second_columns,
            A_RI=second_rows,
            scale_mantissa_R=mantissas,
            scale_exponent_R=exponents,
        )

    for rising in (pair((1, 1), (-9, -8)), pair((15, 1), (-9, -8)), pair((1, 3), (0, 0)), pair((1, 1), (0, 0), b=1)):
        validate(delta(rising), RULES)
    validate(delta(pair((1, 1), (0, 0), a=1)), RULES)
    validate(delta(pair((1, 1), (0, 0), b=-1)), RULES)  # -1 is the byte 255, above 0.
    assert refused(pair((1, 1), (-8, -9))) == Rule.NON_CANONICAL
    assert refused(pair((3, 1), (0, 0))) == Rule.NON_CANONICAL
    assert refused(pair((1, 1), (0, 0))) == Rule.NON_CANONICAL  # Equal: they would be one of twice the scale.


def test_columns_that_begin_alike_are_compared_to_their_last_entry() -> None:
    long = Module(name="down", kind=ModuleKind.LINEAR, out_features=100, in_features=3)
    rules = replace(RULES, modules=(long,))

    def pair(first: int, second: int, a: int = 0) -> LowRank:
        columns = np.full((100, 2), 64, np.int8)
        columns[99] = first, second
        return LowRank(
            module="down",
            B_OR=columns,
            A_RI=np.array([[64, 0, a], [64, 0, 0]], np.int8),
            scale_mantissa_R=(1, 1),
            scale_exponent_R=(0, 0),
        )

    validate(delta(pair(1, 2)), rules)
    validate(delta(pair(1, 2, a=1)), rules)
    for wrong in (pair(2, 1), pair(-1, 1), pair(1, 1), pair(1, 1, a=1)):
        with pytest.raises(RejectError) as caught:
            validate(delta(wrong), rules)
        assert (caught.value.rule, "component 1 out of order" in caught.value.detail) == (Rule.NON_CANONICAL, True)


@pytest.mark.parametrize("block", [1, 2, 5, 1 << 18])
def test_every_component_is_looked_at_however_many_at_a_time(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_module, "_BLOCK_INTEGERS", block)
    columns = np.full((2, 4), 64, np.int8)
    part = sent(A_RI=None, row_R=(0, 1, 2, 3), B_OR=columns, scale_mantissa_R=(1,) * 4, scale_exponent_R=(0,) * 4)
    validate(delta(part), RULES)
    for k in range(4):
        small = columns.copy()
        small[:, k] = 63
        with pytest.raises(RejectError) as caught:
            validate(delta(replace(part, B_OR=small)), RULES)
        assert f"B column {k}: found largest absolute value 63" in caught.value.detail


def test_seeded_rows_are_signs_that_do_not_depend_on_how_many_are_drawn() -> None:
    many = seeded_rows(CONTEXT, "down", rows=9, columns=13)
    assert many.dtype == np.int8
    assert set(np.unique(many)) == {-1, 1}
    for rows in range(9):
        assert np.array_equal(seeded_rows(CONTEXT, "down", rows=rows, columns=13), many[:rows])


def test_every_part_of_the_seed_matters() -> None:
    def draw(name: str = "down", **changes: object) -> bytes:
        return seeded_rows(replace(CONTEXT, **changes), name, rows=4, columns=64).tobytes()  # type: ignore[arg-type]

    drawn = [draw(), draw(swarm=bytes([7]) * 32), draw(member=bytes(32)), draw(period=1), draw("up")]
    assert len(set(drawn)) == 5


def test_a_seed_context_has_ids_of_32_bytes_and_a_period() -> None:
    for wrong in ({"swarm": b""}, {"member": bytes(31)}, {"period": -1}, {"period": 1 << 64}):
        with pytest.raises(ValueError, match="required"):
            replace(CONTEXT, **wrong)


def test_expanding_draws_the_rows_that_the_components_name() -> None:
    expanded = expand(delta(seeded(), dense()), CONTEXT, RULES.modules)
    part = expanded.parts[0]
    assert isinstance(part, LowRank)
    assert part.A_RI is not None
    assert np.array_equal(part.A_RI, seeded_rows(CONTEXT, "down", rows=3, columns=3)[[0, 2]])
    assert part.row_R == (0, 2)
    assert expanded.parts[1] == dense()
    validate(expanded, RULES)
    with pytest.raises(ValueError, match="expand the delta first"):
        to_float(seeded())


def test_arrays_that_do_not_fit_each_other_are_our_own_mistake() -> None:
    wrong: list[dict[str, object]] = [
        {"scale_mantissa_R": (1,)},
        {"scale_exponent_R": (0,)},
        {"A_RI": np.zeros((3, 3), np.int8)},
        {"A_RI": None},
        {"row_R": (1,)},
        {"B_OR": np.zeros((2, 2), np.int16)},
    ]
    for changes in wrong:
        with pytest.raises(ValueError, match="found"):
            sent(**changes)
    with pytest.raises(ValueError, match="found"):
        dense(values_O=np.zeros((2, 2), np.int8))


def test_parts_are_equal_when_their_integers_are() -> None:
    assert sent() == sent()
    assert dense() == dense()
    assert sent() != seeded()
    assert sent() != sent(B_OR=np.array([[64, 100], [0, -126]], dtype=np.int8))
    assert dense() != dense(scale_mantissa=7)
    assert sent() != dense()
