/* The model's ops as the wrapper calls them. Shapes and types were checked there; what is used as
 * an index is checked by the ops themselves.
 */
#include "model.h"

#define TS_RUN(name, call)              \
    ts_enter();                         \
    int status = TS_PICK(name)(&(call)); \
    ts_leave();                         \
    return status

TS_API int ts_rms_norm(const void *x, const void *weight, void *out, long rows, long width,
                       int dtype, float eps)
{
    struct ts_norm_call call = {.x = x, .weight = weight, .out = out, .rows = rows,
                                .width = width, .dtype = dtype, .eps = eps};
    TS_RUN(rms_norm, call);
}

TS_API int ts_residual_norm(const void *residual, const void *branch, const void *post_weight,
                            const void *next_weight, void *sum, void *out, long rows, long width,
                            int dtype, float eps)
{
    struct ts_norm_call call = {branch, post_weight, residual, next_weight, sum,
                                out,    rows,        width,    dtype,       eps};
    TS_RUN(residual_norm, call);
}

TS_API int ts_write_kv(const void *qkvg, const void *q_norm, const void *k_norm, int num_heads,
                       float eps, const int64_t *positions, const int64_t *slots,
                       const float *rope, long rows, long max_positions, struct ts_kv *kv,
                       long layer, void *q_out)
{
    struct ts_write_kv_call call = {
        .qkvg = qkvg, .q_norm = q_norm, .k_norm = k_norm,
        .shape = {num_heads, (int)kv->num_kv_heads, (int)kv->head_dim, eps},
        .positions = positions, .slots = slots, .rope = rope, .rows = rows,
        .max_positions = max_positions, .kv = kv, .layer = layer, .q_out = q_out,
    };
    TS_RUN(write_kv, call);
}

TS_API int ts_paged_attention(const void *q, const void *qkvg, int num_heads,
                              const int64_t *positions, const int *query_start,
                              const int *block_tables, long num_seqs, long table_width,
                              long num_rows, const struct ts_kv *kv, long layer, long window,
                              void *out)
{
    struct ts_attention_call call = {
        .q = q, .qkvg = qkvg, .shape = {num_heads, (int)kv->num_kv_heads, (int)kv->head_dim, 0},
        .positions = positions, .query_start = query_start, .block_tables = block_tables,
        .num_seqs = num_seqs, .table_width = table_width, .num_rows = num_rows, .kv = kv,
        .layer = layer, .window = window, .out = out,
    };
    TS_RUN(paged_attention, call);
}

TS_API int ts_gate_topk(const float *logits, const float *bias, long tokens, long experts,
                        long top_k, float scale, int64_t *ids, float *weights)
{
    struct ts_gate_call call = {logits, bias, tokens, experts, top_k, scale, ids, weights};
    TS_RUN(gate_topk, call);
}

TS_API int ts_combine(const void *rows, const int64_t *row_of_slot, const float *weights,
                      const void *shared, void *out, long tokens, long top_k, long width,
                      long num_rows, int dtype)
{
    struct ts_combine_call call = {rows,   row_of_slot, weights, shared,   out,
                                   tokens, top_k,       width,   num_rows, dtype};
    TS_RUN(combine, call);
}

TS_API int ts_embed(const int64_t *ids, const void *table, void *out, long tokens, long vocab,
                    long width, int dtype, float scale)
{
    struct ts_embed_call call = {ids, table, out, tokens, vocab, width, dtype, scale};
    TS_RUN(embed, call);
}

TS_API int ts_vocab_argmax(const float *logits, long rows, long vocab, int64_t *best)
{
    struct ts_vocab_call call = {.logits = logits, .rows = rows, .vocab = vocab, .best = best};
    TS_RUN(vocab_argmax, call);
}

TS_API int ts_vocab_log_sum_exp(const float *logits, long rows, long vocab, const float *max,
                                double *log_sum)
{
    struct ts_vocab_call call = {
        .logits = logits, .rows = rows, .vocab = vocab, .max = max, .log_sum = log_sum};
    TS_RUN(vocab_log_sum_exp, call);
}

TS_API int ts_vocab_draw(const float *logits, const float *max, const struct ts_draw_spec *specs,
                         long rows, long vocab, int64_t *ids)
{
    struct ts_draw_call call = {logits, max, specs, rows, vocab, ids};
    TS_RUN(vocab_draw, call);
}
