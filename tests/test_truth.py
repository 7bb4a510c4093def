"""Promise 2: every method on every backend stays within a derived bound of its paper, at values that bite."""

import bounds
import numpy as np
import pytest
from cases import hostile, label, variants

import papers
from fastadam import kernels

N, STEPS = 3000, 8


def oracle_of(method, chosen):
    """The paper's function for a variant, and what it takes."""
    taken = dict(chosen)
    name = method.__name__.lower()
    if name == "adam" and taken.pop("decoupled_weight_decay"):
        name = "adamw"
    return name, taken


def host_error(rule, t):
    """How far the rule's float64 numbers can be off, relatively: β^t within 2 u, then 1 - β^t cancels, then up to six
    operations of a rounding each; roots halve, RAdam's ratio of lengths cancels once more in ρ_t - 4 and 1 - β2."""
    u = np.finfo(np.float64).eps / 2
    worst = max((1 / (1 - beta**t) for beta in getattr(rule, "betas", ())), default=1)
    steep = max((1 / (1 - beta) for beta in getattr(rule, "betas", ())), default=1)
    return u * (8 + 4 * worst) * (1 + steep * (type(rule).__name__ == "RAdam"))


@np.errstate(all="ignore")
def worst(method, chosen, dtype, backend):
    """Steps one array and returns the largest error of any stream at any step, in units of its derived bound."""
    wide = np.longdouble if dtype == np.float64 else np.float64
    name, taken = oracle_of(method, chosen)
    kernel = kernels.ALL[method.rule.kernel]
    rng = np.random.default_rng(11)
    p = rng.standard_normal(N).astype(dtype) * dtype(10) ** rng.integers(-3, 3, N).astype(dtype)
    opt = method(p, backend=backend, **chosen)
    carried = dict(method.rule.carried)
    found = 0.0
    for t in range(1, STEPS + 1):
        g = hostile(rng, N, dtype, bad=False)
        before = {slot: x for slot, x in opt.state_dict()["leaves"]["params"].items() if isinstance(x, np.ndarray)}
        state = {slot: x.astype(wide) for slot, x in before.items()} | carried
        streams = [p.copy(), g.copy(), *(before.get(slot.name) for slot in kernel.slots)]
        row = opt.groups[0].coefficients_at(t, chosen["lr"], 1.0, *carried.values())[: len(kernel.Coefficients._fields)]
        limits = bounds.one_step(kernel, dtype, streams, row, host_error(method.rule(**chosen), t))
        exact, new = papers.ORACLES[name](t, p.astype(wide), g.astype(wide), state, **taken)
        opt.step(g)
        after = opt.state_dict()["leaves"]["params"]
        carried = {key: new[key] for key in carried}
        for slot, limit in zip(("p", *(slot.name for slot in kernel.slots)), limits, strict=True):
            if limit is not None:
                got, want = (p, exact) if slot == "p" else (after[slot], new[slot])
                off = np.abs(got.astype(wide) - want)
                units = np.where(off == 0, 0, off / np.where(limit > 0, limit, 1e-300))
                sane = np.isfinite(got).all() and np.isfinite(units).all()
                found = max(found, float(units.max()) if sane else np.inf)
    return found


SLACK = 1.001  # the bound is first order in each rounding, and the oracle rounds too, at 2^-29 or 2^-11 of a unit


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("case", variants(), ids=label)
def test_one_step_is_within_its_roundings_of_the_paper(case, dtype, backend):
    if dtype == np.float64 and np.finfo(np.longdouble).eps >= np.finfo(dtype).eps:
        pytest.skip("longdouble is no wider than float64 here: there is nothing to hold float64 against")
    assert 0 < worst(*case, dtype, backend) <= SLACK
