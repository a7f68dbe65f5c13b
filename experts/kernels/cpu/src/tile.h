/* The register tile under every product: up to TS_TILE_ROWS rows x 32 columns over k in order.
 *
 * A "step" is one float (float32) or one pair of bfloat16 of k, always four bytes. `b` is a panel:
 * 32 columns side by side per step, `b_stride` words from step to step. Every output element takes
 * the steps in order into one accumulator, so neither the number of rows nor a split of the steps
 * over several calls changes its bits.
 */
#ifndef TS_TILE_H
#define TS_TILE_H

#include "vec.h"

enum { TS_PANEL = 32 };

/* How far ahead the panel is fetched: two 4 KiB pages, where the hardware's own prefetch stops. */
enum { TS_AHEAD_WORDS = 2048 };

/* Up to so many rows the panel goes straight to the first cache, and memory is the limit: 30 GB/s
 * against 21. More rows would be pushed out of it themselves: theirs goes to the second. */
enum { TS_ROWS_FETCHED_NEAR = 4 };

struct ts_operand {
    const uint32_t *a; /* row r, step s at a[s * a_step + r * a_row] */
    long a_step;
    const uint32_t *b;
    long b_stride;
    long steps;
    const uint32_t *next; /* fetched meanwhile; any address will do */
    long next_step;       /* words fetched per step: 32, 16, or 0 for nothing new */
};

TS_INLINE vf ts_step(vf acc, uint32_t a, const uint32_t *b, const int bf16)
{
    if (bf16)
        return vf_dp(acc, a, vp_load(b));
    return vf_fma(vf_set1_bits(a), vf_load((const float *)(const void *)b), acc);
}

/* acc[r][c] += row r times columns 16c ... 16c+15, for `rows` rows (a constant where inlined). */
TS_INLINE void ts_tile(const int rows, const int bf16, const long a_row, vf acc[][2],
                       struct ts_operand in)
{
    const uint32_t *a = in.a, *b = in.b, *next = in.next;
    for (long s = 0; s < in.steps; s++) {
        if (rows <= TS_ROWS_FETCHED_NEAR) {
            __builtin_prefetch(next, 0, 3);
            __builtin_prefetch(next + in.next_step / 2, 0, 3);
        } else {
            __builtin_prefetch(next, 0, 2);
            __builtin_prefetch(next + in.next_step / 2, 0, 2);
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            uint32_t a_rs = a[r * a_row];
            acc[r][0] = ts_step(acc[r][0], a_rs, b, bf16);
            acc[r][1] = ts_step(acc[r][1], a_rs, b + 16, bf16);
        }
        a += in.a_step;
        b += in.b_stride;
        next += in.next_step;
    }
}

/* Call `CASE(n)` with the number of rows as a constant. */
#if TS_TILE_ROWS == 12
#define TS_FOR_ROWS(rows, CASE) \
    switch (rows) {             \
        CASE(1)                 \
        CASE(2)                 \
        CASE(3)                 \
        CASE(4)                 \
        CASE(5)                 \
        CASE(6)                 \
        CASE(7)                 \
        CASE(8)                 \
        CASE(9)                 \
        CASE(10)                \
        CASE(11)                \
        CASE(12)                \
    }
#else
#define TS_FOR_ROWS(rows, CASE) \
    switch (rows) {             \
        CASE(1)                 \
        CASE(2)                 \
    }
#endif

#define TS_TILE_CASE(R)                                                              \
    case R: {                                                                        \
        vf acc[R][2];                                                                \
        for (int r = 0; r < R; r++)                                                  \
            for (int h = 0; h < 2; h++)                                              \
                acc[r][h] = scale ? vf_mul(vf_load(c + r * c_row + 16 * h),          \
                                           vf_set1(scale[r]))                        \
                                  : vf_zero();                                       \
        ts_tile(R, bf16, a_row, acc, in);                                            \
        for (int r = 0; r < R; r++)                                                  \
            for (int h = 0; h < 2; h++)                                              \
                vf_store(c + r * c_row + 16 * h, acc[r][h]);                         \
        break;                                                                       \
    }

TS_INLINE void ts_tile_any(const int bf16, const long a_row, int rows, struct ts_operand in,
                           float *c, long c_row, const float *scale)
{
    TS_FOR_ROWS(rows, TS_TILE_CASE)
}

/* For rows packed side by side (a_row 1):
 * c[r][0..31] = (c[r] * scale[r], or 0 without scale) + row r times the panel. */
static inline void ts_tile_product(int bf16, int rows, struct ts_operand in, float *c, long c_row,
                                   const float *scale)
{
    if (bf16)
        ts_tile_any(1, 1, rows, in, c, c_row, scale);
    else
        ts_tile_any(0, 1, rows, in, c, c_row, scale);
}

/* The same for rows that lie one after the other, 32 k wide, as attention weights do. */
static inline void ts_tile_product_rows(int bf16, int rows, struct ts_operand in, float *c,
                                        long c_row, const float *scale)
{
    if (bf16)
        ts_tile_any(1, TS_PANEL, rows, in, c, c_row, scale);
    else
        ts_tile_any(0, TS_PANEL, rows, in, c, c_row, scale);
}

/* Rows are cut into tiles whose sizes differ by at most one, so that no tile is left thin. */
struct ts_rows {
    long first;
    int count;
};

TS_INLINE long ts_num_tiles(long rows) { return ts_div_up(rows, TS_TILE_ROWS); }

TS_INLINE struct ts_rows ts_tile_rows(long rows, long tile)
{
    long tiles = ts_num_tiles(rows), size = rows / tiles, larger = rows % tiles;
    return (struct ts_rows){tile * size + ts_min_long(tile, larger), (int)size + (tile < larger)};
}

#endif
