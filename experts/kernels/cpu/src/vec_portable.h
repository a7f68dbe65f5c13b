/* `vec.h` in plain C: what the other two must equal bit for bit. */
#ifndef TS_VEC_PORTABLE_H
#define TS_VEC_PORTABLE_H

#define TS_TILE_ROWS 2

typedef struct {
    float lane[16];
} vf;
typedef struct {
    uint32_t lane[16];
} vp;

#define TS_LANES(expression)         \
    vf result;                       \
    for (int i = 0; i < 16; i++)     \
        result.lane[i] = expression; \
    return result

TS_INLINE float ts_bits_to_float(uint32_t bits);
TS_INLINE uint32_t ts_float_to_bits(float value);
TS_INLINE float ts_from_bf16(uint16_t value);
TS_INLINE uint16_t ts_to_bf16(float value);

TS_INLINE vf vf_set1(float x) { TS_LANES(x); }
TS_INLINE vf vf_zero(void) { TS_LANES(0.0f); }
TS_INLINE vf vf_set1_bits(uint32_t x) { TS_LANES(ts_bits_to_float(x)); }
TS_INLINE vf vf_load(const float *p) { TS_LANES(p[i]); }
TS_INLINE void vf_store(float *p, vf v) { memcpy(p, v.lane, sizeof v.lane); }
TS_INLINE vf vf_load_bf16(const uint16_t *p) { TS_LANES(ts_from_bf16(p[i])); }
TS_INLINE void vf_store_bf16(uint16_t *p, vf v)
{
    for (int i = 0; i < 16; i++)
        p[i] = ts_to_bf16(v.lane[i]);
}
TS_INLINE vf vf_add(vf a, vf b) { TS_LANES(a.lane[i] + b.lane[i]); }
TS_INLINE vf vf_sub(vf a, vf b) { TS_LANES(a.lane[i] - b.lane[i]); }
TS_INLINE vf vf_mul(vf a, vf b) { TS_LANES(a.lane[i] * b.lane[i]); }
TS_INLINE vf vf_div(vf a, vf b) { TS_LANES(a.lane[i] / b.lane[i]); }
TS_INLINE vf vf_fma(vf a, vf b, vf c) { TS_LANES(fmaf(a.lane[i], b.lane[i], c.lane[i])); }
TS_INLINE vf vf_max(vf a, vf b) { TS_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
TS_INLINE vf vf_min(vf a, vf b) { TS_LANES(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
TS_INLINE vf vf_where_lt(vf a, vf b, vf x, vf y)
{
    TS_LANES(a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]);
}
TS_INLINE vf vf_shift_exponent(vf p, vf t)
{
    TS_LANES(ts_bits_to_float(ts_float_to_bits(p.lane[i]) + (ts_float_to_bits(t.lane[i]) << 23)));
}
TS_INLINE float vf_peak(vf v)
{
    float peak = v.lane[0];
    for (int i = 1; i < 16; i++)
        peak = v.lane[i] > peak ? v.lane[i] : peak;
    return peak;
}
TS_INLINE vp vp_load(const uint32_t *p)
{
    vp result;
    memcpy(result.lane, p, sizeof result.lane);
    return result;
}
TS_INLINE float ts_dp1(float acc, uint32_t a, uint32_t b)
{
    float odd = fmaf(ts_bits_to_float(a & 0xffff0000u), ts_bits_to_float(b & 0xffff0000u), acc);
    return fmaf(ts_bits_to_float(a << 16), ts_bits_to_float(b << 16), odd);
}
TS_INLINE vf vf_dp(vf acc, uint32_t a, vp b) { TS_LANES(ts_dp1(acc.lane[i], a, b.lane[i])); }

#endif
