"""Plans the steps of leaves of which only addresses are known, such as torch's tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastadam.host.compiled import G, NumbaPlan
from fastadam.kernels.contract import Kernel
from fastadam.kernels.streams import Columns
from fastadam.plans.chores import Chores
from fastadam.plans.streams import Streams
from fastadam.plans.table import Table


class AddressPlan(NumbaPlan):
    """Steps leaves of which only sizes, formats and addresses are known: whoever owns the memory keeps it, and checks
    it.

    sizes: (leaves,) elements. formats: per leaf, those of its streams; g's is p's. The other arguments:
    see Plan.
    """

    def __init__(
        self, kernel: Kernel, names: Sequence[Streams], sizes: Sequence[int], formats: Sequence[Streams], table: Table,
        chores: Chores, firsts: Sequence[int],
    ) -> None:  # fmt: skip
        self._given, self._resting = sizes, formats
        unknown = [of_leaf.map(lambda _: np.empty(0)) for of_leaf in formats]
        super().__init__(kernel, names, [x.p for x in unknown], unknown, table, chores, firsts)
        self.gradients = self._table[: len(sizes), G]  # of no meaning for leaves whose row is -1

    def _formats_of(self, leaf: int, g_dtype: Any) -> Columns:
        return self._resting[leaf].columns._replace(g=self._resting[leaf].p)

    def _sizes(self) -> Sequence[int]:
        return self._given

    def put(self, leaf: int, addresses: Streams) -> None:
        """Take the addresses of those of a leaf's streams that are there."""
        for column, address in enumerate(addresses.columns.row):
            if address is not None:
                self._table[leaf, column] = address

    def put_gradients(self, addresses: Any) -> None:
        """Fill `gradients`, unless that is what is given."""
        if addresses is not self.gradients:
            self.gradients[:] = addresses
