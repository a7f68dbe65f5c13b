/* Pack row-major [n, k] weights into panels (see matrix.h). */
#include "matrix.h"

#include <string.h>

/* Steps at a time: four cache lines of each of the 32 rows. Copied first: rows a power of two apart
 * fall into the same few sets of the cache, and would push each other out between their words. */
enum { BLOCK = 64, PANEL = 32 };

typedef uint32_t u4 __attribute__((vector_size(16)));

static void copy_block(const struct ts_pack *p, const char *row, long first, uint32_t *to)
{
    size_t width = p->dtype == TS_BF16 ? 2 : 4, offset = (size_t)first * 4;
    size_t row_bytes = (size_t)p->k * width, block_bytes = BLOCK * sizeof *to;
    size_t left = row_bytes - offset;
    if (row && left >= block_bytes) {
        memcpy(to, row + offset, block_bytes);
        return;
    }
    /* Beyond the matrix, and beside the last element of an odd k, are zeros. */
    memset(to, 0, block_bytes);
    if (row)
        memcpy(to, row + offset, left);
}

static void transpose_4x4(const uint32_t (*from)[BLOCK], uint32_t *to)
{
    u4 a, b, c, d;
    memcpy(&a, from[0], sizeof a);
    memcpy(&b, from[1], sizeof b);
    memcpy(&c, from[2], sizeof c);
    memcpy(&d, from[3], sizeof d);
    u4 ab_low = __builtin_shuffle(a, b, (u4){0, 4, 1, 5});
    u4 ab_high = __builtin_shuffle(a, b, (u4){2, 6, 3, 7});
    u4 cd_low = __builtin_shuffle(c, d, (u4){0, 4, 1, 5});
    u4 cd_high = __builtin_shuffle(c, d, (u4){2, 6, 3, 7});
    u4 out[4] = {
        __builtin_shuffle(ab_low, cd_low, (u4){0, 1, 4, 5}),
        __builtin_shuffle(ab_low, cd_low, (u4){2, 3, 6, 7}),
        __builtin_shuffle(ab_high, cd_high, (u4){0, 1, 4, 5}),
        __builtin_shuffle(ab_high, cd_high, (u4){2, 3, 6, 7}),
    };
    for (long s = 0; s < 4; s++)
        memcpy(to + s * PANEL, &out[s], sizeof out[s]);
}

static void transpose_block(const uint32_t (*from)[BLOCK], long count, uint32_t *to)
{
    long whole = count / 4 * 4;
    for (long s = 0; s < whole; s += 4)
        for (long c = 0; c < PANEL; c += 4)
            transpose_4x4((const uint32_t (*)[BLOCK])(const void *)&from[c][s], to + s * PANEL + c);
    for (long s = whole; s < count; s++)
        for (long c = 0; c < PANEL; c++)
            to[s * PANEL + c] = from[c][s];
}

static void pack_panel(const struct ts_pack *p, long panel)
{
    long width = PANEL / p->halves, steps = ts_steps(p->k, p->dtype);
    size_t row_bytes = (size_t)p->k * (p->dtype == TS_BF16 ? 2 : 4);
    uint32_t *to = p->to + panel * PANEL * steps;
    uint32_t block[PANEL][BLOCK];
    for (long first = 0; first < steps; first += BLOCK) {
        for (long c = 0; c < PANEL; c++) {
            long row = panel * width + c % width;
            const char *from = (const char *)p->from[c / width] + (size_t)row * row_bytes;
            copy_block(p, row < p->n ? from : NULL, first, block[c]);
        }
        transpose_block((const uint32_t (*)[BLOCK])block, ts_min_long(BLOCK, steps - first),
                        to + first * PANEL);
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
