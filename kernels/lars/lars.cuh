// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct lars {
    template <class real>
    struct Coefficients {
        real grad_scale, momentum, weight_decay, trust_coefficient, lr, factor;
    };

    template <class real, class M>
    static DEVICE void element(real& p, real g, M& m, real& norm_p, real& norm_g, const Coefficients<real>& c) {
        g = c.grad_scale * g;
        norm_p = p;
        norm_g = g;
        real u = c.lr * c.factor * (g + c.weight_decay * p);
        if constexpr (there<M>) {
            m = c.momentum * m + u;
            u = m;
        }
        p = p - u;
    }

    static DEVICE f64 judged(f64, f64 norm_p, f64 norm_g, const Coefficients<f64>& c) {
        return where((norm_p > 0) & (norm_g * 1e30 > norm_p),
                     c.trust_coefficient * norm_p / (norm_g + c.weight_decay * norm_p), 1);
    }
};
