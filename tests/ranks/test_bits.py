"""1 to 4 ranks have the bits of one process: every kernel, format and chore, with buckets so small that each boundary
is crossed. Ranks are threads here; test_processes.py has processes."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from cases import same_bits

import fastadam as fa
from fastadam.distributed.cuts import cuts
from fastadam.kernels import ALL
from fastadam.kernels.chores import BLOCK
from fastadam.kernels.formats import FORMATS
from fastadam.tools import cover
from fastadam.tools.cover import chores, kernels_in_use, label, stored
from ranks.threads import together

SIZES = [1, 2, 3, 4]
LEAVES, SEVEN = 700, 7  # tiny leaves: 4,900 elements are 5 blocks, so that 4 ranks have pieces of unlike sizes
N = LEAVES * SEVEN
STEPS = 4


def values(seed, dtype, scale=1.0):
    x = np.random.default_rng(seed).standard_normal(N) * scale
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(dtype)


def tree_of(flat):
    """The leaves of one dict, end to end."""
    return {f"l{k}": x.copy() for k, x in enumerate(np.split(flat, LEAVES))}


def gradient(t, rank, dtype, bad):
    g = values([t, rank], dtype, 10.0 ** (t % 3 - 2))
    if bad and t == 1 and rank == 0:
        g[N // 2] = np.nan
    return g


def run(size, p_dtype, g_dtype, method, chosen, bucket=1024, copies=None, copy_to=None, **named):
    """Steps of `size` ranks and of one process: must agree in every bit."""
    chosen = {**chosen, **named, "seed": 7, "backend": "numpy"}
    clearing = chosen.pop("zero_grads", False)
    start, held = values(99, p_dtype), {}
    one = start.copy()
    if copies is not None or copy_to is not None:
        held["copy_to"] = np.zeros(N, FORMATS[copies or copy_to].dtype)
    reference = method(one, zero_grads=clearing, **held, **chosen)
    bad = bool(chosen.get("skip_nonfinite"))
    infos = [
        reference.step(streams=[gradient(t, rank, g_dtype, bad) for rank in range(size)], grad_scale=0.5)
        for t in range(STEPS)
    ]
    state = reference.state_dict()["leaves"]["params"]

    def work(engine):
        params = tree_of(start)
        beside = {} if copy_to is None else {"copy_to": tree_of(np.zeros(N, FORMATS[copy_to].dtype))}
        opt = fa.distributed.Sharded(
            method, params, engine, bucket=bucket, copies=copies, zero_grads=clearing, **chosen, **beside
        )
        for x in beside.values():  # filled at once, on all ranks
            assert same_bits(np.concatenate(list(x.values())), start.astype(held["copy_to"].dtype))
        for t in range(STEPS):
            grads = tree_of(gradient(t, engine.rank, g_dtype, bad))
            info = opt.step(grads, grad_scale=0.5)
            assert info._replace(stats=None) == infos[t]._replace(stats=None)
            assert list((info.stats or {}).values()) == list((infos[t].stats or {}).values())
            if clearing:
                assert not any(g.any() for g in grads.values())
        assert (opt.t, opt.skipped) == (reference.t, reference.skipped)
        whole = np.concatenate([x.reshape(-1) for x in params.values()])
        assert same_bits(whole, one if copies is None else held["copy_to"])
        for x in beside.values():
            assert same_bits(np.concatenate(list(x.values())), held["copy_to"])
        return opt.state_dict(), opt.state_bytes

    (saved, _), *others = results = together(size, work)
    assert all(nothing is None for nothing, _ in others)
    leaf = saved["leaves"]["params[0]"]
    assert leaf.keys() == state.keys()
    for name, x in state.items():
        assert same_bits(leaf[name], x) if isinstance(x, np.ndarray) else leaf[name] == x, name
    return [nbytes for _, nbytes in results]


def sums_first(variant):
    """Whether a method sums over whole leaves."""
    method, chosen = variant
    return method(np.ones(1), **chosen).sums_first


KERNELS = [variant for variant in kernels_in_use() if not sums_first(variant)]
SUMMING = [variant for variant in kernels_in_use() if sums_first(variant) and not cover.together(variant)]
CHORES = chores()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", KERNELS, ids=label)
def test_every_kernel(variant, size):
    run(size, np.float32, np.float32, *variant)


def test_the_kernels_are_all_that_there_are():
    of_each_leaf = {name for name, kernel in ALL.items() if kernel.Judging is None}  # the others' are refused
    assert {method.rule.kernel for method, _ in KERNELS + SUMMING} == of_each_leaf
    assert {"adopt", "ademamix", "schedulefree"} <= {method.rule.kernel for method, _ in KERNELS}


def leaves(seed):
    rng = np.random.default_rng(seed)
    shapes = (70, 50), (0, 3), (7,), (1024,), (2500,)
    return {f"l{k}": rng.standard_normal(shape).astype(np.float32) for k, shape in enumerate(shapes)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", SUMMING, ids=label)
def test_every_kernel_that_sums_over_leaves(variant, size):
    """Each leaf cut in pieces of its own: the bits of one process over the tree; chores in turns."""
    (method, chosen), number = variant, SUMMING.index(variant)
    asked = [{}, {"max_norm": 0.3, "skip_nonfinite": True}, {"moments": "8bit", "stats": "tensor"},
             {"ema_decay": 0.9, "backend": "numba"}][(number + size) % 4]  # fmt: skip
    named = {**chosen, "backend": "numpy", "seed": 2, **asked}
    one = leaves(0)
    reference = method(one, **named)

    def gradients(t, rank):
        grads = leaves([t, rank])
        grads["l2"] = None if t == 2 else grads["l2"]
        if "skip_nonfinite" in asked and t == 1 and rank == 0:
            grads["l0"][3, 4] = np.nan
        return grads

    infos = [reference.step(streams=[gradients(t, rank) for rank in range(size)]) for t in range(4)]

    def work(engine):
        params = leaves(0)
        opt = fa.distributed.Sharded(method, params, engine, bucket=1024, **named)
        assert [opt.step(gradients(t, engine.rank)) for t in range(4)] == infos
        return params, opt.state_dict()

    results = together(size, work)
    for params, _ in results:
        assert all(same_bits(params[name], x) for name, x in one.items())
    for ours, whole in zip(results[0][1]["leaves"].values(), reference.state_dict()["leaves"].values(), strict=True):
        whole.pop("order", None)  # of axes: pieces are flat
        for name, x in whole.items():
            assert same_bits(ours[name].reshape(-1), x.reshape(-1)) if isinstance(x, np.ndarray) else ours[name] == x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", range(len(CHORES)))
def test_every_chore(number, size):
    asked = {name: x for name, x in CHORES[number].items() if x is not None}
    run(size, np.float32, np.float32, *KERNELS[number % len(KERNELS)], **asked)
    if copies := asked.pop("copy_to", None):  # in the parameters' place
        run(size, np.float32, np.float32, *KERNELS[number % len(KERNELS)], copies=copies, **asked)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", range(len(stored())), ids=lambda k: str(stored()[k]))
def test_every_format(number, size):
    one, asked = stored()[number], {"max_norm": 0.37} if number % 2 else {}
    run(size, *one.dtypes(), *KERNELS[number % len(KERNELS)], **one.chosen(), **asked)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_rank_has_its_share_of_small_buckets(ranks):
    shares = np.diff(cuts(20_000, ranks, 1024), axis=1).sum(axis=0)
    assert shares.sum() == 20_000
    assert shares.max() - shares.min() <= 4096


@pytest.mark.parametrize("ranks", [1, 3, 8, 16])
@pytest.mark.parametrize("n", [0, 5, 1 << 19, 3 << 19, (1 << 21) + 7, 25_600_000])
def test_pieces_are_blocks_of_which_no_rank_has_two_more(n, ranks):
    """End to end over all buckets, none of which is longer than was asked for, rounded up to a block for each rank."""
    for bucket, turn in ((1, 0), (1 << 20, 5), (1 << 24, ranks - 1)):
        places = cuts(n, ranks, bucket, turn)
        assert [places[0][0], *(cut[-1] for cut in places)] == [0, *(cut[0] for cut in places[1:]), n]
        assert all(len(cut) == ranks + 1 and cut[-1] - cut[0] < bucket + ranks * BLOCK for cut in places)
        for cut in places:
            blocks = [-(-(stop - first) // BLOCK) for first, stop in pairwise(cut)]
            assert all(first % BLOCK == 0 or first == n for first in cut)
            assert max(blocks) - min(blocks) <= 1
            assert sum(blocks) == -(-(cut[-1] - cut[0]) // BLOCK)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_many_short_arrays_are_shared_out(size):
    """Each leaf is cut for itself where steps sum over leaves; of 11 blocks no rank has two more than another."""
    lengths = [1024, 1024, 2048, 1024, 3072, 0, 1024, 1024, 1024]

    def work(engine):
        params = [np.ones(n, np.float32) for n in lengths]
        return fa.distributed.Sharded(fa.LAMB, params, engine, backend="numpy").state_bytes / (2 * 4 * BLOCK)

    blocks = together(size, work)
    assert sum(blocks) == sum(lengths) / BLOCK == 11
    assert max(blocks) - min(blocks) <= 1


def test_state_is_shared_out():
    """Each rank has about its part: 4,900 elements are two blocks of 1,024, two single ones, and one of 804."""
    sizes = run(4, np.float32, np.float32, fa.AdamW, {"lr": 0.1}, bucket=1 << 24)
    assert sizes == [8 * 2048, 8 * 1024, 8 * 1024, 8 * 804]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("backend", ["numba"])
def test_compiled_steps_too(size, backend):
    run(size, np.float32, np.float32, fa.AdamW, {"lr": 0.01, "weight_decay": 0.1, "max_norm": 0.5}, bucket=2048)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_ranks_without_any_element(n):
    def work(engine):
        p = np.ones(n, np.float32)
        opt = fa.distributed.Sharded(fa.SGD, p, engine, lr=0.5, max_norm=1.0, skip_nonfinite=True)
        info = opt.step(np.full(n, 3.0, np.float32))
        return info, p.tolist(), opt.state_bytes

    alone = np.ones(n, np.float32)
    info = fa.SGD(alone, lr=0.5, max_norm=1.0).step(streams=[np.full(n, 3.0, np.float32)] * 3)
    assert together(3, work) == [(info, alone.tolist(), 0)] * 3


def groups():
    rng = np.random.default_rng(5)
    first = [rng.standard_normal(n).astype(np.float32) for n in (1500, 7, 3000)]
    second = {"w": rng.standard_normal((40, 50)).astype(np.float32), "d": rng.standard_normal(1100)}
    return [{"params": first, "max_norm": 0.3}, {"params": second, "lr": 1e-3, "name": "heads"}]


def gradients_of_groups(t, rank):
    rng = np.random.default_rng([t, rank])
    return [
        [rng.standard_normal(n).astype(np.float32) for n in (1500, 7, 3000)],
        {"w": None if t == 2 else rng.standard_normal((40, 50)).astype(np.float32), "d": rng.standard_normal(1100)},
    ]


@pytest.mark.parametrize("size", SIZES)
def test_groups_and_dtypes(size):
    """Each with its own lr and limit; one buffer for each group and dtype; one without a gradient is left alone."""
    named = {"lr": 0.01, "max_norm": 0.7, "stats": "group", "seed": 2, "backend": "numpy", "ema_decay": 0.9}
    given = groups()
    flat = [np.concatenate(given[0]["params"]), given[1]["params"]["w"].reshape(-1).copy(), given[1]["params"]["d"]]
    reference = fa.AdamW(
        [{"params": [flat[0]], "max_norm": 0.3}, {"params": flat[1:], "lr": 1e-3, "name": "heads"}], **named
    )
    infos = []
    for t in range(4):
        streams = []
        for rank in range(size):
            first, second = gradients_of_groups(t, rank)
            w = second["w"]
            streams.append([[np.concatenate(first)], [None if w is None else w.reshape(-1), second["d"]]])
        infos.append(reference.step(streams=streams, reduction="sum"))

    def work(engine):
        params = groups()
        opt = fa.distributed.Sharded(fa.AdamW, params, engine, bucket=1024, **named)
        assert [opt.step(gradients_of_groups(t, engine.rank), reduction="sum") for t in range(4)] == infos
        assert opt.groups[1].name == "heads"
        assert params[0]["params"][0] is opt.params[0]["params"][0]
        state = opt.state_dict()
        if engine.rank == 0:
            assert [leaf["count"] for leaf in state["leaves"].values()] == [4, 3, 4]
            for key, leaf in reference.state_dict()["leaves"].items():
                for name, x in leaf.items():
                    if isinstance(x, np.ndarray):
                        assert same_bits(x, state["leaves"][key][name])
        with opt.averaged():
            averages = np.concatenate([x.reshape(-1) for x in params[0]["params"]])
        first, second = (item["params"] for item in params)
        return averages, np.concatenate(first), second["w"].reshape(-1), second["d"]

    for averages, *whole in together(size, work):
        assert all(same_bits(x, y) for x, y in zip(whole, flat, strict=True))
        assert same_bits(averages, reference.ema[0][0])


@pytest.mark.parametrize("sizes", [(1, 3), (2, 4)])
def test_micro_batches_have_one_order(sizes):
    """In the order of their numbers: 1 and 3, or 2 and 4 ranks, give the same bits, also with fewer than there are
    ranks."""
    named = {"lr": 0.01, "moments": "8bit", "max_norm": 0.5, "seed": 3, "backend": "numpy"}
    for many in (2, 5):
        one = values(1, np.float32)
        reference = fa.AdamW(one, **named)
        for t in range(3):
            reference.step(streams=[values([t, m], np.float32) for m in range(many)])

        def work(engine, many=many):
            p = values(1, np.float32)
            opt = fa.distributed.Sharded(fa.AdamW, p, engine, reproducible="micro", bucket=2000, **named)
            for t in range(3):
                for m in range(many)[::-1]:
                    if m * 7 % engine.size == engine.rank:
                        opt.accumulate(values([t, m], np.float32), index=m)
                opt.step()
            return p

        for size in sizes:
            assert all(same_bits(p, one) for p in together(size, work))


@pytest.mark.parametrize("g_dtype", ["float32", "bfloat16"])
def test_accumulated_before_they_are_exchanged(g_dtype):
    """Each rank's sum in the compute type; the mean is over all micro-batches, of which ranks may have unlike many."""
    dtype = FORMATS[g_dtype].dtype
    one = values(1, np.float32)
    reference = fa.AdamW(one, max_norm=0.5, backend="numpy")
    for t in range(2):
        for rank in range(3):
            total = values([t, rank, 0], dtype).astype(np.float32)
            for m in range(1, rank + 1):
                total = total + values([t, rank, m], dtype).astype(np.float32)
            reference.accumulate(total, micro_batches=rank + 1)
        reference.step()

    def work(engine):
        p = values(1, np.float32)
        opt = fa.distributed.Sharded(fa.AdamW, p, engine, max_norm=0.5, backend="numpy")
        for t in range(2):
            for m in range(engine.rank + 1):
                opt.accumulate(values([t, engine.rank, m], dtype))
            opt.step()
        return p

    assert all(same_bits(p, one) for p in together(3, work))


def test_the_engines_own_sums():
    """reproducible=False: close to the truth in whatever order, and the same on all ranks."""

    def work(engine, reproducible):
        p = values(1, np.float32)
        opt = fa.distributed.Sharded(
            fa.SGD, p, engine, lr=1.0, max_norm=0.5, reproducible=reproducible, bucket=1024, backend="numpy"
        )
        for t in range(2):
            opt.step(values([t, engine.rank], np.float32))
        return p

    fast = together(4, lambda engine: work(engine, False))
    exact = together(4, lambda engine: work(engine, "ranks"))
    assert all(same_bits(p, fast[0]) for p in fast)
    assert not same_bits(fast[0], exact[0])
    # 4 numbers are added with 3 roundings, twice, on a total of at most 4 standard deviations of 5 each
    np.testing.assert_allclose(fast[0], exact[0], rtol=0, atol=2 * 3 * np.finfo(np.float32).eps * 20)


def test_the_float32_start_may_be_given():
    """What a program holds in bfloat16 alone begins at the float32 values that init says, on their owners."""
    one, held = values(99, np.float32), np.zeros(N, FORMATS["bfloat16"].dtype)
    reference = fa.AdamW(one, lr=1e-4, copy_to=held, backend="numpy")
    for t in range(3):
        reference.step(streams=[values([t, rank], np.float32) for rank in range(2)])

    def work(engine):
        params = tree_of(values(98, held.dtype))
        opt = fa.distributed.Sharded(
            fa.AdamW, params, engine, lr=1e-4, copies="bfloat16", init=tree_of(values(99, np.float32)), backend="numpy"
        )
        for t in range(3):
            opt.step(tree_of(values([t, engine.rank], np.float32)))
        return np.concatenate(list(params.values()))

    assert all(same_bits(p, held) for p in together(2, work))


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_that_arrive_layer_by_layer(size, max_norm):
    """In another order on each rank; buckets leave as they fill, from the last to the first, some before the step."""
    reference = run_plain(size, max_norm)

    def work(engine):
        params = tree_of(values(1, np.float32))
        opt = fa.distributed.Sharded(
            fa.AdamW, params, engine, max_norm=max_norm, bucket=1024, moments="8bit", backend="numpy"
        )
        hooks = {name: opt.bucket(f"['{name}']") for name in params}
        for t in range(3):
            grads = list(tree_of(values([t, engine.rank], np.float32)).items())
            np.random.default_rng(engine.rank).shuffle(grads)
            engine.everyone(None)
            engine._room.carried = 0
            engine.everyone(None)
            for name, g in sorted(grads, key=lambda item: -int(item[0][1:])) if t else grads:
                hooks[name](g)
                if t and name == "l100":
                    left = engine._room.carried
            opt.step()
        return np.concatenate([x for x in params.values()]), left

    results = together(size, work)
    assert all(same_bits(p, reference) for p, _ in results)
    assert size == 1 or all(left > 0 for _, left in results)


def run_plain(size, max_norm):
    p = values(1, np.float32)
    opt = fa.AdamW(p, max_norm=max_norm, moments="8bit", backend="numpy")
    for t in range(3):
        opt.step(streams=[values([t, rank], np.float32) for rank in range(size)])
    return p


def test_bytes_travel_once():
    """A gradient goes to its owner and a parameter to the others: (N - 1)/N of an array per rank and direction."""
    rooms = []

    def work(engine):
        p = values(1, np.float32)
        opt = fa.distributed.Sharded(fa.SGD, p, engine, backend="numpy")
        engine.everyone(None)
        engine._room.carried = 0
        engine.everyone(None)
        opt.step(values([1, engine.rank], np.float32))
        rooms.append(engine._room)
        return opt.bytes_per_parameter

    # SGD has no state; 3 of the 5 blocks are the first rank's, and each has room for the other's part of its own
    assert together(2, work) == [(4 * N + 4 * 3072) / N, (4 * N + 4 * (N - 3072)) / N]
    assert rooms[0].carried == 2 * 4 * N


MEMORY = {
    "one array": ({}, lambda opt, grads, number: opt.step(grads["a"])),
    "a tree": ({"moments": "8bit", "max_norm": 1.0}, lambda opt, grads, number: opt.step(grads)),
    "copies": ({"copies": "bfloat16"}, lambda opt, grads, number: opt.step(grads)),
    "accumulated": ({}, lambda opt, grads, number: opt.accumulate(grads)),
    "micro": ({"reproducible": "micro"}, lambda opt, grads, number: opt.accumulate(grads, index=number)),
    "by bucket": ({"bucket": 1 << 16}, lambda opt, grads, number: opt.bucket("['b']")(grads["b"])),
}


@pytest.mark.parametrize("case", MEMORY)
def test_bytes_per_parameter_are_those_that_were_allocated(case):
    """All that two ranks allocate from NumPy while they are made and used, beside the program's own arrays."""
    n, (chosen, use) = 1 << 18, MEMORY[case]
    sizes = {"a": n} if case == "one array" else {"a": n // 2, "b": n // 2}
    trees = [
        [{name: np.ones(size, np.float32) for name, size in sizes.items()} for _ in range(2)] for _ in range(2)
    ]  # of each rank the parameters and the gradients

    def work(engine):
        params, grads = trees[engine.rank]
        given = params["a"] if case == "one array" else params
        opt = fa.distributed.Sharded(fa.AdamW, given, engine, backend="numpy", **chosen)
        for k in range(2):
            if case != "by bucket" or k == 0:
                use(opt, grads, 2 * k + engine.rank)
        return opt, opt.bytes_per_parameter, engine._room

    tracemalloc.start()
    try:
        results = together(2, work)
        traced = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)])
        allocated = sum(one.size for one in traced.statistics("filename"))
    finally:
        tracemalloc.stop()
    said = sum(each * n for _, each, _ in results)
    where_it_lay = 2 * 4 * n if case == "one array" else 0  # which was allocated before
    on_the_way = results[0][2].carried if case == "by bucket" else 0  # copies of the threads' that nobody has taken yet
    # a page or two of each array, and what is small; the least of what is counted is 500,000
    assert said <= allocated + where_it_lay - on_the_way <= said + 300_000


def test_one_flipped_bit_is_seen():
    """What compares must be able to fail: one bit of one element of one rank's gradient shows in the parameters."""

    def work(engine, flip):
        p = values(1, np.float32)
        opt = fa.distributed.Sharded(fa.SGD, p, engine, lr=0.1, momentum=0.9, backend="numpy", bucket=1024)
        for t in range(2):
            g = values([t, engine.rank], np.float32)
            if flip and t == 0 and engine.rank == 2:
                g.view(np.uint32)[N - 3] ^= 1 << 22
            opt.step(g)
        return p

    straight = together(3, lambda engine: work(engine, False))
    flipped = together(3, lambda engine: work(engine, True))
    assert [int((a != b).sum()) for a, b in zip(straight, flipped, strict=True)] == [1, 1, 1]
