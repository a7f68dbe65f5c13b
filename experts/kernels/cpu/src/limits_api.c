/* Entries of the machine's limits, for benches. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "limits.h"

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Seconds of the fastest of `repeats` passes over `bytes`; negative when memory is out.
 *
 * The memory is what weights lie in: huge pages, and written before. On small pages the same loop
 * is a sixth slower, and pages never written are all one page, read from the cache. */
TS_API double ts_read_seconds(size_t bytes, long repeats)
{
    enum { FLOATS = 1 << 18 };
    long items = (long)(bytes / (FLOATS * sizeof(float)));
    float *sums = calloc((size_t)ts_max_long(1, items), sizeof *sums);
    float *memory = ts_map(bytes);
    double best = -1;
    if (sums && memory) {
        memset(memory, 1, bytes);
        struct ts_read_job job = {memory, FLOATS, sums};
        ts_enter();
        for (long i = 0; i < repeats; i++) {
            double start = now_s();
            ts_parallel_for(TS_PICK(read_items), &job, items, 1);
            double took = now_s() - start;
            best = best < 0 || took < best ? took : best;
        }
        ts_leave();
    }
    ts_unmap(memory, bytes);
    free(sums);
    return best;
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
