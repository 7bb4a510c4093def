// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct prodigy {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, rate, s_rate, eps, weight_decay, d, factor;
    };

    struct Judging {
        f64 d0, beta3, d_coef, growth_rate;
    };

    template <class real, class M, class V>
    static DEVICE void element(real& p, real g, M& m, V& v, real& s, real& p0, real& numerator, real& denominator, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        numerator = c.rate * g * (p0 - p);
        g = c.d * g;
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
        s = c.beta3 * s + c.s_rate * c.d * g;
        denominator = abs(s);
        p = p - c.rate * c.d * (mean / (sqrt(bound) + c.eps * c.factor) + c.weight_decay * p);
    }

    static DEVICE void judged(f64 numerator, f64 denominator, f64& d, f64& d_max, f64& d_numerator, const Judging& c) {
        d = where(d > 0, d, c.d0);
        d_max = where(d_max > 0, d_max, c.d0);
        f64 total = c.beta3 * d_numerator + d / c.d0 * d * numerator;
        total = where(total - total != 0, d_numerator, total);
        f64 hat = where(denominator > 0, c.d_coef * total / denominator, 0);
        d_numerator = where(denominator > 0, total, d_numerator);
        d_max = where(hat > d_max, hat, d_max);
        d = where(d > c.d0, d, where(hat > d, hat, d));
        d = where(d * c.growth_rate > d_max, d_max, d * c.growth_rate);
    }
};
