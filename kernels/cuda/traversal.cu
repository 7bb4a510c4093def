// One walk over memory for every kernel and every storage format: one block a chunk, a few elements of it a thread.
//
// A chunk is part of one leaf of the user's tree. Each stream of a leaf (p, g, each slot) lies where its address says.
// WORDS comes from kernels/cuda/__init__.py, which puts this text after ieee.cuh, formats.cuh and a kernel's.

typedef long long i64;
typedef unsigned long long u64;

struct Chunk {
    i64 first;  // its first element within the leaf
    int leaf, n;
};

// What changes from step to step: each leaf's gradient and row (int; -1: leave it alone), then the rows of coefficients.
// By value where it fits into a kernel's parameters, else uploaded.
struct ByValue {
    i64 leaves;
    u64 words[WORDS];
};
struct Uploaded {
    i64 leaves;
    const u64* words;
};

// Rows of many steps to come, for CUDA graphs, where what travels by value is frozen.
struct Window {
    const void* rows;  // null: the table has this step's rows
    const i64* at;     // which step this is, and how many there are: beyond them nothing is stepped
    i64 width;         // all numbers of one step
};

// One thread's few elements of one stream; those from low to high belong to the chunk.
template <class real, int W, class S>
struct Stream {
    struct alignas(16) Resting {
        S x[W];
    };
    S* at;
    bool whole;  // one access: all elements belong to the chunk, at an address that allows it
    Resting resting;
    real now[W];

    DEVICE void place(u64 leaf, i64 i, bool full) {
        at = static_cast<S*>(__cvta_global_to_generic(leaf + i * i64(sizeof(S))));  // for ld.global instead of ld
        whole = full && reinterpret_cast<u64>(at) % 16 == 0;
    }
    DEVICE void load(bool all, int low, int high) {
        if (all || whole) resting = *reinterpret_cast<const Resting*>(at);
        else
#pragma unroll
            for (int k = 0; k < W; ++k) resting.x[k] = low <= k && k < high ? at[k] : S(0);
    }
    DEVICE void open() {
#pragma unroll
        for (int k = 0; k < W; ++k) now[k] = decode(resting.x[k]);
    }
    DEVICE void store(bool all, int low, int high) {
#pragma unroll
        for (int k = 0; k < W; ++k) encode(now[k], resting.x[k]);
        if (all || whole) *reinterpret_cast<Resting*>(at) = resting;
        else
#pragma unroll
            for (int k = 0; k < W; ++k)
                if (low <= k && k < high) at[k] = resting.x[k];
    }
};

template <class real, int W>
struct Stream<real, W, None> {
    None now[W];
    static constexpr bool whole = true;
    DEVICE void place(u64, i64, bool) {}
    DEVICE void load(bool, int, int) {}
    DEVICE void open() {}
    DEVICE void store(bool, int, int) {}
};

// Elements a thread steps: one access of 16 bytes for the narrowest stream, several for a wider one.
template <class... S>
DEVICE constexpr int width_of() {
    int most = 1;
    ((most = there<S> && 16 / int(sizeof(S)) > most ? 16 / int(sizeof(S)) : most), ...);
    return most;
}

// The step itself. Chores that ride along (a factor on g, averages, copies) belong in here.
template <class K, int W, class C, class P, class G, class... S>
DEVICE void walk(bool all, int low, int high, const C& c, P& p, G& g, S&... slots) {
    p.load(all, low, high), g.load(all, low, high), (slots.load(all, low, high), ...);  // all loads, then arithmetic
    p.open(), g.open(), (slots.open(), ...);
#pragma unroll
    for (int k = 0; k < W; ++k) K::element(p.now[k], g.now[k], slots.now[k]..., c);
    p.store(all, low, high), (slots.store(all, low, high), ...);
}

// The elements of one leaf from i on, of which those from low to high are to be stepped.
template <class K, int W, class C, class P, class G, class... S>
DEVICE void visit(const u64* own, u64 gradient, i64 i, int low, int high, const C& c, P p, G g, S... slots) {
    const bool full = low == 0 && high == W;
    int column = 0;
    p.place(own[column++], i, full), g.place(gradient, i, full), (slots.place(own[column++], i, full), ...);
    if (p.whole && g.whole && (slots.whole && ...)) walk<K, W>(true, low, high, c, p, g, slots...);
    else walk<K, W>(false, low, high, c, p, g, slots...);
}

template <class C, class real>
DEVICE C coefficients(const real* row) {
    C c;
#pragma unroll
    for (int k = 0; k < int(sizeof(C) / sizeof(real)); ++k) reinterpret_cast<real*>(&c)[k] = row[k];
    return c;
}

template <class K, class real, class Table, class P, class G, class... S>
DEVICE void step(const Chunk* chunks, const u64* leaves, const Table& table, const Window& window, i64 block, int thread) {
    using C = typename K::template Coefficients<real>;
    constexpr int W = width_of<P, G, S...>(), width = sizeof(C) / sizeof(real);
    const Chunk chunk = chunks[block];
    const int* rows_of = reinterpret_cast<const int*>(table.words + table.leaves);
    const i64 row = rows_of[chunk.leaf];
    const i64 now = window.rows ? window.at[0] : 0;
    if (row < 0 || (window.rows && now >= window.at[1])) return;

    // Threads begin where p can be accessed whole, so the first of a leaf may have fewer elements.
    const u64* own = leaves + chunk.leaf * i64(1 + sizeof...(S));
    const int phase = int((own[0] / sizeof(P) + chunk.first) % W);
    const int i = thread * W - phase;
    const int low = i < 0 ? -i : 0, high = chunk.n - i < W ? chunk.n - i : W;
    if (low >= high) return;
    const real* rows = reinterpret_cast<const real*>(table.words + table.leaves + (table.leaves + 1) / 2);
    const C c = window.rows
        ? coefficients<C>(static_cast<const real*>(window.rows) + now * window.width + row * width)
        : coefficients<C>(rows + row * width);
    visit<K, W>(own, table.words[chunk.leaf], chunk.first + i, low, high, c, Stream<real, W, P>(), Stream<real, W, G>(),
                Stream<real, W, S>()...);
}

#ifndef STEP  // tests have one of their own, which loops over blocks and threads on the host
// Without __launch_bounds__: with them ptxas 13.5 spilt 16 bytes in three float64 kernels for sm_100 and sm_120.
#define STEP(name, kernel, real, Table, ...)                                                         \
    extern "C" __global__ void name(const Chunk* chunks, const u64* leaves,                          \
                                    const __grid_constant__ Table table,                             \
                                    const __grid_constant__ Window window) {                         \
        step<kernel, real, Table, __VA_ARGS__>(chunks, leaves, table, window, blockIdx.x, threadIdx.x); \
    }
#define ADVANCE \
    extern "C" __global__ void advance(i64* at) { *at += 1; }
#endif
