/* Sixteen float lanes with the same arithmetic in every instruction set.
 *
 * Each version offers the same operations; all are element-wise and correctly rounded, so equal
 * code gives equal bits. Reductions across lanes go through one fixed tree (`vf_sum`); the largest lane needs no order
 * (`vf_peak`: NaN may be lost in it, and stays visible in what is computed from the lanes).
 *
 *   vf_load vf_store          16 floats            vf_set1 vf_zero
 *   vf_load_bf16 vf_store_bf16  16 bfloat16, stored round-to-nearest-even
 *   vf_add vf_sub vf_mul vf_div                    vf_fma(a, b, c) = a * b + c, rounded once
 *   vf_max(a, b) = a > b ? a : b  (b when either is NaN), vf_min alike with <
 *   vf_where_lt(a, b, x, y) = a < b ? x : y
 *   vf_shift_exponent(p, t)   p * 2^n with n in the low bits of t (see vf_exp)
 *   vp_load                   16 pairs of bfloat16
 *   vf_dp(acc, a, b)          acc + a.hi * b.hi, then + a.lo * b.lo, each rounded (vdpbf16ps)
 *
 * vf_store_bf16 flushes denormals to zero, as vcvtneps2bf16 does.
 */
#ifndef TS_VEC_H
#define TS_VEC_H

#include <math.h>
#include <string.h>

#include "dispatch.h"

#if defined(__SANITIZE_ADDRESS__)
/* Checks in every inlined copy would take minutes to compile. */
#define TS_INLINE static __attribute__((noinline, unused))
#else
#define TS_INLINE static inline __attribute__((always_inline))
#endif

#if defined(TS_BUILD_AVX512)
#define TS_SUFFIX avx512
#include "vec_avx512.h"
#elif defined(TS_BUILD_AVX2)
#define TS_SUFFIX avx2
#include "vec_avx2.h"
#else
#define TS_SUFFIX portable
#include "vec_portable.h"
#endif

TS_INLINE float ts_bits_to_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

TS_INLINE uint32_t ts_float_to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

TS_INLINE float ts_from_bf16(uint16_t value) { return ts_bits_to_float((uint32_t)value << 16); }

/* Round to nearest even; NaN stays NaN, denormals become zero of their sign. */
TS_INLINE uint16_t ts_to_bf16(float value)
{
    uint32_t bits = ts_float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    if ((bits & 0x7f800000u) == 0)
        return (uint16_t)(bits >> 16 & 0x8000u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Elements of dtype `bf16` (0: float) as floats; `bf16` is a constant wherever it is fast. */
TS_INLINE vf vf_load_as(const void *p, long i, int bf16)
{
    return bf16 ? vf_load_bf16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}

TS_INLINE void vf_store_as(void *p, long i, vf v, int bf16)
{
    if (bf16)
        vf_store_bf16((uint16_t *)p + i, v);
    else
        vf_store((float *)p + i, v);
}

/* The first n of 16 elements; lanes past them are zero. */
TS_INLINE vf vf_load_head(const void *p, long i, long n, int bf16)
{
    if (n >= 16)
        return vf_load_as(p, i, bf16);
    float lanes[16] = {0};
    for (long j = 0; j < n; j++)
        lanes[j] = bf16 ? ts_from_bf16(((const uint16_t *)p)[i + j]) : ((const float *)p)[i + j];
    return vf_load(lanes);
}

TS_INLINE void vf_store_head(void *p, long i, long n, vf v, int bf16)
{
    if (n >= 16) {
        vf_store_as(p, i, v, bf16);
    } else if (bf16) {
        uint16_t lanes[16];
        vf_store_bf16(lanes, v);
        memcpy((uint16_t *)p + i, lanes, (size_t)n * 2);
    } else {
        float lanes[16];
        vf_store(lanes, v);
        memcpy((float *)p + i, lanes, (size_t)n * 4);
    }
}

/* What a tensor of this dtype would hold: rounded and widened again. */
TS_INLINE vf vf_round_as(vf v, int bf16)
{
    if (!bf16)
        return v;
    uint16_t lanes[16];
    vf_store_bf16(lanes, v);
    return vf_load_bf16(lanes);
}

/* ((l0+l8)+(l4+l12)) + ... : halves are folded onto each other. */
TS_INLINE float vf_sum(vf v)
{
    float lanes[16];
    vf_store(lanes, v);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            lanes[i] = lanes[i] + lanes[i + width];
    return lanes[0];
}

/* exp: x = n ln2 + r, a polynomial on |r| <= ln2 / 2, the exponent put back by integer addition.
 * Own coefficients (least squares at Chebyshev nodes, 0.02 ulp before rounding), because libm's
 * differ between machines. Below -87 the result is 0, above 88.72 infinity; NaN stays NaN. */
TS_INLINE vf vf_exp(vf x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: rounds to an integer and holds it in its bits */
    vf clamped = vf_max(vf_set1(-87.0f), vf_min(vf_set1(88.72f), x));
    vf t = vf_fma(clamped, vf_set1(0x1.715476p+0f), vf_set1(magic));
    vf n = vf_sub(t, vf_set1(magic));
    vf r = vf_fma(n, vf_set1(-0x1.62e4p-1f), clamped);
    r = vf_fma(n, vf_set1(-0x1.7f7d1cp-20f), r);
    vf p = vf_set1(0x1.a15318p-13f);
    p = vf_fma(p, r, vf_set1(0x1.6d44b6p-10f));
    p = vf_fma(p, r, vf_set1(0x1.1110c6p-7f));
    p = vf_fma(p, r, vf_set1(0x1.5554e8p-5f));
    p = vf_fma(p, r, vf_set1(0x1.555556p-3f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(vf_mul(r, r), p, r);
    p = vf_shift_exponent(vf_add(p, vf_set1(1.0f)), t);
    p = vf_where_lt(x, vf_set1(-87.0f), vf_zero(), p);
    return vf_where_lt(vf_set1(88.72f), x, vf_set1(INFINITY), p);
}

TS_INLINE vf vf_sigmoid(vf x)
{
    vf one = vf_set1(1.0f);
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), x))));
}

TS_INLINE vf vf_silu(vf x)
{
    return vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_zero(), x))));
}

#endif
