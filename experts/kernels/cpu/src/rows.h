/* Pack rows into tiles: for each step, the tile's rows side by side, ready to be broadcast. */
#ifndef TS_ROWS_H
#define TS_ROWS_H

#include "tile.h"

/* How rows are read before packing. */
struct ts_row_source {
    const void *x;      /* row-major, `k` wide */
    const int *row_idx; /* row n reads x's row row_idx[n]; NULL: n itself */
    long k, steps;
    int x_bf16, bf16; /* x's type and the type computed in: bfloat16 rows may be widened */
};

TS_INLINE uint32_t ts_row_word(const char *row, long step, const struct ts_row_source *from)
{
    uint32_t word = 0;
    if (!from->x_bf16) {
        memcpy(&word, row + step * 4, 4);
    } else if (!from->bf16) {
        uint16_t half;
        memcpy(&half, row + step * 2, 2);
        word = (uint32_t)half << 16;
    } else {
        memcpy(&word, row + step * 4, step * 2 + 1 == from->k ? 2 : 4);
    }
    return word;
}

TS_INLINE const char *ts_row_start(const struct ts_row_source *from, long n)
{
    long row = from->row_idx ? from->row_idx[n] : n;
    return (const char *)from->x + (size_t)row * (size_t)from->k * (from->x_bf16 ? 2 : 4);
}

static inline void ts_pack_tile(const struct ts_row_source *from, long first, int count,
                                uint32_t *to)
{
    long whole = from->k * (from->x_bf16 ? 2 : 4) / 4; /* steps without an odd end */
    int plain = from->x_bf16 == from->bf16;
    for (int r = 0; r < count; r++) {
        const char *row = ts_row_start(from, first + r);
        long s = 0;
        if (plain)
            for (; s < whole; s++)
                memcpy(&to[s * count + r], row + s * 4, 4);
        for (; s < from->steps; s++)
            to[s * count + r] = ts_row_word(row, s, from);
    }
}

#endif
