"""This step's coefficients: which row of the table each leaf takes, and what stands in it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.kernels.formats import key

if TYPE_CHECKING:
    from fastadam.optimizer import Optimizer


def allocate(opt: Optimizer, width: int) -> None:
    """The table, of rows of `width` numbers, and the counts: see fastadam.plans.plan.Plan."""
    n = len(opt._structure.leaves)
    opt._row = np.zeros(n + 1, np.int64)
    opt._rows = np.zeros((max(n, len(opt.groups), 1), width))
    opt._format, opt._bytes = struct.Struct(f"{width}d"), opt._rows.data
    opt._counts = np.zeros(n + 1, np.int64)
    opt._carried = np.tile(np.array(list(opt.rule.carried.values()), np.float64), (n + 1, 1))
    opt._row_of_groups = np.zeros(n + 1, np.int64)
    for k, group in enumerate(opt.groups):
        opt._row_of_groups[group._leaves.start : group._leaves.stop] = k
    opt._regular = False  # whether `row` now says that every group has one row
    opt._even = True  # whether all leaves of each group have taken the same steps


def _fill(opt: Optimizer, row: int, numbers: tuple[float, ...], count: int) -> None:
    """rows[row] = numbers, in 0.3 µs instead of NumPy's 1."""
    drawn = float(key(opt._seed, count)) if opt._drawing else 0.0
    opt._format.pack_into(opt._bytes, row * opt._format.size, *numbers, *opt._extra[:-1], drawn)


def one_per_group(opt: Optimizer, t: int, scale: float) -> None:
    """This step's coefficients where every leaf has a gradient and all leaves of a group have one count."""
    if not opt._plain:
        opt._extra = opt._chores.numbers(t)
    for k, group in enumerate(opt.groups):
        lr, first = group.lr_at(t), group._leaves.start
        if group._leaves:
            carried = opt._carried[first].tolist() if opt.rule.carried else ()
            count = opt._counts.item(first) + 1
            _fill(opt, k, group.coefficients_at(count, lr, scale, *carried), count)
    if not opt._regular:
        opt._row[:] = opt._row_of_groups
        opt._regular = True


def one_per_count(opt: Optimizer, live: list[bool], t: int, scale: float) -> None:
    """This step's coefficients in general: a row for every group and count, -1 for leaves without a gradient."""
    opt._regular = False
    if not opt._plain:
        opt._extra = opt._chores.numbers(t)
    opt._even = opt._even and all(len({live[leaf] for leaf in group._leaves}) <= 1 for group in opt.groups)
    row, used = np.full(len(live) + 1, -1), 0
    row[-1] = 0
    for group in opt.groups:
        lr = group.lr_at(t)
        known: dict[Any, int] = {}
        for leaf in group._leaves:
            if live[leaf]:
                count, carried = opt._counts.item(leaf), opt._carried[leaf].tolist()
                if (count, *carried) not in known:
                    known[count, *carried] = used
                    _fill(opt, used, group.coefficients_at(count + 1, lr, scale, *carried), count + 1)
                    used += 1
                row[leaf] = known[count, *carried]
    opt._row[:] = row


def notice_counts(opt: Optimizer) -> None:
    """After counts were set from outside: see whether each group still has one row."""
    histories = [(n, *carried) for n, carried in zip(opt._counts.tolist(), opt._carried.tolist(), strict=True)]
    opt._even = all(len({histories[leaf] for leaf in group._leaves}) <= 1 for group in opt.groups)
