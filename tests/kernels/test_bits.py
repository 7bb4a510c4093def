"""Promise 1: the same bits on NumPy and on Numba, however memory is cut and however many threads walk it."""

from functools import cache

import numpy as np
import pytest
from cases import LARGE, SIZES, elementwise, hostile, kernels_in_use, label, same_bits, state_arrays

import fastadam as fa

STEPS = 4


@cache
def pool(dtype, bad):
    """Hostile numbers made once: to make them anew for every case takes as long as all its steps."""
    return hostile(np.random.default_rng(6 + bad), LARGE[-1] + 2**18, dtype, bad)


def taken(rng, n, dtype, bad):
    """So many hostile numbers, from anywhere in the pool."""
    numbers = pool(dtype, bad)
    first = rng.integers(numbers.size - n)
    return numbers[first : first + n].copy()


def tree_of_offsets(rng, dtype, turn=None):
    """Every size at element offsets 0 to 15 of its own memory, the large ones at two of them.

    turn: every size at one of the offsets, at another in each of 16 turns, and the largest in every eighth.
    """
    tree = []
    for offset in range(16):
        sizes = SIZES + (LARGE[:1] if offset in (0, 5) else []) + (LARGE[1:] if offset == 3 else [])
        for k, n in enumerate(sizes):
            if turn is None or (turn % 8 == 0 if n == LARGE[1] else n == LARGE[0] or (k + offset + turn) % 16 == 0):
                tree.append(taken(rng, n + offset, dtype, bad=False)[offset:])
    return tree


def gradients_like(rng, tree):
    grads = []
    for k, p in enumerate(tree):
        offset = (7 * k) % 16
        grads.append(taken(rng, p.size + offset, p.dtype.type, bad=True)[offset:].reshape(p.shape))
    return grads


def stepped(method, chosen, tree, rounds, backend, threads=1):
    params = [p.copy() if p.base is None else _moved(p) for p in tree]
    opt = method(params, backend=backend, **chosen)
    with fa.num_threads(threads):
        for grads in rounds:
            opt.step(grads)
    return params, state_arrays(opt)


def _moved(p):
    """A copy at the same offset within memory of its own."""
    lead = (p.ctypes.data // p.itemsize) % 16
    home = np.empty(p.size + 32, p.dtype)
    start = (lead - home.ctypes.data // p.itemsize) % 16
    home[start : start + p.size] = p
    return home[start : start + p.size]


def assert_same(one, other):
    for (a_params, a_state), (b_params, b_state) in [(one, other)]:
        wrong = [k for k, (a, b) in enumerate(zip(a_params, b_params, strict=True)) if not same_bits(a, b)]
        wrong += [key for key in a_state if not same_bits(a_state[key], b_state[key])]
        assert wrong == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("case", kernels_in_use(), ids=label)
def test_numba_equals_numpy_at_every_size_and_offset(case, dtype, turn):
    method, chosen = case
    rng = np.random.default_rng(7)
    tree = tree_of_offsets(rng, dtype, turn)
    rounds = [gradients_like(rng, tree) for _ in range(STEPS)]
    reference = stepped(method, chosen, tree, rounds, "numpy")
    moved = [not same_bits(a, b) for a, b in zip(reference[0], tree, strict=True) if a.size]
    assert sum(moved) > len(moved) / 2  # the reference itself did something
    for threads in (1, 2):
        assert_same(stepped(method, chosen, tree, rounds, "numba", threads), reference)
    small = [k for k, p in enumerate(tree) if p.size < 200][:30]  # under the size that wakes a second thread
    few = [[grads[k] for k in small] for grads in rounds]
    alone = stepped(method, chosen, [tree[k] for k in small], few, "numba", 2)
    assert_same((alone[0], {}), ([reference[0][k] for k in small], {}))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("case", elementwise(), ids=label)
def test_splitting_into_arrays_changes_nothing(case, backend):
    method, chosen = case
    rng = np.random.default_rng(8)
    whole = hostile(rng, 40_000, np.float32, bad=False)
    rounds = [hostile(rng, whole.size, np.float32) for _ in range(STEPS)]
    cuts = np.sort(rng.integers(0, whole.size, 60))
    one, state = stepped(method, chosen, [whole], [[g] for g in rounds], backend, 2)
    pieces, states = stepped(method, chosen, np.split(whole, cuts), [np.split(g, cuts) for g in rounds], backend, 2)
    assert same_bits(np.concatenate(pieces), one[0])
    for slot in {key.rpartition(".")[2] for key in state}:
        parts = [states[f"params[{k}].{slot}"] for k in range(len(pieces))]
        assert same_bits(np.concatenate(parts), state[f"params[0].{slot}"])


LAYOUTS = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "channels last": lambda x: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("of_g", LAYOUTS)
@pytest.mark.parametrize("of_p", LAYOUTS)
def test_axis_orders_change_nothing(of_p, of_g, backend):
    rng = np.random.default_rng(9)
    shape = (3, 5, 1, 7)
    p = rng.standard_normal(shape).astype(np.float32)
    plain = p.copy()
    laid = LAYOUTS[of_p](p.copy())
    a, b = fa.Adam(plain, backend="numpy"), fa.Adam(laid, backend=backend)
    strides = laid.strides
    for _ in range(STEPS):
        g = rng.standard_normal(shape).astype(np.float32)
        frozen = LAYOUTS[of_g](g.copy())
        frozen.flags.writeable = False
        a.step(g)
        b.step(frozen)
    assert laid.strides == strides
    assert same_bits(plain, laid)
    assert same_bits(a.state_dict()["leaves"]["params"]["v"], b.state_dict()["leaves"]["params"]["v"])


def test_work_is_shared_out_whole():
    """Every chunk lies in exactly one worker's span, and spans differ by at most a chunk's worth of elements."""
    from fastadam.host.compiled import _spans
    from fastadam.kernels.chores import CHUNK_WORDS
    from fastadam.plans.plan import CHUNK

    rng = np.random.default_rng(10)
    for workers in (1, 2, 3, 7):
        for count in (0, 1, 2, 50, 301):
            chunks = np.zeros((count, CHUNK_WORDS), np.int64)
            chunks[:, 2] = rng.integers(1, CHUNK + 1, count)
            spans = _spans(chunks, workers)[:workers]
            covered = [k for _, first, end, *_ in spans.tolist() for k in range(first, end)]
            assert covered == list(range(count))
            loads = [chunks[first:end, 2].sum() for _, first, end, *_ in spans.tolist()]
            assert max(loads) - min(loads) <= 2 * CHUNK
