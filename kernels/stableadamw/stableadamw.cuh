// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct stableadamw {
    template <class real>
    struct Coefficients {
        real grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, lr, factor;
    };

    template <class real, class M, class V>
    static DEVICE void element(real& p, real g, M& m, V& v, real& surprise, const Coefficients<real>& c) {
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
        real root = sqrt(bound);
        surprise = g / maximum(root, c.eps);
        p = p - c.lr * c.factor * (mean / (root + c.eps) + c.weight_decay * p);
    }

    static DEVICE f64 judged(f64 n, f64 surprise, const Coefficients<f64>&) {
        return 1 / maximum(surprise / sqrt(n), 1);
    }
};
