// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

template <bool cautious_decay>
struct lion {
    template <class real>
    struct Coefficients {
        real grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, lr, decay;
    };

    template <class real, class M>
    static DEVICE void element(real& p, real g, M& m, const Coefficients<real>& c) {
        g = c.grad_scale * g;
        real mixed = g;
        if constexpr (there<M>) {
            mixed = c.beta1 * m + c.one_minus_beta1 * g;
            m = c.beta2 * m + c.one_minus_beta2 * g;
        }
        real u = sign(mixed);
        real kept = c.decay * p;
        if constexpr (cautious_decay) {
            kept = select(u * p, kept, p);
        }
        p = kept - c.lr * u;
    }
};
