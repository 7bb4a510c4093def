"""Promise 2: every method on every backend stays within a derived bound of its paper, at values that bite."""

from itertools import product

import numpy as np
import pytest
from cases import LATE, defaults, label, variants

from fastadam.tools.verify import SLACK, worst_error

N = 3000
BACKENDS = "numpy", "numba"


DTYPES = np.float32, np.float64


def halved(cases, backends, taken_before=0, more=""):
    """Every case with every backend and dtype; by default half of them.

    Of two backends every pair of the three is in some; of one, each case has one dtype.
    """
    for k, case in enumerate(cases):
        for (b, backend), (d, dtype) in product(enumerate(backends), enumerate(DTYPES)):
            name = f"{label(case)}-{backend}{more}-{dtype.__name__}"
            marks = pytest.mark.whole if (k + b + d) % 2 else ()
            yield pytest.param(case, backend, taken_before, dtype, id=name, marks=marks)


CASES = [
    *halved(variants(), BACKENDS),
    *halved(defaults(), BACKENDS, more=", defaults"),
    *halved([*variants(), *defaults()], ["numpy"], LATE, ", late"),
]


@pytest.mark.parametrize(("case", "backend", "taken_before", "dtype"), CASES)
def test_one_step_is_within_its_roundings_of_the_paper(case, backend, taken_before, dtype):
    if dtype == np.float64 and np.finfo(np.longdouble).eps >= np.finfo(dtype).eps:
        pytest.skip("longdouble is no wider than float64 here: there is nothing to hold float64 against")
    units, ulps = worst_error(*case, dtype, backend, N, taken_before)
    assert 0 < units <= SLACK
    assert ulps > 0
