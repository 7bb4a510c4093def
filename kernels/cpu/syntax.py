"""Reads functions of modules as syntax, from the text that was imported."""

import ast
import inspect
import sys
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from .. import IMPORTED


def syntax_of(function: FunctionType) -> Any:
    """Return the text of a module's function as syntax.

    Raises RuntimeError where the text is not what was imported, or there is none, as in a program that was frozen.
    """
    module = sys.modules[function.__module__]
    for text_of in (_kept, _on_disk):
        if (text := text_of(module)) is not None:
            definitions, codes = _read(text)
            if codes.get(function.__name__) == function.__code__:
                return definitions[function.__name__]
    if text is None:
        raise RuntimeError(f"{module.__name__} has no text, expected its .py file: code is compiled from it")
    raise RuntimeError(f"{module.__name__} has changed since {function.__name__} was imported from it")


def _kept(module: Any) -> str | None:
    """Return a module's text as it was when this package was imported: the library may be upgraded under a session."""
    text = IMPORTED.get(Path(getattr(module, "__file__", None) or ""))
    return None if text is None else text.decode()


def _on_disk(module: Any) -> str | None:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):  # a built-in module, or one of a frozen program, has no file
        return None


@cache
def _read(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a text's functions by name, as syntax and as Python's code."""
    tree = ast.parse(text)
    codes = compile(tree, "text", "exec").co_consts
    return {getattr(node, "name", ""): node for node in tree.body}, {getattr(x, "co_name", ""): x for x in codes}
