// What lets g++ compile kernels/cuda: CUDA's words, and launches that loop over blocks and threads.
#include <cmath>
#include <cstddef>

#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __cvta_global_to_generic(address) reinterpret_cast<void*>(address)

unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned(((unsigned long long)high << 32 | low) >> by % 32);
}

void atomicAdd(unsigned long long* at, unsigned long long x) { *at += x; }

unsigned __byte_perm(unsigned low, unsigned high, unsigned choice) {
    const unsigned long long pool = (unsigned long long)high << 32 | low;
    unsigned whole = 0;
    for (int k = 0; k < 4; ++k) whole |= unsigned(pool >> (choice >> 4 * k & 7) * 8 & 255) << 8 * k;
    return whole;
}

// A phase of a block's threads, one after the other.
template <class F>
void together(int threads, const F& phase) {
    for (int thread = 0; thread < threads; ++thread) phase(thread);
}

template <class T>
const T& argument(void** arguments, int k) {
    return *static_cast<const T*>(arguments[k]);
}

#define STEP(name, Table, ...)                                                                                        \
    extern "C" void name(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 block = 0; block < blocks; ++block)                                                                  \
            for (int thread = 0; thread < threads; ++thread)                                                          \
                step<Table, __VA_ARGS__>(argument<const Chunk*>(arguments, 0), argument<const u64*>(arguments, 1),    \
                                         argument<Table>(arguments, 2), argument<Window>(arguments, 3), block,        \
                                         thread);                                                                     \
    }
#define STEP_IN_PHASES(name, Table, ...)                                                                              \
    extern "C" void name(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 block = 0; block < blocks; ++block)                                                                  \
            step_in_phases<Table, __VA_ARGS__>(argument<const Chunk*>(arguments, 0),                                  \
                                               argument<const u64*>(arguments, 1), argument<Table>(arguments, 2),     \
                                               argument<Window>(arguments, 3), block, threads);                       \
    }
#define MEASURE(name, Table, real, G)                                                                                 \
    extern "C" void name(i64 blocks, int, void** arguments) {                                                         \
        for (i64 block = 0; block < blocks; ++block)                                                                  \
            measure<Table, real, G>(argument<const Chunk*>(arguments, 0), argument<Table>(arguments, 1),                 \
                                 argument<Note*>(arguments, 2), block);                                               \
    }
#define ADD_UP(name)                                                                                                  \
    extern "C" void name(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 block = 0; block < blocks; ++block)                                                                  \
            add_up(argument<const Piece*>(arguments, 0), argument<Note*>(arguments, 1), argument<i64>(arguments, 2),  \
                   block, threads);                                                                                   \
    }
#define CARRY(name)                                                                                                   \
    extern "C" void name(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 k = 0; k < blocks * threads; ++k) carry(argument<u64*>(arguments, 0), argument<ByValue>(arguments, 1), k); \
    }
#define JUDGE(name) \
    extern "C" void name(i64, int threads, void** arguments) { judge(argument<Case>(arguments, 0), threads); }
#define WEIGH_TOGETHER(name, K)                                                                                       \
    extern "C" void name(i64, int threads, void** arguments) {                                                        \
        weigh_together<K>(argument<Common>(arguments, 0), threads);                                                   \
    }
#define TOTALS(name)                                                                                                  \
    extern "C" void name(i64, int threads, void** arguments) {                                                        \
        totals(argument<Case>(arguments, 0), argument<Note*>(arguments, 1), threads);                                 \
    }
#define ADVANCE_UNLESS(name)                                                                                          \
    extern "C" void name(i64, int, void** arguments) {                                                                \
        advance_unless(argument<i64*>(arguments, 0), *argument<const Ruling*>(arguments, 1));                         \
    }
#define STEP_ROWS(name, ...)                                                                                          \
    extern "C" void name(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 k = 0; k < blocks * threads; ++k) step_rows<__VA_ARGS__>(argument<Rows>(arguments, 0), k);           \
    }
#define WEIGH(name, Table, K, real)                                                                                   \
    extern "C" void name(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 k = 0; k < blocks * threads; ++k)                                                                    \
            weigh<Table, K, real>(argument<const Weighed*>(arguments, 0), argument<Table>(arguments, 1),              \
                                  argument<Window>(arguments, 2), argument<i64>(arguments, 3),                        \
                                  argument<const Note*>(arguments, 4), k);                                            \
    }
#define WALK                                                                                                          \
    extern "C" void walk(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 block = 0; block < blocks; ++block)                                                                  \
            for (int thread = 0; thread < threads; ++thread)                                                          \
                walk_block(argument<Streams>(arguments, 0), block, thread, threads);                                  \
    }
#define ADVANCE \
    extern "C" void advance(i64, int, void** arguments) { *argument<i64*>(arguments, 0) += 1; }
