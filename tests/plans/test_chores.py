"""What rides along with a step: the order of operations, the sums, and nothing when it is not asked for."""

import copy
import math
import pickle
from contextlib import nullcontext
from dataclasses import fields

import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cases import METHODS, kernels_in_use, label, same_bits, state_arrays

import fastadam as fa
import papers
from fastadam.kernels.chores import BLOCK
from fastadam.tools.cover import BITING, chores, chores_for

SIZES = (3, 1, 0, BLOCK - 1, BLOCK, BLOCK + 1, 40_000)
# Every pair of chores' values, and each kernel with a set of them; every pair with kernels would compile for minutes.
KERNELS = kernels_in_use()
CASES = [
    (KERNELS[k % len(KERNELS)], (np.float32, np.float64)[k % 2], asked)
    for k, asked in enumerate((2 * chores())[: len(KERNELS)])
]


def tree_of(rng, dtype, scale=1.0):
    return [(rng.standard_normal(n) * scale).astype(dtype) for n in SIZES]


def made(method, chosen, asked, params, backend, grouped=False):
    asked = chores_for(asked, params)
    if grouped:
        halves = [{"params": params[:4]}, {"params": params[4:], "max_norm": 0.2}]
        if "copy_to" in asked:
            asked["copy_to"] = [asked["copy_to"][:4], asked["copy_to"][4:]]
        return method(halves, backend=backend, **chosen, **asked)
    return method(params, backend=backend, **chosen, **asked)


def everything(params, opt, grads, infos):
    found = {f"p{k}": p for k, p in enumerate(params)} | state_arrays(opt) | {f"g{k}": g for k, g in enumerate(grads)}
    if opt._copy_to is not None:
        flat = opt._copy_to if isinstance(opt._copy_to[0], np.ndarray) else [x for half in opt._copy_to for x in half]
        found |= {f"copy{k}": x for k, x in enumerate(flat)}
    numbers = [x for info in infos for x in (info.grad_norm, info.clip_factor, info.stats)]
    return found, repr(numbers)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda k: f"{k}-{label(CASES[k][0])}")
def test_every_backend_and_thread_count_gives_the_same_bits(number):
    (method, chosen), dtype, asked = CASES[number]
    results = []
    for backend, threads in (("numpy", 1), ("numba", 1), ("numba", 2)):
        rng = np.random.default_rng(number)
        params, infos = tree_of(rng, dtype), []
        opt = made(method, chosen, asked, params, backend, grouped=number % 3 == 0)
        with fa.num_threads(threads):
            for t in range(4):
                grads = tree_of(rng, dtype, 0.01)
                if t == 2:
                    grads[3][7] = np.nan
                given = [None if t == 1 and k == 4 else g for k, g in enumerate(grads)]
                infos.append(opt.step([given[:4], given[4:]] if number % 3 == 0 else given, grad_scale=0.5))
        assert opt.skipped == int(asked["skip_nonfinite"])
        results.append(everything(params, opt, grads, infos))
    for arrays, numbers in results[1:]:
        assert numbers == results[0][1]
        assert [key for key in arrays if not same_bits(arrays[key], results[0][0][key])] == []


def separate_passes(method, chosen, asked, params, rounds, scale):
    """The documented order as separate float64 passes, the method itself by its paper."""
    chosen = {k: v for k, v in chosen.items() if k != "decoupled_weight_decay"}
    oracle, state = papers.ORACLES[method.__name__.lower()], None
    p = np.concatenate([x.ravel() for x in params]).astype(np.float64)
    slots = [slot.name for slot in fa.kernels.ALL[method.rule.kernel].slots]
    state = {name: np.zeros_like(p) for name in slots} | dict(method.rule.carried)
    ema, infos = p.copy(), []
    for t, grads in enumerate(rounds, 1):
        g = scale * np.concatenate([x.ravel() for x in grads]).astype(np.float64)
        norm = math.sqrt(float((g * g).sum()))
        factor = min(1.0, asked["max_norm"] / norm)
        g = np.clip(g * factor, -asked["max_value"], asked["max_value"])
        before = p
        p, state = oracle(t, p, g, state, **chosen)
        ema = asked["ema_decay"] * ema + (1 - asked["ema_decay"]) * p
        infos.append((norm, factor, np.linalg.norm(p - before), np.linalg.norm(p), np.abs(p - before).max()))
    return p, ema, infos


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("name", ["AdamW", "Adam", "Lion", "NAdam", "Adamax"])
def test_the_order_is_that_of_separate_passes(name, backend):
    method = getattr(fa, name)
    chosen = {each.name: BITING[each.name] for each in fields(method.rule) if each.init and each.name in BITING}
    rng = np.random.default_rng(5)
    params = tree_of(rng, np.float64)
    rounds = [tree_of(rng, np.float64, 10.0 ** rng.uniform(-4, 1)) for _ in range(6)]
    asked = {"max_norm": 0.9, "max_value": 0.01, "ema_decay": 0.8}
    p, ema, infos = separate_passes(method, chosen, asked, params, rounds, 0.25)
    copies = [np.zeros(x.shape, np.float16) for x in params]
    opt = method(params, backend=backend, **chosen, **asked, copy_to=copies, zero_grads=True, stats="group")
    for grads, (norm, factor, update, size, largest) in zip(rounds, infos, strict=True):
        info = opt.step(grads, grad_scale=0.25)
        assert all((g == 0).all() for g in grads)
        assert info.grad_norm == pytest.approx(norm, rel=1e-12)
        assert info.clip_factor == pytest.approx(factor, rel=1e-12)
        stats = info.stats["groups[0]"]
        assert stats["grad_norm"] == pytest.approx(norm, rel=1e-12)
        assert stats["update_norm"] == pytest.approx(update, rel=1e-9)
        assert stats["param_norm"] == pytest.approx(size, rel=1e-11)
        assert stats["largest_update"] == pytest.approx(largest, rel=1e-9)
    np.testing.assert_allclose(np.concatenate(params), p, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(np.concatenate(opt.ema), ema, rtol=1e-11, atol=1e-12)
    for q, short in zip(params, copies, strict=True):
        assert same_bits(q.astype(np.float32).astype(np.float16), short)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_norm_survives_what_float32_squares_do_not(backend):
    for size in (1e30, 1e-30, np.float32(1e-44)):
        g = np.full(5_000, size, np.float32)
        opt = fa.SGD(np.zeros(5_000, np.float32), backend=backend, max_norm=1e-40)
        true = math.sqrt(5_000) * float(np.float32(size))
        assert opt.step(g).grad_norm == pytest.approx(true, rel=1e-12)
    values = np.random.default_rng(1).standard_normal(300_001).astype(np.float32)
    true = math.sqrt(math.fsum(float(x) ** 2 for x in values))
    for cuts in ([], [1], [77, 1_000, 250_000]):
        pieces = np.split(values.copy(), cuts)
        opt = fa.SGD([np.zeros_like(x) for x in pieces], backend=backend, max_norm=1.0)
        assert opt.step(pieces).grad_norm == pytest.approx(true, rel=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_groups_own_norm(backend):
    a, b = np.zeros(2, np.float32), np.zeros(2, np.float32)
    opt = fa.SGD([{"params": a}, {"params": b, "max_norm": 0.5}], lr=1.0, max_norm=10.0, backend=backend)
    info = opt.step([np.float32([6, 8]), np.float32([0, 3])])
    assert info.grad_norm == pytest.approx(math.sqrt(109))
    assert info.clip_factor == (pytest.approx(10 / math.sqrt(109)), pytest.approx(0.5 / 3))
    np.testing.assert_allclose(a, [-60 / math.sqrt(109), -80 / math.sqrt(109)], rtol=1e-6)
    np.testing.assert_allclose(b, [0, -0.5], rtol=1e-6)
    opt.groups[1].max_norm = 1.5
    assert opt.step([np.float32([0, 0]), np.float32([0, 3])]).clip_factor[1] == pytest.approx(0.5)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_that_is_not_finite_is_skipped(dtype, bad, backend):
    rng = np.random.default_rng(2)
    params = tree_of(rng, dtype)
    opt = fa.Adam(params, backend=backend, skip_nonfinite=True, zero_grads=True, ema_decay=0.9)
    opt.step(tree_of(rng, dtype))
    for leaf, at in ((3, 0), (6, 39_999), (6, 17), (0, 2)):
        before = copy.deepcopy((params, opt.state_dict()["leaves"], opt.t))
        grads = tree_of(rng, dtype, np.finfo(dtype).max / 10)  # their squares overflow, they are finite
        assert not opt.step([g / 2 for g in grads]).skipped
        opt = _restored(opt, params, before, backend)
        grads[leaf][at] = bad
        info = opt.step(grads)
        assert info.skipped
        assert all((g == 0).all() for g in grads)
        assert all(same_bits(p, q) for p, q in zip(params, before[0], strict=True))
        assert repr(opt.state_dict()["leaves"]) == repr(before[1])
        assert opt.t == before[2]


def _restored(opt, params, before, backend):
    for p, q in zip(params, before[0], strict=True):
        p[:] = q
    state = opt.state_dict() | {"leaves": before[1], "t": before[2]}
    other = fa.Adam(params, backend=backend, skip_nonfinite=True, zero_grads=True, ema_decay=0.9)
    other.load_state_dict(state)
    return other


def test_raise_names_the_first_bad_leaf():
    params = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32), "c": np.ones(3, np.float32)}
    opt = fa.Adam(params, skip_nonfinite="raise", zero_grads=True)
    grads = {key: np.ones(3, np.float32) for key in params}
    grads["b"][1] = grads["c"][0] = np.inf
    with pytest.raises(FloatingPointError, match=r"grads\['b'\] holds NaN or infinity"):
        opt.step(grads)
    assert opt.t == opt.skipped == 0
    assert all((p == 1).all() for p in params.values())
    assert all((grads[key] != 0).all() for key in params)


def test_without_skipping_nan_and_infinity_propagate():
    p = np.ones(3, np.float32)
    fa.SGD(p, max_norm=1.0).step(np.float32([1, np.nan, 2]))
    assert np.isnan(p).all()
    p = np.ones(3, np.float32)
    fa.SGD(p, max_value=0.5, lr=1.0).step(np.float32([1, np.nan, -np.inf]))
    assert same_bits(p, np.float32([0.5, np.nan, 1.5]))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_averaged_and_back(backend):
    rng = np.random.default_rng(3)
    params = {"a": rng.standard_normal((3, 4)).astype(np.float32).T, "b": rng.standard_normal(5)}
    opt = fa.Adam(params, lr=0.1, ema_decay=0.5, backend=backend)
    assert all(same_bits(opt.ema[key], params[key]) for key in params)  # they start as a copy
    for _ in range(3):
        opt.step({key: rng.standard_normal(p.shape).astype(p.dtype) for key, p in params.items()})
    own, ema = copy.deepcopy(params), copy.deepcopy(opt.ema)
    with opt.averaged():
        assert all(same_bits(params[key], ema[key]) for key in params)
        assert not same_bits(params["b"], own["b"])
        for forbidden in (lambda: opt.step(params), lambda: opt.step_rows({}), lambda: pickle.dumps(opt)):
            with pytest.raises(RuntimeError, match="averaged"):
                forbidden()
        with pytest.raises(RuntimeError, match="in use"), opt.averaged():
            pass
    assert all(same_bits(params[key], own[key]) for key in params)
    with pytest.raises(ZeroDivisionError), opt.averaged():
        1 / 0  # noqa: B018
    assert all(same_bits(params[key], own[key]) for key in params)
    with pytest.raises(ValueError, match="ema_decay"), fa.Adam(params).averaged():
        pass


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_micro_batches(reduction, backend):
    rng = np.random.default_rng(4)
    a = [tree_of(rng, np.float32), tree_of(rng, np.float32)]
    a.append(copy.deepcopy(a[1]))
    one, two = (fa.Adam(params, backend=backend, max_norm=1.0) for params in a[1:])
    for count in (3, 1, 4):
        batches = [tree_of(rng, np.float32) for _ in range(count)]
        for k, batch in enumerate(batches):
            one.accumulate([None if leaf == 3 and k == 0 else g for leaf, g in enumerate(batch)])
        total = [g.copy() for g in batches[0]]
        for k, batch in enumerate(batches[1:]):
            total = [
                batch[3] if leaf == 3 and k == 0 else x + g
                for leaf, (x, g) in enumerate(zip(total, batch, strict=True))
            ]
        if count == 1:
            total[3] = None
        one.step(reduction=reduction)
        two.step(total, grad_scale=1 / count if reduction == "mean" else 1.0)
        assert all(same_bits(p, q) for p, q in zip(a[1], a[2], strict=True))
    with pytest.raises(ValueError, match="nothing has been accumulated"):
        one.step()


def test_accumulation_is_copied_and_cleared():
    p, g = np.ones(4, np.float32), np.full(4, 2, np.float32)
    opt = fa.SGD(p, lr=1.0, zero_grads=True)
    opt.accumulate(g)
    assert (g == 0).all()
    q, twin = copy.deepcopy((p, opt))
    opt.step()
    assert (p == -1).all()
    twin.step()
    assert (q == -1).all()
    with pytest.raises(ValueError, match="reduction is 'max'"):
        opt.step(reduction="max")


@pytest.fixture(params=["numpy", "numba", "cuda"])
def put(request):
    """What makes an array of a backend of float32 numbers."""
    if request.param == "cuda":
        if cuda_host.COMPILER is None:
            pytest.skip("no g++: the .cu text cannot run on the host")
        cupy = request.getfixturevalue("cupy")
        return lambda *values: cupy.asarray(np.array(values, np.float32))
    return lambda *values: np.array(values, np.float32)


def numbers(x):
    return (x if isinstance(x, np.ndarray) else x.get()).tolist()


def test_what_is_accumulated_and_what_is_given_are_not_mixed(put):
    p = put(1, 1)
    opt = fa.SGD(p, lr=1.0)
    opt.accumulate(put(1, 2))
    for call in (lambda: opt.step(put(1, 1)), lambda: opt.step_rows((np.array([0]), put(1)))):
        with pytest.raises(ValueError, match="1 micro-batches have been accumulated: expected step"):
            call()
    with pytest.raises(ValueError, match="reduction is 'sum', expected it where"):
        opt.step(put(1, 1), reduction="sum")
    assert numbers(p) == [1, 1]
    opt.step()
    assert numbers(p) == [0, -1]
    for drop in (opt.forget, lambda: opt.load_state_dict(opt.state_dict())):
        opt.accumulate(put(1, 2))
        drop()
        with pytest.raises(ValueError, match="nothing has been accumulated"):
            opt.step()
    opt.step(put(1, 0))
    assert numbers(p) == [-1, -1]


@pytest.mark.parametrize("skip", [True, "raise"])
def test_bad_micro_batches_spoil_one_step_only(skip, put):
    p = put(1, 1)
    opt = fa.SGD(p, lr=1.0, skip_nonfinite=skip)
    opt.accumulate(put(1, 1))
    opt.accumulate(put(1, np.nan))
    with pytest.raises(FloatingPointError) if skip == "raise" else nullcontext():
        assert opt.step().skipped
    opt.accumulate(put(1, 2))
    opt.step()
    assert numbers(p) == [0, -1]
    assert (opt.t, opt.skipped) == (1, int(skip is True))


def test_inside_averaged_nothing_is_copied_or_accumulated(put):
    p = put(1, 1)
    opt = fa.SGD(p, lr=1.0, ema_decay=0.5)
    opt.step(put(1, 1))
    with opt.averaged():
        for call in (lambda: pickle.dumps(opt), lambda: copy.deepcopy(opt)):
            with pytest.raises(
                RuntimeError, match=r"a copy or a conversion inside averaged\(\) would keep no parameters of its own"
            ):
                call()
        with pytest.raises(RuntimeError, match=r"gradients inside averaged\(\) are those of the averages"):
            opt.accumulate(put(1, 1))
        assert numbers(p) == [0.5, 0.5]
    assert numbers(p) == [0, 0]


def test_what_a_step_returns_is_a_tuple_wherever_it_ran(put):
    opt = fa.SGD(put(1, 1), max_norm=1.0, stats="group")
    info = opt.step(put(3, 4))
    kept = pickle.loads(pickle.dumps(info))
    norm, factor, skipped, stats, taken_over = info
    assert (norm, factor, skipped, taken_over) == (5, 0.2, False, None)
    assert type(kept) is type(fa.SGD(np.ones(1)).step(np.ones(1)))
    assert info == kept
    assert kept == info
    assert kept.stats == stats


def test_zeroed_gradients_must_be_writable_and_separate():
    p = [np.ones(4, np.float32), np.ones(4, np.float32)]
    opt = fa.Adam(p, zero_grads=True)
    g = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="share memory"):
        opt.step([g, g])
    g.flags.writeable = False
    with pytest.raises(ValueError, match=r"grads\[0\] is read-only"):
        opt.step([g, np.ones(4, np.float32)])
    strided = np.ones((4, 2), np.float32)[:, 0]
    opt.step([strided, np.ones(4, np.float32)])
    assert (strided == 0).all()
    assert opt.t == 1


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("short", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copies_are_rounded_to_nearest_even(dtype, short, backend):
    bits = np.arange(2**16, dtype=np.uint32) << 16
    p = np.concatenate([bits, bits + 0x8000, bits + 0x8001, bits + 0x7FFF, bits | 0x0FFF]).astype(np.uint32)
    with np.errstate(all="ignore"):
        p = p.view(np.float32).astype(dtype)
    out = np.zeros(p.size, short)
    opt = fa.SGD(p, lr=0.0, backend=backend, copy_to=out)
    with np.errstate(all="ignore"):
        expected = p.astype(np.float32).astype(short)
    assert same_bits(out, expected)  # from the start
    out[:] = 0
    opt.step(np.zeros_like(p))  # infinity times a learning rate of 0 is NaN
    with np.errstate(all="ignore"):
        assert same_bits(out, p.astype(np.float32).astype(short))


@pytest.mark.parametrize("semantics", ["lazy", "exact"])
def test_rows_take_the_chores_along(semantics):
    results = []
    for backend in ("numpy", "numba"):
        rng = np.random.default_rng(6)
        p = rng.standard_normal((50, 30)).astype(np.float32)
        dense = p.copy()
        out = np.zeros(p.shape, np.float16)
        asked = {"max_norm": 1.0, "max_value": 0.1, "ema_decay": 0.9, "zero_grads": True, "stats": "tensor"}
        opt = fa.AdamW(p, backend=backend, copy_to=out, **asked)
        whole = fa.AdamW(dense, backend="numpy", **asked)
        norms = []
        for _ in range(12):
            at = rng.permutation(50)[:5]
            values = rng.standard_normal((5, 30)).astype(np.float32)
            g = np.zeros_like(p)
            g[at] = values
            info = opt.step_rows((at, values), 0.5, semantics)
            norms.append(info.grad_norm)
            assert info.grad_norm == pytest.approx(whole.step(g, 0.5).grad_norm, rel=1e-12)
            assert (values == 0).all()
        opt.catch_up()
        results.append((p, opt.ema, out, np.array(norms)))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    if semantics == "exact":
        np.testing.assert_allclose(p, dense, rtol=1e-6)  # the factor's norm is summed in another order
        np.testing.assert_allclose(opt.ema, whole.ema, rtol=1e-6)


BAD = [
    ({"max_norm": 0}, ValueError, "max_norm is 0"),
    ({"max_norm": math.nan}, ValueError, "max_norm is nan"),
    ({"max_value": -1}, ValueError, "max_value is -1"),
    ({"max_value": "1"}, TypeError, "max_value is '1'"),
    ({"ema_decay": 1.5}, ValueError, "ema_decay is 1.5"),
    ({"zero_grads": 1}, ValueError, "zero_grads is 1, expected False or True"),
    ({"skip_nonfinite": "yes"}, ValueError, "skip_nonfinite is 'yes', expected False or True or 'raise'"),
    ({"stats": "leaf"}, ValueError, "stats is 'leaf', expected None or 'group' or 'tensor'"),
    ({"copy_to": np.zeros(3, np.float32)}, TypeError, r"copy_to is float32\(3,\)"),
    ({"copy_to": np.zeros(4, np.float16)}, ValueError, r"copy_to is float16\(4,\), params is float32\(3,\)"),
    ({"copy_to": [np.zeros(3, np.float16)]}, TypeError, "copy_to is list"),
]


@pytest.mark.parametrize(("asked", "error", "text"), BAD)
def test_bad_chores_are_refused(asked, error, text):
    with pytest.raises(error, match=text):
        fa.Adam(np.ones(3, np.float32), **asked)


def test_other_refusals():
    p = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="order of axes"):
        fa.Adam(p, copy_to=np.zeros((2, 3), np.float16).T)
    frozen = np.zeros((3, 2), np.float16)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="copy_to is read-only"):
        fa.Adam(p, copy_to=frozen)
    opt = fa.Adam(p, ema_decay=lambda t: 2.0)
    with pytest.raises(ValueError, match=r"ema_decay\(1\)"):
        opt.step(p.copy())
    assert (p == 1).all()
    with pytest.raises(ValueError, match="max_norm"):
        opt.groups[0].max_norm = 1.0


def test_copies_of_optimizers_keep_their_chores():
    p = {"w": np.ones(6, np.float32)}
    short = {"w": np.zeros(6, np.float16)}
    opt = fa.AdamW(p, max_norm=0.5, ema_decay=0.9, copy_to=short, skip_nonfinite=True, stats="group")
    opt.step({"w": np.ones(6, np.float32)})
    opt.step({"w": np.full(6, np.nan, np.float32)})
    q, out, twin = pickle.loads(pickle.dumps((p, short, opt)))
    assert twin.skipped == 1
    for params, each in ((p, opt), (q, twin)):
        each.step({"w": np.arange(6, dtype=np.float32)})
        params["ema"] = each.ema["w"]
    assert same_bits(p["w"], q["w"])
    assert same_bits(p["ema"], q["ema"])
    assert same_bits(short["w"], out["w"])
    assert not same_bits(out["w"], np.zeros(6, np.float16))


def test_nothing_is_measured_that_is_not_asked_for():
    """The norm takes a read of the gradients; without a use for it there is none."""
    for asked, reads in (({}, 0), ({"max_value": 1.0, "stats": "group"}, 0), ({"max_norm": 1.0}, 1),
                          ({"skip_nonfinite": True, "max_norm": 1.0}, 1)):  # fmt: skip
        opt = fa.Adam(np.ones(10, np.float32), **asked)
        calls, measure = [], opt._plan._measure
        opt._plan._measure = lambda *args, calls=calls, measure=measure: calls.append(args) or measure(*args)
        assert opt.step(np.ones(10, np.float32)).grad_norm == (None if not asked else pytest.approx(math.sqrt(10))
            if "max_norm" in asked or "stats" in asked else None)  # fmt: skip
        assert len(calls) == reads


def test_every_method_takes_every_chore():
    for method in METHODS:
        p = np.ones(4, np.float32)
        opt = method(p, backend="numpy", max_norm=1.0, max_value=0.4, ema_decay=0.5, copy_to=np.zeros(4, np.float16),
                     zero_grads=True, skip_nonfinite=True, stats="tensor")  # fmt: skip
        for _ in range(2):  # ADOPT's first step only fills its second moment
            assert opt.step(np.ones(4, np.float32)).clip_factor == 0.5
        assert not (p == 1).any()
        assert not same_bits(opt.ema, p)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_rows_and_whole_steps_take_turns(backend):
    rng = np.random.default_rng(8)
    ours, theirs = np.ones((40, 60), np.float32), np.ones((40, 60), np.float32)
    asked = {"max_norm": 0.1, "skip_nonfinite": True, "stats": "group"}
    a, b = fa.Adam(ours, backend=backend, **asked), fa.Adam(theirs, backend="numpy", **asked)
    for t in range(8):
        g = rng.standard_normal((40, 60)).astype(np.float32)
        at = rng.permutation(40)[:3]
        found = [opt.step(g) if t % 2 else opt.step_rows((at, g[at])) for opt in (a, b)]
        assert found[0] == found[1]
        assert found[0].clip_factor < 1
    assert same_bits(ours, theirs)
