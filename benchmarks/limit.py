"""Walks a rule's streams under trivial arithmetic, on the same kind of buffers: the limit.

    p <- p + c·g,   and the same for every slot: m <- m + c·g,   v <- v + c·g

The reads and writes are the optimizer's, for Adam in float32 four and three, so 28 bytes; what is left of a step's time
above this is the optimizer's own. It shares no code with the library: a flaw of the library's walk must not lower the
limit too. Three streams and g are few enough for LLVM to check at run time, per chunk, that they do not overlap, so
this vectorises as is; further streams follow in loops of their own, which find g in the cache.
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

CHUNK = 1 << 13  # elements; with one chunk table for all leaves, as the library has
SERIAL = 1 << 15  # parameters up to which waking a second thread costs more than it saves


@intrinsic
def pointer(context, address, like):
    """Take a uint64 as a pointer to numbers of an array's type."""
    kind = types.CPointer(like.dtype)
    return kind(types.uint64, like), lambda cx, builder, sig, args: builder.inttoptr(args[0], cx.get_value_type(kind))


@intrinsic
def take(context, ahead, worker):
    """Return ahead[worker, 0] and add 1 to it, atomically."""

    def generate(cx, builder, sig, args):
        array = cx.make_array(sig.args[0])(cx, builder, args[0])
        place = builder.gep(array.data, [builder.mul(args[1], builder.extract_value(array.shape, 1))])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(ahead, types.int64), generate


@njit(error_model="numpy", nogil=True, cache=True)
def add(table, like, leaf, first, n, c):
    """Walk one chunk: n elements of one leaf from `first` on. Columns of the table: g, p, slots."""
    at, width = np.uint64(like.itemsize * first), table.shape[1]
    g = carray(pointer(table[leaf, 0] + at, like), (n,))
    k = 1
    while width - k >= 3:
        p = carray(pointer(table[leaf, k] + at, like), (n,))
        m = carray(pointer(table[leaf, k + 1] + at, like), (n,))
        v = carray(pointer(table[leaf, k + 2] + at, like), (n,))
        for i in range(n):
            x = c * g[i]
            p[i] += x
            m[i] += x
            v[i] += x
        k += 3
    if width - k == 2:
        p = carray(pointer(table[leaf, k] + at, like), (n,))
        m = carray(pointer(table[leaf, k + 1] + at, like), (n,))
        for i in range(n):
            x = c * g[i]
            p[i] += x
            m[i] += x
    if width - k == 1:
        p = carray(pointer(table[leaf, k] + at, like), (n,))
        for i in range(n):
            p[i] += c * g[i]


@njit(error_model="numpy", nogil=True, cache=True, parallel=True)
def parallel(table, like, chunks, ahead, c):
    """Let every worker do its own share, always the same, then what others have left of theirs."""
    workers = ahead.shape[0]
    for w in range(workers):
        ahead[w, 0] = w * chunks.shape[0] // workers
    for w in prange(workers):
        for turn in range(workers):
            owner = (w + turn) % workers
            k = take(ahead, owner)
            while k < (owner + 1) * chunks.shape[0] // workers:
                add(table, like, chunks[k, 0], chunks[k, 1], chunks[k, 2], c)
                k = take(ahead, owner)


@njit(error_model="numpy", nogil=True, cache=True)
def serial(table, like, chunks, ahead, c):
    """Do all chunks, one after the other."""
    for k in range(chunks.shape[0]):
        add(table, like, chunks[k, 0], chunks[k, 1], chunks[k, 2], c)


def walk_for(n, threads):
    """Return the walk for so many parameters and threads."""
    return serial if n <= SERIAL or threads == 1 else parallel


def plan(leaves, workers):
    """Lay out a walk over leaves, each its p, g and slots.

    Returns the table of addresses (leaves, streams), an empty array of their dtype, the chunks (leaf, first, n), and a
    line of cache for each worker's progress.
    """
    table = np.array([[x.ctypes.data for x in (g, p, *slots)] for p, g, *slots in leaves], np.uint64)
    sizes = [arrays[0].size for arrays in leaves]
    chunks = [(leaf, a, min(CHUNK, n - a)) for leaf, n in enumerate(sizes) for a in range(0, n, CHUNK)]
    like = np.empty(0, leaves[0][0].dtype)
    return table, like, np.array(chunks, np.int64), np.zeros((workers, 8), np.int64)


def beside(params, shift):
    """Return zeros like params in one buffer, `shift` bytes behind p in a page; large ones are on huge pages.

    A load that meets an older store at the same place of another page waits for it (4K aliasing): with m and v 48 bytes
    behind p, the limit took 1.9 times as long at 2^17 (2 Zen 4 cores).
    """
    raw = np.empty(sum(p.nbytes + 4096 for p in params) + 4096, np.uint8)
    raw.fill(0)
    base, at, out = raw.ctypes.data, 0, []
    for p in params:
        at += (p.ctypes.data + shift - base - at) % 4096
        out.append(raw[at : at + p.nbytes].view(p.dtype).reshape(p.shape))
        at += p.nbytes
    return out
