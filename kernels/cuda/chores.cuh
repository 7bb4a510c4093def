// What rides along with a step: the element functions of kernels/chores.py, and which of them a walk is compiled with.

template <class real>
DEVICE real clip(real g, real limit) {
    return maximum(-maximum(-g, -limit), -limit);
}

template <class real, class Numbers>
DEVICE real average(real ema, real p, const Numbers& x) {
    return ema + x.one_minus_decay * (p - ema);
}

// The chores' numbers, behind the kernel's coefficients.
template <class real>
struct Numbers {
    real max_value, one_minus_decay;
};

// Behind these the first coefficient, grad_scale, as it was before it was rounded: a float64 in the room of reals.
template <class real>
struct Unrounded;
template <>
struct Unrounded<f32> {
    f32 low, high;
    DEVICE f64 value() const { return of_bits(bits_of(low), bits_of(high)); }
};
template <>
struct Unrounded<f64> {
    f64 whole;
    DEVICE f64 value() const { return whole; }
};

// What the step's random bits begin with: 32 bits in the room of a float.
struct Fold {
    f32 bits;
};

template <bool wanted, class T>
struct If {};
template <class T>
struct If<true, T> : T {};

template <class C, class... More>
struct RowOf : C, More... {};

// What norm.cu found out about a leaf: multiply its gradient by both, or leave everything as it is; and the factor that
// the kernel's sums give, beside the one before, which is carried on.
struct Ruling {
    f64 scale, factor;
    i64 skip;
    f64 judged, before;
};

// Of a kernel's sums, as its SUMS say: how many there are, which of them are norms, by bits, and whether they go over
// all leaves, so that a number is carried on.
template <class K>
struct Sums {
    static constexpr int count = 0, norms = 0;
    static constexpr bool carried = false;
};

constexpr int LIMIT = 1, CLEAR = 2, SCALED = 4, NOTED = 8, MORE = 16, DRAWN = 32, SUMMED = 64, SUMMING = 128, FOLLOWED = 256;

template <int flags, class Average, class Short>
struct Chores {
    using Ema = Average;
    using Copy = Short;
    static constexpr bool limit = flags & LIMIT, clear = flags & CLEAR, scaled = flags & SCALED, noted = flags & NOTED;
    static constexpr bool drawn = flags & DRAWN;
    // SUMMED: the kernel's sums are there, and the leaf's Ruling has the factor. SUMMING: add them up, and store nothing.
    static constexpr bool summed = flags & SUMMED, summing = flags & SUMMING;
    // The copy is what p, a master, is rounded to: where it is not, it was set from outside, and p takes its value.
    static constexpr bool followed = flags & FOLLOWED;
    // MORE: rows and tables are as where other leaves have chores.
    static constexpr bool any = flags & (LIMIT | CLEAR | SCALED | NOTED | MORE | SUMMED) || there<Ema> || there<Copy>;
    // In the table of addresses, behind the slots: the average, the copy, the leaf's Ruling, the signature's notes; then
    // what p's other bits rest in; then where values that were taken over are counted; then the index of the leaf's
    // first element.
    template <class P>
    static constexpr int columns = (any ? 4 : 0) + splits<P> + followed + drawn;
    template <class C, class real>
    using Row = RowOf<C, If<any, Numbers<real>>, If<scaled, Unrounded<real>>, If<drawn, Fold>>;

    template <class R>
    static DEVICE unsigned fold(const R& row) {
        if constexpr (drawn) return bits_of(row.bits);
        else return 0;
    }
    // The random bits of elements from an index on. within: whether all of these have the same upper 32 bits.
    struct Draws {
        u64 index;
        bool within;
        template <class R>
        DEVICE unsigned operator()(const R& row, int k) const {
            if constexpr (!drawn) return 0;
            else if (within) return mixed(started(bits_of(row.bits), index) + k * MIX0);
            else return mixed(started(bits_of(row.bits), index + k));
        }
    };

    // The gradient that the kernel gets, and its numbers: both as they are, or g scaled and clipped and scale 1.
    template <class real, class R>
    static DEVICE real gradient(real g, const R& row) {
        if constexpr (limit) return clip(row.grad_scale * g, row.max_value);
        else return g;
    }
    template <class R>
    static DEVICE R numbers(R row) {
        if constexpr (limit) row.grad_scale = 1;
        return row;
    }
};
