// How a value rests in memory: a type of storage, what a load makes of it, and what a store leaves. See formats.py.

struct None {};  // an optional slot that a rule does without

template <class S>
constexpr bool there = true;
template <>
constexpr bool there<None> = false;

template <class S>
constexpr bool coded = false;  // 8 bits; see codes.cuh

struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};
struct bf16_p : bf16 {};     // rounded stochastically, by the bits for p
struct bf16_slot : bf16 {};  // and by those for slots

DEVICE void decode(f32 stored, f32& value) { value = stored; }
DEVICE void decode(f64 stored, f64& value) { value = stored; }
DEVICE void decode(f64 stored, f32& value) { value = narrow(stored); }
DEVICE void decode(f16 stored, f32& value) { value = of_half(stored.bits); }
DEVICE void decode(bf16 stored, f32& value) { value = of_bits(unsigned(stored.bits) << 16); }
template <class S>
DEVICE void decode(S stored, f64& value) {
    f32 narrower;
    decode(stored, narrower);
    value = widen(narrower);
}

// The upper half after a number below 2^16 was added; a NaN bypasses that, which could carry it to infinity or to zero.
DEVICE unsigned short rounded(f32 value, unsigned added) {
    const unsigned bits = bits_of(value);
    return (unsigned short)((value != value ? bits | 0x400000 : bits + added) >> 16);
}

// To nearest, ties to even, unless the type says that random bits decide; float64 goes through float32.
DEVICE void encode(f32 value, f32& stored, unsigned = 0) { stored = value; }
DEVICE void encode(f64 value, f64& stored, unsigned = 0) { stored = value; }
DEVICE void encode(f32 value, f16& stored, unsigned = 0) { stored.bits = half_of(value); }
DEVICE void encode(f32 value, bf16& stored, unsigned = 0) {
    stored.bits = rounded(value, 0x7fff + (bits_of(value) >> 16 & 1));
}
DEVICE void encode(f32 value, bf16_p& stored, unsigned random) {
    stored.bits = rounded(value, (random ^ random >> 16) & 0xffff);
}
DEVICE void encode(f32 value, bf16_slot& stored, unsigned random) { stored.bits = rounded(value, random >> 16); }
template <class S>
DEVICE void encode(f64 value, S& stored, unsigned random = 0) {
    encode(narrow(value), stored, random);
}

// The random bits of an element, from the row's `fold` of the key; what is mixed for it.
DEVICE unsigned started(unsigned fold, u64 index) { return unsigned(index) * MIX0 + fold + unsigned(index >> 32) * MIX1; }
// Some bits of a word, beside all others or in their place: one instruction, where the compiler makes two of two constants.
#ifdef __CUDACC__
#define OF_THREE(name, table) \
    DEVICE unsigned name(unsigned x, unsigned mask, unsigned others) { \
        unsigned y; \
        asm("lop3.b32 %0, %1, %2, %3, " table ";" : "=r"(y) : "r"(x), "r"(mask), "r"(others)); \
        return y; \
    }
OF_THREE(merged, "0xea")
OF_THREE(chosen, "0xe2")
#undef OF_THREE
#else
DEVICE unsigned merged(unsigned x, unsigned mask, unsigned others) { return (x & mask) | others; }
DEVICE unsigned chosen(unsigned x, unsigned mask, unsigned others) { return (x & mask) | (others & ~mask); }
#endif
// A word turned to the right, by some bits of a multiple of 32 more.
DEVICE unsigned turned(unsigned x, int by) { return __funnelshift_r(x, x, by); }
DEVICE unsigned mixed(unsigned x, unsigned last = MIX2) {
    x = (x ^ x >> 16) * MIX1;
    return (x ^ x >> 15) * last;
}

// float32 as bfloat16 and the signed 16 bits that it lacks, which rest in a place of their own.
struct split {
    unsigned short bits;
};
template <class P>
constexpr bool splits = false;
template <>
constexpr bool splits<split> = true;

// What a gradient rests in that comes as several arrays.
template <class S>
struct several {
    S x;
};
template <class G>
constexpr bool in_parts = false;
template <class S>
constexpr bool in_parts<several<S>> = true;

DEVICE void take_apart(f32 value, unsigned short& high, unsigned short& low) {
    const unsigned bits = value != value ? (bits_of(value) | 0x400000) & 0xffff0000 : bits_of(value);
    high = (unsigned short)((bits + 0x8000) >> 16), low = (unsigned short)bits;
}
// Of halves that make a NaN, the high one alone.
DEVICE f32 joined(unsigned short high, unsigned short low) {
    const unsigned alone = unsigned(high) << 16;
    const f32 value = of_bits(alone + unsigned(int(short(low))));
    return value != value ? of_bits(alone) : value;
}
