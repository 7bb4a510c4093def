"""Says what tensors rest in, and how one of them, or a number, is looked at."""

from __future__ import annotations

from typing import Any

import torch

from fastadam.kernels.formats import BFLOAT16, CODES, FLOAT16, FLOAT32, FLOAT64, REMAINDER

DTYPES = {  # of the tensors that rest in a format
    FLOAT64: torch.float64, FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16,
    CODES: torch.uint8, REMAINDER: torch.int16,
}  # fmt: skip
FORMATS = {dtype: format for format, dtype in DTYPES.items()} | {torch.complex64: FLOAT32, torch.complex128: FLOAT64}
STORED = {dtype for format, dtype in DTYPES.items() if format is REMAINDER or format.moments > format.is_compute}
SHORT = {dtype for dtype, format in FORMATS.items() if format.is_short}
ORDER = "strides"  # the key in the state of the strides in whose order blocks of 8 bits are


def local(x: Any) -> Any:
    """Return this process's share of a DTensor; any other tensor as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def describe(x: Any) -> str:
    """Return what errors call a tensor: float32(3, 4) on cpu."""
    return f"{str(x.dtype).removeprefix('torch.')}{tuple(x.shape)} on {x.device}"


class OnDevice:
    """Is a number in the memory of a device: read from there only when somebody else has written it."""

    def __init__(self, x: Any) -> None:
        self._x, self._version, self._value = x.detach(), -1, 0.0

    def __getitem__(self, at: tuple[()]) -> float:
        if self._x._version != self._version:
            self._value, self._version = self._x.item(), self._x._version
        return self._value

    def __setitem__(self, at: tuple[()], value: float) -> None:
        self._x.fill_(value)
        self._value, self._version = float(torch.tensor(value, dtype=self._x.dtype, device="cpu")), self._x._version


def form(x: Any) -> tuple[Any, Any, Any]:
    """Return how a tensor lies."""
    return x.dtype, x.shape, x.stride()


def place(x: Any) -> tuple[Any, tuple[()]]:
    """Return where a tensor of one number is read and written as array[()]; Python's own numbers compare fastest."""
    return (OnDevice(x) if x.device.type != "cpu" else memoryview(x.detach().numpy().reshape(()))), ()
