"""Storage: what each stream of an optimizer rests in, and the memory that it gets.

The arithmetic is float32, or float64 for float64 parameters; kernels/formats.py says how the formats are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays.host import Array, describe, flat, memory_order, shaped_like
from fastadam.kernels.formats import (
    BYTES,
    blocks,
    codes_and_scales,
    compute,
    decode_8bit,
    decoded,
    encode_8bit,
    encoded,
    is_signed,
)

if TYPE_CHECKING:
    from fastadam.kernels.contract import Slot
    from fastadam.optimizer import Optimizer

MOMENTS = "float64", "float32", "bfloat16", "8bit"
MASTERS = "remainder", "float32"
SHORT = "bfloat16", "float16"


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

    def check(self, name: str, kind: str, here: str) -> None:
        """Refuse what does not fit a parameter of this dtype, naming it; here: what errors call it."""
        double = kind == "float64"
        if self.moments is not None and (self.moments == "float64") != double:
            fits = "'float64'" if double else "'float32', 'bfloat16', '8bit'"
            raise ValueError(f"moments is {self.moments!r}, {name} is {here}: expected None or {fits}")
        if self.master == "remainder" and kind == "float16":
            raise ValueError(f"master is 'remainder', {name} is {here}: expected None or 'float32'")

    def has_master(self, kind: str) -> bool:
        """Whether a parameter of this dtype is the copy of a float32 one."""
        return self.master == "float32" and kind in SHORT

    def has_remainder(self, kind: str) -> bool:
        """Whether the other 16 bits of a parameter of this dtype rest beside it."""
        return self.master == "remainder" and kind == "bfloat16"

    def slot_dtype(self, p: Array) -> Any:
        """What a parameter's slots rest in; uint8 for blocks of 8 bits."""
        if self.moments is None or self.moments in ("float32", "float64"):
            return compute(p.dtype)
        return np.dtype(np.uint8) if self.moments == "8bit" else bfloat16()


def bfloat16() -> Any:
    """The dtype, which comes from ml_dtypes."""
    try:
        from ml_dtypes import bfloat16 as found
    except ImportError as error:
        raise ImportError(f"bfloat16 needs ml_dtypes ({error}): pip install ml_dtypes") from None
    return np.dtype(found)


def length(n: int, dtype: Any) -> int:
    """How many numbers of a dtype n elements of a slot take."""
    return blocks(n) * BYTES if dtype == np.uint8 else n


def columns(opt: Optimizer) -> list[str]:
    """What each of a leaf's streams behind p and g is called."""
    return [*(slot.name for slot in opt._kernel.slots), "ema", "copy_to", "remainder"]


def allocate(opt: Optimizer, copies: list[Array] | None) -> tuple[list[list[Array | None]], list[Array | None]]:
    """Every stream of every leaf behind p and g, and the masters, None where there is none.

    All are flat, in p's memory order, and one piece of memory per stream and dtype.
    """
    arrays, home, storage, slots = opt._arrays, opt._backend.home, opt._storage, opt._kernel.slots
    for name, p in zip(opt._structure.names, arrays, strict=True):
        storage.check(f"params{name}", p.dtype.name, describe(p))
        if copies is not None and storage.has_master(p.dtype.name):
            raise ValueError(f"copy_to{name} is given, expected None with master='float32': params{name} is that copy")

    def make(column: int, owners: Sequence[int], dtype_of: Any) -> None:
        for dtype in {arrays[leaf].dtype for leaf in owners}:
            here = [leaf for leaf in owners if arrays[leaf].dtype == dtype]
            kind = dtype_of(arrays[here[0]])
            sizes = [length(arrays[leaf].size, kind) for leaf in here]
            made = home.allocate_beside([arrays[leaf] for leaf in here], column, kind, sizes)
            for leaf, own in zip(here, made, strict=True):
                found[leaf][column] = own

    ema, copy, low, master = range(len(slots), len(slots) + 4)
    found: list[list[Array | None]] = [[None] * (master + 1) for _ in arrays]
    everyone = range(len(arrays))
    for column, slot in enumerate(slots):
        owners = [leaf for group in opt.groups for leaf in group._leaves if has(group._rule, slot)]
        make(column, owners, storage.slot_dtype)
    make(ema, everyone if opt._chores.ema_decay is not None else (), lambda p: compute(p.dtype))
    make(
        low, [leaf for leaf in everyone if storage.has_remainder(arrays[leaf].dtype.name)], lambda p: np.dtype(np.int16)
    )
    make(master, [leaf for leaf in everyone if storage.has_master(arrays[leaf].dtype.name)], lambda p: compute(p.dtype))
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
            if values.dtype == np.uint8:
                found[name], found[f"{name}_scales"] = codes_and_scales(values)
            else:
                found[name] = shaped_like(values, opt._arrays[leaf])
    if (master := opt._masters[leaf]) is not None:
        found["master"] = shaped_like(master, opt._arrays[leaf])
    return found


def order(opt: Optimizer, leaf: int) -> dict[str, list[int]]:
    """{"order": a leaf's axes from the slowest in memory to the fastest}, which blocks of 8 bits follow, if any."""
    coded = any(x is not None and x.dtype == np.uint8 for x in opt._slots[leaf])
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
            coded = np.empty(blocks(p.size) * BYTES, np.uint8)
            for home, given in zip(codes_and_scales(coded), (own[slot.name], own[f"{slot.name}_scales"]), strict=True):
                home[...] = given
            values = decode_8bit(coded, is_signed(slot), p.size).reshape(shape).transpose(np.argsort(own["order"]))
            coded = encode_8bit(values.transpose(memory_order(p)).reshape(-1), is_signed(slot))
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
                if values.dtype != compute(p.dtype):
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
        storage.check(f"params{name}", p.dtype.name, describe(p))
    home, known, kept = opt._backend.home, moments(opt), opt.__getstate__()
    for p, (name, own) in zip(opt._arrays, known.items(), strict=True):
        state, like = kept["state"]["leaves"][name], np.empty(0, storage.slot_dtype(p))
        for slot in opt._kernel.slots:
            if slot.name in own:
                state.pop(f"{slot.name}_scales", None)
                state.pop("order", None)
                with opt._plan.on_stream():
                    values = home.get(flat(own[slot.name]))  # type: ignore[arg-type]
                with np.errstate(all="ignore"):
                    short = encoded(values, like, slot)
                if like.dtype == np.uint8:
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
