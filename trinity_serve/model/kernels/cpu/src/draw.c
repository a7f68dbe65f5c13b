/* One id per row by the inverse of the cumulative weights, best first, without sorting the row.
 *
 * Ids are put into buckets of scaled logits, best first; whole buckets are skipped by their sums, and
 * only the bucket in which a bound falls is sorted by (logit descending, id ascending). A weight is
 * exp(scaled logit) in fp32, cut to a whole number of 2^-44: sums of whole numbers are exact in any
 * order, so that the GPU's threads get the same ones. What is 31 nats below the best weighs nothing.
 * A function of the row and its parameters alone.
 */
#include <stdlib.h>

#include "model.h"
#include "vec.h"

enum { BUCKETS = 512 };
#define BUCKETS_PER_NAT 16.0f
/* The weight of the best id; up to 2^18 ids cannot overflow their sum (MAX_VOCABULARY). */
#define WEIGHT_ONE 0x1p44f

struct draw_row {
    const float *logits;
    long vocab;
    float *scaled, *weights;
    uint64_t *keys; /* of the bucket that is sorted: order in the high half, id in the low one */
    int64_t sums[BUCKETS];
    long counts[BUCKETS]; /* kept ids */
};
static int bucket_of(float scaled)
{
    float at = -scaled * BUCKETS_PER_NAT;
    return at < (float)(BUCKETS - 1) ? (int)at : BUCKETS - 1;
}

/* Larger logits have smaller keys; -0 and 0 are equal. */
static uint64_t key_of(float logit, long id)
{
    uint32_t word = ts_float_to_bits(logit + 0.0f);
    uint32_t ascending = word >> 31 ? ~word : word | 0x80000000u;
    return (uint64_t)~ascending << 32 | (uint64_t)id;
}

static int by_key(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static int64_t whole(float weight) { return (int64_t)(weight * WEIGHT_ONE); }

/* Fill the buckets with what min_p keeps. */
static void fill(struct draw_row *row, const struct ts_draw_spec *spec, float max)
{
    vf peak = vf_set1(max), temperature = vf_set1((float)spec->temperature);
    if (spec->temperature < 1e-20)
        temperature = vf_set1(1e-20f);
    for (long i = 0; i < row->vocab; i += 16) {
        vf x = vf_div(vf_sub(vf_load_head(row->logits, i, row->vocab - i, 0), peak), temperature);
        vf_store(row->scaled + i, x);
        vf_store(row->weights + i, vf_exp(x));
    }
    memset(row->sums, 0, sizeof row->sums);
    memset(row->counts, 0, sizeof row->counts);
    for (long i = 0; i < row->vocab; i++)
        if (row->scaled[i] >= (float)spec->log_min_p) {
            int bucket = bucket_of(row->scaled[i]);
            row->sums[bucket] += whole(row->weights[i]);
            row->counts[bucket]++;
        }
}

/* The ids of a bucket, best first; `counts` may have been cut by top_k. */
static void sort_bucket(struct draw_row *row, const struct ts_draw_spec *spec, int bucket)
{
    long count = 0;
    int sorted = 1;
    float least = bucket < BUCKETS - 1 ? -(float)(bucket + 1) / BUCKETS_PER_NAT : -INFINITY;
    for (long first = 0; first < row->vocab; first += 16) {
        if (vf_peak(vf_load(row->scaled + first)) < least)
            continue;
        for (long i = first; i < ts_min_long(first + 16, row->vocab); i++)
            if (row->scaled[i] >= (float)spec->log_min_p && bucket_of(row->scaled[i]) == bucket) {
                row->keys[count++] = key_of(row->logits[i], i);
                sorted &= count < 2 || row->keys[count - 1] > row->keys[count - 2];
            }
    }
    if (!sorted)
        qsort(row->keys, (size_t)count, sizeof *row->keys, by_key);
}

static int64_t weight_at(const struct draw_row *row, long place)
{
    return whole(row->weights[(uint32_t)row->keys[place]]);
}

/* Keep the `top_k` best: cut the bucket in which they end, empty those after it. */
static void keep_best(struct draw_row *row, const struct ts_draw_spec *spec)
{
    long left = spec->top_k;
    for (int b = 0; b < BUCKETS; b++) {
        if (row->counts[b] > left) {
            row->counts[b] = left;
            row->sums[b] = 0;
            if (left)
                sort_bucket(row, spec, b);
            for (long i = 0; i < left; i++)
                row->sums[b] += weight_at(row, i);
        }
        left -= row->counts[b];
    }
}

struct place {
    int64_t id, cumulative;
};

/* The first id whose cumulative weight reaches `needed`, 1 to the total. */
static struct place find(struct draw_row *row, const struct ts_draw_spec *spec, int64_t needed)
{
    int64_t before = 0;
    int b = 0;
    while (b < BUCKETS - 1 && before + row->sums[b] < needed)
        before += row->sums[b++];
    sort_bucket(row, spec, b);
    struct place at = {(int64_t)(uint32_t)row->keys[0], before};
    for (long i = 0; i < row->counts[b] && at.cumulative < needed; i++) {
        at.id = (int64_t)(uint32_t)row->keys[i];
        at.cumulative += weight_at(row, i);
    }
    return at;
}

static int64_t total(const struct draw_row *row)
{
    int64_t sum = 0;
    for (int b = 0; b < BUCKETS; b++)
        sum += row->sums[b];
    return sum;
}

static int64_t within(int64_t needed, int64_t most)
{
    return needed < 1 ? 1 : needed < most ? needed : most;
}

struct draw_job {
    const struct ts_draw_call *call;
    char *memory; /* per thread: keys, scaled, weights */
    long padded;
};

static void draw_range(void *job, long begin, long end, int thread)
{
    const struct draw_job *draw = job;
    const struct ts_draw_call *c = draw->call;
    char *memory = draw->memory + (size_t)thread * (size_t)draw->padded * 16;
    struct draw_row row = {.vocab = c->vocab, .keys = (uint64_t *)(void *)memory};
    row.scaled = (float *)(void *)(memory + draw->padded * 8);
    row.weights = row.scaled + draw->padded;
    for (long r = begin; r < end; r++) {
        const struct ts_draw_spec *spec = &c->specs[r];
        row.logits = c->logits + r * c->vocab;
        fill(&row, spec, c->max[r]);
        if (spec->top_k > 0)
            keep_best(&row, spec);
        int64_t sum = total(&row);
        if (spec->top_p < 1)
            sum = find(&row, spec, within((int64_t)ceil(spec->top_p * (double)sum), sum)).cumulative;
        int64_t beyond = (int64_t)(spec->uniform * (double)sum);
        c->ids[r] = find(&row, spec, within(beyond + 1, sum)).id;
    }
}

int TS_FN(vocab_draw)(const struct ts_draw_call *call)
{
    struct draw_job job = {.call = call, .padded = ts_div_up(call->vocab, 16) * 16};
    size_t bytes = (size_t)ts_num_threads() * (size_t)job.padded * 16;
    job.memory = ts_scratch(TS_SCRATCH_STATE, bytes);
    if (!job.memory)
        return TS_NO_MEMORY;
    ts_parallel_for(draw_range, &job, call->rows, 1);
    return TS_OK;
}
