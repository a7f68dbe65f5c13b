/* Loops that measure what this machine can do at most; benches divide by them. */
#ifndef TS_LIMITS_H
#define TS_LIMITS_H

#include "dispatch.h"

struct ts_read_job {
    const float *memory;
    long floats_per_item;
    float *sums; /* one per item: the loop must have a result */
};

struct ts_peak_job {
    long rounds;
    int bf16;
    const float *factors; /* 16 */
    float *sums;
};

TS_VERSIONS(void, read_items, (void *job, long begin, long end, int thread));
TS_VERSIONS(void, peak_items, (void *job, long begin, long end, int thread));

#endif
