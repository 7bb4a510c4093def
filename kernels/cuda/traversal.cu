// One walk over memory for every kernel and every storage format: one block a chunk, a few elements of it a thread.
//
// A chunk is part of one leaf of the user's tree. Each stream of a leaf (p, g, each slot) lies where its address says.
// WORDS comes from kernels/cuda/__init__.py, which puts this text after the other .cuh files.

struct Chunk {
    i64 first;  // its first element within the leaf
    int leaf, n;
};

// What changes from step to step: where each leaf's gradient lies, or where the first of `arrays` does, then the second of
// each leaf, and so on; each leaf's row (int; -1: leave it alone), then the rows of coefficients. By value where it fits
// into a kernel's parameters, else uploaded.
struct ByValue {
    i64 leaves, arrays;
    u64 words[WORDS];
};
struct Uploaded {
    i64 leaves, arrays;
    const u64* words;
};

template <class Table>
DEVICE const int* rows_of(const Table& table) {
    return reinterpret_cast<const int*>(table.words + table.leaves * table.arrays);
}
template <class Table, class real>
DEVICE const real* numbers_of(const Table& table) {
    return reinterpret_cast<const real*>(table.words + table.leaves * table.arrays + (table.leaves + 1) / 2);
}

// Several arrays in the place of one gradient, added in their order: where the k-th begins, at[k * apart] says.
struct Arrays {
    const u64* at;
    i64 apart, count;
};
template <class G, class Table>
DEVICE auto home_of(const Table& table, i64 leaf) {
    if constexpr (in_parts<G>) return Arrays{table.words + leaf, table.leaves, table.arrays};
    else return table.words[leaf];
}

// Rows of many steps to come, for CUDA graphs, where what travels by value is frozen.
struct Window {
    const void* rows;  // null: the table has this step's rows
    const i64* at;     // which step this is, and how many there are: beyond them nothing is stepped
    i64 width;         // all numbers of one step
};

template <int>
struct Bits {
    using Type = u64;
};
template <>
struct Bits<32> {
    using Type = unsigned;
};

// One thread's few elements of one stream; those from low to high belong to the chunk.
template <class real, int W, class S>
struct Stream {
    static constexpr int bytes = sizeof(S) * W < 16 ? sizeof(S) * W : 16;  // of one access
    struct alignas(bytes) Resting {
        S x[W];
    };
    using Word = typename Bits<sizeof(S) * W < 8 ? 32 : 64>::Type;  // of 16 bits, which nvcc would store one at a time
    static constexpr int halves = sizeof(Word) / 2;
    struct alignas(bytes) Words {
        Word x[(W + halves - 1) / halves];
    };
    S* at;
    bool whole;  // one access: all elements belong to the chunk, at an address that allows it
    Resting resting;
    real now[W];

    DEVICE void place(u64 leaf, i64 i, bool full) {
        at = static_cast<S*>(__cvta_global_to_generic(leaf + i * i64(sizeof(S))));  // for ld.global instead of ld
        whole = full && reinterpret_cast<u64>(at) % bytes == 0;
    }
    DEVICE void load(bool all, int low, int high) {
        if (all || whole) get();
        else
#pragma unroll
            for (int k = 0; k < W; ++k) resting.x[k] = low <= k && k < high ? at[k] : S();
    }
    DEVICE void open() {
#pragma unroll
        for (int k = 0; k < W; ++k) decode(resting.x[k], now[k]);
    }
    // What is left of a new value: to be stored, and to go on with.
    DEVICE void close(int k, unsigned random) {
        encode(now[k], resting.x[k], random);
        decode(resting.x[k], now[k]);
    }
    DEVICE void clear() {
#pragma unroll
        for (int k = 0; k < W; ++k) resting.x[k] = S();
    }
    DEVICE void store(bool all, int low, int high) {
        if (all || whole) put();
        else
#pragma unroll
            for (int k = 0; k < W; ++k)
                if (low <= k && k < high) at[k] = resting.x[k];
    }
    DEVICE void get() {
        if constexpr (sizeof(S) == 2 && W > 1) {
            const Words words = *reinterpret_cast<const Words*>(at);
#pragma unroll
            for (int k = 0; k < W; ++k) resting.x[k].bits = (unsigned short)(words.x[k / halves] >> k % halves * 16);
        } else resting = *reinterpret_cast<const Resting*>(at);
    }
    DEVICE void put() {
        if constexpr (sizeof(S) == 2 && W > 1) {
            Words words = {};
#pragma unroll
            for (int k = 0; k < W; ++k) words.x[k / halves] |= Word(resting.x[k].bits) << k % halves * 16;
            *reinterpret_cast<Words*>(at) = words;
        } else *reinterpret_cast<Resting*>(at) = resting;
    }
};

template <class real, int W>
struct Stream<real, W, None> {
    None now[W];
    static constexpr bool whole = true;
    DEVICE void place(u64, i64, bool) {}
    DEVICE void load(bool, int, int) {}
    DEVICE void open() {}
    DEVICE void close(int, unsigned) {}
    DEVICE void store(bool, int, int) {}
};

// A gradient that comes as several arrays, each of which is accessed by itself: their sum, in their order.
template <class real, int W, class S>
struct Stream<real, W, several<S>> {
    static constexpr bool whole = true;
    Arrays arrays;
    i64 from;
    bool full;
    real now[W];

    DEVICE void place(const Arrays& given, i64 i, bool all) { arrays = given, from = i, full = all; }
    DEVICE Stream<real, W, S> array(i64 k) const {
        Stream<real, W, S> one;
        one.place(arrays.at[k * arrays.apart], from, full);
        return one;
    }
    DEVICE void load(bool, int low, int high) {
        for (i64 j = 0; j < arrays.count; ++j) {
            auto one = array(j);
            one.load(false, low, high), one.open();
#pragma unroll
            for (int k = 0; k < W; ++k) now[k] = j > 0 ? now[k] + one.now[k] : one.now[k];
        }
    }
    DEVICE void open() {}
    DEVICE void clear() {}
    DEVICE void store(bool, int low, int high) {  // of zeros, which is all that is ever stored here
        for (i64 j = 0; j < arrays.count; ++j) {
            auto one = array(j);
            one.clear(), one.store(false, low, high);
        }
    }
};

// p as bfloat16, and its other 16 bits.
template <class real, int W>
struct Stream<real, W, split> {
    Stream<real, W, bf16> upper, lower;
    bool whole;
    real now[W];

    DEVICE void place(u64 leaf, i64 i, bool full) { upper.place(leaf, i, full), whole = upper.whole; }
    DEVICE void place_rest(u64 leaf, i64 i, bool full) { lower.place(leaf, i, full), whole = whole && lower.whole; }
    DEVICE void load(bool all, int low, int high) { upper.load(all, low, high), lower.load(all, low, high); }
    DEVICE void open() {
#pragma unroll
        for (int k = 0; k < W; ++k) now[k] = joined(upper.resting.x[k].bits, lower.resting.x[k].bits);
    }
    DEVICE void close(int k, unsigned) {
        take_apart(now[k], upper.resting.x[k].bits, lower.resting.x[k].bits);
        now[k] = joined(upper.resting.x[k].bits, lower.resting.x[k].bits);
    }
    DEVICE void store(bool all, int low, int high) { upper.store(all, low, high), lower.store(all, low, high); }
};

// Elements a thread steps: one access of 16 bytes for the narrowest stream, several for a wider one, but no more than two
// in the type of the arithmetic, for the registers' sake. A copy's is shorter.
template <class real, class... S>
DEVICE constexpr int width_of() {
    int most = 1;
    ((most = there<S> && !coded<S> && 16 / int(sizeof(S)) > most ? 16 / int(sizeof(S)) : most), ...);
    return most < 32 / int(sizeof(real)) ? most : 32 / int(sizeof(real));
}

template <bool there, class real>
struct Summand {
    using Type = None;
};
template <class real>
struct Summand<true, real> {
    using Type = real;
};

// The kernel's element, and what it adds to each sum.
template <class On, class K, class Room, class real, class C, class... S>
DEVICE void move(const Room& room, int k, real& p, real g, const C& c, S&... slots) {
    typename Summand<On::summed, real>::Type one{}, two{};
    if constexpr (Sums<K>::count == 0) K::element(p, g, slots..., c);
    else if constexpr (Sums<K>::count == 1) K::element(p, g, slots..., one, c);
    else K::element(p, g, slots..., one, two, c);
    if constexpr (On::summing) room.add(0, k, one);
    if constexpr (On::summing && Sums<K>::count == 2) room.add(1, k, two);
}

// The step itself, and the chores that ride along. draws(k): the random bits of the element of that number.
template <class On, class K, int W, class C, class Draws, class Room, class Ema, class Copy, class P, class G, class... S>
DEVICE void elements(const C& c, const Draws& draws, const Room& room, Ema& ema, Copy& copy, P& p, G& g, S&... slots) {
#pragma unroll
    for (int k = 0; k < W; ++k) {
        if constexpr (On::noted) room.before(k, g.now[k], p.now[k]);
        move<On, K>(room, k, p.now[k], On::gradient(g.now[k], c), On::numbers(c), slots.now[k]...);
        if constexpr (On::summing) continue;
        if constexpr (there<typename On::Ema>) ema.now[k] = average(ema.now[k], p.now[k], c), ema.close(k, 0);
        if constexpr (there<typename On::Copy>) copy.now[k] = p.now[k], copy.close(k, 0);
        const unsigned random = draws(c, k);
        p.close(k, random), (slots.close(k, random), ...);
        if constexpr (On::noted) room.after(k, p.now[k]);
    }
}

// Let p take over what the short copy holds where that is not p rounded to nearest, as formats.followed does.
template <bool counted, int W, class Copy, class P>
DEVICE void follow(u64 counter, Copy& copy, P& p) {
    copy.open();
    u64 taken = 0;
#pragma unroll
    for (int k = 0; k < W; ++k) {
        auto rounded = copy.resting.x[k];
        encode(p.now[k], rounded);
        const bool nothing = p.now[k] != p.now[k] && copy.now[k] != copy.now[k];
        if (rounded.bits != copy.resting.x[k].bits && !nothing) p.now[k] = copy.now[k], ++taken;
    }
    if (counted && taken) atomicAdd(static_cast<u64*>(__cvta_global_to_generic(counter)), taken);
}

template <class C, class real>
DEVICE C coefficients(const real* row) {
    C c;
#pragma unroll
    for (int k = 0; k < int(sizeof(C) / sizeof(real)); ++k) reinterpret_cast<real*>(&c)[k] = row[k];
    return c;
}

template <class On, class K, int W, class C, class Room, class Ema, class Copy, class P, class G, class... S>
DEVICE void walk(bool all, int low, int high, const C& c, u64 counter, u64 at, const Room& room, Ema& ema, Copy& copy,
                 P& p, G& g, S&... slots) {
    p.load(all, low, high), g.load(all, low, high), (slots.load(all, low, high), ...);  // all loads, then arithmetic
    ema.load(all, low, high);
    if constexpr (On::followed) copy.load(all, low, high);
    p.open(), g.open(), (slots.open(), ...), ema.open();
    if constexpr (On::followed) follow<!On::summing, W>(counter, copy, p);
    elements<On, K, W>(c, typename On::Draws{at, all}, room, ema, copy, p, g, slots...);
    if constexpr (On::summing) return;
    p.store(all, low, high), (slots.store(all, low, high), ...), ema.store(all, low, high), copy.store(all, low, high);
    if constexpr (On::clear) g.clear(), g.store(all, low, high);
}

// The elements of one leaf from i on, of which those from low to high are to be stepped.
template <class On, class T, class K, int W, class Home, class C, class Room, class Ema, class Copy, class P, class G,
          class... S>
DEVICE void visit(const u64* own, const Home& gradient, i64 i, int low, int high, const C& c, const Room& room, Ema ema,
                  Copy copy, P p, G g, S... slots) {
    const bool full = low == 0 && high == W;
    int column = 0;
    p.place(own[column++], i, full), g.place(gradient, i, full), (slots.place(own[column++], i, full), ...);
    if constexpr (On::any) ema.place(own[column], i, full), copy.place(own[column + 1], i, full), column += 4;
    if constexpr (splits<T>) p.place_rest(own[column++], i, full);
    const u64 counter = On::followed ? own[column++] : 0, at = On::drawn ? own[column] + i : 0;
    if (p.whole && g.whole && (slots.whole && ...) && ema.whole && copy.whole && (!On::drawn || unsigned(at) <= 0u - W))
        walk<On, K, W>(true, low, high, c, counter, at, room, ema, copy, p, g, slots...);
    else walk<On, K, W>(false, low, high, c, counter, at, room, ema, copy, p, g, slots...);
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

// Whether blocks begin at multiples of BLOCK, wherever p lies.
template <class On, class... S>
constexpr bool in_blocks = On::noted || On::summing || (coded<S> || ...);

// What a block's phases after its step must know: whether it took one, and what its random bits begin with.
struct Begun {
    bool stepped;
    unsigned fold;
};

template <class Table, class On, class K, class real, class P, class G, class... S>
DEVICE void step(const Chunk* chunks, const u64* leaves, const Table& table, const Window& window, i64 block, int thread,
                 typename NotesOf<On::summing, real, K>::Type* noted = nullptr, Begun* begun = nullptr) {
    using C = typename On::template Row<typename K::template Coefficients<real>, real>;
    constexpr int W = width_of<real, P, G, S...>(), width = sizeof(C) / sizeof(real);
    const Chunk chunk = chunks[block];
    const i64 row = rows_of(table)[chunk.leaf];
    const i64 now = window.rows ? window.at[0] : 0;
    if (row < 0 || (window.rows && now >= window.at[1])) return;

    const u64* own = leaves + chunk.leaf * i64(1 + sizeof...(S) + On::template columns<P>);
    // Where codes are, chunks begin with blocks: a thread's share begins at a multiple of W.
    const i64 first = (coded<S> || ...) ? 0 : chunk.first;
    const Share<W, P, int> share(in_blocks<On, S...> ? 0 : own[0], first, chunk.n, thread);
    if (share.low >= share.high) return;
    const real* rows = numbers_of<Table, real>(table);
    C c = window.rows
        ? coefficients<C>(static_cast<const real*>(window.rows) + now * window.width + row * width)
        : coefficients<C>(rows + row * width);
    if constexpr (On::scaled) {
        const Ruling ruling = *static_cast<const Ruling*>(__cvta_global_to_generic(own[1 + sizeof...(S) + 2]));
        if (ruling.skip) {
            if constexpr (On::clear) {
                Stream<real, W, G> g;
                g.place(home_of<G>(table, chunk.leaf), chunk.first + share.i, share.low == 0 && share.high == W);
                g.clear(), g.store(g.whole, share.low, share.high);
            }
            return;
        }
        encode(c.value() * ruling.scale * ruling.factor, c.grad_scale);
    }
    if constexpr (On::summed) {
        const Ruling* ruling = static_cast<const Ruling*>(__cvta_global_to_generic(own[1 + sizeof...(S) + 2]));
        // What is carried is the coefficient before the factor; the step before has left it as its own factor.
        if constexpr (Sums<K>::carried)
            encode(On::summing ? ruling->judged : ruling->before,
                   reinterpret_cast<real*>(&c)[sizeof(typename K::template Coefficients<real>) / sizeof(real) - 2]);
        if constexpr (!On::summing) encode(ruling->judged, c.factor);
    }
    if (in_blocks<On, S...> && thread == 0) *begun = {true, On::fold(c)};
    const Room<typename NotesOf<On::summing, real, K>::Type> room{noted, share.i, share.low, share.high};
    visit<On, P, K, W>(own, home_of<G>(table, chunk.leaf), chunk.first + share.i, share.low, share.high, c, room,
                       Stream<real, W, typename On::Ema>(), Stream<real, W, typename On::Copy>(), Stream<real, W, P>(),
                       Stream<real, W, G>(), Stream<real, W, S>()...);
}

// A step of one block with statistics, or with slots of 8 bits; or what it adds to sums.
template <class Table, class On, class K, class real, class P, class G, class... S>
DEVICE void step_in_phases(const Chunk* chunks, const u64* leaves, const Table& table, const Window& window, i64 block,
                           int threads) {
    constexpr int W = width_of<real, P, G, S...>();
    const Chunk chunk = chunks[block];
    const u64* own = leaves + chunk.leaf * i64(1 + sizeof...(S) + On::template columns<P>);
    using Notes = typename NotesOf<On::summing, real, K>::Type;
    constexpr bool packing = (coded<S> || ...) && !On::summing, noting = On::noted || On::summing;
    Notes* noted = nullptr;
    if constexpr (noting) noted = &shared<Notes>();
    Begun& begun = shared<Begun>();
    together(threads, [&](int thread) {
        if (thread == 0) begun = {false, 0};
        if constexpr (noting) noted->clear(thread * W, W);
        // Beyond a leaf's end zeros wait.
        if (packing && thread * W >= chunk.n) (Packing<S, W>::fill(thread), ...);
        else step<Table, On, K, real, P, G, S...>(chunks, leaves, table, window, block, thread, noted, &begun);
    });
    if constexpr (packing) {
        together(threads, [&](int thread) {
            if (!begun.stepped || thread % 32 >= BLOCK / Coding::GROUP) return;
            int slot = 0;  // the scales of each are made by a warp of its own
            ((thread / 32 == slot++ ? Packing<S, W>::scale(thread % 32, own[slot], chunk.first) : void()), ...);
        });
        together(threads, [&](int thread) {
            const u64 index = On::drawn ? own[sizeof...(S) + On::template columns<P>] + chunk.first : 0;
            int column = 1;
            if (begun.stepped)
                (Packing<S, W>::write(thread, own[column++], chunk.first, begun.fold, index), ...);
        });
    }
    if constexpr (noting)
        noted->sum(threads, static_cast<Note*>(__cvta_global_to_generic(own[1 + sizeof...(S) + 3])) + block);
}

// A leaf that is weighed: its elements, the first of its notes, and where its Ruling lies.
struct Weighed {
    i64 n, note;
    u64 ruling;
};

DEVICE f64 sum_of(const Note& note, int k, bool norm) {
    const f64 sum = k == 0 ? note.squares_of_g : note.squares_of_p;
    return norm ? sqrt(sum) : sum;
}

// Let a leaf's Ruling have the factor that the kernel makes of its sums.
template <class Table, class K, class real>
DEVICE void weigh(const Weighed* leaves, const Table& table, const Window& window, i64 width, const Note* notes, i64 leaf) {
    using C = typename K::template Coefficients<real>;
    using Wide = typename K::template Coefficients<f64>;
    if (leaf >= table.leaves) return;
    const i64 row = rows_of(table)[leaf], now = window.rows ? window.at[0] : 0;
    if (row < 0 || (window.rows && now >= window.at[1]) || leaves[leaf].note < 0) return;
    const real* rows = window.rows
        ? static_cast<const real*>(window.rows) + now * window.width
        : numbers_of<Table, real>(table);
    const C c = coefficients<C>(rows + row * width);
    Wide wide;
#pragma unroll
    for (int k = 0; k < int(sizeof(C) / sizeof(real)); ++k)
        reinterpret_cast<f64*>(&wide)[k] = widen(reinterpret_cast<const real*>(&c)[k]);
    const Note note = notes[leaves[leaf].note];
    const f64 n = double(leaves[leaf].n), one = sum_of(note, 0, Sums<K>::norms & 1), two = sum_of(note, 1, Sums<K>::norms & 2);
    f64& judged = static_cast<Ruling*>(__cvta_global_to_generic(leaves[leaf].ruling))->judged;
    if constexpr (Sums<K>::count == 1) judged = K::judged(n, one, wide);
    else judged = K::judged(n, one, two, wide);
}

#ifndef STEP  // tests have one of their own, which loops over blocks and threads on the host
// Without __launch_bounds__: with them ptxas 13.5 spilt 16 bytes in three float64 kernels for sm_100 and sm_120.
#define STEP(name, Table, ...)                                                                       \
    extern "C" __global__ void name(const Chunk* chunks, const u64* leaves,                          \
                                    const __grid_constant__ Table table,                             \
                                    const __grid_constant__ Window window) {                         \
        step<Table, __VA_ARGS__>(chunks, leaves, table, window, blockIdx.x, threadIdx.x);            \
    }
#define STEP_IN_PHASES(name, Table, ...)                                                             \
    extern "C" __global__ void name(const Chunk* chunks, const u64* leaves,                          \
                                    const __grid_constant__ Table table,                             \
                                    const __grid_constant__ Window window) {                         \
        step_in_phases<Table, __VA_ARGS__>(chunks, leaves, table, window, blockIdx.x, blockDim.x);   \
    }
#define WEIGH(name, Table, K, real)                                                                  \
    extern "C" __global__ void name(const Weighed* leaves, const __grid_constant__ Table table,      \
                                    const __grid_constant__ Window window, i64 width,                \
                                    const Note* notes) {                                             \
        weigh<Table, K, real>(leaves, table, window, width, notes,                                   \
                              blockIdx.x * i64(blockDim.x) + threadIdx.x);                           \
    }
#define ADVANCE \
    extern "C" __global__ void advance(i64* at) { *at += 1; }
#endif
