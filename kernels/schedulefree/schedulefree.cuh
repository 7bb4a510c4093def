// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct schedulefree {
    template <class real>
    struct Coefficients {
        real grad_scale, beta2, one_minus_beta2, rsqrt_bias2, eps, weight_decay, average, y_step, z_step;
    };

    template <class real, class V>
    static DEVICE void element(real& p, real g, real& z, V& v, const Coefficients<real>& c) {
        g = c.grad_scale * g;
        real u = g;
        if constexpr (there<V>) {
            v = c.beta2 * v + c.one_minus_beta2 * (g * g);
            u = g / (sqrt(v) * c.rsqrt_bias2 + c.eps);
        }
        u = u + c.weight_decay * p;
        p = p + c.average * (z - p) - c.y_step * u;
        z = z - c.z_step * u;
    }
};
