// IEEE binary32 and binary64 arithmetic that is never fused and never flushed, whatever options the compiler is given.
//
// CuPy appends -ftz=true to every compilation, which turns plain C++ into add.ftz, setp.ftz, abs.ftz. So each operation
// here is one PTX instruction that names its rounding: .rn forbids the fusing of a product into a sum. Loads, stores
// and copies of a value flush nothing. On the host (tests without a GPU) plain operators mean the same under
// -ffp-contract=off. maximum, select, sign and agreement are as kernels/contract.py defines them: NaN if either is NaN, b
// where they are equal; b below zero; +0 for either zero; 1 where the signs are the same.

#define DEVICE __device__ __forceinline__

typedef long long i64;
typedef unsigned long long u64;

template <class T>
struct Real {
    T x;
    Real() = default;
    DEVICE constexpr Real(T x) : x(x) {}
};
using f32 = Real<float>;
using f64 = Real<double>;

#ifdef __CUDACC__
#define UNARY(real, r, name, ptx) \
    DEVICE real name(real a) { real y; asm(ptx " %0, %1;" : "=" r(y.x) : r(a.x)); return y; }
#define BINARY(real, r, name, ptx) \
    DEVICE real name(real a, real b) { real y; asm(ptx " %0, %1, %2;" : "=" r(y.x) : r(a.x), r(b.x)); return y; }
#define COMPARISON(real, r, name, ptx) \
    DEVICE bool name(real a, real b) { \
        int y; \
        asm("{ .reg .pred q; " ptx " q, %1, %2; selp.s32 %0, 1, 0, q; }" : "=r"(y) : r(a.x), r(b.x)); \
        return y != 0; \
    }
// Without the branches that nvcc makes of a comparison behind another: neighbours' signs differ.
#define CHOICES(real, r, type, zero, one, nan) \
    DEVICE real maximum(real a, real b) { \
        real y; \
        asm("{ .reg .pred p; .reg .pred q; setp.gt." type " p, %1, %2; setp.neu." type " q, %1, %1; or.pred p, p, q;" \
            " selp." type " %0, %1, %2, p; }" : "=" r(y.x) : r(a.x), r(b.x)); \
        return y; \
    } \
    DEVICE real select(real x, real a, real b) { \
        real y; \
        asm("{ .reg .pred p; setp.gt." type " p, " zero ", %1; selp." type " %0, %3, %2, p; }" \
            : "=" r(y.x) : r(x.x), r(a.x), r(b.x)); \
        return y; \
    } \
    DEVICE real sign(real x) { return select(x, select(-x, abs(x), 1), -1); } \
    DEVICE real agreement(real u, real g) { \
        real y; \
        asm("{ .reg .pred p; .reg .pred q; .reg .pred s;" \
            " setp.gt." type " p, %1, " zero "; setp.gt." type " q, %2, " zero "; and.pred p, p, q;" \
            " setp.gt." type " q, " zero ", %1; setp.gt." type " s, " zero ", %2; and.pred q, q, s; or.pred p, p, q;" \
            " setp.neu." type " q, %1, %1; setp.neu." type " s, %2, %2; or.pred q, q, s;" \
            " selp." type " %0, " one ", " zero ", p; selp." type " %0, " nan ", %0, q; }" \
            : "=" r(y.x) : r(u.x), r(g.x)); \
        return y; \
    }
#define ARITHMETIC(real, r, type, zero, one, nan) \
    BINARY(real, r, operator+, "add.rn." type) \
    BINARY(real, r, operator-, "sub.rn." type) \
    BINARY(real, r, operator*, "mul.rn." type) \
    BINARY(real, r, operator/, "div.rn." type) \
    UNARY(real, r, operator-, "neg." type) \
    UNARY(real, r, sqrt, "sqrt.rn." type) \
    UNARY(real, r, abs, "abs." type) \
    COMPARISON(real, r, operator>, "setp.gt." type) \
    COMPARISON(real, r, operator!=, "setp.neu." type) \
    CHOICES(real, r, type, zero, one, nan)
ARITHMETIC(f32, "f", "f32", "0f00000000", "0f3F800000", "0f7FC00000")
ARITHMETIC(f64, "d", "f64", "0d0000000000000000", "0d3FF0000000000000", "0d7FF8000000000000")
DEVICE f32 narrow(f64 a) { f32 y; asm("cvt.rn.f32.f64 %0, %1;" : "=f"(y.x) : "d"(a.x)); return y; }
DEVICE f64 widen(f32 a) { f64 y; asm("cvt.f64.f32 %0, %1;" : "=d"(y.x) : "f"(a.x)); return y; }
DEVICE f64 of_bits(unsigned low, unsigned high) {
    f64 y;
    asm("mov.b64 %0, {%1, %2};" : "=d"(y.x) : "r"(low), "r"(high));
    return y;
}
DEVICE unsigned bits_of(f32 a) { unsigned y; asm("mov.b32 %0, %1;" : "=r"(y) : "f"(a.x)); return y; }
DEVICE f32 of_bits(unsigned a) { f32 y; asm("mov.b32 %0, %1;" : "=f"(y.x) : "r"(a)); return y; }
DEVICE f32 of_half(unsigned short a) { f32 y; asm("cvt.f32.f16 %0, %1;" : "=f"(y.x) : "h"(a)); return y; }
DEVICE unsigned short half_of(f32 a) { unsigned short y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(a.x)); return y; }
#undef UNARY
#undef BINARY
#undef COMPARISON
#undef CHOICES
#else
#define ARITHMETIC(real) \
    DEVICE real operator+(real a, real b) { return a.x + b.x; } \
    DEVICE real operator-(real a, real b) { return a.x - b.x; } \
    DEVICE real operator*(real a, real b) { return a.x * b.x; } \
    DEVICE real operator/(real a, real b) { return a.x / b.x; } \
    DEVICE real operator-(real a) { return -a.x; } \
    DEVICE real sqrt(real a) { return std::sqrt(a.x); } \
    DEVICE real abs(real a) { return std::fabs(a.x); } \
    DEVICE bool operator>(real a, real b) { return a.x > b.x; } \
    DEVICE bool operator!=(real a, real b) { return a.x != b.x; } \
    DEVICE real maximum(real a, real b) { return a > b || a != a ? a : b; } \
    DEVICE real select(real x, real a, real b) { return real(0) > x ? b : a; } \
    DEVICE real sign(real x) { return x > 0 ? 1 : real(0) > x ? -1 : abs(x); } \
    DEVICE real agreement(real u, real g) { return maximum(sign(u) * sign(g), 0); }
ARITHMETIC(f32)
ARITHMETIC(f64)
DEVICE f32 narrow(f64 a) { return float(a.x); }
DEVICE f64 widen(f32 a) { return double(a.x); }
DEVICE f64 of_bits(unsigned low, unsigned high) { return __builtin_bit_cast(double, high * 0x100000000ull + low); }
DEVICE unsigned bits_of(f32 a) { return __builtin_bit_cast(unsigned, a.x); }
DEVICE f32 of_bits(unsigned a) { return __builtin_bit_cast(float, a); }
DEVICE f32 of_half(unsigned short a) { return float(__builtin_bit_cast(_Float16, a)); }
DEVICE unsigned short half_of(f32 a) { return __builtin_bit_cast(unsigned short, _Float16(a.x)); }
#endif
#undef ARITHMETIC
DEVICE f64 widen(f64 a) { return a; }

DEVICE f64 where(bool truth, f64 a, f64 b) { return truth ? a : b; }

DEVICE f64 inverse_share(f64 n, f64 agree) { return 1 / maximum(agree / n, 0.001); }
