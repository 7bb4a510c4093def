"""Methods whose steps need sums over whole leaves first: what is summed, decided, and left alone."""

import numpy as np
import pytest
from cases import hostile, kernels_in_use, label, same_bits, state_arrays, sums_first, together

import fastadam as fa
from fastadam import kernels

SUMMED = [case for case in kernels_in_use() if sums_first(case)]
APART = [case for case in SUMMED if not together(case)]  # whose sums are each leaf's own
BACKENDS = ["numpy", "numba"]


def tree(rng):
    """Leaves of one element, of a block and its neighbours, of several chunks, of none; two dtypes."""
    return [rng.standard_normal(n).astype((np.float32, np.float64)[k % 2]) for k, n in enumerate(SIZES)]


SIZES = [1, 63, 1023, 1024, 1025, 0, 8192, 8193, 70_001, 5]


def grads_of(rng, params):
    return [hostile(rng, p.size, p.dtype, bad=False) for p in params]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", APART, ids=label)
def test_a_leaf_knows_nothing_of_others(case, backend):
    """Beside others, in other groups, with gradients missing elsewhere: the bits that it has alone."""
    method, chosen = case
    rng = np.random.default_rng(1)
    params = tree(rng)
    alone = [p.copy() for p in params]
    opts = [method(p, backend=backend, **chosen) for p in alone]
    together = [p.copy() for p in params]
    opt = method([{"params": together[:4]}, {"params": together[4:]}], backend=backend, **chosen)
    for t in range(4):
        grads = [g if (k + t) % 3 else None for k, g in enumerate(grads_of(rng, params))]
        opt.step([grads[:4], grads[4:]])
        for one, g in zip(opts, grads, strict=True):
            if g is not None:
                one.step(g)
    assert all(map(same_bits, alone, together))


@pytest.mark.parametrize("case", SUMMED, ids=label)
def test_threads_and_chores_keep_numpys_bits(case):
    """With the gradient clipped by norm and by value before it is summed over, and statistics noted after."""
    method, chosen = case
    outcomes = []
    for backend, threads in (("numpy", 1), ("numba", 1), ("numba", 2)):
        rng = np.random.default_rng(2)
        params = tree(rng)
        opt = method(params, backend=backend, max_norm=0.5, max_value=0.1, stats="tensor", zero_grads=True, **chosen)
        with fa.num_threads(threads):
            found = []
            for _ in range(3):
                grads = grads_of(rng, params)
                found.append(opt.step(grads, grad_scale=0.5))
                assert not any(g.any() for g in grads)
        outcomes.append((params, state_arrays(opt), found))
    (params, state, found), *others = outcomes
    for moved, kept, same in others:
        assert all(map(same_bits, params, moved))
        assert all(same_bits(state[key], kept[key]) for key in state)
        assert same == found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SUMMED, ids=label)
def test_a_skipped_step_changes_nothing(case, backend):
    method, chosen = case
    p = np.ones(3000, np.float32)
    opt = method(p, backend=backend, skip_nonfinite=True, **chosen)
    opt.step(np.ones(3000, np.float32))
    before = p.copy(), state_arrays(opt)
    g = np.ones(3000, np.float32)
    g[2999] = np.nan
    assert opt.step(g).skipped
    assert same_bits(p, before[0])
    assert all(same_bits(x, before[1][key]) for key, x in state_arrays(opt).items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SUMMED, ids=label)
def test_rows_are_refused_by_name(case, backend):
    method, chosen = case
    p = np.ones((4, 3), np.float32)
    opt = method(p, backend=backend, **chosen)
    with pytest.raises(ValueError, match=rf"step_rows: {method.__name__}.* whole leaves"):
        opt.step_rows((np.array([1]), np.ones((1, 3), np.float32)))
    assert (p == 1).all()


def test_what_needs_no_sums_pays_for_none(monkeypatch):
    """No second walk is compiled or taken, and leaves share their rows."""
    opt = fa.Adam([np.ones(5), np.ones(6)], backend="numba")
    monkeypatch.setattr(type(opt._plan), "sum_up", None)
    opt.step([np.ones(5), np.ones(6)])
    assert opt._table.row[:2].tolist() == [0, 0]
    assert not kernels.ALL["adam"].summed(frozenset())


@pytest.mark.parametrize("backend", BACKENDS)
def test_lambs_ratio(backend):
    """By hand: m̂ = g, v̂ = g², so u = (1, 1, 1, 1) of length 2; p is 5 long; the step 0.1·5/2 each."""
    p = np.array([1.0, 2.0, 2.0, 4.0])
    fa.LAMB(p, lr=0.1, eps=0.0, weight_decay=0.0, backend=backend).step(np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(p, np.array([1.0, 2.0, 2.0, 4.0]) - 0.25, rtol=1e-15)
    p = np.zeros(4)
    fa.LAMB(p, lr=0.1, eps=0.0, backend=backend).step(np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(p, -0.1, rtol=1e-15)  # the ratio of nothing is 1
    p = np.array([3.0, 4.0])
    fa.LAMB(p, lr=0.1, weight_decay=0.0, backend=backend).step(np.zeros(2))
    assert p.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [fa.LAMB, fa.LARS])
@pytest.mark.parametrize(("p", "g"), [(1e3, 1e-42), (1.0, 1e-42), (1e30, 1e-20)])
def test_a_ratio_beyond_float32_is_none(method, p, g, backend):
    """It would make finite weights infinite; a step of 1 u of such gradients moves none."""
    weights = np.full(8, p, np.float32)
    method(weights, lr=0.1, weight_decay=0.0, backend=backend).step(np.full(8, g, np.float32))
    assert np.allclose(weights, p, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lars_rate(backend):
    """By hand: p is 5 long, g 10, so of η = ½ the local rate is ½·5/(10 + ½·5) = 0.2."""
    p, g = np.array([1.0, 2.0, 2.0, 4.0]), np.array([2.0, 4.0, 4.0, 8.0])
    fa.LARS(p, lr=0.5, weight_decay=0.5, trust_coefficient=0.5, backend=backend).step(g)
    np.testing.assert_allclose(p, np.array([1.0, 2.0, 2.0, 4.0]) * (1 - 0.5 * 0.2 * 2.5), rtol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stableadamw_shrinks_a_surprising_step(backend):
    """By hand: at first u = g² and the surprise is 1; then g is 3, u = 1 + (9 - 1)/(1 + ½), rms 3/√u, and so on."""
    p = np.zeros(4)
    opt = fa.StableAdamW(p, lr=0.5, betas=(0.5, 0.5), eps=0.0, weight_decay=0.0, backend=backend)
    opt.step(np.ones(4))
    np.testing.assert_allclose(p, -0.5, rtol=1e-15)
    opt.step(np.full(4, 3.0))
    m, u = 1 + (3 - 1) / 1.5, 1 + (9 - 1) / 1.5
    np.testing.assert_allclose(p, -0.5 - 0.5 / (3 / np.sqrt(u)) * m / np.sqrt(u), rtol=1e-15)
    opt.step(np.full(4, 1e-3))  # no surprise: the whole of lr
    m, u = m + (1e-3 - m) / 1.75, u + (1e-6 - u) / 1.75
    before = -0.5 - 0.5 / (3 / np.sqrt(1 + 8 / 1.5)) * (1 + 2 / 1.5) / np.sqrt(1 + 8 / 1.5)
    np.testing.assert_allclose(p, before - 0.5 * m / np.sqrt(u), rtol=1e-14)
