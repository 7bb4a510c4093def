"""Parallel code of another library, which Numba keeps in $NUMBA_CACHE_DIR: to compile it takes longer than all else."""

import numba
from numba import types

_threads = types.ExternalFunction("get_num_threads", types.int32())  # by address, as numba's own, nothing is kept


@numba.njit(["void(float64[::1])"], parallel=True, nogil=True, cache=True)
def increment(x):
    for i in numba.prange(x.size):
        x[i] += 1


@numba.njit(["void(int64[::1])"], parallel=True, cache=True)
def count_threads(seen):
    """Write into each place how many threads may work there."""
    for i in numba.prange(seen.size):
        seen[i] = _threads()
