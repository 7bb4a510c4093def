"""The numbers that rules give kernels, against arithmetic of 80 digits, and what float32 makes of them."""

from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

import fastadam as fa
from fastadam import kernels, rules

DIGITS = Context(prec=80)
NEAR_ONE = [0.0, 1e-300, 0.5, 0.9, 0.999, 0.9999999, 1 - 1e-9, 1 - 1e-12, 1 - 2**-53]
COUNTS = [1, 2, 3, 4, 5, 6, 7, 10, 1000, 2000, 10**6, 10**7, 2**30, 2**40]
U = 2.0**-53


def relative(ours, exact):
    return float(abs(Decimal(ours) / exact - 1)) if exact else abs(ours)


@pytest.mark.parametrize("beta2", NEAR_ONE)
def test_the_length_of_radams_average_loses_no_digit(beta2):
    """A logarithm, a product, an exponential or six divisions, a sum: ten roundings, none of them magnified."""
    rule = rules.RAdam(betas=(0.9, beta2))
    with localcontext(DIGITS):
        beta = Decimal(beta2)
        for t in COUNTS:
            power = beta**t
            exact = 2 / (1 - beta) - 1 - 2 * t * power / (1 - power)
            assert relative(rule._length(t), exact) <= 10 * U, t


@pytest.mark.parametrize("beta2", [0.999, 0.9999999, 1 - 1e-9])
def test_radam_takes_its_side_of_the_threshold(beta2):
    """Where the paper's ρ_t lies above 5, and by how much the step is rectified; before, both were lost in rounding."""
    rule = rules.RAdam(betas=(0.9, beta2))
    with localcontext(DIGITS):
        beta1, beta = Decimal.from_float(0.9), Decimal(beta2)
        most = 2 / (1 - beta) - 1
        for t in (1, 2, 3, 4, 5, 6, 7, 10, 100, 10_000):
            numbers = rule.coefficients(t, 1e-3)
            rho, step = most - 2 * t * beta**t / (1 - beta**t), Decimal.from_float(1e-3) / (1 - beta1**t)
            assert (numbers.rsqrt_bias2 == 1) == (rho > 5), t
            if rho > 5:
                step *= ((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho) * (1 - beta**t)).sqrt()
            # (rho - 4) magnifies ten roundings by rho / (rho - 4), at most 5; the root halves what lies under it.
            assert relative(numbers.step_size, step) <= 60 * U, t


@pytest.mark.parametrize("beta", NEAR_ONE)
@pytest.mark.parametrize("method", [rules.Adam, rules.AdaBelief, rules.NAdam])
def test_bias_corrections_lose_no_digit(method, beta):
    rule = method(betas=(beta, beta))
    with localcontext(DIGITS):
        for t in COUNTS:
            names = kernels.ALL[rule.kernel].Coefficients._fields
            numbers = dict(zip(names, rule.coefficients(t, 1.0, *rule.carried.values()), strict=False))
            bias = 1 - Decimal(beta) ** t
            assert relative(numbers["rsqrt_bias2"], 1 / bias.sqrt()) <= 8 * U, t
            if method is not rules.NAdam:
                assert relative(numbers["step_size"], 1 / bias) <= 8 * U, t


@pytest.mark.parametrize(
    ("method", "given", "name"),
    [
        (fa.AdamW, {"betas": (0.9, 1 - 1e-8)}, r"betas\[1\]"),
        (fa.Lion, {"betas": (1 - 1e-8, 0.9)}, r"betas\[0\]"),
        (fa.Adamax, {"betas": (0.9, 1 - 2**-25)}, r"betas\[1\]"),
        (fa.RMSprop, {"alpha": 1 - 1e-8}, "alpha"),
        (fa.SGD, {"momentum": 1 - 1e-8}, "momentum"),
    ],
)
def test_a_rate_that_float32_rounds_to_one_is_refused(method, given, name):
    with pytest.raises(ValueError, match=rf"{name} is 0.99999.*, which is 1 in float32; expected at most 0.9999999"):
        method(np.ones(3, np.float32), **given)
    opt = method(np.ones(3), **given)  # in float64 it is not
    opt.step(np.ones(3))


def test_a_mixing_coefficient_is_no_rate():
    """AdEMAMix's alpha multiplies the slow mean: just below 1 it is 1 in float32, which is as good as any."""
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    opt, one = fa.AdEMAMix(p, alpha=1 - 1e-9), fa.AdEMAMix(q, alpha=1.0)
    opt.groups[0].alpha = 1 - 1e-10
    for each in (opt, one):
        each.step(np.full(3, 0.5, np.float32))
    np.testing.assert_allclose(p, q, rtol=0, atol=2 * 2.0**-24)


def test_the_last_rate_below_one_is_taken():
    most = float(np.nextafter(np.float32(1), np.float32(0)))
    opt = fa.Adam(np.ones(3, np.float32), betas=(0.9, most))
    with pytest.raises(ValueError, match=r"groups\[0\].betas\[1\] is 0.99999"):
        opt.groups[0].betas = (0.9, 1 - 1e-8)
    assert opt.groups[0].betas == (0.9, most)


@pytest.mark.parametrize("moments", [None, "bfloat16"])
def test_where_v_in_float32_stands_still(moments):
    """Within u/(1 - β2) = 1/16 of its mean at β2 = 1 - 2^-20, whatever v rests in; in float64 it goes on.

    β2 and its complement are exact in float32, so nothing but the rounding of v itself is at work.
    """
    rate, steps = 1 - 2.0**-20, 200

    def drift(dtype, start, moments):
        p = np.zeros(1024, dtype)
        opt = fa.Adam(p, betas=(0.9, rate), moments=moments)
        opt.step(np.ones(1024, dtype) * np.sqrt(start / (1 - rate)).astype(dtype))
        before = opt.moments()["params"]["v"].copy()
        assert abs(before / start - 1).max() < 2**-7
        for _ in range(steps):
            opt.step(np.ones(1024, dtype))
        return (opt.moments()["params"]["v"].astype(float) - before).mean()

    assert drift(np.float32, 1.04, moments) == 0  # one step would move it by 0.04·2^-20, a third of its spacing
    assert drift(np.float32, 1.2, moments) < 0
    expected = 0.04 * ((1 - 2.0**-20) ** steps - 1)
    assert abs(drift(np.float64, 1.04, None) / expected - 1) < 1e-6


def in_float32(beta2):
    """(b, c) as a float32 kernel has them, exactly: of any method with this second rate."""
    numbers = rules.Adam(betas=(0.9, beta2)).coefficients(1, 1e-3)
    return [Fraction(float(np.float32(x))) for x in (numbers.beta2, numbers.one_minus_beta2)]


@pytest.mark.parametrize("beta2", [0.99, 0.999, 0.9999, 0.99999, 0.999999, 0.9999999])
def test_no_float32_pair_is_right_at_first_and_in_the_end(beta2):
    """v <- b·v + c·g² is c·g² at first, which should be (1 - β2)·g², and c/(1 - b)·g² in the end, which should be g².

    Both to 4 u would need (1 - b)/(1 - β2) within 8 u of 1. But b is a multiple of 2^-24.
    """
    u, b = Fraction(1, 2**24), Fraction(float(np.float32(beta2)))
    gaps = [abs((1 - near) / (1 - Fraction(beta2)) - 1) for near in (b - u, b, b + u) if near < 1]
    assert min(gaps) > 8 * u
    ours, c = in_float32(beta2)
    assert (ours, min(gaps)) == (b, gaps[1])  # PyTorch's, and the nearest
    assert abs(c / (1 - Fraction(beta2)) - 1) <= 2 * u
    off = abs(c / (1 - b) - 1)
    assert gaps[1] / 2 < off
    assert off <= u / 2 / (1 - b) + 2 * u  # half of what float32 cannot move v by: see below


@pytest.mark.parametrize("beta2", [0.9, 0.999, 0.999999, 0.9999999, 1 - 2.0**-24])
def test_a_rate_that_float32_holds_is_right_at_first_and_in_the_end(beta2):
    held = float(np.float32(beta2))
    b, c = in_float32(held)
    assert b == Fraction(held)
    assert c == 1 - b
