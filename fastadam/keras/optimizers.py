"""Keras's optimizers by name, each with fastadam's rule in the place of its arithmetic."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import keras

from fastadam import rules
from fastadam.keras.steps import KerasStep
from fastadam.rule import Rule

STEPPINGS = {
    "torch": ("on_torch", "OnTorch"),
    "jax": ("on_jax", "OnJax"),
    "tensorflow": ("on_tensorflow", "OnTensorFlow"),
}


def _stepping() -> Any:
    """Return the stepping of the backend that Keras runs on. Raises ImportError for one that has none."""
    backend = keras.config.backend()
    if backend not in STEPPINGS:
        raise ImportError(f"KERAS_BACKEND is {backend!r}, expected any of {', '.join(STEPPINGS)}")
    module, name = STEPPINGS[backend]
    return getattr(importlib.import_module(f"fastadam.keras.{module}"), name)()


class ByRule(keras.optimizers.Optimizer):
    """Lets Keras's optimizers step by a rule: all variables in one walk, where Keras asks for its update step.

    What stands before and after, from the loss scale to constraints, is Keras's own; so are state and files.
    """

    _slots: ClassVar[dict[str, str]]  # the attributes in which Keras has the kernel's slots
    _stepping: Any = None

    def _rule(self) -> Rule:
        """Return the rule that the hyperparameters, as they are now, make."""
        raise NotImplementedError

    def _carried(self) -> dict[str, Any]:
        """Return the numbers that the rule carries."""
        return {}

    def _by_rows(self) -> bool:
        """Return whether a step leaves alone whatever has 0 as its gradient."""
        return False

    def build(self, variables: Sequence[Any]) -> None:
        """Make the state, as Keras does, and what steps it."""
        super().build(variables)
        self._stepping = _stepping()

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        given = {self._get_variable_index(x): g for x, g in zip(trainable_variables, grads, strict=True)}
        stepped = [k for k, x in enumerate(self._trainable_variables) if not self._overwrite_variable_with_gradient(x)]
        slots = {slot: getattr(self, name, None) for slot, name in self._slots.items()}
        self._stepping(
            KerasStep(
                self._rule(),
                [self._trainable_variables[k] for k in stepped],
                [given.get(k) for k in stepped],
                {slot: [xs[k] for k in stepped] for slot, xs in slots.items() if xs},
                self.iterations + 1,
                learning_rate,
                self._carried(),
                self._by_rows(),
            )
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable, and what the optimizer keeps of it, by its gradient."""
        ByRule._backend_update_step(self, [gradient], [variable], learning_rate)


@dataclass(frozen=True)
class NAdam(rules.NAdam):
    """Is NAdam that is told the product of the momenta up to this step's, by which Keras has multiplied it already."""

    def _product(self, before: float, momentum: float) -> float:
        return before


MOMENTS = {"m": "_momentums", "v": "_velocities"}


@keras.saving.register_keras_serializable("fastadam")
class Adam(keras.optimizers.Adam, ByRule):
    """Is keras.optimizers.Adam: its arguments, defaults and state.

    >>> import keras, fastadam.keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=fastadam.keras.Adam(learning_rate=0.01), loss="mse")
    >>> history = model.fit(np.eye(2), np.ones((2, 1)), epochs=2, verbose=0)
    >>> history.history["loss"][1] < history.history["loss"][0]
    True
    """

    _slots: ClassVar[dict[str, str]] = {**MOMENTS, "vmax": "_velocity_hats"}
    update_step = ByRule.update_step

    def _rule(self) -> Rule:
        return rules.Adam(betas=(self.beta_1, self.beta_2), eps=self.epsilon, amsgrad=self.amsgrad, eps_hat=True)


@keras.saving.register_keras_serializable("fastadam")
class AdamW(keras.optimizers.AdamW, Adam):
    """Is keras.optimizers.AdamW: its arguments, defaults and state; Keras applies the decay, as to all its optimizers.

    >>> import fastadam.keras
    >>> fastadam.keras.AdamW(weight_decay=0.1).get_config()["weight_decay"]
    0.1
    """


@keras.saving.register_keras_serializable("fastadam")
class Nadam(keras.optimizers.Nadam, ByRule):
    """Is keras.optimizers.Nadam: its arguments, defaults and state; its momentum schedule is β1·(1 - ½·0.96^t).

    >>> import fastadam.keras
    >>> fastadam.keras.Nadam().get_config()["beta_1"]
    0.9
    """

    _slots: ClassVar[dict[str, str]] = MOMENTS
    update_step = ByRule.update_step

    def _rule(self) -> Rule:
        return NAdam(betas=(self.beta_1, self.beta_2), eps=self.epsilon, momentum_decay=1.0)

    def _carried(self) -> dict[str, Any]:
        return {"mu_product": self._u_product}


@keras.saving.register_keras_serializable("fastadam")
class Adamax(keras.optimizers.Adamax, ByRule):
    """Is keras.optimizers.Adamax: its arguments, defaults and state.

    >>> import fastadam.keras
    >>> fastadam.keras.Adamax().get_config()["beta_2"]
    0.999
    """

    _slots: ClassVar[dict[str, str]] = {"m": "_m", "u": "_u"}
    update_step = ByRule.update_step

    def _rule(self) -> Rule:
        return rules.Adamax(betas=(self.beta_1, self.beta_2), eps=self.epsilon, eps_hat=True)


@keras.saving.register_keras_serializable("fastadam")
class Lion(keras.optimizers.Lion, ByRule):
    """Is keras.optimizers.Lion: its arguments, defaults and state.

    >>> import fastadam.keras
    >>> fastadam.keras.Lion().get_config()["beta_2"]
    0.99
    """

    _slots: ClassVar[dict[str, str]] = {"m": "_momentums"}
    update_step = ByRule.update_step

    def _rule(self) -> Rule:
        return rules.Lion(betas=(self.beta_1, self.beta_2))


@keras.saving.register_keras_serializable("fastadam")
class SGD(keras.optimizers.SGD, ByRule):
    """Is keras.optimizers.SGD: its arguments, defaults and state, in which the momentum gathers lr·g.

    >>> import fastadam.keras
    >>> fastadam.keras.SGD(momentum=0.9).get_config()["nesterov"]
    False
    """

    _slots: ClassVar[dict[str, str]] = {"m": "momentums"}
    update_step = ByRule.update_step

    def _rule(self) -> Rule:
        if self.momentum == 0:  # in which Keras ignores nesterov
            return rules.SGD()
        return rules.SGD(momentum=self.momentum, nesterov=self.nesterov, lr_in_momentum=True)

    def _by_rows(self) -> bool:
        return bool(self.momentum == 0)


@keras.saving.register_keras_serializable("fastadam")
class RMSprop(keras.optimizers.RMSprop, ByRule):
    """Is keras.optimizers.RMSprop: its arguments, defaults and state.

    >>> import fastadam.keras
    >>> fastadam.keras.RMSprop().get_config()["rho"]
    0.9
    """

    _slots: ClassVar[dict[str, str]] = {"v": "_velocities", "mean": "_average_gradients", "m": "_momentums"}
    update_step = ByRule.update_step

    def _rule(self) -> Rule:
        return rules.RMSprop(
            alpha=self.rho, eps=self.epsilon, momentum=self.momentum, centered=self.centered, eps_hat=True
        )


@keras.saving.register_keras_serializable("fastadam")
class Adagrad(keras.optimizers.Adagrad, ByRule):
    """Is keras.optimizers.Adagrad: its arguments, defaults and state.

    >>> import fastadam.keras
    >>> fastadam.keras.Adagrad().get_config()["initial_accumulator_value"]
    0.1
    """

    _slots: ClassVar[dict[str, str]] = {"sum": "_accumulators"}
    update_step = ByRule.update_step

    def _rule(self) -> Rule:
        return rules.Adagrad(eps=self.epsilon, eps_hat=True)

    def _by_rows(self) -> bool:
        return True
