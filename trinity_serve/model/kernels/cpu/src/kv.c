/* Memory of a pool's K and V. */
#include <stdlib.h>

#include "matrix.h"
#include "model.h"

TS_API struct ts_kv *ts_kv_new(long num_layers, long num_blocks, long num_kv_heads, long head_dim,
                               int dtype)
{
    struct ts_kv *kv = malloc(sizeof *kv);
    if (!kv)
        return NULL;
    *kv = (struct ts_kv){.num_layers = num_layers, .num_blocks = num_blocks,
                         .num_kv_heads = num_kv_heads, .head_dim = head_dim, .dtype = dtype};
    kv->v_row = ts_div_up(head_dim, 32) * 32;
    kv->k_words = ts_steps(head_dim, dtype) * TS_KV_TILE;
    kv->v_words = ts_steps(TS_KV_TILE, dtype) * kv->v_row;
    size_t tiles = (size_t)num_layers * (size_t)num_blocks * (size_t)num_kv_heads;
    kv->bytes = tiles * (size_t)(kv->k_words + kv->v_words) * 4;
    kv->words = kv->bytes ? ts_map(kv->bytes) : NULL;
    if (kv->bytes && !kv->words) {
        free(kv);
        return NULL;
    }
    return kv;
}

TS_API void ts_kv_free(struct ts_kv *kv)
{
    if (!kv)
        return;
    ts_unmap(kv->words, kv->bytes);
    free(kv);
}

TS_API size_t ts_kv_bytes(const struct ts_kv *kv) { return kv->bytes; }
