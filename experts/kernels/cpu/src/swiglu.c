/* down(silu(gate(x)) * up(x)) over ragged groups of rows, one group per expert. */
#include "experts.h"
#include "product.h"

/* 16 gate and 16 up sums become 16 activations, stored as `down` reads its rows. */
static void activate(const struct ts_product *p, float (*acc)[TS_PANEL], long panel, long first,
                     int count)
{
    long words = p->out_bf16 ? TS_HALF_PANEL / 2 : TS_HALF_PANEL;
    uint32_t *to = (uint32_t *)p->out + first * p->out_width + panel * words * count;
    for (int r = 0; r < count; r++) {
        vf gate = vf_load(acc[r]), up = vf_load(acc[r] + TS_HALF_PANEL);
        uint32_t row[TS_HALF_PANEL];
        vf act = vf_mul(vf_silu(gate), up);
        if (p->out_bf16)
            vf_store_bf16((uint16_t *)row, act);
        else
            vf_store((float *)row, act);
        for (long i = 0; i < words; i++)
            to[i * count + r] = row[i];
    }
}

static void gate_up_range(void *job, long begin, long end, int thread)
{
    (void)thread;
    ts_product_items(job, begin, end, activate);
}

static void down_range(void *job, long begin, long end, int thread)
{
    (void)thread;
    ts_product_items(job, begin, end, ts_store_rows);
}

static long count_tiles(const struct ts_swiglu_call *call)
{
    long tiles = 0;
    for (long g = 0; g < call->num_groups; g++)
        tiles += ts_num_tiles(call->row_offsets[g + 1] - call->row_offsets[g]);
    return tiles;
}

/* Spans of all groups over the weights that start `offset` words into each slot. */
static long group_spans(const struct ts_swiglu_call *call, struct ts_span *spans, size_t offset,
                        long tiles_per_span)
{
    long count = 0;
    for (long g = 0; g < call->num_groups; g++) {
        struct ts_span group = {
            .weight = call->table->slots[call->expert_ids[g]] + offset,
            .first_row = call->row_offsets[g],
            .num_rows = call->row_offsets[g + 1] - call->row_offsets[g],
        };
        count = ts_add_spans(spans, count, group, tiles_per_span);
    }
    return count;
}

static int run_groups(const struct ts_swiglu_call *call, struct ts_span *spans, long tiles)
{
    const struct ts_table *t = call->table;
    long num_rows = call->num_rows;
    int bf16 = t->dtype;
    long hidden_words = ts_padded_width(t) / (bf16 ? 2 : 1);
    uint32_t *hidden = ts_scratch(TS_SCRATCH_HIDDEN, (size_t)num_rows * (size_t)hidden_words * 4);
    struct ts_product product = {
        .spans = spans,
        .panels = ts_padded_width(t) / TS_HALF_PANEL,
        .steps = ts_steps(t->hidden, t->dtype),
        .bf16 = bf16,
        .row_words = ts_steps(t->hidden, t->dtype),
        .out = hidden,
        .out_width = hidden_words,
        .out_bf16 = bf16,
    };
    product.num_spans = group_spans(call, spans, 0, ts_tiles_per_span(tiles, product.panels, product.row_words));
    struct ts_row_source from = {
        .x = call->x,
        .row_idx = call->token_idx,
        .k = t->hidden,
        .steps = product.steps,
        .x_bf16 = bf16,
        .bf16 = bf16,
    };
    product.rows = ts_packed_rows(&from, spans, product.num_spans, num_rows);
    if (!hidden || !product.rows)
        return TS_NO_MEMORY;
    ts_run_product(gate_up_range, &product);

    product.panels = ts_panels(t->hidden);
    product.steps = ts_steps(t->width, t->dtype);
    product.rows = hidden;
    product.row_words = hidden_words;
    product.out = call->out;
    product.out_width = t->hidden;
    product.num_spans = group_spans(call, spans, ts_gate_up_words(t),
                                    ts_tiles_per_span(tiles, product.panels, hidden_words));
    ts_run_product(down_range, &product);
    return TS_OK;
}

/* Every index is used as an address: none may point outside. */
static int check_indices(const struct ts_swiglu_call *c)
{
    if (c->row_offsets[0] != 0 || c->row_offsets[c->num_groups] != c->num_rows)
        return TS_BAD_INDEX;
    for (long g = 0; g < c->num_groups; g++) {
        if (c->row_offsets[g + 1] < c->row_offsets[g] || c->expert_ids[g] < 0 ||
            c->expert_ids[g] >= c->table->num_experts)
            return TS_BAD_INDEX;
        if (!c->table->slots[c->expert_ids[g]])
            return TS_NOT_HELD;
    }
    for (long n = 0; n < c->num_rows; n++)
        if (c->token_idx[n] < 0 || c->token_idx[n] >= c->num_tokens)
            return TS_BAD_INDEX;
    return TS_OK;
}

int TS_FN(grouped_swiglu)(const struct ts_swiglu_call *call)
{
    int status = check_indices(call);
    if (status != TS_OK)
        return status;
    long tiles = count_tiles(call);
    if (tiles == 0)
        return TS_OK;
    struct ts_span *spans = ts_scratch(TS_SCRATCH_TILES, (size_t)tiles * sizeof *spans);
    if (!spans)
        return TS_NO_MEMORY;
    return run_groups(call, spans, tiles);
}
