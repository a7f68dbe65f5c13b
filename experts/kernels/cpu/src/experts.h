/* What the API (compiled once) asks of the op files (compiled per instruction set). */
#ifndef TS_EXPERTS_H
#define TS_EXPERTS_H

#include "dispatch.h"
#include "matrix.h"

struct ts_linear_call {
    const void *x;
    int x_dtype;
    long rows;
    const struct ts_matrix *weight;
    void *out;
    int out_dtype;
};

/* One slot per expert: gate and up interleaved by 16 columns, then down. NULL: not held. */
struct ts_table {
    long num_experts, hidden, width;
    int dtype;
    size_t slot_bytes;
    uint32_t **slots;
    struct ts_chunk *chunks;
    long num_held;
};

/* Columns of gate (and of up) in one 32-column panel. */
enum { TS_HALF_PANEL = 16 };

static inline long ts_padded_width(const struct ts_table *t)
{
    return ts_div_up(t->width, TS_HALF_PANEL) * TS_HALF_PANEL;
}

/* Words of gate and up; down follows. */
static inline size_t ts_gate_up_words(const struct ts_table *t)
{
    return (size_t)ts_padded_width(t) * 2 * (size_t)ts_steps(t->hidden, t->dtype);
}

struct ts_swiglu_call {
    const void *x;
    long num_tokens, num_rows, num_groups; /* T, N, G */
    const int *token_idx;                  /* N */
    const int *expert_ids;                 /* G */
    const int *row_offsets;                /* G + 1 */
    const struct ts_table *table;
    void *out; /* N x hidden */
};

TS_VERSIONS(int, linear, (const struct ts_linear_call *call));
TS_VERSIONS(int, grouped_swiglu, (const struct ts_swiglu_call *call));

#endif
