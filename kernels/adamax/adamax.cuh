// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct adamax {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, beta1, one_minus_beta1, beta2, step_size, eps, divisor_eps;
    };

    template <class real, class M, class U>
    static DEVICE void element(real& p, real g, M& m, U& u, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        real mean = g;
        if constexpr (there<M>) {
            m = c.beta1 * m + c.one_minus_beta1 * g;
            mean = m;
        }
        real bound = abs(g) + c.eps;
        if constexpr (there<U>) {
            u = maximum(c.beta2 * u, bound);
            bound = u;
        }
        p = p - c.step_size * mean / (bound + c.divisor_eps);
    }
};
