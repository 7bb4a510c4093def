"""Is the truth of a method that steps whole matrices: its paper's, and how far roundings may move what that gives."""

import numpy as np

from fastadam.kernels.formats import compute
from fastadam.tools import papers
from fastadam.tools.bounds import WIDER, Running
from fastadam.tools.composed import limits


class Matrices:
    """Is what a setting's paper computes of leaves of two and more dimensions.

    rest: the truth of all other leaves. shape: of the leaf whose steps are asked for.
    """

    shape = ()

    def __init__(self, setting, rest):
        self._setting, self._rest = setting, rest

    @np.errstate(all="ignore")
    def steps(self, p, grads, groups, factors):
        """Yield (p, bound) after each step, of one leaf; see truth.Papers."""
        if len(self.shape) < 2:
            yield from self._rest.steps(p, grads, groups, factors)
            return
        dtype, rule = compute(p.dtype), self._setting.rule
        unit, paper = Running.arithmetic(dtype), getattr(papers, self._setting.method.__name__.lower())
        exact = p.reshape(self.shape[0], -1).astype(WIDER[dtype])
        m, error, error_of_m = np.zeros_like(exact), 0.0, 0.0
        for t, (g, (multiplier, off)) in enumerate(zip(grads, factors, strict=True), start=1):
            g = g.reshape(exact.shape).astype(exact.dtype) * multiplier
            given = Running(exact, error, unit), Running(g, np.abs(g) * off, unit), Running(m, error_of_m, unit)
            error, error_of_m = limits(*given, rule, dtype)
            exact, state = paper(t, exact, g, {"m": m}, **self._setting.hyperparameters)
            m = state["m"]
            yield exact.reshape(-1), error.reshape(-1)
