"""The stand-in for CuPy whose kernels are PTX."""

import sys

import pytest
from cuda_host import fake_cupy


@pytest.fixture
def device(ptx, monkeypatch):
    """The stand-in for CuPy, whose kernels are PTX."""
    module = fake_cupy.module(ptx)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module
