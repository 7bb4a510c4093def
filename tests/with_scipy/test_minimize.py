"""fastadam.scipy under scipy.optimize.minimize itself."""

import importlib
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import Bounds, minimize, rosen, rosen_der

import fastadam as fa
from fastadam.schedules import Cosine
from fastadam.scipy import Minimizer, adam, limits

solvers = importlib.import_module("fastadam.scipy")
rng = np.random.default_rng(0)
A, B = rng.normal(size=(64, 5)), rng.normal(size=64)


def squares(x, a=A, b=B):
    """Half the mean of squares, and its gradient."""
    error = a @ x - b
    return 0.5 * np.mean(error**2), a.T @ error / len(b)


def textbook(x, gradients, lr):
    """Kingma & Ba 2015, Algorithm 1, in plain floats."""
    m = v = 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - lr(t) * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def test_it_takes_the_papers_steps():
    result = minimize(squares, np.ones(5), jac=True, method=adam, options={"lr": 1e-2, "maxiter": 50})
    expected = textbook(np.ones(5), [lambda x: squares(x)[1]] * 50, lambda t: 1e-2)
    np.testing.assert_allclose(result.x, expected, rtol=1e-13)
    assert (result.nit, result.nfev, result.njev, result.status, result.success) == (50, 51, 51, 0, True)
    value, gradient = squares(result.x)
    assert result.fun == value
    assert (result.jac == gradient).all()


def test_it_converges_and_stops_at_gtol():
    result = minimize(squares, np.zeros(5), jac=True, method=adam, tol=1e-7, options={"lr": 0.1, "maxiter": 5000})
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A, B)[0], atol=1e-6)
    assert (result.status, result.success) == (0, True)
    assert result.nit < 5000
    assert abs(result.jac).max() <= 1e-7
    assert result.message == "No element of the gradient is larger than gtol."
    late = minimize(squares, np.zeros(5), jac=True, method=adam, tol=1e-7, options={"maxiter": 3})
    assert (late.status, late.success, late.nit) == (1, False, 3)
    at_once = minimize(squares, result.x, jac=True, method=adam, tol=1e-6)
    assert (at_once.nit, at_once.nfev) == (0, 1)


@pytest.mark.parametrize("name", [name for name in solvers.__all__ if name != "Minimizer"])
def test_every_method_descends(name):
    method = getattr(solvers, name)
    options = {"lr": 1e-3, "maxiter": 200}
    result = minimize(rosen, np.zeros(4), jac=rosen_der, method=method, options=options)
    assert result.fun < rosen(np.zeros(4))
    weights = np.zeros(4)
    opt = method.optimizer(weights, lr=1e-3)
    for _ in range(200):
        opt.step(rosen_der(weights))
    assert (result.x == weights).all()


def test_the_docs_name_every_method():
    assert {each.optimizer for each in vars(solvers).values() if isinstance(each, Minimizer)} == {
        fa.SGD, fa.AdaBelief, fa.Adagrad, fa.Adam, fa.AdamW, fa.Adamax, fa.Lion, fa.NAdam, fa.RAdam, fa.RMSprop
    }  # fmt: skip


def test_lr_times_schedule():
    schedule = Cosine(1.0, steps=20)
    result = minimize(
        squares, np.ones(5), jac=True, method=adam, options={"lr": 0.1, "schedule": schedule, "maxiter": 20}
    )
    expected = textbook(np.ones(5), [lambda x: squares(x)[1]] * 20, lambda t: 0.1 * schedule(t))
    np.testing.assert_allclose(result.x, expected, rtol=1e-12)
    default = minimize(squares, np.ones(5), jac=True, method=adam, options={"schedule": lambda t: 2.0, "maxiter": 1})
    np.testing.assert_allclose(default.x, textbook(np.ones(5), [lambda x: squares(x)[1]], lambda t: 2e-3), rtol=1e-13)


def test_batches_use_up_every_row_once_an_epoch():
    taken = []

    def fun(x, a, b, scale):
        taken.append((a.shape, b.tolist(), scale))
        return squares(x, a, b)

    options = {"lr": 1e-2, "batch": 24, "maxiter": 6, "seed": 5}
    result = minimize(fun, np.zeros(5), args=(A, B, 3.0), jac=True, method=adam, options=options)
    assert [shape[0] for shape, _, _ in taken] == [24, 24, 16, 24, 24, 16, 24, 64]  # 6 steps need 7 samples, then all
    for epoch in (taken[:3], taken[3:6]):
        assert sorted(row for _, rows, _ in epoch for row in rows) == sorted(B)
    assert taken[0] != taken[3]
    assert {scale for _, _, scale in taken} == {3.0}
    assert (result.nit, result.nfev) == (6, 8)
    assert result.fun == squares(result.x)[0]
    again = minimize(fun, np.zeros(5), args=(A, B, 3.0), jac=True, method=adam, options=options)
    assert (again.x == result.x).all()
    other = minimize(fun, np.zeros(5), args=(A, B, 3.0), jac=True, method=adam, options={**options, "seed": 6})
    assert (other.x != result.x).any()


def test_a_step_that_leaves_x_draws_a_new_sample_all_the_same():
    """minimize's own memory of the last x would hand out the old sample's gradient for ever."""
    draws = iter([0.0, 0.0, 1.0, 1.0])
    result = minimize(lambda x: (0.0, [next(draws)]), [2.0], jac=True, method=adam, options={"maxiter": 3, "lr": 0.5})
    assert result.x[0] < 2


def test_bounds():
    options = {"lr": 0.1, "maxiter": 400}
    free = minimize(squares, np.zeros(5), jac=True, method=adam, options=options).x
    high = np.where(np.arange(5) % 2, free - 0.1, np.inf)
    bounded = minimize(squares, np.full(5, 9.0), jac=True, method=adam, bounds=Bounds(-np.inf, high), options=options)
    reference = minimize(squares, np.full(5, 9.0), jac=True, method="L-BFGS-B", bounds=Bounds(-np.inf, high))
    np.testing.assert_allclose(bounded.x, reference.x, atol=1e-4)
    assert (bounded.x <= high).all()
    pairs = [(None, h if np.isfinite(h) else None) for h in high]
    again = minimize(squares, np.full(5, 9.0), jac=True, method=adam, bounds=pairs, options=options)
    assert (again.x == bounded.x).all()
    clipped = minimize(squares, np.full(5, 9.0), jac=True, method=adam, bounds=pairs, options={"maxiter": 0})
    assert (clipped.x == np.minimum(9.0, high)).all()


def test_bounds_hold_in_float32():
    """0.1 rounds up there, and 0.3, too: the ends are the next numbers inside; equal ends are the nearest number."""
    below = float(np.nextafter(np.float32(0.1), np.float32(0)))

    def slope(x):
        return 0.0, np.array([-1, 1, 1])

    pairs = [(None, 0.1), (below + 1e-12, None), (0.3, 0.3)]
    short = minimize(slope, np.full(3, 0.2, np.float32), jac=True, method=adam, bounds=pairs, options={"lr": 1.0})
    assert short.x.dtype == np.float32
    assert [float(v) for v in short.x] == [below, float(np.float32(0.1)), float(np.float32(0.3))]


def test_bounds_beyond_float32():
    """Ends that are finite and no float32 are its largest number, without a warning; where none is between, refused."""
    start, largest = np.ones(3, np.float32), float(np.finfo(np.float32).max)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        wide = minimize(square_32, start, jac=True, method=adam, bounds=[(-1e300, 1e300)] * 3, options={"maxiter": 5})
        free = minimize(square_32, start, jac=True, method=adam, options={"maxiter": 5})
        assert (wide.x == free.x).all()
        tiny = minimize(square_32, start, jac=True, method=adam, bounds=[(1e-50, 1e-46)] * 3, options={"maxiter": 1})
        assert (tiny.x == 0).all()  # the nearest to the low end
        low, high = limits([(-1e300, 1e300), (-1e39, None), (None, 1e39)], start)
        assert low.tolist() == [-largest, -largest, -math.inf]
        assert high.tolist() == [largest, math.inf, largest]
        for pair in ((1e39, 1e40), (-1e40, -1e39)):
            with pytest.raises(ValueError, match=r"bounds\[1\] is \(-?1e\+.*\), expected some float32 between the two"):
                minimize(square_32, start, jac=True, method=adam, bounds=[(0, 1), pair, (0, 1)])


def square_32(x):
    return (x * x).sum(), 2 * x


def test_callbacks():
    seen, results = [], []
    minimize(squares, np.ones(5), jac=True, method=adam, callback=seen.append, options={"maxiter": 3})

    def note(intermediate_result):
        results.append(intermediate_result)
        if len(results) == 3:
            raise StopIteration

    stopped = minimize(squares, np.ones(5), jac=True, method=adam, callback=note, options={"maxiter": 9})
    assert all((x == result.x).all() for x, result in zip(seen, results, strict=True))
    assert [result.fun for result in results] == [squares(x)[0] for x in seen]
    assert (stopped.nit, stopped.nfev, stopped.status, stopped.success) == (3, 4, 99, False)
    assert (stopped.x == seen[-1]).all()


def test_dtypes_and_the_objective_cannot_change_x():
    def spoiling(x, a, b):
        value, gradient = squares(x, a, b)
        kinds.append(x.dtype)
        x[:] = np.nan
        return value, gradient

    kinds = []
    short = A.astype(np.float32), B.astype(np.float32)
    result = minimize(spoiling, np.ones(5, np.float32), args=short, jac=True, method=adam, options={"maxiter": 5})
    assert result.x.dtype == result.jac.dtype == np.float32
    assert set(kinds) == {np.dtype(np.float32)}
    assert np.isfinite(result.x).all()
    assert minimize(squares, [1, 1, 1, 1, 1], jac=True, method=adam, options={"maxiter": 5}).x.dtype == np.float64


def test_options_reach_the_optimizer():
    gradients = [np.array([30.0, 40.0]), np.array([np.nan, 0.0]), np.array([30.0, 40.0])]
    served = iter(gradients * 2)
    options = {"lr": 1.0, "max_norm": 5.0, "skip_nonfinite": True, "maxiter": 3}
    result = minimize(lambda x: (0.0, next(served)), [0.0, 0.0], jac=True, method=solvers.sgd, options=options)
    assert result.x.tolist() == [-6, -8]  # of three steps the second is left out
    assert result.nit == 3
    ended = minimize(lambda x: (math.inf, x), [1.0], jac=True, method=adam, options={"maxiter": 1})
    assert (ended.status, ended.success) == (2, False)
    lost = minimize(lambda x: (0.0, x * math.nan), [1.0], jac=True, method=adam, options={"maxiter": 1})
    assert (lost.status, lost.success) == (2, False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"jac": None}, ValueError, "jac is None, expected a function, or True"),
        ({"hess": lambda x: x}, ValueError, "hess is .*expected none"),
        ({"constraints": [{"type": "eq", "fun": sum}]}, ValueError, "constraints is .*expected none"),
        ({"bounds": [(0, 1)]}, ValueError, "bounds has 1 pairs, expected one for each of the 5"),
        ({"bounds": [(0, 1)] * 4 + [(2, 1)]}, ValueError, r"bounds\[4\] is \(2.0, 1.0\), expected a low end"),
        ({"bounds": 3}, TypeError, "bounds is 3, expected scipy.optimize.Bounds or pairs"),
        ({"options": {"maxiter": -1}}, ValueError, "maxiter is -1, expected an integer of at least 0"),
        ({"options": {"gtol": "a"}}, TypeError, "gtol is 'a', expected a finite number"),
        ({"tol": -1}, ValueError, "tol is -1, expected a finite number of at least 0"),
        ({"callback": 5}, TypeError, "callback is 5, expected a function"),
        ({"x0": np.ones(5, complex)}, TypeError, r"x0 is complex128\(5,\), expected real numbers"),
        ({"x0": np.array(["a"] * 5)}, TypeError, r"x0 is <U1\(5,\), expected real numbers"),
        ({"x0": np.array([object()] * 5)}, TypeError, r"x0 is object\(5,\), expected real numbers"),
        ({"x0": np.array([1j] * 5, object)}, TypeError, r"x0 is object\(5,\), expected real numbers"),
        ({"x0": np.ones(5, "M8[s]")}, TypeError, r"x0 is datetime64\[s\]\(5,\), expected real numbers"),
        ({"args": (A, B), "options": {"batch": 2, "seed": -1}}, ValueError, "seed is -1, expected an integer"),
        ({"options": {"schedule": 2}}, TypeError, "schedule is 2, expected a function"),
        ({"options": {"learning_rate": 2}}, TypeError, "Adam takes no 'learning_rate', expected any of .*lr, betas"),
        ({"options": {"batch": 2}}, ValueError, r"batch is 2 and args has arrays of shapes \[\], expected one number"),
        ({"args": (A, B[1:]), "options": {"batch": 2}}, ValueError, r"shapes \[\(64, 5\), \(63,\)\], expected one"),
        ({"options": {"lr": lambda t: -1.0}}, ValueError, r"lr\(1\) is -1.0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(change, error, message):
    with pytest.raises(error, match=message):
        minimize(squares, **{"x0": np.ones(5), "jac": True, "method": adam, **change})


def test_what_fun_returns_is_checked():
    with pytest.raises(ValueError, match=r"jac returned an array of shape \(2,\), expected that of x, \(3,\)"):
        minimize(lambda x: (0.0, x[:2]), np.ones(3), jac=True, method=adam)
    with pytest.raises(TypeError, match=r"what jac returned is complex128\(3,\), expected real numbers"):
        minimize(lambda x: (0.0, x * 1j), np.ones(3), jac=True, method=adam)
    with pytest.raises(TypeError, match=r"what jac returned is <U1\(3,\), expected real numbers"):
        minimize(lambda x: (0.0, ["a"] * 3), np.ones(3), jac=True, method=adam)
    half = [Fraction(1, 2)] * 3
    assert (
        minimize(lambda x: (0.0, half), half, jac=True, method=solvers.sgd, options={"lr": 1, "maxiter": 1}).x == 0
    ).all()
    with pytest.raises(ValueError, match=r"fun returned an array of shape \(3,\), expected a number"):
        minimize(lambda x: (x, x), np.ones(3), jac=True, method=adam)
