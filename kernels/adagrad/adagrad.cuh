// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct adagrad {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, step_size, root_eps, eps;
    };

    template <class real>
    static DEVICE void element(real& p, real g, real& sum, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        sum = sum + g * g;
        p = p - c.step_size * g / (sqrt(sum + c.root_eps) + c.eps);
    }
};
