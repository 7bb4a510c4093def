"""Makes param groups: hyperparameters that can be read and set between steps, and the trees they belong to."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from fastadam import kernels
from fastadam.arrays.host import Array
from fastadam.arrays.tree import Structure, Tree
from fastadam.checks import at_count, positive
from fastadam.kernels.contract import Slot
from fastadam.kernels.formats import compute
from fastadam.rule import Rule, hyperfields

OF_OPTIMIZERS = {
    "backend", "moments", "master", "seed", "index_offset", "max_value", "ema_decay", "copy_to", "zero_grads",
    "skip_nonfinite", "stats", "capturable",
}  # fmt: skip  # what groups cannot have of their own


def check_representable(rule: Rule, dtype: Any) -> None:
    """Refuse what the compute type rounds to something else altogether.

    An eps that becomes 0, a division by zero nobody asked for, or infinity; a decay rate that becomes 1: nothing that
    was averaged would ever decay.
    """
    eps, info = getattr(rule, "eps", 0.0), np.finfo(dtype)
    if eps > float(info.max):
        raise ValueError(f"eps is {eps!r}, which overflows {info.dtype}; expected at most {info.max}")
    if eps > 0 and np.dtype(dtype).type(eps) == 0:
        raise ValueError(f"eps is {eps!r}, which is 0 in {info.dtype}; expected 0 or a larger number")
    rates = {f"betas[{k}]": beta for k, beta in enumerate(getattr(rule, "betas", ()))}
    rates |= {name: getattr(rule, name) for name in rule.shares if hasattr(rule, name)}
    for name, rate in rates.items():
        if rate < 1 and np.dtype(dtype).type(rate) == 1:
            raise ValueError(
                f"{name} is {rate!r}, which is 1 in {info.dtype}; expected at most {float(1 - info.epsneg)!r}"
            )


class Group:
    """Holds the hyperparameters of some leaves, and what their owner calls them, to be read, and set between steps.

    Values of hyperparameters are checked; what else a group was given is kept and shown, and means nothing here.
    """

    rule: Rule
    where: str  # what errors begin with
    leaves: range
    dtypes: set[Any]  # those of the arithmetic
    lacking: frozenset[str]  # the slots that its leaves do without: those that construction found idle
    free: dict[str, Any]  # the user's own keys, kept and shown, of no meaning here
    max_norm: float | None
    _largest: float

    def __init__(
        self, rule: Rule, where: str, leaves: range, dtypes: set[Any], max_norm: float | None = None,
        free: dict[str, Any] | None = None, lacking: frozenset[str] | None = None,
    ) -> None:  # fmt: skip
        self.__dict__.update(rule=rule, where=where, leaves=leaves, dtypes=dtypes, max_norm=max_norm)
        self.__dict__["lacking"] = rule.idle if lacking is None else lacking
        self.__dict__["free"] = dict(free or {})
        largest = min((float(np.finfo(dtype).max) for dtype in dtypes), default=np.inf)
        self.__dict__.update(_largest=largest)
        self.with_rule(where)

    def _changed(self) -> None:
        """Do nothing: `watch` puts another function in this place."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Call a function each time a hyperparameter was set: of whoever works with these numbers ahead of time."""
        self.__dict__["_changed"] = changed

    def adopt(self, rule: Rule) -> None:
        """Take a rule over as it is, which was checked already, and tell nobody."""
        self.__dict__["rule"] = rule

    def check(self, rule: Rule) -> None:
        """Refuse a rule whose numbers these leaves' arithmetic rounds to something else altogether."""
        for dtype in self.dtypes:
            check_representable(rule, dtype)

    def __getattr__(self, name: str) -> Any:
        rule = self.__dict__.get("rule")  # not there yet while a copy is made
        if name in self.__dict__.get("free", ()):
            return self.free[name]
        if rule is None or name not in hyperfields(type(rule)):
            raise AttributeError(f"{type(rule).__name__} has no hyperparameter {name!r}")
        return getattr(rule, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_norm":
            limit = positive(f"{self.where}max_norm", value)
            if (limit is None) != (self.max_norm is None):
                raise ValueError(
                    f"{self.where}max_norm is {self.max_norm!r}, and {value!r} would change what is walked"
                )
            before, self.__dict__["max_norm"] = self.max_norm, limit
            try:
                self._changed()
            except BaseException:
                self.__dict__["max_norm"] = before
                raise
            return
        if name in self.free:
            self.free[name] = value
            return
        getattr(self, name)
        if name not in hyperparameters(self.rule):
            fixed = getattr(self, name)
            raise ValueError(f"{self.where}{name} of {type(self.rule).__name__} is always {fixed!r}, not {value!r}")
        rule_before, self.__dict__["rule"] = self.rule, self.with_rule(self.where, **{name: value})
        try:
            self._changed()
        except BaseException:
            self.__dict__["rule"] = rule_before
            raise

    def with_rule(self, where: str, **changed: Any) -> Rule:
        """Return the group's rule with other hyperparameters, checked; `where` begins the error."""
        try:
            rule = replace(self.rule, **changed)
            if (rule.options, rule.initial()) != (self.rule.options, self.rule.initial()):
                names = [name for name in changed if getattr(rule, name) != getattr(self.rule, name)]
                what = f"{', '.join(names)} would change the state's layout, which construction decides"
                raise ValueError(f"{what}: make another optimizer with it")
            if needed := self.lacking - rule.idle:
                raise ValueError(
                    f"{', '.join(changed)} would need {min(needed)}, which is not kept because its decay rate was 0 at "
                    "construction: expected 0, or another optimizer, made with a rate above 0, which takes this one's "
                    "state_dict before it is set"
                )
            self.check(rule)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}{error}") from None
        return rule

    def __dir__(self) -> list[str]:
        return [*hyperfields(type(self.rule)), *self.free]

    def __repr__(self) -> str:
        free = "".join(f", {key}={value!r}" for key, value in self.free.items())
        return f"Group({self.rule}, {len(self.leaves)} leaves{free})"

    def has(self, slot: Slot) -> bool:
        """Return whether the leaves of this group have a slot."""
        return slot.name not in self.lacking and self.rule.uses(slot)

    def lr_at(self, t: int) -> float:
        """Return this step's learning rate at the optimizer's count t."""
        lr = self.rule.lr  # type: ignore[attr-defined]
        return at_count(f"{self.where}lr", lr, t, low=0) if callable(lr) else lr

    def coefficients_at(self, count: int, lr: float, scale: float, *carried: float) -> tuple[float, ...]:
        """Return one row for the kernel, the gradient's scale multiplied in; only numbers that stay finite may reach
        it."""
        numbers = self.rule.coefficients(count, lr, *carried)
        if scale != 1.0:
            numbers = (numbers[0] * scale, *numbers[1:])
        if not math.hypot(*numbers) <= self._largest and not self._fit(numbers):  # false for NaN too
            names = (*kernels.ALL[self.rule.kernel].Coefficients._fields, *self.rule.carried)  # type: ignore[attr-defined]
            name, value = max(zip(names, numbers, strict=True), key=lambda pair: abs(pair[1]))
            raise ValueError(
                f"{self.where}lr is {lr!r} and grad_scale is {scale!r}, expected values that keep {name} within "
                f"{self._largest:.2g}: at count {count} it is {value!r}"
            )
        return numbers

    def _fit(self, numbers: tuple[float, ...]) -> bool:
        """Return whether the kernel's numbers fit into its type, and those carried, which rest in float64, there."""
        width = len(kernels.ALL[self.rule.kernel].Coefficients._fields)  # type: ignore[attr-defined]
        return math.hypot(*numbers[:width]) <= self._largest and all(map(math.isfinite, numbers[width:]))


def sums_first(group: Group) -> bool:
    """Return whether steps of a group need sums over whole leaves first."""
    return kernels.ALL[group.rule.kernel].summed(group.rule.options)


def is_grouped(params: Tree) -> bool:
    """Return whether params is a list of param groups: every item a dict with the key "params"."""
    return isinstance(params, list) and params != [] and all(isinstance(x, dict) and "params" in x for x in params)


def hyperparameters(rule: Rule | type[Rule]) -> list[str]:
    """Return the names that a method takes."""
    kind = rule if isinstance(rule, type) else type(rule)
    return [name for name, each in hyperfields(kind).items() if each.init]


def make_groups(
    params: Tree, default: Rule, arrays: list[Array], lacking: Sequence[frozenset[str]] | None = None
) -> Iterator[Group]:  # fmt: skip
    """Yield the groups of params, which share what they do not set with `default`; one group where params is a plain
    tree.

    lacking: the slots that the leaves of each group do without, where that was decided already.
    """
    if not is_grouped(params):
        dtypes = {compute(a.dtype) for a in arrays}
        yield Group(default, "groups[0].", range(len(arrays)), dtypes, lacking=lacking[0] if lacking else None)
        return
    first, names = 0, hyperparameters(default)
    for k, item in enumerate(params):
        free = {key: value for key, value in item.items() if key not in ("params", "max_norm", *names)}
        for key in free:
            _check_free(f"params[{k}]", key, default)
        try:
            rule = replace(default, **{name: item[name] for name in names if name in item})
        except (TypeError, ValueError) as error:
            raise type(error)(f"params[{k}]: {error}") from None
        leaves = range(first, first + len(Structure(item["params"]).leaves))
        first = leaves.stop
        limit = positive(f"params[{k}]: max_norm", item.get("max_norm"))
        dtypes = {compute(arrays[leaf].dtype) for leaf in leaves}
        yield Group(rule, f"groups[{k}].", leaves, dtypes, limit, free, lacking[k] if lacking else None)


def _check_free(where: str, key: Any, rule: Rule) -> None:
    """Refuse a key of a group that is no name, or looks as if something were meant that a group cannot say."""
    names, decided = hyperparameters(rule), hyperfields(type(rule)).keys() | OF_OPTIMIZERS
    meant = [*names, "max_norm", "params", "learning_rate"]  # Keras's lr, which would be ignored without a word
    names_of_groups = {*dir(Group), *Group.__annotations__}  # what a group shows in their place
    if isinstance(key, str) and (key.startswith("_") or key in names_of_groups):
        reason = "begins with _" if key.startswith("_") else "is a name that groups have themselves"
        raise TypeError(f"{where} has {key!r}, which {reason}: expected another name of your own")
    if not isinstance(key, str) or key in decided or get_close_matches(key, meant, 1, 0.8):
        raise TypeError(
            f"{where} has {key!r}, expected 'params', 'max_norm', any of {', '.join(names)}, or a name of your own "
            "that is like none of them"
        )
