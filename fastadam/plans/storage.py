"""Storage: what each stream of an optimizer rests in, and the memory that it gets.

The arithmetic is float32, or float64 for float64 parameters; kernels/formats.py says how the formats are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays.host import Array, describe, flat, memory_order, shaped_like
from fastadam.kernels.codes import codes_and_scales
from fastadam.kernels.formats import (
    BFLOAT16,
    CODES,
    FLOAT16,
    FORMATS,
    REMAINDER,
    Format,
    compute,
    decoded,
    encoded,
    format_of,
)

if TYPE_CHECKING:
    from fastadam.kernels.contract import Slot
    from fastadam.optimizer import Optimizer

MOMENTS = [name for name, format in FORMATS.items() if format.moments]
MASTERS = "remainder", "float32"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What Optimizer takes under these names; see there. Checked when made."""

    moments: str | None = None
    master: str | None = None
    index_offset: int = 0

    def __post_init__(self) -> None:
        for name, allowed in ("moments", MOMENTS), ("master", MASTERS):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value in allowed):
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}, or None")

    def check(self, name: str, p: Format, described: str) -> None:
        """Refuse what does not fit a parameter in this format, naming it; described: what errors call it."""
        if self.moments is not None and FORMATS[self.moments].compute is not p.compute:
            fits = ", ".join(repr(each) for each in MOMENTS if FORMATS[each].compute is p.compute)
            raise ValueError(f"moments is {self.moments!r}, {name} is {described}: expected None or {fits}")
        if self.master == "remainder" and p is FLOAT16:
            raise ValueError(f"master is 'remainder', {name} is {described}: expected None or 'float32'")

    def has_master(self, p: Format) -> bool:
        """Whether a parameter in this format is the copy of a float32 one."""
        return self.master == "float32" and p.is_short

    def has_remainder(self, p: Format) -> bool:
        """Whether the other 16 bits of a parameter in this format rest beside it."""
        return self.master == "remainder" and p is BFLOAT16

    def slot_format(self, p: Format) -> Format:
        """What the slots of a parameter in this format rest in."""
        return format_of(p.compute) if self.moments is None else FORMATS[self.moments]


def columns(opt: Optimizer) -> list[str]:
    """What each of a leaf's streams behind p and g is called."""
    return [*(slot.name for slot in opt._kernel.slots), "ema", "copy_to", "remainder"]


def allocate(opt: Optimizer, copies: list[Array] | None) -> tuple[list[list[Array | None]], list[Array | None]]:
    """Every stream of every leaf behind p and g, and the masters, None where there is none.

    All are flat, in p's memory order, and one piece of memory per stream and dtype.
    """
    arrays, home, storage, slots = opt._arrays, opt._backend.home, opt._storage, opt._kernel.slots
    for name, p in zip(opt._structure.names, arrays, strict=True):
        storage.check(f"params{name}", format_of(p.dtype), describe(p))
        if copies is not None and storage.has_master(format_of(p.dtype)):
            raise ValueError(f"copy_to{name} is given, expected None with master='float32': params{name} is that copy")

    formats = [format_of(p.dtype) for p in arrays]

    def make(column: int, owners: Sequence[int], slot_format: Callable[[Format], Format]) -> None:
        for of_p in {formats[leaf] for leaf in owners}:
            here, kind = [leaf for leaf in owners if formats[leaf] is of_p], slot_format(of_p)
            sizes = [kind.length(arrays[leaf].size) for leaf in here]
            made = home.allocate_beside([arrays[leaf] for leaf in here], column, kind.dtype, sizes)
            for leaf, own in zip(here, made, strict=True):
                found[leaf][column] = own

    ema, copy, low, master = range(len(slots), len(slots) + 4)
    found: list[list[Array | None]] = [[None] * (master + 1) for _ in arrays]
    everyone = range(len(arrays))
    for column, slot in enumerate(slots):
        owners = [leaf for group in opt.groups for leaf in group._leaves if has(group._rule, slot)]
        make(column, owners, storage.slot_format)
    make(ema, everyone if opt._chores.ema_decay is not None else (), lambda p: format_of(p.compute))
    make(low, [leaf for leaf in everyone if storage.has_remainder(formats[leaf])], lambda p: REMAINDER)
    make(master, [leaf for leaf in everyone if storage.has_master(formats[leaf])], lambda p: format_of(p.compute))
    for group in opt.groups:
        initial = group._rule.initial()
        for leaf in group._leaves:
            own = found[leaf]
            for slot, values in zip(slots, own, strict=False):
                if values is not None and slot.name in initial:
                    start = np.full(arrays[leaf].size, initial[slot.name], compute(arrays[leaf].dtype))
                    home.write(values, encoded(start, values, slot))
            for copied in (own[ema], own[master]):
                if copied is not None:
                    copied[:] = flat(arrays[leaf])
            own[copy] = flat(arrays[leaf]) if own[master] is not None else None if copies is None else copies[leaf]
    return [own[:master] for own in found], [own[master] for own in found]


def has(rule: Any, slot: Slot) -> bool:
    """Whether a rule's leaves have this slot."""
    return not slot.optional or slot.name in rule.options


def views(opt: Optimizer, leaf: int) -> dict[str, Array]:
    """The state of one leaf by name, in its parameter's shape and memory order.

    A slot of 8 bits is two arrays: its codes (blocks, 1024), and under name_scales (blocks, 16) float32; see order.
    """
    found: dict[str, Array] = {}
    for name, values in zip(columns(opt), opt._slots[leaf], strict=True):
        if values is not None and name != "copy_to":
            if format_of(values.dtype).block > 1:
                found[name], found[f"{name}_scales"] = codes_and_scales(values)
            else:
                found[name] = shaped_like(values, opt._arrays[leaf])
    if (master := opt._masters[leaf]) is not None:
        found["master"] = shaped_like(master, opt._arrays[leaf])
    return found


def order(opt: Optimizer, leaf: int) -> dict[str, list[int]]:
    """{"order": a leaf's axes from the slowest in memory to the fastest}, which blocks of 8 bits follow, if any."""
    coded = any(x is not None and format_of(x.dtype).block > 1 for x in opt._slots[leaf])
    return {"order": list(memory_order(opt._arrays[leaf]))} if coded else {}


def in_order(opt: Optimizer, leaf: int, own: dict[str, Any]) -> dict[str, Any]:
    """A leaf's state with its blocks of 8 bits in p's order in memory, if they are in another."""
    p = opt._arrays[leaf]
    before, now = ([axis for axis in axes if p.shape[axis] > 1] for axes in (own.get("order", ()), memory_order(p)))
    if "order" not in own or before == now:
        return own
    found, shape = dict(own), [p.shape[axis] for axis in own["order"]]
    for slot in opt._kernel.slots:
        if f"{slot.name}_scales" in own:
            coded = np.empty(CODES.length(p.size), CODES.dtype)
            for home, given in zip(codes_and_scales(coded), (own[slot.name], own[f"{slot.name}_scales"]), strict=True):
                home[...] = given
            values = CODES.decode(coded, slot, p.size).reshape(shape).transpose(np.argsort(own["order"]))
            coded = CODES.encode(values.transpose(memory_order(p)).reshape(-1), slot, None)
            found[slot.name], found[f"{slot.name}_scales"] = codes_and_scales(coded)
    return found


def moments(opt: Optimizer) -> dict[str, dict[str, Array]]:
    """See Optimizer.moments."""
    opt.catch_up()
    found: dict[str, dict[str, Array]] = {}
    for leaf, name in enumerate(opt._structure.names):
        p, own = opt._arrays[leaf], {}
        for slot, values in zip(opt._kernel.slots, opt._slots[leaf], strict=False):
            if values is not None:
                wide = values
                if format_of(values.dtype) is not format_of(compute(p.dtype)):
                    with np.errstate(all="ignore"), opt._plan.on_stream():
                        home = opt._backend.home
                        wide = home.put(decoded(home.get(values), slot, p.size, compute(p.dtype)))
                own[slot.name] = shaped_like(wide, p)
        found[f"params{name}"] = own
    return found


def convert(opt: Optimizer, to: str | None) -> None:
    """See Optimizer.convert: the optimizer is built anew, then takes its own state, in the other format."""
    storage = Storage(moments=to, master=opt._storage.master, index_offset=opt._storage.index_offset)
    for name, p in zip(opt._structure.names, opt._arrays, strict=True):
        storage.check(f"params{name}", format_of(p.dtype), describe(p))
    for leaf in range(len(opt._arrays)):
        opt._plan._check_unmoved(leaf)
    home, known, kept = opt._backend.home, moments(opt), opt.__getstate__()
    for p, (name, own) in zip(opt._arrays, known.items(), strict=True):
        state, kind = kept["state"]["leaves"][name], storage.slot_format(format_of(p.dtype))
        for slot in opt._kernel.slots:
            if slot.name in own:
                state.pop(f"{slot.name}_scales", None)
                state.pop("order", None)
                with opt._plan.on_stream():
                    values = home.get(flat(own[slot.name]))  # type: ignore[arg-type]
                with np.errstate(all="ignore"):
                    short = kind.encode(values, slot, None)
                if kind.block > 1:
                    state[slot.name], state[f"{slot.name}_scales"] = (x.copy() for x in codes_and_scales(short))
                else:
                    state[slot.name] = shaped_like(short, p).copy(order="K")
        if any(f"{name}_scales" in state for name in own):
            state["order"] = list(memory_order(p))
    other = type(opt).__new__(type(opt))
    other.__setstate__({**kept, "storage": storage})
    opt.__dict__ = other.__dict__


def refresh_master(opt: Optimizer) -> None:
    """See Optimizer.refresh_master."""
    opt._check_idle()
    opt.catch_up()
    with opt._plan.on_stream():
        for p, own, master in zip(opt._arrays, opt._slots, opt._masters, strict=True):
            if master is not None:
                master[:] = flat(p)
            if own[-1] is not None:
                own[-1][:] = 0


def bytes_per_step(opt: Optimizer) -> int:
    """See Optimizer.bytes_per_step."""
    chores, total = opt._chores, 0
    first = bool(chores.max_norm or chores.skip_nonfinite or any(group.max_norm for group in opt.groups))
    for p, own, master in zip(opt._arrays, opt._slots, opt._masters, strict=True):
        *both, copy, low = own
        total += 2 * sum(x.nbytes for x in (*both, low, p if master is None else master) if x is not None)
        total += p.nbytes * (1 + first + chores.zero_grads) + (0 if copy is None else copy.nbytes)
    return total
