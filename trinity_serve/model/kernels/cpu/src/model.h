/* What the API (compiled once) asks of the model's op files (compiled per instruction set). */
#ifndef TS_MODEL_H
#define TS_MODEL_H

#include "dispatch.h"

/* Positions per KV block and per attention tile. */
enum { TS_KV_TILE = 32 };
/* Absolute positions per chunk of online softmax; chunks are merged in order. Fixed: it belongs to
 * the bits. Long enough to make merging cheap, short enough to spread one sequence over cores. */
enum { TS_KV_CHUNK_TILES = 32 };
enum { TS_MAX_HEAD_DIM = 512 };

struct ts_shape {
    int num_heads, num_kv_heads, head_dim;
    float eps;
};

/* K and V of a pool's layers: [layer][block][kv head], each a K tile and then a V tile.
 *
 *   K  bfloat16 [d/2][32][2], float32 [d][32]: a panel for q . k, columns are positions
 *   V  bfloat16 [32/2][d][2], float32 [32][d]: panels for p . v, columns are channels
 *
 * d is padded to even for K and to 32 for V; padding stays zero.
 */
struct ts_kv {
    uint32_t *words;
    long num_layers, num_blocks, num_kv_heads, head_dim;
    int dtype;
    long k_words, v_words, v_row; /* v_row: words per step of V */
    size_t bytes;
};

static inline uint32_t *ts_kv_tile(const struct ts_kv *kv, long layer, long block, long kv_head)
{
    long tile = (layer * kv->num_blocks + block) * kv->num_kv_heads + kv_head;
    return kv->words + tile * (kv->k_words + kv->v_words);
}

struct ts_norm_call {
    const void *x, *weight;
    const void *residual, *next_weight; /* residual_norm only */
    void *sum, *out;                    /* sum: residual_norm only */
    long rows, width;
    int dtype;
    float eps;
};

struct ts_write_kv_call {
    const void *qkvg, *q_norm, *k_norm;
    struct ts_shape shape;
    const int64_t *positions, *slots;
    const float *rope; /* max_positions x head_dim, or NULL */
    long rows, max_positions;
    struct ts_kv *kv;
    long layer;
    void *q_out;
};

struct ts_attention_call {
    const void *q, *qkvg;
    struct ts_shape shape;
    const int64_t *positions;
    const int *query_start, *block_tables;
    long num_seqs, table_width, num_rows;
    const struct ts_kv *kv;
    long layer, window; /* window 0: none */
    void *out;
};

struct ts_gate_call {
    const float *logits, *bias;
    long tokens, experts, top_k;
    float scale;
    int64_t *ids;
    float *weights;
};

struct ts_combine_call {
    const void *rows;
    const int64_t *row_of_slot;
    const float *weights;
    const void *shared;
    void *out;
    long tokens, top_k, width, num_rows;
    int dtype;
};

struct ts_embed_call {
    const int64_t *ids;
    const void *table;
    void *out;
    long tokens, vocab, width;
    int dtype;
    float scale;
};

struct ts_vocab_call {
    const float *logits;
    long rows, vocab;
    int64_t *best;    /* argmax only */
    const float *max; /* log_sum_exp only */
    double *log_sum;  /* log_sum_exp only */
};

/* One row's distribution and where in it to draw. top_k 0, top_p 1, log_min_p -inf are off. */
struct ts_draw_spec {
    double temperature, top_p, log_min_p, uniform;
    int64_t top_k;
};

struct ts_draw_call {
    const float *logits;
    const float *max; /* of each row, finite */
    const struct ts_draw_spec *specs;
    long rows, vocab;
    int64_t *ids;
};

TS_VERSIONS(int, rms_norm, (const struct ts_norm_call *call));
TS_VERSIONS(int, residual_norm, (const struct ts_norm_call *call));
TS_VERSIONS(int, write_kv, (const struct ts_write_kv_call *call));
TS_VERSIONS(int, paged_attention, (const struct ts_attention_call *call));
TS_VERSIONS(int, gate_topk, (const struct ts_gate_call *call));
TS_VERSIONS(int, combine, (const struct ts_combine_call *call));
TS_VERSIONS(int, embed, (const struct ts_embed_call *call));
TS_VERSIONS(int, vocab_argmax, (const struct ts_vocab_call *call));
TS_VERSIONS(int, vocab_draw, (const struct ts_draw_call *call));
TS_VERSIONS(int, vocab_log_sum_exp, (const struct ts_vocab_call *call));

#endif
