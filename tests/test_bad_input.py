"""Bad input: every row of the project's table, through every door it can come in by, on both backends.

Each refusal names the argument or the leaf and both sides, and leaves every byte, every number and every count alone.
"""

import inspect
import sys
from contextlib import contextmanager
from copy import deepcopy
from itertools import combinations

import numpy as np
import pytest
from cases import METHODS, hostile, same_bits, variants

import fastadam as fa

NUMBER = (TypeError, ValueError)
FUNCTIONS = [f for name, f in vars(fa).items() if name.endswith("_step")]
SIDES = {np.float32: "float32", np.float64: "float64"}


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    return request.param


def frozen(x):
    """A copy of everything in a tree that can be compared: bytes of arrays, and the text of numbers."""
    if isinstance(x, dict):
        return [(key, frozen(value)) for key, value in x.items()]
    if isinstance(x, (list, tuple)):
        return [frozen(value) for value in x]
    if isinstance(x, fa.FlatBuffer):
        return frozen(x.array)
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.strides, x.tobytes()
    return repr(x)


@contextmanager
def refused(error, *words, keeps=(), opt=None):
    """The block raises just this error with all the words in it, and changes nothing of `keeps` and `opt`."""

    def now():
        return frozen([keeps, opt and [opt.state_dict(), opt.t, [repr(group) for group in opt.groups]]])

    before = now()
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert now() == before


def params_and_grads(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)

    def make(*shape):
        return rng.standard_normal(shape).astype(dtype)

    def tree():
        return {"dense": {"weight": make(2, 3), "bias": make(3)}, "out": [make(3, 2), (make(2),)]}

    return tree(), tree()


def trained(backend, method=fa.Adam, **hyperparameters):
    """Parameters, gradients, and an optimizer that has taken a step, so that there is a state to spoil."""
    params, grads = params_and_grads()
    opt = method(params, backend=backend, **hyperparameters)
    opt.step(grads)
    return params, grads, opt


def arrays_for(function, n=6, dtype=np.float32, seed=1):
    """p, g and every slot of a functional step, by name, and the hyperparameters that use the optional slots."""
    rng = np.random.default_rng(seed)
    positional = [x for x in inspect.signature(function).parameters.values() if x.kind is x.POSITIONAL_OR_KEYWORD]
    arrays = {x.name: np.abs(rng.standard_normal((2, n // 2))).astype(dtype) for x in positional}
    chosen = {"momentum": 0.5} if "m" in arrays and function in (fa.momentum_step, fa.rmsprop_step) else {}
    return arrays, {"t": 3, **chosen}


# ---- shape, size, dtype or tree structure unlike the parameters'


def without(tree, key):
    return {k: x for k, x in tree.items() if k != key}


GRADIENT_TREES = {  # how the gradients are spoilt; the error; what it says
    "missing key": (lambda g: {**g, "dense": without(g["dense"], "bias")}, ValueError, ["grads['dense']", "'bias'"]),
    "missing subtree": (lambda g: without(g, "out"), ValueError, ["grads", "'out'"]),
    "extra key": (lambda g: {**g, "more": g["dense"]["bias"]}, ValueError, ["grads", "'more'"]),
    "extra key below": (
        lambda g: {**g, "dense": {**g["dense"], "scale": None}},
        ValueError,
        ["grads['dense']", "'scale'"],
    ),
    "renamed key": (
        lambda g: {**g, "dense": {"weight": g["dense"]["weight"], "Bias": g["dense"]["bias"]}},
        ValueError,
        ["grads['dense']", "'bias'"],
    ),
    "missing item": (lambda g: {**g, "out": g["out"][:1]}, ValueError, ["grads['out']", "1"]),
    "extra item": (lambda g: {**g, "out": [*g["out"], None]}, ValueError, ["grads['out']", "2"]),
    "dict for list": (
        lambda g: {**g, "out": dict(enumerate(g["out"]))},
        TypeError,
        ["grads['out'] is", "dict", "params['out']", "list"],
    ),
    "list for dict": (
        lambda g: {**g, "dense": list(g["dense"].values())},
        TypeError,
        ["grads['dense'] is", "list", "params['dense']", "dict"],
    ),
    "array for dict": (
        lambda g: {**g, "dense": g["dense"]["bias"]},
        TypeError,
        ["grads['dense'] is", "ndarray", "params['dense']", "dict"],
    ),
    "None for dict": (lambda g: {**g, "dense": None}, TypeError, ["grads['dense'] is", "None", "params['dense']"]),
    "None for tuple": (lambda g: {**g, "out": [g["out"][0], None]}, TypeError, ["grads['out'][1]", "params['out'][1]"]),
    "None for all": (lambda g: None, TypeError, ["grads is", "None", "params", "dict"]),
    "dict for leaf": (
        lambda g: {**g, "dense": {**g["dense"], "bias": {}}},
        TypeError,
        ["grads['dense']['bias'] is", "dict", "params['dense']['bias']"],
    ),
    "list for leaf": (
        lambda g: {**g, "dense": {**g["dense"], "bias": [1.0, 2.0, 3.0]}},
        TypeError,
        ["grads['dense']['bias'] is", "list", "params['dense']['bias']"],
    ),
    "list for leaf beside a subtree": (
        lambda g: {**g, "out": [[1.0], g["out"][1]]},
        TypeError,
        ["grads['out'][0] is", "list", "params['out'][0]"],
    ),
    "generator": (lambda g: (x for x in g), TypeError, ["grads is", "generator", "params"]),
}


@pytest.mark.parametrize("case", GRADIENT_TREES)
def test_a_tree_of_gradients_unlike_the_parameters(case, backend):
    spoil, error, words = GRADIENT_TREES[case]
    params, grads, opt = trained(backend)
    with refused(error, *words, keeps=[params, grads], opt=opt):
        opt.step(spoil(grads))


GRADIENT_LEAVES = {  # what stands for grads['dense']['bias'], whose parameter is float32(3,); the error; what it says
    "longdouble": (lambda g: g.astype(np.longdouble), TypeError, [f"{np.dtype(np.longdouble)}(3,)"]),
    "int32": (lambda g: g.astype(np.int32), TypeError, ["int32(3,)"]),
    "uint32": (lambda g: g.view(np.uint32), TypeError, ["uint32(3,)"]),
    "bool": (lambda g: g > 0, TypeError, ["bool(3,)"]),
    "complex": (lambda g: g.astype(np.complex64), TypeError, ["complex64(3,)"]),
    "object": (lambda g: g.astype(object), TypeError, ["object(3,)"]),
    "other byte order": (lambda g: g.astype(g.dtype.newbyteorder()), TypeError, ["f4"]),
    "longer": (lambda g: np.append(g, g[:1]), ValueError, ["float32(4,)"]),
    "shorter": (lambda g: g[:2], ValueError, ["float32(2,)"]),
    "empty": (lambda g: g[:0], ValueError, ["float32(0,)"]),
    "broadcastable": (lambda g: g[:1], ValueError, ["float32(1,)"]),
    "a row": (lambda g: g[None], ValueError, ["float32(1, 3)"]),
    "a column": (lambda g: g[:, None], ValueError, ["float32(3, 1)"]),
    "0-d": (lambda g: np.array(g[0]), ValueError, ["float32()"]),
    "both": (lambda g: np.ones(4), NUMBER, ["float64(4,)"]),
    "number": (lambda g: 1.0, TypeError, ["float"]),
    "text": (lambda g: "g", TypeError, ["str"]),
    "masked": (lambda g: np.ma.array(g, mask=[0, 1, 0]), TypeError, ["MaskedArray"]),
    "buffer": (lambda g: memoryview(g), TypeError, ["memoryview"]),
    "FlatBuffer": (lambda g: fa.FlatBuffer(g), ValueError, ["FlatBuffer"]),
}


def test_masks_are_seen_whoever_has_loaded_them(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy.ma", raising=False)
    with pytest.raises(TypeError, match="grads is MaskedArray"):
        fa.SGD(np.ones(3), lr=0.5).step(np.ma.array(np.ones(3), mask=[0, 1, 0]))


@pytest.mark.parametrize("case", GRADIENT_LEAVES)
def test_a_gradient_unlike_its_parameter(case, backend):
    make, error, words = GRADIENT_LEAVES[case]
    params, grads, opt = trained(backend)
    bad = {**grads, "dense": {**grads["dense"], "bias": make(grads["dense"]["bias"])}}
    names = "grads['dense']['bias'] is", "params['dense']['bias']", "float32(3,)"
    with refused(error, *names, *words, keeps=[params, grads], opt=opt):
        opt.step(bad)


def test_a_transposed_gradient_is_another_shape(backend):
    params, grads, opt = trained(backend)
    bad = {**grads, "dense": {**grads["dense"], "weight": grads["dense"]["weight"].T}}
    words = "grads['dense']['weight'] is float32(3, 2)", "params['dense']['weight'] is float32(2, 3)"
    with refused(ValueError, *words, keeps=params, opt=opt):
        opt.step(bad)


@pytest.mark.parametrize(
    "bad", [np.ones(3, np.longdouble), np.ones(4, np.float32), [np.ones(3, np.float32)], {}, 1.0, "g"], ids=repr
)
def test_a_gradient_unlike_a_single_array(bad, backend):
    p = np.ones(3, np.float32)
    opt = fa.Adam(p, backend=backend)
    with refused(NUMBER, "grads is", "params is", keeps=p, opt=opt):
        opt.step(bad)


GROUPED_GRADIENTS = {
    "one tree": (lambda g: g[0], TypeError, ["grads is", "dict", "params", "list"]),
    "too few": (lambda g: g[:1], ValueError, ["grads", "1"]),
    "too many": (lambda g: [*g, None], ValueError, ["grads", "2"]),
    "None for a group": (lambda g: [g[0], None], TypeError, ["grads[1] is", "None"]),
    "groups again": (lambda g: [{"params": x} for x in g], ValueError, ["grads[0]", "'a'"]),
    "dtype": (
        lambda g: [g[0], [np.ones(2, int)]],
        TypeError,
        ["grads[1][0] is int64(2,)", "params[1][0] is float32(2,)"],
    ),
}


@pytest.mark.parametrize("case", GROUPED_GRADIENTS)
def test_gradients_unlike_the_groups(case, backend):
    spoil, error, words = GROUPED_GRADIENTS[case]
    first, second = {"a": np.ones(3, np.float32)}, [np.ones(2, np.float32)]
    opt = fa.Adam([{"params": first}, {"params": second, "lr": 0.1}], backend=backend)
    grads = [{"a": np.ones(3, np.float32)}, [np.ones(2, np.float32)]]
    opt.step(grads)
    with refused(error, *words, keeps=[first, second], opt=opt):
        opt.step(spoil(grads))


def test_a_refused_step_leaves_no_trace_in_later_steps(backend):
    """All refusals in a row, also beside missing gradients, and the next steps are those of a twin who saw none."""
    (params, grads, opt), (twin_params, _, twin) = trained(backend, fa.NAdam), trained(backend, fa.NAdam)
    sparse = {**grads, "dense": {"weight": None, "bias": grads["dense"]["bias"]}}
    for spoil, error, _ in GRADIENT_TREES.values():
        for good in (grads, sparse):
            with pytest.raises(error):
                opt.step(spoil(good))
    for make, error, _ in GRADIENT_LEAVES.values():
        for good in (grads, sparse):
            with pytest.raises(error):
                opt.step({**good, "dense": {**good["dense"], "bias": make(grads["dense"]["bias"])}})
            with pytest.raises(ValueError, match="grad_scale"):
                opt.step(good, grad_scale=np.nan)
    for good in (grads, sparse, grads):
        opt.step(good)
        twin.step(good)
    assert frozen([params, opt.state_dict()]) == frozen([twin_params, twin.state_dict()])


# ---- p, m, v not dense, or read-only; wrong byte order or kind of number

as_strided = np.lib.stride_tricks.as_strided

NOT_OWNED = {  # spoils a C-ordered array of two axes; the error; what it says
    "gaps": (lambda x: np.repeat(x, 2, axis=1)[:, ::2], ValueError, ["strides", "dense"]),
    "gaps between rows": (lambda x: np.hstack([x, x])[:, : x.shape[1]], ValueError, ["strides", "dense"]),
    "backwards": (lambda x: x[:, ::-1], ValueError, ["strides", "dense"]),
    "rows backwards": (lambda x: x[::-1], ValueError, ["strides", "dense"]),
    "stride 0": (lambda x: as_strided(x.copy(), x.shape, (0, x.itemsize)), ValueError, ["strides", "dense"]),
    "overlapping strides": (
        lambda x: as_strided(x.copy(), (2, x.shape[1] - 1), (x.itemsize, x.itemsize)),
        ValueError,
        ["strides", "dense"],
    ),
    "broadcast": (lambda x: np.broadcast_to(x[:1], x.shape), ValueError, ["read-only"]),
    "read-only": (lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape), ValueError, ["read-only"]),
    "other byte order": (lambda x: x.astype(x.dtype.newbyteorder()), TypeError, ["f4", "byte order"]),
    "object": (lambda x: x.astype(object), TypeError, ["object", "float32"]),
    "int32": (lambda x: x.astype(np.int32), TypeError, ["int32", "float32"]),
    "int64": (lambda x: x.astype(np.int64), TypeError, ["int64", "float32"]),
    "uint8": (lambda x: x.astype(np.uint8), TypeError, ["uint8", "float32"]),
    "bool": (lambda x: x > 0, TypeError, ["bool", "float32"]),
    "longdouble": (lambda x: x.astype(np.longdouble), TypeError, [str(np.dtype(np.longdouble)), "float32"]),
    "complex64": (lambda x: x.astype(np.complex64), TypeError, ["complex64", "float32"]),
    "record": (lambda x: np.zeros(x.shape, "f4,f4"), TypeError, ["f4", "float32"]),
    "datetime": (lambda x: x.astype("M8[s]"), TypeError, ["datetime64", "float32"]),
    "masked": (lambda x: np.ma.array(x.copy()), TypeError, ["MaskedArray", "ndarray"]),
    "NumPy scalar": (lambda x: x[0, 0], TypeError, ["float32", "ndarray"]),
    "number": (lambda x: 1.0, TypeError, ["float", "ndarray"]),
    "None": (lambda x: None, TypeError, ["None", "array"]),
    "text": (lambda x: "weights", TypeError, ["str", "ndarray"]),
}


@pytest.mark.parametrize("case", NOT_OWNED)
def test_a_parameter_that_cannot_be_updated_in_place(case, backend):
    make, error, words = NOT_OWNED[case]
    good = np.arange(6, dtype=np.float32).reshape(2, 3)
    bad = make(good)
    with refused(error, "params", *words, keeps=[good, bad]):
        fa.Adam(bad, backend=backend)
    with refused(error, "params['w'][1]", *words, keeps=[good, bad]):
        fa.Adam({"b": good, "w": [good.copy(), bad]}, backend=backend)
    with refused(error, "params[1]['w']", *words, keeps=[good, bad]):
        fa.Adam([{"params": good}, {"params": {"w": bad}}], backend=backend)


def test_a_parameter_that_became_read_only(backend):
    """Frozen between two steps: whoever did that did not want it stepped."""
    p, q = np.ones(3, np.float32), np.ones(2, np.float32)
    g = {"p": np.ones(3, np.float32), "q": np.ones(2, np.float32)}
    opt = fa.Adam({"p": p, "q": q}, backend=backend)
    opt.step(g)
    q.flags.writeable = False
    with refused(ValueError, "params['q']", "read-only", keeps=[p, q], opt=opt):
        opt.step(g)
    opt.step({**g, "q": None})  # left alone, it may be anything
    q.flags.writeable = True
    opt.step(g)
    assert [leaf["count"] for leaf in opt.state_dict()["leaves"].values()] == [3, 2]


@pytest.mark.parametrize("case", NOT_OWNED)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_argument_that_cannot_be_updated_in_place(function, case, backend):
    make, error, words = NOT_OWNED[case]
    arrays, chosen = arrays_for(function)
    for name, x in arrays.items():
        optional = inspect.signature(function).parameters[name].default is None
        if name == "g" or (case == "None" and optional and name != "m"):
            continue
        bad = make(x)
        given = {**arrays, name: bad}
        with refused(error, f"{name} ", *words, keeps=given):
            function(**given, **chosen, backend=backend)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_argument_unlike_p(function, backend):
    arrays, chosen = arrays_for(function)
    for name, x in arrays.items():
        if name == "p":
            continue
        for bad in (x[:, :2].copy(), x[0].copy(), np.vstack([x, x]), x.T.copy(), x.astype(int), x.reshape(3, 2)):
            given = {**arrays, name: bad}
            both = (
                (f"{name} is", "int64")
                if bad.dtype == int
                else (f"{name} is {bad.dtype}{bad.shape}", "p is float32(2, 3)")
            )
            with refused(NUMBER, *both, keeps=given):
                function(**given, **chosen, backend=backend)
        if name != "g":
            given = {**arrays, name: np.asfortranarray(x)}
            with refused(ValueError, f"{name} is", "p is", "order", keeps=given):
                function(**given, **chosen, backend=backend)


@pytest.mark.parametrize("case", ["longdouble", "int32", "bool", "object", "other byte order", "masked", "number"])
def test_a_functional_gradient_unlike_p(case, backend):
    make, error, words = GRADIENT_LEAVES[case]
    p, g, m, v = (np.ones(3, np.float32) for _ in range(4))
    with refused(error, "g is", "p is float32(3,)", *words, keeps=[p, g, m, v]):
        fa.adam_step(p, make(g), m, v, t=1, backend=backend)


def test_a_tree_is_no_array_for_a_function(backend):
    x = np.ones(3, np.float32)
    with refused(TypeError, "p is", "list", keeps=x):
        fa.lion_step([x], x.copy(), x.copy(), backend=backend)
    with refused(TypeError, "g is", "dict", keeps=x):
        fa.lion_step(x, {"w": x.copy()}, x.copy(), backend=backend)


def test_an_unused_slot_is_refused_or_left_alone(backend):
    """SGD and RMSprop without momentum have no m: given one, they must neither write to it nor let it into p."""
    g = np.array([np.inf, -np.inf, 1, 2], np.float32)
    for function, method, slots in ((fa.momentum_step, fa.SGD, ()), (fa.rmsprop_step, fa.RMSprop, ("v",))):
        expected, p, m = np.ones(4, np.float32), np.ones(4, np.float32), np.full(4, 7, np.float32)
        method(expected, momentum=0.0, backend=backend).step(g)
        message = ""
        try:
            function(p, g, m=m, **{slot: np.zeros(4, np.float32) for slot in slots}, t=1, momentum=0.0, backend=backend)
        except NUMBER as refusal:
            expected, message = np.ones(4, np.float32), str(refusal)
        assert same_bits(p, expected)
        assert m.tolist() == [7, 7, 7, 7]
        assert not message or message.startswith("m ")


# ---- dense in another axis order; g with other strides, or read-only: works


def laid_out(x):
    """The same values in every order of memory that is dense."""
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)):
        back = np.argsort(order)
        yield x.transpose(order).copy().transpose(back)


def seen_through(g):
    """The same gradient as other people hold it."""
    yield from laid_out(g)
    yield np.repeat(g, 3, axis=-1)[..., ::3]
    yield g[::-1].copy()[::-1]
    yield np.frombuffer(b"." + g.tobytes(), g.dtype, offset=1).reshape(g.shape)
    for frozen_g in laid_out(g):
        frozen_g = frozen_g.copy(order="K")
        frozen_g.flags.writeable = False
        yield frozen_g


@pytest.mark.parametrize("dtype", SIDES)
def test_every_dense_order_of_p_and_every_stride_of_g_works(dtype, backend):
    rng = np.random.default_rng(2)
    start, g = rng.standard_normal((3, 4, 5)).astype(dtype), rng.standard_normal((3, 4, 5)).astype(dtype)
    expected = start.copy()
    plain = fa.Adam(expected, lr=0.1, backend="numpy")
    plain.step(g)
    plain.step(g)
    for p in laid_out(start):
        for held in seen_through(g):
            p[...] = start
            opt, before = fa.Adam(p, lr=0.1, backend=backend), held.tobytes()
            opt.step(held)
            opt.step(held)
            assert same_bits(p, expected)
            assert held.tobytes() == before
            mine, theirs = opt.state_dict()["leaves"]["params"], plain.state_dict()["leaves"]["params"]
            assert frozen(mine) == frozen(theirs)


def test_a_broadcast_gradient_works(backend):
    p, g = np.ones((3, 4), np.float32), np.broadcast_to(np.float32(2), (3, 4))
    fa.SGD(p, lr=0.25, backend=backend).step(g)
    assert p.tolist() == [[0.5] * 4] * 3


def test_a_copied_gradient_is_copied_anew_at_each_step(backend):
    p = np.zeros((3, 4), np.float32)
    opt = fa.SGD(p, lr=1.0, backend=backend)
    for k in range(1, 4):
        opt.step(np.full((4, 3), k, np.float32).T)
    assert p.tolist() == [[-6.0] * 4] * 3


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_take_every_dense_order_and_every_stride_of_g(function, backend):
    arrays, chosen = arrays_for(function)
    cube = {name: np.stack([x, 2 * x]) for name, x in arrays.items()}
    expected = deepcopy(cube)
    function(**expected, **chosen, backend="numpy")
    for order in ((2, 1, 0), (0, 2, 1)):
        for held in seen_through(cube["g"]):
            given = {k: np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order)) for k, x in cube.items()}
            given["g"] = held
            function(**given, **chosen, backend=backend)
            assert [name for name in cube if not same_bits(given[name], expected[name])] == []


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_subclasses_of_arrays_step_like_arrays(backend, tmp_path):
    n = 10_000  # more than one chunk
    start, g = np.random.default_rng(3).standard_normal((2, 1, n)).astype(np.float32)
    expected = start.copy()
    fa.Adam(expected, backend="numpy").step(g)
    mapped = np.memmap(tmp_path / "p", np.float32, "w+", shape=(1, n))
    mapped[:] = start
    for p, held in ((mapped, g), (start.copy(), np.matrix(g)), (np.matrix(start), g)):
        fa.Adam(p, backend=backend).step(held)
        assert same_bits(np.asarray(p), expected)


def test_memory_at_odd_addresses_works(backend):
    p, g = (np.frombuffer(bytearray(1 + 4 * 5), np.float32, offset=1) for _ in range(2))
    g[:] = [1, 2, 3, 4, 5]
    assert not p.flags.aligned
    fa.SGD(p, lr=0.5, backend=backend).step(g)
    assert p.tolist() == [-0.5, -1, -1.5, -2, -2.5]


# ---- overlapping p, m, v; the same parameter twice; p that is g


def test_parameters_that_share_memory(backend):
    x = np.arange(12, dtype=np.float32)
    buffer = fa.FlatBuffer({"w": x})
    for bad, names in (
        ({"a": x, "b": x}, ["params['a']", "params['b']"]),
        ([x, x[3:5]], ["params[0]", "params[1]"]),
        ([x[:7], x[6:]], ["params[0]", "params[1]"]),
        ([x[1:2], x[:2]], ["params[0]", "params[1]"]),
        ([x.reshape(3, 4), {"t": x.reshape(3, 4).T}], ["params[0]", "params[1]['t']"]),
        ([x[:4].view(np.float32), x[2:4].view(np.float64)], ["params[0]", "params[1]"]),
        ([{"params": x}, {"params": [x[:1]]}], ["params[0]", "params[1][0]"]),
        ([buffer, buffer], ["params[0]", "params[1]"]),
        ({"flat": buffer, "view": buffer.views["w"]}, ["params['flat']", "params['view']"]),
    ):
        with refused(ValueError, *names, "share memory", keeps=[x, buffer]):
            fa.Adam(bad, backend=backend)


def test_neighbours_do_not_share_memory(backend):
    x = np.ones(12, np.float32)
    fa.SGD([x[:5], x[5:6], x[6:6], x[6:]], lr=0.5, backend=backend).step(np.split(np.ones(12, np.float32), [5, 6, 6]))
    assert x.tolist() == [0.5] * 12


def test_gradients_that_share_memory_with_parameters(backend):
    home = np.arange(26, dtype=np.float32)
    a, b = home[:8], home[10:18].reshape(2, 4)
    opt = fa.Adam({"a": a, "b": b}, backend=backend)
    outside, square = np.ones(8, np.float32), np.ones((2, 4), np.float32)
    for bad, leaf, touched in (
        ({"a": a, "b": square}, "a", "a"),
        ({"a": a[:], "b": square}, "a", "a"),
        ({"a": a[::-1], "b": square}, "a", "a"),
        ({"a": b.reshape(-1), "b": square}, "a", "b"),
        ({"a": home[1:9], "b": square}, "a", "a"),
        ({"a": home[9:17], "b": None}, "a", "b"),
        ({"a": home[9:25:2], "b": square}, "a", "b"),
        ({"a": outside, "b": b}, "b", "b"),
        ({"a": outside, "b": home[2:10].reshape(2, 4)}, "b", "a"),
        ({"a": None, "b": home[17:25].reshape(2, 4)}, "b", "b"),
        ({"a": outside, "b": np.broadcast_to(home[7:8], (2, 4))}, "b", "a"),
    ):
        with refused(ValueError, f"grads['{leaf}']", f"params['{touched}']", "share memory", keeps=home, opt=opt):
            opt.step(bad)
    before = home.copy()
    opt.step({"a": home[18:], "b": square})  # right behind b: memory of its own
    assert (a != before[:8]).all()
    assert same_bits(home[18:], before[18:])


def test_gradients_that_share_memory_with_a_flat_buffer(backend):
    buffer = fa.FlatBuffer([np.ones(4, np.float32), np.ones(3, np.float32)])
    opt = fa.Adam(buffer, backend=backend)
    for bad in (buffer, buffer.array, buffer.array[::-1]):
        with refused(ValueError, "grads", "params", "share memory", keeps=buffer, opt=opt):
            opt.step(bad)


def test_gradients_may_share_memory_with_each_other(backend):
    shared = np.random.default_rng(4).standard_normal(8).astype(np.float32)
    one, other = [np.ones(6, np.float32), np.ones(6, np.float32)], [np.ones(6, np.float32), np.ones(6, np.float32)]
    fa.Adam(one, backend=backend).step([shared[:6], shared[2:]])
    fa.Adam(other, backend=backend).step([shared[:6].copy(), shared[2:].copy()])
    assert same_bits(np.stack(one), np.stack(other))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arguments_that_share_memory(function, backend):
    arrays, chosen = arrays_for(function)
    home = np.arange(1, 9, dtype=np.float32)
    for one, other in combinations(arrays, 2):
        for low, high in ((0, 0), (0, 1), (2, 0)):  # the same, shifted ahead, shifted back
            given = {**arrays, one: home[low : low + 6].reshape(2, 3), other: home[high : high + 6].reshape(2, 3)}
            with refused(ValueError, f"{one} ", f"{other} ", " and ", "share memory", keeps=given):
                function(**given, **chosen, backend=backend)


# ---- lr, eps, betas, weight decay out of range, NaN or infinite

ANY = {"dampening"}  # every finite number will do, as in torch
BELOW_1 = {"betas"}
OR_NONE, UNLIMITED = {"beta3", "growth_rate"}, {"growth_rate"}  # None says something there, infinity the same
NUMBERS = [
    (method, name)
    for method in METHODS
    for name, x in inspect.signature(method.rule).parameters.items()
    if not isinstance(x.default, bool)
]


def bad_numbers(name, betas=2):
    """(value, error, what the error says) for one hyperparameter."""
    one = [(x, ValueError, repr(x)) for x in (np.nan, np.inf, -np.inf)]
    one += [] if name in ANY else [(x, ValueError, repr(x)) for x in (-1.0, -1e-300)]
    one += [("0.1", TypeError, "'0.1'"), (None, TypeError, "None"), (1j, TypeError, "1j")]
    one = [x for x in one if not (x[0] is None and name in OR_NONE) and not (x[0] == np.inf and name in UNLIMITED)]
    if name not in BELOW_1:
        return [*one, ([0.1], TypeError, "[0.1]")]
    one += [(1.0, ValueError, "1.0"), (1.5, ValueError, "1.5")]
    more = (0.99,) * (betas - 2)
    pairs = [((x, 0.9, *more), error, text) for x, error, text in one]
    pairs += [((*more, 0.9, x), error, text) for x, error, text in one]
    odd = (0.9, "0.9", None, (0.9,), (0.9, 0.99, 0.999, *more), {0.9, 0.99})
    return pairs + [(x, NUMBER, repr(x)) for x in odd]


@pytest.mark.parametrize(("method", "name"), NUMBERS, ids=[f"{m.__name__}-{n}" for m, n in NUMBERS])
def test_a_number_out_of_range(method, name, backend):
    p, q, g = np.ones(3, np.float32), np.ones(3, np.float32), np.ones(3, np.float32)
    plain, grouped = method(p, backend=backend), method([{"params": q}, {"params": []}], backend=backend)
    plain.step(g)
    for value, error, text in bad_numbers(name, len(getattr(method.rule, "betas", ()))):
        with refused(error, name, text, keeps=p):
            method(p.copy(), **{name: value}, backend=backend)
        with refused(error, "params[1]", name, text, keeps=p):
            method([{"params": p.copy()}, {"params": [], name: value}], backend=backend)
        with refused(error, name, text, keeps=p, opt=plain):
            setattr(plain.groups[0], name, value)
        with refused(error, "groups[1]", name, text, keeps=q, opt=grouped):
            setattr(grouped.groups[1], name, value)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_number_out_of_range_for_a_function(function, backend):
    method = {"momentum_step": fa.SGD, "schedulefree_step": fa.ScheduleFreeAdamW}.get(function.__name__) or next(
        m for m in METHODS if f"{m.__name__.lower()}_step" == function.__name__
    )
    arrays, chosen = arrays_for(function)
    for name in [name for of, name in NUMBERS if of is method]:
        for value, error, text in bad_numbers(name, len(getattr(method.rule, "betas", ()))):
            with refused(error, name, text, keeps=arrays):
                function(**arrays, **{**chosen, name: value}, backend=backend)


def test_an_integer_beyond_every_float(backend):
    """float(10**400) is an OverflowError, which is no ValueError."""
    p, huge = np.ones(3, np.float32), 10**400
    opt = fa.Adam(p, backend=backend)
    for name, value in (("lr", huge), ("betas", (0.9, huge)), ("eps", huge), ("weight_decay", huge)):
        with refused(ValueError, name, keeps=p):
            fa.Adam(p, **{name: value}, backend=backend)
        with refused(ValueError, name, keeps=p, opt=opt):
            setattr(opt.groups[0], name, value)
    with refused(ValueError, "grad_scale", keeps=p, opt=opt):
        opt.step(np.ones(3, np.float32), grad_scale=huge)
    with refused(ValueError, "t is", keeps=p):
        fa.adam_step(p, p.copy(), p.copy(), p.copy(), t=huge, backend=backend)  # counts are of 64 bits


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1, 5, "1", None])
def test_a_product_of_momenta_out_of_range(value, backend):
    """A product of numbers from 0 to 1 lies there too; beyond, 1 - mu_product would step the other way."""
    arrays, chosen = arrays_for(fa.nadam_step)
    with refused(NUMBER, "mu_product", repr(value), keeps=arrays):
        fa.nadam_step(**arrays, **chosen, mu_product=value, backend=backend)


@pytest.mark.parametrize("value", [1, 0, "yes", None, 0.5])
def test_a_switch_that_is_neither_true_nor_false(value):
    p = np.ones(3, np.float32)
    for method in METHODS:
        for name, x in inspect.signature(method.rule).parameters.items():
            if isinstance(x.default, bool):
                with refused(TypeError, name, repr(value), keeps=p):
                    method(p, **{name: value})


def test_nesterov_needs_momentum_and_no_dampening(backend):
    p = np.ones(3, np.float32)
    opt = fa.SGD(p, momentum=0.9, nesterov=True, backend=backend)
    for bad in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with refused(ValueError, "nesterov", "momentum", "dampening", keeps=p):
            fa.SGD(p, nesterov=True, **bad, backend=backend)
    with refused(ValueError, "nesterov", "dampening", "0.1", keeps=p, opt=opt):
        opt.groups[0].dampening = 0.1


def test_numbers_at_the_edge_are_fine(backend):
    p = np.ones(3, np.float32)
    opt = fa.Adam(p, lr=0, betas=[0, 0.0], eps=0, weight_decay=np.float32(0), backend=backend)
    opt.step(np.ones(3, np.float32))
    assert p.tolist() == [1, 1, 1]
    opt.groups[0].lr = np.array(0.5)
    opt.groups[0].betas = (np.float64(0), np.float32(0))
    opt.step(np.full(3, -4, np.float32))  # without memory and eps: lr times the sign
    assert p.tolist() == [1.5] * 3
    assert opt.groups[0].betas == (0.0, 0.0)


# ---- eps > 0 that rounds to 0 in the compute type


@pytest.mark.parametrize(
    "method", [m for m in METHODS if "eps" in inspect.signature(m).parameters], ids=lambda m: m.__name__
)
def test_eps_that_rounds_to_zero(method, backend):
    single, double = np.ones(3, np.float32), np.ones(3)
    words = "eps", "1e-46", "float32"
    with refused(ValueError, *words, keeps=single):
        method(single, eps=1e-46, backend=backend)
    with refused(ValueError, *words, keeps=[single, double]):
        method([double, single], eps=1e-46, backend=backend)
    with refused(ValueError, *words, "[1]", keeps=[single, double]):
        method([{"params": double}, {"params": single, "eps": 1e-46}], backend=backend)
    opt = method([{"params": double}, {"params": single}], eps=0, backend=backend)
    with refused(ValueError, *words, "groups[1]", keeps=[single, double], opt=opt):
        opt.groups[1].eps = 1e-46
    opt.groups[0].eps = 1e-46  # float64 holds it
    opt.groups[1].eps = 1e-45  # the smallest subnormal of float32
    for _ in range(2):  # the first of ADOPT moves nothing
        opt.step([np.ones(3), np.ones(3, np.float32)])
    assert (double < 1).all()
    assert (single < 1).all()


def test_eps_that_rounds_to_zero_for_a_function(backend):
    arrays, chosen = arrays_for(fa.adam_step)
    with refused(ValueError, "eps", "1e-46", "float32", keeps=arrays):
        fa.adam_step(**arrays, **chosen, eps=1e-46, backend=backend)


# ---- numbers that overflow on the way to the kernel, and schedules that go wrong


@pytest.mark.parametrize(
    ("dtype", "bad", "words"),
    [
        (np.float32, {"eps": 1e39}, ["eps"]),
        (np.float32, {"eps": 1e300}, ["eps"]),
        (np.float32, {"weight_decay": 1e39}, ["1e+39"]),
        (np.float32, {"lr": 1e38}, ["lr", "1e+38"]),  # lr / (1 - 0.9) is beyond float32
        (np.float32, {"lr": 1e30, "weight_decay": 1e30, "decoupled_weight_decay": True}, ["lr", "1e+30"]),
        (np.float64, {"lr": 1.7e308}, ["lr", "1.7e+308"]),
        (np.float64, {"lr": 1e300, "weight_decay": 1e300, "decoupled_weight_decay": True}, ["lr", "1e+300"]),
    ],
)
def test_coefficients_that_overflow(dtype, bad, words, backend):
    p, g = np.ones(3, dtype), np.ones(3, dtype)

    def construct_and_step():
        opt = fa.Adam(p, **bad, backend=backend)
        before = frozen(opt.state_dict())
        try:
            opt.step(g)
        finally:
            assert frozen(opt.state_dict()) == before

    with refused(ValueError, *words, keeps=p):
        construct_and_step()
    m, v = np.zeros(3, dtype), np.zeros(3, dtype)
    chosen = {"decoupled" if k == "decoupled_weight_decay" else k: x for k, x in bad.items()}
    with refused(ValueError, *words, keeps=[p, m, v]):
        fa.adam_step(p, g, m, v, t=1, **chosen, backend=backend)


def test_an_overflow_says_which_number_it_was(backend):
    """Of the ten numbers an Adam kernel takes, the reader must find the one to mend."""
    p = np.ones(3, np.float32)
    opt = fa.Adam(p, backend=backend)
    opt.groups[0].lr = 1e38
    with refused(ValueError, "step_size", keeps=p, opt=opt):
        opt.step(np.ones(3, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "1", None, 1j, 1e39, np.ones(2)], ids=repr)
def test_a_scale_of_gradients_that_is_no_number(value, backend):
    params, grads, opt = trained(backend)
    with refused(NUMBER, "grad_scale", repr(value), keeps=[params, grads], opt=opt):
        opt.step(grads, grad_scale=value)
    arrays, chosen = arrays_for(fa.adam_step)
    with refused(NUMBER, "grad_scale", repr(value), keeps=arrays):
        fa.adam_step(**arrays, **chosen, grad_scale=value, backend=backend)


@pytest.mark.parametrize(
    ("value", "error"),
    [(np.nan, ValueError), (np.inf, ValueError), (-1e-3, ValueError), ("1", TypeError), (None, TypeError)],
)
@pytest.mark.parametrize("uneven", [False, True])
def test_a_schedule_that_goes_wrong(value, error, uneven, backend):
    """The second group's schedule fails at the second step, after the first group's numbers were worked out."""
    a, b = np.ones(3, np.float32), [np.ones(2, np.float32), np.ones(4, np.float32)]
    schedule = {1: 0.1, 2: value, 3: 0.1}.get
    opt = fa.NAdam([{"params": a}, {"params": b, "lr": schedule}], lr=lambda t: 0.5, backend=backend)
    grads = [np.ones(3, np.float32), [np.ones(2, np.float32), None if uneven else np.ones(4, np.float32)]]
    opt.step(grads)
    with refused(error, "groups[1]", "lr(2)", repr(value), keeps=[a, b], opt=opt):
        opt.step(grads)
    assert opt.t == 1
    opt.groups[1].lr = 0.1
    opt.step(grads)
    assert opt.t == 2


def test_a_schedule_that_raises(backend):
    p, g = np.ones(3, np.float32), np.ones(3, np.float32)
    opt = fa.Adam(p, lr={1: 0.1}.__getitem__, backend=backend)
    opt.step(g)
    with refused(KeyError, "2", keeps=p, opt=opt):
        opt.step(g)
    with refused(ValueError, "lr(1)", "nan", keeps=p):
        fa.adam_step(p, g, g.copy(), g.copy(), t=1, lr=lambda t: np.nan, backend=backend)


# ---- unknown hyperparameters, groups that are none


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_an_unknown_hyperparameter(method):
    p = np.ones(3, np.float32)
    opt = method(p)
    with refused(TypeError, "learning_rate", keeps=p):
        method(p, learning_rate=0.1)
    with refused(TypeError, "positional", keeps=p):
        method(p, *[0.1] * 12)
    with refused(TypeError, "params[0]", "'learning_rate'", "lr", keeps=p):
        method([{"params": p, "learning_rate": 0.1}])
    with refused(TypeError, "params[0]", "'max_norms'", "max_norm", keeps=p):
        method([{"params": p, "max_norms": 0.1}])
    with refused(AttributeError, "learning_rate", method.__name__, keeps=p, opt=opt):
        opt.groups[0].learning_rate = 0.1
    with refused(AttributeError, "learning_rate", method.__name__, keeps=p, opt=opt):
        opt.groups[0].learning_rate  # noqa: B018


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_unknown_argument_of_a_function(function):
    arrays, chosen = arrays_for(function)
    with refused(TypeError, "learning_rate", keeps=arrays):
        function(**arrays, **chosen, learning_rate=0.1)


def test_amsgrad_of_a_function_is_said_by_its_slot():
    arrays, chosen = arrays_for(fa.adam_step)
    del arrays["vmax"]
    with refused(TypeError, "amsgrad", keeps=arrays):
        fa.adam_step(**arrays, **chosen, amsgrad=True)


def test_groups_that_are_none():
    a, b = np.ones(3, np.float32), np.ones(2, np.float32)
    for bad, error, words in (
        ([{"params": a, "lr": 0.1}, b], TypeError, ["params[0]['lr'] is float"]),  # a tree, with a number for a leaf
        ([{"params": a}, {"weights": b, "lr": 0.1}], TypeError, ["params[1]['lr'] is float"]),
        ([{"params": a}, {"params": b, "beta": 0.1}], TypeError, ["params[1]", "'beta'", "betas"]),
        ([{"params": a}, {"params": b, "backend": "numpy"}], TypeError, ["params[1]", "'backend'"]),
        ([{"params": a}, {"params": None}], TypeError, ["params[1] is NoneType"]),
        ([{"params": a, "betas": (0.9, 1.0)}], ValueError, ["params[0]", "betas[1] is 1.0"]),
        ([{"params": a, 3: 4}], TypeError, ["params[0]", "3"]),
        (
            [{"params": a, "leaves": 4}],
            TypeError,
            ["params[0] has 'leaves', which is a name that groups have themselves"],
        ),
        (
            [{"params": a, "check": 4}],
            TypeError,
            ["params[0] has 'check', which is a name that groups have themselves"],
        ),
        ([{"params": a, "_mine": 4}], TypeError, ["params[0] has '_mine', which begins with _: expected another name"]),
        (iter([a]), TypeError, ["params is", "iterator"]),
        (None, TypeError, ["params is NoneType"]),
    ):
        with refused(error, *words, keeps=[a, b]):
            fa.Adam(bad)
    with refused(TypeError, "params[0]", "'decoupled_weight_decay'", keeps=a):
        fa.AdamW([{"params": a, "decoupled_weight_decay": False}])


def test_adamw_stays_decoupled(backend):
    p = np.ones(3, np.float32)
    opt = fa.AdamW(p, backend=backend)
    with refused((AttributeError, *NUMBER), "decoupled_weight_decay", "AdamW", keeps=p, opt=opt):
        opt.groups[0].decoupled_weight_decay = False
    with refused(TypeError, "decoupled_weight_decay", keeps=p):
        fa.AdamW(p, decoupled_weight_decay=False, backend=backend)


@pytest.mark.parametrize("seed", [1.5, "1", None, True, np.array(1.5)])
def test_a_seed_that_is_no_integer(seed):
    with refused((TypeError, ValueError), "seed is", repr(seed)):
        fa.Adam(np.ones(3, np.float32), seed=seed)


def test_the_base_class_is_no_method():
    with refused(TypeError, "Optimizer"):
        fa.Optimizer(np.ones(3, np.float32))


# ---- wrong layouts of FlatBuffer


def test_flat_gradients_of_another_layout(backend):
    tree = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}
    buffer = fa.FlatBuffer(tree)
    opt = fa.Adam({"model": buffer}, backend=backend)
    opt.step({"model": buffer.zeros_like()})
    for bad, error, words in (
        (fa.FlatBuffer({"a": tree["a"], "c": tree["b"]}), ValueError, ["'b'", "'c'"]),
        (fa.FlatBuffer({"b": tree["b"], "a": tree["a"]}), ValueError, ["'a'", "'b'"]),
        (fa.FlatBuffer({"a": tree["a"].T, "b": tree["b"]}), ValueError, ["(3, 2)", "(2, 3)"]),
        (
            fa.FlatBuffer({"a": np.ones((2, 2), np.float32), "b": np.ones(6, np.float32)}),
            ValueError,
            ["(2, 2)", "(2, 3)"],
        ),
        (fa.FlatBuffer({"a": tree["a"]}), ValueError, ["'b'"]),
        (fa.FlatBuffer({**tree, "c": tree["b"]}), ValueError, ["'c'"]),
        (fa.FlatBuffer({}), ValueError, ["'a'"]),
        (np.ones(9, np.float32), ValueError, ["float32(9,)", "(10,)"]),
        (np.ones((10, 1), np.float32), ValueError, ["float32(10, 1)", "(10,)"]),
        (np.ones(10, int), TypeError, ["int64(10,)", "float32"]),
        (tree, TypeError, ["dict"]),
    ):
        with refused(error, "grads['model']", "params['model']", *words, keeps=buffer, opt=opt):
            opt.step({"model": bad})


# ---- zero-size arrays, empty groups: fine; t advances


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_nothing_to_do_is_fine_and_counts(method, backend):
    def none(*shape):
        return np.empty(shape, np.float32)

    for params, grads in (
        (none(0), none(0)),
        (none(3, 0, 2), none(3, 0, 2)),
        (none(0, 4).T, none(4, 0)),
        ([none(0), none(0, 3)], [none(0), none(0, 3)]),
        ({}, {}),
        ([], []),
        ((), ()),
        ({"a": {}, "b": [(), []]}, {"a": {}, "b": [(), []]}),
        ([{"params": []}], [[]]),
        ([{"params": {}}, {"params": none(0), "lr": 0.5}], [{}, none(0)]),
        (fa.FlatBuffer({}), none(0)),
        (fa.FlatBuffer([none(0)]), fa.FlatBuffer([none(0)])),
    ):
        counts = []
        opt = method(params, lr=lambda t, counts=counts: counts.append(t) or 0.1, backend=backend)
        for _ in range(3):
            opt.step(grads)
        assert opt.t == 3
        assert set(counts) == {1, 2, 3}
        assert [leaf["count"] for leaf in opt.state_dict()["leaves"].values()] == [3] * len(opt.state_dict()["leaves"])


def test_nothing_beside_something(backend):
    rng = np.random.default_rng(5)
    g = rng.standard_normal(5).astype(np.float32)
    for case in variants(maximize=False):
        method, chosen = case
        beside, alone = np.ones(5, np.float32), np.ones(5, np.float32)
        params = [
            {"params": []},
            {"params": [np.empty(0, np.float32), beside]},
            {"params": np.empty((0, 2), np.float32)},
        ]
        opt, plain = method(params, backend=backend, **chosen), method(alone, backend=backend, **chosen)
        for _ in range(2):
            opt.step([[], [np.empty(0, np.float32), g], np.empty((0, 2), np.float32)])
            plain.step(g)
        assert same_bits(beside, alone)
        assert opt.t == 2


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nothing_to_do_for_a_function(function, backend):
    arrays, chosen = arrays_for(function, n=0)
    before = frozen(arrays)
    function(**arrays, **chosen, backend=backend)
    assert frozen(arrays) == before


# ---- t < 1, t not an integer


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_count_that_is_none(function, backend):
    arrays, chosen = arrays_for(function)
    for t, error in (
        (0, ValueError),
        (-1, ValueError),
        (np.int64(0), ValueError),
        (-(10**30), ValueError),
        (1.5, ValueError),
        (2.0, ValueError),
        (np.float32(2), ValueError),
        (np.nan, ValueError),
        (np.array(1.5), NUMBER),
        (np.array([1, 2]), NUMBER),
        ("1", NUMBER),
        (None, NUMBER),
        (True, NUMBER),
    ):
        with refused(error, "t is", repr(t)[:20], keeps=arrays):
            function(**arrays, **{**chosen, "t": t}, backend=backend)


def test_counts_of_other_integer_types_are_fine(backend):
    results = []
    for t in (3, np.int32(3), np.uint8(3), np.array(3)):
        arrays, _ = arrays_for(fa.adam_step)
        fa.adam_step(**arrays, t=t, backend=backend)
        results.append(frozen(arrays))
    assert results == results[:1] * 4


# ---- a backend that cannot run here


def test_an_unknown_backend(monkeypatch):
    p = np.ones(3, np.float32)
    for bad in ("torch", "Numba", "", None, 3):
        with refused(NUMBER, "backend is", repr(bad), "auto", "numba", "numpy", keeps=p):
            fa.Adam(p, backend=bad)
        with refused(NUMBER, "backend is", repr(bad), "auto", "numba", "numpy", keeps=p):
            fa.lion_step(p, p.copy(), p.copy(), backend=bad)
    monkeypatch.setenv("FASTADAM_BACKEND", "fastest")
    for door in (lambda: fa.Adam(p), lambda: fa.lion_step(p, p.copy(), p.copy())):
        with refused(ValueError, "FASTADAM_BACKEND is 'fastest'", "numba", "numpy", keeps=p):
            door()
    assert fa.Adam(p, backend="numpy").backend == "numpy"  # who asks by name does not ask the environment


def test_the_environment_chooses_where_nobody_else_does(monkeypatch):
    p = np.ones(3, np.float32)
    for name in ("numpy", "numba"):
        monkeypatch.setenv("FASTADAM_BACKEND", name)
        assert fa.Adam(p).backend == name
        assert fa.Adam(p, backend="numpy").backend == "numpy"
    monkeypatch.setenv("FASTADAM_BACKEND", "auto")
    assert fa.Adam(p).backend == "numba"


def test_a_backend_that_cannot_run_here(monkeypatch):
    p = np.ones(3, np.float32)
    assert {"numba": "ready", "numpy": "ready"}.items() <= fa.backends().items()
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    status = fa.backends()
    assert status["numpy"] == "ready"
    assert "numba" in status["numba"]
    assert "pip install numba" in status["numba"]
    for door in (lambda: fa.Adam(p, backend="numba"), lambda: fa.lion_step(p, p.copy(), p.copy(), backend="numba")):
        with refused(RuntimeError, "backend is 'numba'", "pip install numba", keeps=p):
            door()
    monkeypatch.setenv("FASTADAM_BACKEND", "numba")
    with refused(RuntimeError, "FASTADAM_BACKEND is 'numba'", "pip install numba", keeps=p):
        fa.Adam(p)
    monkeypatch.setenv("FASTADAM_BACKEND", "auto")
    with pytest.warns(RuntimeWarning, match="pip install numba"):
        opt = fa.Adam(p)
    assert opt.backend == "numpy"


# ---- threads


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, NUMBER), ("2", NUMBER), (None, NUMBER), (True, NUMBER)]
)
def test_a_number_of_threads_that_is_none(n, error):
    before = fa.get_num_threads()
    with refused(error, "n is", repr(n)):
        fa.set_num_threads(n)
    with refused(error, "n is", repr(n)), fa.num_threads(n):
        pass
    assert fa.get_num_threads() == before


# ---- hostile values are not bad input: they go through, without a warning


def test_infinities_and_nans_propagate_without_a_warning(backend):
    g = hostile(np.random.default_rng(6), 500, np.float32)
    g[:3] = [np.nan, np.inf, -np.inf]
    for method, chosen in variants(maximize=False):
        p = np.ones(500, np.float32)
        opt = method(p, backend=backend, **chosen)
        opt.step(g)
        assert np.isnan(p[0])
        alone = np.isfinite(g) & (np.abs(g) < 1e3) & (not opt.sums_first)  # sums take a NaN to the whole leaf
        assert np.isfinite(p[alone]).all()
