"""Numbers of 8 significant bits: one form each, rounded half to even."""

import pytest

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.scaled import MAX_SCALED_EXPONENT, MIN_SCALED_EXPONENT, ZERO, Scaled
from fullrank_protocol.wire import objects_pb2 as wire


@pytest.mark.parametrize(
    ("number", "mantissa", "exponent"),
    [
        (1.0, 128, -7),
        (255.0, 255, 0),
        (256.0, 128, 1),
        (0.75, 192, -8),
        (128.5, 128, 0),  # Half way: to the even 128.
        (129.5, 130, 0),  # Half way: to the even 130.
        (255.5, 128, 1),  # Half way: 256 needs the next exponent.
        (255.4999, 255, 0),
        (0.0, 0, 0),
        (-0.0, 0, 0),
    ],
)
def test_a_number_is_rounded_half_to_even_to_eight_bits(number: float, mantissa: int, exponent: int) -> None:
    assert Scaled.of(number) == Scaled(mantissa=mantissa, exponent=exponent)


def test_the_value_is_exact() -> None:
    assert Scaled(mantissa=129, exponent=-7).value() == 1.0078125


def test_what_is_too_small_becomes_zero() -> None:
    assert Scaled.of(2.0 ** (MIN_SCALED_EXPONENT + 7)).exponent == MIN_SCALED_EXPONENT
    assert Scaled.of(2.0 ** (MIN_SCALED_EXPONENT + 6)) == ZERO
    assert Scaled.of(5e-324) == ZERO


@pytest.mark.parametrize("number", [-1.0, float("nan"), float("inf"), 2.0 ** (MAX_SCALED_EXPONENT + 8)])
def test_what_no_weight_can_be_is_our_own_mistake(number: float) -> None:
    with pytest.raises(ValueError, match="found"):
        Scaled.of(number)


def test_the_wire_form_comes_back() -> None:
    for number in (0.0, 1.0, 1e-9, 3.3e20):
        assert Scaled.from_wire(Scaled.of(number).to_wire()) == Scaled.of(number)


@pytest.mark.parametrize(("mantissa", "exponent"), [(127, 0), (256, 0), (1, 0), (0, 1), (128, 256), (128, -257)])
def test_a_second_form_of_a_number_is_refused(mantissa: int, exponent: int) -> None:
    with pytest.raises(RejectError) as caught:
        Scaled.from_wire(wire.Scaled(mantissa=mantissa, exponent=exponent))
    assert caught.value.rule == Rule.NON_CANONICAL
