/* Which instruction set serves: the best one this machine has, or the one a test asks for. */
#include "runtime.h"

static int best(void)
{
#if defined(__x86_64__) && !defined(TS_PORTABLE_ONLY)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bf16"))
        return TS_AVX512_BF16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return TS_AVX2;
#endif
    return TS_PORTABLE;
}

static int in_use = -1;

int ts_isa(void)
{
    if (in_use < 0)
        in_use = best();
    return in_use;
}

TS_API int ts_best_isa(void) { return best(); }

TS_API int ts_current_isa(void) { return ts_isa(); }

/* Return what is in use now; a level this machine lacks is not taken. */
TS_API int ts_set_isa(int isa)
{
    ts_enter();
    if (isa >= TS_PORTABLE && isa <= best())
        in_use = isa;
    ts_leave();
    return ts_isa();
}

TS_API const struct ts_runtime *ts_get_runtime(void)
{
    static const struct ts_runtime runtime = {
        ts_enter, ts_leave, ts_parallel_for, ts_num_threads, ts_isa, ts_scratch, ts_map, ts_unmap,
        ts_run_linear,
    };
    return &runtime;
}
