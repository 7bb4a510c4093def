// Slots of 8 bits; see kernels/formats.py. The walk steps a block of them like any stream; the new numbers wait in shared
// memory until the largest of each group is known, and the next phases make codes of them.

template <bool has_sign, bool drawn, int slot>
struct Codes {
    unsigned char bits;
};
template <bool has_sign, bool drawn, int slot>
constexpr bool coded<Codes<has_sign, drawn, slot>> = true;

// A block's new numbers, and the largest size of those that share a word of codes.
template <class S>
struct alignas(16) Waiting {
    f32 numbers[BLOCK];
    unsigned largest[BLOCK / 4];
};

template <class T>
DEVICE T& shared() {
    __shared__ T one;
    return one;
}

template <class real, int W, class S>
struct Stream;  // traversal.cu

template <class real, int W, bool has_sign, bool drawn, int slot>
struct Stream<real, W, Codes<has_sign, drawn, slot>> : Coding {
    using S = Codes<has_sign, drawn, slot>;
    static constexpr bool whole = true;
    struct alignas(16) Words {
        unsigned x[W];
    };
    struct alignas(16) Numbers {
        real x[W];
    };
    const unsigned char* block;
    int first;  // element within the block
    Words words;
    f32 scale;
    real now[W];

    DEVICE void place(u64 leaf, i64 i, bool) {
        block = static_cast<const unsigned char*>(__cvta_global_to_generic(leaf + i / BLOCK * BYTES));
        first = int(i % BLOCK);
    }
    DEVICE void load(bool, int, int) {
        words = *reinterpret_cast<const Words*>(block + first / GROUP * GROUP + first % IN_ROW * 4);
        scale = *reinterpret_cast<const f32*>(block + BLOCK + first / GROUP * 4);
    }
    DEVICE void open() {
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const unsigned code = words.x[k] >> first % GROUP / IN_ROW * 8;
            now[k] = (of_bits(TWO + ((code & LAST<has_sign>) << SHIFT)) - TO<has_sign>) * scale;
            if constexpr (has_sign) now[k] = of_bits(bits_of(now[k]) | (code & 0x80) << 24);
        }
    }
    DEVICE void close(int, unsigned) {}
    DEVICE void store(bool, int low, int high) {
        Numbers numbers;
#pragma unroll
        for (int k = 0; k < W; ++k) numbers.x[k] = low <= k && k < high ? now[k] : real(0);
        *reinterpret_cast<Numbers*>(shared<Waiting<S>>().numbers + first) = numbers;
    }
};

// What becomes of waiting numbers; of other streams nothing is.
template <class S>
struct Packing {
    static DEVICE void fill(int, int) {}
    static DEVICE void look(int) {}
    static DEVICE void write(int, u64, i64, unsigned, u64) {}
};

template <bool has_sign, bool drawn, int slot>
struct Packing<Codes<has_sign, drawn, slot>> : Coding {
    using S = Codes<has_sign, drawn, slot>;

    static DEVICE unsigned size(f32 x) { return has_sign ? bits_of(x) & 0x7fffffff : bits_of(x); }
    // Where a word's four numbers wait.
    static DEVICE f32* numbers(int word) {
        return shared<Waiting<S>>().numbers + word / IN_ROW * GROUP + word % IN_ROW;
    }
    static DEVICE void fill(int first, int n) {
        for (int k = first; k < first + n; ++k) shared<Waiting<S>>().numbers[k] = 0;
    }
    static DEVICE void look(int word) {
        const f32* x = numbers(word);
        unsigned most = size(x[0]);
#pragma unroll
        for (int j = 1; j < 4; ++j) most = size(x[j * IN_ROW]) > most ? size(x[j * IN_ROW]) : most;
        shared<Waiting<S>>().largest[word] = most;
    }
    // index: of the block's first element among all of the tree.
    static DEVICE void write(int word, u64 leaf, i64 first, unsigned fold, u64 index) {
        const int group = word / IN_ROW, lane = word % IN_ROW;
        const unsigned* largest = shared<Waiting<S>>().largest + group * IN_ROW;
        unsigned most = largest[0];
#pragma unroll
        for (int k = 1; k < IN_ROW; ++k) most = largest[k] > most ? largest[k] : most;
        const bool finite = most < 0x7f800000;
        const f32 part = of_bits(most) * PART<has_sign>, quotient = f32(REACH<has_sign>) / of_bits(most);
        const f32 inverse = f32(LARGE) > quotient ? quotient : f32(LARGE);
        const f32* x = numbers(word);
        const unsigned start = started(fold, index + group * GROUP);
        unsigned codes = 0, random = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (j % 2 == 0) random = mixed(start + lane * MIX0, j == 0 ? MIX2 : MIX3);
            const unsigned draw = j % 2 == 0 ? random >> (32 - SHIFT) : random & ((1u << SHIFT) - 1);
            const unsigned y = bits_of(of_bits(size(x[j * IN_ROW])) * inverse + (drawn ? OF_DRAWN : TO<has_sign>));
            unsigned code = (y + (drawn ? draw : 1u << (SHIFT - 1))) >> SHIFT & LAST<has_sign>;
            if constexpr (has_sign) code |= bits_of(x[j * IN_ROW]) >> 31 << 7;
            codes |= code << 8 * j;
        }
        char* block = static_cast<char*>(__cvta_global_to_generic(leaf + first / BLOCK * BYTES));
        reinterpret_cast<unsigned*>(block)[word] = finite && most > 0 ? codes : 0;
        if (lane > 0) return;
        const f32 scale = most == 0 ? f32(0) : part > TINY ? part : f32(TINY);
        reinterpret_cast<f32*>(block + BLOCK)[group] = finite ? scale : of_bits(0x7fc00000);
    }
};
