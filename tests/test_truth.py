"""Promise 2: every method on every backend stays within a derived bound of its paper, at values that bite."""

import numpy as np
import pytest
from cases import label, variants

from fastadam.verify import SLACK, worst_error

N = 3000


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("case", variants(), ids=label)
def test_one_step_is_within_its_roundings_of_the_paper(case, dtype, backend):
    if dtype == np.float64 and np.finfo(np.longdouble).eps >= np.finfo(dtype).eps:
        pytest.skip("longdouble is no wider than float64 here: there is nothing to hold float64 against")
    units, ulps = worst_error(*case, dtype, backend, N)
    assert 0 < units <= SLACK
    assert ulps > 0
