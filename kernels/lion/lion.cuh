// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

template <bool cautious_decay>
struct lion {
    template <class real>
    struct Coefficients {
        real grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, lr, decay, factor;
    };

    template <class real, class M, class Agree>
    static DEVICE void element(real& p, real g, M& m, Agree& agree, const Coefficients<real>& c) {
        g = c.grad_scale * g;
        real mixed = g;
        if constexpr (there<M>) {
            mixed = c.beta1 * m + c.one_minus_beta1 * g;
            m = c.beta2 * m + c.one_minus_beta2 * g;
        }
        real u = sign(mixed);
        if constexpr (there<Agree>) {
            agree = agreement(mixed, g);
            u = u * (agree * c.factor);
        }
        real kept = c.decay * p;
        if constexpr (cautious_decay) {
            kept = select(u * p, kept, p);
        }
        p = kept - c.lr * u;
    }

    static DEVICE f64 judged(f64 n, f64 agree, const Coefficients<f64>&) {
        return inverse_share(n, agree);
    }
};
