/* rms_norm, and the sandwich between two sub-layers. */
#include "model.h"
#include "norm_row.h"

TS_INLINE void rms_norm_rows(const struct ts_norm_call *c, long begin, long end, const int bf16)
{
    for (long row = begin; row < end; row++) {
        size_t at = ts_row_offset(row, c->width, bf16);
        ts_norm_row((const char *)c->x + at, c->weight, (char *)c->out + at, c->width, c->eps,
                    bf16);
    }
}

static void rms_norm_range(void *job, long begin, long end, int thread)
{
    const struct ts_norm_call *call = job;
    (void)thread;
    if (call->dtype == TS_BF16)
        rms_norm_rows(call, begin, end, 1);
    else
        rms_norm_rows(call, begin, end, 0);
}

int TS_FN(rms_norm)(const struct ts_norm_call *call)
{
    ts_parallel_for(rms_norm_range, (void *)(uintptr_t)call, call->rows,
                    ts_row_grain(call->width, call->dtype));
    return TS_OK;
}

/* sum = residual + norm(x, weight); out = norm(sum, next_weight); each step rounded. */
TS_INLINE void residual_norm_rows(const struct ts_norm_call *c, long begin, long end,
                                  const int bf16)
{
    for (long row = begin; row < end; row++) {
        size_t at = ts_row_offset(row, c->width, bf16);
        const char *x = (const char *)c->x + at, *residual = (const char *)c->residual + at;
        char *sum = (char *)c->sum + at;
        vf inverse = vf_set1(ts_inverse_rms(x, c->width, c->eps, bf16));
        for (long i = 0; i < c->width; i += 16) {
            long left = c->width - i;
            vf branch = vf_round_as(ts_normed(x, c->weight, i, left, inverse, bf16), bf16);
            vf_store_head(sum, i, left, vf_add(vf_load_head(residual, i, left, bf16), branch),
                          bf16);
        }
        ts_norm_row(sum, c->next_weight, (char *)c->out + at, c->width, c->eps, bf16);
    }
}

static void residual_norm_range(void *job, long begin, long end, int thread)
{
    const struct ts_norm_call *call = job;
    (void)thread;
    if (call->dtype == TS_BF16)
        residual_norm_rows(call, begin, end, 1);
    else
        residual_norm_rows(call, begin, end, 0);
}

int TS_FN(residual_norm)(const struct ts_norm_call *call)
{
    ts_parallel_for(residual_norm_range, (void *)(uintptr_t)call, call->rows,
                    ts_row_grain(call->width, call->dtype));
    return TS_OK;
}
