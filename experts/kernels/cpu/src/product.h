/* A product of row tiles with panels, spread over the threads; `linear` and the two halves of
 * `grouped_swiglu` are this with another epilogue.
 *
 * A span is a run of tiles that share a weight: one group, or a part of it. An item is one panel
 * of one span: the panel is read from memory once and stays in the core's cache for all tiles.
 */
#ifndef TS_PRODUCT_H
#define TS_PRODUCT_H

#include "rows.h"

struct ts_span {
    const uint32_t *weight; /* the group's first panel */
    long first_row;         /* of the group, in the call's rows */
    long num_rows;          /* of the group */
    long tile_begin, tile_end;
};

struct ts_product {
    const struct ts_span *spans;
    long num_spans;
    long panels, steps;
    int bf16;
    const uint32_t *rows; /* the tile from row f starts at rows[f * row_words], [steps][R] */
    long row_words;
    void *out;
    long out_width; /* columns, or words per row of a packed output */
    int out_bf16;
};

/* What becomes of the 32 sums of each of `count` rows. */
typedef void (*ts_epilogue)(const struct ts_product *p, float (*acc)[TS_PANEL], long panel,
                            long first, int count);

/* The epilogue that rounds once and stores row-major. */
static inline void ts_store_rows(const struct ts_product *p, float (*acc)[TS_PANEL], long panel, long first,
                                 int count)
{
    for (int r = 0; r < count; r++)
        for (long h = 0; h < TS_PANEL; h += 16) {
            long column = panel * TS_PANEL + h, left = p->out_width - column;
            if (left > 0)
                vf_store_head(p->out, (first + r) * p->out_width + column, left,
                              vf_load(&acc[r][h]), p->out_bf16);
        }
}

struct ts_fetch {
    const uint32_t *at;
    long step;
};

/* What tile `t` of a span fetches: itself, a little ahead, if it is the only one; else the first two
 * tiles fetch half of the next item's panel each, so that memory is busy for longer. */
TS_INLINE struct ts_fetch ts_fetch_for(const struct ts_product *p, long item, long t)
{
    const struct ts_span *span = &p->spans[item / p->panels];
    const uint32_t *own = span->weight + item % p->panels * TS_PANEL * p->steps;
    long turn = t - span->tile_begin;
    if (span->tile_end - span->tile_begin == 1)
        return (struct ts_fetch){own + TS_AHEAD_WORDS, TS_PANEL};
    if (turn > 1 || item + 1 == p->num_spans * p->panels)
        return (struct ts_fetch){own, 0};
    const struct ts_span *after = &p->spans[(item + 1) / p->panels];
    const uint32_t *next = after->weight + (item + 1) % p->panels * TS_PANEL * p->steps;
    return (struct ts_fetch){next + turn * (TS_PANEL / 2) * p->steps, TS_PANEL / 2};
}

TS_INLINE void ts_product_items(const struct ts_product *p, long begin, long end,
                                ts_epilogue epilogue)
{
    float acc[TS_TILE_ROWS][TS_PANEL];
    for (long item = begin; item < end; item++) {
        const struct ts_span *span = &p->spans[item / p->panels];
        long panel = item % p->panels;
        const uint32_t *b = span->weight + panel * TS_PANEL * p->steps;
        for (long t = span->tile_begin; t < span->tile_end; t++) {
            struct ts_rows rows = ts_tile_rows(span->num_rows, t);
            long first = span->first_row + rows.first;
            struct ts_fetch fetch = ts_fetch_for(p, item, t);
            struct ts_operand in = {
                .a = p->rows + first * p->row_words,
                .a_step = rows.count,
                .b = b,
                .b_stride = TS_PANEL,
                .steps = p->steps,
                .next = fetch.at,
                .next_step = fetch.step,
            };
            ts_tile_product(p->bf16, rows.count, in, acc[0], TS_PANEL, NULL);
            epilogue(p, acc, panel, first, rows.count);
        }
    }
}

/* Grains of a quarter of a thread's share: long enough to stream, short enough to balance. */
static inline void ts_run_product(ts_range_fn range, struct ts_product *p)
{
    long items = p->num_spans * p->panels;
    long grain = ts_min_long(16, ts_max_long(1, items / (ts_num_threads() * 4)));
    ts_parallel_for(range, p, items, grain);
}

/* Tiles per span: whole groups, unless there would be too few items for the threads, or more rows
 * than stay in a core's second cache while the panels pass by. */
static inline long ts_tiles_per_span(long total_tiles, long panels, long row_words)
{
    enum { MOST_WORDS = 128 * 1024 };
    long fitting = ts_max_long(2, MOST_WORDS / (TS_TILE_ROWS * row_words));
    long wanted_spans = ts_div_up(8L * ts_num_threads(), panels);
    return ts_max_long(1, ts_min_long(fitting, total_tiles / wanted_spans));
}

/* Append the group's spans; returns the new count. */
static inline long ts_add_spans(struct ts_span *spans, long count, struct ts_span group,
                                long tiles_per_span)
{
    long tiles = group.num_rows ? ts_num_tiles(group.num_rows) : 0;
    for (long t = 0; t < tiles; t += tiles_per_span) {
        group.tile_begin = t;
        group.tile_end = ts_min_long(t + tiles_per_span, tiles);
        spans[count++] = group;
    }
    return count;
}

struct ts_pack_job {
    const struct ts_row_source *from;
    const struct ts_span *spans;
    uint32_t *to;
};

static inline void ts_pack_range(void *job, long begin, long end, int thread)
{
    const struct ts_pack_job *pack = job;
    (void)thread;
    for (long s = begin; s < end; s++) {
        const struct ts_span *span = &pack->spans[s];
        for (long t = span->tile_begin; t < span->tile_end; t++) {
            struct ts_rows rows = ts_tile_rows(span->num_rows, t);
            long first = span->first_row + rows.first;
            ts_pack_tile(pack->from, first, rows.count, pack->to + first * pack->from->steps);
        }
    }
}

/* Rows in tile form: packed to scratch, or x itself when one whole-word row is its own tile. */
static inline const uint32_t *ts_packed_rows(const struct ts_row_source *from,
                                             const struct ts_span *spans, long num_spans,
                                             long num_rows)
{
    size_t row_bytes = (size_t)from->k * (from->x_bf16 ? 2 : 4);
    if (num_rows == 1 && from->x_bf16 == from->bf16 && row_bytes % 4 == 0 &&
        (uintptr_t)from->x % 4 == 0)
        return (const uint32_t *)(const void *)ts_row_start(from, 0);
    uint32_t *to = ts_scratch(TS_SCRATCH_X, (size_t)num_rows * (size_t)from->steps * 4);
    if (!to)
        return NULL;
    struct ts_pack_job job = {from, spans, to};
    /* Waking a thread costs more than packing a few rows. */
    long grain = num_rows * from->steps < 32768 ? num_spans : 1;
    ts_parallel_for(ts_pack_range, &job, num_spans, grain);
    return to;
}

#endif
