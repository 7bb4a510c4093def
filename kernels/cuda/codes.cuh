// Slots of 8 bits; see kernels/formats.py. The walk steps a block of them like any stream; the new numbers wait in shared
// memory until the largest of each group is known, and the next phases make codes of them.
//
// What the format forbids, if codes are to be the CPU's: a code before all 64 of its group, whose largest makes the scale,
// so each new number is stored to shared memory and loaded again, past two barriers; a fused multiply-add, whose one
// rounding gives other codes than the product's and the sum's; fewer hashes than one for four drawn elements; a branch
// for whole groups of zeros. A decoded number costs a turn, a merge, a subtraction and a product, and one with a sign two
// more.

template <bool has_sign, bool drawn, int slot>
struct Codes {
    unsigned char bits;
};
template <bool has_sign, bool drawn, int slot>
constexpr bool coded<Codes<has_sign, drawn, slot>> = true;

// A block's new numbers, the largest size of those of each thread, and by what those of each group are multiplied: 0 where
// all of a group's codes are 0.
template <class S>
struct alignas(16) Waiting {
    f32 numbers[BLOCK];
    unsigned largest[BLOCK];
    f32 inverse[BLOCK / Coding::GROUP];
};

// The last bytes of four words, as one.
DEVICE unsigned last_bytes(unsigned a, unsigned b, unsigned c, unsigned d) {
    return __byte_perm(__byte_perm(a, b, 0x0073), __byte_perm(c, d, 0x0073), 0x5410);
}

// The size of a number as an integer, by which it is compared; what is never below 0 has no sign to take away.
template <bool has_sign>
DEVICE unsigned size_of(f32 x) {
    return has_sign ? bits_of(x) & 0x7fffffff : bits_of(x);
}

// Where an element's block begins: no device holds 2^32 of them.
DEVICE u64 of_block(i64 element) { return u64(unsigned(u64(element) / BLOCK)) * Coding::BYTES; }

DEVICE unsigned larger(unsigned a, unsigned b) { return a > b ? a : b; }

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
    unsigned first;  // element within the block
    Words words;
    f32 scale;
    real now[W];

    DEVICE void place(u64 leaf, i64 i, bool) {
        block = static_cast<const unsigned char*>(__cvta_global_to_generic(leaf + of_block(i)));
        first = unsigned(i) % BLOCK;
    }
    DEVICE void load(bool, int, int) {
        words = *reinterpret_cast<const Words*>(block + first / GROUP * GROUP + first % IN_ROW * 4);
        scale = *reinterpret_cast<const f32*>(block + BLOCK + first / GROUP * 4);
    }
    DEVICE void open() {
#pragma unroll
        for (int k = 0; k < W; ++k) {
            // Turned so that the code begins at SHIFT; the sign, which ends it, is the number's.
            const unsigned code = turned(words.x[k], first % GROUP / IN_ROW * 8 - SHIFT);
            now[k] = (of_bits(merged(code, LAST<has_sign> << SHIFT, TWO)) - TO<has_sign>) * scale;
            if constexpr (has_sign) now[k] = of_bits(bits_of(now[k]) | (code << (24 - SHIFT) & 0x80000000));
        }
    }
    DEVICE void close(int, unsigned) {}
    DEVICE void store(bool all, int low, int high) {
        Numbers numbers;
        unsigned most = 0;
#pragma unroll
        for (int k = 0; k < W; ++k) {
            numbers.x[k] = all || (low <= k && k < high) ? now[k] : real(0);
            most = larger(most, size_of<has_sign>(numbers.x[k]));
        }
        *reinterpret_cast<Numbers*>(shared<Waiting<S>>().numbers + first) = numbers;
        shared<Waiting<S>>().largest[first / W] = most;
    }
};

// What becomes of the numbers that wait, each thread having W; of other streams nothing is.
template <class S, int W>
struct Packing {
    static DEVICE void fill(int) {}
    static DEVICE void scale(int, u64, i64) {}
    static DEVICE void write(int, u64, i64, unsigned, u64) {}
};

template <bool has_sign, bool drawn, int slot, int W>
struct Packing<Codes<has_sign, drawn, slot>, W> : Coding {
    using S = Codes<has_sign, drawn, slot>;

    static DEVICE unsigned* block_of(u64 leaf, i64 first) {
        return static_cast<unsigned*>(__cvta_global_to_generic(leaf + of_block(first)));
    }
    static DEVICE void fill(int thread) {
        for (int k = thread * W; k < thread * W + W; ++k) shared<Waiting<S>>().numbers[k] = 0;
        shared<Waiting<S>>().largest[thread] = 0;
    }
    // One thread a group divides for all of it.
    static DEVICE void scale(int group, u64 leaf, i64 first) {
        const unsigned* largest = shared<Waiting<S>>().largest + group * (GROUP / W);
        unsigned most = largest[0];
#pragma unroll
        for (int k = 1; k < GROUP / W; ++k) most = larger(most, largest[k]);
        const bool finite = most < 0x7f800000;
        const f32 part = of_bits(most) * PART<has_sign>, quotient = f32(REACH<has_sign>) / of_bits(most);
        const f32 inverse = f32(LARGE) > quotient ? quotient : f32(LARGE);
        const f32 scale = most == 0 ? f32(0) : part > TINY ? part : f32(TINY);
        reinterpret_cast<f32*>(block_of(leaf, first))[BLOCK / 4 + group] = finite ? scale : of_bits(0x7fc00000);
        shared<Waiting<S>>().inverse[group] = finite && most > 0 ? inverse : f32(0);
    }
    // index: of the block's first element among all of the tree. A thread makes words that are neighbours, of one group.
    static DEVICE void write(unsigned thread, u64 leaf, i64 first, unsigned fold, u64 index) {
        constexpr int count = W / 4;  // p is of 4 bytes or fewer, where codes are
        struct alignas(4 * count) Row {
            f32 x[count];
        };
        struct alignas(4 * count) Words {
            unsigned x[count];
        };
        const unsigned group = thread * count / IN_ROW, lane = thread * count % IN_ROW;
        const f32* numbers = shared<Waiting<S>>().numbers + group * GROUP + lane;
        Row rows[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) rows[j] = *reinterpret_cast<const Row*>(numbers + j * IN_ROW);
        const f32 inverse = shared<Waiting<S>>().inverse[group];
        const unsigned start = started(fold, index + group * GROUP) + lane * MIX0;
        Words words;
#pragma unroll
        for (int k = 0; k < count; ++k) {
            const f32 x[4] = {rows[0].x[k], rows[1].x[k], rows[2].x[k], rows[3].x[k]};
            words.x[k] = word_of(x, inverse, start + k * MIX0) & (bits_of(inverse) != 0 ? ~0u : 0);  // no branch
        }
        *reinterpret_cast<Words*>(block_of(leaf, first) + thread * count) = words;
    }
    // Codes are made in a word's bits from SHIFT on. The even ones are shifted to its last byte while what rounds them is
    // added; of the odd ones two are shifted at once.
    static DEVICE unsigned word_of(const f32 (&x)[4], f32 inverse, unsigned start) {
        constexpr int up = 24 - SHIFT;
        unsigned y[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            y[j] = bits_of((has_sign ? abs(x[j]) : x[j]) * inverse + (drawn ? OF_DRAWN : TO<has_sign>));
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            const unsigned half = 1u << (SHIFT - 1), random = drawn ? mixed(start, j == 0 ? MIX2 : MIX3) : 0;
            y[j] = (y[j] << up) + (drawn ? random >> (32 - SHIFT - up) : half << up);
            y[j + 1] = y[j + 1] + (drawn ? random & ((1u << SHIFT) - 1) : half);
        }
        const unsigned even = __byte_perm(y[0], y[2], 0x0703), odd = __byte_perm(y[1], y[3], 0x7632) << up;
        const unsigned sizes = chosen(odd, 0xff00ff00, even);
        if (!has_sign) return sizes;
        return chosen(last_bytes(bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])), 0x80808080, sizes);
    }
};
