/* Online softmax of some rows of one sequence and KV head over one chunk of its KV tiles.
 *
 * A row is one (query position, query head). Rows that share a KV head go through its tiles
 * together, in row tiles of the register tile's height. A row's bits do not depend on its company:
 * a tile it does not see gives it weights of zero and decays of one.
 */
#ifndef TS_ATTENTION_CHUNK_H
#define TS_ATTENTION_CHUNK_H

#include "matrix.h"
#include "model.h"
#include "rows.h"

/* Rows of one block: enough to read KV from the core's cache many times per read from memory. */
enum { TS_BLOCK_ROWS = 96 };
/* KV heads that one item walks at most. */
enum { TS_MOST_HEADS = 16 };

/* What a chunk, or several merged, leave for each row: weights are relative to exp(peak). */
struct ts_softmax {
    float *peak;  /* [rows] */
    float *total; /* [rows][16] sums of weights, by lane */
    float *acc;   /* [rows][v_row] weighted sums of V */
};

static inline size_t ts_softmax_floats(long rows, long v_row)
{
    return (size_t)rows * (size_t)(1 + 16 + v_row);
}

static inline struct ts_softmax ts_softmax_at(float *memory, long rows)
{
    return (struct ts_softmax){memory, memory + rows, memory + rows * 17};
}

static inline void ts_softmax_clear(struct ts_softmax s, long rows, long v_row)
{
    for (long r = 0; r < rows; r++)
        s.peak[r] = -INFINITY;
    memset(s.total, 0, (size_t)rows * 16 * 4);
    memset(s.acc, 0, (size_t)(rows * v_row) * 4);
}

/* Rows of one sequence that share a KV head: query rows first .. first + queries - 1. */
struct ts_block {
    const struct ts_attention_call *call;
    long seq, first, queries, kv_head;
    long rows; /* queries * heads per KV head */
    const uint32_t *q; /* packed row tiles */
};

static inline long ts_group(const struct ts_attention_call *c)
{
    return c->shape.num_heads / c->shape.num_kv_heads;
}

static inline int64_t ts_row_position(const struct ts_block *b, long row)
{
    return b->call->positions[b->first + row / ts_group(b->call)];
}

/* The first position that a query at `position` sees. */
static inline int64_t ts_window_start(const struct ts_attention_call *c, int64_t position)
{
    return c->window && position >= c->window ? position - c->window + 1 : 0;
}

/* Weights of a tile's positions, as rows of the product with V. */
struct ts_weights {
    _Alignas(64) float scores[TS_TILE_ROWS][TS_KV_TILE];
    _Alignas(64) uint32_t words[TS_TILE_ROWS][TS_KV_TILE]; /* bfloat16: the first half of a row */
    float peaks[16], base[16], decay[16];
};

/* Positions outside [low, high] of the tile get a score of minus infinity. */
TS_INLINE void mask_row(float *scores, int64_t low, int64_t high)
{
    for (int64_t j = 0; j < low && j < TS_KV_TILE; j++)
        scores[j] = -INFINITY;
    for (int64_t j = high < 0 ? 0 : high + 1; j < TS_KV_TILE; j++)
        scores[j] = -INFINITY;
}

/* Scale and mask the scores, and find each row's new peak. */
TS_INLINE void score_rows(const struct ts_block *b, struct ts_rows rows, int64_t tile_start,
                          struct ts_weights *w, const float *peak)
{
    vf scale = vf_set1((float)(1.0 / sqrt((double)b->call->shape.head_dim)));
    for (int r = 0; r < rows.count; r++) {
        int64_t position = ts_row_position(b, rows.first + r);
        int64_t low = ts_window_start(b->call, position) - tile_start;
        int64_t high = position - tile_start;
        float *s = w->scores[r];
        vf_store(s, vf_mul(vf_load(s), scale));
        vf_store(s + 16, vf_mul(vf_load(s + 16), scale));
        if (low > 0 || high < TS_KV_TILE - 1)
            mask_row(s, low, high);
        float own = vf_peak(vf_max(vf_load(s), vf_load(s + 16)));
        w->peaks[r] = own > peak[r] ? own : peak[r];
    }
}

/* New peaks, and how much the sums so far shrink under them. A row that has seen nothing keeps a
 * peak of minus infinity: its weights are exp(-inf - 0) = 0, never NaN. */
TS_INLINE void move_peaks(struct ts_rows rows, struct ts_weights *w, float *peak)
{
    float before[16];
    for (int r = 0; r < 16; r++) {
        int used = r < rows.count;
        before[r] = used ? peak[r] : 0.0f;
        w->base[r] = !used || w->peaks[r] == -INFINITY ? 0.0f : w->peaks[r];
    }
    vf_store(w->decay, vf_exp(vf_sub(vf_load(before), vf_load(w->base))));
    memcpy(peak, w->peaks, (size_t)rows.count * 4);
}

/* Weights of the scores, in V's dtype; totals sum what V is multiplied by. */
TS_INLINE void weigh_rows(struct ts_rows rows, struct ts_weights *w, float *total, const int bf16)
{
    for (int r = 0; r < rows.count; r++) {
        vf base = vf_set1(w->base[r]);
        vf low = vf_exp(vf_sub(vf_load(w->scores[r]), base));
        vf high = vf_exp(vf_sub(vf_load(w->scores[r] + 16), base));
        vf_store_as(w->words[r], 0, low, bf16);
        vf_store_as(w->words[r], 16, high, bf16);
        vf sum = vf_add(vf_load_as(w->words[r], 0, bf16), vf_load_as(w->words[r], 16, bf16));
        vf_store(total + 16 * r, vf_fma(vf_load(total + 16 * r), vf_set1(w->decay[r]), sum));
    }
}

/* One row tile against one KV tile; `next` is the tile that will be read after it, fetched meanwhile
 * by `next_step` words per step. */
TS_INLINE void attend_tile(const struct ts_block *b, struct ts_rows rows, long tile,
                           const uint32_t *kv, const uint32_t *next, long next_step,
                           struct ts_softmax s, const int bf16)
{
    const struct ts_kv *cache = b->call->kv;
    struct ts_weights w;
    long steps = ts_steps(cache->head_dim, bf16);
    struct ts_operand keys = {
        .a = b->q + rows.first * steps,
        .a_step = rows.count,
        .b = kv,
        .b_stride = TS_KV_TILE,
        .steps = steps,
        .next = next,
        .next_step = next_step,
    };
    ts_tile_product(bf16, rows.count, keys, w.scores[0], TS_KV_TILE, NULL);
    int64_t start = (int64_t)tile * TS_KV_TILE;
    score_rows(b, rows, start, &w, s.peak + rows.first);
    move_peaks(rows, &w, s.peak + rows.first);
    weigh_rows(rows, &w, s.total + 16 * rows.first, bf16);
    /* Past the block's last position there may be what an earlier sequence left. */
    int64_t last = ts_row_position(b, b->rows - 1) - start;
    long seen = last >= TS_KV_TILE ? TS_KV_TILE : (long)last + 1;
    for (long column = 0; column < cache->v_row; column += TS_PANEL) {
        struct ts_operand values = {
            .a = w.words[0],
            .a_step = 1,
            .b = kv + cache->k_words + column,
            .b_stride = cache->v_row,
            .steps = ts_steps(seen, bf16),
            .next = next + cache->k_words + column * ts_steps(TS_KV_TILE, bf16),
            .next_step = next_step,
        };
        ts_tile_product_rows(bf16, rows.count, values,
                             s.acc + rows.first * cache->v_row + column, cache->v_row, w.decay);
    }
}

/* Whether any row of the row tile sees any position of the KV tile. */
TS_INLINE int sees(const struct ts_block *b, struct ts_rows rows, long tile)
{
    int64_t start = (int64_t)tile * TS_KV_TILE;
    int64_t first_seen = ts_window_start(b->call, ts_row_position(b, rows.first));
    int64_t last_seen = ts_row_position(b, rows.first + rows.count - 1);
    return start <= last_seen && start + TS_KV_TILE > first_seen;
}

/* Blocks of the same rows for neighbouring KV heads: they walk the cache together, because a KV
 * block lies in memory with all its heads, and long reads are twice as fast as scattered ones. */
struct ts_heads {
    int count;
    struct ts_block blocks[TS_MOST_HEADS];
};

static inline struct ts_softmax ts_softmax_of_head(float *memory, const struct ts_heads *heads,
                                                   int h)
{
    long rows = heads->blocks[0].rows, v_row = heads->blocks[0].call->kv->v_row;
    return ts_softmax_at(memory + ts_softmax_floats(rows, v_row) * (size_t)h, rows);
}

/* All rows over KV tiles [begin, end), from cleared states, one after the other in `memory`. */
TS_INLINE void attend_chunk(const struct ts_heads *heads, long begin, long end, float *memory,
                            const int bf16)
{
    const struct ts_block *first = &heads->blocks[0];
    const struct ts_attention_call *c = first->call;
    const int *table = c->block_tables + first->seq * c->table_width;
    for (int h = 0; h < heads->count; h++)
        ts_softmax_clear(ts_softmax_of_head(memory, heads, h), first->rows, c->kv->v_row);
    for (long tile = begin; tile < end; tile++) {
        const uint32_t *kv = ts_kv_tile(c->kv, c->layer, table[tile], first->kv_head);
        const uint32_t *after =
            tile + 1 < end ? ts_kv_tile(c->kv, c->layer, table[tile + 1], first->kv_head) : kv;
        for (int h = 0; h < heads->count; h++) {
            const uint32_t *own = kv + h * (c->kv->k_words + c->kv->v_words);
            const uint32_t *next = after + h * (c->kv->k_words + c->kv->v_words);
            struct ts_softmax state = ts_softmax_of_head(memory, heads, h);
            for (long t = 0; t < ts_num_tiles(first->rows); t++) {
                struct ts_rows rows = ts_tile_rows(first->rows, t);
                if (sees(first, rows, tile))
                    attend_tile(&heads->blocks[h], rows, tile, own, next, t ? 0 : TS_PANEL, state,
                                bf16);
            }
        }
    }
}

#endif
