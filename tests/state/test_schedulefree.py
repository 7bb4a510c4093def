"""Schedule-free methods: what params hold while training, what averaged() shows, and what is kept in between."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import same_bits

import fastadam as fa

METHODS = [(fa.ScheduleFreeAdamW, {"betas": (0.8, 0.95), "eps": 1e-3}), (fa.ScheduleFreeSGD, {"momentum": 0.8})]


def rates(t):
    """Up, then down: the weights follow the largest."""
    return 0.01 * t if t < 5 else 0.05 / t


def papers_average(method, start, grads, decay=0.1):
    """The paper's x after these steps, by its own three sequences: y, z and x."""
    x, z, v, weights, largest = start, start, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        y, lr = 0.2 * z + 0.8 * x, rates(t) * min(1, t / 4)
        v = 0.95 * v + 0.05 * g**2
        u = g / (np.sqrt(v / (1 - 0.95**t)) + 1e-3) if method is fa.ScheduleFreeAdamW else g
        z = z - lr * (u + decay * y)
        largest = max(largest, lr)
        weights += largest**2
        x = x + largest**2 / weights * (z - x)
    return x


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(("method", "chosen"), METHODS)
def test_averaged_shows_the_papers_x(method, chosen, backend):
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(50), rng.standard_normal((20, 50))
    p = start.copy()
    opt = method(p, lr=rates, weight_decay=0.1, warmup_steps=4, backend=backend, **chosen)
    for g in grads:
        opt.step(g)
    before = p.copy()
    with opt.averaged():
        # Some 20 roundings a step of numbers within 4, of which telling x from y makes 1 / 0.8.
        np.testing.assert_allclose(p, papers_average(method, start, grads), rtol=0, atol=20 * 20 * 2.0**-53 * 4 / 0.8)
        with pytest.raises(RuntimeError, match="averaged"):
            opt.step(grads[0])
    assert same_bits(p, before)


@pytest.mark.parametrize("master", [None, "remainder", "float32"])
def test_short_parameters_show_their_average_too(master):
    rng = np.random.default_rng(1)
    p = rng.standard_normal(3000).astype(ml_dtypes.bfloat16)
    opt = fa.ScheduleFreeAdamW(p, moments="8bit", master=master, backend="numba")
    for _ in range(3):
        opt.step(rng.standard_normal(3000).astype(ml_dtypes.bfloat16))
    state = opt.state_dict()["leaves"]["params"]
    assert (state["z"].dtype, state["v"].dtype) == (np.float32, np.uint8)  # z is no moment: it stays whole
    wide = state["master"] if master == "float32" else p.astype(np.float32)
    x = wide + (1 - 1 / 0.9) * (state["z"] - wide)
    with opt.averaged():
        assert np.abs(p.astype(np.float32) - x).max() <= 2.0**-8 * np.abs(x).max()


@pytest.mark.parametrize(("method", "chosen"), METHODS)
def test_a_resumed_run_has_the_same_bits(method, chosen):
    rng = np.random.default_rng(2)
    p, grads = rng.standard_normal(100), rng.standard_normal((6, 100))
    opt = method(p, lr=rates, warmup_steps=4, **chosen)
    for g in grads[:3]:
        opt.step(g)
    other = pickle.loads(pickle.dumps(opt))
    fresh = p.copy()
    loaded = method(fresh, lr=rates, warmup_steps=4, **chosen)
    loaded.load_state_dict(opt.state_dict())
    for g in grads[3:]:
        for each in (opt, other, loaded):
            each.step(g)
    assert same_bits(p, other.params)
    assert same_bits(p, fresh)


@pytest.mark.parametrize(("method", "chosen"), METHODS)
def test_what_would_keep_an_average_for_the_parameters_is_refused(method, chosen):
    p = np.ones(3)
    opt = method(p, **chosen)
    opt.step(np.ones(3))
    state, before = opt.state_dict(), p.copy()
    with opt.averaged():
        for keep in (copy.deepcopy, pickle.dumps, method.state_dict, lambda opt: opt.load_state_dict(state)):
            with pytest.raises(RuntimeError, match=r"inside averaged\(\) would"):
                keep(opt)
    assert same_bits(p, before)
    assert same_bits(copy.deepcopy(opt).params, before)


def test_ema_decay_shows_the_mean_of_the_parameters():
    p = np.zeros(2)
    opt = fa.ScheduleFreeSGD(p, lr=0.5, ema_decay=0.5)
    opt.step(np.ones(2))
    mean = 0.5 * p
    with opt.averaged():
        assert same_bits(p, mean)


def test_a_reset_begins_at_the_parameters_as_they_are():
    p = np.ones(4)
    opt = fa.ScheduleFreeSGD(p, lr=0.5)
    opt.step(np.ones(4))
    opt.reset()
    leaf = opt.state_dict()["leaves"]["params"]
    assert same_bits(leaf["z"], p)
    assert (leaf["weight_sum"], leaf["lr_max"]) == (0, 0)


@pytest.mark.parametrize(
    ("method", "named", "name"),
    [(fa.ScheduleFreeAdamW, {"betas": (0, 0.9)}, "betas"), (fa.ScheduleFreeSGD, {"momentum": 0}, "momentum")],
)
def test_an_average_that_could_not_be_told_is_refused(method, named, name):
    with pytest.raises(ValueError, match=rf"{name}.* is 0.0, expected a number above 0"):
        method(np.ones(2), **named)
