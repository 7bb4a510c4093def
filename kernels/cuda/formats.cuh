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
