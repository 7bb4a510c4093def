"""Programs: a rule's coefficients as operations that native code does, traced from the rule's own text.

A compiled training step has no Python in it, and t, lr and what inject_hyperparams injects are known only when it runs.
So the rule is called once on numbers that write down what is done to them, once for every way that it may branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from fastadam.kernels.cpu.program import NAMES
from fastadam.rule import Rule


class Program:
    """Collects the operations that work out some numbers from others.

    A register is named by ("given", k), ("constant", k) or ("result", k), until all of them are counted.
    """

    def __init__(self) -> None:
        self.given = ["t"]  # the count comes first
        self.constants: list[float] = []
        self.operations: list[tuple[Any, ...]] = []
        self._decisions: list[bool] = []  # of this run
        self._asked: list[Value] = []  # what they were about

    def input(self, name: str) -> Value:
        """Return a number that the program is given, by its name."""
        if name not in self.given:
            self.given.append(name)
        return Value(self, ("given", self.given.index(name)))

    def value(self, x: Any) -> Value:
        """Return x, or a constant of its value."""
        if isinstance(x, Value):
            return x
        number = float(x)
        same = [
            k for k, c in enumerate(self.constants) if c == number and math.copysign(1, c) == math.copysign(1, number)
        ]
        if not same:
            self.constants.append(number)
        return Value(self, ("constant", same[0] if same else len(self.constants) - 1))

    def do(self, name: str, *operands: Any) -> Value:
        """Return what an operation gives; the same of the same operands."""
        registers = [self.value(x).register for x in operands]
        operation = (NAMES.index(name), *registers, *[registers[0]] * (3 - len(registers)))
        if operation not in self.operations:
            self.operations.append(operation)
        return Value(self, ("result", self.operations.index(operation)))

    def decide(self, truth: Value, negated: bool) -> bool:
        """Return which way a run goes that depends on a number: the way that is asked for, else the first of both."""
        k = len(self._asked)
        self._asked.append(truth)
        if k == len(self._decisions):
            self._decisions.append(True)
        return self._decisions[k] is not negated

    def every(self, function: Callable[[], Sequence[Any]]) -> list[Value]:
        """Return the numbers that a function gives, selected by what decides about its way there."""
        return self._from([], function)

    def _from(self, decisions: list[bool], function: Callable[[], Sequence[Any]]) -> list[Value]:
        self._decisions, self._asked = list(decisions), []
        numbers = [self.value(x) for x in function()]
        asked = self._asked
        for k in reversed(range(len(decisions), len(asked))):
            others = self._from([*decisions, *[True] * (k - len(decisions)), False], function)
            numbers = [
                x if x.register == y.register else self.do("select", x, y, asked[k])
                for x, y in zip(numbers, others, strict=True)
            ]
        return numbers

    def register(self, x: Any) -> int:
        """Return the index of a number's register, once all are known."""
        kind, k = self.value(x).register
        before = {"given": 0, "constant": len(self.given), "result": len(self.given) + len(self.constants)}
        return before[kind] + k  # type: ignore[no-any-return]

    def words(self) -> list[int]:
        """Return the operations as native code takes them."""
        return [
            word
            for kind, *registers in self.operations
            for word in (kind, *(self.register(Value(self, register)) for register in registers))
        ]


class Value:
    """Is a number known when the program runs: what is done to it is written down."""

    def __init__(self, program: Program, register: tuple[str, int]) -> None:
        self.program, self.register = program, register

    def _do(self, name: str, *operands: Any) -> Value:
        return self.program.do(name, *operands)

    def __add__(self, other: Any) -> Value:
        return self._do("add", self, other)

    def __radd__(self, other: Any) -> Value:
        return self._do("add", other, self)

    def __sub__(self, other: Any) -> Value:
        return self._do("sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._do("sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return self._do("mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self._do("mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self._do("div", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._do("div", other, self)

    def __pow__(self, other: Any) -> Value:
        return self._do("pow", self, other)

    def __rpow__(self, other: Any) -> Value:
        return self._do("pow", other, self)

    def __neg__(self) -> Value:
        return self._do("mul", -1.0, self)

    def __lt__(self, other: Any) -> Truth:
        return Truth(self._do("less", self, other))

    def __gt__(self, other: Any) -> Truth:
        return Truth(self._do("less", other, self))

    def __le__(self, other: Any) -> Truth:
        return Truth(self._do("less", other, self), negated=True)

    def __ge__(self, other: Any) -> Truth:
        return Truth(self._do("less", self, other), negated=True)

    def __eq__(self, other: object) -> Any:
        return Truth(self._do("equal", self, other))

    def __ne__(self, other: object) -> Any:
        return Truth(self._do("equal", self, other), negated=True)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self != 0.0)


class Truth:
    """Is a comparison of numbers; as a condition, it makes the program go both ways."""

    def __init__(self, value: Value, negated: bool = False) -> None:
        self._value, self._negated = value, negated

    def __bool__(self) -> bool:
        return self._value.program.decide(self._value, self._negated)


class Functions:
    """Stands for the module math where a rule is traced."""

    def __getattr__(self, name: str) -> Any:
        plain = getattr(math, name)

        def function(x: Any, *rest: Any) -> Any:
            return x.program.do(name, x) if isinstance(x, Value) else plain(x, *rest)

        return function if callable(plain) else plain


def traceable(rule: Rule, changed: dict[str, Any]) -> Any:
    """Return a rule whose functions take numbers of programs, with some hyperparameters replaced by such."""
    functions: dict[str, Any] = {}
    for kind in reversed(type(rule).__mro__[:-1]):
        for name, x in vars(kind).items():
            if isinstance(x, FunctionType) and not name.startswith("__"):
                space = {**x.__globals__, "math": Functions()}
                functions[name] = FunctionType(x.__code__, space, name, x.__defaults__, x.__closure__)
                functions[name].__kwdefaults__ = x.__kwdefaults__
    traced: Any = object.__new__(type(type(rule).__name__, (type(rule),), functions))
    vars(traced).update(vars(rule))
    vars(traced).update(changed)
    if "betas" in changed:
        vars(traced)["logs"] = tuple(map(Functions().log, changed["betas"]))
    return traced


def least(dtypes: Sequence[Any]) -> float:
    """Return the largest number that all of these dtypes hold."""
    return min(float(np.finfo(dtype).max) for dtype in dtypes)
