"""state_dict, load_state_dict, pickle and deepcopy: what is kept, that it is enough, and what is refused."""

import copy
import io
import json
import pickle

import numpy as np
import pytest
from cases import METHODS, kernels_in_use, label, same_bits, state_arrays, variants

import fastadam as fa

SHAPES = {"a": (3, 4), "b": (5,), "c": (), "d": (0, 2), "e": (2, 3, 2)}
PRESENT = [  # per step, which leaves have a gradient: uneven counts, then full steps right after the 4 that are saved
    (1, 1, 1, 1, 1),
    (1, 0, 1, 1, 0),
    (0, 1, 1, 0, 1),
    (0, 0, 0, 0, 0),
    (1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1),
    (1, 1, 0, 1, 1),
    (0, 1, 1, 1, 1),
]


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    return request.param


def decaying(t):
    """A schedule that pickle finds by its name."""
    return 0.1 / t


def tree(seed):
    """Two groups' worth of arrays: two dtypes, an axis order of its own, a 0-d and an empty one."""
    rng = np.random.default_rng(seed)
    a, b, c, d, e = (np.asarray(rng.standard_normal(shape), np.float32) for shape in SHAPES.values())
    return [{"a": np.asfortranarray(a), "b": [b.astype(np.float64), (c,)]}, [d, e]]


def gradients(seed):
    present = PRESENT[seed % len(PRESENT)]
    first, second = tree(100 + seed)
    a, b, c, d, e = first["a"], first["b"][0], first["b"][1][0], *second
    a, b, c, d, e = (x if on else None for x, on in zip((a, b, c, d, e), present, strict=True))
    return [{"a": a, "b": [b, (c,)]}, [d, e]]


def leaves(params):
    first, second = params
    return [first["a"], first["b"][0], first["b"][1][0], *second]


def grouped(method, params, chosen, backend="auto", lr=0.3):
    return method([{"params": params[0]}, {"params": params[1], "lr": lr}], **chosen, backend=backend)


def run(opt, first, last):
    for step in range(first, last):
        opt.step(gradients(step))


def all_same(ours, theirs):
    return [k for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not same_bits(a, b)] == []


def same_state(a, b):
    """Two state_dicts hold the same: arrays to the bit, numbers by value, types included."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_state, a, b))
    return same_bits(a, b) if isinstance(a, np.ndarray) else (type(a), a) == (type(b), b)


# ---- n steps, save, load, n steps equals 2n steps


def through_files(state):
    """As a user would keep it: numbers and text in JSON, arrays in an .npz beside it, nothing pickled."""
    arrays = {}

    def plain(x):
        if isinstance(x, dict):
            return {"dict": [[plain(key), plain(value)] for key, value in x.items()]}
        if isinstance(x, list):
            return {"list": [plain(value) for value in x]}
        if isinstance(x, np.ndarray):
            arrays[f"array {len(arrays)}"] = x
            return {"array": f"array {len(arrays) - 1}"}
        return x

    def back(x):
        if not isinstance(x, dict):
            return x
        ((kind, value),) = x.items()
        if kind == "array":
            return kept[value]
        return {back(k): back(v) for k, v in value} if kind == "dict" else [back(v) for v in value]

    text, file = json.dumps(plain(state), allow_nan=False), io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as kept:
        return back(json.loads(text))


@pytest.mark.parametrize("case", variants(), ids=label)
def test_a_resumed_run_equals_an_uninterrupted_one(case, backend):
    method, chosen = case
    whole, broken = tree(0), tree(0)
    straight, first = grouped(method, whole, chosen, backend), grouped(method, broken, chosen, backend)
    run(straight, 0, 8)
    run(first, 0, 4)
    again = copy.deepcopy(broken)
    second = grouped(method, again, chosen, backend)
    assert second.load_state_dict(through_files(first.state_dict())) is None
    assert same_state(second.state_dict(), first.state_dict())
    run(second, 4, 8)
    assert all_same(leaves(again), leaves(whole))
    assert same_state(second.state_dict(), straight.state_dict())
    assert not all_same(leaves(again), leaves(broken))


@pytest.mark.parametrize("case", variants(maximize=False), ids=label)
def test_a_state_moves_between_backends(case):
    method, chosen = case
    whole, broken = tree(0), tree(0)
    straight, first = grouped(method, whole, chosen, "numpy"), grouped(method, broken, chosen, "numba")
    run(straight, 0, 6)
    run(first, 0, 3)
    second = grouped(method, broken, chosen, "numpy")
    second.load_state_dict(first.state_dict())
    run(second, 3, 6)
    assert all_same(leaves(broken), leaves(whole))
    assert same_state(second.state_dict(), straight.state_dict())


def test_a_state_moves_between_axis_orders(backend):
    """Slots come in the parameter's shape, so that it does not matter how its memory lies."""
    start = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    rounds = np.random.default_rng(1).standard_normal((4, 3, 4)).astype(np.float32)
    c, f = start.copy(), np.asfortranarray(start)
    one = fa.Adam(c, backend=backend)
    for g in rounds[:2]:
        one.step(g)
    f[...] = c
    other = fa.Adam(f, backend=backend)
    other.load_state_dict(one.state_dict())
    for g in rounds[2:]:
        one.step(g)
        other.step(g)
    assert same_bits(np.ascontiguousarray(f), c)
    assert same_state(one.state_dict(), other.state_dict())


def test_hyperparameters_come_with_the_state(backend):
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    one = fa.AdamW(p, lr=0.5, betas=(0.5, 0.75), eps=1e-3, weight_decay=0.25, maximize=True, seed=7, backend=backend)
    other = fa.AdamW(q, backend=backend)
    other.load_state_dict(one.state_dict())
    assert repr(other.groups) == repr(one.groups)
    assert other.state_dict()["seed"] == 7
    one.step(np.ones(3, np.float32))
    other.step(np.ones(3, np.float32))
    assert same_bits(p, q)


def test_a_schedule_stays_with_the_optimizer(backend):
    """A callable is not in the state: the optimizer that loads keeps its own, and its count goes on."""
    p, q, seen = np.ones(3, np.float32), np.ones(3, np.float32), []
    one = fa.Adam(p, lr=decaying, backend=backend)
    for _ in range(5):
        one.step(np.ones(3, np.float32))
    state = through_files(one.state_dict())
    assert state["groups"][0]["lr"] is None
    other = fa.Adam(q, lr=lambda t: seen.append(t) or 0.1, backend=backend)
    other.load_state_dict(state)
    other.step(np.ones(3, np.float32))
    assert seen == [6]


# ---- what a state_dict is


@pytest.mark.parametrize("case", kernels_in_use(), ids=label)
def test_a_state_is_plain(case, backend):
    method, chosen = case
    opt = grouped(method, tree(0), chosen, backend, lr=decaying)
    run(opt, 0, 3)
    kinds = set()

    def look(x):
        kinds.add(type(x))
        if isinstance(x, dict):
            for key, value in x.items():
                kinds.add(type(key))
                look(value)
        elif isinstance(x, (list, tuple)):
            for value in x:
                look(value)
        elif isinstance(x, np.ndarray):
            assert x.flags.owndata
            assert x.dtype in (np.float32, np.float64)

    look(opt.state_dict())
    assert kinds - {dict, list, str, int, float, bool, type(None), np.ndarray} == set()
    assert kinds >= {dict, list, str, int, float, type(None)}


def test_what_a_state_holds(backend):
    p = {"w": np.ones((2, 3), np.float32), "b": np.ones(3)}
    opt = fa.NAdam(p, lr=0.5, seed=7, backend=backend)
    opt.step({"w": np.ones((2, 3), np.float32), "b": None})
    state = opt.state_dict()
    assert list(state) == ["version", "method", "t", "seed", "skipped", "groups", "leaves"]
    assert (state["method"], state["t"], state["seed"]) == ("NAdam", 1, 7)
    assert state["groups"][0]["lr"] == 0.5
    assert list(state["leaves"]) == ["params['w']", "params['b']"]
    w, b = state["leaves"].values()
    assert (w["count"], b["count"]) == (1, 0)
    assert (w["format"], b["format"]) == ("float32", "float64")
    assert w["mu_product"] == 0.9 * (1 - 0.5 * 0.96**0.004)
    assert b["mu_product"] == 1.0
    assert (w["m"].shape, w["m"].dtype, b["v"].shape, b["v"].dtype) == ((2, 3), np.float32, (3,), np.float64)
    assert w["m"].tolist() == [[float(np.float32(1 - 0.9))] * 3] * 2
    assert b["v"].tolist() == [0] * 3


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_a_state_is_a_snapshot(method, backend):
    params = tree(0)
    opt = grouped(method, params, {}, backend)
    run(opt, 0, 2)
    state = opt.state_dict()
    kept = copy.deepcopy(state)
    run(opt, 2, 4)
    assert same_state(state, kept)
    assert not same_state(state, opt.state_dict())
    opt.load_state_dict(state)
    run(opt, 4, 6)
    assert same_state(state, kept)  # what was loaded was copied
    now = opt.state_dict()
    for leaf in state["leaves"].values():
        for x in leaf.values():
            if isinstance(x, np.ndarray):
                x += 1
    state["groups"][0]["lr"] = 77.0
    assert same_state(opt.state_dict(), now)


# ---- loading checks everything before it changes anything


def changed(state, path, value):
    """A copy of the state with another value at a path; `...` takes the key away."""
    state = copy.deepcopy(state)
    *way, last = path
    at = state
    for key in way:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return state


LAST = ("leaves", "params[1][1]")  # the last leaf: whatever is changed before it is looked at has changed too early
F32 = np.zeros((2, 3, 2), np.float32)
WRONG = {  # path, value, error, what it says
    "no version": (("version",), ..., ValueError, ["version"]),
    "version of later": (("version",), 999, ValueError, ["version", "999", "1"]),
    "version as text": (("version",), "1", ValueError, ["version", "'1'"]),
    "no method": (("method",), ..., ValueError, ["method"]),
    "method": (("method",), "Adam", ValueError, ["method", "'Adam'", "'NAdam'"]),
    "more": (("extra",), 1, ValueError, ["extra"]),
    "no t": (("t",), ..., ValueError, ["'t'"]),
    "t below 0": (("t",), -1, ValueError, ["['t']", "-1"]),
    "t no integer": (("t",), 2.0, ValueError, ["['t']", "2.0"]),
    "t truth": (("t",), True, TypeError, ["['t']", "True"]),
    "t text": (("t",), "2", TypeError, ["['t']", "'2'"]),
    "t beyond 64 bits": (("t",), 2**63, ValueError, ["['t']", str(2**63)]),
    "t with no room to step": (("t",), 2**63 - 1, ValueError, ["['t']", str(2**63 - 1)]),
    "no seed": (("seed",), ..., ValueError, ["seed"]),
    "seed no integer": (("seed",), 0.5, ValueError, ["seed", "0.5"]),
    "no groups": (("groups",), ..., ValueError, ["groups"]),
    "groups None": (("groups",), None, TypeError, ["groups", "NoneType", "list"]),
    "groups a dict": (("groups",), {0: {}, 1: {}}, TypeError, ["groups", "dict"]),
    "groups too few": (("groups",), [], ValueError, ["groups", "0", "2"]),
    "group no dict": (("groups", 1), [0.1], TypeError, ["['groups'][1]", "list", "dict"]),
    "group without lr": (("groups", 1, "lr"), ..., ValueError, ["['groups'][1]", "'lr'"]),
    "group with more": (("groups", 1, "learning_rate"), 0.1, ValueError, ["['groups'][1]", "'learning_rate'"]),
    "lr below 0": (("groups", 1, "lr"), -1.0, ValueError, ["['groups'][1]", "lr", "-1.0"]),
    "lr nan": (("groups", 1, "lr"), np.nan, ValueError, ["['groups'][1]", "lr", "nan"]),
    "lr text": (("groups", 1, "lr"), "0.1", TypeError, ["['groups'][1]", "lr", "'0.1'"]),
    "lr None": (("groups", 1, "lr"), None, ValueError, ["['groups'][1]['lr']", "None", "0.3"]),
    "weight_decay None": (("groups", 1, "weight_decay"), None, TypeError, ["['groups'][1]", "weight_decay", "None"]),
    "betas None": (("groups", 1, "betas"), None, TypeError, ["['groups'][1]", "betas", "None"]),
    "betas": (("groups", 1, "betas"), [0.9, 1.0], ValueError, ["['groups'][1]", "betas[1]", "1.0"]),
    "one beta": (("groups", 1, "betas"), [0.9], TypeError, ["['groups'][1]", "betas"]),
    "eps inf": (("groups", 1, "eps"), np.inf, ValueError, ["['groups'][1]", "eps", "inf"]),
    "eps that rounds to 0": (("groups", 1, "eps"), 1e-46, ValueError, ["['groups'][1]", "eps", "1e-46"]),
    "maximize": (("groups", 1, "maximize"), 1, TypeError, ["['groups'][1]", "maximize", "1"]),
    "no leaves": (("leaves",), ..., ValueError, ["leaves"]),
    "leaves a list": (("leaves",), [], TypeError, ["leaves", "list", "dict"]),
    "leaf missing": (LAST, ..., ValueError, ["params[1][1]"]),
    "leaf unknown": (("leaves", "params['z']"), {}, ValueError, ["params['z']"]),
    "leaf no dict": (LAST, F32, TypeError, ["params[1][1]", "float32(2, 3, 2)", "dict"]),
    "no count": ((*LAST, "count"), ..., ValueError, ["params[1][1]", "count"]),
    "count below 0": ((*LAST, "count"), -1, ValueError, ["params[1][1]", "count", "-1"]),
    "count no integer": ((*LAST, "count"), 1.0, ValueError, ["params[1][1]", "count", "1.0"]),
    "count None": ((*LAST, "count"), None, TypeError, ["params[1][1]", "count", "None"]),
    "count beyond 64 bits": ((*LAST, "count"), 2**64, ValueError, ["params[1][1]", "count"]),
    "count beyond t": ((*LAST, "count"), 4, ValueError, ["params[1][1]", "count", "4", "3"]),  # t is 3
    "format": ((*LAST, "format"), "float64", ValueError, ["params[1][1]", "format", "'float64'", "'float32'"]),
    "no slot": ((*LAST, "v"), ..., ValueError, ["params[1][1]", "'v'"]),
    "slot unknown": ((*LAST, "vmax"), F32, ValueError, ["params[1][1]", "'vmax'"]),
    "slot dtype": ((*LAST, "v"), F32.astype(np.float64), ValueError, ["params[1][1]", "'v'", "float64(", "float32("]),
    "slot byte order": ((*LAST, "v"), F32.astype(F32.dtype.newbyteorder()), ValueError, ["params[1][1]", "'v'", "f4"]),
    "slot shape": ((*LAST, "v"), F32.swapaxes(0, 1), ValueError, ["params[1][1]", "'v'", "(3, 2, 2)", "(2, 3, 2)"]),
    "slot size": ((*LAST, "m"), F32[:, :, :1], ValueError, ["params[1][1]", "'m'", "(2, 3, 1)", "(2, 3, 2)"]),
    "slot flat": ((*LAST, "m"), F32.reshape(-1), ValueError, ["params[1][1]", "'m'", "(12,)", "(2, 3, 2)"]),
    "slot list": ((*LAST, "m"), F32.tolist(), (TypeError, ValueError), ["params[1][1]", "'m'", "list"]),
    "slot masked": (
        (*LAST, "m"),
        np.ma.array(F32, mask=F32 == 0),
        (TypeError, ValueError),
        ["params[1][1]", "'m'", "Mask"],
    ),
    "slot None": ((*LAST, "m"), None, (TypeError, ValueError), ["params[1][1]", "'m'", "None"]),
    "mu_product nan": ((*LAST, "mu_product"), np.nan, ValueError, ["params[1][1]", "mu_product", "nan"]),
    "mu_product text": ((*LAST, "mu_product"), "1", TypeError, ["params[1][1]", "mu_product", "'1'"]),
    "mu_product below 0": ((*LAST, "mu_product"), -0.5, ValueError, ["params[1][1]", "mu_product", "-0.5"]),
    "mu_product above 1": ((*LAST, "mu_product"), 1.5, ValueError, ["params[1][1]", "mu_product", "1.5"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_state_is_refused_whole(case, backend):
    path, value, error, words = WRONG[case]
    params = tree(0)
    opt, donor = grouped(fa.NAdam, params, {}, backend), grouped(fa.NAdam, tree(5), {"eps": 1e-3}, backend)
    run(opt, 0, 2)
    run(donor, 0, 3)
    before, bits = opt.state_dict(), [x.tobytes() for x in leaves(params)]
    shown = repr(opt)
    with pytest.raises(error) as caught:
        opt.load_state_dict(changed(donor.state_dict(), path, value))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert same_state(opt.state_dict(), before)
    assert [x.tobytes() for x in leaves(params)] == bits
    assert repr(opt) == shown
    twin = tree(0)
    untouched = grouped(fa.NAdam, twin, {}, backend)
    run(untouched, 0, 4)
    run(opt, 2, 4)
    assert all_same(leaves(params), leaves(twin))
    opt.load_state_dict(donor.state_dict())  # the state itself was fine
    assert same_state(opt.state_dict(), donor.state_dict())


@pytest.mark.parametrize("bad", [None, [], "state", 3, np.zeros(3)])
def test_what_is_no_state_is_refused(bad):
    with pytest.raises(TypeError, match="state is"):
        fa.Adam(np.ones(3, np.float32)).load_state_dict(bad)


STRUCTURAL = [
    (fa.Adam, {}, "amsgrad", True),
    (fa.Adam, {"amsgrad": True}, "amsgrad", False),
    (fa.SGD, {}, "momentum", 0.9),
    (fa.RMSprop, {"momentum": 0.5}, "centered", True),
]


@pytest.mark.parametrize(("method", "chosen", "name", "value"), STRUCTURAL)
def test_a_state_of_another_layout_is_refused(method, chosen, name, value, backend):
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    opt, donor = method(p, **chosen, backend=backend), method(q, **chosen | {name: value}, backend=backend)
    donor.step(np.ones(3, np.float32))
    before = opt.state_dict()
    with pytest.raises(ValueError, match=name) as caught:
        opt.load_state_dict(donor.state_dict())
    assert "weight_decay" not in str(caught.value)  # which is the same on both sides
    assert same_state(opt.state_dict(), before)


def test_adamw_takes_no_state_that_is_coupled(backend):
    """The name says AdamW and the decay says Adam: one of them is wrong, and neither may be passed over."""
    opt = fa.AdamW(np.ones(3, np.float32), backend=backend)
    state = changed(opt.state_dict(), ("groups", 0, "decoupled_weight_decay"), False)
    with pytest.raises(ValueError, match="decoupled_weight_decay"):
        opt.load_state_dict(state)


def test_schedules_and_numbers_do_not_take_each_others_place(backend):
    number, schedule = fa.Adam(np.ones(2, np.float32), backend=backend), fa.Adam(np.ones(2, np.float32), lr=decaying)
    for one, other in ((number, schedule), (schedule, number)):
        with pytest.raises(ValueError, match="lr"):
            one.load_state_dict(other.state_dict())


# ---- counts are of 64 bits


@pytest.mark.parametrize("count", [2**24, 2**31 - 1, 2**32, 2**40, 2**53 + 1, 2**62])
@pytest.mark.parametrize("method", METHODS, ids=label)
def test_counts_of_64_bits(method, count, backend):
    """Each count goes on by one, where float32 stops at 2^24, int32 at 2^31 and float64 at 2^53."""
    seen = []
    p, g = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    opt = method({"p": p, "q": p.copy()}, lr=lambda t: seen.append(t) or 0.01, backend=backend)
    state = opt.state_dict()
    state["t"] = count + 5
    state["leaves"]["params['p']"]["count"] = count
    opt.load_state_dict(state)
    assert opt.t == count + 5
    opt.step({"p": g, "q": None})
    after = opt.state_dict()
    assert (opt.t, after["t"]) == (count + 6, count + 6)
    assert seen == [count + 6]
    assert [leaf["count"] for leaf in after["leaves"].values()] == [count + 1, 0]
    assert np.isfinite(p).all()
    assert (p < 1).all()


def test_a_large_count_is_used_as_it_is(backend):
    """Adagrad's decay of lr is where a large count still shows: cut to 32 bits this one would be 0."""
    p, g = np.zeros(1), np.ones(1)
    opt = fa.Adagrad(p, lr=2.0**41, lr_decay=1.0, eps=0, backend=backend)
    state = opt.state_dict()
    state["t"] = state["leaves"]["params"]["count"] = 2**40 - 1
    opt.load_state_dict(state)
    opt.step(g)  # t is 2^40, lr / (1 + (t - 1)) is 2, sum is 1
    assert p.tolist() == [-2.0]


# ---- pickle and deepcopy


def pickled(x):
    return pickle.loads(pickle.dumps(x))


COPIES = {"deepcopy": copy.deepcopy, "pickle": pickled, **{f"protocol {k}": None for k in (2, 3, 4, 5)}}


def copier(way):
    return COPIES[way] or (lambda x: pickle.loads(pickle.dumps(x, int(way[-1]))))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("case", variants(maximize=False), ids=label)
def test_a_copy_goes_on_like_the_original(case, way, backend):
    method, chosen = case
    params = tree(0)
    opt = grouped(method, params, chosen, backend, lr=decaying)
    run(opt, 0, 4)
    others, other = copier(way)((params, opt))
    bits = [x.tobytes() for x in leaves(params)]
    assert type(other) is method
    assert other.backend == backend
    assert same_state(other.state_dict(), opt.state_dict())
    assert repr(other) == repr(opt)
    run(other, 4, 8)
    assert [x.tobytes() for x in leaves(params)] == bits  # the original slept
    assert opt.t == 4
    assert not all_same(leaves(others), leaves(params))  # the copied tree is the copied optimizer's
    run(opt, 4, 8)
    assert all_same(leaves(others), leaves(params))
    assert same_state(other.state_dict(), opt.state_dict())


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        (fa.AdamW, {"lr": decaying, "amsgrad": True, "seed": 11, "maximize": True}),
        (fa.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (fa.Adagrad, {"initial_accumulator_value": 0.25}),
    ],
)
def test_copies_of_optimizers_over_plain_trees(method, chosen, way, backend):
    params = {"w": np.ones((2, 3), np.float32), "b": [np.ones(3)]}
    grads = {"w": np.full((2, 3), 2, np.float32), "b": [np.full(3, 3.0)]}
    opt = method(params, backend=backend, **chosen)
    opt.step(grads)
    model = copier(way)({"params": params, "trainer": {"opt": opt, "same": opt}})
    other = model["trainer"]["opt"]
    assert model["trainer"]["same"] is other
    assert callable(other.groups[0].lr) is callable(opt.groups[0].lr)
    other.step(grads)
    opt.step(grads)
    assert same_bits(model["params"]["w"], params["w"])
    assert same_bits(model["params"]["b"][0], params["b"][0])
    assert same_state(other.state_dict(), opt.state_dict())
    other.groups[0].weight_decay = 0.125
    assert opt.groups[0].weight_decay != 0.125


@pytest.mark.parametrize("way", COPIES)
def test_copies_made_alone_have_parameters_of_their_own(way, backend):
    p = np.ones(3, np.float32)
    opt = fa.Adam(p, lr=0.1, backend=backend)
    other = copier(way)(opt)
    other.step(np.ones(3, np.float32))
    assert (p.tolist(), opt.t, other.t) == ([1] * 3, 0, 1)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("params", [{}, [], (), [{"params": []}, {"params": {}, "lr": 0.5}]])
def test_copies_of_optimizers_over_nothing(params, way):
    opt = fa.Adam(params)
    opt.step([x["params"] for x in params] if isinstance(params, list) else params)
    other = copier(way)(opt)
    assert other.t == 1
    assert [group.lr for group in other.groups] == [group.lr for group in opt.groups]


def test_a_changed_hyperparameter_is_copied_as_it_is_now(backend):
    a, b = np.ones(2, np.float32), np.ones(2, np.float32)
    opt = fa.Adam([{"params": a}, {"params": b, "lr": 0.5}], lr=decaying, backend=backend)
    opt.groups[0].lr, opt.groups[1].lr = 0.25, decaying
    opt.groups[1].betas = 0.5, 0.75
    for other in (copy.deepcopy(opt), pickled(opt)):
        assert [group.lr for group in other.groups] == [0.25, decaying]
        assert [group.betas for group in other.groups] == [(0.9, 0.999), (0.5, 0.75)]


class Fixed(fa.AdamW):
    """A user's method, which asks for less."""

    def __init__(self, params, backend):
        super().__init__(params, lr=0.25, betas=(0.5, 0.5), backend=backend)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_users_subclass_is_copied_whatever_its_init_takes(way, backend):
    p = np.ones(3, np.float32)
    opt = Fixed(p, backend)
    opt.step(np.ones(3, np.float32))
    q, other = copier(way)((p, opt))
    assert type(other) is Fixed
    for each in (opt, other):
        each.step(np.full(3, -2, np.float32))
    assert same_bits(p, q)
    assert same_state(opt.state_dict(), other.state_dict())


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_what_becomes_of_the_users_containers_does_not_matter(way, backend):
    """An optimizer steps the arrays it was given; a dict that later holds others, or more, is the user's affair."""
    given, other_array = np.ones(3, np.float32), np.full(3, 5, np.float32)
    params = {"a": given, "b": [np.ones(2, np.float32)]}
    opt = fa.SGD(params, lr=0.5, backend=backend)
    params["a"], params["c"] = other_array, np.ones(4, np.float32)
    params["b"].append(np.ones(1, np.float32))
    kept, other = copier(way)((given, opt))
    for each in (opt, other):
        each.step({"a": np.ones(3, np.float32), "b": [None]})
    assert (given.tolist(), kept.tolist(), other_array.tolist()) == ([0.5] * 3, [0.5] * 3, [5] * 3)


def test_a_schedule_that_cannot_be_pickled_says_so(backend):
    p = np.ones(2, np.float32)
    opt = fa.Adam(p, lr=lambda t: 0.1, backend=backend)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(opt)
    other = copy.deepcopy(opt)  # copies functions by reference
    other.step(np.ones(2, np.float32))
    assert (opt.t, other.t) == (0, 1)


def test_a_schedule_that_was_replaced_is_not_pickled(backend):
    p = np.ones(2, np.float32)
    opt = fa.SGD([{"params": p, "lr": lambda t: 1.0}], backend=backend)
    opt.groups[0].lr = 0.25
    assert pickled(opt).groups[0].lr == 0.25


def test_groups_can_be_copied():
    (group,) = fa.Adam(np.ones(2, np.float32), lr=0.25).groups
    for other in (copy.copy(group), copy.deepcopy(group), pickled(group)):
        other.lr = 0.5
        assert (group.lr, other.lr) == (0.25, 0.5)


def test_slots_are_not_shared_between_optimizers(backend):
    """Two optimizers made alike, stepped in turn, do not see each other."""
    a, b = np.ones(5, np.float32), np.ones(5, np.float32)
    one, other = fa.Adam(a, backend=backend), fa.Adam(b, backend=backend)
    one.step(np.ones(5, np.float32))
    assert all((x == 0).all() for x in state_arrays(other).values())
    assert all((x != 0).all() for x in state_arrays(one).values())


def test_the_state_without_a_copy_is_the_memory_that_steps_change(backend):
    params = tree(0)
    opt = grouped(fa.Adam, params, {"ema_decay": 0.5}, backend)
    lying, copied = opt.state_dict(copy=False), opt.state_dict()
    assert same_state(lying, copied)
    run(opt, 4, 5)
    now = opt.state_dict()["leaves"]
    assert not same_state(now, copied["leaves"])
    for path, leaf in lying["leaves"].items():
        assert all(same_bits(x, now[path][name]) for name, x in leaf.items() if isinstance(x, np.ndarray))


def test_what_a_checkpoint_asks_of_an_optimizer(backend):
    opt = fa.Adam({"w": [F32.copy()], "b": F32[0].copy()}, ema_decay=0.5, index_offset=64, backend=backend)
    assert opt.paths == ["['w'][0]", "['b']"]
    assert fa.Adam(F32.copy(), backend=backend).paths == [""]
    assert opt.index_offset == 64
    assert not opt.averaging
    with opt.averaged():
        assert opt.averaging
    assert not opt.averaging
