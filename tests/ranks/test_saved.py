"""What ranks save, any number of ranks loads, and one process too; a kill in the middle of a step loses nothing."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from cases import same_bits

import fastadam as fa
from ranks.jobs import HERE, mpi
from ranks.threads import together

N = 9_001
SHAPES = {"w": (30, 200), "e": (0, 3), "b": (3001,)}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def flat(params):
    return np.concatenate([x.reshape(-1) for x in params.values()])


CHOSEN = [{}, {"moments": "8bit", "max_norm": 1.0}, {"ema_decay": 0.5, "copies": "bfloat16"}]


def make(engine, chosen, seed=0):
    params = tree(seed)
    named = {"lr": 0.01, "seed": 4, "bucket": 2048, "backend": "numpy", "reproducible": "micro"}
    return fa.distributed.Sharded(fa.AdamW, params, engine, **named, **chosen), params


def steps(opt, engine, first, last):
    for t in range(first, last):
        for m in range(4):
            if m % engine.size == engine.rank:
                opt.accumulate(tree([t, m]), index=m)
        opt.step()


@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_another_number_of_ranks_goes_on(chosen, tmp_path):
    def straight(engine):
        opt, params = make(engine, chosen)
        steps(opt, engine, 0, 6)
        return flat(params)

    def begin(engine):
        opt, _ = make(engine, chosen)
        steps(opt, engine, 0, 3)
        opt.save(fa.checkpoint.Folder(tmp_path), {"size": engine.size})

    (expected,) = together(1, straight)
    together(3, begin)

    def go_on(engine):
        opt, params = make(engine, chosen, seed=9)
        assert opt.load(fa.checkpoint.Folder(tmp_path)) == {"size": 3}
        assert opt.t == 3
        steps(opt, engine, 3, 6)
        return flat(params), opt.state_dict()

    counts = []
    for size in (1, 2, 4):
        results = together(size, go_on)
        assert all(same_bits(x, expected) for x, _ in results)
        counts.append(results[0][1]["leaves"]["params[0]"]["count"])
    assert counts == [6, 6, 6]


def test_one_process_loads_what_ranks_saved(tmp_path):
    def work(engine):
        opt, params = make(engine, {})
        steps(opt, engine, 0, 2)
        opt.save(fa.checkpoint.Folder(tmp_path))
        return flat(params)

    (expected, _) = together(2, work)
    alone = fa.AdamW(tree(9), backend="numpy")
    fa.checkpoint.Folder(tmp_path).load(alone)
    assert same_bits(flat(alone.params), expected)
    assert alone.t == 2


@pytest.mark.parametrize("method", [fa.AdamW, fa.NAdam, fa.LAMB], ids=lambda method: method.__name__)
@pytest.mark.parametrize("n", [0, 5, 1500])
def test_ranks_without_any_element_go_back_to_an_older_checkpoint(n, method, tmp_path):
    """Three steps further, all ranks have the count of the checkpoint, and its steps once more give the same bits."""

    def gradient(t):
        return np.random.default_rng(t).standard_normal(n).astype(np.float32)

    def work(engine):
        p, folder = np.ones(n, np.float32), fa.checkpoint.Folder(tmp_path / str(engine.size))
        opt = fa.distributed.Sharded(method, p, engine, lr=0.1, backend="numpy")
        opt.step(gradient(0))
        opt.save(folder)
        for t in range(1, 4):
            opt.step(gradient(t))
        before = p.copy()
        opt.load(folder)
        state = opt._opt.state_dict()
        assert (opt.t, [leaf["count"] for leaf in state["leaves"].values()]) == (1, [1])
        for t in range(1, 4):
            opt.step(gradient(t))
        return same_bits(p, before), opt.t, opt._opt.state_dict()["leaves"].popitem()[1].get("mu_product")

    for size in (1, 2, 3):
        assert len(set(results := together(size, work))) == 1
        assert results[0][:2] == (True, 4)


def test_leaves_of_other_counts_do_not_become_one_array(tmp_path):
    """Though the ranks are cut just where the leaves meet, so that each has elements of one leaf alone."""
    folder = fa.checkpoint.Folder(tmp_path)
    alone = fa.AdamW({"a": np.ones(1024, np.float32), "b": np.ones(1024, np.float32)}, backend="numpy")
    alone.step({"a": np.ones(1024, np.float32), "b": None})
    folder.save(alone)

    def work(engine):
        params = {"a": np.zeros(1024, np.float32), "b": np.zeros(1024, np.float32)}
        opt = fa.distributed.Sharded(fa.AdamW, params, engine, backend="numpy")
        with pytest.raises(ValueError, match=r"\['a'\] and \['b'\] have taken other steps, .*'count': 1.*'count': 0"):
            opt.load(folder)
        return opt.t, float(params["a"].sum())

    assert together(2, work) == [(0, 0.0)] * 2


def saved(folder, steps=1, flip=False):
    """A folder with one checkpoint of one process after some steps; with one byte turned, if asked."""
    alone = fa.AdamW(tree(1), lr=0.01, seed=4, backend="numpy")
    for _ in range(steps):
        alone.step(tree(2))
    folder.save(alone)
    if flip:
        (file,) = Path(folder.checkpoints()[0]).glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


UNLIKE = {
    "another": (
        [saved, lambda folder: saved(folder, steps=2)],
        [(ValueError, "rank 0 has found .*-step-1.; rank 1 has found .*-step-2")] * 2,
    ),
    "none": ([saved, lambda folder: None], [(ValueError, "rank 1 has found 'no checkpoint in ")] * 2),
    "unreadable": (
        [saved, lambda folder: saved(folder, flip=True)],
        [
            (RuntimeError, "rank 1 refused, so that no rank goes on: Damaged: no checkpoint"),
            (fa.checkpoint.Damaged, "no checkpoint"),
        ],
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_ranks_that_find_other_checkpoints_change_nothing(case, tmp_path):
    make_folder, refusals = UNLIKE[case]

    def work(engine):
        opt, params = make(engine, {})
        steps(opt, engine, 0, 1)
        before, state = flat(params), opt.state_dict()
        folder = fa.checkpoint.Folder(tmp_path / str(engine.rank))
        make_folder[engine.rank](folder)
        kind, words = refusals[engine.rank]
        with pytest.raises(kind, match=words):
            opt.load(folder)
        after = opt.state_dict()
        assert opt.t == 1
        assert same_bits(flat(params), before)
        if engine.rank == 0:
            leaf, kept = after["leaves"]["params[0]"], state["leaves"]["params[0]"]
            assert all(same_bits(leaf[name], kept[name]) for name in ("m", "v"))

    together(2, work)


def test_without_a_checkpoint_all_begin_anew(tmp_path):
    def work(engine):
        opt, _ = make(engine, {})
        return opt.load(fa.checkpoint.Folder(tmp_path / "nothing"))

    assert together(2, work) == [None, None]


PROGRAM = HERE / "elastic.py"
LAST = 8


def job(folder, size, *arguments):
    status, output = mpi(size, PROGRAM, folder, LAST, *arguments)
    return status, output


def test_a_killed_rank_loses_nothing(tmp_path, request):
    """Chains of three kills, each in the middle of a step and on another number of ranks: the uninterrupted hash."""
    status, output = job(tmp_path / "straight", 2)
    assert status == 0, output
    expected = json.loads((tmp_path / "straight" / "hash").read_text())
    chains = 6 if request.config.getoption("--all") else 2
    draw = random.Random(3)
    for chain in range(chains):
        folder = tmp_path / str(chain)
        for kill in range(3):
            size = draw.randint(1, 4)
            status, output = job(folder, size, draw.randrange(size), 2 * kill + draw.randint(2, 3))
            assert status != 0, output
            assert "killed in the middle of step" in output
        status, output = job(folder, draw.randint(1, 4))
        assert status == 0, output
        assert "resumed" in output
        assert json.loads((folder / "hash").read_text()) == expected
