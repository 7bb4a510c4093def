"""Is one parameter as a walk sees it: its tensors, where they lie, and how far its state has come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadam.arrays.host import PAGE, allocate_beside
from fastadam.kernels.contract import Kernel, Slot, Weights
from fastadam.kernels.formats import BFLOAT16, CODES, FLOAT32, REMAINDER, Format, format_of
from fastadam.plans.storage import Storage
from fastadam.plans.streams import Streams
from fastadam.torch.formats import DTYPES, FORMATS, ORDER, SHORT, describe, form, local, place


class Moved(Exception):
    """Is raised where a parameter has become another in dtype, shape or strides: the walk must be laid out anew."""


class Leaf:
    """Holds the tensors of one parameter, as they were when last looked at.

    slots, numbers: torch's keys in its state of what is as large as p, in order and with the kernel's slot, or None for
        the average; and of what is one number ("step", ...). A remainder or a master comes behind the slots.
    strides: of p and of everything beside it; where p has gaps, of the dense copy that stands in for it.
    by_row: whether rows must follow each other in memory, for sparse gradients; else p counts as having gaps.
    format: what p rests in, of a complex p its two reals. formats, kinds: per key of slots, its format and the dtype of
        its tensors; one dimension for blocks, of p's elements in their order in memory.
    """

    def __init__(
        self, name: str, p: Any, group: int, slots: dict[str, Slot | None], numbers: Sequence[str], by_row: bool,
        storage: Storage,
    ) -> None:  # fmt: skip
        self.name, self.p, self.group, self._storage = name, p, group, storage
        tensor = local(p)
        format = FORMATS.get(tensor.dtype)
        if format is None or not format.is_float:
            raise TypeError(
                f"{name} is {describe(tensor)}, expected float32, float64, bfloat16, float16, complex64 or complex128"
            )
        self.format, self.short = format, format.is_short
        # What state rests in and steps are worked out in: float32 where p is shorter.
        self.wide: Any = format.compute
        self.state_dtype = torch.float32 if self.short else tensor.dtype
        self.dtype, self.shape, self._complex = tensor.dtype, tensor.shape, tensor.is_complex()
        storage.check(name, format, describe(tensor))
        computed = format_of(format.compute)
        rest = {key: computed if slot is None else storage.slot_format(format, slot) for key, slot in slots.items()}
        stored = next((x for x in rest.values() if x is not computed), computed)
        if stored not in DTYPES:
            fits = ", ".join(repr(each.name) for each in DTYPES if each.moments)
            raise ValueError(f"moments is {stored.name!r}, {name} is {describe(p)}: expected one of {fits}, or None")
        if not stored.is_compute and (self._complex or (stored.block > 1 and tensor is not p)):
            reason = (
                "the shape of a DTensor says nothing of its blocks" if tensor is not p else "expected real parameters"
            )
            raise ValueError(f"moments is {storage.moments!r}, {name} is {describe(p)}: {reason}")
        self.mastered, self.split = storage.has_master(format), storage.has_remainder(format)
        self.formats = rest | ({"master": FLOAT32} if self.mastered else {"remainder": REMAINDER} if self.split else {})
        self.kinds = {k: self.state_dtype if x.is_compute else DTYPES[x] for k, x in self.formats.items()}
        self.blocked = any(each.block > 1 for each in self.formats.values())
        self.kernel_slots = {key: slot for key, slot in slots.items() if slot is not None}
        self.slots, self.keys = tuple(self.kinds), (*self.kinds, *numbers)
        self.size = tensor.numel() * (2 if self._complex else 1)
        order = torch.contiguous_format if by_row else torch.preserve_format
        self.strides = torch.empty_like(tensor, device="meta", memory_format=order).stride()
        self.gaps, self.shared = self.strides != tensor.stride(), tensor is not p
        # Strides alone show how its gradient lies: a negated view, of the imaginary part of a conjugate, has gaps.
        self.usual = not self._complex and not self.shared and tensor.dim() > 0
        self.form = form(tensor)
        self.uncounted = False  # whether torch's own state has no count
        self.idle: list[str] = []  # the keys of slots whose decay rate is 0, which are not kept
        self._scratch: Any = None
        self.copied: list[Any] = []  # the tensor of copy_to, if any
        # As last looked at:
        self.state: Any = None
        self.tensors: list[str] = []  # the keys of its tensors
        self.seen: list[Any] = []  # these
        # p, or its copy, and then this process's share of the state:
        self.memory = [self.dense() if self.gaps else tensor]
        self.addresses: list[int] = []  # of these, and how they lie
        self.forms: list[Any] = []
        self.places: list[tuple[Any, Any]] = []  # of the numbers
        self.values: list[float] = []
        self.history: tuple[int, list[float]] = (0, [])  # the steps taken, and what the rule has accumulated in them

    def begins_as_p(self, key: str) -> bool:
        """Return whether a slot, or what else is kept beside p, is p's copy at first."""
        return key in ("ema", "master") or isinstance(self.kernel_slots.get(key), Weights)

    def beside(self, p: Any) -> Leaf:
        """Return a leaf of the same method for another parameter, to lay out its state."""
        slots = {key: self.kernel_slots.get(key) for key in self.slots if key not in ("master", "remainder")}
        return Leaf(self.name, p, self.group, slots, self.keys[len(self.slots) :], False, self._storage)

    def dense(self, dtype: Any = None) -> Any:
        """Return a new tensor that lies as a walk wants it, of p's dtype unless told otherwise."""
        return torch.empty_strided(self.shape, self.strides, dtype=dtype or self.dtype, device=local(self.p).device)

    def streams(self, kernel: Kernel, values: Iterable[Any]) -> Streams:
        """Return things for each of `memory`, in that order, by name."""
        named = dict(zip(("p", *["copy"] * len(self.copied), *self.slots), values, strict=False))
        slots = {slot.name: named[key] for key, slot in self.kernel_slots.items()}
        return Streams(
            named["p"], None, [slots.get(slot.name) for slot in kernel.slots], named.get("ema"), named.get("copy"),
            named.get("remainder"), named.get("master"),
        )  # fmt: skip

    @property
    def resting(self) -> list[Format]:
        """Return the formats of p, of its copy and of what its state holds, in the order of `memory`."""
        return [self.format, *(FORMATS[x.dtype] for x in self.copied), *self.formats.values()]

    def copy_into(self, copy: Any) -> None:
        """Let each step round p into this tensor, from now on. None: nothing."""
        if copy is None:
            return
        difference = f"copy_to has {describe(copy)} for {self.name}, which is {describe(self.p)}"
        if self.mastered:
            raise ValueError(f"{difference}: expected None with master='float32', where that is the copy")
        if copy.dtype not in SHORT or self._complex:
            raise TypeError(f"{difference}: expected bfloat16 or float16")
        copy, tensor = local(copy), local(self.p).detach()
        if copy.shape != self.shape or copy.stride() != self.strides or copy.device != tensor.device:
            raise ValueError(f"{difference}: expected its shape, and dense memory in the same order of axes")
        copy.detach().copy_(tensor.float())  # as the walk does: float64 goes through float32
        self.copied = [copy]

    def zeros(self, key: str) -> Any:
        """Return a new tensor of zeros for a slot, in memory of its own, where a walk does not wait for it."""
        x, kind, format = self.memory[0].detach(), self.kinds[key], self.formats[key]
        if self.shared or x.nbytes < PAGE or x.device.type != "cpu":
            if format.block > 1:
                return torch.zeros(format.length(self.size), dtype=kind, device=x.device)
            return torch.zeros_like(self.p.detach(), dtype=kind, memory_format=torch.preserve_format)
        x = torch.view_as_real(x) if self._complex else x.view(torch.int16) if self.short else x
        size, column = format.bytes_of(self.size), self.slots.index(key)
        straight = torch.from_numpy(allocate_beside([self._straight(x)], column, np.uint8, [size])[0]).view(kind)
        return straight if format.block > 1 else straight.as_strided(self.shape, self.strides)

    def _straight(self, x: Any) -> Any:
        """Return a real dense tensor's elements in their order in memory, copied only from a device."""
        return x.as_strided((self.size,), (1,)).cpu().numpy()

    def encoded(self, key: str, x: Any) -> Any:
        """Return x, which has p's shape, as a slot rests: laid out like p, or its blocks."""
        kind, format = self.kinds[key], self.formats[key]
        if format.is_float or x.dtype is kind:
            return self.dense(kind).copy_(x.detach())
        values = self._straight(self.dense(torch.float32).copy_(x.detach()))
        straight = torch.from_numpy(format.encode(values, self.kernel_slots[key], None)).to(x.device)
        return straight if format.block > 1 else straight.as_strided(self.shape, self.strides)

    def decoded(self, key: str, x: Any, order: Sequence[int] | None = None) -> Any:
        """Return a slot as a new tensor that is as wide as the arithmetic; order: the strides that its blocks are
        in."""
        format = self.formats.get(key, FLOAT32)  # of what is idle, zeros
        if format.is_float or x.dtype is not self.kinds[key]:
            return x.to(self.state_dtype, copy=True)
        strides = self.strides if order is None else tuple(order)
        wide = torch.empty_strided(self.shape, strides, dtype=self.state_dtype, device=x.device)
        rested = x.cpu().numpy() if format.block > 1 else self._straight(x)
        values = format.decode(rested, self.kernel_slots[key], self.size)
        wide.as_strided((self.size,), (1,)).copy_(torch.from_numpy(values))
        return wide

    def gradient(self, g: Any) -> int:
        """Return the address of p's gradient; one that lies otherwise than p is copied, in memory kept for the next
        step."""
        g = local(g)
        if g.shape != self.shape:
            raise RuntimeError(
                f"the gradient of {self.name} is {describe(g)}, {self.name} is {describe(local(self.p))}"
            )
        if g.stride() != self.strides or g.dtype is not self.dtype or g.is_neg() or g.is_conj():
            if self._scratch is None:
                self._scratch = self.dense()
            g = self._scratch.copy_(g.detach())
        return self.address(g, "the gradient")

    def address(self, x: Any, what: str) -> int:
        """Return the address of x. Raises RuntimeError where it has no memory, as torch's fake tensors have none."""
        address: int = x.data_ptr()
        if not address and self.size:
            raise RuntimeError(
                f"{what} of {self.name} is {describe(x)} without memory, expected a tensor that has some"
            )
        return address

    def rows(self, g: Any) -> tuple[Any, int, Any]:
        """Return (rows that a sparse gradient has values for, elements of each, the values), every row once."""
        if g.shape != self.shape:
            raise RuntimeError(f"the gradient of {self.name} is {describe(g)}, {self.name} is {describe(self.p)}")
        g = g.detach().coalesce()
        width = self.size // max(1, prod(self.shape[: g.sparse_dim()]))
        rows = np.zeros(g._nnz(), np.int64)
        for axis, indices in enumerate(g.indices().cpu().numpy()):
            if len(indices) and not 0 <= indices.min() <= indices.max() < self.shape[axis]:
                raise IndexError(f"the gradient of {self.name} has indices beyond {describe(local(self.p))}")
            rows = rows * self.shape[axis] + indices
        return rows, width, g.values().to(self.dtype).resolve_conj().contiguous()

    def changed(self, state: dict[str, Any]) -> bool:
        """Return whether anything is not as it was when last looked at."""
        if self.shared and not self.gaps:
            self.memory[0] = local(self.p)
        now, tensor = [state.get(key) for key in self.tensors], local(self.p)
        return (
            self.state is not state
            or form(tensor) != self.form
            or not all(map(is_, now, self.seen))
            or list(map(form, self.memory)) != self.forms
            or [x.data_ptr() for x in self.memory] != self.addresses
            or [array[at] for array, at in self.places] != self.values
        )

    def taken(self, state: dict[str, Any], carried: dict[str, float]) -> tuple[int, list[float]]:
        """Return the history of a state that lacks something, of a checkpoint that was not ours; carried: see Rule."""
        numbers = self.keys[len(self.slots) :]
        if self.uncounted and "step" not in state:  # a slot shows that steps were taken
            return int(any(state.get(key) is not None for key in self.kernel_slots)), []
        count, *rest = [float(state.get(key, x)) for key, x in zip(numbers, (0.0, *carried.values()), strict=True)]
        return int(count), rest

    def complete(self, state: dict[str, Any]) -> bool:
        """Return whether the state holds all that a step needs."""
        return all(state.get(key) is not None for key in self.keys)

    def look(self, state: dict[str, Any]) -> None:
        """Take up p and its complete state as they are now. State that lies otherwise than p is replaced by a copy.

        Raises ValueError where the state does not fit, Moved where p is not what it was.
        """
        tensor = local(self.p)
        if form(tensor) != self.form:
            raise Moved
        lies = [(form(x), x.data_ptr()) for x in self.copied]
        if self.state is not None and lies != list(zip(self.forms, self.addresses, strict=True))[1 : 1 + len(lies)]:
            raise Moved  # the copy is filled anew
        for key in self.idle:
            state.pop(key, None)
        for key in self.slots:
            x, kind, format = local(state[key]), self.kinds[key], self.formats[key]
            blocks = tensor.device, (format.length(self.size),)
            if format.block > 1 and kind is x.dtype and (x.device, x.shape) == blocks and x.is_contiguous():
                if ORDER in state and (order := tuple(state[ORDER].tolist())) != self.strides:
                    state[key] = self.encoded(key, self.decoded(key, x, order))
                continue
            # As torch's own optimizer keeps it, or one of ours with other moments.
            came_in, wide = FORMATS.get(x.dtype), set() if format is REMAINDER else {self.state_dtype}
            other = wide and x.is_floating_point() and (self.short or came_in is BFLOAT16)
            fits = other or x.dtype in (wide if format.block > 1 else {kind, *wide})
            if not fits or x.shape != self.shape or x.device != tensor.device:
                hint = ": moments of 8 bits need moments='8bit', or to_torch_state" * (
                    kind is not x.dtype and came_in is CODES
                )
                raise ValueError(
                    f"state[{key!r}] of {self.name} is {describe(x)}, {self.name} is {describe(tensor)}{hint}"
                )
            if x.stride() != self.strides or x.dtype is not kind or x.is_conj() or x.is_neg():
                if self.shared:
                    state[key] = state[key].to(kind)
                if self.shared and local(state[key]).stride() != self.strides:
                    raise ValueError(f"state[{key!r}] of {self.name} has strides {x.stride()}, not {self.strides}")
                if not self.shared:
                    state[key] = self.encoded(key, x)
        if self.blocked:
            # A tensor, since torch's distributed checkpoints know no tuples.
            state[ORDER] = torch.tensor(self.strides, dtype=torch.int64, device="cpu")
        for key in self.keys[len(self.slots) :]:
            if isinstance(state[key], Tensor) and (key != "step" or state[key].dtype in SHORT):
                # What a rule carries is float64 while it runs; torch has it in float32, and casts counts on loading.
                state[key] = state[key].to(torch.float32 if key == "step" else torch.float64)
        self.state, self.tensors = state, [key for key in self.keys if isinstance(state[key], Tensor)]
        self.seen = [state[key] for key in self.tensors]
        self.memory = [self.memory[0] if self.gaps else tensor, *self.copied, *map(local, self.seen)]
        self.addresses = [self.address(x, "a tensor") for x in self.memory]
        self.forms = list(map(form, self.memory))
        # A number is a tensor, or Python's own.
        numbers = [(key, state[key]) for key in self.keys[len(self.slots) :]]
        self.places = [place(x) if isinstance(x, Tensor) else (state, key) for key, x in numbers]
        if (values := [array[at] for array, at in self.places]) != self.values or not values:
            self.values = values
            self.history = int(values[0]) if values else 1, [float(x) for x in values[1:]]

    def gather(self) -> None:
        """Fill the copy that stands in for p."""
        self.memory[0].copy_(local(self.p).detach())

    def scatter(self) -> None:
        """Write the copy that stands in for p back into p."""
        local(self.p).detach().copy_(self.memory[0])
