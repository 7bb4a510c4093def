// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct stableadamw {
    template <class real>
    struct Coefficients {
        real grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, lr, factor;
    };

    template <class real>
    static DEVICE void element(real& p, real g, real& m, real& v, real& surprise, const Coefficients<real>& c) {
        g = c.grad_scale * g;
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
        real root = sqrt(v);
        surprise = g / maximum(root, c.eps);
        p = p - c.lr * c.factor * (m / (root + c.eps) + c.weight_decay * p);
    }

    static DEVICE f64 judged(f64 n, f64 surprise, const Coefficients<f64>&) {
        return 1 / maximum(surprise / sqrt(n), 1);
    }
};
