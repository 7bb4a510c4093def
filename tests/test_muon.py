"""Muon over arrays: its matrices against the paper, all other leaves against AdamW, and what it refuses."""

import inspect
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
from cases import same_bits

import fastadam as fa
import papers
from fastadam import muon, orthogonal
from fastadam.tools import composed
from fastadam.tools.cover import Case
from fastadam.tools.verify import SLACK

SHAPES = {"tall": (9, 5), "wide": (4, 7), "square": (6, 6), "again": (9, 5), "filters": (5, 2, 3)}
CHOSEN = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
STEPS = 5


def tree(rng, dtype=np.float64):
    shapes = {**SHAPES, "bias": (5,), "scale": ()}
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def as_matrix(x):
    return x.reshape(len(x), -1)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_matrices_are_the_papers_and_the_others_adamws(adjust, nesterov, backend):
    rng = np.random.default_rng(0)
    params = tree(rng)
    exact = {name: as_matrix(params[name]).astype(np.longdouble) for name in SHAPES}
    state = {name: {"m": 0 * x} for name, x in exact.items()}
    rest = {name: params[name].copy() for name in ("bias", "scale")}
    others = fa.AdamW(rest, lr=0.01, betas=(0.8, 0.95), backend=backend)
    opt = fa.Muon(
        params, adjust=adjust, nesterov=nesterov, aux={"lr": 0.01, "betas": (0.8, 0.95)}, backend=backend, **CHOSEN
    )
    assert opt.matrices == [f"[{name!r}]" for name in SHAPES]
    for t in range(1, STEPS + 1):
        grads = tree(rng)
        opt.step(grads)
        others.step({name: grads[name] for name in rest})
        for name, p in exact.items():
            g = as_matrix(grads[name]).astype(np.longdouble)
            exact[name], state[name] = papers.muon(
                t, p, g, state[name], adjust=adjust, nesterov=nesterov, **CHOSEN
            )  # fmt: skip
    assert all(same_bits(params[name], x) for name, x in rest.items())
    for name, x in exact.items():
        # An iteration's products of at most 9 terms lose 9 roundings each, of sizes within 10; each multiplies what
        # came before by at most 3.4445, and lr·√9 moves p by the result.
        lost = STEPS * 5 * 3 * 9 * 10 * 3.4445**5 * 2.0**-53 * 0.02 * 3
        np.testing.assert_allclose(as_matrix(params[name]).astype(np.longdouble), x, rtol=0, atol=lost)


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_oracle_moves_singular_values_alone(nesterov):
    """By numbers worked out one by one: 3 and 4 are 0.6 and 0.8 of their norm, which five rounds of the polynomial turn
    into 0.722876 and 1.119204; directions stay."""
    values = []
    for value in (0.6, 0.8):
        for _ in range(5):
            value = 3.4445 * value - 4.775 * value**3 + 2.0315 * value**5
        values.append(value)
    np.testing.assert_allclose(values, [0.722876, 1.119204], atol=1e-6)
    turn, other = (np.linalg.qr(np.random.default_rng(k).standard_normal((2, 2)))[0] for k in (0, 1))
    g = turn @ np.diag([3.0, 4.0]) @ other
    p, state = papers.muon(1, 0 * g, g, {"m": 0 * g}, lr=1.0, weight_decay=0.1, momentum=0.9, nesterov=nesterov)
    np.testing.assert_allclose(p, -turn @ np.diag(values) @ other, atol=1e-13)
    np.testing.assert_allclose(state["m"], 0.1 * g, atol=1e-15)


def test_singular_values_come_near_to_one():
    rng = np.random.default_rng(1)
    p = np.zeros((20, 12), np.float32)
    fa.Muon(p, lr=1.0, weight_decay=0.0, adjust="original").step(rng.standard_normal((20, 12)).astype(np.float32))
    values = np.linalg.svd(p / np.sqrt(20 / 12), compute_uv=False)
    assert 0.6 < values.min() <= values.max() < 1.3


def test_the_walks_have_the_same_bits_on_every_backend():
    """Given the same products, which one process's BLAS gives both."""
    results = []
    for backend in ("numpy", "numba"):
        rng = np.random.default_rng(2)
        params = tree(rng, np.float32)
        opt = fa.Muon(params, lr=lambda t: 0.1 / t, backend=backend, aux={"moments": "8bit"})
        for _ in range(STEPS):
            opt.step(tree(rng, np.float32), grad_scale=0.5)
        results.append([*params.values(), *(x["m"] for x in opt.state_dict()["leaves"].values())])
    assert all(same_bits(x, y) for x, y in zip(*results, strict=True))


def test_who_is_a_matrix_is_the_callers_to_say():
    params = tree(np.random.default_rng(3))
    assert fa.Muon(params, muon=lambda path, x: x.ndim == 2 and "again" not in path).matrices == [
        "['tall']", "['wide']", "['square']"
    ]  # fmt: skip
    assert fa.Muon(params, muon=["['wide']"]).matrices == ["['wide']"]
    with pytest.raises(ValueError, match=r"muon has \"\['bias'\]\", which is float64\(5,\): expected two dimensions"):
        fa.Muon(params, muon=["['bias']"])
    assert fa.Muon({"bias": np.ones(3)}).matrices == []


def test_a_resumed_run_has_the_same_bits():
    rng = np.random.default_rng(4)
    params = tree(rng, np.float32)
    opt = fa.Muon(params, **CHOSEN)
    opt.step(tree(rng, np.float32))
    copies = {name: x.copy() for name, x in params.items()}
    loaded = fa.Muon(copies, **CHOSEN)
    loaded.load_state_dict(opt.state_dict())
    pickled = pickle.loads(pickle.dumps(opt))
    grads = tree(rng, np.float32)
    for each in (opt, loaded, pickled):
        each.step(grads)
    for name, x in params.items():
        assert same_bits(x, copies[name])
        assert same_bits(x, pickled.params[name])
    assert (loaded.t, pickled.t) == (2, 2)


@pytest.mark.parametrize("path", ["['tall']", "['filters']", "['bias']"])
def test_a_leaf_is_replaced_and_its_state_follows_the_rows(path):
    """As an optimizer made anew does, whose state is put together by hand; what was accumulated follows, too."""
    rng = np.random.default_rng(8)
    params, name, rows = tree(rng, np.float32), path[2:-2], [4, 0, -1, 9]
    copies = {key: np.zeros(x.shape, np.float16) for key, x in params.items()}
    opt = fa.Muon(params, **CHOSEN, ema_decay=0.9, copy_to=copies)
    opt.step(tree(rng, np.float32))

    def follow(x, anew):
        return np.stack([x[r] if 0 <= r < len(x) else anew[k] for k, r in enumerate(rows)])

    new = rng.standard_normal((4, *params[name].shape[1:])).astype(np.float32)
    state, grads = opt.state_dict(), tree(rng, np.float32)
    for key, x in state["leaves"][f"params{path}"].items():
        if isinstance(x, np.ndarray):
            state["leaves"][f"params{path}"][key] = follow(x, new if key == "ema" else np.zeros_like(new))
    other = fa.Muon({key: x.copy() for key, x in (params | {name: new}).items()}, **CHOSEN, ema_decay=0.9)
    other.load_state_dict(state)
    opt.accumulate(grads)
    for bad in ({"path": "['none']", "array": new}, {"path": path, "array": new, "rows": [0]},
                {"path": path, "array": new.astype(np.float64)}, {"path": path, "array": new}):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            opt.replace(**bad)
    opt.replace(path, new, rows, copy_to=np.zeros(new.shape, np.float16))
    opt.step()
    other.step(grads | {name: follow(grads[name], np.zeros_like(new))})
    grads = grads | {name: new + 1}
    pickled = pickle.loads(pickle.dumps(opt))
    for each in (opt, pickled, other):
        each.step(grads)
    assert opt.params[name] is new
    assert opt.copy_to[name].shape == new.shape
    for each in (opt, pickled):
        assert all(same_bits(each.params[key], x) for key, x in other.params.items())
        assert all(same_bits(x, other.ema[key]) for key, x in each.ema.items())


CHORES = {"max_norm": 0.7, "ema_decay": 0.9, "zero_grads": True, "skip_nonfinite": True}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_chores_are_of_all_leaves(backend):
    """The norm is that of all gradients, which a Muon without chores is given scaled; one NaN anywhere skips all."""
    params = tree(np.random.default_rng(8), np.float32)
    plain = {name: x.copy() for name, x in params.items()}
    copies = {name: np.zeros(x.shape, np.float16) for name, x in params.items()}
    averages = {name: x.copy() for name, x in params.items()}
    opt = fa.Muon(params, copy_to=copies, backend=backend, **CHORES, **CHOSEN)
    other = fa.Muon(plain, backend=backend, **CHOSEN)
    rng = np.random.default_rng(9)
    for bad in (None, "wide", None, "bias"):
        grads = tree(rng, np.float32)
        if bad:
            grads[bad].flat[0] = np.nan
            before = [x.copy() for x in params.values()]
        given = {name: x.copy() for name, x in grads.items()}
        info = opt.step(grads, grad_scale=2.0)
        assert info.skipped == bool(bad)
        assert not any(x.any() for x in grads.values())
        if bad:
            assert all(map(same_bits, before, params.values()))
            continue
        norm = 2 * np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in given.values()))
        assert abs(info.grad_norm / norm - 1) < 1e-12
        other.step(given, grad_scale=2 * info.clip_factor)
        for name, x in averages.items():
            x += np.float32(1 - 0.9) * (params[name] - x)
    assert (opt.t, opt.skipped) == (2, 2)
    for name, x in params.items():
        # The direction is scaled by two numbers at once, the walks by one after the other: a rounding apart, which
        # the iteration takes up to 3.4445^5 times as far.
        np.testing.assert_allclose(x, plain[name], rtol=0, atol=2 * 3.4445**5 * 2.0**-24 * 2)
        assert same_bits(copies[name], x.astype(np.float16))
        np.testing.assert_allclose(opt.ema[name], averages[name], rtol=0, atol=8 * 2.0**-24 * 4)
    with opt.averaged():
        assert all(same_bits(x, opt.ema[name]) for name, x in params.items())
        with pytest.raises(RuntimeError, match="inside averaged"):
            opt.step(tree(rng, np.float32))


def test_what_is_accumulated_is_what_is_stepped():
    first, second = (tree(np.random.default_rng(10), np.float32) for _ in range(2))
    opt, other = fa.Muon(first), fa.Muon(second)
    rng = np.random.default_rng(11)
    grads = [tree(rng, np.float32) for _ in range(2)]
    for g in grads:
        opt.accumulate(g)
    opt.step()
    other.step({name: grads[0][name] + x for name, x in grads[1].items()}, grad_scale=0.5)
    assert all(same_bits(x, second[name]) for name, x in first.items())
    with pytest.raises(ValueError, match="nothing has been accumulated"):
        opt.step()


def test_hyperparameters_may_be_set_between_steps():
    params = tree(np.random.default_rng(12))
    opt, before = fa.Muon(params, lr=0.0, weight_decay=0.0, aux={"lr": 0.0}), params["tall"].copy()
    opt.groups[0].momentum = 0.5
    opt.step({**dict.fromkeys(params), "tall": np.ones((9, 5))})
    assert same_bits(params["tall"], before)
    assert same_bits(opt.state_dict()["leaves"]["params['tall']"]["m"], np.full((9, 5), 0.5))
    opt.groups[0].lr, opt.groups[0].weight_decay = 0.5, 1.0
    opt.step({**dict.fromkeys(params), "tall": np.zeros((9, 5))})
    value = 1.0  # the only singular value of equal numbers, which is 1 once they are divided by their norm, √45 of them
    for _ in range(5):
        value = 3.4445 * value - 4.775 * value**3 + 2.0315 * value**5
    np.testing.assert_allclose(params["tall"], before / 2 - 0.5 * np.sqrt(9 / 5) * value / np.sqrt(45), atol=1e-13)
    with pytest.raises(ValueError, match=r"groups\[0\]\.ns_steps is 100, expected an integer"):
        opt.groups[0].ns_steps = 100
    opt.reset(["['tall']"])
    assert not opt.state_dict()["leaves"]["params['tall']"]["m"].any()


@pytest.mark.parametrize("aux", [{}, {"moments": "8bit"}])
def test_a_checkpoint_holds_all_of_it(tmp_path, aux):
    """A schedule stays the optimizer's own; hyperparameters are the checkpoint's."""
    rng = np.random.default_rng(13)
    params = tree(rng, np.float32)
    chosen = {"ema_decay": 0.9, "aux": {"lr": 0.01, **aux}}
    opt = fa.Muon(params, lr=lambda t: 0.1 / t, momentum=0.8, **chosen)
    opt.step(tree(rng, np.float32))
    folder = fa.checkpoint.Folder(tmp_path)
    opt.accumulate(tree(rng, np.float32))
    folder.save(opt, extra="here", accumulated=True)
    again = tree(rng, np.float32)
    loaded = fa.Muon(again, lr=lambda t: 0.1 / t, **chosen)
    assert folder.load(loaded) == "here"
    assert (loaded.groups[0].momentum, loaded.t) == (0.8, 1)
    opt.step()
    loaded.step()
    assert all(same_bits(x, again[name]) for name, x in params.items())
    assert all(same_bits(x, loaded.ema[name]) for name, x in opt.ema.items())
    with pytest.raises(ValueError, match="the checkpoint's method is 'Muon', this optimizer's is 'AdamW'"):
        folder.load(fa.AdamW(again))
    with pytest.raises(
        ValueError, match=r"the checkpoint's params\['wide'\] has the shape \(4, 7\), this optimizer's \(4, 8\)"
    ):
        folder.load(fa.Muon({**again, "wide": np.zeros((4, 8), np.float32)}, lr=lambda t: 0.1, **chosen))


def test_a_leaf_without_a_gradient_stays():
    params = tree(np.random.default_rng(5))
    before = {name: x.copy() for name, x in params.items()}
    opt = fa.Muon(params)
    opt.step({**dict.fromkeys(params), "tall": np.ones((9, 5))})
    assert [name for name, x in params.items() if not same_bits(x, before[name])] == ["tall"]


def test_bad_input_is_refused_before_anything_changes():
    params = tree(np.random.default_rng(6))
    before = {name: x.copy() for name, x in params.items()}
    opt = fa.Muon(params)
    grads = tree(np.random.default_rng(7))
    for name, bad in (("tall", np.ones((5, 9))), ("bias", np.ones(4)), ("wide", "none")):
        with pytest.raises((TypeError, ValueError), match=name):
            opt.step({**grads, name: bad})
    assert all(same_bits(x, before[name]) for name, x in params.items())
    assert opt.t == 0
    for named, words in (
        ({"max_value": 1.0}, r"max_value is 1.0, expected it in aux"), ({"stats": "group"}, "stats is 'group'"),
        ({"other": 1}, "other is 1, which is no argument"), ({"aux": {"max_norm": 1.0}}, "aux has max_norm 1.0"),
        ({"adjust": "most"}, "adjust is 'most'"), ({"ns_steps": 100}, "ns_steps is 100"),
        ({"muon": "tall"}, r"muon has 'tall', expected a path of opt.paths such as \"\['tall'\]\", or the beginning"),
        ({"muon": 5}, r"muon is 5, expected a function of \(path, array\), paths, or None for all"),
        ({"muon": [5]}, r"muon has 5, expected paths such as \"\['tall'\]\""),
        ({"aux": []}, r"aux is \[\], expected a dict of AdamW's arguments, or None"),
        ({"momentum": 1.0}, "momentum is 1.0"), ({"ns_coefficients": (1, 2)}, r"ns_coefficients is \(1, 2\)"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=words):
            fa.Muon(params, **named)
    assert opt.sums_first
    with pytest.raises(TypeError, match="params is a list of groups, expected a tree of arrays"):
        fa.Muon([{"params": params, "lr": 0.1}])


@pytest.mark.parametrize("shared", ["copies", "a copy and a matrix", "leaves"])
def test_memory_that_both_parts_would_write_is_refused(shared):
    memory = np.arange(20, dtype=np.float16)
    params = {"w": np.ones((2, 3), np.float16), "b": np.ones(3, np.float16)}
    copies = {"w": memory[:6].reshape(2, 3), "b": memory[6:9]}
    assert fa.Muon(params, copy_to=copies).matrices == ["['w']"]
    memory[:] = np.arange(20)
    if shared == "copies":
        copies["b"], words = memory[5:8], r"copy_to\['w'\] and copy_to\['b'\]"
    elif shared == "leaves":
        params, words = {"w": memory[10:16].reshape(2, 3), "b": memory[15:18]}, r"params\['w'\] and params\['b'\]"
    else:
        params, words = {**params, "w": memory[7:13].reshape(2, 3)}, r"copy_to\['b'\] and params\['w'\]"
    with pytest.raises(ValueError, match=f"{words} share memory, expected separate arrays"):
        fa.Muon(params, copy_to=copies)
    assert same_bits(memory, np.arange(20, dtype=np.float16))


MUTANTS = [
    (orthogonal, "b * gram + c * (gram @ gram)", "c * gram + b * (gram @ gram)"),
    (orthogonal, "range(self.ns_steps)", "range(self.ns_steps - 1)"),
    (orthogonal, "rows / max(1, columns)", "columns / max(1, rows)"),
    (orthogonal, "x /= xp.maximum(norm,", "x /= xp.maximum(norm * norm,"),
    (muon, "lr=1 - rule.momentum", "lr=rule.momentum"),
    (muon, "weight_decay=1.0", "weight_decay=0.0"),
    (muon, "step(matrices, -upwards,", "step(matrices, upwards,"),
    (muon, "kind(group.momentum) * m", "m"),
    (muon, "weight_decay=rule.weight_decay", "weight_decay=0.0"),
    (muon, "self._rate = group.lr_at(self.t + 1)", "self._rate = 0.0"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new"), MUTANTS)
def test_a_changed_text_is_caught(module, old, new):
    """By what verify runs of methods that are made of several optimizers."""
    source = inspect.getsource(module)
    assert old in source
    mutant = ModuleType(f"{module.__name__}_mutant")
    sys.modules[mutant.__name__] = mutant  # where dataclasses look their module up
    try:
        exec(source.replace(old, new), mutant.__dict__)
    finally:
        del sys.modules[mutant.__name__]
    method = mutant.Muon if module is muon else type("Muon", (fa.Muon,), {"rule": mutant.Muon})
    (case, *_) = (
        case for case in composed.cases(True, ["numpy"]) if case.dtype == np.float32 and case.variant[1]["nesterov"]
    )
    assert composed.worst_error(case) <= 1
    assert composed.worst_error(Case((method, case.variant[1]), case.dtype, "numpy", 1)) > SLACK
