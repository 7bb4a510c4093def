"""Measured: what gradients are like before a step, as whoever has them found, in as many parts as processes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Self

from fastadam.kernels.chores import Node, sum_of_nodes


class LeafSums(NamedTuple):
    """Says what a whole leaf is to a method whose steps begin with sums over leaves; see Optimizer.join_sums.

    elements: how many it has. sums: over all of them, one for each of the kernel's SUMS.

    >>> fa.LeafSums(3, (3.0, 4.0)).elements
    3
    """

    elements: int
    sums: tuple[float, ...]


class Measured(NamedTuple):
    """Says what the gradient of one leaf, or of a part of it, was measured to be; before grad_scale.

    group:   the number of the leaf's group.
    nodes:   the sums of squares of its elements, as the largest nodes (level, place, sum) of the one order of summation
             over the leaf's blocks of 1,024 elements.
    largest: the largest magnitude; NaN or infinite where any element is.

    >>> opt = fa.SGD(np.ones(4, np.float32), max_norm=1.0)
    >>> opt.measure(np.full(4, 2.0, np.float32))
    {'': Measured(group=0, nodes=(Node(level=0, place=0, sum=16.0),), largest=2.0)}
    """

    group: int
    nodes: tuple[Node, ...] = ()
    largest: float = 0.0

    @property
    def squares(self) -> float:
        """Return the sum of squares of a whole leaf, to the bits of one process that measures all of it.

        Raises ValueError where parts are lacking.
        """
        return sum_of_nodes(self.nodes)

    def joined(self, others: Iterable[Self]) -> Self:
        """Return this part of a leaf and others of it, in any order, as one.

        >>> whole, part = (fa.SGD(np.ones(n, np.float32)) for n in (2048, 1024))
        >>> g = np.arange(2048, dtype=np.float32)
        >>> first, second = (part.measure(g[k : k + 1024], starts={"": k})[""] for k in (0, 1024))
        >>> second.joined([first]).squares == whole.measure(g)[""].squares
        True
        """
        parts = [self, *others]
        largest = max(parts, key=lambda part: math.inf if math.isnan(part.largest) else part.largest).largest
        nodes = tuple(node for part in parts for node in part.nodes)
        return self._replace(nodes=nodes, largest=math.nan if any(math.isnan(p.largest) for p in parts) else largest)
