"""Computes what rides along with a step: the elementwise chores, and the one order in which squares are summed.

As element functions, the first three run on NumPy arrays and on Numba's scalars alike.

A sum of squares, or another, over a leaf: blocks of BLOCK elements from the leaf's start (the last filled up with
zeros), in each LANES lanes, lane l over elements l, l + LANES, ...; lanes are added in halves, blocks and then leaves
in pairs of neighbours. Squares and sums are float64, so nothing of float32 overflows or vanishes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .contract import maximum

BLOCK, LANES = 1_024, 64
TAKEN = 6  # the place in a chunk of how many elements of p were taken over: see formats.followed
CHUNK_WORDS = TAKEN + 1
NOTES = 4  # per block: the squares of g, of the new p, of the update p_new - p; the largest magnitude


class Flags(NamedTuple):
    """Says which chores a walk is compiled with; the average and the copy show in the streams."""

    limit: bool = False  # clip the gradient by value
    clear: bool = False  # zero it once read
    stats: bool = False  # note down what Optimizer's `stats` reports
    summed: bool = False  # the kernel's sums, which are added up before the step
    summing: bool = False  # add them up: nothing is stored but notes
    several: bool = False  # the gradient comes as several arrays, which are added in their order


class Numbers(NamedTuple):
    """Holds what the chores must know of one step, behind the kernel's coefficients and what the rule carries."""

    max_value: float = 0.0  # the scaled gradient is clipped to ±max_value
    one_minus_decay: float = 0.0  # of the averaged parameters
    key: float = 0.0  # of the step's random bits, see formats.py; an integer below 2^52


def clip(g, limit):
    """Return g within ±limit; NaN stays NaN."""
    return maximum(-maximum(-g, -limit), -limit)


def average(ema, p, x):
    """Return the average after p has been seen."""
    return ema + x.one_minus_decay * (p - ema)


def in_pairs(values: Sequence[float]) -> float:
    """Return the sum of numbers by pairs of neighbours, pairs of pairs, ...; an odd one out goes along."""
    values = list(values)
    while len(values) > 1:
        odd = values[len(values) // 2 * 2 :]
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=False)] + odd
    return values[0] if values else 0.0


class Node(NamedTuple):
    """Is a sum of the tree that in_pairs adds up by: of numbers place·2^level to (place + 1)·2^level - 1, all there."""

    level: int
    place: int
    sum: float


def nodes(sums: Any, first: int = 0) -> list[Node]:
    """Return the largest whole nodes of in_pairs' tree over numbers first, first + 1, ... of a longer list.

    sums: these numbers, (n,) float64. At most 2·log2(n) nodes: whoever has those of all parts has the sum of all.
    """
    left: list[Node] = []
    right: list[Node] = []
    level, sums = 0, np.asarray(sums, np.float64)
    while n := len(sums):
        if first % 2:  # its left neighbour is in another part
            left.append(Node(level, first, sums.item(0)))
            first, sums, n = first + 1, sums[1:], n - 1
        if n % 2:  # so may be its right neighbour
            right.append(Node(level, first + n - 1, sums.item(n - 1)))
            sums = sums[: n - 1]
        level, first, sums = level + 1, first // 2, sums[::2] + sums[1::2]
    return left + right[::-1]


def sum_of_nodes(parts: Sequence[Node]) -> float:
    """Return what in_pairs gives over all numbers, from the nodes of all parts, in any order.

    Raises ValueError where nodes leave numbers out or overlap.
    """
    rest: list[Node] = []  # of falling levels
    end = 0
    for node in sorted(parts, key=lambda node: node.place << node.level):
        if node.place << node.level != end:
            raise ValueError(f"a node begins with block {node.place << node.level}, expected {end}: parts end to end")
        end += 1 << node.level
        while rest and rest[-1].level == node.level:
            node = Node(node.level + 1, node.place // 2, rest.pop().sum + node.sum)
        rest.append(node)
    total = rest.pop().sum if rest else 0.0
    while rest:
        total = rest.pop().sum + total
    return total


def sum_of_squares(x: Any) -> Any:
    """Return (blocks,) float64: the sum of squares of each block of a flat array."""
    wide = x.astype(np.float64)
    return block_sums(wide * wide)


def block_sums(x: Any) -> Any:
    """Return (blocks,) float64: the sum of each block of a flat array."""
    blocks = -(-x.size // BLOCK)
    padded = np.zeros((blocks, BLOCK // LANES, LANES))
    padded.reshape(-1)[: x.size] = x
    lanes = padded[:, 0]
    for k in range(1, BLOCK // LANES):
        lanes = lanes + padded[:, k]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def largest(x: Any) -> Any:
    """Return (blocks,) float64: the largest magnitude in each block; NaN where there is one."""
    blocks = -(-x.size // BLOCK)
    padded = np.zeros((blocks, BLOCK), x.dtype)
    padded.reshape(-1)[: x.size] = np.abs(x)
    return padded.max(axis=1, initial=0).astype(np.float64)
