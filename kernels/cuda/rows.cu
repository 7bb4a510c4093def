// The walk of traversal.cu over some rows of a leaf, which may have missed steps.

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

// A row's gradient: the first of its values stored, the others added, in their order; zeros where there are none. Then p
// is read in their place, since a branch would stand between the loads; nothing where p has fewer bytes.
template <class real, int W, class P, class S>
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
        if (sizeof(S) <= sizeof(P) || !none) Stream<real, W, S>::load(all, low, high);
        else Stream<real, W, S>::clear();
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
    DEVICE void store(bool, int, int) {}  // who launches it clears values
};

// The coefficients of the steps that a row has missed, and of this one.
template <class C, class real>
struct Replay {
    const real* last;
    i64 missed;
};

template <class On, class K, int W, class C, class real, class Draws, class Room, class Ema, class Copy, class P, class G,
          class... S>
DEVICE void elements(const Replay<C, real>& steps, const Draws& draws, const Room& room, Ema& ema, Copy& copy, P& p,
                     G& g, S&... slots) {
    constexpr int width = sizeof(C) / sizeof(real);
    struct {
        real now[W];
    } zeros = {};
    for (i64 k = steps.missed; k > 0; --k)
        elements<On, K, W>(coefficients<C>(steps.last - k * width), draws, room, ema, copy, p, zeros, slots...);
    elements<On, K, W>(coefficients<C>(steps.last), draws, room, ema, copy, p, g, slots...);
}

template <class On, class K, class real, class P, class G, class... S>
DEVICE void step_rows(const Rows& rows, i64 thread) {
    using C = typename On::template Row<typename K::template Coefficients<real>, real>;
    constexpr int W = width_of<real, P, G, S...>();
    const i64 row = thread / rows.threads, place = thread - row * rows.threads;
    if (row >= rows.count) return;
    const i64 first = rows.first[row];
    const Share<W, P, i64> share(rows.own[0], first, rows.width, place);
    if (share.low >= share.high) return;
    const Replay<C, real> steps{static_cast<const real*>(rows.last), rows.missed[row]};
    visit<On, P, K, W>(rows.own, rows.values, first + share.i, share.low, share.high, steps, None(),
                       Stream<real, W, typename On::Ema>(), Stream<real, W, typename On::Copy>(), Stream<real, W, P>(),
                       Sum<real, W, P, G>(rows, row), Stream<real, W, S>()...);
}

#ifndef STEP_ROWS
#define STEP_ROWS(name, ...)                                                  \
    extern "C" __global__ void name(const __grid_constant__ Rows rows) {      \
        step_rows<__VA_ARGS__>(rows, blockIdx.x * i64(blockDim.x) + threadIdx.x); \
    }
#endif
