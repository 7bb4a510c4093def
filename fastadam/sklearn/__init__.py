"""scikit-learn's estimators whose solver="adam" is stepped by a Stepper; README.md shows their use.

May import everything up to Stepper, and scikit-learn, to whom all but Adam's step belongs: arguments, attributes,
errors, the other solvers. The step whose place is taken is private to scikit-learn, so that happens in the versions
that were tested; another version runs its own, with a warning.
"""

import warnings
from collections.abc import Callable
from typing import Any

import sklearn
from sklearn import neural_network

__all__ = ["MLPClassifier", "MLPRegressor"]

TESTED = "1.7", "1.8", "1.9"  # as pyproject.toml's extra says; a test compares

_replaced: Callable[[Any], Any]
if ".".join(sklearn.__version__.split(".")[:2]) in TESTED:
    from fastadam.sklearn.stepped import replaced as _replaced
else:
    warnings.warn(
        f"scikit-learn is {sklearn.__version__}, tested were {', '.join(TESTED)}: its own optimizer runs, not fastadam",
        stacklevel=2,
    )

    def _replaced(optimizer: Any) -> Any:
        return optimizer


class _Taken:
    """Lets an estimator's optimizer be another as soon as scikit-learn has made it."""

    @property
    def _optimizer(self) -> Any:
        try:
            return vars(self)["_optimizer"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no _optimizer before it is fitted") from None

    @_optimizer.setter
    def _optimizer(self, optimizer: Any) -> None:
        vars(self)["_optimizer"] = _replaced(optimizer)


class MLPClassifier(_Taken, neural_network.MLPClassifier):
    """Is scikit-learn's multi-layer perceptron that classifies, with fastadam's step under solver="adam".

    >>> from fastadam.sklearn import MLPClassifier
    >>> x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]] * 8)
    >>> model = MLPClassifier((16,), learning_rate_init=0.05, max_iter=300, random_state=0)
    >>> model.fit(x, x[:, 0] != x[:, 1]).predict([[0.0, 1.0], [1.0, 1.0]]).tolist()
    [True, False]
    """


class MLPRegressor(_Taken, neural_network.MLPRegressor):
    """Is scikit-learn's multi-layer perceptron that predicts numbers, with fastadam's step under solver="adam".

    >>> from fastadam.sklearn import MLPRegressor
    >>> x = np.linspace(-1, 1, 64)[:, None]
    >>> model = MLPRegressor(hidden_layer_sizes=(16,), learning_rate_init=0.02, max_iter=500, random_state=0)
    >>> bool(model.fit(x, 2 * x[:, 0]).score(x, 2 * x[:, 0]) > 0.9)
    True
    """
