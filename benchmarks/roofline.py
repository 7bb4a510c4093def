"""The limit: Adam's streams under trivial arithmetic, on the same kind of buffers.

    p <- p + c·g,   m <- m + c·g,   v <- v + c·g

Four reads and three writes per parameter, as Adam has, so 28 bytes in float32; what is left of a step's time above this
is the optimizer's own. It shares no code with the library: a flaw of the library's walk must not lower the limit too.
Four arrays are few enough for LLVM to check at run time, per chunk, that they do not overlap; so this vectorises as is.
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.extending import intrinsic

CHUNK = 1 << 13  # elements; with one chunk table for all leaves, as the library has
SERIAL = 1 << 15  # parameters up to which waking a second thread costs more than it saves


@intrinsic
def pointer(context, address):
    """A uint64 as a float32*."""
    kind = types.CPointer(types.float32)
    return kind(types.uint64), lambda cx, builder, sig, args: builder.inttoptr(args[0], cx.get_value_type(kind))


@intrinsic
def take(context, ahead, worker):
    """ahead[worker, 0], before adding 1 to it, atomically."""

    def generate(cx, builder, sig, args):
        array = cx.make_array(sig.args[0])(cx, builder, args[0])
        place = builder.gep(array.data, [builder.mul(args[1], builder.extract_value(array.shape, 1))])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(ahead, types.int64), generate


@njit(error_model="numpy", nogil=True, cache=True)
def add(table, leaf, first, n, c):
    """One chunk: n elements of one leaf from `first` on."""
    at = np.uint64(4 * first)
    p = carray(pointer(table[leaf, 0] + at), (n,))
    g = carray(pointer(table[leaf, 1] + at), (n,))
    m = carray(pointer(table[leaf, 2] + at), (n,))
    v = carray(pointer(table[leaf, 3] + at), (n,))
    for i in range(n):
        x = c * g[i]
        p[i] += x
        m[i] += x
        v[i] += x


@njit(error_model="numpy", nogil=True, cache=True, parallel=True)
def parallel(table, chunks, ahead, c):
    """Every worker does its own share, always the same, then what others have left of theirs."""
    workers = ahead.shape[0]
    for w in range(workers):
        ahead[w, 0] = w * chunks.shape[0] // workers
    for w in prange(workers):
        for turn in range(workers):
            owner = (w + turn) % workers
            k = take(ahead, owner)
            while k < (owner + 1) * chunks.shape[0] // workers:
                add(table, chunks[k, 0], chunks[k, 1], chunks[k, 2], c)
                k = take(ahead, owner)


@njit(error_model="numpy", nogil=True, cache=True)
def serial(table, chunks, ahead, c):
    for k in range(chunks.shape[0]):
        add(table, chunks[k, 0], chunks[k, 1], chunks[k, 2], c)


def plan(leaves, workers):
    """leaves: per leaf its p, g, m, v. Returns the table of addresses (leaves, 4), the chunks (leaf, first, n), and a
    line of cache for each worker's progress."""
    table = np.array([[array.ctypes.data for array in arrays] for arrays in leaves], np.uint64)
    sizes = [arrays[0].size for arrays in leaves]
    chunks = [(leaf, a, min(CHUNK, n - a)) for leaf, n in enumerate(sizes) for a in range(0, n, CHUNK)]
    return table, np.array(chunks, np.int64), np.zeros((workers, 8), np.int64)
