"""Parameters set from outside beside a float32 master: taken over, each of them and no other, and counted."""

import numpy as np
import pytest
from cases import hostile, same_bits
from ml_dtypes import bfloat16

import fastadam as fa
from fastadam.kernels import formats

F16, F32 = np.float16, np.float32
EACH = pytest.mark.parametrize("dtype", [bfloat16, F16])
WALKS = pytest.mark.parametrize(("backend", "threads"), [("numpy", 1), ("numba", 1), ("numba", 2)])
N = 70_001  # enough for the parallel walk


def bits(x):
    return x.view(f"u{x.itemsize}")


def test_what_is_taken_over_is_what_p_does_not_round_to():
    """(master, p, what steps go on from), of bfloat16: worked out by hand."""
    up, nan = 1 + 2.0**-8, np.nan  # half way between 1 and the next one: to even, which is 1
    cases = [
        (1.0, 1.0, 1.0), (up, 1.0, up), (up, 1.0078125, 1.0078125), (np.nextafter(F32(up), F32(2)), 1.0, 1.0),
        (0.0, -0.0, -0.0), (-0.0, 0.0, 0.0), (1e-45, 0.0, 1e-45), (-1e-45, 0.0, 0.0), (3.4e38, np.inf, 3.4e38),
        (3.4e38, 3.38e38, 3.38e38), (nan, 2.0, 2.0), (nan, nan, nan), (2.0, nan, nan), (np.inf, np.inf, np.inf),
    ]  # fmt: skip
    with np.errstate(all="ignore"):
        p, rounded, after = (np.array(x, F32) for x in zip(*cases, strict=True))
        rounded = rounded.astype(bfloat16)
        kept, outside = formats.followed(p, rounded)
    assert outside.tolist() == [0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0]
    assert same_bits(kept, np.where(outside, rounded.astype(F32), after))


def made(p, **more):
    return fa.AdamW([p], lr=1e-2, weight_decay=0.1, max_norm=3.0, **more)


@EACH
@WALKS
def test_a_clamp_after_every_step_stays(dtype, backend, threads):
    """As float32 parameters do that are clamped where their roundings are, and nowhere else; WGAN's weights."""
    rng = np.random.default_rng(1)
    p = (rng.standard_normal(N) / 50).astype(dtype)
    q = p.astype(F32)
    ours, wide = made(p, master="float32", backend=backend), made(q, backend="numpy")
    for t in range(8):
        limit = dtype(0.01 + t / 500)
        clamped = np.clip(p, -limit, limit).astype(dtype)
        outside = bits(clamped) != bits(p)
        p[...] = clamped
        q[outside] = clamped[outside]
        g = rng.standard_normal(N).astype(dtype)
        with fa.num_threads(threads):
            info = ours.step([g])
        expected = wide.step([g])
        assert info == expected._replace(taken_over=int(outside.sum()))
        assert outside.any()
        assert same_bits(p, q.astype(dtype))
        assert same_bits(ours.state_dict()["leaves"]["params[0]"]["master"], q)


@EACH
@WALKS
def test_what_steps_write_is_never_taken_for_anybody_elses(dtype, backend, threads):
    """From hostile values, infinities and NaN among them, whatever else the step does."""
    rng = np.random.default_rng(2)
    with np.errstate(all="ignore"):
        p = [hostile(rng, n, F32).astype(dtype) for n in (N, 17, 0)]
        opt = fa.Adam(
            p, betas=(0.8, 0.95), master="float32", moments="8bit", ema_decay=0.9, stats="group", backend=backend
        )
        for _ in range(6):
            with fa.num_threads(threads):
                assert opt.step([hostile(rng, x.size, F32).astype(dtype) for x in p]).taken_over == 0


@WALKS
def test_weights_loaded_after_construction(backend, threads):
    rng = np.random.default_rng(3)
    p, loaded = np.zeros(N, bfloat16), rng.standard_normal(N).astype(bfloat16)
    q = loaded.astype(F32)
    ours, wide = made(p, master="float32", backend=backend), made(q, backend="numpy")
    p[...] = loaded
    g = rng.standard_normal(N).astype(bfloat16)
    with fa.num_threads(threads):
        assert ours.step([g]).taken_over == np.count_nonzero(loaded)
        wide.step([g])
        assert ours.step([g]).taken_over == 0
    wide.step([g])
    assert same_bits(p, q.astype(bfloat16))


@WALKS
def test_a_leaf_without_a_gradient_and_a_skipped_step_take_nothing_over(backend, threads):
    p, q = np.ones(N, bfloat16), np.ones(N, bfloat16)
    opt = fa.SGD([p, q], lr=0.5, master="float32", skip_nonfinite=True, backend=backend)
    p[:5], q[:7] = 2, 2
    with fa.num_threads(threads):
        assert opt.step([np.full(N, np.inf, bfloat16), np.ones(N, bfloat16)]) == fa.StepInfo(skipped=True)
        assert opt.step([np.ones(N, bfloat16), None]).taken_over == 5
        assert opt.step([np.ones(N, bfloat16), np.ones(N, bfloat16)]).taken_over == 7
    assert p[[0, 5]].tolist() == [1, 0]
    assert q[[0, 7]].tolist() == [1.5, 0.5]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_rows_that_missed_steps_take_them_from_what_was_set(backend):
    """Exact rows are the dense step, values set from outside included."""
    rng = np.random.default_rng(4)
    start = rng.standard_normal((40, 50)).astype(bfloat16)
    by_row, dense = start.copy(), start.copy()
    a = fa.AdamW([by_row], master="float32", backend=backend)
    b = fa.AdamW([dense], master="float32", backend="numpy")
    for p in (by_row, dense):
        p[3:9] = 0.25
    taken = 0
    for k in range(6):
        at = np.arange(3 + k, 9 + k)
        g = np.zeros((40, 50), bfloat16)
        g[at] = rng.standard_normal((6, 50))
        taken += a.step_rows([(at, g[at])], semantics="exact").taken_over
        assert b.step([g]).taken_over == (300 if k == 0 else 0)
    assert taken == 300
    a.catch_up()
    assert same_bits(by_row, dense)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_statistics_begin_at_what_was_set(backend):
    p = np.ones(3_000, bfloat16)
    opt = fa.SGD(p, lr=0.5, master="float32", stats="tensor", backend=backend)
    p[:] = 3
    info = opt.step(np.ones(3_000, bfloat16))
    assert info.stats["params"]["largest_update"] == 0.5
    assert info.stats["params"]["update_norm"] == 0.5 * np.sqrt(3_000)
    assert info.taken_over == 3_000
