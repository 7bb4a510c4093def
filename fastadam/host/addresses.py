"""The plan of leaves of which only addresses are known, such as torch's tensors."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from fastadam.host.compiled import NumbaPlan
from fastadam.kernels.contract import Kernel
from fastadam.kernels.formats import FLOAT32, Format
from fastadam.plans.chores import Chores
from fastadam.plans.table import Table


class AddressPlan(NumbaPlan):
    """Leaves of which only sizes, formats and addresses are known: whoever owns the memory keeps it, and checks it.

    sizes: (leaves,) elements. formats: per leaf, those of p, the slots, the average, the copy and the remainder; None
    for an absent one. mastered: per leaf, whether p is the copy of a float32 master, which is then stream 0.
    first: the index of the first element of all. The other arguments: see Plan.
    """

    def __init__(
        self, kernel: Kernel, names: Sequence[Sequence[str]], sizes: Sequence[int],
        formats: Sequence[Sequence[Format | None]], mastered: Sequence[bool], first: int,
        table: Table, chores: Chores,
    ) -> None:  # fmt: skip
        self._given = sizes
        self._resting = [
            (FLOAT32 if has_master else p, p, *others)
            for (p, *others), has_master in zip(formats, mastered, strict=True)
        ]
        empty = [[None if format is None else np.empty(0) for format in of_leaf] for of_leaf in formats]
        firsts = list(accumulate(sizes, initial=first))[:-1]
        params, slots = [p for p, *_ in empty], [own for _, *own in empty]
        masters = [np.empty(0) if has_master else None for has_master in mastered]
        super().__init__(kernel, names, params, slots, table, chores, firsts, masters)
        self.gradients = self._table[:-1, 1]  # where each leaf's begins; of no meaning for leaves whose row is -1

    def _formats_of(self, leaf: int, g_dtype: Any) -> tuple[Format | None, ...]:
        return self._resting[leaf]

    def _sizes(self) -> Sequence[int]:
        return self._given

    def put(self, leaf: int, addresses: dict[int, int]) -> None:
        """Where some of a leaf's streams begin, by their place among p, g, the slots and what follows."""
        for column, address in addresses.items():
            self._table[leaf, column] = address

    def put_gradients(self, addresses: Any) -> None:
        """Fill `gradients`, unless that is what is given."""
        if addresses is not self.gradients:
            self.gradients[:] = addresses
