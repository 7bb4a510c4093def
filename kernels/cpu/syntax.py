"""Reads functions of modules as syntax, from the text on disk that was imported."""

import ast
import inspect
import sys
from functools import cache
from types import FunctionType
from typing import Any


def syntax_of(function: FunctionType) -> Any:
    """Return the text of a module's function as syntax.

    Raises RuntimeError where the text is not what was imported, or there is none, as in a program that was frozen.
    """
    module = sys.modules[function.__module__]
    definitions, codes = _texts(module)
    if codes.get(function.__name__) != function.__code__:
        raise RuntimeError(f"{module.__file__} has changed since {function.__name__} was imported from it")
    return definitions[function.__name__]


@cache
def _texts(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a module's functions by name, as syntax and as Python's code."""
    try:
        text = inspect.getsource(module)
    except OSError:
        raise RuntimeError(f"{module.__name__} has no text, expected its .py file: code is compiled from it") from None
    tree = ast.parse(text)
    codes = compile(tree, str(module.__file__), "exec").co_consts
    return {getattr(node, "name", ""): node for node in tree.body}, {getattr(x, "co_name", ""): x for x in codes}
