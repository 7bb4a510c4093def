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

// Rows of one leaf, each to be stepped by `threads` threads of its own, so that short ones share a block.
struct Rows {
    i64 count, width, threads;
    const u64* own;         // the leaf's addresses
    u64 values;             // of their gradient: rows again, each of `width` elements
    const i64* first;       // per row, its first element within the leaf
    const i64* missed;      // per row, how many steps with zeros as the gradient it takes before
    const i64* start;       // per row, where in `place` its own begin, and as the last where all end
    const i64* place;       // the first elements, within the values, of those whose sum is the row's gradient
    const void* last;       // this step's coefficients; before them those of the steps that were missed
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

// A row's gradient: the first of its values stored, the others added, in their order; zeros where there are none. Then p
// is read in their place, since a branch would stand between the loads.
template <class real, int W, class S>
struct Sum : Stream<real, W, S> {
    const i64 *next, *end;
    u64 values;
    i64 first, i;
    int low, high;
    bool none, full;

    DEVICE Sum(const Rows& rows, i64 row)
        : next(rows.place + rows.start[row]), end(rows.place + rows.start[row + 1]),
          values(next < end ? rows.values : rows.own[0]), first(rows.first[row]), none(next == end) {}
    DEVICE void place(u64, i64 at, bool all) {
        i = at - first, full = all;
        Stream<real, W, S>::place(values, (none ? first : *next) + i, full);
    }
    DEVICE void load(bool all, int from, int to) {
        low = from, high = to;
        Stream<real, W, S>::load(all, low, high);
    }
    DEVICE void open() {
        Stream<real, W, S>::open();
#pragma unroll
        for (int k = 0; k < W; ++k) this->now[k] = none ? real(0) : this->now[k];
        for (++next; next < end; ++next) {
            Stream<real, W, S> other;
            other.place(values, *next + i, full), other.load(false, low, high), other.open();
#pragma unroll
            for (int k = 0; k < W; ++k) this->now[k] = this->now[k] + other.now[k];
        }
    }
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
DEVICE void elements(const C& c, P& p, const G& g, S&... slots) {
#pragma unroll
    for (int k = 0; k < W; ++k) K::element(p.now[k], g.now[k], slots.now[k]..., c);
}

template <class C, class real>
DEVICE C coefficients(const real* row) {
    C c;
#pragma unroll
    for (int k = 0; k < int(sizeof(C) / sizeof(real)); ++k) reinterpret_cast<real*>(&c)[k] = row[k];
    return c;
}

// The coefficients of the steps that a row has missed, and of this one.
template <class C, class real>
struct Replay {
    const real* last;
    i64 missed;
};

template <class K, int W, class C, class real, class P, class G, class... S>
DEVICE void elements(const Replay<C, real>& steps, P& p, const G& g, S&... slots) {
    constexpr int width = sizeof(C) / sizeof(real);
    struct {
        real now[W];
    } zeros = {};
    for (i64 k = steps.missed; k > 0; --k)
        elements<K, W>(coefficients<C>(steps.last - k * width), p, zeros, slots...);
    elements<K, W>(coefficients<C>(steps.last), p, g, slots...);
}

template <class K, int W, class C, class P, class G, class... S>
DEVICE void walk(bool all, int low, int high, const C& c, P& p, G& g, S&... slots) {
    p.load(all, low, high), g.load(all, low, high), (slots.load(all, low, high), ...);  // all loads, then arithmetic
    p.open(), g.open(), (slots.open(), ...);
    elements<K, W>(c, p, g, slots...);
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

// One thread's share of n elements of a leaf from `first` on: those from i + low to i + high, where i + first is where p
// can be accessed whole, so the first thread may have fewer.
template <int W, class P, class N>
struct Share {
    N i;
    int low, high;

    DEVICE Share(u64 leaf, i64 first, N n, N thread)
        : i(thread * W - int((leaf / sizeof(P) + first) % W)),
          low(i < 0 ? int(-i) : 0), high(n - i < W ? int(n - i) : W) {}
};

template <class K, class real, class Table, class P, class G, class... S>
DEVICE void step(const Chunk* chunks, const u64* leaves, const Table& table, const Window& window, i64 block, int thread) {
    using C = typename K::template Coefficients<real>;
    constexpr int W = width_of<P, G, S...>(), width = sizeof(C) / sizeof(real);
    const Chunk chunk = chunks[block];
    const int* rows_of = reinterpret_cast<const int*>(table.words + table.leaves);
    const i64 row = rows_of[chunk.leaf];
    const i64 now = window.rows ? window.at[0] : 0;
    if (row < 0 || (window.rows && now >= window.at[1])) return;

    const u64* own = leaves + chunk.leaf * i64(1 + sizeof...(S));
    const Share<W, P, int> share(own[0], chunk.first, chunk.n, thread);
    if (share.low >= share.high) return;
    const real* rows = reinterpret_cast<const real*>(table.words + table.leaves + (table.leaves + 1) / 2);
    const C c = window.rows
        ? coefficients<C>(static_cast<const real*>(window.rows) + now * window.width + row * width)
        : coefficients<C>(rows + row * width);
    visit<K, W>(own, table.words[chunk.leaf], chunk.first + share.i, share.low, share.high, c, Stream<real, W, P>(),
                Stream<real, W, G>(), Stream<real, W, S>()...);
}

template <class K, class real, class P, class G, class... S>
DEVICE void step_rows(const Rows& rows, i64 thread) {
    constexpr int W = width_of<P, G, S...>();
    const i64 row = thread / rows.threads;
    if (row >= rows.count) return;
    const i64 first = rows.first[row];
    const Share<W, P, i64> share(rows.own[0], first, rows.width, thread % rows.threads);
    if (share.low >= share.high) return;
    const Replay<typename K::template Coefficients<real>, real> steps{static_cast<const real*>(rows.last), rows.missed[row]};
    visit<K, W>(rows.own, rows.values, first + share.i, share.low, share.high, steps, Stream<real, W, P>(),
                Sum<real, W, G>(rows, row), Stream<real, W, S>()...);
}

#ifndef STEP  // tests have one of their own, which loops over blocks and threads on the host
// Without __launch_bounds__: with them ptxas 13.5 spilt 16 bytes in three float64 kernels for sm_100 and sm_120.
#define STEP(name, kernel, real, Table, ...)                                                         \
    extern "C" __global__ void name(const Chunk* chunks, const u64* leaves,                          \
                                    const __grid_constant__ Table table,                             \
                                    const __grid_constant__ Window window) {                         \
        step<kernel, real, Table, __VA_ARGS__>(chunks, leaves, table, window, blockIdx.x, threadIdx.x); \
    }
#define STEP_ROWS(name, ...)                                                  \
    extern "C" __global__ void name(const __grid_constant__ Rows rows) {      \
        step_rows<__VA_ARGS__>(rows, blockIdx.x * i64(blockDim.x) + threadIdx.x); \
    }
#define ADVANCE \
    extern "C" __global__ void advance(i64* at) { *at += 1; }
#endif
