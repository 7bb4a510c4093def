"""Bounds on rounding are above what rounds, also where both underflow, and not far above."""

import numpy as np
import pytest

from fastadam.tools.bounds import Running
from fastadam.tools.verify import SLACK

WIDE = pytest.mark.skipif(
    np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps, reason="longdouble is no wider than float64 here"
)


def root(x):
    return x.sqrt() if isinstance(x, Running) else np.sqrt(x)


# Of four numbers and one that lifts a product of such numbers to where they are.
EXPRESSIONS = {
    "product": lambda a, b, c, d, lift: a * b,
    "product of a product": lambda a, b, c, d, lift: a * b * (c * lift),
    "sum of products": lambda a, b, c, d, lift: a * b + c * d + a * c + b * d,
    "product of sums": lambda a, b, c, d, lift: (a * b + c * d) * (a * (lift * 0.75) + 0.75),
    "root": lambda a, b, c, d, lift: root(a * b + c * d + a * c + b * d),
    "quotient": lambda a, b, c, d, lift: (a * b) / (c * lift),
    "average": lambda a, b, c, d, lift: ((a * b) * 0.875 + (c * d) * 0.125) * 0.875 + (a * d) * 0.125,
}


@WIDE
@np.errstate(all="ignore")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_rounds_and_underflows_stays_within(name, dtype):
    """Factors whose products lie around the smallest subnormal number, and far above it."""
    rng, wide, expression = np.random.default_rng(3), np.longdouble, EXPRESSIONS[name]
    half, worst = int(np.log2(np.finfo(dtype).smallest_subnormal)) // 2, []
    for exponent in (*range(half - 5, half + 6), half + 26, 0):
        x = (np.abs(rng.standard_normal((4, 20_000))) * 2.0**exponent).astype(dtype)
        lift = dtype(2.0**-exponent)
        rounded = expression(*x, lift)
        bounded = expression(*(Running(each.astype(wide), 0.0, Running.arithmetic(dtype)) for each in x), float(lift))
        off = np.abs(rounded.astype(wide) - bounded.value)
        assert not (off > SLACK * bounded.error).any(), exponent
        worst.append(float(np.max(off / np.where(off > 0, bounded.error, 1))))
    assert max(worst) > 0.2


@pytest.mark.parametrize(
    ("value", "error", "low", "high"),
    [
        (1.0, 0.5, 1 - np.sqrt(0.5), 0.2930),  # down is further than up
        (0.0, 0.25, 0.5, 0.5001),
        (1.0, 4.0, np.sqrt(5) - 1, 1.2362),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_a_root_moves_as_far_as_its_operand_lets_it(value, error, low, high):
    error = Running(np.full(3, value), np.full(3, error), Running.arithmetic(np.float32)).sqrt().error
    assert np.all((low <= error) & (error <= high))


def near(value, error):
    return Running(np.full(3, value), np.full(3, error), Running.arithmetic(np.float32))


def test_errors_of_operands_add_up_and_multiply():
    product, difference = near(1.0, 0.5) * near(-2.0, 0.25), near(1.0, 0.5) - near(2.0, 0.25)
    assert np.all((product.error >= 1.375) & (product.error < 1.3751))  # 1.5 * 2.25 - 2
    assert np.all((difference.error >= 0.75) & (difference.error < 0.7501))


def test_a_quotient_has_no_bound_where_its_divisor_may_be_zero():
    quotient = near(1.0, 0.0) / near(1.0, 0.5)
    assert np.all((quotient.error >= 1) & (quotient.error < 1.0001))  # 1 / 0.5 - 1
    assert np.all(np.isinf((near(1.0, 0.0) / near(0.5, 0.5)).error))
    assert np.all(np.isinf((near(1.0, 0.0) / near(0.5, 0.75)).error))


@WIDE
def test_a_product_of_inexact_numbers_that_underflows_stays_within():
    """Its bound is a sum of products, each of which underflows too."""
    rng, unit, small = np.random.default_rng(0), Running.arithmetic(np.float64), 2.0**-537
    a, b, off = (100 + rng.random(20_000)) * small, (100 + rng.random(20_000)) * small, 0.0048 * small
    rounded = (a + off) * (b + off)
    x, y = (Running(each.astype(np.longdouble), ((each + off) - each) * (1 + 1e-7), unit) for each in (a, b))
    product = x * y
    assert np.all(np.abs(rounded.astype(np.longdouble) - product.value) <= SLACK * product.error)


def test_a_root_of_what_has_no_bound_has_none():
    assert np.all(np.isinf((near(1.0, 0.0) / near(0.5, 0.75)).sqrt().error))


def test_errors_of_longdouble_values_are_float64():
    x = Running(np.full(3, 1e300, np.longdouble), np.full(3, 0.5, np.longdouble), Running.arithmetic(np.float64))
    for each in (x * x, x / 3, x.sqrt(), x + x):
        assert each.error.dtype == np.float64
        assert each.value.dtype == np.longdouble
