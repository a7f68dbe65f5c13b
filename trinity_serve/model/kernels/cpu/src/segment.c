/* The rank's work between two dispatches, each as one call: at a few rows a step is made of some
 * hundred ops, and what a call from Python costs would be as much as the arithmetic. The ops are the
 * same functions that are called one by one, in the same order: not a bit differs.
 */
#include "experts.h"
#include "model.h"

/* One layer's attention; filled when the model is loaded. Layout: `trinity_serve/model/fused/structs.py`. */
struct ts_attention_segment {
    const struct ts_matrix *qkvg, *o;
    const void *q_norm, *k_norm, *post_norm, *next_norm;
    const float *rope; /* NULL: no rotary */
    struct ts_kv *kv;
    int64_t max_positions, layer, window, hidden, num_heads, dtype;
    double eps;
};

/* One MoE layer's router and the norms after it. */
struct ts_moe_segment {
    const struct ts_matrix *router;
    const float *bias;
    const void *post_norm, *next_norm;
    int64_t experts, top_k, hidden, dtype;
    double scale, eps;
};

/* One step's rows as the layers of one pool see them, and memory for what a segment makes. */
struct ts_segment_rows {
    const int64_t *positions, *slots;
    const int32_t *query_start, *block_tables;
    int64_t num_seqs, table_width, num_rows;
    void *qkvg, *q, *gated, *branch;
};

static int attention(const struct ts_attention_segment *s, const struct ts_segment_rows *r,
                     const void *normed, const void *residual, void *sum, void *out)
{
    int dtype = (int)s->dtype;
    struct ts_shape shape = {(int)s->num_heads, (int)s->kv->num_kv_heads, (int)s->kv->head_dim,
                             (float)s->eps};
    struct ts_linear_call qkvg = {normed, dtype, r->num_rows, s->qkvg, r->qkvg, dtype};
    struct ts_write_kv_call write = {
        .qkvg = r->qkvg, .q_norm = s->q_norm, .k_norm = s->k_norm, .shape = shape,
        .positions = r->positions, .slots = r->slots, .rope = s->rope, .rows = r->num_rows,
        .max_positions = s->max_positions, .kv = s->kv, .layer = s->layer, .q_out = r->q,
    };
    struct ts_attention_call attend = {
        .q = r->q, .qkvg = r->qkvg, .shape = shape, .positions = r->positions,
        .query_start = r->query_start, .block_tables = r->block_tables, .num_seqs = r->num_seqs,
        .table_width = r->table_width, .num_rows = r->num_rows, .kv = s->kv, .layer = s->layer,
        .window = s->window, .out = r->gated,
    };
    struct ts_linear_call o = {r->gated, dtype, r->num_rows, s->o, r->branch, dtype};
    struct ts_norm_call norm = {r->branch, s->post_norm, residual, s->next_norm, sum, out,
                                r->num_rows, s->hidden, dtype, (float)s->eps};
    int status = ts_run_linear(&qkvg);
    if (status == TS_OK)
        status = TS_PICK(write_kv)(&write);
    if (status == TS_OK)
        status = TS_PICK(paged_attention)(&attend);
    if (status == TS_OK)
        status = ts_run_linear(&o);
    return status == TS_OK ? TS_PICK(residual_norm)(&norm) : status;
}

TS_API int ts_segment_attention(const struct ts_attention_segment *segment,
                                const struct ts_segment_rows *rows, const void *normed,
                                const void *residual, void *sum, void *out)
{
    ts_enter();
    int status = attention(segment, rows, normed, residual, sum, out);
    ts_leave();
    return status;
}

/* Router logits in fp32 (into `logits`, rows x experts) and the choice of experts. */
TS_API int ts_segment_route(const struct ts_moe_segment *s, const void *normed, long rows,
                            float *logits, int64_t *ids, float *weights)
{
    struct ts_linear_call router = {normed, (int)s->dtype, rows, s->router, logits, TS_F32};
    struct ts_gate_call gate = {logits, s->bias, rows, s->experts, s->top_k, (float)s->scale,
                                ids, weights};
    ts_enter();
    int status = ts_run_linear(&router);
    if (status == TS_OK)
        status = TS_PICK(gate_topk)(&gate);
    ts_leave();
    return status;
}

/* An exponent of all ones is infinity or NaN. Words of two bfloat16 are looked at as halves. */
static int all_finite(const void *rows, size_t count, int dtype)
{
    uint32_t found = 0;
    if (dtype == TS_BF16) {
        const uint16_t *halves = rows;
        for (size_t i = 0; i < count; i++)
            found |= (halves[i] & 0x7f80u) == 0x7f80u;
    } else {
        const uint32_t *words = rows;
        for (size_t i = 0; i < count; i++)
            found |= (words[i] & 0x7f800000u) == 0x7f800000u;
    }
    return !found;
}

/* Combine, then the sandwich to the next layer. `branch` is rows x hidden; TS_NOT_FINITE says that
 * a combined row holds NaN or infinity, and then nothing is written to sum and out. */
TS_API int ts_segment_finish_moe(const struct ts_moe_segment *s, struct ts_combine_call *combine,
                                 const void *residual, void *sum, void *out)
{
    int dtype = (int)s->dtype;
    struct ts_norm_call norm = {combine->out, s->post_norm, residual, s->next_norm, sum, out,
                                combine->tokens, s->hidden, dtype, (float)s->eps};
    ts_enter();
    int status = TS_PICK(combine)(combine);
    if (status == TS_OK && !all_finite(combine->out, (size_t)(combine->tokens * s->hidden), dtype))
        status = TS_NOT_FINITE;
    if (status == TS_OK)
        status = TS_PICK(residual_norm)(&norm);
    ts_leave();
    return status;
}
