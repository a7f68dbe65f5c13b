/* Rows of the embedding table times the muP factor, rounded once. */
#include "model.h"
#include "norm_row.h"

TS_INLINE void embed_token(const struct ts_embed_call *c, long token, const int bf16)
{
    const char *row = (const char *)c->table + ts_row_offset(c->ids[token], c->width, bf16);
    char *out = (char *)c->out + ts_row_offset(token, c->width, bf16);
    for (long i = 0; i < c->width; i += 16) {
        vf x = vf_load_head(row, i, c->width - i, bf16);
        vf_store_head(out, i, c->width - i, vf_mul(x, vf_set1(c->scale)), bf16);
    }
}

static void embed_range(void *job, long begin, long end, int thread)
{
    const struct ts_embed_call *call = job;
    (void)thread;
    for (long token = begin; token < end; token++) {
        if (call->dtype == TS_BF16)
            embed_token(call, token, 1);
        else
            embed_token(call, token, 0);
    }
}

int TS_FN(embed)(const struct ts_embed_call *call)
{
    for (long token = 0; token < call->tokens; token++)
        if (call->ids[token] < 0 || call->ids[token] >= call->vocab)
            return TS_BAD_INDEX;
    ts_parallel_for(embed_range, (void *)(uintptr_t)call, call->tokens,
                    ts_row_grain(call->width, call->dtype));
    return TS_OK;
}
