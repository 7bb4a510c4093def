// A table that travels by value, in pieces: into a captured graph, which then keeps its own and needs no memory of the host's.

DEVICE void carry(u64* to, const ByValue& piece, i64 thread) {
    if (thread < piece.leaves) to[thread] = piece.words[thread];
}

#ifndef CARRY
#define CARRY(name)                                                                    \
    extern "C" __global__ void name(u64* to, const __grid_constant__ ByValue piece) {  \
        carry(to, piece, blockIdx.x * i64(blockDim.x) + threadIdx.x);                  \
    }
#endif
