"""kernels/ knows nothing of fastadam/: a copy of it works under another name."""

import shutil
from pathlib import Path

from fastadam import kernels

# Kingma & Ba's first step from 0 with gradient 1: lr · 1 / (1 + eps), whatever the betas.
ALONE = """
import importlib, pkgutil, sys

sys.modules["fastadam"] = None  # importing it is an error from here on
sys.path.insert(0, sys.argv[1])
import arithmetic
import numpy as np

for module in pkgutil.walk_packages(arithmetic.__path__, "arithmetic."):
    importlib.import_module(module.name)
adam = arithmetic.ALL["adam"]
c = adam.Coefficients(1.0, 0.0, 0.9, 0.1, 0.99, 0.01, 0.5 / 0.1, 1 / 0.1, 1e-8, 1.0)
p, m, v, *_ = adam.element(np.zeros(3), np.ones(3), np.zeros(3), np.zeros(3), None, None, c)
assert np.allclose(p, -0.5 / (1 + 1e-8), rtol=4e-16, atol=0), p
import numba

adagrad = arithmetic.ALL["adagrad"]
c = adagrad.Coefficients(*[0.5] * len(adagrad.Coefficients._fields))
element = numba.njit(error_model="numpy")(adagrad.element)
assert element(0.0, 1.0, 0.0, c) == tuple(x[0] for x in adagrad.element(np.zeros(3), np.ones(3), np.zeros(3), c))
print(sorted(name for name in sys.modules if name.startswith("fastadam.")))
"""


def test_a_copy_under_another_name_steps_a_kernel(fresh, tmp_path):
    source = Path(kernels.__file__).parent
    shutil.copytree(source, tmp_path / "arithmetic", ignore=shutil.ignore_patterns("__pycache__"))
    assert fresh(ALONE, tmp_path, package=tmp_path / "nowhere") == "[]\n"
