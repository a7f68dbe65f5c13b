/* QK-norm and rotary of a row's heads; K and V go to the cache, q to the caller. */
#include "model.h"
#include "norm_row.h"

/* Rotate pairs (i, i + d/2), each product and the sum rounded, as eager torch does. `rope` has the
 * row's cosines and then its sines. */
TS_INLINE void rotate(void *head, const float *rope, long d, const int bf16)
{
    long half = d / 2;
    for (long i = 0; i < half; i += 16) {
        long left = half - i;
        vf cos = vf_round_as(vf_load_head(rope, i, left, 0), bf16);
        vf sin = vf_round_as(vf_load_head(rope, half + i, left, 0), bf16);
        vf first = vf_load_head(head, i, left, bf16);
        vf second = vf_load_head(head, half + i, left, bf16);
        vf first_cos = vf_round_as(vf_mul(first, cos), bf16);
        vf first_sin = vf_round_as(vf_mul(first, sin), bf16);
        vf second_cos = vf_round_as(vf_mul(second, cos), bf16);
        vf second_sin = vf_round_as(vf_mul(second, sin), bf16);
        vf_store_head(head, i, left, vf_sub(first_cos, second_sin), bf16);
        vf_store_head(head, half + i, left, vf_add(second_cos, first_sin), bf16);
    }
}

static void write_k(const struct ts_kv *kv, uint32_t *tile, long offset, const void *k)
{
    long d = kv->head_dim;
    if (kv->dtype == TS_F32) {
        for (long i = 0; i < d; i++)
            memcpy(&tile[i * TS_KV_TILE + offset], (const char *)k + 4 * i, 4);
        return;
    }
    for (long i = 0; i < d; i += 2) {
        uint32_t pair = 0;
        memcpy(&pair, (const char *)k + 2 * i, i + 1 < d ? 4 : 2);
        tile[i / 2 * TS_KV_TILE + offset] = pair;
    }
}

/* A block that is used again has old values: an even position clears its odd neighbour, because
 * attention reads V in pairs, and 0 * NaN is NaN. Not when this call writes the neighbour too,
 * maybe on another thread. */
static void write_v(const struct ts_kv *kv, uint32_t *tile, long offset, const void *v,
                    int clear_neighbour)
{
    long d = kv->head_dim;
    if (kv->dtype == TS_F32) {
        memcpy(tile + offset * kv->v_row, v, (size_t)d * 4);
        return;
    }
    uint16_t *to = (uint16_t *)(tile + offset / 2 * kv->v_row) + offset % 2;
    for (long i = 0; i < d; i++)
        memcpy(&to[2 * i], (const char *)v + 2 * i, 2);
    if (clear_neighbour)
        for (long i = 0; i < d; i++)
            to[2 * i + 1] = 0;
}

TS_INLINE void write_row(const struct ts_write_kv_call *c, long row, const int bf16)
{
    const struct ts_shape *shape = &c->shape;
    const struct ts_kv *kv = c->kv;
    long d = shape->head_dim, element = bf16 ? 2 : 4;
    long width = 2L * (shape->num_heads + shape->num_kv_heads) * d;
    const char *x = (const char *)c->qkvg + ts_row_offset(row, width, bf16);
    const float *rope = c->rope ? c->rope + c->positions[row] * d : NULL;
    char *q = (char *)c->q_out + ts_row_offset(row, shape->num_heads * d, bf16);
    for (long h = 0; h < shape->num_heads; h++) {
        ts_norm_row(x + h * d * element, c->q_norm, q + h * d * element, d, shape->eps, bf16);
        if (rope)
            rotate(q + h * d * element, rope, d, bf16);
    }
    const char *k = x + shape->num_heads * d * element;
    const char *v = k + shape->num_kv_heads * d * element;
    long block = c->slots[row] / TS_KV_TILE, offset = c->slots[row] % TS_KV_TILE;
    int next_written = row + 1 < c->rows && c->slots[row + 1] == c->slots[row] + 1;
    for (long h = 0; h < shape->num_kv_heads; h++) {
        _Alignas(64) char normed[TS_MAX_HEAD_DIM * 4];
        ts_norm_row(k + h * d * element, c->k_norm, normed, d, shape->eps, bf16);
        if (rope)
            rotate(normed, rope, d, bf16);
        uint32_t *tile = ts_kv_tile(kv, c->layer, block, h);
        write_k(kv, tile, offset, normed);
        write_v(kv, tile + kv->k_words, offset, v + h * d * element,
                offset % 2 == 0 && !next_written);
    }
}

static void write_range(void *job, long begin, long end, int thread)
{
    const struct ts_write_kv_call *call = job;
    (void)thread;
    for (long row = begin; row < end; row++) {
        if (call->kv->dtype == TS_BF16)
            write_row(call, row, 1);
        else
            write_row(call, row, 0);
    }
}

int TS_FN(write_kv)(const struct ts_write_kv_call *call)
{
    long num_slots = call->kv->num_blocks * TS_KV_TILE;
    for (long row = 0; row < call->rows; row++) {
        if (call->slots[row] < 0 || call->slots[row] >= num_slots)
            return TS_BAD_INDEX;
        if (call->rope && (call->positions[row] < 0 || call->positions[row] >= call->max_positions))
            return TS_BAD_INDEX;
    }
    long width = (call->shape.num_heads + 2L * call->shape.num_kv_heads) * call->shape.head_dim;
    ts_parallel_for(write_range, (void *)(uintptr_t)call, call->rows,
                    ts_row_grain(width, call->kv->dtype));
    return TS_OK;
}
