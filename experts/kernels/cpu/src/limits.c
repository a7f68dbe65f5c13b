/* A loop that only reads memory, and one that only multiplies and adds. */
#include "limits.h"
#include "vec.h"

/* As many accumulators as the register tile has, so that none waits for itself. */
enum { ACCUMULATORS = 12, PEAK_STEPS = 1000 };

void TS_FN(read_items)(void *job, long begin, long end, int thread)
{
    const struct ts_read_job *read = job;
    (void)thread;
    for (long item = begin; item < end; item++) {
        const float *at = read->memory + item * read->floats_per_item;
        vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        for (long i = 0; i + 64 <= read->floats_per_item; i += 64) {
            __builtin_prefetch(at + i + 2048);
            __builtin_prefetch(at + i + 2048 + 16);
            __builtin_prefetch(at + i + 2048 + 32);
            __builtin_prefetch(at + i + 2048 + 48);
            for (int j = 0; j < 4; j++)
                sums[j] = vf_add(sums[j], vf_load(at + i + 16 * j));
        }
        read->sums[item] = vf_sum(vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3])));
    }
}

/* The accumulators start apart, or the compiler would see that one does for all. */
TS_INLINE float peak_round(const float *factors, const int bf16)
{
    vf acc[ACCUMULATORS], factor = vf_load(factors);
    vp pairs = vp_load((const uint32_t *)(const void *)factors);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = vf_set1((float)i);
    for (long s = 0; s < PEAK_STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < ACCUMULATORS; i++)
            acc[i] = bf16 ? vf_dp(acc[i], 0x3f803f80u, pairs) : vf_fma(factor, factor, acc[i]);
    }
    for (int i = 1; i < ACCUMULATORS; i++)
        acc[0] = vf_add(acc[0], acc[i]);
    return vf_sum(acc[0]);
}

void TS_FN(peak_items)(void *job, long begin, long end, int thread)
{
    const struct ts_peak_job *peak = job;
    (void)thread;
    for (long item = begin; item < end; item++)
        for (long round = 0; round < peak->rounds; round++)
            peak->sums[item] += peak->bf16 ? peak_round(peak->factors, 1) : peak_round(peak->factors, 0);
}
