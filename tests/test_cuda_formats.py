"""Storage in fewer bytes on the CUDA backend, without a GPU: held against NumPy bit for bit; see test_cuda.py."""

import cuda_host
import numpy as np
import pytest
from cases import label
from ml_dtypes import bfloat16
from test_cuda import differing, moved
from test_formats import F16, F32, F64, tree_of

import fastadam as fa
from fastadam.cover import chores_for

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")

CASES = cuda_host.stored_cases()
COMPILED = {step.name for step in (*cuda_host.stored_steps(), *cuda_host.steps())} | {"advance"}


def names(case):
    return "-".join([label(case[0]), str(case[1]).replace(" ", "-")])


class Both:
    """The same optimizer on NumPy's arrays and on the device's."""

    def __init__(self, cupy, method, here, asked=None, master=None, **chosen):
        self.cupy, self.here, self.there = cupy, here, [moved(cupy, p) for p in here]
        more = [chores_for(asked or {}, params, master) for params in (self.here, self.there)]
        self.copies = [own.get("copy_to", ()) for own in more]
        chosen |= {"master": master, "seed": 5}
        self.a = method(self.here, backend="numpy", **chosen, **more[0])
        self.b = method(self.there, **chosen, **more[1])

    def step(self, grads, *args):
        on = [None if g is None else moved(self.cupy, g) for g in grads]
        assert repr(self.a.step(grads, *args)) == repr(self.b.step(on, *args))
        return differing([g for g in grads if g is not None], [g for g in on if g is not None])

    def differing(self):
        assert (self.a.t, self.a.skipped) == (self.b.t, self.b.skipped)
        return differing([*self.here, *self.copies[0]], [*self.there, *self.copies[1]], self.a, self.b)


@pytest.mark.parametrize("case", CASES, ids=names)
def test_every_format_has_numpys_bits(case, cupy):
    (method, chosen), stored, asked = case
    rng, (p_dtype, g_dtype) = np.random.default_rng(3), stored.dtypes()
    both = Both(cupy, method, tree_of(rng, p_dtype), asked, index_offset=2**32 - 20_000, **stored.chosen(), **chosen)
    whole = bool(asked["skip_nonfinite"])  # where the device counts, every leaf has a gradient
    for t in range(4):
        grads = tree_of(rng, g_dtype, bad=t == 3)
        assert both.step([None if k == 1 + t and not whole else g for k, g in enumerate(grads)], 0.5) == []
    assert both.differing() == []
    assert {launch.name for launch in cupy.state.launches} <= COMPILED  # in one program, to save time


def test_gradients_may_change_their_format_between_steps(cupy):
    rng = np.random.default_rng(5)
    both = Both(cupy, fa.Adam, [np.ones(5_000, F32), np.ones(300, F32)])
    launches = []
    for t, dtype in enumerate((F32, F16, F16, bfloat16, F64, F32)):
        grads = [rng.standard_normal(5_000).astype(dtype), rng.standard_normal(300).astype(F32)]
        if t == 2:
            grads[1] = None
        before = len(cupy.state.launches)
        both.step(grads)
        launches.append(len(cupy.state.launches) - before)
    assert both.differing() == []
    assert launches == [1, 2, 2, 2, 2, 1]


def test_a_gradient_that_stays_is_known_after_another_changed_its_format(cupy):
    """What is looked at once, since it is the same array, goes to the new launches, too."""
    p, q = (cupy.asarray(np.zeros(100, F32)) for _ in range(2))
    fixed = cupy.asarray(np.ones(100, F32))
    opt = fa.SGD([p, q], lr=1.0)
    for dtype in (F32, F64, F16):
        opt.step([fixed, cupy.asarray(np.ones(100, dtype))])
    assert (p.get() == -3).all()
    assert (q.get() == -3).all()


def test_exact_rows_are_the_dense_step(cupy):
    rng = np.random.default_rng(4)
    ours = rng.standard_normal((30, 50)).astype(bfloat16)
    theirs = ours.copy()
    there = moved(cupy, ours)
    a = fa.AdamW(there, moments="bfloat16", seed=3)
    b = fa.AdamW(theirs, backend="numpy", moments="bfloat16", seed=3)
    for _ in range(12):
        at = rng.permutation(30)[:3]
        g = np.zeros((30, 50), bfloat16)
        g[at] = rng.standard_normal((3, 50))
        a.step_rows((at, moved(cupy, g[at])), semantics="exact")
        b.step(g)
    a.catch_up()
    assert differing([theirs], [there], b, a) == []
    assert {launch.name for launch in cupy.state.launches} <= COMPILED


def test_a_captured_graph_draws_what_eager_steps_draw(cupy):
    rng = np.random.default_rng(7)
    p = rng.standard_normal(3_000).astype(bfloat16)
    there = moved(cupy, p)
    a = fa.Adam(p, backend="numpy", moments="bfloat16", seed=8)
    b = fa.Adam(there, capturable=True, moments="bfloat16", seed=8)
    g, other = cupy.asarray(p), cupy.asarray(p.astype(F32))
    b.step(g)
    a.step(p.copy())
    stream = cupy.Stream()
    with stream:
        stream.begin_capture()
        b.step(g)
        with pytest.raises(TypeError, match="grads is float32 and was bfloat16: expected what the step before had"):
            b.step(other)
        graph = stream.end_capture()
    for _ in range(5):
        fresh = rng.standard_normal(3_000).astype(bfloat16)
        g.set(fresh)
        graph.launch()
        a.step(fresh)
    assert differing([p], [there], a, b) == []


@pytest.mark.parametrize("g_dtype", [bfloat16, F64])
def test_micro_batches_of_other_formats(g_dtype, cupy):
    rng = np.random.default_rng(9)
    both = Both(cupy, fa.Adam, [np.ones(700, F32), np.ones(9, bfloat16)])
    for _ in range(3):
        grads = [(rng.standard_normal(n) * 1e-3).astype(g_dtype) for n in (700, 9)]
        both.a.accumulate(grads)
        both.b.accumulate([moved(cupy, g) for g in grads])
    both.a.step()
    both.b.step()
    assert both.differing() == []
