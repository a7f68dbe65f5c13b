/* x @ Wᵀ with fp32 accumulation in k order, rounded once. */
#include "experts.h"
#include "product.h"

static void linear_range(void *job, long begin, long end, int thread)
{
    (void)thread;
    ts_product_items(job, begin, end, ts_store_rows);
}

int TS_FN(linear)(const struct ts_linear_call *call)
{
    const struct ts_matrix *w = call->weight;
    if (call->rows == 0)
        return TS_OK;
    long tiles = ts_num_tiles(call->rows), panels = ts_panels(w->n);
    struct ts_span *spans = ts_scratch(TS_SCRATCH_TILES, (size_t)tiles * sizeof *spans);
    if (!spans)
        return TS_NO_MEMORY;
    struct ts_span all = {.weight = w->words, .num_rows = call->rows};
    long num_spans = ts_add_spans(spans, 0, all, ts_tiles_per_span(tiles, panels, ts_steps(w->k, w->dtype)));
    struct ts_row_source from = {
        .x = call->x,
        .k = w->k,
        .steps = ts_steps(w->k, w->dtype),
        .x_bf16 = call->x_dtype,
        .bf16 = w->dtype,
    };
    const uint32_t *rows = ts_packed_rows(&from, spans, num_spans, call->rows);
    if (!rows)
        return TS_NO_MEMORY;
    struct ts_product product = {
        .spans = spans,
        .num_spans = num_spans,
        .panels = panels,
        .steps = from.steps,
        .bf16 = w->dtype,
        .rows = rows,
        .row_words = from.steps,
        .out = call->out,
        .out_width = w->n,
        .out_bf16 = call->out_dtype,
    };
    ts_run_product(linear_range, &product);
    return TS_OK;
}
