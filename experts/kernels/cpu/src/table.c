/* Memory of packed matrices and expert tables.
 *
 * A table takes memory in chunks of several slots, so that small experts share huge pages and
 * large ones are freed one by one.
 */
#include <stdlib.h>
#include <string.h>

#include "experts.h"

#define CHUNK_BYTES ((size_t)8 << 20)
#define HUGE_PAGE ((size_t)2 << 20)
#define SMALL_PAGE ((size_t)4 << 10)

struct ts_chunk {
    struct ts_chunk *next;
    char *memory;
    long num_slots, num_used;
    size_t touched; /* bytes from the start that have memory behind them */
    char used[];
};

TS_API struct ts_matrix *ts_matrix_new(const void *weight, long n, long k, int dtype)
{
    struct ts_matrix *matrix = malloc(sizeof *matrix);
    if (!matrix)
        return NULL;
    *matrix = (struct ts_matrix){.n = n, .k = k, .dtype = dtype};
    matrix->bytes = ts_packed_words(n, k, dtype) * 4;
    matrix->words = ts_map(matrix->bytes);
    if (!matrix->words) {
        free(matrix);
        return NULL;
    }
    struct ts_pack pack = {
        .from = {weight}, .halves = 1, .n = n, .k = k, .dtype = dtype, .to = matrix->words};
    ts_enter();
    ts_pack_panels(&pack);
    ts_leave();
    return matrix;
}

TS_API void ts_matrix_free(struct ts_matrix *matrix)
{
    if (!matrix)
        return;
    ts_unmap(matrix->words, matrix->bytes);
    free(matrix);
}

TS_API size_t ts_matrix_bytes(const struct ts_matrix *matrix) { return matrix->bytes; }

TS_API struct ts_table *ts_table_new(long num_experts, long hidden, long width, int dtype)
{
    struct ts_table *table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    table->num_experts = num_experts;
    table->hidden = hidden;
    table->width = width;
    table->dtype = dtype;
    table->slot_bytes = (ts_gate_up_words(table) + ts_packed_words(hidden, width, dtype)) * 4;
    table->slots = calloc((size_t)num_experts, sizeof *table->slots);
    if (!table->slots) {
        free(table);
        return NULL;
    }
    return table;
}

static struct ts_chunk *add_chunk(struct ts_table *table)
{
    long num_slots = (long)(CHUNK_BYTES / table->slot_bytes);
    num_slots = ts_max_long(1, ts_min_long(num_slots, table->num_experts));
    struct ts_chunk *chunk = calloc(1, sizeof *chunk + (size_t)num_slots);
    if (!chunk)
        return NULL;
    chunk->num_slots = num_slots;
    chunk->memory = ts_map((size_t)num_slots * table->slot_bytes);
    if (!chunk->memory) {
        free(chunk);
        return NULL;
    }
    chunk->next = table->chunks;
    table->chunks = chunk;
    return chunk;
}

static void touch_range(void *job, long begin, long end, int thread)
{
    (void)thread;
    struct ts_chunk *chunk = job;
    for (size_t at = (size_t)begin * SMALL_PAGE; at < (size_t)end * SMALL_PAGE; at += SMALL_PAGE)
        ((volatile char *)chunk->memory)[chunk->touched + at] = 0;
}

/* Give a new slot its memory, a huge page per thread: clearing pages takes longer than packing, and
 * threads that pack one small expert would meet in one page and wait for one another. */
static void touch_slot(const struct ts_table *table, struct ts_chunk *chunk, long slot)
{
    size_t all = (size_t)chunk->num_slots * table->slot_bytes;
    size_t needed = (size_t)(slot + 1) * table->slot_bytes;
    while (chunk->touched < needed) {
        size_t bytes = (size_t)ts_min_long((long)(all - chunk->touched),
                                           (long)HUGE_PAGE * ts_num_threads());
        ts_parallel_for(touch_range, chunk, ts_div_up((long)bytes, SMALL_PAGE),
                        HUGE_PAGE / SMALL_PAGE);
        chunk->touched += bytes;
    }
}

static uint32_t *take_slot(struct ts_table *table)
{
    struct ts_chunk *chunk = table->chunks;
    while (chunk && chunk->num_used == chunk->num_slots)
        chunk = chunk->next;
    if (!chunk && !(chunk = add_chunk(table)))
        return NULL;
    long slot = 0;
    while (chunk->used[slot])
        slot++;
    touch_slot(table, chunk, slot);
    chunk->used[slot] = 1;
    chunk->num_used++;
    return (uint32_t *)(void *)(chunk->memory + (size_t)slot * table->slot_bytes);
}

static void free_chunk(struct ts_table *table, struct ts_chunk *chunk)
{
    ts_unmap(chunk->memory, (size_t)chunk->num_slots * table->slot_bytes);
    free(chunk);
}

static void give_slot(struct ts_table *table, uint32_t *words)
{
    struct ts_chunk **link = &table->chunks;
    size_t bytes = table->slot_bytes;
    for (; *link; link = &(*link)->next) {
        struct ts_chunk *chunk = *link;
        size_t offset = (uintptr_t)words - (uintptr_t)chunk->memory;
        if (offset >= (size_t)chunk->num_slots * bytes)
            continue;
        chunk->used[offset / bytes] = 0;
        if (--chunk->num_used == 0) {
            *link = chunk->next;
            free_chunk(table, chunk);
        }
        return;
    }
}

TS_API int ts_table_put(struct ts_table *table, long expert, const void *gate, const void *up,
                        const void *down)
{
    ts_enter();
    uint32_t *words = take_slot(table);
    if (words) {
        struct ts_pack gate_up = {.from = {gate, up}, .halves = 2, .n = table->width,
                                  .k = table->hidden, .dtype = table->dtype, .to = words};
        struct ts_pack out = {.from = {down}, .halves = 1, .n = table->hidden, .k = table->width,
                              .dtype = table->dtype, .to = words + ts_gate_up_words(table)};
        ts_pack_panels(&gate_up);
        ts_pack_panels(&out);
        if (table->slots[expert])
            give_slot(table, table->slots[expert]);
        else
            table->num_held++;
        table->slots[expert] = words;
    }
    ts_leave();
    return words ? TS_OK : TS_NO_MEMORY;
}

TS_API void ts_table_drop(struct ts_table *table, long expert)
{
    ts_enter();
    if (table->slots[expert]) {
        give_slot(table, table->slots[expert]);
        table->slots[expert] = NULL;
        table->num_held--;
    }
    ts_leave();
}

TS_API int ts_table_holds(const struct ts_table *table, long expert)
{
    return table->slots[expert] != NULL;
}

TS_API size_t ts_table_bytes(const struct ts_table *table)
{
    return (size_t)table->num_held * table->slot_bytes;
}

TS_API void ts_table_free(struct ts_table *table)
{
    if (!table)
        return;
    while (table->chunks) {
        struct ts_chunk *chunk = table->chunks;
        table->chunks = chunk->next;
        free_chunk(table, chunk);
    }
    free(table->slots);
    free(table);
}
