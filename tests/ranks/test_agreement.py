"""What ranks have unlike is named on all of them; nobody's mistake leaves others waiting or anything changed."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest

import fastadam as fa
from fastadam.distributed.agreement import agree, shown
from fastadam.schedules import Warmup
from ranks.threads import refused, together

SHARDED = fa.distributed.Sharded


def params(engine=None):
    return {"w": np.ones((40, 50), np.float32), "b": np.ones(7, np.float32)}


def grads(scale=1.0):
    return {"w": np.full((40, 50), scale, np.float32), "b": np.full(7, scale, np.float32)}


def made(engine, **chosen):
    return SHARDED(fa.AdamW, params(), engine, **{"lr": 0.1, "backend": "numpy", **chosen})


UNLIKE = {
    "lr": (lambda e: made(e, lr=0.1 + 0.1 * (e.rank == 1)),
           "ranks 0, 2 have lr '0.1'; rank 1 has lr '0.2': expected the same on all ranks"),
    "an option": (lambda e: made(e, **({"ema_decay": 0.9} if e.rank == 2 else {})),
                  "ranks 0, 1 have lr '0.1'; rank 2 has ema_decay '0.9'"),
    "a schedule": (lambda e: made(e, lr=(lambda t: 0.1) if e.rank else 0.1), "ranks 1, 2 have lr 'the function"),
    "method": (lambda e: SHARDED(fa.Adam if e.rank else fa.AdamW, params(), e),
               "rank 0 has the method 'AdamW'; ranks 1, 2 have the method 'Adam'"),
    "shape": (lambda e: SHARDED(fa.SGD, {"w": np.ones(5 + e.rank)}, e),
              r"rank 0 has params \"\['w'\] is float64\(5,\)\"; rank 1 has params \"\['w'\] is float64\(6,\)\""),
    "dtype": (lambda e: SHARDED(fa.SGD, np.ones(5, np.float32 if e.rank else np.float64), e),
              r"rank 0 has params ' is float64\(5,\)'; ranks 1, 2 have params ' is float32\(5,\)'"),
    "tree": (lambda e: SHARDED(fa.SGD, {"w": np.ones(5), **({"x": np.ones(2)} if e.rank == 1 else {})}, e),
             r"ranks 0, 2 have groups .*; rank 1 has params \"\['x'\] is float64\(2,\)\""),
    "values": (lambda e: SHARDED(fa.SGD, np.full(5, float(e.rank == 2)), e),
               "ranks 0, 1 have values with the checksum .*; rank 2 has values with the checksum"),
    "seed": (lambda e: made(e, seed=e.rank), "rank 0 has seed '0'; rank 1 has seed '1'; rank 2 has seed '2'"),
    "groups": (lambda e: SHARDED(fa.SGD, [{"params": [np.ones(5)], "lr": 0.1 * (1 + e.rank)}], e), "groups with"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNLIKE)
def test_what_is_unlike_is_named_on_all(case):
    work, words = UNLIKE[case]
    errors = refused(3, work)
    assert all(isinstance(error, ValueError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1
    with pytest.raises(ValueError, match=words):
        raise errors[0]


def test_a_rank_that_refuses_its_arguments_stops_all():
    mine, *others = refused(3, lambda e: made(e, lr=-1.0 if e.rank == 0 else 0.1))
    assert isinstance(mine, ValueError)
    for error in others:
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("rank 0 refused, so that no rank goes on: ValueError: lr is -1.0")


REFUSED = {
    "shape": (lambda rank: {**grads(), "b": np.ones(8, np.float32)} if rank == 1 else grads(),
              r"grads\['b'\] is float32\(8,\), params\['b'\] is float32\(7,\)"),
    "dtype": (lambda rank: {**grads(), "b": np.ones(7, int)} if rank == 1 else grads(), "expected an array of"),
    "dtypes": (lambda rank: {**grads(), "b": np.ones(7)} if rank == 1 else grads(), "expected one dtype for all"),
    "tree": (lambda rank: {"w": grads()["w"]} if rank == 1 else grads(), "grads has no 'b', params has"),
    "None": (lambda rank: {**grads(), "b": None} if rank == 1 else grads(),
             r"grads\['b'\] is None and grads\['w'\] is not"),
    "nothing": (lambda rank: None if rank == 1 else grads(), "got no grads and nothing has been accumulated"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_step_refused_on_one_rank_changes_nothing_on_any(case):
    given, words = REFUSED[case]

    def work(engine):
        p = params()
        opt = SHARDED(fa.AdamW, p, engine, backend="numpy", max_norm=1.0)
        kind, match = (RuntimeError, "rank 1 refused") if engine.rank != 1 else ((TypeError, ValueError), words)
        with pytest.raises(kind, match=match):
            opt.step(given(engine.rank))
        assert opt.t == 0
        assert all((x == 1).all() for x in p.values())
        opt.step(grads())  # and all go on
        return opt.t

    assert together(2, work) == [1, 1]


def test_what_a_step_says():
    """8 bytes of each rank; with a norm also the sums of its nodes and a largest magnitude of each piece."""

    def work(engine):
        opt = SHARDED(fa.AdamW, params(), engine, backend="numpy")
        clipped = SHARDED(fa.AdamW, params(), engine, backend="numpy", max_norm=1.0)
        said, everyone = [], engine.everyone
        engine.everyone = lambda x: said.append(x) or everyone(x)
        opt.step(grads())
        clipped.step(grads())
        return [(x.dtype.name, x.size) for x in said]

    # 2,007 elements are two blocks, of which each rank has one
    assert together(2, work) == [[("int64", 1), ("int64", 1), ("float64", 2)]] * 2


def test_another_version_is_named():
    with pytest.raises(ValueError, match=r"rank 0 has fastadam '1.0'; ranks 1, 2 have fastadam '1.1'"):
        agree([[("fastadam", x), ("lr", 1)] for x in ("1.0", "1.1", "1.1")])


UNLIKE_STEPS = {
    "None on some": (lambda opt, rank: opt.step({"w": None, "b": None} if rank else grads()),
                     r"rank 0 has as grads\['w'\] to \['b'\] 'float32'; rank 1 has .* 'no gradient'"),
    "dtype": (lambda opt, rank: opt.step(grads() if rank else {k: g.astype(np.float64) for k, g in grads().items()}),
              "rank 0 has as grads.* 'float64'; rank 1 has as grads.* 'float32'"),
    "scale": (lambda opt, rank: opt.step(grads(), grad_scale=1.0 + rank),
              "rank 0 has grad_scale 1; rank 1 has grad_scale 2"),
    "reduction": (lambda opt, rank: opt.step(grads(), reduction="sum" if rank else "mean"),
                  "rank 0 has reduction 'mean'; rank 1 has reduction 'sum'"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNLIKE_STEPS)
def test_steps_that_are_unlike_change_nothing(case):
    step, words = UNLIKE_STEPS[case]

    def work(engine):
        p = params()
        opt = SHARDED(fa.AdamW, p, engine, backend="numpy")
        with pytest.raises(ValueError, match=words):
            step(opt, engine.rank)
        assert all((x == 1).all() for x in p.values())
        opt.step({"w": None, "b": None})  # on all: the leaves are left alone, the count goes on
        assert all((x == 1).all() for x in p.values())
        return opt.t

    assert together(2, work) == [1, 1]


def test_numbers_of_micro_batches():
    def work(engine):
        opt = made(engine, reproducible="micro")
        for error, words, index in ((ValueError, "index is -1", -1), (TypeError, "index is None", None)):
            with pytest.raises(error, match=words):
                opt.accumulate(grads(), index=index)
        opt.accumulate(grads(), index=3)
        with pytest.raises(ValueError, match="index is 3 for the second time"):
            opt.accumulate(grads(), index=3)
        with pytest.raises(ValueError, match="index is 3 on two ranks"):
            opt.step()
        opt.forget()
        with pytest.raises(ValueError, match="no rank has accumulated any"):
            opt.step()
        return opt.t

    assert together(2, work) == [0, 0]


def test_an_infinite_gradient_of_one_rank_is_refused_on_all():
    def work(engine):
        p = params()
        opt = SHARDED(fa.AdamW, p, engine, skip_nonfinite="raise", backend="numpy", bucket=1024)
        g = grads(np.inf if engine.rank == 1 else 1.0)
        with pytest.raises(FloatingPointError, match=r"grads\['w'\] to \['b'\] holds NaN or infinity"):
            opt.step(g)
        return opt.t

    assert together(2, work) == [0, 0]


def test_a_number_set_on_one_rank_is_seen():
    def work(engine):
        opt = made(engine)
        opt.groups[0].lr = 0.1 * (1 + engine.rank)
        with pytest.raises(ValueError, match=r"rank 0 has groups\[0\] with .*'lr': '0.1'.*; rank 1 has"):
            opt.step(grads())
        return opt.t

    assert together(2, work) == [0, 0]


def alike(engine):
    """Construction and a step with numbers that are worth the same on all ranks."""
    one = engine.rank == 1
    numbers = {"lr": np.float64(0.1) if one else 0.1, "betas": [0.5, np.float64(0.75)] if one else (0.5, 0.75),
               "max_norm": 1 if one else 1.0, "weight_decay": 0 if one else 0.0}  # fmt: skip
    opt = SHARDED(fa.AdamW, params(), engine, backend="numpy", seed=np.int64(3) if one else 3, **numbers)
    opt.groups[0].lr = 1 if one else np.float64(1.0)
    opt.step(grads(), grad_scale=np.float64(1.0) if one else 1)
    return opt.t


def test_numbers_are_compared_by_what_they_are_worth():
    assert together(3, alike) == [1, 1, 1]
    with pytest.raises(ValueError, match="rank 0 has seed 9007199254740993; rank 1 has seed 9007199254740992"):
        agree([[("seed", 2**53 + 1)], [("seed", 2**53)]])
    with pytest.raises(ValueError, match="rank 0 has skip True; rank 1 has skip 1"):
        agree([[("skip", True)], [("skip", 1)]])


def test_functions_have_their_names_wherever_they_are():
    """Each rank makes its own, at another address: in a partial's arguments, in lists, behind a schedule."""

    def scheduled(schedules, t, **also):
        return 0.1

    def work(engine):
        def warm(t):
            return 0.25

        before = [warm] * engine.rank  # no two ranks' lie where another's did
        lr = partial(scheduled, [(warm,), {"then": warm}], also=Warmup(3, warm))
        opt = made(engine, lr=lr, ema_decay=Warmup(1, warm))
        opt.groups[0].lr = partial(lr, other=partial(warm))
        opt.step(grads())
        return opt.t, len(before)

    assert together(3, work) == [(1, 0), (1, 1), (1, 2)]
    for one, other in ((Warmup(3, 0.1), Warmup(4, 0.1)), (partial(max, 1), partial(max, 2)), ([min], [max])):
        assert shown(one) != shown(other)
    assert shown(partial(max, np.float64(1.0), key=(2, 3))) == shown(partial(max, 1, key=[2.0, np.int32(3)]))


@pytest.mark.parametrize("number", [1e300, 2.0**64, -(2.0**70), 10.0**19])
def test_large_numbers_are_shown_as_they_are_given(number):
    """Not by the hundreds of digits of the integer that a float is; that integer is worth the same all the same."""
    with pytest.raises(ValueError, match="rank 1 has grad_scale 1: expected") as raised:
        agree([[("grad_scale", number)], [("grad_scale", 1.0)]])
    given = raised.value.args[0].partition(";")[0].removeprefix("rank 0 has grad_scale ")
    assert float(given) == number
    assert len(given) <= 24
    agree([[("x", number)], [("x", int(number))], [("x", np.float64(number))]])
    with pytest.raises(ValueError, match="rank 1 has x"):
        agree([[("x", number)], [("x", int(number) + 1)]])
    with pytest.raises(ValueError, match="rank 1 has x"):
        agree([[("x", 10**400)], [("x", 10**400 + 1)]])


def test_the_value_of_a_decay_by_schedule_is_agreed_on():
    """The function has one name on both ranks, and another value from its second step on."""

    def work(engine):
        def decay(t):
            return 0.5 + 0.25 * engine.rank * (t > 1)

        p = params()
        opt = SHARDED(fa.AdamW, p, engine, backend="numpy", ema_decay=decay)
        opt.step(grads())
        before = {name: x.copy() for name, x in p.items()}
        with pytest.raises(ValueError, match=r"rank 0 has ema_decay 0\.5; rank 1 has ema_decay 0\.75"):
            opt.step(grads())
        assert all((p[name] == x).all() for name, x in before.items())
        return opt.t

    assert together(2, work) == [1, 1]


@pytest.mark.parametrize("kind", ["tree", "array", "buffer"])
@pytest.mark.parametrize("reason", ["lr", "options"])
def test_copies_are_left_as_they_were_where_construction_is_refused(kind, reason):
    """By one rank whose lr is wrong, or by all, whose lr differ: the same arrays with the same values."""

    def work(engine):
        tree = {name: np.full(x.shape, 7, np.float16) for name, x in params().items()}
        given = {"tree": tree, "array": tree["w"], "buffer": fa.FlatBuffer(tree)}[kind]
        p = {"tree": params(), "array": params()["w"], "buffer": fa.FlatBuffer(params())}[kind]
        arrays = dict(tree)
        lr = {"lr": -1.0 if engine.rank == 1 else 0.1, "options": 0.1 + engine.rank}[reason]
        with pytest.raises((ValueError, RuntimeError)):
            SHARDED(fa.AdamW, p, engine, lr=lr, copy_to=given, backend="numpy")
        assert all(tree[name] is x and (x == 7).all() for name, x in arrays.items())
        assert kind != "buffer" or (given.array == 7).all()
        opt = SHARDED(fa.AdamW, p, engine, lr=0.1, copy_to=given, backend="numpy")
        filled = given.array if kind == "buffer" else tree["w"]
        assert (filled == 1).all()
        return opt.t

    assert together(2, work) == [0, 0]


def test_hooks_refuse():
    opt = SHARDED(fa.SGD, params(), lr=0.5)
    with pytest.raises(ValueError, match=r"path has \"\['x'\]\", expected a path"):
        opt.bucket("['x']")
    assert opt.paths == ["['w']", "['b']"]
    hook = opt.bucket("['b']")
    with pytest.raises(ValueError, match=r"grads\['b'\] is float32\(8,\)"):
        hook(np.ones(8, np.float32))
    with pytest.raises(ValueError, match=r"2 gradients are given, expected those of \['b'\]"):
        hook([np.ones(7, np.float32)] * 2)
    hook(np.ones(7, np.float32))
    with pytest.raises(ValueError, match=r"grads\['b'\] is handed in for the second time"):
        hook(np.ones(7, np.float32))
    with pytest.raises(ValueError, match=r"grads\['w'\] has not been handed in"):
        opt.step()
    with pytest.raises(TypeError, match=r"grads\['w'\] is float64, others are float32"):
        opt.bucket("['w']")(np.ones((40, 50)))
    with pytest.raises(ValueError, match="some were handed in by bucket"):
        opt.step(grads())
    opt.forget()
    opt.step(grads())
    micro = SHARDED(fa.SGD, params(), reproducible="micro")
    with pytest.raises(ValueError, match="expected 'ranks' for gradients by bucket"):
        micro.bucket("['b']")


def copies(**other):
    return {**{name: np.zeros(x.shape, np.float16) for name, x in params().items()}, **other}


class Comm:
    """Is no communicator."""


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (TypeError, "communicator is Comm, expected an mpi4py communicator, a torch.distributed process group",
         lambda: SHARDED(fa.AdamW, params(), Comm())),
        (TypeError, "method is Muon, expected a class that steps each element alone, such as fastadam.AdamW",
         lambda: SHARDED(fa.Muon, params())),
        (TypeError, "method is Prodigy, expected one whose sums, if any, go over each leaf by itself",
         lambda: SHARDED(fa.Prodigy, params())),
        (TypeError, "method is 'adamw', expected a class that steps each element alone",
         lambda: SHARDED("adamw", params())),
        (TypeError, "index_offset is 3, expected none: Sharded takes no index_offset",
         lambda: SHARDED(fa.AdamW, params(), index_offset=3)),
        (ValueError, r"copy_to\['b'\] is float16\(8,\), params\['b'\] is float32\(7,\): expected its shape",
         lambda: SHARDED(fa.AdamW, params(), copy_to=copies(b=np.zeros(8, np.float16)))),
        (TypeError, r"copy_to\['b'\] is float32\(7,\), .*: expected an array of float16",
         lambda: SHARDED(fa.AdamW, params(), copy_to=copies(b=np.zeros(7, np.float32)))),
        (TypeError, r"copy_to\['b'\] is bfloat16, copy_to\['w'\] is float16: expected one dtype",
         lambda: SHARDED(fa.AdamW, params(), copy_to=copies(b=np.zeros(7, ml_dtypes.bfloat16)))),
        (ValueError, r"copy_to\['.'\] and copy_to\['.'\] share memory",
         lambda: SHARDED(fa.AdamW, {"b": np.ones(7), "c": np.ones(7)}, copy_to=dict.fromkeys("bc", np.zeros(7, "f2")))),
        (ValueError, "copy_to is given and copies is 'float16', expected one of the two",
         lambda: SHARDED(fa.AdamW, params(), copy_to=copies(), copies="float16")),
        (ValueError, "stats is 'leaf'", lambda: SHARDED(fa.AdamW, params(), stats="leaf")),
        (ValueError, "reproducible is 'yes'", lambda: SHARDED(fa.AdamW, params(), reproducible="yes")),
        (ValueError, "copies is 'float32', expected one of", lambda: SHARDED(fa.AdamW, params(), copies="float32")),
        (ValueError, r"init\['b'\] is None, expected an array for each parameter",
         lambda: SHARDED(fa.AdamW, params(), copies="float16", init={**params(), "b": None})),
        (TypeError, r"params\['w'\] is float64 and copies is 'float16': expected float32 or less",
         lambda: SHARDED(fa.AdamW, {"w": np.ones(3)}, copies="float16")),
        (ValueError, "init is given", lambda: SHARDED(fa.AdamW, params(), init=params())),
        (ValueError, r"params\['b'\] and params\['w'\] share memory",
         lambda: SHARDED(fa.AdamW, dict.fromkeys("wb", np.ones(3)))),
        (ValueError, "bucket is 0", lambda: SHARDED(fa.AdamW, params(), bucket=0)),
        (TypeError, "no 'learning_rate'", lambda: SHARDED(fa.AdamW, params(), learning_rate=1.0)),
        (TypeError, r"params\['w'\] is <i8 \(int64\(2,\)\)", lambda: SHARDED(fa.AdamW, {"w": np.ones(2, int)})),
        (ValueError, "reduction is 'max'", lambda: SHARDED(fa.AdamW, params()).step(grads(), reduction="max")),
        (TypeError, "grads.* are bfloat16 and reproducible is False|expected float32 or float64",
         lambda: SHARDED(fa.AdamW, np.ones(3, np.float32), reproducible=False).step(np.ones(3, np.float16))),
        (ValueError, "some have been accumulated", lambda: twice(SHARDED(fa.AdamW, params()))),
    ],
)  # fmt: skip
def test_bad_input(error, words, call):
    with pytest.raises(error, match=words):
        call()


def twice(opt):
    opt.accumulate(grads())
    opt.step(grads())


def test_where_parameters_lie():
    """One array in C order, and a FlatBuffer, are stepped where they lie; others move into the dicts and lists."""
    p, buffer = np.ones(9, np.float32), fa.FlatBuffer(params())
    fortran = {"w": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}
    before, expected = fortran["w"], fortran["w"].copy()
    for tree in (p, buffer, fortran):
        SHARDED(fa.SGD, tree, lr=1.0).step(fa.FlatBuffer(grads()) if tree is buffer else _ones_like(tree))
    assert (p == 0).all()
    assert (buffer.array == 0).all()
    assert (fortran["w"] == expected - 1).all()
    assert fortran["w"] is not before
    assert fortran["w"].flags.c_contiguous


def test_a_tree_without_leaves():
    def work(engine):
        opt = SHARDED(fa.AdamW, {}, engine, max_norm=1.0, stats="group")
        info = opt.step({})
        return opt.t, info.grad_norm, opt.bytes_per_parameter, opt.state_dict() is None

    assert together(2, work) == [(1, 0.0, 0.0, False), (1, 0.0, 0.0, True)]


def test_numbers_and_tuples():
    """A number is the gradient of a parameter of no dimension; dicts within tuples hold the views; others do not."""
    inner = {"w": np.array(2.0), "x": np.ones(2)}
    tree = (np.ones(3), [inner])
    opt = SHARDED(fa.SGD, tree, lr=1.0)
    opt.step((np.ones(3), [{"w": 0.5, "x": np.ones(2)}]))
    assert (float(inner["w"]), inner["x"].tolist()) == (1.5, [0.0, 0.0])
    assert tree[0].tolist() == [1.0] * 3
    assert opt.params[0].tolist() == [0.0] * 3


def _ones_like(tree):
    return np.ones_like(tree) if isinstance(tree, np.ndarray) else {name: np.ones_like(x) for name, x in tree.items()}
