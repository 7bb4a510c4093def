// Sums of squares in the order of kernels/chores.py, in phases: within one each thread works by itself.

#ifdef __CUDACC__
// One phase: all of a block's threads have finished it when it ends.
template <class F>
DEVICE void together(int, const F& phase) {
    phase(int(threadIdx.x));
    __syncthreads();
}
#endif

// What is noted of a block of numbers; of a leaf, once its blocks have been added up.
struct Note {
    f64 squares_of_g, squares_of_p, squares_of_update, largest;
};

// The numbers of one block, a lane's sum of their squares and its largest magnitude.
template <class real>
struct Lane {
    real x[BLOCK / LANES];
    DEVICE f64 squares() const {
        f64 total = widen(x[0]) * widen(x[0]);
#pragma unroll
        for (int k = 1; k < BLOCK / LANES; ++k) total = total + widen(x[k]) * widen(x[k]);
        return total;
    }
    DEVICE f64 sum() const {
        f64 total = widen(x[0]);
#pragma unroll
        for (int k = 1; k < BLOCK / LANES; ++k) total = total + widen(x[k]);
        return total;
    }
    DEVICE f64 largest() const {
        real most = abs(x[0]);
#pragma unroll
        for (int k = 1; k < BLOCK / LANES; ++k) most = maximum(abs(x[k]), most);
        return widen(most);
    }
};

// Lanes of several columns, combined in halves: the last column's largest, the others' sums.
template <int columns>
struct Lanes {
    f64 of[columns][LANES];
    DEVICE void combine(int threads) {
#pragma unroll  // so that nothing is divided by what is not known before
        for (unsigned half = LANES / 2; half > 0; half /= 2)
            together(threads, [&](unsigned thread) {
                for (unsigned k = thread; k < columns * half; k += threads) {
                    f64* lane = of[k / half] + k % half;
                    *lane = k / half < columns - 1 ? lane[0] + lane[half] : maximum(lane[0], lane[half]);
                }
            });
    }
};

// What one block's step leaves behind for the statistics.
template <class real>
struct Noted {
    real g[BLOCK], p[BLOCK], update[BLOCK];
    Lanes<4> lanes;
    DEVICE void clear(int first, int n) {
        for (int i = first; i < first + n; ++i) g[i] = p[i] = update[i] = 0;
    }
    DEVICE void sum(int threads, Note* note) {
        together(threads, [&](int thread) {
            for (int k = thread; k < 4 * LANES; k += threads) {
                const real* from = k / LANES == 0 ? g : k / LANES == 1 ? p : update;
                Lane<real> own;
#pragma unroll
                for (int j = 0; j < BLOCK / LANES; ++j) own.x[j] = from[k % LANES + j * LANES];
                lanes.of[k / LANES][k % LANES] = k / LANES < 3 ? own.squares() : own.largest();
            }
        });
        lanes.combine(threads);
        together(threads, [&](int thread) {
            if (thread == 0) *note = {lanes.of[0][0], lanes.of[1][0], lanes.of[2][0], lanes.of[3][0]};
        });
    }
};

// What one block's elements add to each of a kernel's sums.
template <class real, class K>
struct Summed {
    static constexpr int count = Sums<K>::count;
    real of[count][BLOCK];
    Lanes<count + 1> lanes;
    DEVICE void clear(int first, int n) {
        for (int j = 0; j < count; ++j)
            for (int i = first; i < first + n; ++i) of[j][i] = 0;
    }
    DEVICE void sum(int threads, Note* note) {
        together(threads, [&](int thread) {
            for (int k = thread; k < count * LANES; k += threads) {
                Lane<real> own;
#pragma unroll
                for (int j = 0; j < BLOCK / LANES; ++j) own.x[j] = of[k / LANES][k % LANES + j * LANES];
                lanes.of[k / LANES][k % LANES] = Sums<K>::norms >> k / LANES & 1 ? own.squares() : own.sum();
            }
            for (int k = thread; k < LANES; k += threads) lanes.of[count][k] = 0;
        });
        lanes.combine(threads);
        together(threads, [&](int thread) {
            if (thread == 0) *note = {lanes.of[0][0], count > 1 ? lanes.of[count - 1][0] : f64(0), 0, 0};
        });
    }
};

template <bool summing, class real, class K>
struct NotesOf {
    using Type = Noted<real>;
};
template <class real, class K>
struct NotesOf<true, real, K> {
    using Type = Summed<real, K>;
};

// One thread's place in it: from `first` on, where those from low to high are its own.
template <class Notes>
struct Room {
    Notes* noted;
    int first, low, high;
    template <class real>
    DEVICE void add(int sum, int k, real x) const {
        if (low <= k && k < high) noted->of[sum][first + k] = x;
    }
    template <class real>
    DEVICE void before(int k, real g, real p) const {
        if (low <= k && k < high) noted->g[first + k] = g, noted->p[first + k] = p;
    }
    template <class real>
    DEVICE void after(int k, real p) const {
        if (low <= k && k < high) noted->update[first + k] = p - noted->p[first + k], noted->p[first + k] = p;
    }
};
