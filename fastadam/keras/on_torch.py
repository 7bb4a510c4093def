"""Keras's optimizers on PyTorch: the tensors of its variables are stepped where they lie."""

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch.autograd.graph import increment_version

from fastadam.arrays.host import Array
from fastadam.keras.steps import KerasStep, Stepping
from fastadam.kernels.formats import BFLOAT16
from fastadam.torch.formats import FORMATS, describe


def view(x: Any) -> Array:
    """Return a tensor's memory as an array. Raises ValueError for a tensor that is not on the CPU, or is sparse."""
    if x.device.type != "cpu" or x.layout is not torch.strided or not x.is_floating_point():
        raise ValueError(f"a tensor of Keras is {describe(x)}, {x.layout}: expected dense floats on the CPU")
    format, x = FORMATS[x.dtype], x.detach()
    array: Array = (x.view(torch.int16) if format is BFLOAT16 else x).numpy()  # NumPy has no bfloat16
    return array.view(format.dtype)


def read(g: Any) -> Array:
    """Return a gradient as an array: a copy where PyTorch has but noted that it is negated."""
    if not isinstance(g, torch.Tensor):
        raise TypeError(f"a gradient is {type(g).__name__}, expected a torch.Tensor")
    return view(g.resolve_neg())


class OnTorch(Stepping):
    """Takes one optimizer's steps over tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: list[Any] = []  # those of the last step, but for gradients
        self._addresses: list[int] = []
        self._arrays: list[Array] = []

    @torch._dynamo.disable
    def __call__(self, asked: KerasStep) -> None:
        """Take a step of Keras's variables, whose gradients are tensors."""
        variables = [*asked.params, *(x for xs in asked.slots.values() for x in xs)]
        arrays = self._views([x.value for x in variables])
        n = len(asked.params)
        parts = [arrays[k : k + n] for k in range(0, len(arrays), n)]
        grads = [None if g is None else read(g) for g in asked.grads]
        lr, *numbers = (float(getattr(x, "value", x)) for x in (asked.lr, *asked.carried.values()))
        carried = dict(zip(asked.carried, numbers, strict=True))
        slots = dict(zip(asked.slots, parts[1:], strict=True))
        plain = asked._replace(params=parts[0], grads=grads, slots=slots, t=int(asked.t), lr=lr, carried=carried)
        super().__call__(plain)
        increment_version(self._tensors)  # autograd refuses to go back through what has changed

    def _views(self, tensors: Sequence[Any]) -> list[Array]:
        addresses = [x.data_ptr() for x in tensors]
        if addresses != self._addresses or not all(map(is_, tensors, self._tensors)):
            self._arrays = list(map(view, tensors))
            self._tensors, self._addresses = list(tensors), addresses
        return self._arrays
