/* Entries of the machine's limits, for benches. */
#include <stdlib.h>

#include "limits.h"

/* Read `bytes` once, in items of 1 MiB. */
TS_API int ts_read_memory(const float *memory, size_t bytes)
{
    enum { FLOATS = 1 << 18 };
    long items = (long)(bytes / (FLOATS * sizeof(float)));
    float *sums = calloc((size_t)ts_max_long(1, items), sizeof *sums);
    if (!sums)
        return TS_NO_MEMORY;
    struct ts_read_job job = {memory, FLOATS, sums};
    ts_enter();
    ts_parallel_for(TS_PICK(read_items), &job, items, 1);
    ts_leave();
    free(sums);
    return TS_OK;
}

/* Multiply and add on every thread; returns the floating-point operations done. */
TS_API double ts_peak_flops(long rounds, int dtype)
{
    enum { MAX_ITEMS = 4096, STEPS = 1000, ACCUMULATORS = 12 };
    float sums[MAX_ITEMS] = {0}, factors[16] = {0};
    ts_enter();
    long items = ts_min_long(MAX_ITEMS, 8L * ts_num_threads());
    struct ts_peak_job job = {rounds, dtype == TS_BF16, factors, sums};
    ts_parallel_for(TS_PICK(peak_items), &job, items, 1);
    ts_leave();
    double per_step = dtype == TS_BF16 ? 64 : 32;
    return (double)items * (double)rounds * STEPS * ACCUMULATORS * per_step;
}
