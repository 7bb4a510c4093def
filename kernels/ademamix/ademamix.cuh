// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct ademamix {
    template <class real>
    struct Coefficients {
        real grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3, fast_step, slow_step,
            rsqrt_bias2, eps, decay;
    };

    template <class real>
    static DEVICE void element(real& p, real g, real& m1, real& m2, real& v, const Coefficients<real>& c) {
        g = c.grad_scale * g;
        m1 = c.beta1 * m1 + c.one_minus_beta1 * g;
        m2 = c.beta3 * m2 + c.one_minus_beta3 * g;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
        p = c.decay * p - (c.fast_step * m1 + c.slow_step * m2) / (sqrt(v) * c.rsqrt_bias2 + c.eps);
    }
};
