/* Pack row-major [n, k] weights into panels (see matrix.h). */
#include "matrix.h"

#include <string.h>

enum { BLOCK = 16 }; /* steps at a time: one cache line of each of the 32 rows */

static uint32_t word_at(const char *row, long step, const struct ts_pack *p)
{
    uint32_t word = 0;
    size_t bytes = 4;
    if (p->dtype == TS_BF16 && step * 2 + 1 == p->k)
        bytes = 2; /* the last element of an odd k stands alone, beside a zero */
    memcpy(&word, row + step * 4, bytes);
    return word;
}

static void pack_panel(const struct ts_pack *p, long panel)
{
    long width = 32 / p->halves, steps = ts_steps(p->k, p->dtype);
    size_t row_bytes = (size_t)p->k * (p->dtype == TS_BF16 ? 2 : 4);
    uint32_t *to = p->to + panel * 32 * steps;
    const char *rows[32];
    for (long c = 0; c < 32; c++) {
        long row = panel * width + c % width;
        rows[c] = row < p->n ? (const char *)p->from[c / width] + (size_t)row * row_bytes : NULL;
    }
    for (long first = 0; first < steps; first += BLOCK) {
        long end = ts_min_long(first + BLOCK, steps);
        for (long c = 0; c < 32; c++)
            for (long s = first; s < end; s++)
                to[s * 32 + c] = rows[c] ? word_at(rows[c], s, p) : 0;
    }
}

static void pack_range(void *job, long begin, long end, int thread)
{
    (void)thread;
    for (long panel = begin; panel < end; panel++)
        pack_panel(job, panel);
}

void ts_pack_panels(const struct ts_pack *pack)
{
    long panels = ts_div_up(pack->n, 32 / pack->halves);
    ts_parallel_for(pack_range, (void *)(uintptr_t)pack, panels, 4);
}
