"""Param groups: hyperparameters that can be read and set between steps, and the trees they belong to."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np

from fastadam.arrays import Array
from fastadam.rules import Rule, number
from fastadam.tree import Structure, Tree


def check_representable(rule: Rule, dtype: Any) -> None:
    """Refuse an eps that the compute type rounds to 0: a division by zero nobody asked for."""
    eps = getattr(rule, "eps", 0.0)
    if eps > 0 and np.dtype(dtype).type(eps) == 0:
        raise ValueError(f"eps is {eps!r}, which is 0 in {np.dtype(dtype)}; expected 0 or a larger number")


class Group:
    """The hyperparameters of some leaves. Each can be read, and set between steps, by its name; values are checked."""

    _rule: Rule
    _where: str
    _leaves: range
    _dtypes: set[Any]
    _largest: float

    def __init__(self, rule: Rule, where: str, leaves: range, dtypes: set[Any]) -> None:
        self.__dict__.update(_rule=rule, _where=where, _leaves=leaves, _dtypes=dtypes)
        largest = min((float(np.finfo(dtype).max) for dtype in dtypes), default=np.inf)
        self.__dict__.update(_largest=largest)
        self.with_rule(where)

    def _check(self, rule: Rule) -> None:
        for dtype in self._dtypes:
            check_representable(rule, dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in {each.name for each in fields(self._rule)}:
            raise AttributeError(f"{type(self._rule).__name__} has no hyperparameter {name!r}")
        return getattr(self._rule, name)

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(self, name)
        self.__dict__["_rule"] = self.with_rule(self._where, **{name: value})

    def with_rule(self, where: str, **changed: Any) -> Rule:
        """The group's rule with other hyperparameters, checked; `where` begins the error."""
        try:
            rule = replace(self._rule, **changed)
            if (rule.options, rule.initial()) != (self._rule.options, self._rule.initial()):
                raise ValueError(
                    f"{', '.join(changed)} would change the layout of the state, which is set at construction"
                )
            self._check(rule)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}{error}") from None
        return rule

    def __repr__(self) -> str:
        return f"Group({self._rule}, {len(self._leaves)} leaves)"

    def lr_at(self, t: int) -> float:
        """This step's learning rate at the optimizer's count t."""
        lr = self._rule.lr  # type: ignore[attr-defined]
        return number(f"{self._where}lr({t})", lr(t), low=0) if callable(lr) else lr

    def coefficients_at(self, count: int, lr: float, scale: float, *carried: float) -> tuple[float, ...]:
        """One row for the kernel, the gradient's scale multiplied in; only numbers that stay finite may reach it."""
        numbers = self._rule.coefficients(count, lr, *carried)
        if scale != 1.0:
            numbers = (numbers[0] * scale, *numbers[1:])
        if not sum(map(abs, numbers)) <= self._largest:  # false for NaN too
            raise ValueError(
                f"{self._where}lr is {lr!r} and grad_scale {scale!r} at count {count}: "
                f"a coefficient overflows {self._largest:.2g}: {tuple(numbers)}"
            )
        return numbers


def is_grouped(params: Tree) -> bool:
    """Whether params is a list of param groups: every item a dict with the key "params"."""
    return isinstance(params, list) and params != [] and all(isinstance(x, dict) and "params" in x for x in params)


def hyperparameters(rule: Rule | type[Rule]) -> list[str]:
    """The names that a method takes."""
    return [each.name for each in fields(rule) if each.init]


def make_groups(params: Tree, default: Rule, arrays: list[Array]) -> Iterator[Group]:
    """The groups of params, which share what they do not set with `default`; one group where params is a plain tree."""
    if not is_grouped(params):
        yield Group(default, "", range(len(arrays)), {a.dtype for a in arrays})
        return
    first, known = 0, hyperparameters(default)
    for k, item in enumerate(params):
        own = {name: value for name, value in item.items() if name != "params"}
        if unknown := set(own) - set(known):
            raise TypeError(f"params[{k}] has {min(unknown)!r}, expected 'params' and any of {', '.join(known)}")
        try:
            rule = replace(default, **own)
        except (TypeError, ValueError) as error:
            raise type(error)(f"params[{k}]: {error}") from None
        leaves = range(first, first + len(Structure(item["params"]).leaves))
        first = leaves.stop
        yield Group(rule, f"groups[{k}].", leaves, {arrays[leaf].dtype for leaf in leaves})
