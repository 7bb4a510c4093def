// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct rmsprop {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, alpha, one_minus_alpha, momentum, root_eps, eps, grad_step, step_size;
    };

    template <class real, class V, class Mean, class M>
    static DEVICE void element(real& p, real g, V& v, Mean& mean, M& m, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        real variance = g * g;
        if constexpr (there<V>) {
            v = c.alpha * v + c.one_minus_alpha * (g * g);
            variance = v;
        }
        if constexpr (there<Mean>) {
            mean = c.alpha * mean + c.one_minus_alpha * g;
            variance = maximum(variance - mean * mean, 0);
        }
        real update = c.grad_step * g / (sqrt(variance + c.root_eps) + c.eps);
        if constexpr (there<M>) {
            m = c.momentum * m + update;
            update = m;
        }
        p = p - c.step_size * update;
    }
};
