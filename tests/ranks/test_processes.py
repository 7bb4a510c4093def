"""Processes hold the bits of one: over MPI as mpi4py's and mpich's wheels bring it, and over gloo."""

import json

import pytest

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
