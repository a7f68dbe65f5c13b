/* `vec.h` in AVX2 with FMA: two registers of eight lanes. */
#ifndef TS_VEC_AVX2_H
#define TS_VEC_AVX2_H

#include <immintrin.h>

/* 2 rows x 32 columns take 8 of the 16 registers, and the widened pairs another 4. */
#define TS_TILE_ROWS 2

typedef struct {
    __m256 lo, hi;
} vf;
typedef struct {
    __m256i lo, hi;
} vp;

#define TS_BOTH_2(op, a, b) ((vf){op((a).lo, (b).lo), op((a).hi, (b).hi)})

TS_INLINE vf vf_set1(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TS_INLINE vf vf_zero(void) { return vf_set1(0.0f); }
TS_INLINE vf vf_set1_bits(uint32_t x)
{
    __m256 all = _mm256_castsi256_ps(_mm256_set1_epi32((int)x));
    return (vf){all, all};
}
TS_INLINE vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
TS_INLINE void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}
TS_INLINE __m256 ts_widen8(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
TS_INLINE vf vf_load_bf16(const uint16_t *p) { return (vf){ts_widen8(p), ts_widen8(p + 8)}; }
TS_INLINE __m256i ts_round8(__m256 v)
{
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    __m256i high = _mm256_srli_epi32(bits, 16);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
    __m256i is_tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    __m256i sign = _mm256_and_si256(high, _mm256_set1_epi32(0x8000));
    return _mm256_blendv_epi8(_mm256_blendv_epi8(rounded, quiet, is_nan), sign, is_tiny);
}
TS_INLINE void vf_store_bf16(uint16_t *p, vf v)
{
    __m256i packed = _mm256_packus_epi32(ts_round8(v.lo), ts_round8(v.hi));
    _mm256_storeu_si256((void *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
TS_INLINE vf vf_add(vf a, vf b) { return TS_BOTH_2(_mm256_add_ps, a, b); }
TS_INLINE vf vf_sub(vf a, vf b) { return TS_BOTH_2(_mm256_sub_ps, a, b); }
TS_INLINE vf vf_mul(vf a, vf b) { return TS_BOTH_2(_mm256_mul_ps, a, b); }
TS_INLINE vf vf_div(vf a, vf b) { return TS_BOTH_2(_mm256_div_ps, a, b); }
TS_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
TS_INLINE vf vf_max(vf a, vf b) { return TS_BOTH_2(_mm256_max_ps, a, b); }
TS_INLINE vf vf_min(vf a, vf b) { return TS_BOTH_2(_mm256_min_ps, a, b); }
TS_INLINE vf vf_where_lt(vf a, vf b, vf x, vf y)
{
    return (vf){_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
                _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
TS_INLINE __m256 ts_shift8(__m256 p, __m256 t)
{
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
}
TS_INLINE vf vf_shift_exponent(vf p, vf t) { return TS_BOTH_2(ts_shift8, p, t); }
TS_INLINE float vf_peak(vf v)
{
    __m256 eight = _mm256_max_ps(v.lo, v.hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
TS_INLINE vp vp_load(const uint32_t *p)
{
    return (vp){_mm256_loadu_si256((const void *)p), _mm256_loadu_si256((const void *)(p + 8))};
}
TS_INLINE vf vf_dp(vf acc, uint32_t a, vp b)
{
    vf a_odd = vf_set1_bits(a & 0xffff0000u), a_even = vf_set1_bits(a << 16);
    __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    vf b_odd = {_mm256_castsi256_ps(_mm256_and_si256(b.lo, high)),
                _mm256_castsi256_ps(_mm256_and_si256(b.hi, high))};
    vf b_even = {_mm256_castsi256_ps(_mm256_slli_epi32(b.lo, 16)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(b.hi, 16))};
    return vf_fma(a_even, b_even, vf_fma(a_odd, b_odd, acc));
}

#endif
