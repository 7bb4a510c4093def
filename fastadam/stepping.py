"""Is what the functions of one step have in common: they check everything, step once, and show a method's arguments."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from fastadam import kernels
from fastadam.arrays.host import Array
from fastadam.backend import choose
from fastadam.kernels.formats import compute
from fastadam.rule import Rule
from fastadam.stepper import Stepper

Function = TypeVar("Function", bound=Callable[..., Any])


def step_once(
    rule: Rule, p: Array, g: Array, slots: dict[str, Array | None],
    t: int, grad_scale: float, backend: str, **carried: Any,
) -> None:  # fmt: skip
    """Check everything, then step once, by a Stepper of this one call."""
    home = choose(backend, [p]).home
    wide = compute(home.owned("p", p).dtype)
    used = [slot.name for slot in kernels.ALL[rule.kernel].slots if rule.uses(slot) and slots[slot.name] is not None]
    dtypes = {name: home.owned(name, slots[name]).dtype for name in used}
    moments = {name: dtype.name for name, dtype in dtypes.items() if compute(dtype) is wide}
    stepper = Stepper(rule, p, backend=backend, moments=moments)
    stepper(p, g, slots=slots, t=t, grad_scale=grad_scale, **carried)


def hyperparameters_of(rule: type[Rule], *decided: str) -> Callable[[Function], Function]:
    """Let help() show the method's hyperparameters, but for those that an argument of the function decides."""

    def shown(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        taken = [p for p in inspect.signature(rule).parameters.values() if p.name not in decided]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p for p in parameters if p.kind is not p.VAR_KEYWORD] + [p.replace(kind=p.KEYWORD_ONLY) for p in taken],
            return_annotation=inspect.signature(function).return_annotation,
        )
        return function

    return shown


def refuse_decided(hyperparameters: dict[str, Any], **by: str) -> None:
    """Refuse an option that an argument of the function decides already."""
    for name, argument in by.items():
        if name in hyperparameters:
            raise TypeError(f"{name} is {hyperparameters[name]!r}, but here {argument} decides it")
