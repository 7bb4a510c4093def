"""The limit on a GPU: the streams of limit.py on one flat array, 16 bytes a thread, all loads before the arithmetic."""

import cupy

THREADS = 256

CODE = """
struct alignas(16) Vector { REAL at[16 / sizeof(REAL)]; };

extern "C" __global__ void walk(const Vector* g, REAL c, long long n, PARAMETERS) {
    const int width = 16 / sizeof(REAL);
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if ((i + 1) * width <= n) {
        const Vector a = g[i];
        LOADS
        for (int k = 0; k < width; ++k) { const REAL x = c * a.at[k]; SUMS }
        STORES
    } else {
        for (long long j = i * width; j < n; ++j) { const REAL x = c * ((const REAL*)g)[j]; REST }
    }
}
"""


def source(real, streams):
    """The text for numbers of C's type `real` and so many streams beside g: p and the slots."""
    each = {
        "PARAMETERS": ("Vector* s{0}", ", "),
        "LOADS": ("Vector v{0} = s{0}[i];", " "),
        "SUMS": ("v{0}.at[k] += x;", " "),
        "STORES": ("s{0}[i] = v{0};", " "),
        "REST": ("((REAL*)s{0})[j] += x;", " "),
    }
    text = CODE
    for name, (part, between) in each.items():
        text = text.replace(name, between.join(part.format(k) for k in range(streams)))
    return text.replace("REAL", real)


class Walk:
    """walk(g, c): p += c·g, and the same for every slot, for arrays of one dtype that CuPy has allocated."""

    def __init__(self, p, slots):
        self._streams = p, *slots
        real = {"float32": "float", "float64": "double"}[p.dtype.name]
        self._kernel = cupy.RawKernel(source(real, len(self._streams)), "walk")
        per_block = THREADS * 16 // p.itemsize
        self._blocks = -(-p.size // per_block)

    def __call__(self, g, c):
        self._kernel((self._blocks,), (THREADS,), (g, c, self._streams[0].size, *self._streams))
