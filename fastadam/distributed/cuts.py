"""Cuts: who owns which elements of a flat array that is exchanged in buckets."""

from __future__ import annotations

from fastadam.kernels.chores import BLOCK


def cuts(n: int, ranks: int, bucket: int, turn: int = 0) -> list[list[int]]:
    """Return per bucket the ranks + 1 places where the ranks' pieces begin and the last ends, in elements.

    Every piece but the one that ends the array is a multiple of 1,024, which the order of summation and blocks of 8
    bits ask for, wherever the array lies: so is a bucket over the ranks, which is rounded up. No two ranks' pieces of a
    bucket differ by more than one block of 1,024. turn: the rank that is the first to have one more, where not all have
    as many: of several arrays, as many as the blocks of those before. At least one bucket, empty where n is 0.

    >>> cuts(5000, 2, 4096)
    [[0, 2048, 4096], [4096, 5000, 5000]]
    >>> cuts(5000, 4, 8192), cuts(1000, 2, 8192, turn=1)
    ([[0, 2048, 3072, 4096, 5000]], [[0, 0, 1000]])
    """
    bucket, places = -(-bucket // (ranks * BLOCK)) * ranks * BLOCK, []
    for first in range(0, max(n, 1), bucket):
        size = min(bucket, n - first)
        each, longer = divmod(-(-size // BLOCK), ranks)
        cut = [first]
        for rank in range(ranks):
            cut.append(min(cut[-1] + (each + ((rank - turn) % ranks < longer)) * BLOCK, first + size))
        places.append(cut)
    return places
