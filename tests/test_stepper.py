"""Stepper: on arrays that others keep it has the bits of the Optimizer, whose state_dict names those arrays."""

from itertools import cycle

import numpy as np
import pytest
from cases import kernels_in_use, label, same_bits

import fastadam as fa
from fastadam.kernels.formats import FORMATS
from fastadam.tools.cover import STORED

CHORES = [
    {}, {"max_norm": 0.37, "max_value": 0.02, "stats": "tensor"},
    {"ema_decay": lambda t: 1 - 1 / (t + 1), "zero_grads": True},
    {"skip_nonfinite": True, "ema_decay": 0.9, "copy_to": "bfloat16"},
]  # fmt: skip
STEPS = 4


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    return request.param


def tree(make):
    return {"a": make((9, 130)), "b": [make(()), make((0, 3)), make((1031,))]}


def mapped(function, *trees):
    first = trees[0]
    if isinstance(first, dict):
        return {k: mapped(function, *(x[k] for x in trees)) for k in first}
    if isinstance(first, list):
        return [mapped(function, *each) for each in zip(*trees, strict=True)]
    return function(*trees)


def leaves(x):
    if isinstance(x, dict):
        return [leaf for child in x.values() for leaf in leaves(child)]
    return [leaf for child in x for leaf in leaves(child)] if isinstance(x, list) else [x]


class Kept:
    """What a caller keeps for a Stepper, copied from an optimizer's state_dict, and both steps."""

    def __init__(self, method, rule, start, copied, **options):
        self.p, theirs = (mapped(lambda x: x.copy(order="K"), start) for _ in range(2))
        self.theirs = theirs
        copies = (
            [mapped(lambda x: x.astype(FORMATS[copied].dtype), start) for _ in range(2)] if copied else [None, None]
        )
        self.opt = method(theirs, copy_to=copies[0], **rule, **options)
        self.stepper = fa.Stepper(self.opt.groups[0].rule, start, copy_to=copied, **options)
        self.trees = self.shaped(copies[1])
        self.carried = {name: np.array(x) for name, x in method.rule.carried.items()}

    def state(self):
        return self.opt.state_dict()["leaves"]

    def shaped(self, copies):
        """Trees by name, from the state's leaves."""
        state, paths = self.state(), iter(self.opt.paths)
        names = sorted({name for leaf in state.values() for name, x in leaf.items() if isinstance(x, np.ndarray)})
        of = mapped(lambda _: state[f"params{next(paths)}"], self.p)
        trees = {name: mapped_states(lambda leaf, name=name: leaf.get(name), of) for name in names}
        return trees | ({"copy_to": copies} if copies is not None else {})

    def step(self, g, t, **more):
        other = mapped(lambda x: None if x is None else x.copy(), g)
        info = self.opt.step(other, **more)
        ours = self.stepper(self.p, g, slots=self.trees, t=t, **self.carried, **more)
        assert ours == info or np.isnan(info.grad_norm or 0.0)
        assert all(x is y or same_bits(x, y) for x, y in zip(leaves(g), leaves(other), strict=True))  # zeroed alike

    def differing(self):
        state = self.state()
        wrong = [
            name
            for x, name in zip(leaves(self.p), self.opt.paths, strict=True)
            if not same_bits(x, of(self.theirs, name))
        ]
        for name, kept in self.trees.items():
            for x, path in zip(leaves(kept), self.opt.paths, strict=True):
                y = of(self.opt.copy_to, path) if name == "copy_to" else state[f"params{path}"].get(name)
                wrong += [] if (x is None and y is None) or same_bits(x, y) else [name + path]
        return wrong + [n for n, x in self.carried.items() if x != state["params['a']"][n]]


def of(x, path):
    return eval(f"x{path}")


def mapped_states(function, x):
    if isinstance(x, dict) and "count" not in x:
        return {k: mapped_states(function, child) for k, child in x.items()}
    return [mapped_states(function, child) for child in x] if isinstance(x, list) else function(x)


# Of a slot that is idle a caller keeps what its optimizer does without.
ALL_KEPT = [variant for variant in kernels_in_use() if not variant[0].rule(**variant[1]).idle]
CASES = [
    (variant, stored, chores)
    for k, variant in enumerate(ALL_KEPT)
    for stored, chores in zip(STORED[k % 3 :: 3], cycle(CHORES), strict=False)
]


def some_of_each():
    """Few of CASES, by number, that have every kernel, every set of formats and every set of chores."""
    values = [{label(variant), stored, str(sorted(chores))} for variant, stored, chores in CASES]
    missing, few = set().union(*values), set()
    while missing:
        few.add(k := max(range(len(values)), key=lambda k: len(values[k] & missing)))
        missing -= values[k]
    return few


# Compiling all takes two minutes.
FEW = some_of_each()
EACH = [
    pytest.param(*case, id=f"{label(case[0])} {case[1]} {len(case[2])}", marks=() if k in FEW else pytest.mark.whole)
    for k, case in enumerate(CASES)
]


@pytest.mark.parametrize(("variant", "stored", "chores"), EACH)
def test_bits_are_the_optimizers(variant, stored, chores, backend):
    """The same arrays and others; gradients that are missing or not finite."""
    (method, rule), (p_dtype, g_dtype), rng = variant, stored.dtypes(), np.random.default_rng(3)
    chores = dict(chores)
    copied = chores.pop("copy_to", None) if stored.p.startswith("float") and stored.master != "float32" else None
    chores.pop("copy_to", None)
    start = tree(lambda shape: np.asarray(rng.standard_normal(shape)).astype(p_dtype))
    kept = Kept(method, rule, start, copied, backend=backend, seed=7, **stored.chosen(), **chores)
    taken = 0
    for turn in range(STEPS):
        bad = turn == 1 and "skip_nonfinite" in chores
        g = tree(lambda shape: np.asarray(1e-2 * rng.standard_normal(shape)).astype(g_dtype))
        if bad:
            g["b"][2][5] = np.nan
        if turn == STEPS - 1:
            g["b"][0] = None
        if turn == 2:  # arrays of other memory
            kept.p = mapped(lambda x: x.copy(), kept.p)
            kept.trees = {name: mapped(lambda x: x if x is None else x.copy(), t) for name, t in kept.trees.items()}
        kept.step(g, taken + 1, grad_scale=0.5)
        taken += not bad
        assert kept.differing() == []
    assert not same_bits(leaves(kept.p)[3], leaves(start)[3])


def test_blocks_of_8_bits_are_stepped_where_they_lie(backend):
    """Views of an optimizer's own state; copies beside them end alike."""
    p, g = np.linspace(-1, 1, 3000, dtype=np.float32), np.linspace(2, -3, 3000, dtype=np.float32)
    opt = fa.Adam(p.copy(), moments="8bit", backend=backend)
    own = {name: x for name, x in opt.state_dict(copy=False)["leaves"]["params"].items() if isinstance(x, np.ndarray)}
    copies, other = {name: x.copy() for name, x in own.items()}, p.copy()
    stepper = fa.Stepper(fa.rules.Adam(), p, moments="8bit", backend=backend)
    for t in (1, 2):
        stepper(p, g, slots=own, t=t)
        stepper(other, g, slots=copies, t=t)
    assert same_bits(p, other)
    assert [name for name in own if not same_bits(own[name], copies[name])] == []
    assert own["m"].any()
    with pytest.raises(ValueError, match=r"(v_scales and p|p and v_scales) share memory"):
        stepper(p[:3000], g, slots=copies | {"v_scales": p[:48].reshape(3, 16)}, t=3)


def test_lr_is_the_calls_or_the_rules(backend):
    def after(rule, **given):
        p, m = np.ones(2), np.zeros(2)
        fa.Stepper(rule, p, backend=backend)(p, np.ones(2), slots={"m": m}, t=3, **given)
        return p[0]

    assert after(fa.rules.Lion(lr=lambda t: 2.0**-t)) == 1 - 2.0**-3
    assert after(fa.rules.Lion(lr=lambda t: 2.0**-t), lr=0.5) == after(fa.rules.Lion(lr=0.5)) == 0.5
    assert after(fa.rules.Lion(), lr=0.0) == 1


def test_the_same_arrays_are_looked_at_again(backend):
    """What may change in an array between two calls: whether it can be written, and where a gradient lies."""
    p, m, g = {"w": np.ones(3)}, {"w": np.zeros(3)}, {"w": np.ones(3)}
    stepper = fa.Stepper(fa.rules.Lion(lr=0.25), p, backend=backend)
    for t in (1, 2):
        stepper(p, g, slots={"m": m}, t=t)
    m["w"].flags.writeable = False
    with pytest.raises(ValueError, match=r"^m\['w'\] is read-only"):
        stepper(p, g, slots={"m": m}, t=3)
    m["w"].flags.writeable = True
    stepper(p, {"w": -np.ones(3)}, slots={"m": m}, t=3)
    assert p["w"].tolist() == [0.75] * 3


REFUSED = [
    ({"t": 0}, ValueError, "t is 0, expected an integer of at least 1"),
    ({"t": 1.5}, ValueError, "t is 1.5"),
    ({"lr": -1}, ValueError, "lr is -1"),
    ({"grad_scale": np.inf}, ValueError, "grad_scale is inf"),
    ({"p": {"w": np.ones(4)}}, ValueError, r"p\['w'\] is float64\(4,\), expected float64\(3,\), as like\['w'\] was"),
    ({"p": {"w": np.ones(3, np.float32)}}, ValueError, r"p\['w'\] is float32\(3,\), expected float64\(3,\), as like"),
    ({"p": {"w": [1.0]}}, TypeError, r"p\['w'\] is list, expected a numpy.ndarray"),
    ({"p": [np.ones(3)]}, TypeError, "p is list"),
    ({"g": {"w": np.ones(2)}}, ValueError, r"g\['w'\] is float64\(2,\), p\['w'\] is float64\(3,\)"),
    ({"slots": {"m": {"w": np.zeros(3)}}}, TypeError, "v is None, expected a tree of arrays like p, dict"),
    ({"slots": {"m": {"w": np.zeros(3)}, "v": {"w": np.zeros(2)}}}, ValueError, r"v\['w'\] is float64\(2,\), p\['w'\]"),
    ({"slots": {"m": {"w": np.zeros(3)}, "v": {"w": None}}}, TypeError, r"v\['w'\] is None, p\['w'\] is float64"),
    ({"slots": None}, TypeError, "slots is NoneType, expected a dict of trees by m and v"),
    ({"m": {"w": np.zeros(3)}}, TypeError, "m is given in slots and by name, expected one of both"),
    ({"u": {"w": np.zeros(3)}}, ValueError, "u is dict, expected None: NAdam"),
    ({"mu_product": 1.0}, TypeError, "mu_product is float, expected a float64 array of no dimension"),
    ({"mu_product": np.array(2.0)}, ValueError, "mu_product is 2.0"),
    ({"mu_product": None}, TypeError, "mu_product is None"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "match"), REFUSED, ids=[match for *_, match in REFUSED])
def test_what_is_refused_changes_nothing(changed, error, match, backend):
    stepper = fa.Stepper(fa.rules.NAdam(), {"w": np.ones(3)}, backend=backend)
    call = {
        "p": {"w": np.ones(3)}, "g": {"w": np.ones(3)}, "t": 1, "mu_product": np.array(1.0),
        "slots": {"m": {"w": np.zeros(3)}, "v": {"w": np.zeros(3)}},
    }  # fmt: skip
    before = [call["p"]["w"].copy(), 0 * np.ones(3), 0 * np.ones(3)]
    arrays = [call["p"]["w"], call["slots"]["m"]["w"], call["slots"]["v"]["w"]]
    for _ in range(2):  # the second looks less closely at the same arrays
        with pytest.raises(error, match=match):
            stepper(**(call | changed))
        assert all(map(same_bits, arrays, before))
        assert call["mu_product"] == 1
    stepper(**call)
    assert not same_bits(arrays[0], before[0])


def test_a_rule_without_slots_says_so(backend):
    stepper, p = fa.Stepper(fa.rules.SGD(lr=0.5), np.ones(3), backend=backend), np.ones(3)
    with pytest.raises(TypeError, match=r"^slots is NoneType, expected \{\}, as this rule has none$"):
        stepper(p, np.ones(3), slots=None, t=1)
    assert (p == 1).all()
    stepper(p, np.ones(3), slots={}, t=1)
    assert (p == 0.5).all()


def test_shared_memory_is_refused(backend):
    x = np.ones(6)
    stepper = fa.Stepper(fa.rules.Lion(), x[:3], backend=backend)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"(m and p|p and m) share memory"):
            stepper(x[:3], np.ones(3), slots={"m": x[2:5]}, t=1)
        with pytest.raises(ValueError, match="g and p share memory"):
            stepper(x[:3], x[1:4], slots={"m": np.zeros(3)}, t=1)
    assert x.tolist() == [1] * 6


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rule": fa.Adam}, TypeError, "expected one of fastadam.rules"),
        ({"like": np.ones(3, np.int32)}, TypeError, r"like is int32\(3,\)"),
        ({"moments": "4bit"}, ValueError, "moments is '4bit'"),
        ({"moments": {"w": "float32"}}, ValueError, r"moments\['w'\] is 'float32', expected a format for m or v"),
        ({"moments": {"m": "float64"}}, ValueError, r"moments\['m'\] is 'float64', like is float32\(3,\)"),
        ({"copy_to": "float32"}, ValueError, "copy_to is 'float32'"),
        ({"master": "half"}, ValueError, "master is 'half'"),
        ({"max_norm": 0}, ValueError, "max_norm is 0"),
        ({"norm": 1}, TypeError, "Stepper takes no 'norm', expected any of max_norm, max_value, ema_decay"),
        ({"seed": -1}, ValueError, "seed is -1"),
    ],
)  # fmt: skip
def test_what_construction_refuses(options, error, match):
    with pytest.raises(error, match=match):
        fa.Stepper(**({"rule": fa.rules.Adam(), "like": np.ones(3, np.float32)} | options))
