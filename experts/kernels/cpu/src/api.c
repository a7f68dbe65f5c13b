/* The ops as the wrapper calls them. Shapes and types were checked there. */
#include "experts.h"

int ts_run_linear(const struct ts_linear_call *call) { return TS_PICK(linear)(call); }

TS_API int ts_linear(const void *x, int x_dtype, long rows, const struct ts_matrix *weight,
                     void *out, int out_dtype)
{
    struct ts_linear_call call = {x, x_dtype, rows, weight, out, out_dtype};
    ts_enter();
    int status = ts_run_linear(&call);
    ts_leave();
    return status;
}

TS_API int ts_grouped_swiglu(const void *x, long num_tokens, long num_rows, long num_groups,
                             const int *token_idx, const int *expert_ids, const int *row_offsets,
                             const struct ts_table *table, void *out)
{
    struct ts_swiglu_call call = {x,          num_tokens,  num_rows, num_groups, token_idx,
                                  expert_ids, row_offsets, table,    out};
    ts_enter();
    int status = TS_PICK(grouped_swiglu)(&call);
    ts_leave();
    return status;
}
