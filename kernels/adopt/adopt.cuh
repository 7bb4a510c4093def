// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct adopt {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, clip, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps, decay;
    };

    template <class real, class M>
    static DEVICE void element(real& p, real g, M& m, real& v, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        real u = g / maximum(sqrt(v), c.eps);
        u = maximum(-maximum(-u, -c.clip), -c.clip);
        real mean = c.one_minus_beta1 * u;
        if constexpr (there<M>) {
            m = c.beta1 * m + c.one_minus_beta1 * u;
            mean = m;
        }
        p = c.decay * p - c.step_size * mean;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
    }
};
