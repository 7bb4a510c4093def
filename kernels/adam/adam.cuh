// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

template <bool cautious_decay>
struct adam {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, rsqrt_bias2, eps, decay,
            factor;
    };

    template <class real, class M, class V, class Vmax, class Agree>
    static DEVICE void element(real& p, real g, M& m, V& v, Vmax& vmax, Agree& agree, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        real mean = g;
        if constexpr (there<M>) {
            m = c.beta1 * m + c.one_minus_beta1 * g;
            mean = m;
        }
        real bound = g * g;
        if constexpr (there<V>) {
            v = c.beta2 * v + c.one_minus_beta2 * (g * g);
            bound = v;
        }
        if constexpr (there<Vmax>) {
            vmax = maximum(vmax, bound);
            bound = vmax;
        }
        real update = mean;
        if constexpr (there<Agree>) {
            agree = agreement(mean, g);
            update = mean * (agree * c.factor);
        }
        real kept = c.decay * p;
        if constexpr (cautious_decay) {
            kept = select(update * p, kept, p);
        }
        p = kept - c.step_size * update / (sqrt(bound) * c.rsqrt_bias2 + c.eps);
    }

    static DEVICE f64 judged(f64 n, f64 agree, const Coefficients<f64>&) {
        return inverse_share(n, agree);
    }
};
