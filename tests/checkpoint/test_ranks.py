"""Ranks save parts of one tree together; any number of them, one among them, load it."""

import os

import numpy as np
import pytest
from cases import same_bits
from checkpoint.team import together

import fastadam as fa
from fastadam.checkpoint import Shard

SHAPES = [("['w']", (30, 40)), ("['b']", (7,)), ("['e']", (0, 2)), ("['c'][0]", (1000,))]
N = sum(int(np.prod(shape)) for _, shape in SHAPES)


def tree(seed=0):
    rng = np.random.default_rng(seed)
    w, b, e, c = (rng.standard_normal(shape).astype(np.float32) for _, shape in SHAPES)
    return {"w": w, "b": b, "e": e, "c": [c]}


def flat(x):
    return fa.FlatBuffer(x).array


def cuts(size, unit=64):
    """Where each rank's part of the flat tree begins, and the end."""
    return [min(N, N * k // size // unit * unit) for k in range(size)] + [N]


def part(rank, size, seed=0, **chosen):
    first, last = cuts(size)[rank : rank + 2]
    own = flat(tree(seed))[first:last].copy()
    return fa.AdamW(own, lr=0.01, seed=5, index_offset=first, backend="numpy", **chosen), {"": Shard(SHAPES, first)}


def steps(opt, first, last, rank=0, size=1):
    a, b = cuts(size)[rank : rank + 2]
    for t in range(first, last):
        opt.step(flat(tree(100 + t))[a:b].copy())


def saved_by(path, size, chosen):
    """A checkpoint of so many ranks after 3 steps."""

    def work(rank, gather):
        opt, shards = part(rank, size, **chosen)
        steps(opt, 0, 3, rank, size)
        return fa.checkpoint.Folder(path).save(opt, {"size": size}, shards=shards, rank=rank, size=size, gather=gather)

    assert together(size, work) == [None] * size


def straight(last, chosen):
    """An uninterrupted run of one process over the flat tree."""
    opt = fa.AdamW(fa.FlatBuffer(tree()), lr=0.01, seed=5, backend="numpy", **chosen)
    for t in range(last):
        opt.step(flat(tree(100 + t)))
    return opt


CHOSEN = [{}, {"moments": "bfloat16"}, {"moments": "8bit"}, {"ema_decay": 0.5}]


@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_number_of_ranks_loads(size, chosen, tmp_path):
    """Saved by 1 to 4, loaded by 1 to 4, stepped on: the bits of one process over one FlatBuffer."""
    saved_by(tmp_path, size, chosen)
    (path,) = fa.checkpoint.Folder(tmp_path).checkpoints()
    assert sum(name.startswith("rank-") for name in os.listdir(path)) == size
    whole = straight(6, chosen).params.array
    for other in (1, 2, 3, 4):
        parts = []
        for rank in range(other):
            opt, shards = part(rank, other, seed=9, **chosen)
            assert fa.checkpoint.Folder(tmp_path).load(opt, shards=shards) == {"size": size}
            steps(opt, 3, 6, rank, other)
            parts.append(opt.params)
        assert same_bits(np.concatenate(parts), whole)


@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_what_ranks_saved_is_a_whole_tree(chosen, tmp_path):
    """A FlatBuffer loads it, with the same bits; a tree does, too; and a tree's is loaded by ranks."""
    saved_by(tmp_path / "ranks", 3, chosen)
    expected, buffer = straight(3, chosen), fa.AdamW(fa.FlatBuffer(tree(9)), seed=5, backend="numpy", **chosen)
    fa.checkpoint.Folder(tmp_path / "ranks").load(buffer)
    assert same_bits(buffer.params.array, expected.params.array)
    state, other = buffer.state_dict()["leaves"]["params"], expected.state_dict()["leaves"]["params"]
    assert all(same_bits(state[name], x) for name, x in other.items() if isinstance(x, np.ndarray))
    plain = fa.AdamW(tree(9), seed=5, backend="numpy", **chosen)
    fa.checkpoint.Folder(tmp_path / "ranks").load(plain)
    assert same_bits(flat(plain.params), expected.params.array)
    assert same_bits(fa.checkpoint.read(tmp_path / "ranks", "params['c'][0]"), expected.params.views["c"][0])
    if chosen.get("moments") != "8bit":
        fa.checkpoint.Folder(tmp_path / "tree").save(plain)
        opt, shards = part(1, 2, seed=9, **chosen)
        fa.checkpoint.Folder(tmp_path / "tree").load(opt, shards=shards)
        a, b = cuts(2)[1:]
        assert same_bits(opt.params, expected.params.array[a:b])


def test_a_part_without_elements_has_the_count_of_the_checkpoint(tmp_path):
    """Of a flat tree as of rows of one array; a FlatBuffer of nothing, of which no file can tell, has no later one."""
    saved_by(tmp_path / "flat", 2, {})
    nothing = fa.FlatBuffer({})
    fa.checkpoint.Folder(tmp_path / "rows").save(stepped({"w": np.ones((30, 40), np.float32)}, 3))
    fa.checkpoint.Folder(tmp_path / "nothing").save(stepped(nothing, 3))
    for name, params, shards in (
        ("flat", np.zeros(0, np.float32), {"": Shard(SHAPES, N)}),
        ("rows", {"w": np.zeros((0, 40), np.float32)}, {"['w']": Shard((30, 40), 1200)}),
        ("nothing", nothing, None),
    ):
        opt = stepped(params, 5)
        fa.checkpoint.Folder(tmp_path / name).load(opt, shards=shards)
        (leaf,) = opt.state_dict()["leaves"].values()
        assert (opt.t, leaf["count"]) == (3, 3), name


def stepped(params, steps):
    """An optimizer that has taken so many steps with gradients of ones."""
    opt = fa.AdamW(params, lr=0.01, backend="numpy")
    for _ in range(steps):
        opt.step({"w": np.ones_like(params["w"])} if isinstance(params, dict) else params)
    return opt


def test_rows_of_an_array_and_what_every_rank_has(tmp_path):
    """A shape in place of a list: rows of one array. The bias is on both ranks, and is taken from the first."""
    w, b = tree()["w"], tree()["b"]
    bounds = [0, 13, 30]

    def make(rank):
        rows = w[bounds[rank] : bounds[rank + 1]].copy()
        opt = fa.SGD({"w": rows, "b": b.copy()}, lr=0.5, momentum=0.5, backend="numpy")
        return opt, {"['w']": Shard((30, 40), bounds[rank] * 40)}

    def work(rank, gather):
        opt, shards = make(rank)
        opt.step({"w": np.full_like(opt.params["w"], 2), "b": np.ones(7, np.float32)})
        fa.checkpoint.save(tmp_path / "one", opt, shards=shards, rank=rank, size=2, gather=gather)

    assert together(2, work) == [None, None]
    one = fa.SGD({"w": np.zeros((30, 40), np.float32), "b": np.zeros(7, np.float32)}, lr=0.1, momentum=0.5)
    fa.checkpoint.load(tmp_path / "one", one)
    assert same_bits(one.params["w"], w - np.float32(1))
    assert same_bits(one.params["b"], b - np.float32(0.5))
    assert one.groups[0].lr == 0.5
    assert same_bits(fa.checkpoint.read(tmp_path / "one", "params['w']", rows=slice(12, 14)), w[12:14] - np.float32(1))


def test_a_rank_reads_what_it_needs(tmp_path):
    """Another rank's file may be damaged: who does not need it does not notice."""
    saved_by(tmp_path, 2, {})
    (path,) = fa.checkpoint.Folder(tmp_path).checkpoints()
    with open(os.path.join(path, "rank-00001.safetensors"), "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xyz")
    opt, shards = part(0, 2, seed=9)
    assert fa.checkpoint.Folder(tmp_path).load(opt, shards=shards) == {"size": 2}
    other, shards = part(1, 2, seed=9)
    with pytest.raises(fa.checkpoint.Damaged, match="rank-00001"):
        fa.checkpoint.Folder(tmp_path).load(other, shards=shards)


def test_shards_are_checked(tmp_path):
    opt = fa.AdamW({"w": np.ones(100, np.float32)}, moments="8bit", backend="numpy")
    for shards, words in (
        ({"['x']": Shard((200,), 0)}, r"shards has \"\['x'\]\", expected paths of leaves: \['w'\]"),
        ({"['w']": Shard((99,), 0)}, "begins with element 0 of 99"),
        ({"['w']": Shard((200,), 128)}, "begins with element 128 of 200"),
        ({"['w']": Shard((200,), 60)}, "expected multiples of 64"),
        ({"['w']": Shard((200,), 0)}, "expected multiples of 64"),
        ({"['w']": Shard((192,), 64)}, "expected multiples of 64"),
    ):
        with pytest.raises(ValueError, match=words):
            fa.checkpoint.save(tmp_path / "one", opt, shards=shards)
    for shard, words in (((200,), "is tuple, expected a checkpoint.Shard"), (Shard((200,), "0"), "start is '0'")):
        with pytest.raises(TypeError, match=words):
            fa.checkpoint.save(tmp_path / "one", opt, shards={"['w']": shard})
    fa.checkpoint.save(tmp_path / "one", opt)
    plain = fa.AdamW({"w": np.ones(100, np.float32)}, backend="numpy")
    with pytest.raises(ValueError, match=r"no piece of params\['w'\] that begins with its element 100"):
        fa.checkpoint.save(tmp_path / "two", plain, shards={"['w']": Shard((200,), 0)})
    assert not os.path.exists(tmp_path / "two" / "manifest.json")


def test_ranks_save_in_the_background(tmp_path):
    def work(rank, gather):
        opt, shards = part(rank, 3)
        folder, named = fa.checkpoint.Folder(tmp_path), {"shards": shards, "rank": rank, "size": 3, "gather": gather}
        for t in range(3):
            steps(opt, t, t + 1, rank, 3)
            handle = folder.save(opt, t, background=True, **named)
        handle.wait()

    assert together(3, work) == [None] * 3
    opt = fa.AdamW(fa.FlatBuffer(tree(9)), backend="numpy")
    assert fa.checkpoint.Folder(tmp_path).load(opt) == 2
    assert same_bits(opt.params.array, straight(3, {}).params.array)
