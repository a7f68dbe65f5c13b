/* The only sum across experts: weight times row, slot by slot, then the shared expert, rounded
 * once. Product and sum are rounded apart (no fma), as eager torch does. */
#include "model.h"
#include "norm_row.h"

TS_INLINE void combine_token(const struct ts_combine_call *c, long token, const int bf16)
{
    const int64_t *rows = c->row_of_slot + token * c->top_k;
    const float *weights = c->weights + token * c->top_k;
    size_t at = ts_row_offset(token, c->width, bf16);
    for (long i = 0; i < c->width; i += 16) {
        long left = c->width - i;
        vf total = vf_zero();
        for (long slot = 0; slot < c->top_k; slot++) {
            const char *row = (const char *)c->rows + ts_row_offset(rows[slot], c->width, bf16);
            vf weighted = vf_mul(vf_set1(weights[slot]), vf_load_head(row, i, left, bf16));
            total = slot ? vf_add(total, weighted) : weighted;
        }
        total = vf_add(total, vf_load_head((const char *)c->shared + at, i, left, bf16));
        vf_store_head((char *)c->out + at, i, left, total, bf16);
    }
}

static void combine_range(void *job, long begin, long end, int thread)
{
    const struct ts_combine_call *call = job;
    (void)thread;
    for (long token = begin; token < end; token++) {
        if (call->dtype == TS_BF16)
            combine_token(call, token, 1);
        else
            combine_token(call, token, 0);
    }
}

int TS_FN(combine)(const struct ts_combine_call *call)
{
    for (long i = 0; i < call->tokens * call->top_k; i++)
        if (call->row_of_slot[i] < 0 || call->row_of_slot[i] >= call->num_rows)
            return TS_BAD_INDEX;
    ts_parallel_for(combine_range, (void *)(uintptr_t)call, call->tokens,
                    ts_row_grain(call->width * call->top_k, call->dtype));
    return TS_OK;
}
