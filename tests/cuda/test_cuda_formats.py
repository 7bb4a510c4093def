"""Storage in fewer bytes on the CUDA backend, without a GPU: held against NumPy bit for bit; see test_cuda.py."""

import pickle

import cuda_host
import numpy as np
import pytest
from cases import label, same_bits
from ml_dtypes import bfloat16
from test_cuda import differing, moved
from test_formats import F16, F32, F64, beside, impossible_halves, tree_of

import fastadam as fa
from fastadam import kernels
from fastadam.kernels.formats import join
from fastadam.tools import cover, verify
from fastadam.tools.cover import chores_for

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
        assert t < 2 or both.differing() == []
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


def test_formats_that_cannot_be_laid_out_leave_those_before(cupy, monkeypatch):
    p = cupy.asarray(np.zeros(100, F32))
    opt = fa.SGD(p, lr=1.0)
    opt.step(cupy.asarray(np.ones(100, F32)))
    with monkeypatch.context() as broken:
        broken.setattr(cupy.cuda, "get_current_stream", lambda: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                opt.step(cupy.asarray(np.ones(100, F16)))
    for dtype in (F32, F16):
        opt.step(cupy.asarray(np.ones(100, dtype)))
    assert (p.get() == -3).all()


def test_a_gradient_that_stays_is_known_after_another_changed_its_format(cupy):
    """What is looked at once, since it is the same array, goes to the new launches, too."""
    p, q = (cupy.asarray(np.zeros(100, F32)) for _ in range(2))
    fixed = cupy.asarray(np.ones(100, F32))
    opt = fa.SGD([p, q], lr=1.0)
    for dtype in (F32, F64, F16):
        opt.step([fixed, cupy.asarray(np.ones(100, dtype))])
    assert (p.get() == -3).all()
    assert (q.get() == -3).all()


@pytest.mark.parametrize("g_dtype", [bfloat16, F32])
def test_exact_rows_are_the_dense_step(g_dtype, cupy):
    """With gradients wider than p, too, in whose place nothing is read where a row has none."""
    rng = np.random.default_rng(4)
    ours = rng.standard_normal((30, 50)).astype(bfloat16)
    theirs = ours.copy()
    there = moved(cupy, ours)
    a = fa.AdamW(there, moments="bfloat16", seed=3)
    b = fa.AdamW(theirs, backend="numpy", moments="bfloat16", seed=3)
    a.step(cupy.asarray(np.ones((30, 50), g_dtype)))
    b.step(np.ones((30, 50), g_dtype))
    for _ in range(12):
        at = rng.permutation(30)[:3]
        g = np.zeros((30, 50), g_dtype)
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
    for t in range(7):
        if t == 4:  # what the graph knows is kept
            b.step(other)
            a.step(other.get())
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


@pytest.mark.parametrize("n", [1, 63, 1024, 5000])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_8_bits_wherever_p_lies(offset, n, cupy):
    rng = np.random.default_rng(10)
    there = cupy.asarray(rng.standard_normal(n + offset).astype(F32))[offset:]
    here = there.get()
    a, b = (fa.Adam([p], moments="8bit", seed=1, backend=x) for p, x in ((here, "numpy"), (there, "cuda")))
    for _ in range(3):
        g = rng.standard_normal(n).astype(F32)
        a.step([g])
        b.step([cupy.asarray(g)])
    assert differing([here], [there], a, b) == []


def test_leaves_of_many_formats_in_one_tree(cupy):
    """Leaves with a master beside leaves without, whose rows must look alike."""
    rng = np.random.default_rng(11)
    dtypes = (F32, bfloat16, F64, F16, bfloat16)
    here = [rng.standard_normal(n).astype(dtype) for n, dtype in zip((50, 2000, 30, 70, 9), dtypes, strict=True)]
    for chosen in ({"master": "float32"}, {"master": "remainder"}, {"max_norm": 1.0}, {"skip_nonfinite": True}):
        params = [p.copy() for p in here]
        on = [moved(cupy, p) for p in params]
        if "master" in chosen:  # float16 has no remainder
            params, on = (x[:3] + x[4:] for x in (params, on))
        a, b = fa.NAdam(params, backend="numpy", **chosen), fa.NAdam(on, **chosen)
        for _ in range(3):
            grads = [rng.standard_normal(p.size).astype(p.dtype) for p in params]
            a.step(grads)
            b.step([moved(cupy, g) for g in grads])
        assert differing(params, on, a, b) == []


def test_halves_that_make_a_nan_are_the_high_one_alone(cupy):
    p, low, means = impossible_halves()
    opt = beside(moved(cupy, p), low, "cuda")
    opt.step([moved(cupy, np.zeros_like(p))])
    assert same_bits(join(opt.params[0].get(), opt.state_dict()["leaves"]["params[0]"]["remainder"]), means)


@pytest.mark.parametrize(
    ("p_dtype", "moments", "master"),
    [(bfloat16, "8bit", "remainder"), (bfloat16, "bfloat16", None), (F16, "8bit", "float32")],
)
def test_formats_move_are_copied_and_converted(p_dtype, moments, master, cupy):
    rng = np.random.default_rng(12)
    p = rng.standard_normal((40, 31)).astype(p_dtype)
    a = fa.AdamW([p], backend="numpy", moments=moments, master=master, seed=4)
    b = fa.AdamW([moved(cupy, p.copy())], moments=moments, master=master, seed=4)

    def step(b):
        g = rng.standard_normal(p.shape).astype(p_dtype)
        a.step([g])
        b.step([moved(cupy, g) if b.backend == "cuda" else g])

    for where in ("cpu", "cuda", "cuda", "cpu", "cuda"):
        step(b)
        b = b.to(where)
        assert b.backend == "cuda" or where == "cpu"
    b = pickle.loads(pickle.dumps(b))
    for other in (None, "8bit", "bfloat16"):
        step(b)
        a.convert(other)
        b.convert(other)
        for name, x in a.moments()["params[0]"].items():
            assert same_bits(x, b.moments()["params[0]"][name].get())
    overwritten = rng.standard_normal(p.shape).astype(p_dtype)
    p[...] = overwritten
    b.params[0].set(overwritten)
    a.refresh_master()
    b.refresh_master()
    step(b)
    assert (a.state_bytes, a.bytes_per_step) == (b.state_bytes, b.bytes_per_step)
    assert differing([p], b.params, a, b) == []


@pytest.mark.parametrize("asked", [{}, {"max_norm": 2.0, "stats": "tensor", "ema_decay": 0.9}])
@pytest.mark.parametrize(("p_dtype", "moments"), [(bfloat16, None), (F16, "8bit"), (bfloat16, "bfloat16")])
def test_what_is_set_from_outside_is_taken_over_and_counted(p_dtype, moments, asked, cupy):
    rng = np.random.default_rng(15)
    both = Both(cupy, fa.AdamW, tree_of(rng, p_dtype), dict.fromkeys(cover.CHORES) | asked, "float32", moments=moments)
    for t in range(3):
        for here, there in zip(both.here, both.there, strict=True):
            here[...] = np.clip(here, -(10.0 ** (3 - t)), 10.0 ** (3 - t))
            there.set(here)
        assert both.step(tree_of(rng, p_dtype)) == []
        assert both.differing() == []


def test_rows_set_from_outside(cupy):
    p = np.ones((9, 40), bfloat16)
    a, b = fa.Adam(p, backend="numpy", master="float32"), fa.Adam(q := moved(cupy, p), master="float32")
    rows, g = np.array([1, 4]), np.full((2, 40), 0.5, bfloat16)
    for t in range(3):
        p[1:3], q[1:3] = t, t
        infos = a.step_rows((rows, g)), b.step_rows((rows, moved(cupy, g)))
        assert [info.taken_over for info in infos] == [40, 40]
    assert differing([p], [q], a, b) == []


def test_averages_and_views_of_bfloat16_parameters(cupy):
    rng = np.random.default_rng(13)
    both = Both(cupy, fa.Adam, [rng.standard_normal(99).astype(bfloat16)], {"ema_decay": 0.5, "copy_to": None})
    both.step([rng.standard_normal(99).astype(bfloat16)])
    with both.a.averaged(), both.b.averaged():
        assert same_bits(both.here[0], both.there[0].get())
    assert both.differing() == []


def test_a_gradient_with_gaps_in_another_format(cupy):
    rng = np.random.default_rng(14)
    p = rng.standard_normal((20, 30)).astype(F32)
    q = moved(cupy, p)
    a, b = fa.Adam(p, zero_grads=True, backend="numpy"), fa.Adam(q, zero_grads=True)
    for dtype in (bfloat16, F32, bfloat16, F16):
        g = rng.standard_normal((20, 60)).astype(dtype)
        on = moved(cupy, g)
        a.step(g[:, ::2])
        b.step(on[:, ::2])
        assert same_bits(g, on.get())
    assert differing([p], [q], a, b) == []


def test_verify_covers_the_devices_formats(cupy, monkeypatch):
    found = [case for case in cover.cases(backends=("cuda",)) if case.stored]
    assert [case.stored for case in found] == cover.stored()
    for case in found[12:14]:
        assert verify.same_as_numpy(*case.variant, case.dtype, "cuda", case.chores, 3000, case.stored)
    monkeypatch.setattr(cupy, "zeros", lambda n, dtype: cupy.asarray(np.full(n, 63).astype(dtype)))
    case = found[11]
    assert not verify.same_as_numpy(*case.variant, case.dtype, "cuda", case.chores, 3000, case.stored)


@pytest.mark.parametrize(
    ("method", "betas", "moments"), [(fa.Adam, (0, 0.9), "8bit"), (fa.Lion, (0, 0.9), None), (fa.Adamax, (0, 0), None)]
)
def test_slots_whose_decay_rate_is_0_are_not_on_the_device(method, betas, moments, cupy):
    rng = np.random.default_rng(16)
    both = Both(cupy, method, tree_of(rng, F32), betas=betas, moments=moments)
    for _ in range(3):
        assert both.step(tree_of(rng, F32)) == []
    assert both.differing() == []
    assert method.rule(betas=betas).idle == {slot.name for slot in kernels.ALL[method.rule.kernel].slots[:3]} - {
        *both.b.moments()["params[0]"], "vmax"
    }  # fmt: skip
