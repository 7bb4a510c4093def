// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct momentum {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, momentum, one_minus_dampening, grad_step, momentum_step;
    };

    template <class real, class M>
    static DEVICE void element(real& p, real g, M& m, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        real update = c.grad_step * g;
        if constexpr (there<M>) {
            m = c.momentum * m + c.one_minus_dampening * g;
            update = update + c.momentum_step * m;
        }
        p = p - update;
    }
};
