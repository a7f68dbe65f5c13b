/* Paged attention: blocks of query rows over their sequences' KV, times sigmoid(gate).
 *
 * KV is walked in chunks of fixed absolute positions; each chunk is an online softmax of its own
 * and chunks are merged in order. So few long sequences can be spread over the threads chunk by
 * chunk without changing a bit.
 */
#include "attention_chunk.h"
#include "norm_row.h"

/* Above this, chunks of a block are walked by one thread. */
#define MOST_PARTIAL_BYTES ((size_t)64 << 20)

struct chunk_range {
    long first_chunk, end_chunk, first_tile, end_tile;
};

/* One block's place in the call; all KV heads share it. */
struct query_block {
    long seq, first, queries;
    struct chunk_range range;
    long first_unit; /* units (block, chunk) before this block's */
};

struct plan {
    const struct ts_attention_call *call;
    struct query_block *blocks;
    long num_blocks, num_units, most_rows;
    long heads, parts; /* KV heads per item, and items per block or unit */
    size_t state_words;  /* of one KV head's rows */
    size_t thread_words; /* per thread: packed q, a chunk's states, the merged states */
    float *thread_memory;
    float *partial; /* [unit][part]: states of chunks, when they are spread */
};

static struct chunk_range block_range(const struct ts_attention_call *c, long first, long queries)
{
    int64_t low = ts_window_start(c, c->positions[first]);
    int64_t high = c->positions[first + queries - 1];
    struct chunk_range range = {.first_tile = (long)(low / TS_KV_TILE),
                                .end_tile = (long)(high / TS_KV_TILE) + 1};
    range.first_chunk = range.first_tile / TS_KV_CHUNK_TILES;
    range.end_chunk = ts_div_up(range.end_tile, TS_KV_CHUNK_TILES);
    return range;
}

/* Check what is used as an address: positions in order, and every tile in the cache. */
static int block_is_sound(const struct ts_attention_call *c, const struct query_block *block)
{
    const int64_t *positions = c->positions + block->first;
    for (long i = 1; i < block->queries; i++)
        if (positions[i] <= positions[i - 1])
            return 0;
    if (positions[0] < 0 || block->range.end_tile > c->table_width)
        return 0;
    const int *table = c->block_tables + block->seq * c->table_width;
    for (long tile = block->range.first_tile; tile < block->range.end_tile; tile++)
        if (table[tile] < 0 || table[tile] >= c->kv->num_blocks)
            return 0;
    return 1;
}

static long queries_per_block(const struct ts_attention_call *c)
{
    return ts_max_long(1, TS_BLOCK_ROWS / ts_group(c));
}

static int starts_are_sound(const struct ts_attention_call *c)
{
    for (long seq = 0; seq < c->num_seqs; seq++)
        if (c->query_start[seq + 1] < c->query_start[seq])
            return 0;
    return c->query_start[0] == 0 && c->query_start[c->num_seqs] == c->num_rows;
}

static int plan_blocks(struct plan *plan)
{
    const struct ts_attention_call *c = plan->call;
    long most = queries_per_block(c);
    if (!starts_are_sound(c))
        return TS_BAD_INDEX;
    for (long seq = 0; seq < c->num_seqs; seq++)
        for (long first = c->query_start[seq]; first < c->query_start[seq + 1]; first += most) {
            struct query_block *block = &plan->blocks[plan->num_blocks++];
            long queries = ts_min_long(most, c->query_start[seq + 1] - first);
            *block = (struct query_block){.seq = seq, .first = first, .queries = queries,
                                          .first_unit = plan->num_units};
            block->range = block_range(c, first, queries);
            if (!block_is_sound(c, block))
                return TS_BAD_INDEX;
            plan->num_units += block->range.end_chunk - block->range.first_chunk;
            plan->most_rows = ts_max_long(plan->most_rows, queries * ts_group(c));
        }
    return TS_OK;
}

static long packed_q_words(const struct plan *plan)
{
    const struct ts_kv *kv = plan->call->kv;
    return ts_div_up(plan->most_rows * ts_steps(kv->head_dim, kv->dtype), 16) * 16;
}

static float *chunk_memory(const struct plan *plan, int thread)
{
    return plan->thread_memory + plan->thread_words * (size_t)thread +
           packed_q_words(plan) * plan->heads;
}

/* The rows of a block for the KV heads of one part, without their q. */
static void name_heads(const struct plan *plan, const struct query_block *at, long part,
                       struct ts_heads *heads)
{
    const struct ts_attention_call *c = plan->call;
    long first = part * plan->heads, rows = at->queries * ts_group(c);
    heads->count = (int)ts_min_long(plan->heads, c->shape.num_kv_heads - first);
    for (int h = 0; h < heads->count; h++)
        heads->blocks[h] =
            (struct ts_block){c, at->seq, at->first, at->queries, first + h, rows, NULL};
}

static void pack_q(struct ts_block *block, uint32_t *q)
{
    const struct ts_attention_call *c = block->call;
    long group = ts_group(c), steps = ts_steps(c->kv->head_dim, c->kv->dtype);
    for (long t = 0; t < ts_num_tiles(block->rows); t++) {
        struct ts_rows rows = ts_tile_rows(block->rows, t);
        int idx[TS_TILE_ROWS]; /* of heads in q, seen as (T * H, d) */
        for (int r = 0; r < rows.count; r++) {
            long row = rows.first + r;
            idx[r] = (int)((block->first + row / group) * c->shape.num_heads +
                           block->kv_head * group + row % group);
        }
        struct ts_row_source from = {c->q, idx, c->kv->head_dim, steps, c->kv->dtype,
                                     c->kv->dtype};
        ts_pack_tile(&from, 0, rows.count, q + rows.first * steps);
    }
    block->q = q;
}

/* The same with q rows packed into the thread's memory. */
static void open_heads(const struct plan *plan, const struct query_block *at, long part,
                       int thread, struct ts_heads *heads)
{
    uint32_t *q = (uint32_t *)(plan->thread_memory + plan->thread_words * (size_t)thread);
    name_heads(plan, at, part, heads);
    for (int h = 0; h < heads->count; h++)
        pack_q(&heads->blocks[h], q + packed_q_words(plan) * h);
}

static void run_chunk(const struct ts_heads *heads, struct chunk_range range, long chunk,
                      float *into)
{
    long begin = ts_max_long(range.first_tile, chunk * TS_KV_CHUNK_TILES);
    long end = ts_min_long(range.end_tile, (chunk + 1) * TS_KV_CHUNK_TILES);
    if (heads->blocks[0].call->kv->dtype == TS_BF16)
        attend_chunk(heads, begin, end, into, 1);
    else
        attend_chunk(heads, begin, end, into, 0);
}

/* Add a later chunk. Both sides are brought to the larger peak. */
static void merge(struct ts_softmax all, struct ts_softmax chunk, long rows, long v_row)
{
    for (long r = 0; r < rows; r++) {
        float peak = chunk.peak[r] > all.peak[r] ? chunk.peak[r] : all.peak[r];
        vf base = vf_set1(peak == -INFINITY ? 0.0f : peak);
        vf keep = vf_exp(vf_sub(vf_set1(all.peak[r]), base));
        vf add = vf_exp(vf_sub(vf_set1(chunk.peak[r]), base));
        all.peak[r] = peak;
        float *to = all.total + 16 * r, *from = chunk.total + 16 * r;
        vf_store(to, vf_fma(vf_load(from), add, vf_mul(vf_load(to), keep)));
        for (long i = 0; i < v_row; i += 16) {
            float *sum = all.acc + r * v_row + i;
            vf part = vf_load(chunk.acc + r * v_row + i);
            vf_store(sum, vf_fma(part, add, vf_mul(vf_load(sum), keep)));
        }
    }
}

/* Divide, round, and multiply by the rounded sigmoid of the gate. */
static void finish(const struct ts_block *b, struct ts_softmax s)
{
    const struct ts_attention_call *c = b->call;
    long group = ts_group(c), d = c->kv->head_dim, v_row = c->kv->v_row;
    long heads = c->shape.num_heads, all_heads = 2 * (heads + c->shape.num_kv_heads);
    int bf16 = c->kv->dtype;
    for (long r = 0; r < b->rows; r++) {
        long query = b->first + r / group, head = b->kv_head * group + r % group;
        long gate_head = heads + 2L * c->shape.num_kv_heads + head;
        char *out = (char *)c->out + ts_row_offset(query * heads + head, d, bf16);
        const char *gate =
            (const char *)c->qkvg + ts_row_offset(query * all_heads + gate_head, d, bf16);
        vf total = vf_set1(vf_sum(vf_load(s.total + 16 * r)));
        for (long i = 0; i < d; i += 16) {
            vf mean = vf_div(vf_load(s.acc + r * v_row + i), total);
            vf open = vf_sigmoid(vf_load_head(gate, i, d - i, bf16));
            mean = vf_mul(vf_round_as(mean, bf16), vf_round_as(open, bf16));
            vf_store_head(out, i, d - i, mean, bf16);
        }
    }
}

static void clear_heads(const struct ts_heads *heads, float *memory)
{
    const struct ts_block *first = &heads->blocks[0];
    for (int h = 0; h < heads->count; h++)
        ts_softmax_clear(ts_softmax_of_head(memory, heads, h), first->rows, first->call->kv->v_row);
}

static void merge_heads(const struct ts_heads *heads, float *all, float *chunk)
{
    const struct ts_block *first = &heads->blocks[0];
    for (int h = 0; h < heads->count; h++)
        merge(ts_softmax_of_head(all, heads, h), ts_softmax_of_head(chunk, heads, h), first->rows,
              first->call->kv->v_row);
}

static void finish_heads(const struct ts_heads *heads, float *all)
{
    for (int h = 0; h < heads->count; h++)
        finish(&heads->blocks[h], ts_softmax_of_head(all, heads, h));
}

/* Items (block, part of the KV heads): one thread walks all chunks of each. */
static void whole_range(void *job, long begin, long end, int thread)
{
    const struct plan *plan = job;
    for (long item = begin; item < end; item++) {
        const struct query_block *at = &plan->blocks[item / plan->parts];
        struct ts_heads heads;
        open_heads(plan, at, item % plan->parts, thread, &heads);
        float *chunk = chunk_memory(plan, thread);
        float *all = chunk + plan->state_words * (size_t)plan->heads;
        clear_heads(&heads, all);
        for (long i = at->range.first_chunk; i < at->range.end_chunk; i++) {
            run_chunk(&heads, at->range, i, chunk);
            merge_heads(&heads, all, chunk);
        }
        finish_heads(&heads, all);
    }
}

static float *partial_at(const struct plan *plan, long unit, long part)
{
    size_t words = plan->state_words * (size_t)plan->heads;
    return plan->partial + (size_t)(unit * plan->parts + part) * words;
}

static const struct query_block *block_of_unit(const struct plan *plan, long unit)
{
    long low = 0, high = plan->num_blocks;
    while (high - low > 1) {
        long middle = (low + high) / 2;
        if (plan->blocks[middle].first_unit <= unit)
            low = middle;
        else
            high = middle;
    }
    return &plan->blocks[low];
}

/* Items (block, chunk, part of the KV heads): states are kept for `merge_range`. */
static void chunk_items(void *job, long begin, long end, int thread)
{
    const struct plan *plan = job;
    for (long item = begin; item < end; item++) {
        long unit = item / plan->parts, part = item % plan->parts;
        const struct query_block *at = block_of_unit(plan, unit);
        struct ts_heads heads;
        open_heads(plan, at, part, thread, &heads);
        run_chunk(&heads, at->range, at->range.first_chunk + unit - at->first_unit,
                  partial_at(plan, unit, part));
    }
}

static void merge_range(void *job, long begin, long end, int thread)
{
    const struct plan *plan = job;
    for (long item = begin; item < end; item++) {
        const struct query_block *at = &plan->blocks[item / plan->parts];
        struct ts_heads heads;
        name_heads(plan, at, item % plan->parts, &heads);
        float *all = chunk_memory(plan, thread);
        clear_heads(&heads, all);
        for (long i = 0; i < at->range.end_chunk - at->range.first_chunk; i++)
            merge_heads(&heads, all, partial_at(plan, at->first_unit + i, item % plan->parts));
        finish_heads(&heads, all);
    }
}

static size_t partial_bytes(const struct plan *plan)
{
    size_t states = (size_t)(plan->num_units * plan->parts * plan->heads);
    return states * plan->state_words * 4;
}

/* Spread chunks when whole blocks would leave a thread without work. */
static int wants_chunks(const struct plan *plan)
{
    long heads = plan->call->shape.num_kv_heads, threads = ts_num_threads(), total = 0, most = 0;
    for (long i = 0; i < plan->num_blocks; i++) {
        const struct query_block *block = &plan->blocks[i];
        long cost = (block->range.end_tile - block->range.first_tile) * block->queries;
        total += cost * heads;
        most = ts_max_long(most, cost * plan->heads);
    }
    return threads > 1 && plan->num_units > plan->num_blocks && most * threads * 4 > total &&
           partial_bytes(plan) <= MOST_PARTIAL_BYTES;
}

/* All KV heads in one item where there are items enough without splitting them, and where rows are
 * few: many rows read each KV tile from the core's cache, and their states would not fit there. */
static void choose_heads(struct plan *plan)
{
    long kv_heads = plan->call->shape.num_kv_heads, wanted = 2L * ts_num_threads();
    long fitting = ts_max_long(1, TS_BLOCK_ROWS / plan->most_rows);
    plan->heads = ts_min_long(ts_min_long(kv_heads, fitting), TS_MOST_HEADS);
    while (plan->heads > 1 && ts_num_threads() > 1 &&
           plan->num_units * ts_div_up(kv_heads, plan->heads) < wanted)
        plan->heads = ts_div_up(plan->heads, 2);
    plan->parts = ts_div_up(kv_heads, plan->heads);
}

int TS_FN(paged_attention)(const struct ts_attention_call *call)
{
    struct plan plan = {.call = call};
    if (call->num_rows == 0)
        return TS_OK;
    /* No block is empty, so there are no more of them than rows. */
    plan.blocks = ts_scratch(TS_SCRATCH_TILES, (size_t)call->num_rows * sizeof *plan.blocks);
    if (!plan.blocks)
        return TS_NO_MEMORY;
    int status = plan_blocks(&plan);
    if (status != TS_OK)
        return status;
    choose_heads(&plan);
    plan.state_words = ts_softmax_floats(plan.most_rows, call->kv->v_row);
    plan.thread_words =
        ((size_t)packed_q_words(&plan) + 2 * plan.state_words) * (size_t)plan.heads + 16;
    plan.thread_memory =
        ts_scratch(TS_SCRATCH_STATE, plan.thread_words * (size_t)ts_num_threads() * 4);
    if (!plan.thread_memory)
        return TS_NO_MEMORY;
    if (!wants_chunks(&plan)) {
        ts_parallel_for(whole_range, &plan, plan.num_blocks * plan.parts, 1);
        return TS_OK;
    }
    plan.partial = ts_scratch(TS_SCRATCH_PARTIAL, partial_bytes(&plan));
    if (!plan.partial)
        return TS_NO_MEMORY;
    ts_parallel_for(chunk_items, &plan, plan.num_units * plan.parts, 1);
    ts_parallel_for(merge_range, &plan, plan.num_blocks * plan.parts, 1);
    return TS_OK;
}
