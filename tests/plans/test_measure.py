"""What a sharded step needs of one process: gradients measured in parts, added up in order, leaves that know their
place."""

import math
import pickle
import random
from itertools import pairwise

import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cases import same_bits, state_arrays

import fastadam as fa
from fastadam.kernels.chores import Node, in_pairs, nodes, sum_of_nodes

BACKENDS = ["numpy", "numba"]
N, CUTS = 5 * 1024 + 7, (0, 1024, 4096, 4096, 5 * 1024 + 7)


def gradient(seed, n=N, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 3, n)).astype(dtype)


@pytest.mark.parametrize("total", [0, 1, 2, 3, 5, 7, 8, 13, 31, 32, 33, 100])
def test_nodes_of_parts_have_the_bits_of_the_whole(total):
    """However a list is cut: the same sum as over all of it, from few nodes."""
    values = (np.random.default_rng(total).standard_normal(total) * 1e3).tolist()
    draw = random.Random(total)
    for parts in (1, 2, 3, 9):
        cuts = [0, *sorted(draw.randint(0, total) for _ in range(parts - 1)), total]
        pieces = [nodes(values[a:b], a) for a, b in pairwise(cuts)]
        assert all(len(piece) <= 2 * math.log2(total + 1) + 1 for piece in pieces)
        together = [node for piece in pieces for node in piece]
        draw.shuffle(together)
        assert sum_of_nodes(together) == in_pairs(values)


def test_nodes_by_hand():
    assert nodes([1.0, 2.0, 4.0, 8.0], 1) == [Node(0, 1, 1.0), Node(1, 1, 6.0), Node(0, 4, 8.0)]
    assert sum_of_nodes([Node(0, 2, 4.0), Node(1, 0, 3.0)]) == 7.0
    for lacking in ([Node(0, 1, 1.0)], [Node(0, 0, 1.0), Node(1, 0, 1.0)], [Node(0, 0, 1.0), Node(0, 2, 1.0)]):
        with pytest.raises(ValueError, match="parts end to end"):
            sum_of_nodes(lacking)


def whole_and_parts(backend, **chosen):
    """An optimizer over one array, and one over pieces of another with its values."""
    p = gradient(99)
    pieces = [p[a:b].copy() for a, b in pairwise(CUTS)]
    named = {"lr": 0.1, "backend": backend, "seed": 3, **chosen}
    places = {f"[{k}]": 77 + a for k, a in enumerate(CUTS[:-1])}
    return fa.AdamW(p, index_offset=77, **named), fa.AdamW(pieces, index_offset=places, **named)


def joined(measures):
    first, *others = measures.values()
    return {"": first.joined(others)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("moments", [None, "bfloat16", "8bit"])
def test_parts_step_as_the_whole(backend, moments):
    """Random bits and the norm are the whole leaf's; so is the decision to skip."""
    whole, parts = whole_and_parts(backend, moments=moments, max_norm=1.0, skip_nonfinite=True)
    starts = {f"[{k}]": a for k, a in enumerate(CUTS[:-1])}
    for t in range(4):
        g = gradient(t)
        if t == 2:
            g[1500] = np.nan
        cut = [g[a:b] for a, b in pairwise(CUTS)]
        measured = pickle.loads(pickle.dumps(parts.measure(cut, starts=starts)))
        info = parts.step(cut, 0.5, measured=joined(measured))
        assert info == whole.step(g, 0.5)
        assert info.skipped == (t == 2)
        assert same_bits(np.concatenate(parts.params), whole.params)
    assert (parts.t, parts.skipped) == (whole.t, whole.skipped) == (3, 1)
    if moments != "8bit":
        slots = parts.moments()
        for name, x in whole.moments()["params"].items():
            assert same_bits(np.concatenate([slots[f"params[{k}]"][name] for k in range(len(slots))]), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_measured_leaves_of_others_count(backend):
    """Each group's limit looks at its own leaves, the global one at all: of whom a process has some."""
    named = {"lr": 0.1, "max_norm": 1.0, "backend": backend}
    trees = [[np.ones(3, np.float32), np.ones(5, np.float32)], [np.ones(2000, np.float32)]]
    grads = [[gradient(1, 3), None], [gradient(2, 2000)]]

    def made(kept):
        params = [[trees[g][k].copy() for k in leaves] for g, leaves in enumerate(kept)]
        return fa.SGD([{"params": params[0], "max_norm": 0.25}, {"params": params[1]}], **named)

    whole, alone = made(([0, 1], [0])), made(([0], []))
    measured = whole.measure(grads)
    assert [one.group for one in measured.values()] == [0, 0, 1]
    assert measured["[0][1]"] == fa.Measured(0)
    info = alone.step([grads[0][:1], []], measured=measured)
    assert info == whole.step(grads, measured=measured) == made(([0, 1], [0])).step(grads)
    assert same_bits(alone.params[0]["params"][0], whole.params[0]["params"][0])
    nobody = fa.SGD([], max_norm=1.0, skip_nonfinite=True, backend=backend)
    assert nobody.step([], measured={"x": fa.Measured(0, (Node(0, 0, 4.0),), 2.0)}).clip_factor == 0.5
    assert nobody.step([], measured={"x": fa.Measured(0, (Node(0, 0, 4.0),), math.inf)}).skipped
    assert (nobody.t, nobody.skipped) == (1, 1)


def test_a_leaf_of_another_process_is_named():
    opt = fa.SGD(np.ones(3, np.float32), skip_nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"grads\['there'\] holds NaN"):
        opt.step(gradient(1, 3), measured={"": fa.Measured(0), "['there']": fa.Measured(0, (), math.nan)})
    assert opt.t == 0


STORED = [(np.float32, np.float32), (np.float64, np.float64), (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
          (ml_dtypes.bfloat16, np.float32), (np.float16, np.float16)]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("p_dtype", "g_dtype"), STORED)
def test_streams_are_added_in_order(backend, p_dtype, g_dtype):
    """In the compute type, then scaled: NumPy's sum as the gradient, and what accumulate gives."""
    wide = np.float64 if p_dtype is np.float64 else np.float32
    for reduction in ("mean", "sum"):
        a, b, c = (fa.AdamW(gradient(99, dtype=p_dtype), seed=4, max_norm=2.0, backend=backend) for _ in range(3))
        for t in range(3):
            parts = [gradient([t, k], dtype=g_dtype) for k in range(3)]
            total = (parts[0].astype(wide) + parts[1]) + parts[2]
            info = a.step(streams=parts, reduction=reduction, grad_scale=0.5)
            assert info == b.step(total, 0.5 * (1 / 3 if reduction == "mean" else 1))
            for g in parts:
                c.accumulate(g)
            measured = c.measure()
            assert info == c.step(reduction=reduction, grad_scale=0.5, measured=measured)
        assert same_bits(a.params, b.params)
        assert same_bits(a.params, c.params)
        assert all(same_bits(x, y) for x, y in zip(state_arrays(a).values(), state_arrays(b).values(), strict=True))


CHORES = [
    (fa.AdamW, {"moments": "8bit", "stats": "tensor", "max_value": 0.5}),
    (fa.AdamW, {"zero_grads": True, "ema_decay": 0.9, "skip_nonfinite": True}),
    (fa.LAMB, {"max_norm": 1.0, "stats": "group"}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "chosen"), CHORES)
def test_a_walk_over_streams_does_what_one_over_their_sum_does(backend, method, chosen):
    """Also of unlike dtypes and strides, and of None in some: each leaf has the sum of those that it has."""

    def made():
        return method([gradient(99).reshape(3, -1).copy(), np.ones(3, np.float32)], lr=0.1, backend=backend, **chosen)

    a, b = made(), made()
    for t in range(3):
        first, second = ([gradient([t, k, j]).reshape(3, -1) for j in range(2)] for k in range(2))
        streams = [[np.asfortranarray(first[0]), None], [None, np.full(3, t, np.float32)],
                   [second[0].astype(np.float16), np.full(3, 1 / 3)], [second[1], None]]  # fmt: skip
        if "skip_nonfinite" in chosen and t == 1:
            streams[2][1][1] = np.inf
        half = second[0].astype(np.float16).astype(np.float32)
        sums = [first[0] + half + second[1], np.full(3, t, np.float32) + streams[2][1].astype(np.float32)]
        measured = a.measure(streams=streams)
        assert measured == b.measure([x.copy() for x in sums])
        info = a.step(streams=streams, reduction="sum")
        assert info == b.step([x.copy() for x in sums])
        if "zero_grads" in chosen:
            assert not any(x.any() for tree in streams for x in tree if x is not None)
    assert all(same_bits(x, y) for x, y in zip(state_arrays(a).values(), state_arrays(b).values(), strict=True))
    assert all(same_bits(x, y) for x, y in zip(a.params, b.params, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_catch_up_between_streams(backend):
    """The zeros of missed steps have no list of arrays."""
    dense, exact = (fa.Adam(np.ones((9, 5), np.float32), lr=0.1, backend=backend) for _ in range(2))
    g = gradient(3, 45).reshape(9, 5)
    for opt in (dense, exact):
        opt.step(streams=[g, g])
    rows = np.zeros((9, 5), np.float32)
    for k in (2, 4):
        rows[:] = 0
        rows[k] = g[k]
        dense.step(rows.copy())
        exact.step_rows((np.array([k]), g[k : k + 1]), semantics="exact")
    for opt in (dense, exact):
        opt.step(streams=[g, g, g])
    assert same_bits(dense.params, exact.params)


def test_statistics_of_parts():
    whole, parts = whole_and_parts("numba", stats="tensor", max_norm=1.0)
    with pytest.raises(ValueError, match="nothing has been noted"):
        parts.noted()
    starts = {f"[{k}]": a for k, a in enumerate(CUTS[:-1])}
    cut = [gradient(1)[a:b] for a, b in pairwise(CUTS)]
    info = whole.step(gradient(1))
    parts.step(cut, measured=joined(parts.measure(cut, starts=starts)))
    stats = info.stats["params"]
    g, p, u = (joined(dict(enumerate(column)))[""] for column in zip(*parts.noted(starts).values(), strict=True))
    norms = [stats[f"{name}_norm"] for name in ("param", "update")]
    assert [math.sqrt(x.squares) for x in (p, u)] == norms
    assert math.sqrt(g.squares) == stats["grad_norm"]
    assert (g.largest, p.largest, u.largest) == (0, 0, stats["largest_update"])


def test_the_order_of_streams_shows():
    one, other = (fa.SGD(np.zeros(N, np.float32), backend="numpy") for _ in range(2))
    parts = [gradient(k) for k in range(3)]
    one.step(streams=parts)
    other.step(streams=parts[::-1])
    assert not same_bits(one.params, other.params)


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_of_trees(backend):
    """None as for accumulate, zeroed where asked, skipped as one, and nothing left over after an error."""
    opt = fa.SGD([np.zeros(2), np.zeros(1)], lr=1.0, zero_grads=True, skip_nonfinite=True, backend=backend)
    streams = [[np.ones(2), None], [np.full(2, 3.0), None]]
    opt.step(streams=streams)
    assert [p.tolist() for p in opt.params] == [[-2.0, -2.0], [0.0]]
    assert [g[0].tolist() for g in streams] == [[0.0, 0.0], [0.0, 0.0]]
    assert opt.step(streams=[[np.array([np.nan, 0]), None], [np.ones(2), None]]).skipped
    assert opt.accumulated == (0, {})
    with pytest.raises(ValueError, match=r"streams\[1\]: grads\[0\] is float64\(3,\), params\[0\] is float64\(2,\)"):
        opt.step(streams=[[np.ones(2), None], [np.ones(3), None]])
    assert opt.accumulated == (0, {})
    opt.step([np.ones(2), np.ones(1)])
    assert opt.t == 2


def test_bad_input():
    opt = fa.SGD([np.ones(3), np.ones(2)])
    g = [np.ones(3), np.ones(2)]
    for error, words, call in (
        (ValueError, "got no grads and nothing has been accumulated", lambda: opt.measure()),
        (ValueError, "streams is empty, expected at least one tree", lambda: opt.step(streams=[])),
        (ValueError, "grads and streams are given", lambda: opt.measure(g, streams=[g])),
        (ValueError, "grads and streams are given", lambda: opt.step(g, streams=[g])),
        (ValueError, r"starts has '\[2\]'", lambda: opt.measure(g, starts={"[2]": 0})),
        (ValueError, r"starts\['\[1\]'\] is 1000, expected a multiple of 1024",
         lambda: opt.measure(g, starts={"[1]": 1000})),
        (TypeError, r"starts\['\[1\]'\] is '0'", lambda: opt.measure(g, starts={"[1]": "0"})),
        (ValueError, r"grads\[0\] is float64\(2,\)", lambda: opt.measure(g[::-1])),
        (TypeError, "measured is list", lambda: opt.step(g, measured=[])),
        (TypeError, r"measured\['x'\] is int, expected a Measured", lambda: opt.step(g, measured={"x": 1})),
        (ValueError, r"measured\['x'\].group is 1", lambda: opt.step(g, measured={"x": fa.Measured(1)})),
        (ValueError, r"measured\['x'\]: a node begins with block 1, expected 0",
         lambda: opt.step(g, measured={"x": fa.Measured(0, (Node(0, 1, 1.0),))})),
        (ValueError, r"index_offset lacks '\[1\]'", lambda: fa.SGD(g, index_offset={"[0]": 0})),
        (ValueError, r"index_offset has '\[2\]'",
         lambda: fa.SGD(g, index_offset={"[0]": 0, "[1]": 3, "[2]": 5})),
        (TypeError, r"index_offset\['\[0\]'\] is 'x'", lambda: fa.SGD(g, index_offset={"[0]": "x", "[1]": 3})),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            call()
    assert (opt.t, opt.accumulated) == (0, (0, {}))
    assert all((p == 1).all() for p in opt.params)


@pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")
@pytest.mark.parametrize("skipping", [False, True, "raise"])
def test_a_device_measures_and_obeys(skipping, cupy):
    whole, parts = whole_and_parts("numpy", max_norm=1.0, skip_nonfinite=skipping, stats="tensor")
    device = fa.AdamW(
        [cupy.asarray(x) for x in parts.params], lr=0.1, seed=3, max_norm=1.0, skip_nonfinite=skipping, stats="tensor",
        index_offset=parts.index_offset,
    )  # fmt: skip
    starts = {f"[{k}]": a for k, a in enumerate(CUTS[:-1])}
    for t in range(4):
        g = gradient(t)
        if t == 2 and skipping:
            g[1500] = np.nan
        cut = [g[a:b] for a, b in pairwise(CUTS)]
        on_device = [cupy.asarray(x) for x in cut]
        measured = device.measure(on_device, starts=starts)
        if not (t == 2 and skipping):
            assert measured == parts.measure(cut, starts=starts)
        if t == 2 and skipping == "raise":
            with pytest.raises(FloatingPointError, match="holds NaN"):
                device.step(on_device, measured=joined(measured))
            continue
        a, b = whole.step(g), device.step(on_device, measured=joined(measured))
        assert (a.grad_norm, a.clip_factor, a.skipped) == (b.grad_norm, b.clip_factor, b.skipped)
        assert same_bits(np.concatenate([x.get() for x in device.params]), whole.params)
    assert (device.t, device.skipped) == (whole.t, whole.skipped)


@pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")
@pytest.mark.parametrize("chosen", [{"max_norm": 1.0, "zero_grads": True}, {"moments": "8bit"}], ids=str)
def test_a_device_adds_streams(chosen, cupy):
    """Of as many arrays as there are, of unlike dtypes, and of one again, with the host's bits; None in some."""
    rng = np.random.default_rng(5)
    shapes = (3, 700), (5,), (0,)
    named = {"lr": 0.1, "seed": 3, **chosen}
    host = fa.AdamW([rng.standard_normal(shape).astype(np.float32) for shape in shapes], backend="numpy", **named)
    device = fa.AdamW([cupy.asarray(p) for p in host.params], **named)
    for t, count in enumerate((2, 5, 1, 2)):
        streams = [[rng.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(count)]
        if t == 3:
            streams[0][1] = None
            streams[1][0] = np.asfortranarray(streams[1][0].astype(np.float16))
        there = [[None if g is None else cupy.asarray(g) for g in tree] for tree in streams]
        if t == 1 and "max_norm" in chosen:
            assert device.measure(streams=there) == host.measure(streams=streams)
        a, b = host.step(streams=streams, grad_scale=0.5), device.step(streams=there, grad_scale=0.5)
        assert (a.grad_norm, a.clip_factor) == (b.grad_norm, b.clip_factor)
        assert all(same_bits(x, y.get()) for x, y in zip(host.params, device.params, strict=True))
        if "zero_grads" in chosen:
            assert not any(g.get().any() for tree in there for g in tree if g is not None)
