"""Translates functions into code from their text, statement by statement: those whose values are whole numbers of 64
bits, float64, truths, or what intrinsics give and only intrinsics read.

A name has the type of what is first stored in it, and what a function calls is put in the call's place, so nothing is
inferred: that took Numba 2.5 s for what XLA calls, and three fifths of the time that a piece took. Texts mean what they
mean in Python, except that whole numbers wrap, `and` and `or` give truths, ranges go up, and functions of `math` are
the C library's. Of a choice by a bool that is known when the code is made, only one side is code. All else is refused.
"""

import ast
import builtins
import operator
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function

from .syntax import syntax_of
from .tracing import Boolean, Number, Unsigned, Whole
from .values import Opaque, Real, converted, typed, value_of

OPERATORS: dict[Any, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
    ast.LShift: operator.lshift, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


class Body:
    """Puts the statements of a function where a builder stands.

    constants: what parameters are when the code is made, by name; arguments: what the others are.
    result: what the function returns; None where that is nothing.
    """

    def __init__(
        self, context: Any, builder: Any, function: FunctionType, arguments: Sequence[Any], constants: dict[str, Any]
    ) -> None:
        self._context, self._builder, self._function, self._constants = context, builder, function, constants
        # By name, its value's address on the stack, of which LLVM makes a register, and its type.
        self._homes: dict[Any, Any] = {}
        self._loops: list[Any] = []  # around a statement: where `continue` goes
        self._end = builder.append_basic_block(function.__name__)
        definition = syntax_of(function)
        parameters = [each.arg for each in definition.args.args if each.arg not in constants]
        for name, x in zip(parameters, arguments, strict=True):
            self._put(name, x)
        self._statements(definition.body)
        self._go(self._end)
        builder.position_at_end(self._end)
        self.result = self._get("return") if "return" in self._homes else None

    def _put(self, name: Any, x: Any) -> None:
        if name in self._constants:
            raise self._refused(f"{name}, a constant, stored to")
        x = self._value_of(x)
        if name not in self._homes:
            with self._builder.goto_entry_block():
                self._homes[name] = self._builder.alloca(x.value.type), x.kind
        home, kind = self._homes[name]
        if x.kind != kind:
            what = ast.unparse(name) if isinstance(name, ast.AST) else name
            raise self._refused(f"{what} of type {kind}, then of {x.kind}")
        self._builder.store(x.value, home)

    def _get(self, name: Any) -> Any:
        home, kind = self._homes[name]
        return typed(self._builder, kind, self._builder.load(home))

    def _value_of(self, x: Any) -> Any:
        value = value_of(self._context, self._builder, x)
        if value is None:
            raise self._refused(f"{x!r} for a value")
        return value

    def _truth(self, x: Any) -> Any:
        """Return whether a number is not 0, as a value of LLVM's."""
        x = self._value_of(x)
        if not isinstance(x, Number):
            raise self._refused(f"a value of type {x.kind} for a truth")
        return x.value if x.kind == Boolean.kind else (x != 0).value

    def _done(self, node: Any, operation: Any, *operands: Any) -> Any:
        """Return what an operator gives of numbers."""
        if any(isinstance(x, Opaque) for x in operands):
            raise self._refused(node)
        return OPERATORS[type(operation)](*operands)

    def _go(self, block: Any) -> None:
        if not self._builder.block.is_terminated:
            self._builder.branch(block)

    def _refused(self, what: Any) -> NotImplementedError:
        place = f"{self._function.__module__}.{self._function.__qualname__}"
        text = repr(ast.unparse(what)) if isinstance(what, ast.AST) else what
        return NotImplementedError(f"{place} has {text}, which {__name__} cannot translate")

    def _statements(self, nodes: Sequence[Any]) -> None:
        for node in nodes:
            if self._builder.block.is_terminated:
                break
            self._statement(node)

    def _statement(self, node: Any) -> None:
        match node:
            case ast.Expr(ast.Constant()):
                pass
            case ast.Expr(value):
                self._value(value)
            case ast.Assign([ast.Name(name)], value):
                self._put(name, self._value(value))
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
                numbers = [self._value(x) for x in values]
                for target, x in zip(targets, numbers, strict=True):
                    self._put(target.id, x)  # type: ignore[attr-defined]
            case ast.AugAssign(ast.Name(name), operation, value) if (
                name in self._homes and type(operation) in OPERATORS
            ):
                self._put(name, self._done(node, operation, self._get(name), self._value(value)))
            case ast.Return(value):
                if value is not None:
                    self._put("return", self._value(value))
                self._go(self._end)
            case ast.If(test, body, others):
                truth = self._value(test)
                if isinstance(truth, bool):
                    self._statements(body if truth else others)
                else:
                    self._either(truth, lambda: self._statements(body), lambda: self._statements(others))
            case ast.While(test, body, []):
                self._loop(lambda: self._value(test), lambda: self._statements(body), lambda: None)
            case ast.For(ast.Name(name), ast.Call(ast.Name("range"), bounds), body, []):
                self._range(name, [self._value(x) for x in bounds], body)
            case ast.Continue():
                self._go(self._loops[-1])
            case _:
                raise self._refused(node)

    def _either(self, truth: Any, first: Callable[[], None], second: Callable[[], None]) -> None:
        with self._builder.if_else(self._truth(truth)) as (then, otherwise):
            with then:
                first()
            with otherwise:
                second()

    def _range(self, name: str, bounds: Sequence[Any], body: Sequence[Any]) -> None:
        start, stop, step = ((0, *bounds, 1), (*bounds, 1), bounds)[len(bounds) - 1]
        counter = name, id(body)
        self._put(counter, start)

        def inside() -> None:
            self._put(name, self._get(counter))
            self._statements(body)

        self._loop(lambda: self._get(counter) < stop, inside, lambda: self._put(counter, self._get(counter) + step))

    def _loop(self, test: Callable[[], Any], body: Callable[[], None], further: Callable[[], None]) -> None:
        builder = self._builder
        top, inside, bottom, after = (builder.append_basic_block() for _ in range(4))
        builder.branch(top)
        builder.position_at_end(top)
        builder.cbranch(self._truth(test()), inside, after)
        builder.position_at_end(inside)
        self._loops.append(bottom)
        body()
        self._loops.pop()
        self._go(bottom)
        builder.position_at_end(bottom)
        further()
        builder.branch(top)
        builder.position_at_end(after)

    def _value(self, node: Any) -> Any:
        """Return what an expression gives: a number, or a number or function that is known already."""
        match node:
            case ast.Constant(x):
                return x
            case ast.Name(name):
                return self._get(name) if name in self._homes else self._from_outside(name)
            case ast.Attribute(ast.Name(name), attribute):
                return getattr(self._from_outside(name), attribute)
            case ast.BinOp(x, operation, y) | ast.Compare(x, [operation], [y]) if type(operation) in OPERATORS:
                return self._done(node, operation, self._value(x), self._value(y))
            case ast.UnaryOp(ast.USub(), x):
                return -self._value(x)
            case ast.UnaryOp(ast.Not(), x):
                truth = self._value(x)
                return (
                    not truth
                    if isinstance(truth, bool)
                    else Boolean(self._builder, self._builder.not_(self._truth(truth)))
                )
            case ast.BoolOp(ast.And(), [x, *others]):
                return self._chosen(node, x, ast.BoolOp(ast.And(), others) if others[1:] else others[0], False)
            case ast.BoolOp(ast.Or(), [x, *others]):
                return self._chosen(node, x, True, ast.BoolOp(ast.Or(), others) if others[1:] else others[0])
            case ast.IfExp(test, x, y):
                return self._chosen(node, test, x, y)
            case ast.Call(function, arguments, []):
                return self._call(self._value(function), [self._value(x) for x in arguments])
            case _:
                raise self._refused(node)

    def _from_outside(self, name: str) -> Any:
        """Return what a name is that the function does not store in: a constant, or the module's."""
        for space in (self._constants, self._function.__globals__, vars(builtins)):
            if name in space:
                return space[name]
        raise self._refused(f"{name}, which nothing defines")

    def _chosen(self, node: Any, test: Any, x: Any, y: Any) -> Any:
        """Return what one of two expressions gives: of a truth that is known already, that alone is code."""

        def get(each: Any) -> Any:
            x = each if isinstance(each, bool) else self._value(each)
            whether = isinstance(node, ast.BoolOp) and not isinstance(x, bool)
            return Boolean(self._builder, self._truth(x)) if whether else x

        truth = self._value(test)
        if isinstance(truth, bool):
            return get(x if truth else y)
        self._either(truth, lambda: self._put(node, get(x)), lambda: self._put(node, get(y)))
        return self._get(node)

    def _call(self, function: Any, arguments: Sequence[Any]) -> Any:
        """Return what a function gives: one of Python's that is translated, too, of C's, or of words.py's."""
        builder = self._builder
        match function:
            case FunctionType():
                return Body(self._context, builder, function, arguments, {}).result
            case types.ExternalFunction():
                return self._c_function(function.symbol, function.sig, arguments)
            case BuiltinFunctionType(__module__="math"):
                kind = types.float64(*[types.float64] * len(arguments))
                return self._c_function(function.__name__, kind, arguments)
        if function is abs:
            return abs(*arguments)
        if function is float:
            (x,) = map(self._value_of, arguments)
            if not isinstance(x, Whole | Boolean):
                raise self._refused(f"a float of type {x.kind}")
            convert = builder.uitofp if isinstance(x, Unsigned | Boolean) else builder.sitofp
            return Real(builder, convert(x.value, ir.DoubleType()))
        if function is np.uint64 and isinstance(x := self._value_of(*arguments), Whole):
            return Unsigned(builder, x.value)
        if function is min:
            x, y = map(self._value_of, arguments)
            return typed(builder, x.kind, builder.select((y < x).value, y.value, x.value))
        if not hasattr(function, "_defn"):  # which intrinsics have
            raise self._refused(f"a call of {function!r}")
        arguments = [self._value_of(x) for x in arguments]
        signature, generate = function._defn(None, *(x.kind for x in arguments))
        values = self._converted(signature, arguments)
        return self._result(signature, generate(self._context, builder, signature, values))

    def _c_function(self, name: str, signature: Any, arguments: Sequence[Any]) -> Any:
        values = self._converted(signature, [self._value_of(x) for x in arguments])
        result = ir.VoidType()
        if signature.return_type != types.void:
            result = self._context.get_value_type(signature.return_type)
        kind = ir.FunctionType(result, [x.type for x in values])
        called = get_or_insert_function(self._builder.module, kind, name)
        return self._result(signature, self._builder.call(called, values))

    def _result(self, signature: Any, value: Any) -> Any:
        return None if signature.return_type == types.void else typed(self._builder, signature.return_type, value)

    def _converted(self, signature: Any, arguments: Sequence[Any]) -> list[Any]:
        values = [converted(self._builder, x, kind) for kind, x in zip(signature.args, arguments, strict=True)]
        if None in values:
            raise self._refused(f"a call with {', '.join(str(x.kind) for x in arguments)} for {signature}")
        return values
