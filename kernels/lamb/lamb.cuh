// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct lamb {
    template <class real>
    struct Coefficients {
        real grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, rbias1, rsqrt_bias2, eps, weight_decay, lr, factor;
    };

    template <class real, class M, class V>
    static DEVICE void element(real& p, real g, M& m, V& v, real& norm_p, real& norm_u, const Coefficients<real>& c) {
        g = c.grad_scale * g;
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
        norm_p = p;
        norm_u = mean * c.rbias1 / (sqrt(bound) * c.rsqrt_bias2 + c.eps) + c.weight_decay * p;
        p = p - c.lr * c.factor * norm_u;
    }

    static DEVICE f64 judged(f64, f64 norm_p, f64 norm_u, const Coefficients<f64>&) {
        return where((norm_p > 0) & (norm_u * 1e30 > norm_p), norm_p / norm_u, 1);
    }
};
