"""Asks natively whether tensors still lie as they did: Python takes 0.06 µs for each question and tensor.

That was 5 of the 23 µs of a small MLP's step. The questions go to the C functions that torch keeps stable for compiled
models (aoti_torch/c/shim.h). Where in a tensor's object the handle lies that they take is found by a search, and all of
it is tried at first use; with a torch that differs, or tensors of other classes, Python is asked.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from fastadam.torch.formats import form

log = logging.getLogger("fastadam")

ASKED = "layout", "dtype", "dim", "sizes", "strides", "data_ptr"
KINDS = torch.Tensor, torch.nn.Parameter


class Interface(NamedTuple):
    """Says how this torch is asked natively."""

    handle: int  # bytes from a tensor's id to its handle
    functions: Any  # (6,) int64 addresses
    library: Any

    def ask(self, question: str, x: Any) -> int:
        """Return what a function says of a tensor."""
        answer = ctypes.c_int64(0)
        failed = self.library["aoti_torch_get_" + question](ctypes.c_void_p(id(x) + self.handle), ctypes.byref(answer))
        return -1 if failed else answer.value


@cache
def interface() -> Interface | None:
    """Return this torch's interface, or None where it has none or does not do as expected."""
    base = torch.arange(24.0, device="cpu").view(2, 3, 4)
    probes = [
        base,
        base.transpose(0, 2),
        base[1, 1:].double(),
        torch.nn.Parameter(base[0, 0, 1]),
        torch.empty(0, 5, device="cpu"),
    ]
    try:
        library = ctypes.CDLL(torch._C.__file__)  # through which what it depends on is found
        functions = [ctypes.cast(library["aoti_torch_get_" + name], ctypes.c_void_p).value for name in ASKED]
        (handle,) = {_offset(x, library) for x in probes}
    except (AttributeError, OSError, ValueError) as error:
        log.info("torch %s is asked through Python how its tensors lie: %s", torch.__version__, error)
        return None
    asked = Interface(handle, np.array(functions, np.int64), library)
    if all(_as_python_says(asked, x) for x in probes):
        return asked
    log.info("torch %s is asked through Python how its tensors lie: its C functions say otherwise", torch.__version__)
    return None


def _offset(x: Any, library: Any) -> int:
    """Return where in x's object the pointer lies that a handle points to."""
    capsule = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(x)
    content = ctypes.pythonapi.PyCapsule_GetPointer
    content.restype, content.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    handle = ctypes.c_void_p(content(capsule, None))
    pointer = ctypes.c_int64.from_address(handle.value or 0).value
    library["aoti_torch_delete_tensor_object"](handle)
    words = range(object.__basicsize__, torch.Tensor.__basicsize__, 8)
    (offset,) = (k for k in words if ctypes.c_int64.from_address(id(x) + k).value == pointer)
    return offset


def _as_python_says(interface_: Interface, x: Any) -> bool:
    homes = Forms(interface_, [x], [form(x)]).places([x])
    return homes is not None and homes.tolist() == [x.data_ptr()]


class Forms:
    """Knows how tensors lie: their dtypes, shapes and strides, all of them dense, and where they were last seen.

    homes: (tensors,) 64-bit integers, for their addresses.
    """

    def __init__(
        self, functions: Interface, tensors: Sequence[Any], forms: Sequence[tuple[Any, Any, Any]], homes: Any = None
    ) -> None:
        layout = functions.ask("layout", torch.empty(0, device="cpu"))
        rows = [
            [layout, functions.ask("dtype", torch.empty(0, dtype=dtype, device="cpu")), len(shape), *shape, *strides]
            for dtype, shape, strides in forms
        ]
        n = len(rows)
        self.homes = np.zeros(n, np.int64) if homes is None else homes
        objects = np.zeros(n, np.int64)
        self._note = partial(struct.Struct(f"{n}q").pack_into, objects.data, 0)
        firsts, words = [0, *accumulate(map(len, rows))][:n], [x for row in rows for x in row]
        arrays = [np.array(x, np.int64) for x in (list(map(id, KINDS)), words, firsts)]
        self._kept = [list(tensors), objects, arrays, functions]  # their addresses and ids stay theirs
        kinds, forms_at, firsts_at = (x.ctypes.data for x in arrays)
        self._args = (
            n, objects.ctypes.data, kinds, functions.handle, functions.functions.ctypes.data, forms_at, firsts_at,
            self.homes.ctypes.data, self.homes.strides[0],
        )  # fmt: skip
        from fastadam.kernels.cpu.handles import differing  # not before it is needed: it imports Numba

        self._call = differing()

    def places(self, tensors: Sequence[Any]) -> Any:
        """Return homes, filled with the addresses of tensors, if they lie so; else None."""
        self._note(*map(id, tensors))
        return self.homes if self._call(*self._args, False) < 0 else None

    def unchanged(self) -> bool:
        """Return whether the tensors that were given to `places` last lie as they did, where they did."""
        return self._call(*self._args, True) < 0  # type: ignore[no-any-return]


def forms(tensors: Sequence[Any], lie: Sequence[tuple[Any, Any, Any]] | None = None, homes: Any = None) -> Forms | None:
    """Return the forms of tensors, or of others that they stand for: (dtype, shape, strides) of each; None: Python is
    asked.

    Where they lie now is what `unchanged` compares with.
    """
    functions = interface()
    if functions is None or not all(type(x) in KINDS and x.layout is torch.strided for x in tensors):
        return None
    asking = Forms(functions, tensors, lie or list(map(form, tensors)), homes)
    asking.places(tensors)
    return asking
