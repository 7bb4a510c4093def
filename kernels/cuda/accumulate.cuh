// Micro-batches: p is the sum so far, which the first gradient overwrites.

struct accumulate {
    template <class real>
    struct Coefficients {
        real add;
    };

    template <class real>
    static DEVICE void element(real& p, real g, const Coefficients<real>& c) {
        p = c.add != 0 ? p + g : g;
    }
};
