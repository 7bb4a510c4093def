"""replace: a leaf becomes another array, of more rows or fewer, and its state follows the rows.

The oracle is an optimizer made anew over the same arrays, whose state_dict is put together by hand.
"""

import pickle

import numpy as np
import pytest
from cases import METHODS, label, same_bits, state_arrays, variants

import fastadam as fa
from fastadam.kernels.codes import codes_and_scales
from fastadam.kernels.formats import CODES

ROWS = [4, 2, -1, 2, 0, 99]  # of 5: some go, one comes twice, two begin anew
FORMATS = [
    (np.float32, {"ema_decay": 0.9}), (np.float32, {"moments": "bfloat16"}), (np.float32, {"moments": "8bit"}),
    (np.float64, {}), (np.float16, {"master": "float32"}), ("bfloat16", {"master": "remainder"}),
    ("bfloat16", {"master": "float32", "moments": "8bit", "ema_decay": 0.9}), ("bfloat16", {}),
]  # fmt: skip


def params(dtype=np.float32):
    fa.AdamW({})  # registers bfloat16 with NumPy
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((5, 300)).astype(dtype), "b": np.ones(3, dtype)}


def gradients(seed, rows=5):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((rows, 300)), "b": rng.standard_normal(3)}


def grown(old, rows=ROWS):
    """The leaf that replaces `old`: 7 in each new row."""
    new = np.full((len(rows), *old.shape[1:]), 7, old.dtype)
    for k, row in enumerate(rows):
        if 0 <= row < len(old):
            new[k] = old[row]
    return new


def by_hand(opt, new, rows, make):
    """An optimizer made anew over `new`, with the state that follows the rows."""
    other, saved = make({"w": new.copy(), "b": opt.params["b"].copy()}), opt.state_dict()
    before, fresh = saved["leaves"]["params['w']"], other.state_dict()["leaves"]["params['w']"]
    for name, x in before.items():
        if name.endswith("_scales") or not isinstance(x, np.ndarray):
            continue
        if f"{name}_scales" in before:  # blocks of 8 bits
            slot, old = next(slot for slot in opt._kernel.slots if slot.name == name), opt.params["w"]
            coded = np.empty(CODES.length(old.size), np.uint8)
            codes_and_scales(coded)[0][...], codes_and_scales(coded)[1][...] = x, before[f"{name}_scales"]
            values = np.zeros(new.shape, np.float32)
            values[:] = initial(opt, name)
            decoded = CODES.decode(coded, slot, old.size).reshape(old.shape)
            for k, row in enumerate(rows):
                if 0 <= row < len(old):
                    values[k] = decoded[row]
            fresh[name], fresh[f"{name}_scales"] = codes_and_scales(CODES.encode(values.reshape(-1), slot, None))
        else:
            for k, row in enumerate(rows):
                if 0 <= row < len(x):
                    fresh[name][k] = x[row]
    saved["leaves"]["params['w']"] = {**before, **fresh, "count": before["count"]}
    for name in opt.rule.carried:
        saved["leaves"]["params['w']"][name] = before[name]
    other.load_state_dict(saved)
    return other


def initial(opt, name):
    return opt.groups[0].rule.initial().get(name, 0)


def check_alike(opt, other, rows=6):
    assert all(map(same_bits, state_arrays(opt).values(), state_arrays(other).values()))
    for t in range(3, 5):
        opt.step(gradients(t, rows))
        other.step(gradients(t, rows))
    assert all(map(same_bits, opt.params.values(), other.params.values()))
    assert all(map(same_bits, state_arrays(opt).values(), state_arrays(other).values()))


@pytest.mark.parametrize("case", variants(), ids=label)
def test_state_follows_the_rows_of_every_method(case):
    method, chosen = case
    opt = method(params(), **chosen, backend="numpy")
    for t in range(3):
        opt.step(gradients(t))
    new = grown(opt.params["w"])
    other = by_hand(opt, new, ROWS, lambda tree: method(tree, **chosen, backend="numpy"))
    opt.replace("['w']", new, ROWS)
    assert opt.params["w"] is new
    assert opt.t == 3
    check_alike(opt, other)


@pytest.mark.parametrize(("dtype", "options"), FORMATS, ids=str)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_every_format_follows(dtype, options, backend):
    opt = fa.Adam(params(dtype), amsgrad=True, **options, backend=backend)
    for t in range(3):
        opt.step(gradients(t))
    new = grown(opt.params["w"])
    other = by_hand(opt, new, ROWS, lambda tree: fa.Adam(tree, amsgrad=True, **options, backend=backend))
    opt.replace("['w']", new, ROWS)
    check_alike(opt, other)


@pytest.mark.parametrize("rows", [2, 5, 8, 0])
def test_without_rows_each_row_is_that_of_its_index(rows):
    opt = fa.AdamW(params())
    opt.step(gradients(0))
    m, new = opt.moments()["params['w']"]["m"].copy(), grown(opt.params["w"], range(rows))
    opt.replace("['w']", new)
    after = opt.moments()["params['w']"]["m"]
    assert same_bits(after[:5], m[:rows])
    assert not after[5:].any()
    assert len(after) == rows
    opt.step(gradients(1, rows))
    assert opt.state_dict()["leaves"]["params['w']"]["count"] == 2


@pytest.mark.parametrize(("dtype", "master"), [(np.float16, "float32"), ("bfloat16", "remainder")])
def test_values_set_anew_get_masters_of_their_own(dtype, master):
    opt = fa.AdamW(params(dtype), master=master, lr=0.0, weight_decay=0.0)
    new = np.zeros_like(opt.params["w"])
    new[0] = opt.params["w"][0]
    opt.step(gradients(0))
    opt.replace("['w']", new)
    expected = new.copy()
    opt.step(gradients(1))
    assert same_bits(new, expected)


def test_arrays_in_another_order_of_axes():
    for moments in (None, "8bit"):
        opts = [fa.AdamW(params(), moments=moments) for _ in range(2)]
        for opt in opts:
            opt.step(gradients(0))
        new = grown(opts[0].params["w"])
        opts[0].replace("['w']", new, ROWS)
        opts[1].replace("['w']", np.asfortranarray(new), ROWS)
        straight, turned = (opt.moments()["params['w']"] for opt in opts)
        for name, x in straight.items():
            scale = np.abs(x).max() if moments else 0  # each rounds in blocks of its own
            assert np.abs(x - turned[name]).max() <= 0.07 * scale


def test_what_was_accumulated_follows():
    opt = fa.SGD(params(), lr=1.0)
    g = gradients(0)
    opt.accumulate(g)
    new = grown(opt.params["w"])
    before = new.copy()
    opt.replace("['w']", new, ROWS)
    opt.step()
    for k, row in enumerate(ROWS):
        expected = before[k] - (g["w"][row].astype(np.float32) if 0 <= row < 5 else 0)
        assert same_bits(new[k], expected)


def test_rows_that_are_behind_stay_so():
    opts = [fa.Adam(params()) for _ in range(2)]
    for opt in opts:
        for t in range(4):
            opt.step_rows({"w": (np.array([t]), np.ones((1, 300), np.float32))}, semantics="exact")
    rows = [3, 0, 1, -1]
    with pytest.raises(ValueError, match=r"array is float32\(4, 300\), expected its first axis slowest in memory"):
        opts[0].replace("['w']", np.asfortranarray(grown(opts[0].params["w"], rows)), rows)
    opts[1].catch_up()
    for opt in opts:
        opt.replace("['w']", grown(opt.params["w"], rows), rows)
    assert opts[0]._behind.at[0].tolist() == [4, 1, 2, 4]
    opts[0].catch_up()
    assert same_bits(opts[0].params["w"], opts[1].params["w"])
    assert all(map(same_bits, state_arrays(opts[0]).values(), state_arrays(opts[1]).values()))


def test_copies_are_replaced_too():
    tree = params()
    copies = {name: np.zeros(x.shape, np.float16) for name, x in tree.items()}
    opt = fa.AdamW([{"params": tree, "lr": 0.1}], copy_to=[copies])
    new, short = grown(tree["w"]), np.zeros((6, 300), np.float16)
    opt.replace("[0]['w']", new, ROWS, copy_to=short)
    assert same_bits(short, new.astype(np.float16))
    opt.step([gradients(0, 6)])
    assert opt.copy_to[0]["w"] is short
    assert same_bits(short, new.astype(np.float16))
    other = pickle.loads(pickle.dumps(opt))
    assert same_bits(other.params[0]["params"]["w"], new)


def test_a_single_array_and_a_view_of_it():
    p = np.ones((4, 2), np.float32)
    opt = fa.AdamW(p)
    opt.step(p * 2)
    opt.replace("", p[1:])
    opt.step(np.ones((3, 2), np.float32))
    assert opt.params.base is p


def test_what_cannot_be_replaced():
    tree = {**params(), "n": np.ones((), np.float32), "f": fa.FlatBuffer({"x": np.ones(3, np.float32)})}
    opt = fa.AdamW(tree)
    opt.step({**gradients(0), "n": 1.0, "f": np.ones(3, np.float32)})
    before = pickle.dumps(opt.state_dict())
    w = np.ones((2, 300), np.float32)
    for args, error, words in [
        (("['x']", w), ValueError, r"path is \"\['x'\]\", expected one of opt.paths"),
        (("['f']", w), TypeError, r"params\['f'\] is a FlatBuffer"),
        (("['n']", w), ValueError, r"array is float32\(2, 300\), params\['n'\] is float32\(\)"),
        (("['w']", w[:, :4].copy()), ValueError, r"array is float32\(2, 4\), params\['w'\] is float32\(5, 300\)"),
        (("['w']", w.astype(np.float64)), ValueError, r"array is float64\(2, 300\)"),
        (("['w']", [1.0]), TypeError, "array"),
        (("['w']", w, [0]), ValueError, r"rows is int64\(1,\), expected one index for each of the 2 rows"),
        (("['w']", w, [0.0, 1.0]), TypeError, r"rows is float64\(2,\), expected integers"),
        (("['w']", w, [True, False]), TypeError, r"rows is bool\(2,\), expected integers"),
        (("['w']", w, [0, -2]), IndexError, r"rows\[1\] is -2, expected -1"),
        (("['w']", w, None, w), ValueError, r"copy_to is float32\(2, 300\)"),
        (("['b']", tree["w"].reshape(-1)[:4]), ValueError, "params"),
    ]:
        with pytest.raises(error, match=words):
            opt.replace(*args)
        assert opt.params["w"] is tree["w"]
        assert pickle.dumps(opt.state_dict()) == before
    with_copies = fa.AdamW(params(), copy_to={"w": np.ones((5, 300), np.float16), "b": np.ones(3, np.float16)})
    with pytest.raises(ValueError, match="copy_to is NoneType"):
        with_copies.replace("['w']", w)


@pytest.mark.parametrize("method", METHODS)
def test_a_leaf_may_be_replaced_often(method):
    opt = method(params())
    for rows in (7, 1, 0, 3):
        opt.replace("['w']", grown(opt.params["w"], range(rows)))
        opt.step(gradients(rows, rows))
    assert opt.t == 4
    assert np.isfinite(opt.params["w"]).all()
