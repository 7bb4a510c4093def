"""Methods whose sums go over all leaves at once: one number is made of them, carried on, and never half written."""

import copy
import pickle
import sys

import numpy as np
import pytest
from cases import same_bits
from test_mutants import changed, load

import fastadam as fa
import papers
from fastadam import kernels
from fastadam.kernels.contract import Kernel

BACKENDS = ["numpy", "numba"]
CURVES = [np.linspace(1, 3, n) for n in (5, 1200, 1, 3000)]
CHOSEN = {"weight_decay": 0.1, "d0": 1e-4, "growth_rate": 1.5, "use_bias_correction": True}


def trees(dtype=np.float64):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(curve.size).astype(dtype) for curve in CURVES]


def grads_of(params):
    """Those of a bowl, whose middle is at 0."""
    return [(curve * p).astype(p.dtype) for curve, p in zip(CURVES, params, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_prodigys_first_steps(backend):
    """By hand: with β1 = β2 = 0 a step is d·sign(g); then s = d²/d0·g, r = d²/d0·Σ g·(p0 - p), so d is 2·r/|s|."""
    p = np.array([1.0, -2.0])
    opt = fa.Prodigy(p, d0=0.25, betas=(0.0, 0.0), eps=0.0, d_coef=8.0, backend=backend)
    opt.step(np.array([4.0, -8.0]))
    assert p.tolist() == [0.75, -1.75]
    assert opt.carried == {"d": 0.25, "d_max": 0.25, "d_numerator": 0.0}
    opt.step(np.array([2.0, -2.0]))  # r = ¼·(2·¼ + 2·¼), |s| = ¼·4
    assert p.tolist() == [0.5, -1.5]
    assert opt.carried == {"d": 2.0, "d_max": 2.0, "d_numerator": 0.25}
    opt.step(np.array([-1.0, 1.0]))  # the d before the step makes it; both have been the other way
    assert p.tolist() == [2.5, -3.5]
    assert opt.carried["d"] == 2.0
    opt.step(np.zeros(2))  # nothing is known of where no gradient is
    assert opt.carried["d"] == 2.0


def followed(kernel=None, monkeypatch=None, **chosen):
    """How far 40 steps of all leaves are from the paper's over one: of p, relatively of d; and how far d has grown."""
    if kernel is not None:
        monkeypatch.setitem(kernels.ALL, "prodigy", kernel)
    params = trees()
    hyper = {"lr": 1.0, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "d0": 1e-4, **chosen}
    opt = fa.Prodigy([{"params": params[:1]}, {"params": params[1:]}], backend="numpy", **hyper)
    p = np.concatenate(params).astype(np.longdouble)
    curve, state = np.concatenate(CURVES), papers.start("prodigy", p, **hyper)
    off = 0.0
    for t in range(1, 41):
        grads = grads_of(params)
        opt.step([grads[:1], grads[1:]])
        p, state = papers.prodigy(t, p, curve * p, state, **hyper)
        off = max(off, abs(opt.carried["d"] / state["d"] - 1))
    return np.abs(np.concatenate(params) - p).max(), off, state["d"] / hyper["d0"]


# 40 steps, each of fewer than 40 roundings of numbers below 8, and what p0 - p loses of them where both differ by 1e-4:
# 40·40·8·u of that, relatively, make 1e-8; the bowl takes no error further than it was.
LOST = 40 * 40 * 8 * 2.0**-53
CHOICES = [
    {}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decouple": False, "d_coef": 2.0},
    {"use_bias_correction": True, "beta3": 0.9, "growth_rate": 1.25}, {"safeguard_warmup": True, "lr": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_all_leaves_have_the_papers_estimate(chosen):
    off_p, off_d, growth = followed(**chosen)
    assert growth > 100
    assert off_p < LOST / 1e-4
    assert off_d < LOST / 1e-4


FORMULAS = [
    ("c.beta3 * d_numerator +", "d_numerator +"),
    ("d / c.d0 * d * numerator", "d * numerator"),
    ("c.d_coef * total", "total"),
    ("where(hat > d_max, hat, d_max)", "hat"),
    ("d = where(d > c.d0, d, where(hat > d, hat, d))", "d = d"),
    ("where(d * c.growth_rate > d_max, d_max, d * c.growth_rate)", "d_max"),
    ("numerator = c.rate * g * (p0 - p)", "numerator = g * (p0 - p)"),
    ("numerator = c.rate * g * (p0 - p)", "numerator = c.rate * g * (p - p0)"),
    ("denominator = np.abs(s)", "denominator = s"),
    ("c.s_rate * c.d * g", "c.s_rate * g"),
    ("c.one_minus_beta1 * g", "c.one_minus_beta1 * c.factor * g"),
    ("c.rate * c.d * (m", "c.rate * c.factor * (m"),
    ("mean / (np.sqrt(bound)", "mean / (c.d * np.sqrt(bound)"),
]


@pytest.mark.parametrize(("old", "new"), FORMULAS)
def test_a_changed_estimate_is_caught(old, new, monkeypatch):
    source = changed(sys.modules["fastadam.kernels.prodigy"], old, new)
    kernel = Kernel.of(load("fastadam.kernels.prodigy", source, "kernels/prodigy", is_package=True))
    with np.errstate(all="ignore"):
        outcomes = (followed(kernel, monkeypatch, **chosen) for chosen in CHOICES[::-1])
        assert any(not (off_p < LOST / 1e-4 and off_d < LOST / 1e-4) for off_p, off_d, _ in outcomes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_leaf_that_rests_shares_the_estimate(backend):
    """And a state taken over goes on with its bits, pickled or loaded, with other chores too."""
    params = trees(np.float32)
    opt = fa.Prodigy(params, backend=backend, **CHOSEN)
    for t in range(12):
        opt.step([None if (k + t) % 3 == 0 else g for k, g in enumerate(grads_of(params))])
    leaves = opt.state_dict()["leaves"]
    assert {x["d"] for x in leaves.values()} == {opt.carried["d"]}
    assert opt.carried["d"] > 2e-4
    others = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    loaded = fa.Prodigy([p.copy() for p in params], backend=backend, **CHOSEN)
    loaded.load_state_dict(opt.state_dict())
    opt.step(grads_of(params))
    for other in (*others, loaded):
        other.step(grads_of(other.params))
        assert all(map(same_bits, params, other.params))
        assert other.carried == opt.carried
    opt.reset("[1]")
    assert opt.carried == loaded.carried
    assert same_bits(opt.moments()["params[1]"]["p0"], params[1])
    opt.reset()
    assert opt.carried["d"] == 0
    opt.step(grads_of(params))
    assert opt.carried["d"] == CHOSEN["d0"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_leaves_the_estimate_alone(backend):
    p = np.ones(3000, np.float32)
    opt = fa.Prodigy(p, backend=backend, d0=1e-3, skip_nonfinite=True)
    for _ in range(3):
        opt.step(p.copy())
    before = opt.carried
    bad = np.full(3000, np.inf, np.float32)
    assert opt.step(bad).skipped
    assert opt.carried == before
    other = fa.Prodigy(p.copy(), backend=backend, d0=1e-3)
    other.load_state_dict(opt.state_dict())
    for g in (bad, -bad, np.ones(3000, np.float32)):
        other.step(g)
        assert other.carried == before


def test_a_step_that_is_interrupted_leaves_no_half_of_it(monkeypatch):
    """Whatever is raised while sums are judged finds everything as it was."""
    params = trees(np.float32)
    opt = fa.Prodigy(params, backend="numba", **CHOSEN)
    opt.step(grads_of(params))
    before, state = [p.copy() for p in params], opt.state_dict()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(opt._plan), "judged_together", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.step(grads_of(params))
    assert all(map(same_bits, params, before))
    assert repr(opt.state_dict()) == repr(state)


def test_what_cannot_be_is_refused_by_name():
    two = [np.ones(3), np.ones(2)]
    groups = [{"params": two[:1]}, {"params": two[1:], "d_coef": 2.0}]
    with pytest.raises(ValueError, match=r"groups\[1\]\.d_coef is 2\.0, groups\[0\]\.d_coef is 1\.0: expected one"):
        fa.Prodigy(groups)
    opt = fa.Prodigy([{"params": two[:1]}, {"params": two[1:]}])
    opt.groups[1].beta3 = 0.5
    with pytest.raises(ValueError, match=r"groups\[1\]\.beta3 is 0\.5, groups\[0\]\.beta3 is 0\.99"):
        opt.step([[np.ones(3)], [np.ones(2)]])
    assert two[0].tolist() == [1, 1, 1]
    assert opt.t == 0
    opt.groups[0].beta3 = 0.5
    opt.step([[np.ones(3)], [np.ones(2)]])
    state = opt.state_dict()
    state["leaves"]["params[1][0]"]["d"] = 0.5
    with pytest.raises(ValueError, match=r"\['d'\] is 0\.5, of 'params\[0\]\[0\]' it is 1e-06: expected one"):
        opt.load_state_dict(state)
    with pytest.raises(ValueError, match="measured is given, expected None: Prodigy sums over all leaves"):
        opt.step([[np.ones(3)], [np.ones(2)]], measured={})
    with pytest.raises(ValueError, match="join_sums: Prodigy sums over all leaves"):
        opt.join_sums(dict)
    for wrong in ({"d0": 0.0}, {"d_coef": -1.0}, {"growth_rate": 0.5}, {"beta3": 1.0}, {"slice_p": 11}):
        with pytest.raises((TypeError, ValueError), match=min(wrong)):
            fa.Prodigy(np.ones(3), **wrong)
    assert fa.Prodigy(np.ones(3), growth_rate=float("inf")).groups[0].growth_rate is None
