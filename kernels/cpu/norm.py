"""What was noted of every block, added up for each leaf: native, because a model has hundreds of leaves."""

from numba import njit

from ..chores import BLOCK
from .cache import keep


def _sums(chunks, notes, row, found):
    """found[leaf] <- the notes of its blocks, in pairs of neighbours; see fastadam.kernels.reference.sums.

    The notes are gathered at the start of `notes`, and lost.
    """
    places, width = notes.reshape(-1, notes.shape[2]), notes.shape[1]
    k = 0
    while k < chunks.shape[0]:
        leaf, count = chunks[k, 0], 0
        while k < chunks.shape[0] and chunks[k, 0] == leaf:
            for b in range((chunks[k, 2] + BLOCK - 1) // BLOCK):
                for j in range(notes.shape[2]):
                    places[count, j] = places[k * width + b, j]
                count += 1
            k += 1
        if row[leaf] < 0:
            continue
        while count > 1:
            half = count // 2
            for i in range(half):
                for j in range(notes.shape[2] - 1):
                    places[i, j] = places[2 * i, j] + places[2 * i + 1, j]
                a, b = places[2 * i, -1], places[2 * i + 1, -1]
                places[i, -1] = a if (a > b) | (a != a) else b
            if count % 2:
                for j in range(notes.shape[2]):
                    places[half, j] = places[count - 1, j]
            count = half + count % 2
        for j in range(notes.shape[2]):
            found[leaf, j] = places[0, j]


sums = keep(njit(error_model="numpy", nogil=True)(_sums), "sums")
