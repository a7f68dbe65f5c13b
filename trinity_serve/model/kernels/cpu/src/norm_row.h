/* RMS norm of one row: fp32(x) * (1 / sqrt(mean(x²) + eps)) * fp32(w). */
#ifndef TS_NORM_ROW_H
#define TS_NORM_ROW_H

#include "vec.h"

/* Two sums of 16 lanes, so that one does not wait for the other; their order is fixed. */
TS_INLINE float ts_inverse_rms(const void *x, long width, float eps, int bf16)
{
    vf even = vf_zero(), odd = vf_zero();
    for (long i = 0; i < width; i += 32) {
        vf a = vf_load_head(x, i, width - i, bf16);
        even = vf_fma(a, a, even);
        if (i + 16 < width) {
            vf b = vf_load_head(x, i + 16, width - i - 16, bf16);
            odd = vf_fma(b, b, odd);
        }
    }
    float mean = vf_sum(vf_add(even, odd)) / (float)width;
    return 1.0f / sqrtf(mean + eps);
}

TS_INLINE vf ts_normed(const void *x, const void *w, long i, long left, vf inverse, int bf16)
{
    vf scaled = vf_mul(vf_load_head(x, i, left, bf16), inverse);
    return vf_mul(vf_load_head(w, i, left, bf16), scaled);
}

TS_INLINE void ts_norm_row(const void *x, const void *w, void *out, long width, float eps, int bf16)
{
    vf inverse = vf_set1(ts_inverse_rms(x, width, eps, bf16));
    for (long i = 0; i < width; i += 16)
        vf_store_head(out, i, width - i, ts_normed(x, w, i, width - i, inverse, bf16), bf16);
}

/* Byte offset of row r of a row-major tensor. */
TS_INLINE size_t ts_row_offset(long row, long width, int bf16)
{
    return (size_t)row * (size_t)width * (bf16 ? 2 : 4);
}

/* Rows per claim: about 16 KiB, so that a few rows do not wake a thread. */
static inline long ts_row_grain(long width, int bf16)
{
    return ts_max_long(1, 16384 / (width * (bf16 ? 2 : 4)));
}

#endif
