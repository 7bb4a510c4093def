"""Containers: what a tree may be made of, and that the arrays in it are stepped where they are."""

import copy
import pickle
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import attrs
import numpy as np
import pytest

import fastadam as fa
from fastadam.arrays import tree as trees


class Checked(namedtuple("Checked", "weight bias")):
    """As validating named tuples are: they copy what they get."""

    def __new__(cls, weight, bias):
        return super().__new__(cls, np.array(weight), np.array(bias))


class Turned(namedtuple("Turned", "weight bias")):
    """Its arguments come in another order than its fields."""

    def __new__(cls, bias, weight):
        return super().__new__(cls, weight, bias)

    def __getnewargs__(self):
        return self.bias, self.weight


class Scaled(namedtuple("Scaled", "weight bias")):
    """It takes an argument that is no field."""

    def __new__(cls, weight, bias, scale=2):
        return super().__new__(cls, weight * scale, bias)

    def __getnewargs__(self):
        return self.weight, self.bias, 1


class Copying(dict):
    """A dict that copies what is put in."""

    def __setitem__(self, key, value):
        super().__setitem__(key, np.array(value))


class Stack(list):
    """A list that copies what is appended, and has a name."""

    def __init__(self, *items):
        super().__init__(items)
        self.name = "stack"

    def append(self, item):
        super().append(np.array(item))

    def extend(self, items):
        for item in items:
            self.append(item)


@dataclass
class Layer:
    weight: Any
    bias: Any
    name: str = field(default="dense", metadata={"static": True})

    def __post_init__(self):
        self.weight = np.array(self.weight)


@dataclass(frozen=True, slots=True)
class Frozen:
    weight: Any
    bias: Any = field(default=None, metadata={"pytree_node": False})


@attrs.define
class Block:
    weight: Any = attrs.field(converter=np.array)
    bias: Any


@attrs.frozen
class FrozenBlock:
    weight: Any
    bias: Any


class Bag:
    """A container that nothing knows of unless it is registered."""

    def __init__(self, **items):
        self.items = items


class SubBag(Bag):
    pass


@pytest.fixture
def bag(monkeypatch):
    monkeypatch.setattr(trees, "REGISTERED", dict(trees.REGISTERED))
    fa.register_container(Bag, lambda bag: bag.items, lambda bag, items: type(bag)(**items))


def ones():
    return np.ones(3, np.float32)


def insides(tree):
    """The arrays that lie in a container, as Python finds them."""
    if isinstance(tree, (dict, UserDict)):
        return list(tree.values())
    if isinstance(tree, (tuple, list)):
        return [x for x in tree if isinstance(x, np.ndarray)]
    if isinstance(tree, Bag):
        return list(tree.items.values())
    return [tree.weight, tree.bias] if getattr(tree, "bias", None) is not None else [tree.weight]


def copying():
    tree = Copying()
    dict.update(tree, weight=ones(), bias=ones())
    return tree


MADE = {
    "a named tuple that copies": lambda: Checked(ones(), ones()),
    "a named tuple in another order": lambda: Turned(bias=ones(), weight=ones()),
    "a named tuple with one more argument": lambda: Scaled(ones(), ones(), 1),
    "OrderedDict": lambda: OrderedDict(weight=ones(), bias=ones()),
    "defaultdict": lambda: defaultdict(list, weight=ones(), bias=ones()),
    "UserDict": lambda: UserDict(weight=ones(), bias=ones()),
    "a dict that copies": copying,
    "a list that copies": lambda: Stack(ones(), ones()),
    "dataclass": lambda: Layer(ones(), ones()),
    "frozen dataclass with slots": lambda: Frozen(ones()),
    "attrs": lambda: Block(ones(), ones()),
    "frozen attrs": lambda: FrozenBlock(ones(), ones()),
    "registered": lambda: Bag(weight=ones(), bias=ones()),
    "registered by its base": lambda: SubBag(weight=ones(), bias=ones()),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_arrays_in_every_container_are_stepped_where_they_are(kind, backend, bag):
    params, grads = {"outer": [MADE[kind](), ones()]}, {"outer": [MADE[kind](), ones()]}
    own = [*insides(params["outer"][0]), params["outer"][1]]
    for k, g in enumerate([*insides(grads["outer"][0]), grads["outer"][1]]):
        g *= k + 1
    opt = fa.SGD(params, lr=0.25, backend=backend)
    opt.step(grads)
    assert [p.tolist() for p in own] == [[1 - 0.25 * (k + 1)] * 3 for k in range(len(own))]
    kept = opt.params["outer"][0]
    assert type(kept) is type(params["outer"][0])
    assert all(a is b for a, b in zip(insides(kept), own, strict=False))
    assert kept is not params["outer"][0]  # what becomes of the user's container does not matter
    for way in copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)):
        there = way(opt)
        there.step(grads)
        assert insides(there.params["outer"][0])[0].tolist() == [0.5] * 3
    assert own[0].tolist() == [0.75] * 3


def test_what_containers_keep(bag):
    params = defaultdict(list, b=ones(), a=OrderedDict(z=ones(), y=ones()))
    opt = fa.Adam(params)
    assert opt.paths == ["['b']", "['a']['z']", "['a']['y']"]  # as they were put in
    assert opt.params.default_factory is list
    assert type(opt.params["a"]) is OrderedDict
    assert fa.Adam({"s": Stack(ones())}).params["s"].name == "stack"
    layers = fa.Adam({"l": [Layer(ones(), Frozen(ones(), "kept"))], "b": Bag(w=ones())})
    assert layers.paths == ["['l'][0].weight", "['l'][0].bias.weight", "['b']['w']"]
    assert (layers.params["l"][0].name, layers.params["l"][0].bias.bias) == ("dense", "kept")


def test_a_buffer_keeps_containers(bag):
    buffer = fa.FlatBuffer({"l": Layer(ones(), ones()), "t": Turned(bias=ones(), weight=2 * ones())})
    assert buffer.names == ["['l'].weight", "['l'].bias", "['t'][0]", "['t'][1]"]
    assert buffer.array.tolist() == [1] * 6 + [2] * 3 + [1] * 3
    buffer.array[:] = range(12)
    assert buffer.views["l"].bias.tolist() == [3, 4, 5]
    assert buffer.views["t"].weight.tolist() == [6, 7, 8]


def test_gradients_in_other_containers(bag):
    params = {"d": OrderedDict(a=ones(), b=ones()), "u": UserDict(a=ones()), "l": [ones()]}
    opt = fa.SGD(params, lr=1.0)
    opt.step({"d": UserDict(b=ones(), a=None), "u": {"a": 2 * ones()}, "l": (ones(),)})
    opt.step_rows({"d": UserDict(b=ones())})
    assert [params["d"]["a"][0], params["d"]["b"][0], params["u"]["a"][0], params["l"][0][0]] == [1, -1, -1, 0]
    for grads, words in [
        ({"layer": {"weight": ones(), "bias": ones()}}, r"grads\['layer'\] is dict, params\['layer'\] is a Layer"),
        ({"layer": None}, r"grads\['layer'\] is NoneType, params\['layer'\] is a Layer"),
    ]:
        with pytest.raises(TypeError, match=words):
            fa.SGD({"layer": Layer(ones(), ones())}).step(grads)
    layers = {"layer": Layer(ones(), ones())}
    fa.SGD(layers, lr=1.0).step_rows({"layer": None})
    assert layers["layer"].weight.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"grads\['bag'\] has no 'a', params\['bag'\] has"):
        fa.SGD({"bag": Bag(a=ones())}).step({"bag": Bag(b=ones())})
    with pytest.raises(ValueError, match=r"grads\['bag'\] has 'b', params\['bag'\] has not"):
        fa.SGD({"bag": Bag(a=ones())}).step({"bag": Bag(a=ones(), b=ones())})


def test_a_container_that_does_not_keep_its_arrays_is_refused(monkeypatch):
    monkeypatch.setattr(trees, "REGISTERED", dict(trees.REGISTERED))
    fa.register_container(Bag, lambda bag: bag.items, lambda bag, items: Bag(**{k: v + 0 for k, v in items.items()}))
    with pytest.raises(ValueError, match="a Bag holds other objects than it was rebuilt from"):
        fa.SGD([Bag(w=ones())])


def test_what_cannot_be_registered():
    for kind, error, words in [
        (3, TypeError, "kind is 3, expected a class"),
        (dict, ValueError, "kind is dict, which is registered already"),
    ]:
        with pytest.raises(error, match=words):
            fa.register_container(kind, dict, dict)
    with pytest.raises(TypeError, match=r"params\[0\] is Bag, expected a numpy.ndarray"):
        fa.SGD([Bag(w=ones())])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_parameter_of_no_dimension_takes_numbers(dtype, backend):
    def step(how, gradients):
        params = {"s": np.array(3.0, dtype), "w": np.ones(2, dtype)}
        opt = fa.AdamW(params, lr=0.25, weight_decay=0.5, backend=backend)
        for s in gradients:
            how(opt, {"s": s, "w": np.ones(2, dtype)})
        return params["s"]

    ways = {
        "step": lambda opt, g: opt.step(g),
        "rows": lambda opt, g: opt.step_rows(g),
        "accumulated": lambda opt, g: (opt.accumulate(g), opt.step()),
    }
    values = [0.5, -2.0, 4.0]
    expected = step(ways["step"], [np.array(x, dtype) for x in values])
    for name, way in ways.items():
        for kind in dtype, float, np.float64:
            assert step(way, map(kind, values)) == expected, (name, kind)
    assert step(ways["step"], [np.array([1, 2, 3], dtype).sum(), -2, np.float16(4)]) == step(
        ways["step"], [np.array(x, dtype) for x in (6, -2, 4)]
    )
    with pytest.raises(TypeError, match=r"grads\['s'\] is int64, params\['s'\] is float"):
        step(ways["step"], [np.int64(3)])
    for g in (True, 1j, "1"):
        with pytest.raises(TypeError, match=r"grads\['s'\] is .*expected a numpy.ndarray"):
            step(ways["step"], [g])
    assert np.isnan(step(ways["step"], [np.nan]))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_functions_take_numbers_for_no_dimension(backend):
    p, m = np.array(3.0, np.float32), np.array(0.0, np.float32)
    fa.momentum_step(p, np.ones(2, np.float32).sum(), m, t=1, lr=0.25, momentum=0.5, backend=backend)
    assert (p, m) == (2.5, 2)


def test_numbers_cannot_be_zeroed():
    with pytest.raises(TypeError, match=r"grads is float, params is float64\(\), expected an array with zero_grads"):
        fa.SGD(np.array(1.0), zero_grads=True).step(1.0)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_numbers_among_several_gradients_stay_apart_from_what_is_converted(backend):
    """A number and a copy once shared memory: the sum was 4 where it is 3."""
    p = np.zeros((), np.float32)
    opt = fa.SGD({"x": p}, lr=1.0, backend=backend)
    for several, expected in (
        ((None, np.float32(1), np.float64(2)), -3),
        ((np.float32(1), np.float32(1)), -5),
        ((np.array(2.0), np.float32(1)), -8),
        ((None, None, 1.0, np.float64(2), np.array(4.0)), -15),
    ):
        opt.step(streams=[{"x": x} for x in several], reduction="sum")
        assert p == expected
