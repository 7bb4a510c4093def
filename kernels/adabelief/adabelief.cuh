// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct adabelief {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, rsqrt_bias2, eps, decay;
    };

    template <class real, class M, class S>
    static DEVICE void element(real& p, real g, M& m, S& s, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        real mean = g;
        if constexpr (there<M>) {
            m = c.beta1 * m + c.one_minus_beta1 * g;
            mean = m;
        }
        real surprise = g - mean;
        real bound = surprise * surprise + c.eps;
        if constexpr (there<S>) {
            s = c.beta2 * s + c.one_minus_beta2 * (surprise * surprise) + c.eps;
            bound = s;
        }
        p = c.decay * p - c.step_size * mean / (sqrt(bound) * c.rsqrt_bias2 + c.eps);
    }
};
