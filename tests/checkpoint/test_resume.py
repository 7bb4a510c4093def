"""n steps, save, load, n steps equal 2n steps, to the bit; what fits another optimizer, and what does not."""

import json
import logging

import ml_dtypes
import numpy as np
import pytest
from cases import label, same_bits, variants

import fastadam as fa
from fastadam.schedules import Cosine, Warmup

DTYPES = {"float64": np.float64, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def tree(dtype=np.float32, seed=0):
    """An array in Fortran's order, a vector longer than a block, a scalar, an empty one, a channels-last one."""
    rng = np.random.default_rng(seed)

    def values(*shape):
        return np.asarray(rng.standard_normal(shape)).astype(dtype)

    last = values(2, 3, 4, 5).transpose(0, 3, 1, 2)
    return {"w": [np.asfortranarray(values(30, 40)), values(1500)], "s": (values(), values(0, 3)), "c": last}


def leaves(x):
    if isinstance(x, fa.FlatBuffer):
        return leaves(x.views)
    if isinstance(x, dict):
        return [y for each in x.values() for y in leaves(each)]
    return [y for each in x for y in leaves(each)] if isinstance(x, (list, tuple)) else [x]


def run(opt, first, last, dtype=np.float32, missing=True):
    for t in range(first, last):
        g = tree(dtype, seed=100 + t)
        if missing and t % 3 == 1:
            g["w"][0] = None
        opt.step(g)


def same(one, other):
    """Two optimizers hold the same bits and numbers."""
    a, b = one.state_dict(), other.state_dict()
    assert all(same_bits(x, y) for x, y in zip(leaves(one.params), leaves(other.params), strict=True))
    assert a.keys() == b.keys()
    assert a["leaves"].keys() == b["leaves"].keys()
    for path, leaf in a["leaves"].items():
        assert leaf.keys() == b["leaves"][path].keys()
        for name, x in leaf.items():
            y = b["leaves"][path][name]
            assert same_bits(x, y) if isinstance(x, np.ndarray) else x == y, (path, name)
    assert {k: v for k, v in a.items() if k != "leaves"} == {k: v for k, v in b.items() if k != "leaves"}
    return True


def through(path, opt, other, **named):
    folder = fa.checkpoint.Folder(path / "run")
    handle = folder.save(opt, {"of": "run"}, **named)
    if handle is not None:
        handle.wait()
    assert folder.load(other) == {"of": "run"}


CHOSEN = {
    "plain": {},
    "bfloat16 moments": {"moments": "bfloat16"},
    "8bit": {"moments": "8bit"},
    "averages": {"ema_decay": 0.5},
    "float64": {"dtype": "float64"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, 8bit": {"dtype": "bfloat16", "moments": "8bit"},
    "bfloat16, remainder": {"dtype": "bfloat16", "master": "remainder", "moments": "8bit"},
    "bfloat16, master": {"dtype": "bfloat16", "master": "float32"},
    "float16, master": {"dtype": "float16", "master": "float32", "ema_decay": 0.9},
}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("case", CHOSEN)
def test_every_format_resumes(case, backend, tmp_path):
    chosen = dict(CHOSEN[case])
    dtype = DTYPES[chosen.pop("dtype", "float32")]
    whole, first, second = (
        fa.AdamW(tree(dtype), lr=0.01, amsgrad=True, seed=seed, backend=backend, **chosen) for seed in (7, 7, 8)
    )
    run(whole, 0, 6, dtype)
    run(first, 0, 3, dtype)
    through(tmp_path, first, second, background=case in ("plain", "8bit"))
    assert same(second, first)
    run(second, 3, 6, dtype)
    assert same(second, whole)


@pytest.mark.parametrize("case", variants(maximize=False), ids=label)
def test_every_method_resumes(case, tmp_path):
    method, chosen = case
    whole, first, second = (method(tree(), **chosen, backend="numpy") for _ in range(3))
    run(whole, 0, 6)
    run(first, 0, 3)
    through(tmp_path, first, second)
    run(second, 3, 6)
    assert same(second, whole)


@pytest.mark.parametrize("chosen", [{}, {"moments": "8bit"}], ids=str)
def test_flat_buffers_resume(chosen, tmp_path):
    whole, first, second = (
        fa.NAdam({"all": fa.FlatBuffer(tree()), "more": [np.ones(3, np.float32)]}, seed=3, backend="numpy", **chosen)
        for _ in range(3)
    )

    def steps(opt, a, b):
        for t in range(a, b):
            opt.step({"all": fa.FlatBuffer(tree(seed=100 + t)), "more": [np.full(3, t, np.float32)]})

    steps(whole, 0, 6)
    steps(first, 0, 3)
    through(tmp_path, first, second)
    steps(second, 3, 6)
    assert same(second, whole)


def in_c_order(x):
    if isinstance(x, dict):
        return {key: in_c_order(each) for key, each in x.items()}
    return type(x)(map(in_c_order, x)) if isinstance(x, (list, tuple)) else np.array(x, order="C")


@pytest.mark.parametrize("moments", [None, "bfloat16"])
def test_a_tree_becomes_a_flat_buffer_and_back(moments, tmp_path):
    """The index of an element in C order is the same in both, so stochastic rounding goes on with the same bits."""
    chosen = {"lr": 0.01, "moments": moments, "seed": 4, "backend": "numpy", "ema_decay": 0.5}
    whole, first, third = (fa.AdamW(in_c_order(tree()), **chosen) for _ in range(3))
    second = fa.AdamW(fa.FlatBuffer(tree()), **chosen)
    run(whole, 0, 6, missing=False)
    run(first, 0, 2, missing=False)
    through(tmp_path / "to", first, second)
    for t in range(2, 4):
        second.step(fa.FlatBuffer(tree(seed=100 + t)))
    through(tmp_path / "back", second, third)
    run(third, 4, 6, missing=False)
    assert same(third, whole)


def test_blocks_of_8_bits_of_a_tree_are_rounded_for_a_flat_buffer(tmp_path, caplog):
    """Their groups of 64 begin at each leaf; what is decoded is what it was, then rounded once more."""
    first = fa.AdamW(tree(), moments="8bit", backend="numpy")
    run(first, 0, 2, missing=False)
    fa.checkpoint.save(tmp_path / "one", first)
    second, wide = (fa.AdamW(fa.FlatBuffer(tree()), moments=m, backend="numpy") for m in ("8bit", None))
    fa.checkpoint.load(tmp_path / "one", second)
    assert "rounded m to blocks of 8 bits that begin elsewhere" in caplog.text
    fa.checkpoint.load(tmp_path / "one", wide)
    decoded = np.concatenate([np.ravel(own["m"]) for own in first.moments().values()])
    assert same_bits(wide.moments()["params"]["m"], decoded)
    wide.convert("8bit")
    assert same(second, wide)


def test_leaves_of_other_counts_do_not_become_one_buffer(tmp_path):
    first = fa.AdamW(tree(), backend="numpy")
    run(first, 0, 2)
    fa.checkpoint.save(tmp_path / "one", first)
    with pytest.raises(ValueError, match="have taken other steps"):
        fa.checkpoint.load(tmp_path / "one", fa.AdamW(fa.FlatBuffer(tree()), backend="numpy"))


def test_groups_schedules_and_rows_left_behind(tmp_path):
    """A callable lr stays the optimizer's; numbers are the checkpoint's; rows that exact steps left behind are saved
    as the dense steps would have them."""

    def make(lr):
        table = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
        groups = [
            {"params": {"table": table}, "lr": Warmup(2, Cosine(0.1, steps=8))},
            {"params": [np.ones(4, np.float32)], "lr": lr, "weight_decay": lr},
        ]
        return fa.NAdam(groups, backend="numpy")

    def steps(opt, first, last):
        for t in range(first, last):
            rows = np.array([t % 20, 3])
            values = np.full((2, 3), t + 1, np.float32)
            opt.step_rows([{"table": (rows, values)}, [np.full(4, t, np.float32)]], semantics="exact")

    whole, first, second = make(0.25), make(0.25), make(0.5)
    steps(whole, 0, 8)
    steps(first, 0, 4)
    through(tmp_path, first, second)
    assert [group.weight_decay for group in second.groups] == [0.0, 0.25]
    assert second.groups[1].lr == 0.25
    assert isinstance(second.groups[0].lr, Warmup)
    steps(second, 4, 8)
    assert same(second, whole)


@pytest.mark.parametrize("saved", [None, "bfloat16", "8bit"])
@pytest.mark.parametrize("wanted", [None, "bfloat16", "8bit"])
def test_other_moments_are_rounded_as_convert_does(saved, wanted, tmp_path, caplog):
    first, second = (fa.AdamW(tree(), lr=0.01, moments=m, seed=1, backend="numpy") for m in (saved, wanted))
    run(first, 0, 3)
    fa.checkpoint.save(tmp_path / "one", first)
    with caplog.at_level(logging.WARNING):
        fa.checkpoint.load(tmp_path / "one", second)
    names = {None: "float32"}
    rounded = f"rounded m from {names.get(saved, saved)} to {names.get(wanted, wanted)}"
    assert (rounded in caplog.text) == (saved != wanted)
    if saved != wanted:
        first.convert(wanted)
    assert same(second, first)


def test_copies_follow(tmp_path):
    def make():
        params = {"w": np.linspace(0, 1, 5, dtype=np.float32)}
        copies = {"w": np.zeros(5, np.float16)}
        return fa.SGD(params, lr=0.5, copy_to=copies, backend="numpy"), copies

    (first, copies), (second, others) = make(), make()
    first.step({"w": np.ones(5, np.float32)})
    through(tmp_path, first, second)
    assert same_bits(others["w"], copies["w"])


def test_a_folder_without_checkpoints(tmp_path):
    opt = fa.SGD({"w": np.ones(3, np.float32)}, lr=0.5)
    assert fa.checkpoint.Folder(tmp_path / "none").load(opt) is None
    (tmp_path / "empty").mkdir()
    assert fa.checkpoint.Folder(tmp_path / "empty").load(opt) is None
    with pytest.raises(FileNotFoundError):
        fa.checkpoint.load(tmp_path / "none", opt)


def test_keep(tmp_path):
    opt, folder = fa.SGD({"w": np.ones(3, np.float32)}, lr=0.5, backend="numpy"), fa.checkpoint.Folder(tmp_path, keep=2)
    for k in range(4):
        opt.step({"w": np.ones(3, np.float32)})
        folder.save(opt, k)
    assert [path.rpartition("/")[2] for path in folder.checkpoints()] == ["00000004-step-4", "00000003-step-3"]
    assert folder.load(opt) == 3
    assert fa.checkpoint.load(folder.checkpoints()[1], opt) == 2
    folder.save(opt, "back")  # at step 3 once more: a new folder, and the newest
    assert folder.checkpoints()[0].endswith("00000005-step-3")
    assert folder.load(opt) == "back"


EXTRAS = [
    ((1, 2), "tuple"), ({1: 2}, "key 1"), ({"a": [np.float32(1)]}, r"extra\['a'\]\[0\] is float32"), (b"x", "bytes"),
    ({"a": {1}}, "set"),
]  # fmt: skip


@pytest.mark.parametrize(("extra", "words"), EXTRAS)
def test_extra_is_what_json_gives_back(extra, words, tmp_path):
    with pytest.raises(TypeError, match=words):
        fa.checkpoint.save(tmp_path / "one", fa.SGD(np.ones(3, np.float32), lr=0.1), extra)
    assert not (tmp_path / "one").exists()


def test_an_extra_of_no_number(tmp_path):
    opt = fa.SGD(np.ones(3, np.float32), lr=0.1)
    with pytest.raises(ValueError, match="nan"):
        fa.checkpoint.save(tmp_path / "one", opt, {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"extra\['n'\] is an integer of 20,001 bits"):
        fa.checkpoint.save(tmp_path / "one", opt, {"n": 1 << 20_000})
    (itself := []).append(itself)
    with pytest.raises(ValueError, match=r"extra\[0\]\[0\].* is nested deeper than 100"):
        fa.checkpoint.save(tmp_path / "one", opt, itself)
    fa.checkpoint.save(tmp_path / "one", opt, extra := {"a": [1, 2.5, None, True, "ü", {"b": -(2**70)}], "": 1e-300})
    assert fa.checkpoint.load(tmp_path / "one", opt) == extra


# ---- what does not fit

BASE = {"a": np.zeros((3, 4), np.float32), "b": [np.ones(5, np.float32)]}


def base():
    return {"a": BASE["a"].copy(), "b": [BASE["b"][0].copy()]}


OTHERS = {
    "method": (lambda: fa.Adam(base()), "method is 'AdamW', this optimizer's is 'Adam'"),
    "a leaf less": (
        lambda: fa.AdamW({"a": BASE["a"].copy()}),
        r"the checkpoint has \['b'\]\[0\], this optimizer has not",
    ),
    "a leaf more": (
        lambda: fa.AdamW({**base(), "c": np.ones(2)}),
        r"the checkpoint has no \['c'\], this optimizer has",
    ),
    "shape": (
        lambda: fa.AdamW({**base(), "a": np.zeros((4, 3), np.float32)}),
        r"params\['a'\] has the shape \(3, 4\), this optimizer's \(4, 3\)",
    ),
    "dtype": (
        lambda: fa.AdamW({**base(), "a": np.zeros((3, 4))}),
        r"params\['a'\] is float32, this optimizer's float64",
    ),
    "slot": (lambda: fa.AdamW(base(), amsgrad=True), r"the checkpoint has no vmax\['a'\], this optimizer has"),
    "average": (lambda: fa.AdamW(base(), ema_decay=0.5), r"the checkpoint has no ema\['a'\]"),
    "groups": (
        lambda: fa.AdamW([{"params": base()["a"]}, {"params": base()["b"]}]),
        "has 1 param groups, this optimizer has 2",
    ),
    "offset": (lambda: fa.AdamW(base(), index_offset=64), "index_offset is 0, this optimizer's is 64"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_first_difference_is_named_and_nothing_changes(case, tmp_path):
    make, words = OTHERS[case]
    donor, opt = fa.AdamW(base(), lr=0.5), make()
    donor.step(base())
    fa.checkpoint.save(tmp_path / "one", donor)
    before = json.dumps(opt.state_dict(), default=lambda x: x.tolist()), [x.tobytes() for x in leaves(opt.params)]
    with pytest.raises(ValueError, match=words):
        fa.checkpoint.load(tmp_path / "one", opt)
    assert before == (
        json.dumps(opt.state_dict(), default=lambda x: x.tolist()), [x.tobytes() for x in leaves(opt.params)]
    )  # fmt: skip


def test_what_fits_is_loaded_and_the_rest_returned(tmp_path):
    donor = fa.AdamW(base(), lr=0.5)
    donor.step({"a": np.ones((3, 4), np.float32), "b": [np.ones(5, np.float32)]})
    fa.checkpoint.save(tmp_path / "one", donor, "extra")
    opt = fa.AdamW({"a": base()["a"], "b": [np.full(6, 2, np.float32)], "c": np.ones(2, np.float32)}, lr=0.1)
    extra, rest = fa.checkpoint.load(tmp_path / "one", opt, strict=False)
    assert extra == "extra"
    assert rest == [
        "the checkpoint has no ['c'], this optimizer has",
        "the checkpoint's params['b'][0] has the shape (5,), this optimizer's (6,)",
        "the checkpoint's m['b'][0] has the shape (5,), this optimizer's (6,)",
        "the checkpoint's v['b'][0] has the shape (5,), this optimizer's (6,)",
    ]
    assert same_bits(opt.params["a"], donor.params["a"])
    assert same_bits(opt.moments()["params['a']"]["m"], donor.moments()["params['a']"]["m"])
    assert opt.params["b"][0].tolist() == [2] * 6
    assert (opt.t, opt.groups[0].lr) == (1, 0.5)
    counts = {path: leaf["count"] for path, leaf in opt.state_dict()["leaves"].items()}
    assert counts == {"params['a']": 1, "params['b'][0]": 0, "params['c']": 0}


def test_another_method_gets_the_parameters_alone(tmp_path):
    donor, opt = fa.AdamW(base(), lr=0.5), fa.Lion(base(), lr=0.1)
    donor.step({"a": np.ones((3, 4), np.float32), "b": [np.ones(5, np.float32)]})
    fa.checkpoint.save(tmp_path / "one", donor)
    _, rest = fa.checkpoint.load(tmp_path / "one", opt, strict=False)
    assert rest == ["the checkpoint's method is 'AdamW', this optimizer's is 'Lion'"]
    assert same_bits(opt.params["a"], donor.params["a"])
    assert (opt.t, opt.groups[0].lr) == (0, 0.1)


@pytest.mark.parametrize("chosen", [{}, {"moments": "8bit", "ema_decay": 0.5}], ids=str)
def test_steps_between_reading_and_taking(chosen, tmp_path):
    """What fits is the checkpoint's; a leaf that it has not keeps its own arrays and count, as they are when taken."""
    a, b, c = (np.random.default_rng(k).standard_normal(70).astype(np.float32) for k in range(3))
    one = fa.AdamW({"a": a.copy(), "b": b.copy()}, backend="numpy", **chosen)
    one.step({"a": c, "b": c})
    folder = fa.checkpoint.Folder(tmp_path)
    folder.save(one)
    other, alone = ({"a": a.copy(), "c": c.copy()} for _ in range(2))
    late, straight = (fa.AdamW(params, backend="numpy", **chosen) for params in (other, alone))
    loading = folder.prepared(late, strict=False)
    for opt in (late, straight):
        for _ in range(2):
            opt.step({"a": b, "c": a})
    extra, differences = loading.take()
    assert (extra, len(differences)) == (None, 2)
    assert same_bits(other["a"], one.params["a"])
    assert same_bits(other["c"], alone["c"])
    now = late.state_dict()
    for path, of in (("params['a']", one), ("params['c']", straight)):
        expected, leaf = of.state_dict()["leaves"][path], now["leaves"][path]
        assert leaf.keys() == expected.keys()
        assert all(same_bits(leaf[name], x) for name, x in expected.items() if isinstance(x, np.ndarray))
        assert leaf["count"] == expected["count"]
    assert now["t"] == 2


def test_what_is_taken_must_fit_as_it_is_then(tmp_path):
    """Another array in a leaf's place, averages or other moments since the reading: refused, or taken by what is."""
    folder = fa.checkpoint.Folder(tmp_path)
    saved = fa.AdamW({"w": np.ones((4, 3), np.float32)}, backend="numpy", ema_decay=0.5)
    saved.step({"w": np.ones((4, 3), np.float32)})
    folder.save(saved)

    def fresh():
        opt = fa.AdamW({"w": np.zeros((4, 3), np.float32)}, backend="numpy", ema_decay=0.5)
        return opt, folder.prepared(opt)

    opt, loading = fresh()
    opt.replace("['w']", np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match=r"params\['w'\] is float32\(5, 3\), it was float32\(4, 3\) when"):
        loading.take()
    assert (opt.t, opt.params["w"].any()) == (0, False)
    opt, loading = fresh()
    with opt.averaged(), pytest.raises(RuntimeError, match=r"inside averaged\(\)"):
        loading.take()
    opt, loading = fresh()
    opt.convert("8bit")
    with pytest.raises(ValueError, match="moments"):
        loading.take()
    assert (opt.t, opt.params["w"].any()) == (0, False)
    opt, loading = fresh()
    opt.replace("['w']", np.zeros((4, 3), np.float32))
    assert loading.take() is None
    assert same(saved, opt)


def test_nothing_is_saved_or_loaded_inside_averaged(tmp_path):
    opt = fa.SGD(base(), lr=0.1, ema_decay=0.5)
    fa.checkpoint.save(tmp_path / "one", opt)
    with opt.averaged():
        for work in (fa.checkpoint.save, fa.checkpoint.load):
            with pytest.raises(RuntimeError, match="averaged"):
                work(tmp_path / "one", opt)


# ---- read


@pytest.mark.parametrize("moments", [None, "bfloat16", "8bit"])
def test_read_gives_any_part(moments, tmp_path):
    for name, params in (("tree", tree()), ("flat", fa.FlatBuffer(tree()))):
        opt = fa.AdamW(params, lr=0.01, moments=moments, backend="numpy")
        opt.step(tree(seed=5) if name == "tree" else fa.FlatBuffer(tree(seed=5)))
        fa.checkpoint.save(tmp_path / name, opt)
        views = tree() if name == "tree" else params.views
        arrays = dict(zip(["['w'][0]", "['w'][1]", "['s'][0]", "['s'][1]", "['c']"], leaves(opt.params), strict=True))
        assert len(leaves(views)) == len(arrays)
        for path, p in arrays.items():
            whole = fa.checkpoint.read(tmp_path / name, f"params{path}")
            assert same_bits(whole, p)
            assert not whole.flags.writeable
            v = fa.checkpoint.read(tmp_path / name, f"v{path}")
            assert v.shape == p.shape
            if name == "tree":
                wide = opt.moments()[f"params{path}"]["v"]
                assert np.array_equal(v.astype(np.float32), wide)
            for rows in (slice(1, 3), slice(-2, None), slice(5, 2), slice(0, 10**9)) if p.ndim else ():
                assert np.array_equal(fa.checkpoint.read(tmp_path / name, f"params{path}", rows=rows), p[rows])
                assert np.array_equal(fa.checkpoint.read(tmp_path / name, f"v{path}", rows=rows), v[rows])


def test_read_refuses(tmp_path):
    opt = fa.SGD(base(), lr=0.1)
    fa.checkpoint.save(tmp_path / "one", opt)
    with pytest.raises(KeyError, match=r"params\['x'\] is not in .*params\['a'\], params\['b'\]\[0\]"):
        fa.checkpoint.read(tmp_path / "one", "params['x']")
    for rows in (slice(0, 2, 2), 1, [0]):
        with pytest.raises(ValueError, match="rows is"):
            fa.checkpoint.read(tmp_path / "one", "params['a']", rows=rows)
    with pytest.raises(FileNotFoundError):
        fa.checkpoint.read(tmp_path / "none", "params['a']")


def test_any_tool_opens_the_file(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    opt = fa.AdamW(tree(), moments="8bit", backend="numpy")
    opt.step(tree(seed=5))
    fa.checkpoint.Folder(tmp_path).save(opt)
    (file,) = tmp_path.glob("*/rank-00000.safetensors")
    tensors = numpy.load_file(file)
    assert same_bits(tensors["params['w'][1]"], opt.params["w"][1])
    assert same_bits(tensors["params['w'][0]"], np.ascontiguousarray(opt.params["w"][0]))
    assert tensors["m['w'][1]"].shape == (24, 64)
    assert tensors["m_scales['w'][1]"].shape == (24,)


def test_a_save_over_leaves_what_is_mapped(tmp_path):
    opt = fa.SGD(base(), lr=0.1)
    fa.checkpoint.save(tmp_path / "one", opt)
    mapped = fa.checkpoint.read(tmp_path / "one", "params['a']")
    opt.step({"a": np.ones((3, 4), np.float32), "b": [None]})
    fa.checkpoint.save(tmp_path / "one", opt)
    assert same_bits(mapped, BASE["a"])
    assert same_bits(fa.checkpoint.read(tmp_path / "one", "params['a']"), opt.params["a"])


def test_importing_fastadam_does_not_load_it(fresh):
    text = "import sys, fastadam as fa; print([x for x in sys.modules if 'checkpoint' in x]); fa.checkpoint.Folder"
    assert fresh(text) == "[]\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_accumulated_is_saved_on_request(dtype, tmp_path):
    """Two micro-batches before the save and one after it make the step that three in one process make."""
    chosen = {"lr": 0.01, "backend": "numpy", "seed": 3}
    whole, first, second, third = (fa.AdamW([{"params": tree(DTYPES[dtype])}], **chosen) for _ in range(4))

    def batch(t):
        g = tree(DTYPES[dtype], seed=100 + t)
        return [{**g, "s": (None, g["s"][1])}]

    for t in range(3):
        whole.accumulate(batch(t))
    for t in range(2):
        first.accumulate(batch(t))
    count, sums = first.accumulated
    assert (count, list(sums)) == (2, [path for path in first.paths if path != "[0]['s'][0]"])
    folder = fa.checkpoint.Folder(tmp_path)
    folder.save(first, accumulated=True)
    second.accumulate(batch(7))
    folder.load(second)
    assert second.accumulated[0] == 2
    second.accumulate(batch(2))
    for opt in (whole, second):
        opt.step()
    assert same(second, whole)
    folder.save(first)
    third.accumulate(batch(7))
    folder.load(third)
    assert third.accumulated == (0, {})
