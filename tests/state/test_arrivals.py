"""What arrives read-only from another process or a file is copied before compiled code writes there."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from cases import by_turns, same_bits, state_arrays

import fastadam as fa

N = 600  # squared, in float32: more than the megabyte from which joblib sends arrays as read-only memory maps


def out_of_band(thing):
    """Pickled as protocol 5 allows, with the arrays' memory as immutable bytes beside it."""
    buffers = []
    whole = pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    frozen = [bytes(x.raw()) for x in buffers]
    return pickle.loads(whole, buffers=frozen), frozen


def optimizer(kind, backend, n=8):
    tree = {"w": np.linspace(-1, 1, n * n, dtype=np.float32).reshape(n, n), "b": np.ones(n, np.float32)}
    if kind == "buffer":
        return fa.AdamW(fa.FlatBuffer(tree), lr=0.1, backend=backend)
    if kind == "copies":
        copies = {name: np.zeros(x.shape, np.float16) for name, x in tree.items()}
        return fa.AdamW(tree, lr=0.1, copy_to=copies, ema_decay=0.9, amsgrad=True, backend=backend)
    if kind == "muon":
        copies = {name: np.zeros(x.shape, np.float16) for name, x in tree.items()}
        return fa.Muon(tree, lr=0.1, copy_to=copies, ema_decay=0.9, backend=backend)
    if kind == "8bit":
        return fa.AdamW(tree, lr=0.1, moments="8bit", backend=backend)
    if kind == "master":
        return fa.AdamW({name: x.astype(np.float16) for name, x in tree.items()}, master="float32", backend=backend)
    return fa.AdamW(tree, lr=0.1, backend=backend)


def gradients(opt, seed):
    rng = np.random.default_rng(seed)
    if isinstance(opt.params, fa.FlatBuffer):
        g = opt.params.zeros_like()
        g.array[:] = rng.standard_normal(g.array.size)
        return g
    return {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in opt.params.items()}


def arrays_of(opt):
    params = [opt.params.array] if isinstance(opt.params, fa.FlatBuffer) else list(opt.params.values())
    return [*params, *state_arrays(opt).values(), *(opt.copy_to.values() if opt.copy_to else ())]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", ["tree", "buffer", "copies", "8bit", "master", "muon"])
def test_immutable_bytes_stay_as_they_are(kind, backend):
    opt = optimizer(kind, backend)
    opt.step(gradients(opt, 0))
    opt.accumulate(gradients(opt, 1))
    there, frozen = out_of_band(opt)
    before = [bytes(bytearray(x)) for x in frozen]
    for one in opt, there:
        one.accumulate(gradients(opt, 2))
        one.step()
        one.step(gradients(opt, 3))
    assert all(same_bits(a, b) for a, b in zip(arrays_of(opt), arrays_of(there), strict=True))
    assert frozen == before


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_rows_that_are_behind_arrive_too(backend):
    opt = optimizer("tree", backend)
    rows = {"w": (np.array([1, 3]), np.ones((2, 8), np.float32))}
    opt.step_rows(rows, semantics="exact")
    opt.step_rows({"w": (np.array([2]), np.ones((1, 8), np.float32))}, semantics="exact")
    there, _ = out_of_band(opt)
    for one in opt, there:
        one.step_rows(rows, semantics="exact")
        one.catch_up()
    assert all(same_bits(a, b) for a, b in zip(arrays_of(opt), arrays_of(there), strict=True))


def worked(opt, g):
    """What a worker does: go on, and send all of it back."""
    opt.accumulate(g)
    opt.accumulate(g)
    opt.step()
    opt.step(g)
    return opt


@pytest.mark.parametrize("kind", ["tree", "buffer", "copies"])
def test_joblibs_workers_go_on(kind):
    opt = optimizer(kind, "numba", N)
    opt.accumulate(gradients(opt, 0))
    g = gradients(opt, 1)
    (there,) = joblib.Parallel(n_jobs=2)([joblib.delayed(worked)(opt, g)])
    worked(opt, g)
    assert all(same_bits(a, b) for a, b in zip(arrays_of(opt), arrays_of(there), strict=True))


GUEST = """
import multiprocessing, sys
import numpy as np
import fastadam as fa
from test_arrivals import N, arrays_of, gradients, optimizer, worked
from cases import same_bits

if __name__ == "__main__":
    kind, start = sys.argv[1:]
    opt = optimizer(kind, "numba", N)
    opt.accumulate(gradients(opt, 0))
    g = gradients(opt, 1)
    with multiprocessing.get_context(start).Pool(1) as pool:
        there = pool.apply(worked, (opt, g))
    worked(opt, g)
    assert all(same_bits(a, b) for a, b in zip(arrays_of(opt), arrays_of(there), strict=True))
    print("done")
"""


@by_turns(kind=["tree", "copies"], start=["spawn", "fork"])
def test_multiprocessings_workers_go_on(kind, start, tmp_path):
    """A plain tree of more than a megabyte: sent to a child and back; a forked one, whose parent has OpenMP, too."""
    (tmp_path / "guest.py").write_text(GUEST)
    path = [str(Path(fa.__file__).parents[1]), *map(str, (Path(__file__).parent, Path(__file__).parents[1]))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, str(tmp_path / "guest.py"), kind, start]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("kind", ["tree", "buffer", "copies", "8bit", "master"])
def test_a_file_mapped_into_memory_stays_as_it_is(kind, tmp_path):
    opt = optimizer(kind, "numba", N)
    opt.step(gradients(opt, 0))
    opt.accumulate(gradients(opt, 1))
    joblib.dump(opt, tmp_path / "opt")
    before = (tmp_path / "opt").read_bytes()
    there = worked(joblib.load(tmp_path / "opt", mmap_mode="r"), gradients(opt, 2))
    worked(opt, gradients(opt, 2))
    assert all(same_bits(a, b) for a, b in zip(arrays_of(opt), arrays_of(there), strict=True))
    assert (tmp_path / "opt").read_bytes() == before


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_copy_that_became_read_only_is_not_written(backend):
    p = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}
    copies = {name: np.zeros(3, np.float16) for name in p}
    opt = fa.SGD(p, lr=0.5, copy_to=copies, backend=backend)
    g = {name: np.ones(3, np.float32) for name in p}
    opt.step(g)
    copies["b"].flags.writeable = False
    for step in (
        lambda: opt.step(g),
        lambda: opt.step_rows({"b": g["b"]}),
        lambda: opt.step_rows({"b": (np.array([0]), np.ones(1, np.float32))}),
    ):
        with pytest.raises(ValueError, match=r"copy_to\['b'\] has become read-only"):
            step()
    assert (opt.t, p["a"][0], copies["a"][0], copies["b"][0]) == (1, 0.5, 0.5, 0.5)
    opt.step({"a": g["a"], "b": None})  # which writes to the other alone
    copies["b"].flags.writeable = True
    opt.step(g)
    assert (copies["a"][0], copies["b"][0]) == (-0.5, 0)


def test_no_format_is_changed_over_parameters_that_became_read_only():
    p = np.ones(3, np.float32)
    opt = fa.Adam(p)
    p.flags.writeable = False
    with pytest.raises(ValueError, match="params has become read-only"):
        opt.convert("bfloat16")


@pytest.mark.parametrize("method", [fa.Adam, fa.ScheduleFreeSGD, fa.Muon])
def test_no_averages_are_swapped_into_parameters_that_became_read_only(method):
    params = {"a": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}
    opt = method(params, **({"ema_decay": 0.5} if method is not fa.ScheduleFreeSGD else {}), backend="numpy")
    for scale in (0.5, 2.0):
        opt.step({name: np.full_like(p, scale) for name, p in params.items()})
    before = {name: p.copy() for name, p in params.items()}
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['b'\] has become read-only"), opt.averaged():
        pass
    assert all(same_bits(p, before[name]) for name, p in params.items())
    params["b"].flags.writeable = True
    with opt.averaged():
        assert not same_bits(params["b"], before["b"])
    opt.step({name: p.copy() for name, p in params.items()})


def test_compiled_code_is_given_no_address_of_what_it_may_not_write():
    opt = optimizer("tree", "numba")
    opt.accumulate(gradients(opt, 0))
    opt._totals.arrays[0].flags.writeable = False
    with pytest.raises(ValueError, match="what was accumulated is read-only"):
        opt.accumulate(gradients(opt, 0))
    assert opt._totals.batches == 1
