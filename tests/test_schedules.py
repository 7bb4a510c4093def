"""Schedules, value by value, against torch.optim.lr_scheduler and optax.

`python tests/test_schedules.py`, where torch and optax are installed, writes their values to schedules.json, which is
what every machine compares with; where one of them can be imported its values are compared with the file's too.
"""

import copy
import json
import math
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import fastadam as fa
from fastadam.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    MultiStep,
    OneCycle,
    Polynomial,
    Schedule,
    Step,
    Warmup,
)

TABLE = Path(__file__).with_name("schedules.json")

# Schedule; torch's, of (torch.optim.lr_scheduler, optimizer); optax's, of optax; how many steps they are compared for.
CASES = [
    (Constant(0.1), lambda lr, o: lr.ConstantLR(o, factor=1.0), lambda ox: ox.constant_schedule(0.1), 5),
    (Step(0.1, every=7, gamma=0.3), lambda lr, o: lr.StepLR(o, 7, 0.3),
     lambda ox: ox.exponential_decay(0.1, 7, 0.3, staircase=True), 40),
    (MultiStep(0.1, (3, 4, 20), gamma=0.5), lambda lr, o: lr.MultiStepLR(o, [3, 4, 20], 0.5), None, 30),
    (MultiStep(0.1, (3,)), lambda lr, o: lr.MultiStepLR(o, [3]),
     lambda ox: ox.piecewise_constant_schedule(0.1, {3: 0.1}), 8),
    (Exponential(0.1, 0.9), lambda lr, o: lr.ExponentialLR(o, 0.9), lambda ox: ox.exponential_decay(0.1, 1, 0.9), 40),
    (Exponential(0.1, 0.5, every=9), None, lambda ox: ox.exponential_decay(0.1, 9, 0.5), 40),
    (Polynomial(0.1, 25), lambda lr, o: lr.PolynomialLR(o, 25), lambda ox: ox.linear_schedule(0.1, 0.0, 25), 40),
    (Polynomial(0.1, 25, power=2.5), lambda lr, o: lr.PolynomialLR(o, 25, 2.5),
     lambda ox: ox.polynomial_schedule(0.1, 0.0, 2.5, 25), 40),
    (Polynomial(0.1, 25, power=2, end_lr=0.03), None, lambda ox: ox.polynomial_schedule(0.1, 0.03, 2, 25), 40),
    (Cosine(0.1, 30), lambda lr, o: lr.CosineAnnealingLR(o, 30), lambda ox: ox.cosine_decay_schedule(0.1, 30), 31),
    (Cosine(0.1, 30, end_lr=0.02), lambda lr, o: lr.CosineAnnealingLR(o, 30, 0.02),
     lambda ox: ox.cosine_decay_schedule(0.1, 30, 0.2), 31),
    (Cosine(0.1, 30, end_lr=0.02), None, lambda ox: ox.cosine_decay_schedule(0.1, 30, 0.2), 40),
    (CosineRestarts(0.1, 10), lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 10), None, 40),
    (CosineRestarts(0.1, 5, factor=3, end_lr=0.01),
     lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 5, 3, 0.01),
     lambda ox: ox.sgdr_schedule([{"init_value": 0.1, "peak_value": 0.1, "warmup_steps": 0, "decay_steps": n,
                                   "end_value": 0.01} for n in (5, 15, 45)]), 64),
    (OneCycle(0.1, 40), lambda lr, o: lr.OneCycleLR(o, 0.1, 40), None, 40),
    (OneCycle(0.1, 37, 0.21, "linear", 10, 100),
     lambda lr, o: lr.OneCycleLR(o, 0.1, 37, pct_start=0.21, anneal_strategy="linear", div_factor=10,
                                 final_div_factor=100), None, 37),
    (OneCycle(0.1, 41, pct_start=0.37, three_phase=True),
     lambda lr, o: lr.OneCycleLR(o, 0.1, 41, pct_start=0.37, three_phase=True), None, 41),
    (OneCycle(0.1, 12, pct_start=0.0), lambda lr, o: lr.OneCycleLR(o, 0.1, 12, pct_start=0.0), None, 12),
    (Warmup(8, 0.1), None, lambda ox: ox.warmup_constant_schedule(0.0, 0.1, 8), 20),
    (Warmup(8, Cosine(0.1, 24, end_lr=0.01), start_lr=0.025),
     lambda lr, o: lr.SequentialLR(o, [lr.LinearLR(o, 0.25, 1.0, 8), lr.CosineAnnealingLR(o, 24, 0.01)], [8]),
     lambda ox: ox.warmup_cosine_decay_schedule(0.025, 0.1, 8, 32, 0.01), 32),
    (Warmup(5, Step(0.1, every=6, gamma=0.5), start_lr=0.05),
     lambda lr, o: lr.SequentialLR(o, [lr.LinearLR(o, 0.5, 1.0, 5), lr.StepLR(o, 6, 0.5)], [5]),
     lambda ox: ox.join_schedules([ox.linear_schedule(0.05, 0.1, 5),
                                   ox.exponential_decay(0.1, 6, 0.5, staircase=True)], [5]), 30),
]  # fmt: skip


def torchs(make, n):
    """The learning rates with which torch takes its first n steps."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, values = make(torch.optim.lr_scheduler, optimizer), []
    for _ in range(n):
        values.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if len(values) < n:  # OneCycleLR refuses to go on
            scheduler.step()
    return values


def optaxs(make, n):
    """optax's at its counts 0, 1, ..., in float64."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        schedule = make(optax)
        return [float(schedule(k)) for k in range(n)]
    finally:
        jax.config.update("jax_enable_x64", before)


PEERS = {"torch": torchs, "optax": optaxs}
COMPARED = [
    (f"{n} steps of {schedule}", peer, schedule, make, n)
    for schedule, *makes, n in CASES
    for peer, make in zip(PEERS, makes, strict=True)
    if make
]


def tolerance(n):
    """|error| after n steps of lr <= 0.1: torch derives each value from the last, with up to 8 roundings a step."""
    return (8 * n + 16) * np.finfo(float).eps / 2 * 0.1


@pytest.mark.parametrize(("name", "peer", "schedule", "make", "n"), COMPARED, ids=lambda x: x if type(x) is str else "")
def test_values_are_the_peers(name, peer, schedule, make, n):
    told = json.loads(TABLE.read_text())[peer][name]
    ours = [schedule(t) for t in range(1, n + 1)]
    assert len(told) == n
    assert all(type(lr) is float for lr in ours)
    np.testing.assert_allclose(ours, told, rtol=0, atol=tolerance(n))


@pytest.mark.parametrize(("name", "peer", "schedule", "make", "n"), COMPARED, ids=lambda x: x if type(x) is str else "")
def test_the_file_is_what_the_peers_give(name, peer, schedule, make, n):
    np.testing.assert_allclose(PEERS[peer](make, n), json.loads(TABLE.read_text())[peer][name], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(0.5), {1: 0.5, 9: 0.5}),
        (Step(1, every=10, gamma=0.5), {1: 1, 10: 1, 11: 0.5, 20: 0.5, 21: 0.25}),
        (MultiStep(1, [2, 3], gamma=0.5), {1: 1, 2: 1, 3: 0.5, 4: 0.25, 100: 0.25}),
        (Exponential(1, 0.25, every=2), {1: 1, 2: 0.5, 3: 0.25, 5: 0.0625}),
        (Polynomial(1, 4), {1: 1, 2: 0.75, 5: 0, 6: 0, 10**12: 0}),
        (Polynomial(1, 4, power=2, end_lr=0.5), {1: 1, 3: 0.625, 5: 0.5, 6: 0.5}),
        (Cosine(1, 6, end_lr=0.5), {1: 1, 3: 0.875, 4: 0.75, 7: 0.5, 8: 0.5, 10**12: 0.5}),
        (CosineRestarts(1, 2), {1: 1, 2: 0.5, 3: 1, 4: 0.5, 10**12 + 1: 1}),
        (CosineRestarts(1, 2, factor=2), {1: 1, 2: 0.5, 3: 1, 5: 0.5, 7: 1, 11: 0.5, 15: 1}),
        (InverseSqrt(1), {1: 1, 4: 0.5, 100: 0.1}),
        (InverseSqrt(1, warmup=4), {1: 0.25, 2: 0.5, 4: 1, 16: 0.5, 400: 0.1}),
        (OneCycle(1, 11, pct_start=6 / 11, div_factor=10, final_div_factor=10), {1: 0.1, 6: 1, 11: 0.01, 12: 0.01}),
        (OneCycle(1, 1), {1: 4e-6, 2: 4e-6}),
        (Warmup(4, 1), {1: 0, 2: 0.25, 5: 1, 6: 1}),
        (Warmup(2, Polynomial(1, 4), start_lr=0.5), {1: 0.5, 2: 0.75, 3: 1, 4: 0.75, 7: 0}),
        (Warmup(2, lambda t: 1 / t), {1: 0, 2: 0.5, 3: 1, 4: 0.5}),
    ],
    ids=lambda x: re.sub(r" at 0x\w+", "", str(x)),  # an address differs between workers
)
def test_values_that_are_known_by_heart(schedule, values):
    """By hand; to 8 roundings of numbers within 1, because no cosine in binary is exact."""
    for t, lr in values.items():
        assert schedule(t) == pytest.approx(lr, rel=0, abs=8 * np.finfo(float).eps), t


def test_the_inverse_square_root_is_the_papers():
    """Vaswani et al. 2017, equation 3: lrate = d^-0.5 · min(step^-0.5, step · warmup_steps^-1.5)."""
    d, warmup = 512, 4000
    schedule = InverseSqrt(1 / math.sqrt(d * warmup), warmup)
    for step in (1, 2, 3999, 4000, 4001, 100_000):
        assert schedule(step) == pytest.approx(d**-0.5 * min(step**-0.5, step * warmup**-1.5), rel=1e-15)


EVERY = [schedule for schedule, *_ in CASES] + [InverseSqrt(0.1, 5)]


def test_every_schedule_is_tested():
    assert {type(schedule) for schedule in EVERY} == set(Schedule.__subclasses__())


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_a_schedule_is_its_arguments(schedule):
    """It prints as the call that makes it, and compares, copies and pickles as its arguments."""
    for twin in eval(repr(schedule)), copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert twin(17) == schedule(17)
    with pytest.raises(AttributeError):
        schedule.lr = 1.0


def test_what_is_printed():
    assert repr(Warmup(5, Cosine(1e-3, 95))) == (
        "Warmup(steps=5, then=Cosine(lr=0.001, steps=95, end_lr=0.0), start_lr=0.0)"
    )
    assert repr(Warmup(5, 1)) == "Warmup(steps=5, then=Constant(lr=1.0), start_lr=0.0)"
    assert "lr=Step(lr=0.1, every=30, gamma=0.1)" in repr(fa.SGD(np.ones(3), lr=Step(0.1, 30), backend="numpy"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Constant(-1), ValueError, "lr is -1, expected a finite number of at least 0"),
        (lambda: Constant("fast"), TypeError, "lr is 'fast', expected a finite number of at least 0"),
        (lambda: Step(math.nan, 3), ValueError, "lr is nan, expected a finite number of at least 0"),
        (lambda: Step(1, 0), ValueError, "every is 0, expected an integer of at least 1"),
        (lambda: Step(1, 2.5), ValueError, "every is 2.5, expected an integer of at least 1"),
        (lambda: Step(1, True), TypeError, "every is True, expected an integer of at least 1"),
        (lambda: Step(1, 3, gamma=-0.5), ValueError, "gamma is -0.5, expected a finite number of at least 0"),
        (lambda: MultiStep(1, 3), TypeError, "milestones is 3, expected a tuple of step counts"),
        (lambda: MultiStep(1, (3, 3)), ValueError, r"milestones is \(3, 3\), expected rising step counts"),
        (lambda: MultiStep(1, (3, "4")), TypeError, r"milestones\[1\] is '4', expected an integer of at least 1"),
        (lambda: Polynomial(1, 5, power=-1), ValueError, "power is -1, expected a finite number of at least 0"),
        (lambda: Cosine(1, -5), ValueError, "steps is -5, expected an integer of at least 1"),
        (lambda: Cosine(1, 5, end_lr=-0.1), ValueError, "end_lr is -0.1, expected a finite number of at least 0"),
        (lambda: CosineRestarts(1, 5, factor=1.5), ValueError, "factor is 1.5, expected an integer of at least 1"),
        (lambda: InverseSqrt(1, 0), ValueError, "warmup is 0, expected an integer of at least 1"),
        (lambda: OneCycle(1, 5, pct_start=1), ValueError, "pct_start is 1, expected a finite number .*below 1"),
        (lambda: OneCycle(1, 5, pct_start=0.6, three_phase=True), ValueError, "pct_start is 0.6, expected at most 0.5"),
        (
            lambda: OneCycle(1, 5, anneal_strategy="cosine"),
            ValueError,
            "anneal_strategy is 'cosine', expected 'cos' or",
        ),
        (
            lambda: OneCycle(1, 5, anneal_strategy=np.array(["cos", "linear"])),
            TypeError,
            r"anneal_strategy is array\(.*\), expected 'cos' or 'linear'",
        ),
        (lambda: OneCycle(1, 5, div_factor=0.5), ValueError, "div_factor is 0.5, expected a finite number of at leas"),
        (lambda: OneCycle(1, 5, three_phase=1), TypeError, "three_phase is 1, expected True or False"),
        (lambda: Warmup(5, None), TypeError, "then is None, expected a finite number of at least 0"),
        (lambda: Warmup(5, Cosine), TypeError, "then is <class .*Cosine'>, expected a schedule or a number"),
        (lambda: Warmup(5, 1, start_lr=-1), ValueError, "start_lr is -1, expected a finite number of at least 0"),
        (lambda: Cosine(1, 5)(0), ValueError, "t is 0, expected the count of a step, from 1"),
        (lambda: Cosine(1, 5)(math.nan), ValueError, "t is nan, expected the count of a step, from 1"),
        (lambda: CosineRestarts(1, 5, factor=2)(math.inf), ValueError, "t is inf, expected the count of a step"),
        (lambda: Constant(1)("a"), TypeError, "t is 'a', expected the count of a step, from 1"),
        (lambda: Constant(1)(np.arange(2)), TypeError, r"t is array\(.*\), expected the count of a step, from 1"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


def descend(opt, p, steps):
    for _ in range(steps):
        opt.step(p + 1)


def hand_fed(schedule, steps):
    """Where Adam gets when each step's lr is set by hand."""
    p = np.linspace(-1, 1, 33)
    opt = fa.Adam(p, lr=0.0)
    for t in range(1, steps + 1):
        opt.groups[0].lr = float(schedule(t))
        descend(opt, p, 1)
    return p


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_an_optimizer_follows_its_schedule(schedule):
    p = np.linspace(-1, 1, 33)
    descend(fa.Adam(p, lr=schedule), p, 12)
    assert p.tobytes() == hand_fed(schedule, 12).tobytes()


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_a_resumed_run_is_where_it_was_in_its_schedule(schedule):
    p = np.linspace(-1, 1, 33)
    opt = fa.Adam(p, lr=schedule)
    descend(opt, p, 5)
    q = p.copy()
    resumed = fa.Adam(q, lr=schedule)
    resumed.load_state_dict(opt.state_dict())
    r, pickled = pickle.loads(pickle.dumps((p, opt)))
    assert pickled.groups[0].lr == schedule
    for array, each in (p, opt), (q, resumed), (r, pickled):
        descend(each, array, 7)
        assert each.t == 12
        assert array.tobytes() == hand_fed(schedule, 12).tobytes()


def test_groups_have_schedules_of_their_own():
    a, b = np.ones(3), np.ones(3)
    opt = fa.SGD([{"params": a, "lr": Step(1, every=1, gamma=0.5)}, {"params": b}], lr=Warmup(2, 1))
    opt.step([np.ones(3), np.ones(3)])
    opt.step([np.ones(3), np.ones(3)])
    assert a.tolist() == [-0.5] * 3
    assert b.tolist() == [0.5] * 3


def test_growth_without_bound_is_refused_by_name():
    p = np.ones(3)
    opt = fa.SGD(p, lr=Exponential(1.0, gamma=1e200))
    opt.step(p * 0)
    opt.step(p * 0)
    with pytest.raises(ValueError, match=r"^groups\[0\]\.lr\(3\) is inf, expected a finite number of at least 0$"):
        opt.step(p + 1)
    assert (opt.t, p.tolist()) == (2, [1, 1, 1])


class Scalar:
    """A number as JAX gives them: an array of no dimensions, which is no float."""

    def __init__(self, value):
        self.value = np.asarray(value, np.float32)

    def __float__(self):
        return float(self.value)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.asarray, Scalar])
def test_any_function_that_gives_a_number_is_a_learning_rate(kind):
    p = np.ones(3)
    fa.SGD(p, lr=lambda t: kind(0.25 * t)).step(np.ones(3))
    assert p.tolist() == [0.75] * 3
    assert Warmup(1, lambda t: kind(0.25))(2) == 0.25


def test_schedules_of_optax_are_learning_rates():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    optax = pytest.importorskip("optax")
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.5, 3, 9)
    p = np.linspace(-1, 1, 33)
    descend(fa.Adam(p, lr=lambda t: schedule(t - 1)), p, 12)
    assert p.tobytes() == hand_fed(lambda t: float(schedule(t - 1)), 12).tobytes()


def test_they_are_loaded_when_they_are_asked_for(fresh):
    asked = "import sys, fastadam as fa; print('fastadam.schedules' in sys.modules, fa.schedules.Cosine(1, 2))"
    assert fresh(asked) == "False Cosine(lr=1.0, steps=2, end_lr=0.0)\n"
    assert not hasattr(fa, "schedule")


if __name__ == "__main__":
    table = {peer: {} for peer in PEERS}
    for name, peer, _, make, n in COMPARED:
        table[peer][name] = PEERS[peer](make, n)
    text = json.dumps(table, indent=1)
    TABLE.write_text(text.replace(",\n   ", ", ").replace("[\n   ", "[").replace("\n  ]", "]") + "\n")
