"""FlatBuffer: where everything lies, that views and array are one memory, and that steps cannot tell it from a tree."""

import copy
import mmap
import pickle
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from cases import METHODS, elementwise, hostile, label, same_bits, sums_first, variants

import fastadam as fa

Layer = namedtuple("Layer", "weight bias")


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    return request.param


def tree(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def make(*shape):
        return np.asarray(rng.standard_normal(shape), dtype)

    return {"dense": {"weight": make(3, 5), "bias": make(5)}, "out": [make(5, 2), (make(), make(0, 4)), make(2, 1, 3)]}


NAMES = ["['dense']['weight']", "['dense']['bias']", "['out'][0]", "['out'][1][0]", "['out'][1][1]", "['out'][2]"]
DENSE, OUT = [(3, 5), (5,)], [(5, 2), (), (0, 4), (2, 1, 3)]


def leaves(x):
    if isinstance(x, dict):
        return [leaf for value in x.values() for leaf in leaves(value)]
    return [leaf for value in x for leaf in leaves(value)] if isinstance(x, (list, tuple)) else [x]


def all_same(ours, theirs):
    return [k for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not same_bits(a, b)] == []


# ---- the layout


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
def test_the_layout(dtype):
    source = tree(dtype=dtype)
    buffer = fa.FlatBuffer(source)
    assert buffer.names == NAMES
    assert buffer.shapes == DENSE + OUT
    assert buffer.offsets == [0, 15, 20, 30, 31, 31]
    assert (buffer.array.shape, buffer.array.dtype) == ((37,), dtype)
    assert buffer.array.flags.c_contiguous
    assert buffer.array.flags.writeable
    assert same_bits(buffer.array, np.concatenate([x.reshape(-1) for x in leaves(source)]))
    assert list(buffer.views) == ["dense", "out"]
    assert [type(x) for x in (buffer.views["dense"], buffer.views["out"], buffer.views["out"][1])] == [
        dict,
        list,
        tuple,
    ]
    for view, x, offset in zip(leaves(buffer.views), leaves(source), buffer.offsets, strict=True):
        assert same_bits(view, x)
        assert view.flags.c_contiguous
        assert view.ctypes.data == buffer.array.ctypes.data + offset * buffer.array.itemsize or not view.size


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
def test_every_buffer_begins_at_a_cache_line(dtype):
    kept = [fa.FlatBuffer([np.ones(n, dtype)]) for n in [*range(1, 40), 1000, 2**20 + 3]]
    assert {buffer.array.ctypes.data % 64 for buffer in kept} == {0}


def test_values_are_copied_and_memory_is_shared():
    source = tree()
    before = [x.copy() for x in leaves(source)]
    buffer = fa.FlatBuffer(source)
    assert not any(np.shares_memory(x, buffer.array) for x in leaves(source))
    buffer.array[:] = np.arange(37)
    assert [x.reshape(-1).tolist() for x in leaves(buffer.views)][1] == [15, 16, 17, 18, 19]
    buffer.views["out"][2][1, 0, 2] = -1
    buffer.views["out"][1][0][...] = -2
    assert (buffer.array[36], buffer.array[30]) == (-1, -2)
    assert all_same(leaves(source), before)


def test_one_array_is_a_tree_too():
    for x in (np.ones((2, 3)), np.array(5.0)):
        buffer = fa.FlatBuffer(x)
        assert (buffer.names, buffer.shapes, buffer.offsets, buffer.array.shape) == ([""], [x.shape], [0], (x.size,))
        assert same_bits(buffer.views, x)
        assert np.shares_memory(buffer.views, buffer.array)


def test_other_orders_strides_and_owners_are_packed_in_c_order():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    frozen = x.copy()
    frozen.flags.writeable = False
    odd = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    for same in (
        np.asfortranarray(x),
        x.transpose(2, 0, 1).copy().transpose(1, 2, 0),
        np.repeat(x, 2, 2)[..., ::2],
        odd,
    ):
        assert fa.FlatBuffer({"x": same}).array.tolist() == list(range(24))
    assert fa.FlatBuffer(frozen).array.flags.writeable
    assert fa.FlatBuffer([x[::-1], np.broadcast_to(x[:1, :1, :1], (1, 1, 2))]).array.tolist()[-3:] == [11, 0, 0]


def test_the_same_array_twice_becomes_two():
    x = np.ones(3, np.float32)
    buffer = fa.FlatBuffer([x, x])
    buffer.views[0][:] = 2
    assert buffer.array.tolist() == [2, 2, 2, 1, 1, 1]


def test_named_tuples_stay_what_they_are():
    views = fa.FlatBuffer([Layer(np.ones((2, 2), np.float32), np.ones(2, np.float32))]).views
    assert type(views[0]) is Layer
    assert views[0].bias.tolist() == [1, 1]


@pytest.mark.parametrize("empty", [{}, [], (), {"a": [], "b": ({},)}, [np.empty((0, 3), np.float32)]])
def test_nothing_makes_an_empty_buffer(empty, backend):
    buffer = fa.FlatBuffer(empty)
    assert buffer.array.shape == (0,)
    assert len(buffer.names) == len(buffer.shapes) == len(buffer.offsets) == len(leaves(empty))
    assert type(buffer.views) is type(empty)
    opt = fa.Adam(buffer, backend=backend)
    opt.step(buffer.zeros_like())
    opt.step(np.empty(0, np.float32))
    assert opt.t == 2


def test_zeros_like_is_a_home_for_gradients():
    buffer = fa.FlatBuffer(tree())
    before = buffer.array.copy()
    home = buffer.zeros_like()
    assert type(home) is fa.FlatBuffer
    assert (home.names, home.shapes, home.offsets) == (buffer.names, buffer.shapes, buffer.offsets)
    assert home.array.tolist() == [0] * 37
    assert not np.shares_memory(home.array, buffer.array)
    home.views["dense"]["bias"][:] = 3
    assert home.array[15:20].tolist() == [3] * 5
    assert same_bits(buffer.array, before)
    assert buffer.same_layout(home)
    assert home.same_layout(buffer)


def test_which_layouts_are_the_same():
    buffer = fa.FlatBuffer({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)})
    same = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    assert buffer.same_layout(fa.FlatBuffer(same))
    for other in (
        {"a": same["a"], "c": same["b"]},
        {"b": same["b"], "a": same["a"]},
        {"a": same["a"].T, "b": same["b"]},
        {"a": same["a"].reshape(-1), "b": same["b"]},
        {"a": same["a"]},
        {**same, "c": np.empty(0, np.float32)},
        {key: x.astype(np.float64) for key, x in same.items()},
        np.ones(10, np.float32),
    ):
        assert not buffer.same_layout(fa.FlatBuffer(other))


def test_a_buffer_shows_what_it_is():
    assert repr(fa.FlatBuffer(tree())) == "FlatBuffer(6 arrays in float32(37,))"


# ---- what cannot be packed


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.ones(3, np.float64), ["tree['b'][0] is float64(3,)", "tree['a'] is float32(2,)"]),
        (np.ones(3, np.int32), ["tree['b'][0] is int32(3,)", "float32"]),
        (np.ones(3, np.float16), ["tree['b'][0] is float16(3,)", "tree['a'] is float32(2,)"]),
        (np.ones(3, object), ["tree['b'][0] is object(3,)", "float32"]),
        (np.ones(3, np.dtype(np.float32).newbyteorder()), ["tree['b'][0] is", "f4", "float32"]),
        (np.ma.array([1.0, 2.0, 3.0], np.float32, mask=[0, 1, 0]), ["tree['b'][0] is", "MaskedArray"]),
        (np.float32(1), ["tree['b'][0] is", "ndarray"]),
        (1.0, ["tree['b'][0] is float", "ndarray"]),
        (None, ["tree['b'][0] is NoneType", "ndarray"]),
        ("weights", ["tree['b'][0] is str", "ndarray"]),
        (fa.FlatBuffer([]), ["tree['b'][0] is FlatBuffer", "ndarray"]),
    ],
    ids=lambda x: "" if isinstance(x, list) else type(x).__name__,
)
def test_what_cannot_be_packed(bad, words):
    with pytest.raises(TypeError) as caught:
        fa.FlatBuffer({"a": np.ones(2, np.float32), "b": [bad]})
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


# ---- steps


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("case", elementwise(), ids=label)
def test_a_buffer_steps_like_the_tree_it_came_from(case, dtype, backend):
    """With flat gradients, with a second buffer, and in turn: the same bits as the tree."""
    method, chosen = case
    plain = tree(dtype=dtype)
    flat, paired, mixed = (fa.FlatBuffer(plain) for _ in range(3))
    home = paired.zeros_like()
    of_tree = method(plain, backend=backend, **chosen)
    opts = [method(buffer, backend=backend, **chosen) for buffer in (flat, paired, mixed)]
    for step in range(1, 6):
        grads = tree(step, dtype)
        together = hostile(np.random.default_rng(step), 37, dtype)
        together[::2] = np.concatenate([x.reshape(-1) for x in leaves(grads)])[::2]
        home.array[:] = together
        of_tree.step(copy.deepcopy(home.views))
        opts[0].step(together)
        opts[1].step(home)
        opts[2].step(home if step % 2 else together)
    for buffer in (flat, paired, mixed):
        assert all_same(leaves(buffer.views), leaves(plain))
        assert same_bits(buffer.array, np.concatenate([x.reshape(-1) for x in leaves(plain)]))
    own = of_tree.state_dict()["leaves"]
    for opt in opts:
        (leaf,) = opt.state_dict()["leaves"].values()
        assert leaf["count"] == opt.t == 5
        for slot, values in leaf.items():
            if isinstance(values, np.ndarray):
                assert same_bits(values, np.concatenate([x[slot].reshape(-1) for x in own.values()]))


@pytest.mark.parametrize("case", [case for case in variants() if not sums_first(case)], ids=label)
def test_every_option_steps_a_buffer_like_the_tree(case, backend):
    method, chosen = case
    plain = tree()
    buffer = fa.FlatBuffer(plain)
    one, other = method(plain, backend=backend, **chosen), method(buffer, backend=backend, **chosen)
    for step in (1, 2, 3):
        grads = tree(step)
        one.step(grads, grad_scale=0.5)
        other.step(fa.FlatBuffer(grads), grad_scale=0.5)
    assert all_same(leaves(buffer.views), leaves(plain))


def test_buffers_among_arrays_and_in_groups(backend):
    parts = [tree(k) for k in range(3)]
    buffers = [fa.FlatBuffer(part) for part in parts]
    loose, loose_too = np.ones(4, np.float32), np.ones(4, np.float32)
    plain = fa.Adam([{"params": parts[:2]}, {"params": {"x": parts[2], "y": loose}, "lr": 0.1}], backend=backend)
    packed = fa.Adam(
        [{"params": buffers[:2]}, {"params": {"x": buffers[2], "y": loose_too}, "lr": 0.1}], backend=backend
    )
    for step in range(1, 4):
        grads = [tree(10 * step + k) for k in range(3)]
        flat = [fa.FlatBuffer(g) for g in grads]
        y = np.full(4, step, np.float32)
        plain.step([grads[:2], {"x": grads[2], "y": y}])
        packed.step([[flat[0], flat[1].array], {"x": flat[2], "y": y}])
    for buffer, part in zip(buffers, parts, strict=True):
        assert all_same(leaves(buffer.views), leaves(part))
    assert same_bits(loose, loose_too)


def test_a_buffer_without_a_gradient_is_left_alone(backend):
    buffer, p = fa.FlatBuffer(tree()), np.ones(3, np.float32)
    before = buffer.array.tobytes()
    opt = fa.Adam([buffer, p], backend=backend)
    opt.step([None, np.ones(3, np.float32)])
    assert buffer.array.tobytes() == before
    assert [leaf["count"] for leaf in opt.state_dict()["leaves"].values()] == [0, 1]


def test_gradients_with_other_strides_fit_a_buffer(backend):
    buffer, expected = fa.FlatBuffer(tree()), fa.FlatBuffer(tree())
    g = np.random.default_rng(3).standard_normal(74).astype(np.float32)
    fa.Adam(buffer, backend=backend).step(g[::-2])
    fa.Adam(expected, backend=backend).step(g[::-2].copy())
    assert same_bits(buffer.array, expected.array)


def test_a_forward_pass_through_views_sees_each_step(backend):
    """The use it is for: the model reads views, the optimizer steps the array."""
    buffer = fa.FlatBuffer({"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)})
    grads, w = buffer.zeros_like(), buffer.views["w"]
    opt = fa.SGD(buffer, lr=0.5, backend=backend)
    for k in range(3):
        grads.views["w"][...] = k
        opt.step(grads)
    assert w.tolist() == [[-0.5] * 2] * 2
    assert buffer.views["b"].tolist() == [1, 1]


def test_a_wrong_layout_is_refused(backend):
    buffer = fa.FlatBuffer(tree())
    opt, before = fa.Adam(buffer, backend=backend), buffer.array.tobytes()
    wrong = fa.FlatBuffer({**tree(), "out": tree()["out"][::-1]})
    assert wrong.array.shape == buffer.array.shape
    for bad, error in (
        (wrong, ValueError),
        (tree(), TypeError),
        (np.ones(36, np.float32), ValueError),
        (np.ones((1, 37), np.float32), ValueError),
        (np.ones(37, int), TypeError),
    ):
        with pytest.raises(error, match="grads"):
            opt.step(bad)
    with pytest.raises(ValueError, match="FlatBuffer"):
        fa.Adam(np.ones(37, np.float32), backend=backend).step(buffer)
    assert (buffer.array.tobytes(), opt.t) == (before, 0)


# ---- pickle and deepcopy

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.copy}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    "source", [tree(), tree(dtype=np.float64), {}, np.ones((2, 3)), [np.empty((0, 2), np.float32)]]
)
def test_a_copy_has_the_layout_and_memory_of_its_own(source, way):
    buffer = fa.FlatBuffer(source)
    other = COPIES[way](buffer)
    assert other.same_layout(buffer)
    assert other.offsets == buffer.offsets
    assert same_bits(other.array, buffer.array)
    assert other.array.ctypes.data % 64 == 0 or not other.array.size
    assert not np.shares_memory(other.array, buffer.array)
    other.array[:] = 7
    assert all((x == 7).all() for x in leaves(other.views))
    assert not (buffer.array == 7).any()


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("method", METHODS, ids=label)
def test_a_buffer_and_its_optimizer_are_copied_together(method, way, backend):
    buffer = fa.FlatBuffer(tree())
    opt = method({"model": buffer}, backend=backend)
    opt.step({"model": fa.FlatBuffer(tree(1))})
    copied, other = COPIES[way]((buffer, opt))
    before = buffer.array.tobytes()
    other.step({"model": fa.FlatBuffer(tree(2))})
    assert buffer.array.tobytes() == before
    opt.step({"model": fa.FlatBuffer(tree(2)).array})
    assert same_bits(copied.array, buffer.array)
    assert buffer.array.tobytes() != before


def test_the_state_of_a_buffer_is_saved_and_loaded(backend):
    whole, broken = fa.FlatBuffer(tree()), fa.FlatBuffer(tree())
    straight, first = fa.Adam(whole, backend=backend), fa.Adam(broken, backend=backend)
    for step in range(4):
        straight.step(fa.FlatBuffer(tree(10 + step)))
    for step in range(2):
        first.step(fa.FlatBuffer(tree(10 + step)))
    second = fa.Adam(broken, backend=backend)
    second.load_state_dict(first.state_dict())
    for step in range(2, 4):
        second.step(fa.FlatBuffer(tree(10 + step)))
    assert same_bits(broken.array, whole.array)
    assert second.state_dict()["leaves"]["params"]["m"].shape == (37,)


# ---- huge pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE = 64 << 20


def huge_kilobytes(address):
    """What the kernel says of the mapping that holds an address: AnonHugePages, in kB."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(x, 16) for x in first.split("-"))
            inside = low <= address < high
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1])
    raise AssertionError(f"no mapping holds {address:#x}")


def without_huge_pages():
    """Why no huge pages can be expected here; empty where they can."""
    if sys.platform != "linux":
        return f"{sys.platform} is no Linux"
    if not SETTING.exists():
        return f"this kernel has no {SETTING}"
    if "[never]" in SETTING.read_text():
        return f"{SETTING} says never"
    with mmap.mmap(-1, LARGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as asked:
        asked.madvise(mmap.MADV_HUGEPAGE)
        seen = np.frombuffer(asked, np.uint8)
        seen[:: mmap.PAGESIZE] = 1
        given, _ = huge_kilobytes(seen.ctypes.data), seen
        del seen, _
    return "" if given else "this kernel gives or shows no huge pages to a plain madvise either"


def test_large_buffers_lie_on_huge_pages():
    if reason := without_huge_pages():
        print(f"huge pages are not tested: {reason}")
        pytest.skip(reason)
    buffer = fa.FlatBuffer([np.ones(LARGE // 4, np.float32)])
    middle = buffer.array.ctypes.data + buffer.array.nbytes // 2
    assert huge_kilobytes(middle) > 0
    assert buffer.array.ctypes.data % 64 == 0


def test_over_given_memory():
    """Its values move there, what is behind them is zeroed, and steps change that memory."""
    memory = np.full(20, 9.0, np.float32)
    tree = {"a": np.ones((2, 3), np.float32), "b": np.full(5, 2, np.float32)}
    buffer = fa.FlatBuffer(tree, memory=memory[2:], multiple=4)
    assert memory.tolist() == [9, 9, *[1] * 6, *[2] * 5, 0, *[9] * 6]
    assert (buffer.array.size, buffer.memory.size) == (11, 12)
    assert np.shares_memory(buffer.views["b"], memory)
    fa.SGD(buffer, lr=1.0).step(np.ones(11, np.float32))
    assert memory[2:14].tolist() == [*[0] * 6, *[1] * 5, 0]
    for other in (buffer.zeros_like(), pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)):
        assert other.memory.size == 12
        assert other.same_layout(buffer)
        assert not np.shares_memory(other.memory, memory)


def test_what_lies_in_a_range():
    buffer = fa.FlatBuffer({"a": np.zeros((2, 3)), "e": np.zeros(0), "b": [np.zeros(4), np.zeros(())]})
    assert buffer.within(0, 11) == [("['a']", 0, 6), ("['b'][0]", 0, 4), ("['b'][1]", 0, 1)]
    assert buffer.within(5, 7) == [("['a']", 5, 6), ("['b'][0]", 0, 1)]
    assert buffer.within(6, 6) == []
    for wrong in ((0, 12), (-1, 3)):
        with pytest.raises(ValueError, match="expected an integer of at least 0 and at most 11"):
            buffer.within(*wrong)


@pytest.mark.parametrize(
    ("error", "words", "chosen"),
    [
        (ValueError, r"float32\(3,\), expected 4 elements of float32 or more", {"memory": np.zeros(3, np.float32)}),
        (ValueError, "expected 8 elements", {"memory": np.zeros(7, np.float32), "multiple": 8}),
        (ValueError, r"memory is float64\(9,\)", {"memory": np.zeros(9)}),
        (ValueError, "without gaps", {"memory": np.zeros(18, np.float32)[::2]}),
        (ValueError, r"float32\(3, 3\)", {"memory": np.zeros((3, 3), np.float32)}),
        (TypeError, "memory is bytearray", {"memory": bytearray(99)}),
        (ValueError, "memory is read-only", {"memory": np.frombuffer(bytes(40), np.float32)}),
        (ValueError, "multiple is 0", {"multiple": 0}),
    ],
)
def test_memory_that_does_not_fit(error, words, chosen):
    with pytest.raises(error, match=words):
        fa.FlatBuffer([np.ones(4, np.float32)], **chosen)
