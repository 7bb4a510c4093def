// How a value rests in memory: a type of storage, what a load makes of it, and what a store leaves.

struct None {};  // an optional slot that a rule does without

template <class S>
constexpr bool there = true;
template <>
constexpr bool there<None> = false;

// float32 and float64 rest as they are.
DEVICE f32 decode(f32 stored) { return stored; }
DEVICE f64 decode(f64 stored) { return stored; }
DEVICE void encode(f32 value, f32& stored) { stored = value; }
DEVICE void encode(f64 value, f64& stored) { stored = value; }

// Copies in 16 bits, which are only written: to nearest, ties to even; float64 goes through float32.
struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};
DEVICE void encode(f32 value, f16& stored) { stored.bits = half_of(value); }
DEVICE void encode(f32 value, bf16& stored) {
    const unsigned bits = bits_of(value), odd = bits >> 16 & 1;
    // A NaN bypasses rounding, which could carry it to infinity or to zero.
    stored.bits = (unsigned short)((value != value ? bits | 0x400000 : bits + 0x7fff + odd) >> 16);
}
template <class S>
DEVICE void encode(f64 value, S& stored) {
    encode(narrow(value), stored);
}
