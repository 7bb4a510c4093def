"""The CUDA backend without a GPU: the text of its kernels and all of its Python, held against NumPy bit for bit.

The .cu text is compiled by g++, and a stand-in for CuPy (tests/cuda_host) runs it and records what it was asked.
"""

import copy
import pickle
import sys
from types import SimpleNamespace

import cuda_host
import numpy as np
import pytest
from cases import (
    METHODS,
    by_turns,
    crossed,
    elementwise,
    hostile,
    kernels_in_use,
    label,
    needed,
    same_bits,
    state_arrays,
    sums_first,
    variants,
)  # fmt: skip
from test_bits import LAYOUTS, gradients_like, tree_of_offsets

import fastadam as fa
from fastadam import functional, kernels
from fastadam.arrays import device
from fastadam.cuda import signature, window
from fastadam.kernels.cuda import THREADS, WORDS
from fastadam.tools import cover, verify

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")

STEPS = 3
MANY = WORDS + 4  # leaves: the addresses of their gradients alone do not fit into a launch


def moved(cupy, x):
    """x on the device, at the same offset within 64 bytes, in the same order of axes."""
    order = np.argsort([-s for s in x.strides], kind="stable")
    lead = x.ctypes.data % 64 // x.itemsize
    home = cupy.empty(lead + x.size, x.dtype)[lead:].reshape([x.shape[k] for k in order])
    home.set(np.asarray(x.transpose(order), order="C"))
    return home.transpose(np.argsort(order).tolist())


def differing(here, there, one=None, other=None):
    """What is not equal to the bit: indices of arrays, names of state."""
    wrong = [k for k, (a, b) in enumerate(zip(here, there, strict=True)) if not same_bits(a, b.get())]
    ours, theirs = (state_arrays(opt) if opt else {} for opt in (one, other))
    assert ours.keys() == theirs.keys()
    return wrong + [key for key in ours if not same_bits(ours[key], theirs[key])]


class Pair:
    """The same optimizer twice over copies of the same arrays: the reference, and ours on the device."""

    def __init__(self, cupy, method, tree, backend="numpy", asked=None, **chosen):
        """asked: chores as cover.chores() has them."""
        self.cupy, self.here, self.there = cupy, [p.copy() for p in tree], [moved(cupy, p) for p in tree]
        device = {name: chosen.pop(name) for name in ["capturable"] if name in chosen}
        own, on = (cover.chores_for(asked, params) if asked else {} for params in (self.here, self.there))
        self.reference = method(self.here, backend=backend, **chosen, **own)
        self.opt = method(self.there, **chosen, **device, **on)

    def step(self, grads, **named):
        on = [None if g is None else moved(self.cupy, g) for g in grads]
        self.reference.step(grads, **named)
        self.opt.step(on, **named)

    def differing(self):
        assert self.opt.t == self.reference.t
        return differing(self.here, self.there, self.opt, self.reference)


def some(rng, sizes, dtype=np.float32):
    pieces = np.split(hostile(rng, sum(sizes), dtype, bad=False), np.cumsum(sizes)[:-1])
    return [piece.copy() for piece in pieces]  # each in memory of its own


@by_turns(case=kernels_in_use(), dtype=[np.float32, np.float64])
def test_cuda_equals_numpy_at_every_size_and_offset(case, dtype, turn, cupy):
    method, chosen = case
    rng = np.random.default_rng(7)
    tree = [p for p in tree_of_offsets(rng, dtype, turn) if p.size < 2**20]
    pair = Pair(cupy, method, tree, **chosen)
    assert pair.opt.backend == "cuda"
    for _ in range(STEPS):
        pair.step(gradients_like(rng, tree))
    assert pair.differing() == []
    stepping = [launch for launch in cupy.state.launches if launch.name.startswith(method.rule.kernel)]
    assert len(stepping) == STEPS * (1 + sums_first(case))
    assert len(cupy.state.launches) == STEPS or sums_first(case)


@pytest.mark.parametrize("variant", variants(), ids=label)
def test_every_method_with_every_option(variant, cupy):
    method, chosen = variant
    rng = np.random.default_rng(8)
    tree = [np.ones(9, np.float32), np.ones((3, 5), np.float64), np.ones((), np.float32)]
    pair = Pair(cupy, method, tree, **chosen)
    for _ in range(STEPS):
        pair.step([rng.standard_normal(p.shape).astype(p.dtype) for p in tree], grad_scale=0.5)
    assert pair.differing() == []


@pytest.mark.parametrize("of_g", LAYOUTS)
@pytest.mark.parametrize("of_p", LAYOUTS)
def test_axis_orders_change_nothing(of_p, of_g, cupy):
    rng = np.random.default_rng(9)
    p = rng.standard_normal((3, 5, 2, 7)).astype(np.float32)
    plain, laid = p.copy(), moved(cupy, LAYOUTS[of_p](p))
    assert laid.strides == LAYOUTS[of_p](p).strides
    a, b = fa.Adam(plain, backend="numpy"), fa.Adam(laid)
    for _ in range(STEPS):
        g = rng.standard_normal(p.shape).astype(np.float32)
        a.step(g)
        b.step(moved(cupy, LAYOUTS[of_g](g)))
    assert differing([plain], [laid], a, b) == []


def test_a_gradient_with_gaps_is_copied_into_the_same_memory_each_time(cupy):
    rng = np.random.default_rng(10)
    pair = Pair(cupy, fa.Adam, [np.ones((4, 6), np.float32)])
    for k in range(4):
        wide = rng.standard_normal((4, 12)).astype(np.float32)
        there = moved(cupy, wide)
        before = len(cupy.state.allocated)
        pair.reference.step([wide[:, ::2]])
        pair.opt.step([there[:, ::2]])
        assert (len(cupy.state.allocated) > before) == (k == 0)
    assert pair.differing() == []


def test_missing_gradients_groups_and_counts(cupy):
    rng = np.random.default_rng(11)
    arrays = some(rng, [5, 600, 0, 17])
    there = [moved(cupy, p) for p in arrays]

    def groups(a):
        return [{"params": a[:2], "lr": 0.1}, {"params": a[2:], "weight_decay": 0.3}]

    a, b = fa.NAdam(groups(arrays), backend="numpy"), fa.NAdam(groups(there))
    for k in range(6):
        grads = [g if (k + j) % 3 else None for j, g in enumerate(some(rng, [5, 600, 0, 17]))]
        a.step([grads[:2], grads[2:]])
        on = [None if g is None else moved(cupy, g) for g in grads]
        b.step([on[:2], on[2:]])
    assert differing(arrays, there, a, b) == []
    assert a.state_dict()["leaves"].keys() == b.state_dict()["leaves"].keys()
    for name, own in a.state_dict()["leaves"].items():
        assert b.state_dict()["leaves"][name]["count"] == own["count"]
        assert b.state_dict()["leaves"][name]["mu_product"] == own["mu_product"]


# What is launched.


def table_of(passed):
    """(leaves, gradients that each of them has, words) of what went by value."""
    raw = passed.tobytes()
    leaves, arrays = np.frombuffer(raw, np.int64, 2).tolist()
    return leaves, arrays, np.frombuffer(raw, np.uint64)[2:]


def test_one_launch_a_signature_argument_by_argument(cupy):
    rng = np.random.default_rng(12)
    tree = [*some(rng, [5, 1030, 0]), *some(rng, [300], np.float64), *some(rng, [7])]
    there = [cupy.zeros(p.size + k, p.dtype)[k:] for k, p in enumerate(tree)]
    opt = fa.AdamW([{"params": there[:2], "lr": 0.1}, {"params": there[2:], "lr": 0.2}], weight_decay=0.0)
    grads = [moved(cupy, g) for g in tree]
    opt.step([grads[:2], grads[2:]])
    opt.step([[grads[0], None], grads[2:]])
    names = [launch.name for launch in cupy.state.launches]
    assert names == ["adam_ByValue_f32_f32_f32_f32_f32_None", "adam_ByValue_f64_f64_f64_f64_f64_None"] * 2
    for k, launch in enumerate(cupy.state.launches):
        leaves, dtype = ([0, 1, 2, 4], np.float32) if k % 2 == 0 else ([3], np.float64)
        (_, chunks), (_, own), (table, _), (window, _) = launch.arguments
        assert launch.block == (THREADS,)
        assert window.tobytes() == bytes(24)
        chunks = chunks.get().view(signature.CHUNK)
        assert launch.grid == (len(chunks),)
        seen = np.zeros(sum(there[leaf].size for leaf in leaves), int)
        starts = np.cumsum([0, *(there[leaf].size for leaf in leaves)])
        for first, leaf, n in chunks.tolist():
            seen[starts[leaf] + first : starts[leaf] + first + n] += 1
            place = (there[leaves[leaf]].data.ptr // dtype().itemsize + first) % (16 // dtype().itemsize)
            assert place + n <= THREADS * 16 // dtype().itemsize
            assert first == 0 or place == 0
        assert (seen == 1).all()
        addresses = own.get()
        assert addresses[:, 0].tolist() == [there[leaf].data.ptr for leaf in leaves]
        assert (addresses[:, 3] == 0).all()
        for column in (1, 2):  # slots lie as their parameters do, within 16 bytes
            assert (addresses[:, column] % 16 == addresses[:, 0] % 16)[addresses[:, 0] > 0].all()
        count, arrays, words = table_of(table)
        assert (count, arrays) == (len(leaves), 1)
        assert words[:count].tolist() == [grads[leaf].data.ptr for leaf in leaves]
        row = words[count : count + (count + 1) // 2].view(np.int32)[:count]
        # In the first step a row per group; in the second leaf 1 is left alone.
        assert row.tolist() == ([[0, 0, 1, 1], [1], [0, -1, 1, 1], [1]][k])
        expected = np.array([group.rule.coefficients(k // 2 + 1, group.lr) for group in opt.groups], np.float64)
        numbers = words[count + (count + 1) // 2 :].view(dtype)[: expected.size].reshape(expected.shape)
        assert np.array_equal(numbers, expected.astype(dtype))


def test_chunks_cover_each_leaf_once_and_begin_where_access_is_whole():
    rng = np.random.default_rng(13)
    for most, width in ((512, 4), (256, 2), (8, 4)):
        sizes = [0, 1, most - 1, most, most + 1, 3 * most, *rng.integers(0, 10 * most, 20)]
        heads = rng.integers(0, width, len(sizes))
        table = signature.chunk_table(sizes, heads, most)
        for leaf, (size, head) in enumerate(zip(sizes, heads, strict=True)):
            own = table[table["leaf"] == leaf]
            assert np.array_equal(own["first"], np.cumsum([0, *own["n"]])[:-1] if len(own) else own["first"])
            assert own["n"].sum() == size
            assert (own["n"] > 0).all()
            assert ((own["first"][1:] + head) % width == 0).all()
            assert (own["n"] <= most - np.where(own["first"] == 0, head, 0)).all()
    large = signature.chunk_table([2**33 + 5], [3], 2**21)
    assert large["first"][-1] > 2**32
    assert large["n"].sum(dtype=np.int64) == 2**33 + 5


def test_what_does_not_fit_into_a_launch_is_uploaded_without_waiting(cupy):
    rng = np.random.default_rng(14)
    sizes = [3] * MANY
    tree = some(rng, sizes)
    pair = Pair(cupy, fa.AdamW, tree, weight_decay=0.1)
    waits, rounds = cupy.state.waits, [some(rng, sizes) for _ in range(4)]
    for k, grads in enumerate(rounds):
        pair.step([g if (j + k) % 5 else None for j, g in enumerate(grads)])
    assert cupy.state.waits == waits  # and nothing has run yet: each step had a buffer of its own
    (upload,) = [one._upload for one in pair.opt._plan.signatures]
    assert len(upload._buffers) == 4
    assert pair.differing() == []
    assert {launch.name.split("_")[1] for launch in cupy.state.launches} == {"Uploaded"}
    for grads in rounds:
        pair.step(grads)
        cupy.state.stream.synchronize()
    assert len(upload._buffers) == 4  # the same ones again
    assert pair.differing() == []


def test_many_rows_now_and_few_later(cupy):
    """A table that sometimes fits into a launch and sometimes does not."""
    rng = np.random.default_rng(15)
    sizes = [2] * 300
    assert 300 + 150 + 10 * 10 // 2 > WORDS > 300 + 150 + 10 // 2
    pair = Pair(cupy, fa.Adam, some(rng, sizes))
    for k in range(15):
        grads = some(rng, sizes)
        pair.step([None if k < 10 and j % 10 <= k else g for j, g in enumerate(grads)])
    assert pair.differing() == []
    assert {launch.name.split("_")[1] for launch in cupy.state.launches} == {"ByValue", "Uploaded"}


def test_steps_neither_wait_nor_allocate(cupy):
    pair = Pair(cupy, fa.AdamW, some(np.random.default_rng(16), [100, 1000]))
    grads = [moved(cupy, p) for p in some(np.random.default_rng(17), [100, 1000])]
    pair.opt.step(grads)
    waits, held = cupy.state.waits, len(cupy.state.allocated)
    for _ in range(50):
        pair.opt.step(grads)
    assert (cupy.state.waits, len(cupy.state.allocated)) == (waits, held)
    assert len(cupy.state.compiled) == 1


def test_memory_seen_before_is_looked_at_again_as_another_array(cupy):
    p, g = (cupy.asarray(np.ones((4, 4), np.float32)) for _ in range(2))
    opt = fa.SGD(p, lr=1.0)
    opt.step(g)
    for other, error in ((g.reshape(16), ValueError), (g.view(np.int32), TypeError)):
        assert other.data.ptr == g.data.ptr
        with pytest.raises(error, match="grads is"):
            opt.step(other)
    g.set(np.arange(16, dtype=np.float32).reshape(4, 4))
    opt.step(g.transpose(1, 0))
    assert np.array_equal(p.get(), -np.arange(16).reshape(4, 4).T)


def test_empty_arrays_and_empty_trees(cupy):
    pair = Pair(cupy, fa.Adam, [np.ones(0, np.float32), np.ones((3, 0), np.float64)])
    pair.step([np.ones(0, np.float32), np.ones((3, 0), np.float64)])
    assert pair.differing() == []
    assert cupy.state.launches == []
    nothing = fa.Adam({}, backend="cuda")
    nothing.step({})
    assert nothing.t == 1


# Streams, devices, other libraries.


class Tensor:
    """As torch's: knows whether it needs a gradient, is detached first, and lies on a device."""

    requires_grad, is_cuda = True, True

    def __init__(self, x):
        self.x, self.device = x, x.device.id

    @property
    def __cuda_array_interface__(self):
        assert not self.requires_grad, "can't get the interface of a tensor that requires grad"
        interface = dict(self.x.__cuda_array_interface__, version=2)
        del interface["stream"]
        return interface

    def detach(self):
        plain = Tensor(self.x)
        plain.requires_grad = False
        return plain


class Interface:
    """Another library's array: Numba's, say."""

    def __init__(self, x, **changed):
        self.__cuda_array_interface__ = {**x.__cuda_array_interface__, "stream": 77, **changed}
        self.x = x


Interface.__cuda_array_interface__ = None  # a class attribute too, as where it is a property


class Capsule:
    """An array that has DLPack alone."""

    def __init__(self, x):
        self.x = x

    def __dlpack_device__(self):
        return 2, self.x.device.id

    def as_cupy(self):
        return self.x


def test_a_step_runs_on_the_current_stream(cupy):
    p, g = cupy.asarray(np.ones(3, np.float32)), cupy.asarray(np.ones(3, np.float32))
    opt, own = fa.Adam(p), cupy.Stream()
    with own:
        opt.step(g)
    opt.step(g)
    assert [launch.stream for launch in cupy.state.launches] == [own, cupy.state.stream]


@pytest.mark.parametrize("kind", [Tensor, Interface, Capsule])
def test_arrays_of_other_libraries_are_stepped_where_they_lie(kind, cupy, monkeypatch):
    rng = np.random.default_rng(18)
    theirs = cupy.Stream(ptr=77)
    torch = SimpleNamespace(cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=77)))
    monkeypatch.setitem(sys.modules, "torch", torch)
    tree = [rng.standard_normal((3, 4)).astype(np.float32), np.ones(0, np.float32)]
    here, homes = [p.copy() for p in tree], [moved(cupy, p) for p in tree]
    cupy.state.stream.synchronize()
    a, b = fa.Adam(here, backend="numpy"), fa.Adam([kind(p) for p in homes])
    assert b.backend == "cuda"
    for _ in range(STEPS):
        grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in tree]
        a.step(grads)
        with cupy.state.stream if kind is Capsule else theirs:  # whose work gets their memory once they are freed
            on = [moved(cupy, g) for g in grads]
        b.step([kind(g) for g in on])
    assert {launch.stream for launch in cupy.state.launches} == {cupy.state.stream if kind is Capsule else theirs}
    theirs.synchronize()
    assert differing(here, homes, a, b) == []


def test_a_gradient_from_another_stream_is_waited_for_and_waits(cupy):
    theirs, p = cupy.Stream(ptr=77), cupy.asarray(np.ones(4, np.float32))
    opt = fa.SGD(p, lr=1.0)
    late = cupy.asarray(np.zeros(4, np.float32))
    cupy.state.stream.synchronize()
    theirs.do(lambda: late.host.fill(2), writes=[late.host])  # the owner still computes it
    opt.step(Interface(late))
    theirs.do(lambda: late.host.fill(np.nan), writes=[late.host])  # and overwrites it right after
    assert cupy.state.launches[0].stream is cupy.state.stream
    theirs.synchronize()
    assert (p.get() == -1).all()


class Owner:
    """Another library with a stream of its own, which the device is always behind on."""

    def __init__(self, cupy):
        self.cupy, self.stream = cupy, cupy.Stream(ptr=77)

    def array(self, values):
        """An array that will have these values once the owner's stream has come so far."""
        with self.stream:
            x = self.cupy.asarray(np.zeros_like(values))
        self.stream.do(lambda: np.copyto(x.host, values), writes=[x.host])
        return Interface(x)

    def read(self, x):
        with self.stream:
            return x.x.get()


@pytest.mark.parametrize("asked", [{}, {"capturable": True}, {"skip_nonfinite": True, "max_norm": 1.0}], ids=str)
def test_all_work_beside_the_steps_is_on_the_owners_stream(asked, cupy):
    rng, owner = np.random.default_rng(24), Owner(cupy)
    here = [rng.standard_normal(n).astype(np.float32) for n in (5, 700)]
    copies = [np.zeros(p.shape, np.float16) for p in here]
    there, shorts = ([owner.array(x) for x in tree] for tree in (here, copies))
    chores = {name: value for name, value in asked.items() if name != "capturable"}
    a = fa.NAdam(here, ema_decay=0.5, copy_to=copies, backend="numpy", **chores)
    b = fa.NAdam(there, ema_decay=0.5, copy_to=shorts, **asked)

    def step(rounds=3):
        for _ in range(rounds):
            g = [rng.standard_normal(p.shape).astype(np.float32) for p in here]
            a.step(g)
            b.step([owner.array(x) for x in g])

    assert all(same_bits(x, owner.read(y)) for x, y in zip(copies, shorts, strict=True))
    step()
    assert (b.t, b.skipped) == (3, 0)
    step()
    moments, own = a.moments(), b.moments()
    with owner.stream:
        assert all(same_bits(x, own[p][key].get()) for p in moments for key, x in moments[p].items())
    known = b.state_dict()
    assert state_arrays(a).keys() == state_arrays(b).keys()
    assert all(same_bits(x, state_arrays(b)[key]) for key, x in state_arrays(a).items())
    step()
    for opt in (a, b):
        opt.load_state_dict(known)
    assert b.t == 6
    step()
    if asked:
        b.prepare(2)
    step()
    assert b.t == 12
    if "capturable" not in asked:
        assert all(same_bits(x, y) for x, y in zip(here, b.to("cpu").params, strict=True))
    assert all(same_bits(x, owner.read(y)) for x, y in zip([*here, *copies], [*there, *shorts], strict=True))
    assert all(same_bits(x, state_arrays(b)[key]) for key, x in state_arrays(a).items())


def test_a_buffer_is_packed_once_the_owners_have_written(cupy):
    owner, values = Owner(cupy), np.arange(4, dtype=np.float32)
    x = owner.array(values)
    buffer = fa.FlatBuffer([x])
    owner.stream.do(lambda: x.x.host.fill(np.nan), writes=[x.x.host])  # what the owner writes afterwards comes after
    assert same_bits(buffer.array.get(), values)
    moved = fa.FlatBuffer([owner.array(values)]).to("cpu")
    assert same_bits(moved.array, values)


def test_a_strided_interface_is_taken_as_it_lies(cupy):
    theirs = cupy.Stream(ptr=77)
    home = cupy.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    cupy.state.stream.synchronize()
    p = Interface(home.transpose(1, 0))
    assert p.__cuda_array_interface__["strides"] is not None
    opt = fa.SGD(p, lr=1.0)
    opt.step(cupy.asarray(np.arange(12, dtype=np.float32).reshape(3, 4)).transpose(1, 0))
    theirs.synchronize()
    assert (home.get() == 0).all()


@pytest.mark.parametrize(
    "part",
    [np.s_[::-1], np.s_[:, ::-1], np.s_[::-2, ::-1], np.s_[::-1, 1:3], np.s_[1, ::-1], np.s_[:0:-1, 2]],
    ids=repr,
)
def test_an_interface_that_runs_backwards_is_read_as_it_lies(part, cupy):
    """The memory of another library is what lies between its first and its last byte, wherever its first element is."""
    raw = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = raw[part]
    foreign = SimpleNamespace(__cuda_array_interface__={**view.__array_interface__, "version": 3, "stream": None})
    x = device.DEVICE.read(foreign)
    (extent,) = cupy.state.memory.extents
    assert (extent.first, extent.end) == np.lib.array_utils.byte_bounds(view)
    assert x.get().tolist() == view.tolist()


def test_each_optimizer_runs_on_its_own_device(cupy):
    with cupy.cuda.Device(1):
        p, g = cupy.asarray(np.ones(3, np.float32)), cupy.asarray(np.ones(3, np.float32))
    opt = fa.SGD(p, lr=0.5)
    opt.step(g)
    assert [launch.device for launch in cupy.state.launches] == [1]
    assert cupy.state.device == 0
    assert (p.get() == 0.5).all()
    buffer = fa.FlatBuffer([p, g])
    for there in (buffer, buffer.zeros_like()):
        assert there.array.device.id == there.views[0].device.id == 1
    start = fa.Adagrad(buffer, initial_accumulator_value=0.5)
    start.load_state_dict(start.state_dict())
    assert (start.state_dict()["leaves"]["params"]["sum"] == 0.5).all()
    with pytest.raises(ValueError, match=r"grads is float32\(3,\) on cuda:0, params is float32\(3,\) on cuda:1"):
        opt.step(cupy.asarray(np.ones(3, np.float32)))
    with pytest.raises(ValueError, match=r"params\[1\] is .* on cuda:0, params\[0\] is .* on cuda:1: expected one"):
        fa.SGD([p, cupy.asarray(np.ones(3, np.float32))])


# Bad input.


def device_refusals(cupy):
    f4 = lambda *shape: cupy.asarray(np.ones(shape, np.float32))  # noqa: E731
    p = f4(4)
    return {
        "numpy beside arrays on a device": (lambda: fa.Adam([p, np.ones(3)]), TypeError, r"params\[1\] is float64"),
        "numpy for cuda": (lambda: fa.Adam(np.ones(3), backend="cuda"), TypeError, r"cupy\.asarray\(params\)"),
        "cuda for numba": (lambda: fa.Adam(p, backend="numba"), TypeError, "on cuda:0, expected a numpy.ndarray"),
        "integers": (lambda: fa.Adam(cupy.asarray(np.ones(3, np.int32))), TypeError, "expected one of float64,"),
        "gaps": (lambda: fa.Adam(f4(4, 4)[:, ::2]), ValueError, "expected dense memory"),
        "read-only": (lambda: fa.Adam(Interface(p, data=(p.data.ptr, True))), ValueError, "params is read-only"),
        "an odd address": (
            lambda: fa.Adam({"w": Interface(p, data=(p.data.ptr + 2, False))}), ValueError,
            r"params\['w'\] is Interface at address 0x\w+, expected a multiple of 4 above 0",
        ),
        "no address": (lambda: fa.Adam(Interface(p, data=(0, False))), ValueError, "params is Interface at address 0"),
        "an odd gradient": (
            lambda: fa.Adam([p]).step([Interface(f4(4), data=(p.data.ptr + 1, True))]), ValueError,
            r"grads\[0\] is Interface at address",
        ),
        "odd rows": (
            lambda: fa.Adam([p]).step_rows([(np.arange(4), Interface(f4(4), data=(0, True)))]), ValueError,
            r"rows\[0\]'s values is Interface at address 0x0",
        ),
        "an odd leaf": (
            lambda: fa.FlatBuffer([f4(4), Interface(f4(4), data=(0, True))]), ValueError, r"tree\[1\] is Interface at"
        ),
        "a mask": (lambda: fa.Adam(Interface(p, mask=p)), TypeError, "has a mask"),
        "twice the same": (lambda: fa.Adam([p, p]), ValueError, r"params\[0\] and params\[1\] share memory"),
        "overlap": (lambda: fa.Adam([p[:3], p[2:]]), ValueError, "share memory"),
        "a list as gradient": (lambda: fa.Adam(p).step([1, 2, 3, 4]), TypeError, "grads is list"),
        "a host gradient": (lambda: fa.Adam(p).step(np.ones(4, np.float32)), TypeError, "expected an array on a CUDA"),
        "another shape": (lambda: fa.Adam(p).step(f4(5)), ValueError, r"grads is float32\(5,\) on cuda:0, params is"),
        "integers as gradient": (
            lambda: fa.Adam(p).step(cupy.asarray(np.ones(4, np.int32))), TypeError, r"grads is int32\(4,\) on cuda:0, "
        ),
        "p as gradient": (lambda: fa.Adam(p).step(p), ValueError, "grads and params share memory"),
        "overlapping gradient": (lambda: fa.Adam(p[:2]).step(p[1:3]), ValueError, "grads and params share memory"),
        "rows in a graph": (
            lambda: fa.Adam(f4(4, 2), capturable=True).step_rows((np.arange(2), f4(2, 2))),
            ValueError, "capturable is True, expected False for step_rows",
        ),
        "rows on the host": (
            lambda: fa.Adam(f4(4, 2)).step_rows((np.arange(2), np.ones((2, 2), np.float32))),
            TypeError, r"values are float32\(2, 2\), expected float32\(2, 2\) on its device: params is .* on cuda:0",
        ),
        "rows beyond": (
            lambda: fa.Adam({"w": f4(4, 2)}).step_rows({"w": (cupy.asarray(np.array([1, 4, 5])), f4(3, 2))}),
            IndexError, r"rows\['w'\]'s indices\[1\] is 4, expected 0 to 3: params\['w'\] is .* on cuda:0",
        ),
        "rows by fractions": (
            lambda: fa.Adam(f4(4, 2)).step_rows((f4(2), f4(2, 2))), TypeError, r"indices are float32\(2,\), expected",
        ),
        "rows of another dtype": (
            lambda: fa.Adam(f4(4, 2)).step_rows((np.arange(2), cupy.asarray(np.ones((2, 2), np.int32)))),
            TypeError, r"values are int32\(2, 2\) on cuda:0",
        ),
        "too few rows": (lambda: fa.Adam(f4(4, 2)).step_rows((np.arange(2), f4(1, 2))), ValueError, "values are"),
        "rows of p": (lambda: fa.Adam(p).step_rows((np.arange(2), p[:2])), ValueError, "values and params share"),
        "no such row": (lambda: fa.Adam(p).catch_up(cupy.asarray(np.array([4]))), IndexError, r"is 4, expected 0"),
        "rows with a norm": (
            lambda: fa.Adam(f4(4, 2), max_norm=1.0).step_rows((np.arange(2), f4(2, 2))),
            NotImplementedError, "step_rows with max_norm, .*: on the CPU backends only",
        ),
        "rows that may be skipped": (
            lambda: fa.Adam(f4(4, 2), skip_nonfinite=True).step_rows((np.arange(2), f4(2, 2))),
            ValueError, "skip_nonfinite is True, expected False for step_rows",
        ),
        "a copy": (lambda: fa.Adam(p, copy_to=np.ones(4, np.float16)), TypeError, r"copy_to is float16\(4,\), params"),
        "capturable on the host": (lambda: fa.Adam(np.ones(3), capturable=True), ValueError, "capturable is True"),
        "capturable what": (lambda: fa.Adam(p, capturable=1), TypeError, "capturable is 1, expected True or False"),
        "prepare for what": (lambda: fa.Adam(p).prepare(), ValueError, "capturable is False"),
        "a missing gradient in a graph": (
            lambda: fa.Adam([p], capturable=True).step([None]), ValueError, r"grads\[0\] is None",
        ),
        "a scale in a graph": (
            lambda: fa.Adam(p, capturable=True).step(f4(4), grad_scale=0.5), ValueError, "grad_scale is 0.5",
        ),
        "no steps": (lambda: fa.Adam(p, capturable=True).prepare(0), ValueError, "steps is 0"),
        "where": (lambda: fa.Adam(p).to("gpu"), ValueError, "where is 'gpu'"),
        "mixed buffer": (lambda: fa.FlatBuffer([p, np.ones(3, np.float32)]), TypeError, r"tree\[1\] is float32\(3,\)"),
    }  # fmt: skip


def test_bad_input_is_refused_by_name_and_nothing_is_launched(cupy):
    for name, (call, error, message) in device_refusals(cupy).items():
        try:
            with pytest.raises(error, match=message):
                call()
        except BaseException as wrong:
            wrong.add_note(name)
            raise
    assert cupy.state.launches == []


def test_a_tensor_whose_memory_moved_is_refused(cupy, monkeypatch):
    torch = SimpleNamespace(cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=0)))
    monkeypatch.setitem(sys.modules, "torch", torch)
    p = Tensor(cupy.asarray(np.ones(4, np.float32)))
    opt = fa.Adam({"w": p})
    p.x = cupy.asarray(np.ones(4, np.float32))
    with pytest.raises(ValueError, match=r"params\['w'\] is .* expected the memory of construction"):
        opt.step({"w": cupy.asarray(np.ones(4, np.float32))})
    assert opt.t == 0


def test_jax_arrays_are_read_and_never_written(cupy):
    Frozen = type("ArrayImpl", (Interface,), {"__module__": "jaxlib._jax"})
    x = cupy.asarray(np.ones(4, np.float32))
    with pytest.raises(TypeError, match="JAX forbids"):
        fa.Adam(Frozen(x))
    p = cupy.asarray(np.zeros(4, np.float32))
    fa.SGD(p, lr=1.0).step(Frozen(x))
    assert (p.get() == -1).all()


def test_jax_arrays_on_the_host_are_not_on_a_device():
    class ArrayImpl:
        """Has the property whatever it is on, as JAX's arrays do."""

        @property
        def __cuda_array_interface__(self):
            raise ValueError("only defined for NVidia GPU buffers")

        def __dlpack_device__(self):
            return 1, 0

    assert not device.on_device(ArrayImpl())
    with pytest.raises(TypeError, match=r"params is ArrayImpl, expected a numpy\.ndarray"):
        fa.Adam(ArrayImpl())


# Graphs.


def captured(cupy, opt, grads):
    stream = cupy.Stream()
    with stream:
        stream.begin_capture()
        opt.step(grads)
        return stream.end_capture()


def wavy(t):
    return 0.01 * (1 + np.sin(t))


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_replays_equal_eager_steps_schedules_included(method, cupy):
    rng = np.random.default_rng(20)
    tree = [*some(rng, [5, 700]), *some(rng, [6], np.float64)]
    pair = Pair(cupy, method, tree, lr=wavy, capturable=True)
    grads = [moved(cupy, g) for g in some(rng, [5, 700])] + [moved(cupy, g) for g in some(rng, [6], np.float64)]
    graph = captured(cupy, pair.opt, grads)
    assert pair.opt.t == 0
    for _ in range(20):
        for g, x in zip(grads, [rng.standard_normal(p.shape).astype(p.dtype) for p in tree], strict=True):
            g.set(x)
        graph.launch()
        pair.reference.step([g.get() for g in grads])
    assert pair.differing() == []
    pair.step([rng.standard_normal(p.shape).astype(p.dtype) for p in tree])  # and an eager one
    assert pair.differing() == []
    graph.launch()  # after a refill, which reading the state was
    pair.reference.step([g.get() for g in grads])
    assert pair.differing() == []


def test_eager_steps_refill_the_window_without_waiting(cupy, monkeypatch):
    monkeypatch.setattr(window, "STEPS", 8)
    rng = np.random.default_rng(21)
    for method in (fa.AdamW, fa.NAdam):
        pair = Pair(cupy, method, some(rng, [5, 700]), lr=wavy, capturable=True)
        waits = cupy.state.waits
        rounds = [some(rng, [5, 700]) for _ in range(30)]
        for grads in rounds:
            pair.step(grads)
        assert cupy.state.waits == waits
        assert pair.differing() == []


def test_a_change_of_lr_reaches_the_graph(cupy):
    for method in (fa.AdamW, fa.NAdam):
        pair = Pair(cupy, method, [np.ones(4, np.float32)], capturable=True)
        g = cupy.asarray(np.ones(4, np.float32))
        graph = captured(cupy, pair.opt, [g])
        for k in range(5):
            for opt in (pair.reference, pair.opt):
                opt.groups[0].lr = 0.1 / (k + 1)
                if k == 3:
                    opt.groups[0].betas = (0.5, 0.6)
            pair.reference.step([np.ones(4, np.float32)])
            graph.launch()
        assert pair.differing() == []
        with pytest.raises(ValueError, match="expected values"):
            pair.opt.groups[0].lr = 1e300
        assert pair.opt.groups[0].lr == 0.1 / 5


def test_replays_beyond_the_window_leave_everything_alone_and_are_an_error(cupy):
    pair = Pair(cupy, fa.NAdam, [np.ones(4, np.float32)], lr=wavy, capturable=True)
    ones = np.ones(4, np.float32)
    grads = [cupy.asarray(ones)]  # which the graph does not keep
    graph = captured(cupy, pair.opt, grads)
    pair.opt.prepare(3)
    for k in range(5):
        graph.launch()
        if k < 3:
            pair.reference.step([ones])
    assert pair.opt.t == 3
    with pytest.raises(RuntimeError, match=r"2 steps were replayed beyond the 3 that were prepared"):
        pair.opt.prepare()
    assert pair.differing() == []
    graph.launch()
    pair.reference.step([ones])
    assert pair.differing() == []
    pair.opt.prepare(2)
    for _ in range(2):
        pair.step([ones])
    with pytest.raises(RuntimeError, match=r"call prepare\(\) first"):
        pair.opt.step([cupy.asarray(ones)])
    with pytest.raises(ValueError, match="steps is 5000, expected at most 1024"):
        pair.opt.prepare(5000)
    assert pair.differing() == []


def test_nothing_is_changed_while_a_graph_is_captured(cupy):
    opt = fa.Adam(cupy.asarray(np.ones(4, np.float32)), capturable=True)
    stream = cupy.Stream()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="while a graph is captured"):
            opt.groups[0].lr = 0.5
        with pytest.raises(RuntimeError, match="while a graph is captured"):
            opt.prepare()
        stream.end_capture()
    assert opt.groups[0].lr == 1e-3


@pytest.mark.parametrize("apart", [True, False])
def test_a_graph_waits_for_no_stream_of_gradients(apart, cupy):
    p, g = (cupy.asarray(np.ones(4, np.float32)) for _ in range(2))
    opt, stream = fa.SGD(p, lr=0.5, capturable=True), cupy.Stream()
    theirs = cupy.Stream(non_blocking=True) if apart else stream
    foreign = SimpleNamespace(__cuda_array_interface__={**g.__cuda_array_interface__, "stream": theirs.ptr})
    with stream:
        stream.begin_capture()
        if apart:
            with pytest.raises(
                RuntimeError, match=r"^grads's library works on stream 0x\w+ while a graph is captured on"
            ):
                opt.step(foreign)
            opt.step(g)
        else:
            opt.step(foreign)
        stream.end_capture().launch()
    assert (p.get() == 0.5).all()


def test_captured_tables_that_do_not_fit_into_a_launch_stay_with_their_graphs(cupy):
    """Two graphs, one of two steps, each with gradients of its own; between replays eager steps upload others."""
    rng = np.random.default_rng(22)
    sizes = [3] * MANY
    pair = Pair(cupy, fa.AdamW, some(rng, sizes), capturable=True)
    grads = [some(rng, sizes) for _ in range(4)]
    on = [[moved(cupy, g) for g in each] for each in grads]
    stream, graphs = cupy.Stream(), []
    with stream:
        for each in (on[:2], on[2:3]):
            stream.begin_capture()
            for g in each:
                pair.opt.step(g)
            graphs.append(stream.end_capture())
    for order in ((0, 1), (1, 0), (0, 0)):
        for k in order:
            graphs[k].launch()
            for g in (grads[:2], grads[2:3])[k]:
                pair.reference.step(g)
        pair.step(grads[3])
    assert pair.differing() == []


@pytest.mark.parametrize("last", [0, 3, 1500])
def test_a_schedule_that_ends_is_named_where_it_does_and_not_before(last, cupy):
    """As on the CPU: steps go on while it has values, and state can be read; graphs that go on are an error."""

    def schedule(t):
        if t > last:
            raise IndexError("no such entry")
        return 0.1 / t

    for method in (fa.AdamW, fa.NAdam):
        pair = Pair(cupy, method, [np.ones(4, np.float32)], lr=schedule, capturable=True)
        for _ in range(last):
            pair.step([np.ones(4, np.float32)])
        assert pair.differing() == []
        for _ in range(2):
            with pytest.raises(IndexError, match=rf"raised by groups\[0\].lr\({last + 1}\)"):
                pair.step([np.ones(4, np.float32)])
        assert pair.opt.t == last
    if last:
        opt = fa.AdamW(cupy.asarray(np.ones(4, np.float32)), lr=schedule, capturable=True)
        grads = cupy.asarray(np.ones(4, np.float32))
        graph = captured(cupy, opt, grads)
        for _ in range(last + 2 if last < window.STEPS else 0):
            graph.launch()
        if last < window.STEPS:
            with pytest.raises(RuntimeError, match=f"2 steps were replayed beyond the {last} that were prepared"):
                opt.prepare()
            with pytest.raises(IndexError, match="raised by"):
                opt.prepare(1)
            opt.groups[0].lr = 0.1
            graph.launch()
            assert opt.t == last + 1


def test_an_eager_scale_does_not_stay_for_replays(cupy):
    opt = fa.SGD(cupy.asarray(np.ones(4, np.float32)), max_norm=1.0, capturable=True)
    with pytest.raises(ValueError, match=r"grad_scale is 0\.5"):
        opt.step(cupy.asarray(np.ones(4, np.float32)), grad_scale=0.5)


def test_limits_that_change_reach_a_graph_captured_before(cupy):
    p, g = (cupy.asarray(np.ones(4, np.float32)) for _ in range(2))
    opt = fa.SGD({"w": p}, lr=1.0, max_norm=1.0, capturable=True)
    grouped = fa.SGD([{"params": p, "max_norm": 1.0}], lr=1.0, capturable=True)
    for one, grads in ((opt, {"w": g}), (grouped, [g])):
        p.set(np.ones(4, np.float32))
        graph = captured(cupy, one, grads)
        graph.launch()
        assert (p.get() == 0.5).all()
        if one is grouped:
            one.groups[0].max_norm = 0.5
            graph.launch()
            assert (p.get() == 0.25).all()


class Stoppable:
    """A schedule during which Ctrl-C comes."""

    stops = False

    def __call__(self, t):
        if self.stops and t > 6:
            raise KeyboardInterrupt
        return 0.1 / t


class OutOfMemory(window.Uploaded):
    """What a device without memory does."""

    def __init__(self, nbytes):
        raise MemoryError("out of memory")


@pytest.mark.parametrize("method", [fa.AdamW, fa.NAdam])
@pytest.mark.parametrize(
    ("interrupted", "error"),
    [
        (lambda opt: opt.prepare(10**9), MemoryError),
        (lambda opt: opt.prepare(4_000), MemoryError),
        (lambda opt: opt.prepare(), KeyboardInterrupt),
        (lambda opt: opt.state_dict(), KeyboardInterrupt),
        (lambda opt: setattr(opt.groups[0], "weight_decay", 0.5), KeyboardInterrupt),
    ],
    ids=["prepare too many", "no memory", "prepare", "state_dict", "weight_decay"],
)
def test_an_interrupted_window_counts_no_step_twice(method, interrupted, error, cupy, monkeypatch):
    schedule = Stoppable()
    pair = Pair(cupy, method, [np.ones(4, np.float32)], lr=schedule, capturable=True)
    for _ in range(4):
        pair.step([np.ones(4, np.float32)])
    schedule.stops = error is KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(window, "Uploaded", OutOfMemory)
        interrupted(pair.opt)
    schedule.stops = False
    assert pair.opt.t == pair.reference.t
    for _ in range(3):
        pair.step([np.ones(4, np.float32)])
        pair.opt.prepare(8)
    assert pair.differing() == []


def test_an_interrupted_load_has_either_windows_counts(cupy):
    schedule = Stoppable()
    pair = Pair(cupy, fa.NAdam, [np.ones(4, np.float32)], lr=schedule, capturable=True)
    states = []
    for _ in range(3):
        pair.step([np.ones(4, np.float32)])
        states.append(pair.reference.state_dict())
    schedule.stops = True
    with pytest.raises(KeyboardInterrupt):
        pair.opt.load_state_dict(states[1])
    schedule.stops = False
    pair.reference.load_state_dict(states[1])
    for _ in range(3):
        pair.step([np.ones(4, np.float32)])
    assert pair.differing() == []


def test_an_interrupted_launch_is_no_step_of_the_windows(cupy, monkeypatch):
    monkeypatch.setattr(window, "STEPS", 3)
    pair = Pair(cupy, fa.Adam, [np.ones(4, np.float32)], lr=wavy, capturable=True)
    for k in range(8):
        if k % 2:
            with monkeypatch.context() as patch, pytest.raises(MemoryError):
                patch.setattr(type(pair.opt._plan), "steps", lambda plan: OutOfMemory(8))
                pair.opt.step([cupy.asarray(np.ones(4, np.float32))])
        pair.step([np.ones(4, np.float32)])
    assert pair.differing() == []


# Sparse rows.


def sparse_problem(dtype, seed=30):
    """A tree with rows that are narrow, wide, single elements and not aligned; and gradients for some of its rows."""
    rng = np.random.default_rng(seed)
    shapes = [(40, 7), (9,), (30,), (6, 8, 9), (5, 1031), (0, 4), (4, 0), (1200,)]
    offsets = [0, 1, 3, 0, 1, 0, 0, 2]
    tree = []
    for shape, lead in zip(shapes, offsets, strict=True):
        n = int(np.prod(shape))
        tree.append(hostile(rng, lead + n, dtype, bad=False)[lead:].reshape(shape))

    def draw(t):
        """Per leaf None, a dense gradient, or (indices, values), an index more than once and in any order."""
        found = []
        for leaf, p in enumerate(tree):
            kind = (t + leaf) % 5
            if leaf in (1, 7):
                found.append(None if kind == 0 else hostile(rng, p.size, dtype).reshape(p.shape))
            elif kind == 0:
                found.append(None)
            else:
                k = 0 if kind == 1 or not len(p) else int(rng.integers(1, 9))
                values = hostile(rng, k * p[:1].size, dtype).reshape(k, *p.shape[1:])
                found.append((rng.integers(0, max(1, len(p)), k), values))
        return found

    return tree, draw


def rows_on(cupy, x, t=0):
    """The same gradient on the device; the indices every other time."""
    if not isinstance(x, tuple):
        return None if x is None else moved(cupy, x)
    return (cupy.asarray(x[0]) if t % 2 else x[0]), moved(cupy, x[1])


ROWS_TAKE = "max_value", "ema_decay", "copy_to", "zero_grads"  # the others look at all rows first


@crossed(case=elementwise(), dtype=[np.float32, np.float64], semantics=["lazy", "exact"], chored=[False, True])
def test_rows_have_numpys_bits(chored, case, dtype, semantics, cupy):
    method, chosen = case
    tree, draw = sparse_problem(dtype)
    number = kernels_in_use().index(case)
    asked = cover.chores()[(number + (dtype == np.float64)) % len(cover.chores())] if chored else {}
    asked = {name: asked[name] for name in ROWS_TAKE if name in asked}
    pair = Pair(cupy, method, tree, asked=asked, **chosen | {"lr": lambda t: 0.02 / t**0.5})
    for t in range(1, 22):
        rows = draw(t)
        named = {"grad_scale": 0.5 if t % 4 == 0 else 1.0, "semantics": semantics}
        on = [rows_on(cupy, x, t) for x in rows]
        pair.reference.step_rows(rows, **named)
        pair.opt.step_rows(on, **named)
        assert differing(pair.here, pair.there) == []
        given = [[x[1] if isinstance(x, tuple) else x for x in each if x is not None] for each in (rows, on)]
        assert differing(*given) == []  # zeroed or not
        if t == 9:
            some_rows = [np.arange(0, len(p), 3) if p.ndim > 1 else None for p in tree]
            pair.reference.catch_up(some_rows)
            pair.opt.catch_up([x if x is None else cupy.asarray(x) for x in some_rows])
            assert differing(pair.here, pair.there) == []
        if t == 14:  # a dense step between
            pair.step([hostile(np.random.default_rng(t), p.size, dtype).reshape(p.shape) for p in tree])
    assert bool(pair.opt._behind.at) == (semantics == "exact")
    assert (
        any((at < pair.opt._table.counts[leaf]).any() for leaf, at in pair.opt._behind.at.items())
        or semantics == "lazy"
    )
    for opt in (pair.reference, pair.opt):
        opt.catch_up()
    assert pair.differing() == []
    assert differing(*(opt.copy_to or () for opt in (pair.reference, pair.opt))) == []


def test_values_of_one_row_are_added_in_the_order_given(cupy):
    """In float32 (1 + 2^-24) + 2^-24 is 1, and (2^-24 + 2^-24) + 1 is more."""
    small = 2.0**-24
    for given, expected in (([1, small, small], 1), ([small, small, 1], 1 + 2 * small)):
        p = cupy.asarray(np.zeros((3, 1), np.float32))
        values = cupy.asarray(np.array(given, np.float32)[:, None])
        fa.SGD(p, lr=1.0).step_rows((np.array([2, 2, 2]), values))
        assert p.get().ravel().tolist() == [0, 0, -expected]
    p = cupy.asarray(np.full(2, 5, np.float32))  # what is stored first keeps the sign of its zero
    opt = fa.SGD(p, lr=1.0, momentum=0.9)
    opt.step_rows((np.array([1]), cupy.asarray(np.array([-0.0], np.float32))))
    assert np.signbit(opt._state.streams[0].slots[0].get()).tolist() == [
        False,
        False,
    ]  # 0.9·0 + -0 is 0, as in test_bits


def test_only_the_rows_are_launched_and_numpy_indices_wait_for_nothing(cupy):
    tree = [np.ones((50_000, 64), np.float32), np.ones(3000, np.float32), np.ones(70, np.float32)]
    pair = Pair(cupy, fa.AdamW, tree)
    rng = np.random.default_rng(31)
    for k in range(6):
        indices, values = rng.integers(0, 50_000, 40), rng.standard_normal((40, 64)).astype(np.float32)
        there, dense = moved(cupy, values), np.ones(3000, np.float32) if k % 2 else None
        g = None if dense is None else moved(cupy, dense)
        at = cupy.asarray(indices) if k == 5 else indices
        waits, launches, held = cupy.state.waits, len(cupy.state.launches), sum(x.nbytes for x in cupy.state.allocated)
        pair.opt.step_rows([(at, there), g, None], semantics="exact")
        assert (cupy.state.waits > waits) == (k == 5)
        made = cupy.state.launches[launches:]
        assert [launch.name.split("_")[1] for launch in made] == ["ByValue"] * (k % 2) + ["Rows"]
        assert made[-1].grid[0] == -(-len(np.unique(indices)) * 16 // THREADS)
        assert k % 2 == 0 or made[0].grid == (-(-3000 // 512),)
        assert sum(x.nbytes for x in cupy.state.allocated) - held < 20_000
        pair.reference.step_rows([(indices, values), dense, None], semantics="exact")
    assert pair.differing() == []


def test_rows_upload_while_the_device_is_behind(cupy):
    """Steps of all sizes, and a table of coefficients that does not travel by value; nothing runs until the end."""
    rng = np.random.default_rng(32)
    tree = [rng.standard_normal((300, 3)).astype(np.float32), *some(rng, [3] * MANY)]
    pair = Pair(cupy, fa.Adam, tree)
    waits, kept = cupy.state.waits, []
    for k in range(8):
        indices = rng.integers(0, 300, int(rng.integers(1, 300)))
        values = rng.standard_normal((len(indices), 3)).astype(np.float32)
        dense = [g if (j + k) % 5 else None for j, g in enumerate(some(rng, [3] * MANY))]
        kept.append([rows_on(cupy, x) for x in [(indices, values), *dense]])
        pair.reference.step_rows([(indices, values), *dense], semantics="exact")
        pair.opt.step_rows(kept[-1], semantics="exact")
    assert cupy.state.waits == waits
    assert pair.differing() == []
    assert {launch.name.split("_")[1] for launch in cupy.state.launches} == {"Uploaded", "Rows"}
    pair.opt.step_rows(kept[0])
    held = len(cupy.state.allocated)
    for _ in range(3):
        pair.opt.step_rows(kept[0])
    assert len(cupy.state.allocated) == held


@pytest.mark.parametrize("laid", LAYOUTS)
def test_rows_in_another_order_of_axes(laid, cupy):
    rng = np.random.default_rng(33)
    for p in (rng.standard_normal((6, 5, 4, 3)).astype(np.float32),
              rng.standard_normal((6, 3, 4, 5)).astype(np.float32).transpose(0, 3, 1, 2)):  # fmt: skip
        here, there = p.copy(order="K"), moved(cupy, p)
        a, b = fa.Adam(here, backend="numpy"), fa.Adam(there)
        for k in range(STEPS):
            indices, values = rng.integers(0, 6, 4), rng.standard_normal((4, *p.shape[1:])).astype(np.float32)
            a.step_rows((indices, values))
            wide = moved(cupy, np.repeat(values, 2, axis=-1))  # with gaps
            b.step_rows((indices.astype(np.uint16), wide[..., ::2] if k == 0 else moved(cupy, LAYOUTS[laid](values))))
        assert differing([here], [there], a, b) == []


def test_rows_from_another_stream_are_waited_for(cupy, monkeypatch):
    theirs, p = cupy.Stream(ptr=77), cupy.asarray(np.ones((4, 2), np.float32))
    opt = fa.SGD(p, lr=1.0)
    late = cupy.asarray(np.zeros((1, 2), np.float32))
    cupy.state.stream.synchronize()
    theirs.do(lambda: late.host.fill(2), writes=[late.host])  # the owner still computes them
    opt.step_rows((np.array([3]), Interface(late)))
    theirs.do(lambda: late.host.fill(np.nan), writes=[late.host])  # and overwrites them right after
    theirs.synchronize()
    assert p.get().tolist() == [[1, 1]] * 3 + [[-1, -1]]
    torch = SimpleNamespace(cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=77)))
    monkeypatch.setitem(sys.modules, "torch", torch)
    tensors = fa.SGD({"w": Tensor(p)}, lr=1.0)
    at, values = (Tensor(cupy.asarray(x)) for x in (np.array([0, 0]), np.ones((2, 2), np.float32)))
    cupy.state.stream.synchronize()
    tensors.step_rows({"w": (at, values)}, semantics="exact")
    tensors.catch_up({"w": at})
    tensors.catch_up()
    assert cupy.state.launches[-1].stream is theirs
    theirs.synchronize()
    assert p.get().tolist() == [[-1, -1], [1, 1], [1, 1], [-1, -1]]


def test_bad_rows_change_nothing(cupy):
    ones = cupy.asarray(np.ones((4, 2), np.float32))
    opt = fa.Adam({"a": ones, "b": cupy.asarray(np.ones(3, np.float32))})
    good = np.array([1]), cupy.asarray(np.ones((1, 2), np.float32))
    opt.step_rows({"a": good}, semantics="exact")
    with cupy.cuda.Device(1):
        elsewhere = cupy.asarray(np.ones((1, 2), np.float32))
    before, launches = ones.get(), len(cupy.state.launches)
    for rows, error, text in (
        (
            {"a": good, "b": (cupy.asarray(np.array([0, -1])), cupy.asarray(np.ones(2, np.float32)))},
            IndexError,
            "is -1",
        ),
        ({"a": (good[0], elsewhere)}, ValueError, r"rows\['a'\]'s values are .* on cuda:1, .* expected one device"),
        ({"a": good, "b": np.ones(3, np.float32)}, TypeError, "expected an array on a CUDA device"),
    ):
        with pytest.raises(error, match=text):
            opt.step_rows(rows, semantics="exact")
    assert len(cupy.state.launches) == launches
    assert same_bits(before, ones.get())
    assert (opt.t, opt._table.counts.tolist(), opt._behind.at[0].tolist()) == (1, [1, 0, 1], [0, 1, 0, 0])


def test_rows_that_are_behind_move_and_are_copied(cupy):
    rng = np.random.default_rng(34)
    tree = [rng.standard_normal((20, 6)).astype(np.float32)]
    pair = Pair(cupy, fa.NAdam, tree)
    for k in range(12):
        indices, values = rng.integers(0, 20, 3), rng.standard_normal((3, 6)).astype(np.float32)
        pair.reference.step_rows([(indices, values)], semantics="exact")
        on = (indices, values) if pair.opt.backend == "numba" else rows_on(cupy, (indices, values), k)
        pair.opt.step_rows([on], semantics="exact")
        if k == 2:
            pair.opt = pickle.loads(pickle.dumps(pair.opt))
        elif k in (4, 6):
            pair.opt = pair.opt.to("cpu" if k == 4 else "cuda")
    pair.there = list(pair.opt.params)
    assert differing(pair.here, pair.there) == []  # behind by the same steps
    pair.reference.catch_up()
    pair.opt.catch_up()
    assert pair.differing() == []


# Moving, keeping.


def test_flat_buffers_lie_on_the_device_and_move(cupy):
    rng = np.random.default_rng(23)
    tree = {"a": rng.standard_normal((3, 5)).astype(np.float32), "b": [rng.standard_normal(7).astype(np.float32)]}
    here = fa.FlatBuffer(tree)
    there = here.to("cuda")
    assert here.to("cpu") is here
    assert there.to("cuda") is there
    assert "on cuda:0" in repr(there)
    assert (there.names, there.shapes, there.offsets) == (here.names, here.shapes, here.offsets)
    a, b = fa.AdamW(here, backend="numpy"), fa.AdamW(there)
    for _ in range(STEPS):
        g = rng.standard_normal(here.array.size).astype(np.float32)
        a.step(g)
        b.step(cupy.asarray(g))
        a.step(fa.FlatBuffer(tree))
        b.step(fa.FlatBuffer(tree).to("cuda"))
    assert differing([here.array], [there.array], a, b) == []
    back = there.to("cpu")
    assert same_bits(back.array, here.array)
    assert same_bits(back.views["b"][0], here.views["b"][0])
    zeros = there.zeros_like()
    assert zeros.same_layout(there)
    assert (zeros.array.get() == 0).all()
    with pytest.raises(ValueError, match="holds"):
        b.step(fa.FlatBuffer({"a": tree["a"]}).to("cuda"))


@pytest.mark.parametrize("capturable", [False, True])
def test_an_optimizer_moves_with_its_state(capturable, cupy):
    rng = np.random.default_rng(24)
    laid = np.asfortranarray(rng.standard_normal((3, 4)).astype(np.float32))
    plain, device = laid.copy(), {"w": moved(cupy, laid)}
    a, b = fa.NAdam({"w": plain}, lr=wavy, backend="numpy"), fa.NAdam(device, lr=wavy, capturable=capturable)
    for k in range(6):
        g = rng.standard_normal((3, 4)).astype(np.float32)
        a.step({"w": g})
        b.step({"w": moved(cupy, g)})
        if k == 0 and not capturable:
            host = b.to("cpu")
            assert host.backend == "numba"
            assert host.params["w"].strides == laid.strides
            assert host.to("cpu") is host
            b = host.to("cuda")
            assert b.backend == "cuda"
        elif k % 2:  # which forget the order of axes, as CuPy's own copies do
            b = pickle.loads(pickle.dumps(b)) if k == 3 else copy.deepcopy(b)
    assert differing([plain], [b.params["w"]], b, a) == []
    assert b.groups[0].lr is wavy


def test_state_is_kept_as_numpy_arrays_and_crosses_backends(cupy):
    rng = np.random.default_rng(25)
    tree = some(rng, [5, 33])
    pair = Pair(cupy, fa.AdamW, tree, amsgrad=True)
    for _ in range(STEPS):
        pair.step(some(rng, [5, 33]))
    kept = pair.opt.state_dict()
    assert {type(x) for own in kept["leaves"].values() for x in own.values()} == {int, str, np.ndarray}
    fresh = Pair(cupy, fa.AdamW, [p.copy() for p in pair.here], amsgrad=True)
    fresh.opt.load_state_dict(pair.reference.state_dict())
    fresh.reference.load_state_dict(kept)
    for _ in range(STEPS):
        fresh.step(some(rng, [5, 33]))
    assert fresh.differing() == []
    kept["leaves"]["params[0]"]["m"] = np.zeros(6, np.float32)
    with pytest.raises(ValueError, match=r"\['m'\] is float32\(6,\), expected float32\(5,\)"):
        fresh.opt.load_state_dict(kept)


FUNCTIONS = {name: f for name, f in vars(functional).items() if name.endswith("_step") and not name.startswith("_")}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_calls_work_on_the_device(name, cupy):
    rng = np.random.default_rng(26)
    slots = needed(kernels.ALL[name.removesuffix("_step")])
    here = {"p": rng.standard_normal(700).astype(np.float32)}
    here |= {slot.name: np.zeros(700, np.float32) for slot in slots}
    there = {key: moved(cupy, x) for key, x in here.items()}
    for t in range(1, 4):
        g = rng.standard_normal(700).astype(np.float32)
        FUNCTIONS[name](**here, g=g, t=t, lr=0.1, backend="numpy")
        FUNCTIONS[name](**there, g=moved(cupy, g), t=t, lr=0.1)
    assert differing(here.values(), there.values()) == []
    stepping = [launch for launch in cupy.state.launches if launch.name.startswith(name.removesuffix("_step"))]
    assert len([launch for launch in stepping if "SUMMING" not in launch.name]) == 3
    assert len(stepping) == len(cupy.state.launches) or kernels.ALL[name.removesuffix("_step")].sums


# What is here.


def test_functional_calls_run_on_the_owners_stream(cupy):
    owner, ones = Owner(cupy), np.ones(4, np.float32)
    p, m = owner.array(ones), owner.array(np.zeros(4, np.float32))
    fa.momentum_step(p, owner.array(ones), m, t=1, lr=0.5, momentum=0.9)
    assert [launch.stream for launch in cupy.state.launches] == [owner.stream]
    assert owner.read(p).tolist() == [0.5] * 4


def test_verify_holds_the_device_against_the_papers(cupy):
    found = [case for case in cover.cases(backends=("cuda",)) if not case.stored]
    assert {np.dtype(case.dtype) for case in found} == {np.dtype(np.float32), np.dtype(np.float64)}
    case = next(case for case in found if str(case).startswith("AdamW "))
    units, _, same = verify.check(case)
    assert same
    assert units <= verify.SLACK


def test_verify_holds_the_devices_chores_against_numpy(cupy, monkeypatch):
    monkeypatch.setattr(verify, "N", 3000)
    found = [case for case in cover.cases(backends=("cuda",)) if case.chores and not case.stored]
    assert [case.chores for case in found] == cover.chores()
    for case in found[1:3]:
        assert verify.check(case)[-1], case
    monkeypatch.setattr(cupy, "zeros", lambda n, dtype: cupy.asarray(np.full(n, 63).astype(dtype)))
    assert not verify.check(found[1])[-1]


def runtime(**changed):
    return {name: (lambda value=value: value) for name, value in changed.items()}


@pytest.mark.parametrize(
    ("changed", "version", "expected"),
    [
        ({}, "14.2.0", "ready"),
        ({}, "13.6.0", "cupy is 13.6.0, expected 14.2 or newer; pip install --upgrade cupy-cuda13x"),
        (runtime(driverGetVersion=0), "14.2.0", "no NVIDIA driver is loaded; install one"),
        (runtime(driverGetVersion=12080), "14.2.0", "the driver is for CUDA 12, cupy for 13; pip install cupy-cuda12x"),
        (runtime(getDeviceCount=0), "14.2.0", "no CUDA device is visible; nvidia-smi"),
    ],
)
def test_backends_say_why_cuda_is_not_ready(changed, version, expected, cupy, monkeypatch):
    for name, value in changed.items():
        monkeypatch.setattr(cupy.cuda.runtime, name, value)
    cupy.__version__ = version
    assert fa.backends()["cuda"].startswith(expected)
    p = cupy.asarray(np.ones(3, np.float32))
    if expected != "ready":
        with pytest.raises(RuntimeError, match=r"backend for arrays on a CUDA device is 'cuda', which cannot run here"):
            fa.Adam(p)


def test_without_cupy_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install cupy-cuda13x" in fa.backends()["cuda"]
    with pytest.raises(
        RuntimeError, match=r"backend is 'cuda'.*pip install cupy-cuda13x.*then cupy\.asarray\(\.\.\.\)"
    ):
        fa.Adam(np.ones(3), backend="cuda")
    for move in (fa.FlatBuffer([np.ones(3)]).to, fa.Adam(np.ones(3)).to):
        with pytest.raises(RuntimeError, match=r"where is 'cuda', which cannot run here.*pip install cupy-cuda13x"):
            move("cuda")
        move("cpu")
    fa.Adam(np.ones(3), backend="numba")  # and nothing else minds
