"""scikit-learn's AdamOptimizer with one walk over memory in place of its step."""

from typing import Any

import numpy as np
from sklearn.neural_network import _stochastic_optimizers

from fastadam import rules
from fastadam.arrays.host import Array
from fastadam.stepper import Stepper


class SteppedAdam(_stochastic_optimizers.AdamOptimizer):
    """Is scikit-learn's AdamOptimizer, its attributes included, whose ms and vs are stepped where they lie."""

    _stepper: Stepper | None = None
    _planned: Any = None  # the hyperparameters that the stepper has

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        """Update params in place. params, grads: the coefficients, then the intercepts of all layers."""
        hyperparameters = self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon
        if self._stepper is None or self._planned != hyperparameters:
            lr, *betas, eps = hyperparameters
            self._stepper = Stepper(rules.Adam(lr=lr, betas=(betas[0], betas[1]), eps=eps, eps_hat=True), like=params)
            self._planned = hyperparameters
        for moments in (self.ms, self.vs):
            for k, (p, x) in enumerate(zip(params, moments, strict=True)):
                if x.strides != p.strides:  # someone has set coefficients that lie otherwise
                    moments[k] = np.empty_like(p)
                    moments[k][...] = x
        self._stepper(params, grads, slots={"m": self.ms, "v": self.vs}, t=self.t + 1)
        self.t += 1
        root = np.sqrt(1 - self.beta_2**self.t)
        self.learning_rate = self.learning_rate_init * root / (1 - self.beta_1**self.t)  # for whoever reads it

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_stepper", "_planned")}


def replaced(optimizer: Any) -> Any:
    """Return an optimizer of scikit-learn's that steps here, where it is an AdamOptimizer; else the one given."""
    if type(optimizer) is _stochastic_optimizers.AdamOptimizer:
        optimizer.__class__ = SteppedAdam
    return optimizer
