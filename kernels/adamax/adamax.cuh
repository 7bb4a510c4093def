// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct adamax {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, beta1, one_minus_beta1, beta2, step_size, eps, divisor_eps;
    };

    template <class real>
    static DEVICE void element(real& p, real g, real& m, real& u, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        m = c.beta1 * m + c.one_minus_beta1 * g;
        u = maximum(c.beta2 * u, abs(g) + c.eps);
        p = p - c.step_size * m / (u + c.divisor_eps);
    }
};
