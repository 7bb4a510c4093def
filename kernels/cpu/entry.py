"""Compiles what translating.py makes of a function's text, as a function whose whole body is one intrinsic."""

import inspect
from hashlib import sha256
from typing import Any

from numba.extending import intrinsic

from .cache import Code, native
from .translating import Body
from .values import typed


def translated(function: Any, signature: Any, of: str, constants: dict[str, Any]) -> Any:
    """Return a function of the same parameters, less those known, that Numba compiles, infers nothing in, and that does
    what a text says.

    signature: Numba's, of the result and of the arguments: whole numbers and truths. of: tells it from others that are
    made of the same text.
    """

    def define(typing, *kinds):
        return signature, generate

    def generate(context, builder, signature, args):
        arguments = [typed(builder, *pair) for pair in zip(signature.args, args, strict=True)]
        result = Body(context, builder, function, arguments, constants).result
        return context.get_dummy_value() if result is None else result.value

    names = [each for each in inspect.signature(function).parameters.values() if each.name not in constants]
    first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = inspect.Signature([first, *names])  # type: ignore[attr-defined]  # Numba asks how many there are
    parameters = ", ".join(each.name for each in names)
    space = {"body": intrinsic(define)}
    exec(f"def entry({parameters}): return body({parameters})", space)
    entry: Any = space["entry"]
    # These name its code. Numba tells namesakes apart by a count that every process begins anew; of two in code from
    # the disk one wins.
    entry.__module__ = function.__module__
    entry.__qualname__ = function.__qualname__ + (of and f"_{sha256(of.encode()).hexdigest()[:16]}")
    return entry


def native_text(
    name: str, function: Any, signature: Any, of: str = "", for_c: bool = False, nogil: bool = True,
    constants: dict[str, Any] | None = None,
) -> Code:  # fmt: skip
    """Return the compiled code of a function, loaded or translated now; see cache.native.

    constants: what some of its parameters are when the code is made; `of` must say all that they decide.
    """
    return native(name, translated(function, signature, of, constants or {}), signature, of, for_c, nogil)
