/* Packed matrices: panels of 32 output columns; in a panel, k runs outside and columns inside.
 *
 *   bfloat16 [N/32][K/2][32][2]     float32 [N/32][K][32]
 *
 * N is padded to 32 and odd K to even with zeros. One step of 128 bytes is two 512-bit registers.
 */
#ifndef TS_MATRIX_H
#define TS_MATRIX_H

#include "runtime.h"

struct ts_matrix {
    uint32_t *words;
    long n, k;
    int dtype;
    size_t bytes;
};

static inline long ts_steps(long k, int dtype) { return dtype == TS_BF16 ? ts_div_up(k, 2) : k; }
static inline long ts_panels(long n) { return ts_div_up(n, 32); }

/* Words of the packed form of [n, k]. */
static inline size_t ts_packed_words(long n, long k, int dtype)
{
    return (size_t)ts_panels(n) * 32 * (size_t)ts_steps(k, dtype);
}

/* Rows that become columns of a panel: `halves` of `width` columns each. Column c of the panel is
 * row first + c of `from[c / width]`; rows past n are zero. */
struct ts_pack {
    const void *from[2];
    int halves;
    long n, k;
    int dtype;
    uint32_t *to;
};

/* Pack all panels, on all threads. Call between ts_enter and ts_leave. */
void ts_pack_panels(const struct ts_pack *pack);

#endif
