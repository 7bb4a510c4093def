"""step_rows: lazily as the papers on sparse Adam have it, exactly as the dense step would, and only where asked."""

import copy
import pickle

import numpy as np
import pytest
from cases import by_turns, elementwise, same_bits, state_arrays

import fastadam as fa
import papers
from fastadam.kernels.chores import TAKEN
from fastadam.plans import rows as row_gradients
from fastadam.state import sparse

ROWS, WIDTH = 23, 70


def summed(indices, values, shape):
    """The dense gradient: rows of the same index added in the order given; the first one is stored."""
    dense, seen = np.zeros(shape, values.dtype), set()
    for i, v in zip(indices.tolist(), values, strict=True):
        dense[i] = dense[i] + v if i in seen else v
        seen.add(i)
    return dense


def problem(dtype=np.float32, seed=0, rows=ROWS, width=WIDTH):
    rng = np.random.default_rng(seed)
    tree = {"table": rng.standard_normal((rows, width)).astype(dtype), "w": rng.standard_normal(7).astype(dtype)}

    def draw(k=None):
        k = int(rng.integers(0, 7)) if k is None else k
        values = (rng.standard_normal((k, width)) * 10.0 ** rng.uniform(-6, 2, (k, 1))).astype(dtype)
        return rng.integers(0, rows, k), values, rng.standard_normal(7).astype(dtype)

    return tree, draw


def all_bits(params, opt):
    return {**{f"p.{key}": x for key, x in params.items()}, **state_arrays(opt)}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [key for key in one if not same_bits(one[key], other[key])] == []


@by_turns(case=elementwise(), backend=["numpy", "numba"])
def test_exact_rows_are_the_dense_step_to_the_bit(case, backend):
    method, chosen = case
    for dtype in (np.float32, np.float64):
        tree, draw = problem(dtype)
        ours, theirs = copy.deepcopy(tree), copy.deepcopy(tree)
        chosen = chosen | {"lr": lambda t: 0.02 / t**0.5}
        a, b = method(ours, backend=backend, **chosen), method(theirs, backend="numpy", **chosen)
        for t in range(1, 91):
            indices, values, w = draw()
            w = None if t % 3 == 0 else w
            scale = 0.5 if t % 4 == 0 else 1.0
            a.step_rows({"table": (indices, values)} | ({} if w is None else {"w": w}), scale, semantics="exact")
            b.step({"table": summed(indices, values, theirs["table"].shape), "w": w}, scale)
            assert same_bits(ours["table"][indices], theirs["table"][indices])  # touched rows are to date
            if t == 40:
                a.catch_up({"table": np.arange(5)})
                assert same_bits(ours["table"][:5], theirs["table"][:5])
            if t == 60:  # a dense step between
                g = draw(ROWS)[1]
                a.step({"table": g, "w": None})
                b.step({"table": g, "w": None})
                assert_same(ours, theirs)
        untouched = [k for k in range(ROWS) if not same_bits(ours["table"][k], theirs["table"][k])]
        assert untouched  # without this, nothing had been left behind to catch up
        a.catch_up()
        assert_same(all_bits(ours, a), all_bits(theirs, b))
        assert a.state_dict()["leaves"]["params['table']"]["count"] == 91


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_lazy_rows_follow_the_paper_and_the_others_stay(backend):
    """LazyAdam: Adam's equations on the named rows, bias correction by the leaf's count, all else untouched."""
    tree, draw = problem(np.float64)
    before = copy.deepcopy(tree)
    opt = fa.Adam(tree, lr=1e-2, betas=(0.8, 0.95), eps=1e-3, backend=backend)
    p, m, v = before["table"].copy(), np.zeros((ROWS, WIDTH)), np.zeros((ROWS, WIDTH))
    for t in range(1, 40):
        indices, values, _ = draw()
        opt.step_rows({"table": (indices, values)})
        for i in set(indices.tolist()):
            g = summed(indices, values, p.shape)[i]
            m[i] = 0.8 * m[i] + (1 - 0.8) * g
            v[i] = 0.95 * v[i] + (1 - 0.95) * g * g
            p[i] -= 1e-2 * (m[i] / (1 - 0.8**t)) / (np.sqrt(v[i] / (1 - 0.95**t)) + 1e-3)
    np.testing.assert_allclose(tree["table"], p, rtol=1e-12, atol=1e-13)
    state = opt.state_dict()["leaves"]
    np.testing.assert_allclose(state["params['table']"]["m"], m, rtol=1e-12, atol=1e-13)
    assert same_bits(tree["w"], before["w"])
    assert state["params['w']"]["count"] == 0
    assert state["params['table']"]["count"] == 39
    assert opt.t == 39


def test_exact_follows_the_oracle_of_the_paper():
    tree, draw = problem(np.float64)
    p = tree["table"].copy()
    opt = fa.AdamW(tree, lr=1e-2, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    state = {"m": np.zeros_like(p), "v": np.zeros_like(p)}
    for t in range(1, 31):
        indices, values, _ = draw()
        opt.step_rows({"table": (indices, values)}, semantics="exact")
        g = summed(indices, values, p.shape)
        p, state = papers.adamw(t, p, g, state, lr=1e-2, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    opt.catch_up()
    np.testing.assert_allclose(tree["table"], p, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("semantics", ["lazy", "exact"])
def test_backends_threads_and_the_order_of_rows_agree(semantics):
    results = []
    for backend, threads, order in (("numpy", 1, False), ("numba", 1, False), ("numba", 2, False), ("numba", 2, True)):
        tree, draw = problem(
            rows=2_000, width=row_gradients.PIECE + 6
        )  # more than one piece a row, enough for two threads
        opt = fa.Adam(tree, backend=backend)
        with fa.num_threads(threads):
            for _ in range(3):
                indices, values, w = draw(120)
                if order:  # another order of rows; of the values of one row, the same order
                    by = np.argsort(indices, kind="stable")
                    indices, values = indices[by].astype(np.uint16), np.asfortranarray(values[by])
                opt.step_rows({"table": (indices, values), "w": w}, semantics=semantics)
        results.append(all_bits(tree, opt))
    for other in results[1:]:
        assert_same(results[0], other)


def test_only_the_rows_are_walked():
    tree, draw = problem(rows=5_000)
    opt = fa.Adam(tree)
    walked = []
    launch = opt._plan.launch_some
    opt._plan.launch_some = lambda work, *rest: walked.extend(one.chunks for one in work) or launch(work, *rest)
    for semantics in ("lazy", "exact", "exact"):
        indices, values, _ = draw(40)
        opt.step_rows({"table": (indices, values)}, semantics=semantics)
        assert walked[-1][:, 2].sum() == len(np.unique(indices)) * WIDTH


def test_histories_grow_and_forget():
    """Two leaves that fall behind at different counts, for longer than there was room for."""
    rng = np.random.default_rng(3)
    tree = [rng.standard_normal((4, 3)).astype(np.float32) for _ in range(2)]
    ours, theirs = copy.deepcopy(tree), copy.deepcopy(tree)
    a, b = fa.NAdam(ours, lr=lambda t: 1e-3 * (1 + t % 5)), fa.NAdam(theirs, lr=lambda t: 1e-3 * (1 + t % 5))
    for t in range(5 * sparse.FIRST):
        both = t > 10 and t % 2
        g = [rng.standard_normal((1, 3)).astype(np.float32) for _ in range(2)]
        k = t % 3 if t < 3 * sparse.FIRST else t % 4  # the last row falls behind for longest
        rows = [(np.array([k]), g[0]), (np.array([0]), g[1]) if both else None]
        a.step_rows(rows, semantics="exact")
        b.step([None if x is None else summed(*x, (4, 3)) for x in rows])
    assert len(a._behind.table) < 12 * sparse.FIRST
    a.catch_up()
    assert_same(
        all_bits({str(k): x for k, x in enumerate(ours)}, a), all_bits({str(k): x for k, x in enumerate(theirs)}, b)
    )


@pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_saved_states_are_to_date(again):
    tree, draw = problem()
    opt = fa.Adam(tree)
    for _ in range(20):
        indices, values, _ = draw()
        opt.step_rows({"table": (indices, values)}, semantics="exact")
    tree_2, opt_2 = again((tree, opt))
    assert_same(all_bits(tree, opt), all_bits(tree_2, opt_2))
    for _ in range(5):
        indices, values, _ = draw()
        opt.step_rows({"table": (indices, values)}, semantics="exact")
        opt_2.step_rows({"table": (indices, values)}, semantics="exact")
    assert_same(all_bits(tree, opt), all_bits(tree_2, opt_2))


def test_lazy_after_exact_brings_all_rows_to_date_first():
    tree, draw = problem()
    other = copy.deepcopy(tree)
    a, b = fa.Adam(tree), fa.Adam(other)
    for semantics in ["exact"] * 10 + ["lazy"] * 3 + ["exact"] * 4:
        indices, values, _ = draw(3)
        a.step_rows({"table": (indices, values)}, semantics=semantics)
        if semantics == "exact":
            b.step({"table": summed(indices, values, (ROWS, WIDTH)), "w": None})
        else:
            b.step_rows({"table": (indices, values)})
    a.catch_up()
    assert_same(all_bits(tree, a), all_bits(other, b))


V = np.ones((2, WIDTH), np.float32)
AT = np.array([0, 1])
BAD = {
    "too large": ({"table": (np.array([0, ROWS, ROWS + 1]), np.ones((3, WIDTH), np.float32))}, IndexError,
                  r"rows\['table'\]'s indices\[1\] is 23, expected 0 to 22"),
    "negative": ({"table": (np.array([3, -1]), V)}, IndexError, r"indices\[1\] is -1"),
    "huge": ({"table": (np.array([3, 2**64 - 1], np.uint64), V)}, IndexError, r"indices\[1\] is 18446744073709551615"),
    "floats": ({"table": (np.array([0.0, 1.0]), V)}, TypeError, "indices are float64"),
    "booleans": ({"table": (np.array([True, False]), V)}, TypeError, "indices are bool"),
    "a list": ({"table": ([0, 1], V)}, TypeError, "indices are list"),
    "masked": ({"table": (np.ma.masked_array(AT), V)}, TypeError, "indices are MaskedArray"),
    "two axes": ({"table": (AT[None], V)}, TypeError, "one-dimensional"),
    "too few": ({"table": (AT, V[:1])}, ValueError, r"values are float32\(1, 70\), expected float32\(2, 70\)"),
    "dtype": ({"table": (AT, V.astype(int))}, TypeError, "values are int64"),
    "no pair": ({"table": (AT,)}, ValueError, r"tuple of 1, expected \(indices, values\)"),
    "scalar": ({"scale": (AT, V)}, ValueError, r"rows\['scale'\] has rows"),
    "Fortran": ({"columns": (AT, np.ones((2, 4), np.float32))}, ValueError, "first axis slowest"),
    "flat buffer": ({"flat": (AT, np.ones(2, np.float32))}, ValueError, "FlatBuffer"),
    "unknown": ({"tabel": (AT, V)}, ValueError, "tabel"),
    "dense": ({"table": (AT, V), "scale": True}, TypeError, "scale"),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("semantics", ["lazy", "exact"])
@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused_and_nothing_changes(case, semantics, backend):
    rows, error, text = BAD[case]
    tree = {"table": np.ones((ROWS, WIDTH), np.float32), "scale": np.ones((), np.float32),
            "columns": np.asfortranarray(np.ones((5, 4), np.float32)),
            "flat": fa.FlatBuffer([np.ones(6, np.float32)])}  # fmt: skip
    opt = fa.Adam(tree, backend=backend)
    opt.step_rows({"table": (AT, V)}, semantics="exact")
    before = copy.deepcopy((tree["table"], opt._behind.at, opt._table.counts))
    with pytest.raises(error, match=text):
        opt.step_rows(rows, semantics=semantics)
    assert same_bits(tree["table"], before[0])
    assert opt.t == 1
    assert all(np.array_equal(before[1][k], opt._behind.at[k]) for k in before[1])
    assert np.array_equal(before[2], opt._table.counts)


def test_other_refusals():
    tree = problem()[0]
    opt = fa.Adam(tree)
    with pytest.raises(ValueError, match="semantics is 'sparse', expected 'lazy' or 'exact'"):
        opt.step_rows({"table": (AT, V)}, semantics="sparse")
    with pytest.raises(ValueError, match="share memory"):
        opt.step_rows({"table": (AT, tree["table"][3:5])})
    with pytest.raises(IndexError, match="is 99"):
        opt.catch_up({"table": np.array([99])})
    assert opt.t == 0


def test_nothing_given_still_counts():
    tree, _draw = problem()
    opt = fa.Adam(tree)
    opt.step_rows({})
    opt.step_rows(None)
    assert opt.t == 2
    assert opt.state_dict()["leaves"]["params['table']"]["count"] == 0
    opt.step_rows({"table": (np.array([], int), np.empty((0, WIDTH), np.float32))})
    assert opt.t == 3
    assert opt.state_dict()["leaves"]["params['table']"]["count"] == 1
    empty = fa.Adam({})
    empty.step_rows({})
    assert empty.t == 1


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("semantics", ["lazy", "exact"])
def test_zeroed_values_must_be_writable_and_separate(semantics, backend):
    tree, draw = problem()
    opt = fa.Adam(tree, backend=backend, zero_grads=True)
    indices, values, w = draw(3)
    opt.step_rows({"table": (indices, values), "w": w}, semantics=semantics)
    assert (values == 0).all()
    assert (w == 0).all()
    before = copy.deepcopy(all_bits(tree, opt))
    frozen = values.copy()
    frozen.flags.writeable = False
    for bad, text in ((frozen, "read-only"), (np.broadcast_to(values[:1], values.shape), "read-only")):
        with pytest.raises(ValueError, match=text):
            opt.step_rows({"table": (indices, bad)}, semantics=semantics)
    shared = np.zeros(7 + 3 * WIDTH, np.float32)
    with pytest.raises(ValueError, match="share memory"):
        opt.step_rows({"table": (indices, shared[: 3 * WIDTH].reshape(3, WIDTH)), "w": shared[:7]}, semantics=semantics)
    assert_same(before, all_bits(tree, opt))
    assert opt.t == 1


def test_averages_and_repeated_rows_are_brought_to_date():
    tree, draw = problem()
    other = copy.deepcopy(tree)
    a, b = fa.Adam(tree, ema_decay=0.5), fa.Adam(other, ema_decay=0.5)
    for _ in range(9):
        indices, values, _ = draw(2)
        a.step_rows({"table": (indices, values)}, semantics="exact")
        b.step({"table": summed(indices, values, (ROWS, WIDTH)), "w": None})
    a.catch_up({"table": np.array([3, 3, 3, 5])})
    assert same_bits(tree["table"][[3, 5]], other["table"][[3, 5]])
    with a.averaged(), b.averaged():
        assert same_bits(tree["table"], other["table"])
    assert same_bits(tree["table"], other["table"])
    with pytest.raises(TypeError, match=r"rows\['table'\]'s indices are tuple"):
        a.catch_up({"table": (np.array([1]), np.ones(3))})


def test_a_dense_gradient_among_exact_rows_finds_its_leaf_to_date():
    rng = np.random.default_rng(2)
    ours = [rng.standard_normal((9, 4)).astype(np.float32) for _ in range(2)]
    theirs = copy.deepcopy(ours)
    a, b = fa.Adam(ours), fa.Adam(theirs)
    for t in range(12):
        g = rng.standard_normal((9, 4)).astype(np.float32)
        at = np.array([t % 9])
        rows = [(at, g[:1]), g if t % 5 == 4 else (at, g[1:2])]
        a.step_rows(rows, semantics="exact")
        b.step([x if isinstance(x, np.ndarray) else summed(*x, (9, 4)) for x in rows])
    a.catch_up()
    assert all(same_bits(p, q) for p, q in zip(ours, theirs, strict=True))


def test_neighbours_that_go_alike_share_chunks():
    place, rows = np.array([4, 5, 6, 0, 1]), np.array([2, 3, 4, 7, 8])
    missed = np.array([1, 1, 2, 0, 0])
    found = row_gradients.row_chunks(3, rows, 3, place, missed, 400)[:, :TAKEN].tolist()
    assert found == [
        [3, 800, 800, 3, 1600, 1], [3, 1600, 400, 3, 2400, 2], [3, 2800, 800, 3, 0, 0],
    ]  # fmt: skip
    whole = row_gradients.row_chunks(0, np.arange(10), 5, None, 7, 300)
    assert whole[:, 2].tolist() == [1024, 1024, 952]
    assert whole[:, 1].tolist() == [0, 1024, 2048]
    assert (whole[:, 3:] == [5, 0, 7, 0]).all()
    assert row_gradients.row_chunks(0, np.arange(0), 0, None, 0, 4).shape == (0, 7)
