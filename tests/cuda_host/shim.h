// What lets g++ compile kernels/cuda: CUDA's words, and launches that loop over blocks and threads.
#include <cmath>
#include <cstddef>

#define __device__
#define __forceinline__ inline
#define __cvta_global_to_generic(address) reinterpret_cast<void*>(address)

template <class T>
const T& argument(void** arguments, int k) {
    return *static_cast<const T*>(arguments[k]);
}

#define STEP(name, kernel, real, Table, ...)                                                                          \
    extern "C" void name(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 block = 0; block < blocks; ++block)                                                                  \
            for (int thread = 0; thread < threads; ++thread)                                                          \
                step<kernel, real, Table, __VA_ARGS__>(argument<const Chunk*>(arguments, 0),                          \
                                                       argument<const u64*>(arguments, 1),                            \
                                                       argument<Table>(arguments, 2), argument<Window>(arguments, 3), \
                                                       block, thread);                                                \
    }
#define STEP_ROWS(name, ...)                                                                                          \
    extern "C" void name(i64 blocks, int threads, void** arguments) {                                                 \
        for (i64 k = 0; k < blocks * threads; ++k) step_rows<__VA_ARGS__>(argument<Rows>(arguments, 0), k);           \
    }
#define ADVANCE \
    extern "C" void advance(i64, int, void** arguments) { *argument<i64*>(arguments, 0) += 1; }
