"""Processes hold the bits of one: over MPI as mpi4py's and mpich's wheels bring it, and over gloo."""

import json
import re

import pytest

from fastadam.benchmarks import alpha_beta, files, ranks
from ranks.jobs import HERE, gloo, mpi

PROGRAM = HERE / "program.py"


def differing(file, size):
    results = json.loads(file.read_text())
    assert results["size"] == size
    return [k for k, (ours, one) in enumerate(results["results"]) if ours != one]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_mpi(size, tmp_path):
    status, output = mpi(size, PROGRAM, "mpi", tmp_path / "results")
    assert status == 0, output
    assert differing(tmp_path / "results", size) == []


@pytest.mark.parametrize("size", [2, 3])
def test_gloo(size, tmp_path):
    statuses, outputs = gloo(size, PROGRAM, "gloo", tmp_path / "results")
    assert statuses == [0] * size, "\n".join(outputs)
    assert differing(tmp_path / "results", size) == []


def test_one_flipped_bit_differs(tmp_path):
    """Rank 1's second gradient has one bit turned: every case but the one that skips that step must show it."""
    status, output = mpi(2, PROGRAM, "mpi", tmp_path / "results", FLIP=1)
    assert status == 0, output
    assert differing(tmp_path / "results", 2) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["mpi", "gloo"])
def test_what_an_optimizer_sends_meets_no_other_message(kind):
    """Of another optimizer whose hooks come in another order, of the program, or of what was begun and dropped."""
    if kind == "mpi":
        status, output = mpi(2, HERE / "apart.py", kind, timeout=60)
    else:
        statuses, outputs = gloo(2, HERE / "apart.py", kind, timeout=60)
        status, output = max(map(abs, statuses)), "".join(outputs)
    assert (status, sorted(output.split("\n"))) == (0, ["", "rank 0: apart", "rank 1: apart"])


VERSIONS = """
import numpy as np, fastadam as fa
from mpi4py import MPI
fa.distributed.sharded.VERSION = f"0.{MPI.COMM_WORLD.rank // 2}"
try:
    fa.distributed.Sharded(fa.AdamW, np.ones(5), MPI.COMM_WORLD)
except ValueError as error:
    print(error, flush=True)
"""


def test_ranks_with_another_version_are_named(tmp_path):
    (tmp_path / "versions.py").write_text(VERSIONS)
    status, output = mpi(3, tmp_path / "versions.py")
    said = "ranks 0, 1 have fastadam '0.0'; rank 2 has fastadam '0.1': expected the same on all ranks"
    assert (status, output) == (0, 3 * f"{said}\n")


def test_the_guide_runs_on_three_ranks(tmp_path):
    text = (HERE.parents[1] / "fastadam" / "distributed" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "guide.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)))
    status, output = mpi(3, tmp_path / "guide.py", cwd=tmp_path)
    assert (status, output) == (0, "")


def test_the_demo_has_the_same_bits():
    status, output = mpi(3, "-m", "fastadam", "demo", "--distributed")
    assert status == 0, output
    assert "3 ranks      accuracy 9" in output
    assert output.rstrip().endswith("the same bits")


def test_the_model_in_the_readme_is_the_scripts():
    """A model, and labelled as one; and by hand: 1 B float32 on 8 nodes move 7/8·8 GB in 280 ms and 2·3 messages."""
    text = (HERE.parents[1] / "fastadam" / "distributed" / "README.md").read_text()
    assert alpha_beta.written(text) == text
    assert "**A model, not a measurement**" in text
    _, best, bucketed, step, whole, *_ = next(alpha_beta.rows(1e9, alpha_beta.FORMATS["float32"], 300e9))
    assert best == pytest.approx(0.28 + 6 * 5e-6)
    assert bucketed == pytest.approx(0.28 + 2 * 62.5 * 7 * 5e-6)
    assert (step, whole) == pytest.approx((28 / 2400, 28 / 300))


def test_the_benchmark_runs(tmp_path, capsys):
    """Smallest sizes: every contestant that is installed has its rounds; no time is asserted."""
    assert ranks.main(["--sizes", "4096", "--rounds", "2", "--json", str(tmp_path / "r.json")]) == 0
    (seconds,) = files.read(tmp_path / "r.json", "ranks")["cases"].values()
    assert {ranks.SHARDED, ranks.OTHERS, ranks.FAST + ranks.WITH_NORM} <= seconds.keys()
    assert all(len(each) == 2 for each in seconds.values())
    assert "asked at most 0.85" in capsys.readouterr().out


def test_pytorchs_own_ways_take_our_optimizers():
    """DDP with ZeroRedundancyOptimizer, and FSDP2, as fastadam/torch's README has them, on two gloo processes."""
    statuses, outputs = gloo(2, HERE / "guide.py", HERE.parents[1] / "fastadam" / "torch" / "README.md")
    assert statuses == [0, 0], "\n".join(outputs)
    assert all("alike on 2" in output for output in outputs)


DYING = """
import os, signal, sys, numpy as np, torch.distributed as dist, fastadam as fa
dist.init_process_group("gloo")
rank = dist.get_rank()
opt = fa.distributed.Sharded(fa.AdamW, np.ones(5000, np.float32), dist.group.WORLD, timeout=20, backend="numpy")
opt.step(np.ones(5000, np.float32))
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    opt.step(np.ones(5000, np.float32))
except RuntimeError as error:
    print("raised:", str(error)[:200], flush=True)
    os._exit(3)
"""


def test_gloo_says_that_a_rank_has_died(tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    statuses, outputs = gloo(2, tmp_path / "dying.py")
    assert statuses == [3, -9], "\n".join(outputs)
    assert "raised:" in outputs[0]
