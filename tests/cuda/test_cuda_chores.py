"""What rides along with a step on the CUDA backend, without a GPU: held against NumPy bit for bit; see test_cuda.py."""

import copy
import pickle

import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cases import label, same_bits
from test_chores import made, tree_of
from test_cuda import captured, differing, moved

import fastadam as fa
from fastadam import kernels
from fastadam.cuda import norm, window
from fastadam.kernels.chores import BLOCK
from fastadam.tools.cover import chores_for

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")

CHORED = cuda_host.chored()


def on_device(cupy, tree):
    return [None if x is None else moved(cupy, x) for x in tree]


@pytest.mark.parametrize("number", range(len(CHORED)), ids=lambda k: cuda_host.label_of(CHORED[k]))
def test_chores_have_numpys_bits(number, cupy):
    _, (method, chosen), dtype, asked = CHORED[number]
    grouped, whole = number % 3 == 0, asked["skip_nonfinite"]  # where the device counts, every leaf has a gradient
    rng = np.random.default_rng(number)
    here = tree_of(rng, dtype)
    there = on_device(cupy, here)
    a = made(method, chosen, asked, here, "numpy", grouped)
    b = made(method, chosen, asked, there, "cuda", grouped)
    infos = []
    for t in range(4):
        grads = tree_of(rng, dtype, 0.01)
        if t == 2:
            grads[3][7] = np.nan
        given = [None if t == 1 and k == 4 and not whole else g for k, g in enumerate(grads)]
        on = on_device(cupy, given)
        waits = cupy.state.waits
        split = [[x[:4], x[4:]] if grouped else x for x in (given, on)]
        infos.append([opt.step(x, grad_scale=0.5) for opt, x in zip((a, b), split, strict=True)])
        assert cupy.state.waits == waits
        assert all(same_bits(g, x.get()) for g, x in zip(given, on, strict=True) if g is not None)
    for ours, theirs in infos:  # each step's own, whenever it is read
        assert repr(ours) == repr(theirs)
    assert (a.t, a.skipped) == (b.t, b.skipped)
    assert a.skipped == int(asked["skip_nonfinite"])
    assert differing(here, there, a, b) == []
    for x, y in zip(copies_of(a), copies_of(b), strict=True):
        assert same_bits(x, y.get())


@pytest.mark.parametrize("short", [np.float16, ml_dtypes.bfloat16])
def test_copies_and_what_is_accumulated_move_along(short, cupy):
    rng = np.random.default_rng(14)
    here = [rng.standard_normal((5, 3)).astype(np.float32).T, rng.standard_normal(9)]
    there = on_device(cupy, here)
    asked = {"ema_decay": 0.9, "max_norm": 1.0, "skip_nonfinite": True, "stats": "tensor"}
    copies = [np.zeros(p.shape[::-1], short).T for p in here]
    a = fa.NAdam(here, copy_to=copies, backend="numpy", **asked)
    b = fa.NAdam(there, copy_to=on_device(cupy, copies), **asked)
    assert b.copy_to is b._copy_to
    for k, where in enumerate(("cpu", "cuda", "cpu", "cuda")):
        for last in (False, True):
            g = [rng.standard_normal(p.shape).astype(p.dtype) for p in here]
            g[0][0, 0] = np.inf if k == 2 else 1
            for opt, x in ((a, g), (b, on_device(cupy, g) if b.backend == "cuda" else g)):
                opt.accumulate(x)
            if not last:
                before, b = b, b.to(where)
                assert b.params[0] is not before.params[0]
                assert b.copy_to[0] is not before.copy_to[0]
                assert b.to(where) is b
        assert repr(a.step()) == repr(b.step())
    assert (a.t, a.skipped) == (b.t, b.skipped) == (3, 1)
    assert differing(here, b.params, b, a) == []
    for x, y in zip(copies, b.copy_to, strict=True):
        assert same_bits(x.view(np.int16), y.get().view(np.int16))


@pytest.mark.parametrize("kernel", kernels.ALL)
def test_every_pair_of_kernel_chore_dtype_groups_and_layout(kernel, cupy, pytestconfig):
    """With --all, of kernel and set of chores."""
    for variant, dtype, asked, grouped, flat in cuda_host.covering(pytestconfig.getoption("--all")):
        if variant[0].rule.kernel == kernel:
            try:
                hold_against_numpy(variant, dtype, asked, grouped, flat, cupy)
            except BaseException as wrong:
                wrong.add_note(f"{label(variant)}, {dtype}, {asked}, grouped: {grouped}, flat: {flat}")
                raise


def hold_against_numpy(variant, dtype, asked, grouped, flat, cupy):
    method, chosen = variant
    rng = np.random.default_rng(15)
    sizes = (3, BLOCK + 6, 0, 517)

    def laid(make):
        """Two leaves or four, in one group or in two."""
        leaves = [make(n) for n in sizes]
        leaves = [fa.FlatBuffer(leaves[:2]), fa.FlatBuffer(leaves[2:])] if flat else leaves
        half = len(leaves) // 2
        return leaves, [leaves[:half], leaves[half:]] if grouped else leaves

    def built(leaves, split, backend):
        more = chores_for(asked, [getattr(p, "array", p) for p in leaves])
        half = len(leaves) // 2
        if grouped and "copy_to" in more:
            more["copy_to"] = [more["copy_to"][:half], more["copy_to"][half:]]
        tree = [{"params": split[0]}, {"params": split[1], "max_norm": 0.2}] if grouped else split
        return method(tree, backend=backend, **chosen, **more)

    def both(scale, bad=False):
        values = [(rng.standard_normal(n) * scale).astype(dtype) for n in sizes]
        if bad:
            values[1][5] = np.nan
        ours, theirs = iter([x.copy() for x in values]), iter([cupy.asarray(x) for x in values])
        return laid(lambda _: next(ours)), laid(lambda _: next(theirs))

    (here, split), (there, on) = both(1.0)
    a, b = built(here, split, "numpy"), built(there, on, "cuda")
    for t in range(3):
        (grads, given), (others, on) = both(0.01, bad=t == 1)
        assert repr(a.step(given, grad_scale=0.5)) == repr(b.step(on, grad_scale=0.5))
        assert differing(*([getattr(x, "array", x) for x in each] for each in (grads, others))) == []
    assert (a.t, a.skipped) == (b.t, b.skipped) == ((2, 1) if asked["skip_nonfinite"] else (3, 0))
    assert differing(*([getattr(x, "array", x) for x in each] for each in (here, there)), a, b) == []
    assert all(same_bits(x, y.get()) for x, y in zip(copies_of(a), copies_of(b), strict=True))


def copies_of(opt):
    return [x for part in opt._copy_to or () for x in (part if isinstance(part, list) else [part])]


@pytest.mark.parametrize("zero_grads", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_micro_batches(reduction, zero_grads, cupy):
    rng = np.random.default_rng(4)
    here = [*tree_of(rng, np.float32), *tree_of(rng, np.float64)]
    there = on_device(cupy, here)
    a, b = (fa.Adam(params, zero_grads=zero_grads, backend=name) for params, name in ((here, "numpy"), (there, "cuda")))
    for count in (3, 1, 4):
        waits = cupy.state.waits
        for k in range(count):
            batch = [*tree_of(rng, np.float32), *tree_of(rng, np.float64)]
            if k == 0:
                batch[3] = None
            on = on_device(cupy, batch)
            a.accumulate(batch)
            b.accumulate(on)
            if zero_grads:
                assert all((g.get() == 0).all() for g in on if g is not None)
                waits = cupy.state.waits
        a.step(reduction=reduction)
        b.step(reduction=reduction)
        assert cupy.state.waits == waits
    assert differing(here, there, a, b) == []
    with pytest.raises(ValueError, match="nothing has been accumulated"):
        b.step()


def test_raise_names_the_first_bad_leaf_and_changes_nothing(cupy):
    here = {"a": np.ones(3, np.float32), "b": np.ones(3000), "c": np.ones(3, np.float32)}
    there = {key: cupy.asarray(p) for key, p in here.items()}
    opt = fa.Adam(there, skip_nonfinite="raise", zero_grads=True, max_norm=1.0)
    bad = {key: p.copy() for key, p in here.items()}
    bad["b"][2999] = bad["c"][0] = np.inf
    grads = {key: cupy.asarray(g) for key, g in bad.items()}
    with pytest.raises(FloatingPointError, match=r"grads\['b'\] holds NaN or infinity"):
        opt.step(grads)
    assert opt.t == opt.skipped == 0
    assert all((p.get() == 1).all() for p in there.values())
    assert all((g.get() != 0).all() for g in grads.values())
    assert opt.step({key: cupy.asarray(p) for key, p in here.items()}).clip_factor < 1
    with pytest.raises(ValueError, match="skip_nonfinite is 'raise'"):
        fa.Adam(there, skip_nonfinite="raise", capturable=True)


def test_averaged_and_back(cupy):
    rng = np.random.default_rng(3)
    here = {"a": rng.standard_normal((3, 4)).astype(np.float32).T, "b": rng.standard_normal(5)}
    there = {key: moved(cupy, p) for key, p in here.items()}
    a, b = fa.Adam(here, lr=0.1, ema_decay=0.5), fa.Adam(there, lr=0.1, ema_decay=0.5)
    for _ in range(3):
        g = {key: rng.standard_normal(p.shape).astype(p.dtype) for key, p in here.items()}
        a.step(g)
        b.step({key: moved(cupy, x) for key, x in g.items()})
    with b.averaged():
        assert all(same_bits(there[key].get(), a.ema[key]) for key in here)
        with pytest.raises(RuntimeError, match="averaged"):
            b.step(there)
    assert all(same_bits(there[key].get(), here[key]) for key in here)


def test_a_graph_clips_skips_and_counts(cupy):
    """Replays, and eager steps between them, against NumPy's steps."""
    rng = np.random.default_rng(5)
    here = tree_of(rng, np.float32)
    there = on_device(cupy, here)
    asked = {"max_norm": 1.0, "skip_nonfinite": True, "ema_decay": lambda t: 1 - 1 / (t + 1), "zero_grads": True}
    a, b = fa.NAdam(here, backend="numpy", **asked), fa.NAdam(there, capturable=True, **asked)
    grads = on_device(cupy, here)
    stream = cupy.Stream()
    with stream:
        stream.begin_capture()
        info = b.step(grads)
        graph = stream.end_capture()
    for t in range(12):
        fresh = tree_of(rng, np.float32)
        if t % 4 == 1:
            fresh[6][39_000] = np.nan
        for g, x in zip(grads, fresh, strict=True):
            g.set(x)
        if t == 6:
            a.groups[0].lr = b.groups[0].lr = 0.1
        theirs = a.step([x.copy() for x in fresh])
        if t % 5 == 3:
            ours = b.step(grads, grad_scale=1.0)
        else:
            graph.launch()
            ours = info
        assert repr(ours) == repr(theirs)
    assert (a.t, a.skipped) == (b.t, b.skipped) == (9, 3)
    assert differing(here, there, a, b) == []
    assert (a.t, a.skipped) == (b.t, b.skipped)  # and after reading the state


def test_skipped_steps_at_the_windows_end(cupy, monkeypatch):
    monkeypatch.setattr(window, "STEPS", 5)
    rng = np.random.default_rng(6)
    here = [rng.standard_normal(70).astype(np.float32)]
    there = on_device(cupy, here)
    a, b = (fa.AdamW(p, lr=lambda t: 0.1 / t, skip_nonfinite=True) for p in (here, there))
    for t in range(23):
        g = rng.standard_normal(70).astype(np.float32)
        g[t] = np.inf if t % 3 == 1 else g[t]
        a.step([g], grad_scale=0.5)
        b.step([moved(cupy, g)], grad_scale=0.5)
    assert (a.t, a.skipped) == (b.t, b.skipped)
    assert differing(here, there, a, b) == []
    with pytest.raises(ValueError, match=r"grads\[0\] is None, expected a gradient for every leaf"):
        b.step([None])


@pytest.mark.parametrize("asked", [{"capturable": True}, {"skip_nonfinite": True, "max_norm": 1.0}], ids=str)
def test_leaves_of_a_group_may_have_counts_of_their_own_where_the_device_counts(asked, cupy):
    """Loaded, moved, copied, and after a reset of some: until a graph is captured, which has one row for all."""
    rng = np.random.default_rng(6)
    here = [rng.standard_normal(n).astype(np.float32) for n in (7, 900)]
    host = {name: value for name, value in asked.items() if name != "capturable"}
    a = fa.Adam(here, backend="numpy", **host)
    a.step([here[0].copy(), None])
    there = on_device(cupy, here)
    b = fa.Adam(there, **asked)
    b.load_state_dict(a.state_dict())
    if "capturable" not in asked:
        there = (b := a.to("cuda")).params

    def step():
        grads = [rng.standard_normal(p.size).astype(np.float32) for p in here]
        assert a.step(grads)[:3] == b.step(on_device(cupy, grads))[:3]

    def same():
        leaves = [opt.state_dict()["leaves"] for opt in (a, b)]
        assert [x["count"] for x in leaves[0].values()] == [x["count"] for x in leaves[1].values()]
        return differing(here, there, a, b) == []

    step()
    assert same()
    a.reset("[1]")
    b.reset("[1]")
    step()
    step()
    assert same()
    again = copy.deepcopy(b)
    assert again.state_dict()["leaves"]["params[1]"]["count"] == 2
    if "capturable" in asked:
        graph = captured(cupy, b, on_device(cupy, here))
        assert graph.work
        with pytest.raises(ValueError, match=r"leaves has '\[0\]', expected whole groups: a captured graph"):
            b.reset("[0]")
        with pytest.raises(
            ValueError, match=r"\['params\[1\]'\]\['count'\] is 2, of 'params\[0\]' it is 4: expected one"
        ):
            b.load_state_dict(a.state_dict())


def test_what_a_step_returns_is_alike_on_a_device(cupy):
    p, g = np.ones(4, np.float32), np.full(4, 2, np.float32)
    asked = {"max_norm": 1.0, "stats": "group"}
    ours = fa.SGD(cupy.asarray(p), **asked).step(cupy.asarray(g))
    theirs = fa.SGD(p, backend="numpy", **asked).step(g)
    assert ours == theirs
    assert len(ours) == len(theirs) == 5
    assert ours[0] == ours[-5] == ours.grad_norm == 4.0
    assert ours[:2] == theirs[:2] == (4.0, 0.25)
    assert ours._asdict() == theirs._asdict()
    assert ours._fields == theirs._fields
    assert ours._replace(skipped=True) == theirs._replace(skipped=True)
    assert [*ours] == [*theirs]
    with pytest.raises(AttributeError, match="StepInfo has no 'gradnorm'"):
        _ = ours.gradnorm


@pytest.mark.parametrize("asked", [{}, {"max_norm": 1.0}, {"skip_nonfinite": True}, {"stats": "group"}], ids=str)
def test_an_empty_tree_is_stepped_alike_everywhere(asked, cupy):
    found = set()
    for chosen in (
        {"backend": "numpy"},
        {"backend": "numba"},
        {"backend": "cuda"},
        {"backend": "cuda", "capturable": 1},
    ):
        opt = fa.Adam({}, **chosen | {"capturable": "capturable" in chosen}, **asked)
        found.add(repr([opt.step({}), opt.accumulate({}), opt.step(), opt.step({}), opt.t, opt.skipped]))
    assert len(found) == 1
    assert ("clip_factor=1.0" in found.pop()) == ("max_norm" in asked)


def test_schedules_are_asked_right_before_each_step_once_one_is_prepared(cupy):
    said = []
    opt = fa.SGD(cupy.asarray(np.zeros(4, np.float32)), lr=lambda t: said[-1] if said else 1.0, skip_nonfinite=True)
    opt.prepare(1)
    ones = cupy.asarray(np.ones(4, np.float32))
    opt.step(ones)
    for lr in (0.5, 0.25):
        said.append(lr)
        opt.step(ones)
    assert opt.params.get().tolist() == [-1.75] * 4
    with pytest.raises(
        ValueError, match="capturable is False, expected an optimizer made with capturable=True, or with"
    ):
        fa.SGD(ones).prepare(1)


def test_copies_in_a_buffer_beside_a_buffer(cupy):
    rng = np.random.default_rng(25)
    tree = {"a": rng.standard_normal((3, 2)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    here, short = (fa.FlatBuffer({key: x.astype(kind) for key, x in tree.items()}) for kind in (np.float32, np.float16))
    pairs = [(here, short), (here.to("cuda"), short.to("cuda"))]
    for p, copies in pairs:
        opt = fa.SGD(p, copy_to=copies)
        opt.step(p.zeros_like())
        copies.array[:] = 0
        opt = pickle.loads(pickle.dumps(opt))
        opt.step(opt.params.zeros_like())
        found = opt.copy_to.views["b"]
        assert same_bits(getattr(found, "get", lambda x=found: x)(), tree["b"].astype(np.float16))
        other = fa.FlatBuffer({"a": p.views["b"], "b": p.views["a"]})
        with pytest.raises(ValueError, match=r"copy_to is FlatBuffer of .*: expected the same names and shapes"):
            fa.SGD(other, copy_to=copies)
        with pytest.raises(ValueError, match=r"copy_to\['b'\] is FlatBuffer of .*: expected the same names and shapes"):
            fa.SGD(p.views, copy_to={"a": copies, "b": copies} | {"a": opt.copy_to.views["a"]})
        with pytest.raises(TypeError, match=r"copy_to is FlatBuffer of float32.*: expected an array of float16 or"):
            fa.SGD(p, copy_to=p.zeros_like())


def test_bad_chores_are_refused_on_the_device(cupy):
    p, g = cupy.asarray(np.ones(4, np.float32)), cupy.asarray(np.ones(4, np.float32))
    with pytest.raises(TypeError, match=r"copy_to is float32\(4,\) on cuda:0, .* expected an array of float16 or bfl"):
        fa.Adam(p, copy_to=g)
    with pytest.raises(TypeError, match="on the same processor"):
        fa.Adam(p, copy_to=np.ones(4, np.float16))
    with pytest.raises(ValueError, match="share memory"):
        fa.Adam([p[:2], p[2:]], zero_grads=True).step([g[:2], g[1:3]])
    opt, x = fa.SGD([p[:2], p[2:]], zero_grads=True), g[:2]
    opt.step([x, None])
    opt.step([None, x])
    for _ in range(2):  # each leaf has had it before
        with pytest.raises(ValueError, match=r"grads\[0\] and grads\[1\] share memory"):
            opt.step([x, x])
    assert opt.t == 2


def test_the_norm_survives_what_float32_squares_do_not_in_leaves_of_any_size(cupy):
    for size in (1e30, 1e-30, np.float32(1e-44)):
        opt = fa.SGD(cupy.asarray(np.zeros(5_000, np.float32)), max_norm=1e-40)
        found = opt.step(cupy.asarray(np.full(5_000, size, np.float32))).grad_norm
        assert found == pytest.approx(np.sqrt(5_000) * float(np.float32(size)), rel=1e-12)
    g = np.random.default_rng(1).standard_normal(1_300_001).astype(np.float32)  # more notes than one block adds up
    assert len(g) > norm.SPAN * BLOCK
    here, there = np.zeros_like(g), cupy.asarray(np.zeros_like(g))
    found = [opt.step(x).grad_norm for opt, x in ((fa.SGD(here, max_norm=1.0, backend="numpy"), g),
                                                  (fa.SGD(there, max_norm=1.0), cupy.asarray(g)))]  # fmt: skip
    assert found[0] == found[1]


def test_copies_moves_and_pickles_keep_the_chores(cupy):
    p = {"w": np.ones(6, np.float32)}
    on = {"w": cupy.asarray(p["w"])}
    short = {"w": cupy.asarray(np.zeros(6, np.float16))}
    a = fa.AdamW(p, backend="numpy", max_norm=0.5, ema_decay=0.9, skip_nonfinite=True, stats="group")
    b = fa.AdamW(on, max_norm=0.5, ema_decay=0.9, copy_to=short, skip_nonfinite=True, stats="group")
    for values in (np.ones(6), np.full(6, np.nan), np.arange(6)):
        g = values.astype(np.float32)
        a.step({"w": g})
        b.step({"w": cupy.asarray(g)})
        on, b = pickle.loads(pickle.dumps((on, b)))
    assert (b.t, b.skipped) == (a.t, a.skipped) == (2, 1)
    assert same_bits(on["w"].get(), p["w"])
    assert same_bits(b.ema["w"].get(), a.ema["w"])
    assert same_bits(b._copy_to["w"].get(), p["w"].astype(np.float16))
