"""Lets the state follow the rows of a leaf that grows or shrinks along its first axis."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from fastadam.arrays.host import Array, Host, describe, shaped_like
from fastadam.group import Group
from fastadam.kernels.formats import encoded, format_of
from fastadam.state.slots import Leaves, State


def accept_rows(name: str, old: Any, new: Any, rows: Any) -> Array:
    """Return the row of `old` that each row of `new` continues: (len(new),) int64, -1 for a row that begins anew.

    rows: as Optimizer.replace takes it. Raises IndexError, TypeError, ValueError that name what does not fit.
    """
    if not old.ndim or new.ndim != old.ndim or new.shape[1:] != old.shape[1:] or new.dtype != old.dtype:
        raise ValueError(
            f"array is {describe(new)}, {name} is {describe(old)}: expected its dtype, and any number of its rows"
        )
    given = np.arange(len(new)) if rows is None else np.asarray(rows)
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"rows is {describe(given)}, expected integers")
    if given.shape != (len(new),):
        raise ValueError(f"rows is {describe(given)}, expected one index for each of the {len(new)} rows of array")
    index = given.astype(np.int64)
    if len(bad := np.flatnonzero(index < -1)):
        raise IndexError(f"rows[{bad[0]}] is {index[bad[0]]}, expected -1 for a row that begins anew, or an index")
    return np.where(index < len(old), index, -1)


def take_rows(target: Any, source: Any, rows: Any, bits: tuple[Any, Any] | None = None) -> None:
    """Let each row of target that continues one of source have its values: arrays, or tensors of PyTorch.

    rows: see accept_rows. bits: None, or for what a parameter lacks, its remainder or master, the bits of the old and
    the new parameter: an element is taken only where they are equal, since beside others it means nothing.
    """
    continued = rows >= 0
    of = rows[continued]
    values = source[of]
    if bits is not None:
        old, new = bits
        anew = old[of] != new[continued]
        values[anew] = target[continued][anew]
    target[continued] = values


def follow(
    home: Host, x: Array, old: Array, y: Array, new: Array, rows: Array, bits: tuple[Array, Array] | None = None
) -> None:
    """Let a flat stream y of `new` have the rows that the stream x of `old` has, but where rows says -1; see
    take_rows."""
    values = home.get(y)
    take_rows(shaped_like(values, new), shaped_like(home.get(x), old), rows, bits)
    home.write(y, values)


def with_leaf(state: State, leaf: int, owner: Any, new: Array, rows: Array, copied: Array | None) -> State:
    """Return a state in which `new` stands in a leaf's place, its memory following the rows, and which shares the rest.

    owner: what the user gave for `new`. rows: see accept_rows. copied: copy_to's flat array.
    """
    group = next(group for group in state.groups if leaf in group.leaves)
    old, before, home = state.params[leaf], state.streams[leaf], state.home
    groups = [Group(group.rule, group.where, range(1), group.dtypes, lacking=group.lacking)]
    leaves = Leaves([state.paths[leaf]], [owner], [new], None if copied is None else [copied])
    alone = State(state.kernel, groups, leaves, home, state.storage, before.ema is not None)
    after = alone.streams[0]
    with np.errstate(all="ignore"), alone.on_stream():
        for slot, x, y in zip(state.kernel.slots, before.slots, after.slots, strict=True):
            if x is not None and format_of(x.dtype).block == 1:
                follow(home, x, old, y, new, rows)
            elif x is not None:
                values = alone.values(y, slot, new)
                follow(Host(), state.values(x, slot, old), old, values, new, rows)
                home.write(y, encoded(values, y, slot))
        if before.ema is not None:
            follow(home, before.ema, old, after.ema, new, rows)
        for x, y in ((before.low, after.low), (before.master, after.master)):
            if x is not None:
                follow(home, x, old, y, new, rows, (home.get(old).view(np.uint16), home.get(new).view(np.uint16)))
    other = copy(state)
    for name, value in {"params": new, "owners": owner, "streams": after}.items():
        of_leaves = list(getattr(state, name))
        of_leaves[leaf] = value
        setattr(other, name, of_leaves)
    other.streams = [replace(streams, g=None) for streams in other.streams]
    return other
