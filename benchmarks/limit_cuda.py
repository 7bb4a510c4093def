"""Walks the streams of limit.py on a GPU, in flat arrays, all loads of a thread before its arithmetic.

How many threads a block has, how wide an access is and how many of each stream a thread has under way is tried out on
the arrays in question, and the quickest is the limit: an optimizer that merely chose better would be above it else.
"""

from functools import cache
from itertools import product

import numpy as np

THREADS, BYTES, AHEAD = (128, 256, 512, 1024), (8, 16), (1, 2, 4)  # of a block, of an access, accesses of a stream
TRIES = 3  # launches of each, after one that is not timed; the quickest counts

CODE = """
typedef unsigned long long u64;
typedef long long i64;

struct Streams { u64 at[STREAMS]; i64 n; double c; };  // g, p, slots
struct alignas(BYTES) Vector { REAL at[BYTES / sizeof(REAL)]; };

__device__ __forceinline__ REAL* stream(const Streams& all, int k) {
    return static_cast<REAL*>(__cvta_global_to_generic(all.at[k]));
}

__device__ __forceinline__ void walk_block(const Streams& all, i64 block, int thread, int threads) {
    const int width = BYTES / sizeof(REAL);
    const i64 stride = static_cast<i64>(threads) * width, first = block * AHEAD * stride + thread * width;
    const REAL c = static_cast<REAL>(all.c);
    if (first + (AHEAD - 1) * stride + width <= all.n) {
        Vector x[STREAMS][AHEAD];
#pragma unroll
        for (int k = 0; k < STREAMS; ++k)
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) x[k][a] = *reinterpret_cast<Vector*>(stream(all, k) + first + a * stride);
#pragma unroll
        for (int k = 1; k < STREAMS; ++k)
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
                for (int j = 0; j < width; ++j) x[k][a].at[j] += c * x[0][a].at[j];
                *reinterpret_cast<Vector*>(stream(all, k) + first + a * stride) = x[k][a];
            }
    } else {
        for (int a = 0; a < AHEAD; ++a)
            for (i64 i = first + a * stride; i < first + a * stride + width && i < all.n; ++i)
                for (int k = 1; k < STREAMS; ++k) stream(all, k)[i] += c * stream(all, 0)[i];
    }
}

#ifndef WALK  // tests have one of their own, which loops over blocks and threads on the host
#define WALK \\
    extern "C" __global__ void walk(const __grid_constant__ Streams all) { \\
        walk_block(all, blockIdx.x, threadIdx.x, blockDim.x); \\
    }
#endif
WALK
"""


def source(dtype, streams, width, ahead):
    """Return the text for so many streams of that dtype, g among them, and accesses of so many bytes."""
    real = {"float32": "float", "float64": "double"}[dtype.name]
    values = {"STREAMS": streams, "BYTES": width, "AHEAD": ahead, "REAL": real}
    return "".join(f"#define {name} {value}\n" for name, value in values.items()) + CODE


@cache
def kernel(dtype, streams, width, ahead, device):
    """Return the compiled walk for a device."""
    import cupy

    return cupy.RawModule(code=source(dtype, streams, width, ahead), options=("-std=c++17",)).get_function("walk")


class LimitWalk:
    """Adds c·g to p, and the same to every slot, in flat arrays of one dtype that CuPy has allocated."""

    def __init__(self, p, slots, threads, width, ahead):
        import cupy

        self._streams, self._threads = (p, *slots), threads
        self._blocks = -(-p.size // (threads * ahead * width // p.itemsize))
        self._kernel = kernel(p.dtype, 2 + len(slots), width, ahead, cupy.cuda.Device().id)
        self._table = np.zeros((), [("at", np.uint64, (2 + len(slots),)), ("n", np.int64), ("c", np.float64)])
        self._table["at"][1:], self._table["n"] = [x.data.ptr for x in self._streams], p.size

    def __call__(self, g, c):
        self._table["at"][0], self._table["c"] = g.data.ptr, c
        self._kernel((self._blocks,), (self._threads,), (self._table,))


def quickest(p, slots, g):
    """Return the LimitWalk that was quickest on these arrays, which stay as they are; and what it chose, in words."""
    tried = []
    for shape in product(THREADS, BYTES, AHEAD):
        walk = LimitWalk(p, slots, *shape)
        tried.append((_seconds(walk, g), shape, walk))
    _, (threads, width, ahead), walk = min(tried, key=lambda one: one[0])
    return walk, f"{threads} threads a block, {ahead} x {width} bytes a thread: the quickest of {len(tried)}"


def _seconds(walk, g):
    import cupy

    times = []
    for _ in range(1 + TRIES):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        walk(g, 0.0)  # the same traffic, and everything stays as it is
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end))
    return min(times[1:])
