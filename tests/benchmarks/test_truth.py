"""Promise 2: every method on every backend stays within a derived bound of its paper, at values that bite."""

import numpy as np
import pytest
from cases import LATE, defaults, label, variants

from fastadam.tools.verify import SLACK, worst_error

N = 3000
BACKENDS = "numpy", "numba"


CASES = [
    *(pytest.param(case, backend, 0, id=f"{label(case)}-{backend}") for case in variants() for backend in BACKENDS),
    *(
        pytest.param(case, backend, 0, id=f"{label(case)}-{backend}, defaults")
        for case in defaults()
        for backend in BACKENDS
    ),
    *(pytest.param(case, "numpy", LATE, id=f"{label(case)}, late") for case in [*variants(), *defaults()]),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize(("case", "backend", "taken_before"), CASES)
def test_one_step_is_within_its_roundings_of_the_paper(case, dtype, backend, taken_before):
    if dtype == np.float64 and np.finfo(np.longdouble).eps >= np.finfo(dtype).eps:
        pytest.skip("longdouble is no wider than float64 here: there is nothing to hold float64 against")
    units, ulps = worst_error(*case, dtype, backend, N, taken_before)
    assert 0 < units <= SLACK
    assert ulps > 0
