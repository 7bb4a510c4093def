// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct nadam {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, beta1, one_minus_beta1, beta2, one_minus_beta2, grad_step, momentum_step, rsqrt_bias2, eps,
            decay;
    };

    template <class real>
    static DEVICE void element(real& p, real g, real& m, real& v, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
        p = c.decay * p - (c.grad_step * g + c.momentum_step * m) / (sqrt(v) * c.rsqrt_bias2 + c.eps);
    }
};
