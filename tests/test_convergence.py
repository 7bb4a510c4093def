"""What the methods promise, on problems whose answers are known.

Bounds on where a method ends are wide of what it reaches: they tell a method that arrives from one that does not.
"""

import functools

import numpy as np
import pytest

import fastadam as fa
from fastadam.schedules import Exponential, InverseSqrt, Polynomial
from fastadam.tools import cover

METHODS = {
    "Adam": fa.Adam,
    "AMSGrad": functools.partial(fa.Adam, amsgrad=True),
    "AdamW": functools.partial(fa.AdamW, weight_decay=0.0),  # which would move the answer
    "NAdam": fa.NAdam,
    "RAdam": fa.RAdam,
    "Adamax": fa.Adamax,
    "AdaBelief": fa.AdaBelief,
    "ADOPT": fa.ADOPT,
    "AdEMAMix": functools.partial(fa.AdEMAMix, betas=(0.9, 0.999, 0.99), alpha=1.0),  # else slower than these runs
    "ScheduleFreeAdamW": fa.ScheduleFreeAdamW,
    "ScheduleFreeSGD": fa.ScheduleFreeSGD,
    "Lion": fa.Lion,
    "LARS": fa.LARS,
    "StableAdamW": functools.partial(fa.StableAdamW, weight_decay=0.0),
    "Prodigy": fa.Prodigy,
    "LAMB": functools.partial(fa.LAMB, weight_decay=0.0),
    "RMSprop": fa.RMSprop,
    "Adagrad": fa.Adagrad,
    "SGD": fa.SGD,
    "momentum": functools.partial(fa.SGD, momentum=0.9),
}
# Each of whose coordinates has a scale of its own, and a step of lr: those of LAMB and LARS are as long as p, and what
# Prodigy finds is one number; the schedule-free ones forget nothing that fast.
NOT_ADAPTIVE = ("SGD", "momentum", "LAMB", "LARS", "Prodigy")
ADAPTIVE = [name for name in METHODS if name not in NOT_ADAPTIVE and "ScheduleFree" not in name]


def minimize(name, gradient, start, lr, steps, **named):
    """Where the method gets from `start` in so many steps."""
    x = np.array(start, float)
    opt = METHODS[name](x, lr=lr, **named)
    for _ in range(steps):
        opt.step(gradient(x))
    return x


def test_every_method_is_here():
    assert {getattr(method, "func", method) for method in METHODS.values()} == set(cover.METHODS)


# ---- f(x) = ½ Σ λ_i (x_i - x*_i)², 1 <= λ <= 1e6

STIFFNESS = np.logspace(0, 6, 20)
TARGET = np.cos(np.arange(20.0))


def quadratic_gradient(x):
    return STIFFNESS * (x - TARGET)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_quadratic_of_condition_a_million_is_solved(name):
    """A step does not depend on λ where each coordinate has a scale of its own; lr falls from 0.1 to 1e-9.

    Adagrad's falls by itself. RAdam's first five steps do depend on λ: they are momentum steps, with the default betas.
    """
    steps = 5000
    lr = Exponential(0.1, gamma=1e-8, every=steps)
    if name == "Adagrad":
        lr = 1.0
    if name == "RAdam":
        lr = lambda t: 0.0 if t <= 5 else Exponential(0.1, gamma=1e-8, every=steps)(t)  # noqa: E731
    x = minimize(name, quadratic_gradient, np.zeros(20), lr, steps)
    assert np.abs(x - TARGET).max() <= 1e-8


def test_gradient_descent_takes_a_million_steps_for_it():
    """Each coordinate's error is (1 - lr·λ)^t of what it was, and lr <= 2/λmax: exactly what SGD gives, and slow."""
    lr, steps = 1.9e-6, 5000
    x = minimize("SGD", quadratic_gradient, np.zeros(20), lr, steps)
    error = (1 - lr * STIFFNESS) ** steps * -TARGET
    # Of each step, 4 roundings of numbers within 3 |x*|; errors of earlier steps shrink.
    np.testing.assert_allclose(x - TARGET, error, rtol=0, atol=4 * steps * np.finfo(float).eps / 2 * 3)
    assert np.abs(x - TARGET).max() > 0.9


# ---- Rosenbrock 1960: (1 - x)² + 100 (y - x²)², from (-1.2, 1) to (1, 1) along a bent valley


def rosenbrock_gradient(p):
    x, y = p.tolist()
    return np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])


@pytest.mark.parametrize(
    ("name", "lr", "steps", "error"),
    [
        ("Adam", 0.1, 5_000, 1e-9),
        ("AMSGrad", 0.1, 5_000, 1e-3),
        ("AdamW", 0.1, 5_000, 1e-9),
        ("NAdam", 0.01, 10_000, 1e-6),
        ("RAdam", 0.003, 20_000, 1e-9),
        ("Adamax", 0.1, 10_000, 1e-9),
        ("AdaBelief", 0.1, 5_000, 1e-9),
        ("ADOPT", 1.0, 20_000, 1e-9),
        ("AdEMAMix", 0.1, 5_000, 1e-9),
        ("Lion", 0.003, 20_000, 1e-3),
        ("LAMB", 0.03, 20_000, 1e-3),
        ("LARS", 1.0, 5_000, 0.1),
        ("StableAdamW", 0.03, 10_000, 1e-4),
        ("Prodigy", 1.0, 5_000, 1e-2),
        ("RMSprop", 0.003, 10_000, 1e-3),
        ("Adagrad", 0.3, 20_000, 1e-2),
        ("SGD", 0.003, 20_000, 1e-2),
        ("momentum", 0.001, 20_000, 1e-9),
    ],
)
def test_rosenbrocks_valley_is_followed_to_its_end(name, lr, steps, error):
    """Each in about twice the steps that it needs for that, in round numbers."""
    p = minimize(name, rosenbrock_gradient, [-1.2, 1.0], Polynomial(lr, steps), steps)
    assert np.abs(p - 1).max() <= error


# ---- Reddi et al. 2018: f_t(x) = C·x once a cycle, else -x, on [-1, 1]; -1 is best for all cycles together


def on_the_interval(amsgrad, cycle, start, lr, steps, **named):
    """x after each step, projected onto [-1, 1] as in the paper."""
    x, trace = np.array([start]), []
    opt = fa.Adam(x, lr=lr, amsgrad=amsgrad, **named)
    for t in range(steps):
        opt.step(np.array([cycle[t % len(cycle)]]))
        np.clip(x, -1, 1, out=x)
        trace.append(x.item())
    return np.array(trace)


def test_adam_fails_where_amsgrads_authors_prove_it_must():
    """Theorem 1: C = 3, β1 = 0, β2 = 1/(1 + C²), lr = α/√t: from 1, Adam is back at 1 after every cycle."""
    problem = dict(cycle=[3.0, -1.0, -1.0], start=1.0, lr=InverseSqrt(0.5), steps=6000, betas=(0.0, 0.1))
    adam = on_the_interval(False, **problem)
    assert (adam[2::3] == 1).all()
    assert (adam > 0).all()
    assert on_the_interval(True, **problem)[-1] <= -0.99


def test_adam_fails_in_amsgrads_experiment():
    """Section 5: 1010·x at every 101st step, else -10·x; β1 = 0.9, β2 = 0.99."""
    problem = dict(cycle=[1010.0] + [-10.0] * 100, start=0.0, lr=InverseSqrt(0.5), steps=30_300, betas=(0.9, 0.99))
    assert on_the_interval(False, **problem)[-1] >= 0.9
    assert on_the_interval(True, **problem)[-1] <= -0.9


# ---- rare features: least squares on 0s and 1s, the k-th feature in k^-1.5 of the examples


def error_of_the_rare(name, seed):
    """Root mean square error of the rarer half of the weights, at the best of a sweep of learning rates."""
    features, examples = 48, 4000
    rng = np.random.default_rng(seed)
    present = (rng.random((examples, features)) < np.arange(1, features + 1) ** -1.5).astype(float)
    weights = rng.choice([-1.0, 1.0], features)
    labels = present @ weights
    errors = []
    for lr in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        w = np.zeros(features)
        opt = METHODS[name](w, lr=Polynomial(lr, examples))
        for x, y in zip(present, labels, strict=True):
            opt.step((x @ w - y) * x)
            if abs(w[0]) > 1e3:  # diverged
                break
        errors.append(np.sqrt(np.mean((w - weights)[features // 2 :] ** 2)))
    return min(errors)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.whole) for seed in (1, 2))])
def test_rare_features_are_learned_by_methods_with_a_scale_for_each(seed):
    sgd = error_of_the_rare("SGD", seed)
    assert sgd >= 5 * error_of_the_rare("Adam", seed)
    assert sgd >= 5 * error_of_the_rare("Adagrad", seed)


# ---- a drifting target: ½(x - v·t)², v = 0.01 a step


def lags(name, lr, steps=3000, drift=0.01):
    """How far x is behind after each step."""
    x, behind = np.zeros(1), []
    opt = METHODS[name](x, lr=lr)
    for t in range(1, steps + 1):
        opt.step(x - drift * t)
        behind.append(drift * t - x.item())
    return np.array(behind)


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name not in ("Adagrad", "StableAdamW")])
def test_a_drifting_target_is_followed(name):
    """A step is about lr, five times what the target moves, so x is never further than both together.

    StableAdamW's is shorter after each turn, which surprises it.
    """
    assert np.abs(lags(name, 0.05)[1000:]).max() <= 0.05 + 0.01 + 1e-9


def test_adagrad_loses_a_drifting_target():
    """It never forgets a gradient, so its steps only shrink."""
    behind = lags("Adagrad", 0.05)
    assert (np.diff(behind[100:]) > 0).all()
    assert behind[-1] > 10


@pytest.mark.parametrize(("name", "momentum"), [("SGD", 0.0), ("momentum", 0.9)])
def test_gradient_descent_is_late_by_what_algebra_says(name, momentum):
    """In equilibrium every step is v = lr·(lag + v)/(1 - β), the lag being after the step."""
    lr, drift = 0.02, 0.01
    behind = lags(name, lr, drift=drift)
    assert behind[-1] == pytest.approx(drift * (1 - momentum) / lr - drift, rel=1e-9)
