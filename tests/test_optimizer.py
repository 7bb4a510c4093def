"""What an optimizer does with its parameters: trees, groups, schedules, missing gradients, options, signatures.

Whether one array's arithmetic is right is for other tests; here every arrangement must equal plain arrays to the bit.
"""

import copy
import inspect
import pickle
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import fields
from types import MappingProxyType

import numpy as np
import pytest
from cases import METHODS, hostile, label, same_bits, state_arrays, variants
from cases import together as sums_go_over_all

import fastadam as fa
from fastadam.plans.chores import Chores
from fastadam.plans.storage import Storage

Layer = namedtuple("Layer", "weight bias")
SHAPES = [(), (1,), (5,), (2, 3), (2, 1, 4), (0, 3)]


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    return request.param


def by_themselves():
    """Return the methods by which a leaf's step does not depend on other leaves."""
    return [variant for variant in variants(maximize=False) if not sums_go_over_all(variant)]


def arrays(seed, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def all_same(ours, theirs):
    return [k for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not same_bits(a, b)] == []


# ---- by hand: numbers that need no rounding


def test_gradient_descent_by_hand(backend):
    p = np.array([1.0, 2.0, -3.0], np.float32)
    opt = fa.SGD(p, lr=0.5, backend=backend)
    opt.step(np.array([1.0, -4.0, 0.0], np.float32))
    assert p.tolist() == [0.5, 4.0, -3.0]
    opt.step(np.array([1.0, 2.0, 4.0], np.float32), grad_scale=0.25)
    assert p.tolist() == [0.375, 3.75, -3.5]


def test_momentum_by_hand(backend):
    p = np.array([1.0], np.float64)
    opt = fa.SGD(p, lr=0.5, momentum=0.5, dampening=0.25, weight_decay=2.0, backend=backend)
    opt.step(np.array([2.0]))  # g = 2 + 2·1 = 4, m = 4, p = 1 - ½·4
    assert p.tolist() == [-1.0]
    opt.step(np.array([6.0]))  # g = 6 - 2 = 4, m = ½·4 + ¾·4 = 5, p = -1 - 2½
    assert p.tolist() == [-3.5]


def test_lion_by_hand(backend):
    p = np.array([1.0, 1.0, 1.0], np.float32)
    opt = fa.Lion(p, lr=0.25, betas=(0.5, 0.5), weight_decay=2.0, backend=backend)
    opt.step(np.array([3.0, -0.5, 0.0], np.float32))  # decay: 1 - ¼·2
    assert p.tolist() == [0.25, 0.75, 0.5]


# ---- trees


def nested(x):
    """The arrays in trees of every kind."""
    a, b, c, d, e, f = x
    yield [a, b, c, d, e, f]
    yield (a, b, c, d, e, f)
    yield {"a": a, "b": b, "c": c, "d": d, "e": e, "f": f}
    yield {0: a, "1": b, (2,): c, None: d, 4.5: e, b"f": f}
    yield {"x": {"y": {"z": [a, (b, {"w": c})]}}, "last": [[[d]], {"e": (e,)}, f]}
    yield [Layer(a, b), Layer(c, {"d": d}), OrderedDict(e=e, f=f)]
    yield [{}, a, [], {"b": b, "none": ()}, defaultdict(list, c=[c, [d]]), [[], [e], {"f": f}]]


def test_every_nesting_equals_an_optimizer_per_array(backend):
    start, rounds = arrays(0), [arrays(1), arrays(2), arrays(3)]
    expected = [x.copy() for x in start]
    for p, *gs in zip(expected, *rounds, strict=True):
        opt = fa.Adam(p, lr=0.1, weight_decay=0.1, backend="numpy")
        for g in gs:
            opt.step(g)
    for kind in range(len(list(nested(start)))):
        params = [x.copy() for x in start]
        opt = fa.Adam(list(nested(params))[kind], lr=0.1, weight_decay=0.1, backend=backend)
        for grads in rounds:
            opt.step(list(nested(grads))[kind])
        assert all_same(params, expected)
        assert len(opt.state_dict()["leaves"]) == len(SHAPES)


def test_keys_in_another_order_are_the_same_tree(backend):
    a, b, g, h = np.ones(3, np.float32), np.ones(3, np.float32), np.full(3, 2, np.float32), np.full(3, 4, np.float32)
    fa.SGD({"a": a, "b": b}, lr=0.25, backend=backend).step({"b": h, "a": g})
    assert (a.tolist(), b.tolist()) == ([0.5] * 3, [0.0] * 3)


def test_lists_and_tuples_are_one_kind_of_tree(backend):
    a, b = np.ones(2, np.float32), np.ones(2, np.float32)
    fa.SGD([a, (b,)], lr=0.5, backend=backend).step((a * 1, [b * 2]))
    assert (a.tolist(), b.tolist()) == ([0.5] * 2, [0.0] * 2)


def test_something_like_a_dict_is_refused_not_misread():
    with pytest.raises(TypeError, match="mappingproxy"):
        fa.Adam(MappingProxyType({"a": np.ones(2, np.float32)}))


def test_mixed_dtypes_in_one_tree(backend):
    shapes = [(3,), (2, 2), (5,), (1,)]
    dtypes = [np.float32, np.float64, np.float32, np.float64]

    def mixed(seed):
        return [x.astype(dtype) for x, dtype in zip(arrays(seed, shapes, np.float64), dtypes, strict=True)]

    for method, chosen in by_themselves():
        params, alone, rounds = mixed(0), mixed(0), [mixed(1), mixed(2)]
        rounds[1][1] = None
        opt = method(params, backend=backend, **chosen)
        for grads in rounds:
            opt.step(grads)
        for k, p in enumerate(alone):
            single = method(p, backend=backend, **chosen)
            for grads in rounds:
                if grads[k] is not None:
                    single.step(grads[k])
        assert [p.dtype for p in params] == dtypes
        assert all_same(params, alone)
        assert opt.t == 2
        assert [leaf["count"] for leaf in opt.state_dict()["leaves"].values()] == [2, 1, 2, 2]


def test_the_arrays_are_the_users_own(backend):
    a, b = np.ones((2, 3), np.float32), np.ones(4, np.float32)
    params = {"a": a, "b": [b]}
    places = a.ctypes.data, b.ctypes.data
    fa.SGD(params, lr=0.5, backend=backend).step({"a": np.ones((2, 3), np.float32), "b": [np.ones(4, np.float32)]})
    assert params["a"] is a
    assert params["b"][0] is b
    assert (a.ctypes.data, b.ctypes.data) == places
    assert (a == 0.5).all()
    assert (b == 0.5).all()


def test_other_gradient_arrays_at_every_step(backend):
    """An address that was read at one step says nothing about the next."""
    p, expected = np.zeros(3, np.float32), 0
    opt, kept = fa.SGD({"p": p}, lr=1.0, backend=backend), []
    for k in range(1, 30):
        g = np.full(3, k, np.float32)
        kept.append(g)
        opt.step({"p": g if k % 3 else g.reshape(1, 3)[0]})
        expected -= k
        if k % 5 == 0:
            opt.step({"p": kept[0]})
            expected -= 1
        assert p.tolist() == [expected] * 3


# ---- groups


def test_groups_equal_an_optimizer_each(backend):
    own = [{}, {"lr": 0.3}, {"weight_decay": 0.5, "betas": (0.5, 0.6)}, {"eps": 1e-2, "maximize": True, "lr": 0.01}]
    for method, chosen in by_themselves():
        known = inspect.signature(method).parameters
        mine = [{k: x for k, x in each.items() if k in known} for each in own]
        if len(chosen.get("betas", ())) == 3:
            mine[2]["betas"] = (0.5, 0.6, 0.7)
        together, apart = [arrays(k) for k in range(4)], [arrays(k) for k in range(4)]
        groups = [{"params": tree, **each} for tree, each in zip(together, mine, strict=True)]
        opt = method(groups, backend=backend, **chosen)
        singles = [method(tree, backend=backend, **chosen | each) for tree, each in zip(apart, mine, strict=True)]
        for step in range(3):
            grads = [arrays(10 * step + k) for k in range(4)]
            opt.step(grads)
            for single, g in zip(singles, grads, strict=True):
                single.step(g)
        for a, b in zip(together, apart, strict=True):
            assert all_same(a, b)


def test_groups_hold_what_they_do_not_share(backend):
    a, b = arrays(0), {"w": np.ones(2, np.float32)}
    opt = fa.AdamW([{"params": a, "lr": 1e-4}, {"params": b, "weight_decay": 0}], lr=1e-3, betas=[0.5, 0.75])
    assert [group.lr for group in opt.groups] == [1e-4, 1e-3]
    assert [group.weight_decay for group in opt.groups] == [1e-2, 0]
    assert [group.betas for group in opt.groups] == [(0.5, 0.75)] * 2
    assert len(opt.groups) == 2
    assert len(fa.AdamW(a).groups) == 1


def test_a_list_is_of_groups_only_if_every_item_is_one(backend):
    a, b = np.ones(2, np.float32), np.ones(2, np.float32)
    g = np.ones(2, np.float32)
    tree = fa.SGD([{"params": a}, {"weights": b}], lr=0.5, backend=backend)
    tree.step([{"params": g}, {"weights": g}])
    assert (a.tolist(), b.tolist(), len(tree.groups)) == ([0.5] * 2, [0.5] * 2, 1)
    also = fa.SGD(({"params": a}, {"params": b}), lr=0.5, backend=backend)  # a tuple is no list
    also.step(({"params": g}, {"params": g}))
    assert (a.tolist(), b.tolist(), len(also.groups)) == ([0] * 2, [0] * 2, 1)
    one = fa.SGD({"params": a, "lr": b}, lr=0.5, backend=backend)
    one.step({"params": g, "lr": g})
    assert (a.tolist(), b.tolist(), len(one.groups)) == ([-0.5] * 2, [-0.5] * 2, 1)


def test_a_group_may_hold_one_array_or_nothing(backend):
    a, b = np.ones(2, np.float32), np.ones((1, 2), np.float32)
    opt = fa.SGD([{"params": a}, {"params": []}, {"params": b, "lr": 0.25}, {"params": {}}], lr=0.5, backend=backend)
    opt.step([np.ones(2, np.float32), [], np.ones((1, 2), np.float32), {}])
    assert (a.tolist(), b.tolist()) == ([0.5, 0.5], [[0.75, 0.75]])


def test_hyperparameters_change_between_steps(backend):
    """As the function of one step does, which is told everything anew each time."""
    p, m, v = arrays(0, [(7,)] * 3)
    q, m, v = p.copy(), np.zeros_like(m), np.zeros_like(v)
    opt = fa.Adam(p, backend=backend)
    changes = [
        {},
        {"lr": 0.1},
        {"betas": (0.5, 0.7), "weight_decay": 0.2},
        {"eps": 1e-2, "maximize": True},
        {"eps_hat": True, "lr": 0.2},
        {"decoupled_weight_decay": True, "maximize": False},
    ]
    chosen = {}
    for t, change in enumerate(changes, start=1):
        chosen |= change
        for name, value in change.items():
            setattr(opt.groups[0], name, value)
            assert getattr(opt.groups[0], name) == value
        (g,) = arrays(t, [(7,)])
        opt.step(g)
        own = {"decoupled" if k == "decoupled_weight_decay" else k: x for k, x in chosen.items()}
        fa.adam_step(q, g, m, v, t=t, backend=backend, **own)
        assert same_bits(p, q)


def test_one_group_changes_without_the_other(backend):
    a, b, g = np.zeros(2, np.float32), np.zeros(2, np.float32), np.ones(2, np.float32)
    opt = fa.SGD([{"params": a}, {"params": b}], lr=1.0, backend=backend)
    opt.step([g, g])
    opt.groups[1].lr = 0.25
    opt.step([g, g])
    opt.groups[0].lr = lambda t: 2.0**t
    opt.step([g, g])
    assert (a.tolist(), b.tolist()) == ([-10] * 2, [-1.5] * 2)


STRUCTURAL = [
    (fa.Adam, {}, "amsgrad", True),
    (fa.AdamW, {"amsgrad": True}, "amsgrad", False),
    (fa.SGD, {}, "momentum", 0.9),
    (fa.SGD, {"momentum": 0.9}, "momentum", 0.0),
    (fa.RMSprop, {}, "centered", True),
    (fa.RMSprop, {"momentum": 0.5}, "momentum", 0),
    (fa.Adagrad, {}, "initial_accumulator_value", 0.1),
]


@pytest.mark.parametrize(("method", "chosen", "name", "value"), STRUCTURAL)
def test_what_shapes_the_state_is_set_once(method, chosen, name, value, backend):
    p = np.ones(3, np.float32)
    opt = method(p, **chosen, backend=backend)
    opt.step(np.ones(3, np.float32))
    bits, state, before = p.tobytes(), repr(opt.state_dict()), getattr(opt.groups[0], name)
    with pytest.raises(ValueError, match=name):
        setattr(opt.groups[0], name, value)
    assert getattr(opt.groups[0], name) == before
    assert (p.tobytes(), repr(opt.state_dict())) == (bits, state)
    setattr(opt.groups[0], name, before)  # what it is already, it may be set to


def test_groups_of_other_structure_live_together(backend):
    """amsgrad in one group, none in the other: each equals an optimizer of its own."""
    a, b, c, d = (arrays(0, [(5,)])[0] for _ in range(4))
    opt = fa.Adam([{"params": a, "amsgrad": True}, {"params": b}], lr=0.1, betas=(0.5, 0.5), backend=backend)
    one, other = (
        fa.Adam(p, lr=0.1, betas=(0.5, 0.5), amsgrad=on, backend=backend) for p, on in ((c, True), (d, False))
    )
    for scale in (100, 1, 0.01):
        g = arrays(1, [(5,)])[0] * np.float32(scale)
        opt.step([g, g])
        one.step(g)
        other.step(g)
    assert all_same([a, b], [c, d])
    assert not same_bits(a, b)
    assert {"vmax"} == set(opt.state_dict()["leaves"]["params[0]"]) - set(opt.state_dict()["leaves"]["params[1]"])


# ---- gradients that are None

PRESENT = [  # per step, which of four leaves have a gradient
    (1, 1, 1, 1),
    (1, 0, 1, 1),
    (0, 0, 0, 0),
    (1, 1, 0, 1),
    (0, 1, 1, 1),
    (1, 1, 1, 1),
    (0, 0, 0, 1),
]


@pytest.mark.parametrize("case", by_themselves(), ids=label)
def test_leaves_without_a_gradient_equal_optimizers_of_their_own(case, backend):
    method, chosen = case
    shapes = [(3,), (2, 2), (), (40,)]
    together, apart = arrays(0, shapes), arrays(0, shapes)
    groups = [{"params": together[:2]}, {"params": {"c": together[2], "d": together[3]}, "lr": 0.3}]
    opt = method(groups, backend=backend, **chosen)
    singles = [method(p, backend=backend, **chosen | ({"lr": 0.3} if k > 1 else {})) for k, p in enumerate(apart)]
    for step, present in enumerate(PRESENT, start=1):
        a, b, c, d = (g if on else None for g, on in zip(arrays(step, shapes), present, strict=True))
        before = [p.tobytes() for p in together]
        opt.step([[a, b], {"c": c, "d": d}])
        for single, p, was, g in zip(singles, together, before, (a, b, c, d), strict=True):
            if g is None:
                assert p.tobytes() == was
            else:
                single.step(g)
        assert all_same(together, apart)
        leaves = list(opt.state_dict()["leaves"].values())
        assert [leaf["count"] for leaf in leaves] == [single.t for single in singles]
        assert opt.t == step
        for leaf, single in zip(leaves, singles, strict=True):
            own = single.state_dict()["leaves"]["params"]
            assert all(same_bits(leaf[k], x) if isinstance(x, np.ndarray) else leaf[k] == x for k, x in own.items())


def test_a_leaf_that_never_had_a_gradient_keeps_its_state(backend):
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    opt = fa.Adagrad([p, q], initial_accumulator_value=0.5, backend=backend)
    for _ in range(3):
        opt.step([np.ones(3, np.float32), None])
    one, other = opt.state_dict()["leaves"].values()
    assert (one["count"], other["count"]) == (3, 0)
    assert (one["sum"].tolist(), other["sum"].tolist()) == ([3.5] * 3, [0.5] * 3)
    assert q.tolist() == [1] * 3


# ---- schedules


def test_a_schedule_gets_the_optimizers_count_from_one(backend):
    seen, own = [], []
    a, b, g = np.zeros(1, np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)

    def schedule(t):
        seen.append(t)
        return 2.0**t

    opt = fa.SGD([{"params": a}, {"params": b, "lr": lambda t: own.append(t) or 1}], lr=schedule, backend=backend)
    for grads in ([g, g], [None, g], [g, None], [None, None], [g, g]):
        opt.step(grads)
    assert seen == own == [1, 2, 3, 4, 5]
    assert {type(t) for t in seen} == {int}
    assert (a.tolist(), b.tolist()) == ([-(2 + 8 + 32)], [-3])


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_a_constant_schedule_is_that_number(method, backend):
    (p, q), rounds = arrays(0, [(9,)]) + arrays(0, [(9,)]), [arrays(k, [(9,)])[0] for k in (1, 2, 3)]
    one, other = (
        method(p, lr=0.05, backend=backend),
        method(q, lambda t: 0.05, backend=backend),
    )
    for g in rounds:
        one.step(g)
        other.step(g)
    assert same_bits(p, q)
    assert callable(other.groups[0].lr)


def test_the_same_schedule_as_numbers_set_by_hand(backend):
    (p, q), rounds = arrays(0, [(9,)]) + arrays(0, [(9,)]), [arrays(k, [(9,)])[0] for k in (1, 2, 3)]
    one, other = fa.NAdam(p, lr=lambda t: 0.1 / t, backend=backend), fa.NAdam(q, backend=backend)
    for t, g in enumerate(rounds, start=1):
        other.groups[0].lr = 0.1 / t
        one.step(g)
        other.step(g)
    assert same_bits(p, q)


# ---- maximize and grad_scale


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("case", variants(maximize=True), ids=label)
def test_maximize_is_the_negated_gradient(case, dtype, backend):
    method, chosen = case
    (p,), (q,) = arrays(0, [(300,)], dtype), arrays(0, [(300,)], dtype)
    up, down = method(p, backend=backend, **chosen), method(q, backend=backend, **chosen | {"maximize": False})
    for seed in (1, 2, 3):
        g = hostile(np.random.default_rng(seed), 300, dtype)
        up.step(g)
        down.step(-g)
    assert same_bits(p, q)
    assert all(
        same_bits(x, down_x) for x, down_x in zip(state_arrays(up).values(), state_arrays(down).values(), strict=True)
    )


@pytest.mark.parametrize("case", variants(), ids=label)
def test_grad_scale_by_powers_of_two_is_the_scaled_gradient(case, backend):
    method, chosen = case
    (p,), (q,) = arrays(0, [(50,)]), arrays(0, [(50,)])
    one, other = method(p, backend=backend, **chosen), method(q, backend=backend, **chosen)
    for seed, scale in enumerate((2.0**-16, 0.5, 1, 2.0**10, -2.0, 0.0), start=1):
        (g,) = arrays(seed, [(50,)])
        before = g.tobytes()
        one.step(g, grad_scale=scale)
        assert g.tobytes() == before
        other.step(g * np.float32(scale))
    assert same_bits(p, q)
    assert all(same_bits(a, b) for a, b in zip(state_arrays(one).values(), state_arrays(other).values(), strict=True))


def test_grad_scale_reaches_every_group_and_count(backend):
    a, b, g = np.zeros(2, np.float32), np.zeros(2, np.float32), np.ones(2, np.float32)
    opt = fa.SGD([{"params": a}, {"params": b, "maximize": True}], lr=1.0, backend=backend)
    opt.step([g, g], grad_scale=0.5)
    opt.step([None, g], 0.25)
    opt.step([g, g])  # it holds for one step
    assert (a.tolist(), b.tolist()) == ([-1.5] * 2, [1.75] * 2)


# ---- names, defaults, what is shown

TORCH = {  # torch.optim 2.13, in its positional order; beside them keyword-only: (name, default)
    "Adam": (
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False},
        {"maximize": False, "decoupled_weight_decay": False},
    ),
    "AdamW": (
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False},
        {"maximize": False},
    ),
    "NAdam": (
        {
            "lr": 2e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0,
            "momentum_decay": 4e-3,
            "decoupled_weight_decay": False,
        },
        {"maximize": False},
    ),
    "RAdam": (
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "decoupled_weight_decay": False},
        {"maximize": False},
    ),
    "Adamax": ({"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}, {"maximize": False}),
    "SGD": (
        {"lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False},
        {"maximize": False},
    ),
    "RMSprop": (
        {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0, "centered": False},
        {"maximize": False},
    ),
    "Adagrad": (
        {"lr": 1e-2, "lr_decay": 0, "weight_decay": 0, "initial_accumulator_value": 0, "eps": 1e-10},
        {"maximize": False},
    ),
}
PAPERS = {  # not in torch.optim
    "AdaBelief": (  # the authors' code
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 0, "decoupled_weight_decay": True},
        {"maximize": False},
    ),
    "ADOPT": (  # the authors', whose clip is a function of the step
        {"lr": 1e-3, "betas": (0.9, 0.9999), "eps": 1e-6, "weight_decay": 0, "clip": True},
        {"maximize": False, "decoupled_weight_decay": False},
    ),
    "AdEMAMix": (  # bitsandbytes', but for its alpha of 5 and its decay of 1e-2
        {
            "lr": 1e-3,
            "betas": (0.9, 0.999, 0.9999),
            "alpha": 5.0,
            "t_alpha": 0,
            "t_beta3": 0,
            "eps": 1e-8,
            "weight_decay": 0,
        },
        {"maximize": False},
    ),
    "ScheduleFreeAdamW": (  # the authors' package
        {
            "lr": 0.0025,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0,
            "warmup_steps": 0,
            "r": 0,
            "weight_lr_power": 2.0,
        },
        {"maximize": False},
    ),
    "ScheduleFreeSGD": (
        {"lr": 1.0, "momentum": 0.9, "weight_decay": 0, "warmup_steps": 0, "r": 0, "weight_lr_power": 2.0},
        {"maximize": False},
    ),
    "Lion": (
        {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0},
        {"maximize": False, "cautious_decay": False, "cautious": False},
    ),
    "LARS": (
        {"lr": 1.0, "momentum": 0.9, "weight_decay": 0, "trust_coefficient": 1e-3},
        {"maximize": False},
    ),
    "StableAdamW": ({"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 1e-2}, {"maximize": False}),
    "Prodigy": (  # the authors' package
        {
            "lr": 1.0,
            "betas": (0.9, 0.999),
            "beta3": None,
            "eps": 1e-8,
            "weight_decay": 0,
            "decouple": True,
            "use_bias_correction": False,
            "safeguard_warmup": False,
            "d0": 1e-6,
            "d_coef": 1.0,
            "growth_rate": None,
        },
        {"maximize": False},
    ),
    "LAMB": (  # timm's
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 1e-2},
        {"maximize": False, "bias_correction": True},
    ),
}
HAT = {"eps_hat": False}
OURS = {**dict.fromkeys(["Adamax", "RMSprop", "Adagrad"], HAT), "SGD": {"lr_in_momentum": False}}
OURS |= {name: {**HAT, "cautious_decay": False, "cautious": False} for name in ("Adam", "AdamW")}
OURS["NAdam"] = {**OURS.get("NAdam", {}), "cautious": False}


@pytest.mark.parametrize("name", TORCH | PAPERS)
def test_names_order_and_defaults_are_torchs(name):
    positional, keywords = (TORCH | PAPERS)[name]
    method = getattr(fa, name)
    shown = inspect.signature(method).parameters
    assert list(shown)[: 1 + len(positional)] == ["params", *positional]
    kinds = {
        kind: {k: x.default for k, x in shown.items() if x.kind is kind}
        for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    first, second = kinds.values()
    assert first == {"params": inspect.Parameter.empty, **positional}
    extra = OURS.get(name, {})
    chores = {each.name: each.default for each in fields(Chores)} | {"copy_to": None}
    storage = {each.name: each.default for each in fields(Storage)}
    ours = {"backend": "auto", "seed": 0, "capturable": False}
    assert second == {**keywords, **extra, **ours, **chores, **storage}
    assert len(shown) == len(first) + len(second)  # no *args, no **kwargs
    (group,) = method(np.ones(2, np.float32)).groups
    assert {k: getattr(group, k) for k in positional | keywords | extra} == positional | keywords | extra


@pytest.mark.parametrize("name", TORCH | PAPERS)
def test_positional_arguments_land_where_torch_puts_them(name):
    positional, _ = (TORCH | PAPERS)[name]
    special = {"betas": (0.5, 0.25), "momentum": 0.5, "dampening": 0, "nesterov": True, "growth_rate": 1.5}
    if len(positional.get("betas", ())) == 3:
        special["betas"] = (0.5, 0.25, 0.75)
    values = [
        special.get(k, not default if isinstance(default, bool) else (place + 1) / 64)
        for place, (k, default) in enumerate(positional.items())
    ]
    (group,) = getattr(fa, name)(np.ones(2, np.float32), *values).groups
    assert [getattr(group, k) for k in positional] == values


def test_the_table_above_knows_every_method():
    assert {method.__name__ for method in METHODS} == set(TORCH | PAPERS)
    assert set(TORCH | PAPERS) <= set(fa.__all__)


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_an_optimizer_shows_what_it_is(method, backend):
    opt = method([{"params": np.ones(2, np.float32), "lr": 0.0625}, {"params": []}], lr=abs, backend=backend)
    opt.step([np.ones(2, np.float32), []])
    text = repr(opt)
    assert text.startswith(method.__name__ + "(")
    for word in ("0.0625", "abs", "t=1", backend, *(n for n in inspect.signature(method).parameters if n == "betas")):
        assert word in text
    assert "0x" not in text.replace(repr(abs), "")
    assert method.__doc__
    assert "params" in method.__doc__


def test_a_users_subclass_keeps_its_documentation():
    class Mine(fa.Adam):
        """My own."""

    assert Mine.__doc__ == "My own."
    assert repr(Mine(np.ones(2, np.float32))).startswith("Mine(")


def test_counts_and_backend_are_read_only(backend):
    opt = fa.Adam(np.ones(2, np.float32), backend=backend)
    assert (opt.t, opt.backend) == (0, backend)
    for name in ("t", "backend"):
        with pytest.raises(AttributeError):
            setattr(opt, name, 5)
    assert (opt.t, opt.backend) == (0, backend)
    assert opt.step(np.ones(2, np.float32)) == (None, None, False, None, None)  # nothing asked, nothing found out
    assert type(opt.t) is int


@pytest.mark.parametrize("way", [lambda opt: opt, copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_groups_keep_what_their_owner_calls_them(way):
    params = [{"params": np.ones(2), "name": "head", "tags": [1, 2]}, {"params": np.ones(3), "lr": 0.5}]
    opt = way(fa.Adam(params))
    assert (opt.groups[0].name, opt.groups[0].tags, opt.groups[0].lr, opt.groups[1].lr) == ("head", [1, 2], 1e-3, 0.5)
    assert "name='head', tags=[1, 2]" in repr(opt.groups[0])
    assert {"name", "tags", "lr"} <= set(dir(opt.groups[0]))
    opt.groups[0].name = "body"
    assert opt.groups[0].name == "body"
    with pytest.raises(AttributeError, match="has no hyperparameter 'name'"):
        opt.groups[1].name = "head"  # a key that it was not given
    with pytest.raises(TypeError, match=r"params\[0\] has 'weigth_decay', expected"):
        fa.Adam([{"params": np.ones(2), "weigth_decay": 0.1}])
    for key in "_rule", "rule", "leaves", "lr_at", "has":  # which a group has of its own, and would show in its place
        with pytest.raises(TypeError, match=rf"params\[0\] has '{key}', which .*: expected another name of your own"):
            fa.Adam([{"params": np.ones(2), key: 0.1}])
    opt.step([np.ones(2), np.ones(3)])
    opt.load_state_dict(opt.state_dict())
    assert opt.groups[0].name == "body"


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(
    ("method", "named"), [(fa.AdamW, {"cautious": True}), (fa.Lion, {"cautious": True}), (fa.StableAdamW, {})]
)
def test_a_nan_spreads_over_its_array_alone_where_a_sum_holds_it(method, named, backend):
    params, grads = ({"w": np.ones(70), "b": np.ones(5)} for _ in range(2))
    grads["w"][3] = np.nan
    opt = method(params, backend=backend, **named)
    opt.step(grads)
    assert np.isnan(params["w"]).all()
    assert np.isfinite(params["b"]).all()
    params["w"][:] = 1
    careful = method(params, backend=backend, skip_nonfinite=True, **named)
    assert careful.step(grads).skipped
    assert (params["w"] == 1).all()
