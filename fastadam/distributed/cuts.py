"""Cuts: who owns which elements of a flat array that is exchanged in buckets."""

from __future__ import annotations

from fastadam.kernels.chores import BLOCK

SPAN = 1 << 19  # elements whose squares one block of a GPU adds up: pieces of whole ones leave whole nodes


def cuts(n: int, ranks: int, bucket: int, grain: int = BLOCK) -> list[list[int]]:
    """Return per bucket the ranks + 1 places where the ranks' pieces begin and the last ends, in elements.

    Every piece but the one that ends the array is a multiple of the grain, itself one of 1,024, which the order of
    summation and blocks of 8 bits ask for: so is a bucket over the ranks, which is rounded up. At least one bucket,
    which is empty where n is 0.

    >>> cuts(5000, 2, 4096)
    [[0, 2048, 4096], [4096, 5000, 5000]]
    """
    bucket, places = -(-bucket // (ranks * grain)) * ranks * grain, []
    for first in range(0, max(n, 1), bucket):
        size = min(bucket, n - first)
        piece = -(-size // (ranks * grain)) * grain
        places.append([first + min(k * piece, size) for k in range(ranks + 1)])
    return places
