// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct adabelief {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, rsqrt_bias2, eps, decay;
    };

    template <class real>
    static DEVICE void element(real& p, real g, real& m, real& s, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        m = c.beta1 * m + c.one_minus_beta1 * g;
        real surprise = g - m;
        s = c.beta2 * s + c.one_minus_beta2 * (surprise * surprise) + c.eps;
        p = c.decay * p - c.step_size * m / (sqrt(s) * c.rsqrt_bias2 + c.eps);
    }
};
