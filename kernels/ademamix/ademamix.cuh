// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct ademamix {
    template <class real>
    struct Coefficients {
        real grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3, fast_step, slow_step,
            rsqrt_bias2, eps, decay;
    };

    template <class real, class M1, class M2, class V>
    static DEVICE void element(real& p, real g, M1& m1, M2& m2, V& v, const Coefficients<real>& c) {
        g = c.grad_scale * g;
        real fast = g;
        if constexpr (there<M1>) {
            m1 = c.beta1 * m1 + c.one_minus_beta1 * g;
            fast = m1;
        }
        real slow = g;
        if constexpr (there<M2>) {
            m2 = c.beta3 * m2 + c.one_minus_beta3 * g;
            slow = m2;
        }
        real bound = g * g;
        if constexpr (there<V>) {
            v = c.beta2 * v + c.one_minus_beta2 * (g * g);
            bound = v;
        }
        p = c.decay * p - (c.fast_step * fast + c.slow_step * slow) / (sqrt(bound) * c.rsqrt_bias2 + c.eps);
    }
};
