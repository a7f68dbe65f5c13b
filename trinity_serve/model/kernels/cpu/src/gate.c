/* The gate: sigmoid scores, top-k of score + bias, weights from the unbiased scores. */
#include "model.h"
#include "vec.h"

enum { MAX_EXPERTS = 4096 };

/* NaN counts as the largest: it is chosen and stays visible in the weights. */
static void score(const struct ts_gate_call *c, const float *logits, float *scores, float *biased)
{
    vf infinity = vf_set1(INFINITY);
    for (long e = 0; e < c->experts; e += 16) {
        long left = c->experts - e;
        vf s = vf_sigmoid(vf_load_head(logits, e, left, 0));
        vf b = vf_add(s, vf_load_head(c->bias, e, left, 0));
        vf_store(scores + e, s);
        vf_store(biased + e, vf_where_lt(b, infinity, b, infinity));
    }
    for (long e = c->experts; e % 16; e++)
        biased[e] = -INFINITY;
}

static int is_taken(const int64_t *ids, long slot, long expert)
{
    for (long i = 0; i < slot; i++)
        if (ids[i] == expert)
            return 1;
    return 0;
}

/* The largest that is left, the lowest id of equals. */
static long best_left(const struct ts_gate_call *c, const float *biased, const int64_t *ids,
                      long slot)
{
    vf peaks = vf_set1(-INFINITY);
    for (long e = 0; e < c->experts; e += 16)
        peaks = vf_max(vf_load(biased + e), peaks);
    float peak = vf_peak(peaks);
    for (long e = 0; e < c->experts; e++)
        if (biased[e] == peak && !is_taken(ids, slot, e))
            return e;
    return 0;
}

static void gate_token(const struct ts_gate_call *c, long token)
{
    float scores[MAX_EXPERTS], biased[MAX_EXPERTS];
    int64_t *ids = c->ids + token * c->top_k;
    float *weights = c->weights + token * c->top_k, total = 0.0f;
    score(c, c->logits + token * c->experts, scores, biased);
    for (long slot = 0; slot < c->top_k; slot++) {
        ids[slot] = best_left(c, biased, ids, slot);
        biased[ids[slot]] = -INFINITY;
        weights[slot] = scores[ids[slot]];
        total = slot ? total + weights[slot] : weights[slot];
    }
    for (long slot = 0; slot < c->top_k; slot++)
        weights[slot] = weights[slot] / (total + 1e-20f) * c->scale;
}

static void gate_range(void *job, long begin, long end, int thread)
{
    (void)thread;
    for (long token = begin; token < end; token++)
        gate_token(job, token);
}

int TS_FN(gate_topk)(const struct ts_gate_call *call)
{
    if (call->experts > MAX_EXPERTS)
        return TS_BAD_INDEX;
    ts_parallel_for(gate_range, (void *)(uintptr_t)call, call->tokens, 32);
    return TS_OK;
}
