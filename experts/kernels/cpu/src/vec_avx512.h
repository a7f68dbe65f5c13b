/* `vec.h` in AVX-512 with BF16. */
#ifndef TS_VEC_AVX512_H
#define TS_VEC_AVX512_H

#include <immintrin.h>

/* Rows of a register tile: 12 x 32 columns take 24 of the 32 registers. */
#define TS_TILE_ROWS 12

typedef __m512 vf;
typedef __m512i vp;

TS_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
TS_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
TS_INLINE vf vf_set1_bits(uint32_t x) { return _mm512_castsi512_ps(_mm512_set1_epi32((int)x)); }
TS_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
TS_INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
TS_INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
TS_INLINE void vf_store_bf16(uint16_t *p, vf v)
{
    _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(v));
}
TS_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
TS_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
TS_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
TS_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
TS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
TS_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
TS_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
TS_INLINE vf vf_where_lt(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
TS_INLINE vf vf_shift_exponent(vf p, vf t)
{
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), n));
}
TS_INLINE float vf_peak(vf v) { return _mm512_reduce_max_ps(v); }
TS_INLINE vp vp_load(const uint32_t *p) { return _mm512_loadu_si512(p); }
TS_INLINE vf vf_dp(vf acc, uint32_t a, vp b)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
}

#endif
