/* Reductions over the vocabulary, row by row, in chunks of 1,024 columns. */
#include "model.h"
#include "vec.h"

enum { CHUNK = 1024 };

/* The largest logit of a chunk; adds the logits to `sum`, to find out about NaN. */
static float chunk_peak(const float *logits, long count, float *sum)
{
    vf peaks = vf_set1(-INFINITY), sums = vf_zero();
    long i = 0;
    for (; i + 16 <= count; i += 16) {
        vf x = vf_load(logits + i);
        peaks = vf_max(x, peaks);
        sums = vf_add(sums, x);
    }
    float peak = vf_peak(peaks);
    *sum += vf_sum(sums);
    for (; i < count; i++) {
        peak = logits[i] > peak ? logits[i] : peak;
        *sum += logits[i];
    }
    return peak;
}

/* The lowest id of the largest logit; the first NaN if there is one, as numpy does. */
static int64_t row_argmax(const float *logits, long vocab)
{
    float peak = -INFINITY, sum = 0.0f;
    long chunk = 0;
    for (long first = 0; first < vocab; first += CHUNK) {
        float own = chunk_peak(logits + first, ts_min_long(CHUNK, vocab - first), &sum);
        if (own > peak) {
            peak = own;
            chunk = first;
        }
    }
    if (sum != sum) /* NaN, or infinities of both signs */
        for (long i = 0; i < vocab; i++)
            if (logits[i] != logits[i])
                return i;
    for (long i = chunk; i < vocab; i++)
        if (logits[i] == peak)
            return i;
    return 0;
}

static void argmax_range(void *job, long begin, long end, int thread)
{
    const struct ts_vocab_call *c = job;
    (void)thread;
    for (long row = begin; row < end; row++)
        c->best[row] = row_argmax(c->logits + row * c->vocab, c->vocab);
}

int TS_FN(vocab_argmax)(const struct ts_vocab_call *call)
{
    long grain = ts_max_long(1, 32768 / call->vocab);
    ts_parallel_for(argmax_range, (void *)(uintptr_t)call, call->rows, grain);
    return TS_OK;
}

/* log of x >= 1 by the series of atanh. Own, because libm's bits differ between machines. */
static double natural_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    if (exponent == 1024)
        return x; /* infinity and NaN stay what they are */
    bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
    double m;
    memcpy(&m, &bits, 8);
    if (m > 1.4142135623730951) {
        m = m / 2;
        exponent++;
    }
    double s = (m - 1) / (m + 1), square = s * s, series = 0;
    for (int odd = 23; odd >= 1; odd -= 2)
        series = series * square + 1.0 / odd;
    return (double)exponent * 0.6931471805599453 + 2 * s * series;
}

static double row_log_sum_exp(const float *logits, long vocab, float max)
{
    double total = 0;
    vf peak = vf_set1(max);
    for (long first = 0; first < vocab; first += CHUNK) {
        long end = ts_min_long(first + CHUNK, vocab);
        vf sum = vf_zero();
        for (long i = first; i < end; i += 16) {
            vf x = vf_load_head(logits, i, end - i, 0);
            vf p = vf_exp(vf_sub(x, peak));
            if (end - i < 16) {
                float lanes[16];
                vf_store(lanes, p);
                p = vf_load_head(lanes, 0, end - i, 0);
            }
            sum = vf_add(sum, p);
        }
        total += (double)vf_sum(sum);
    }
    return (double)max + natural_log(total);
}

static void log_sum_exp_range(void *job, long begin, long end, int thread)
{
    const struct ts_vocab_call *c = job;
    (void)thread;
    for (long row = begin; row < end; row++)
        c->log_sum[row] = row_log_sum_exp(c->logits + row * c->vocab, c->vocab, c->max[row]);
}

int TS_FN(vocab_log_sum_exp)(const struct ts_vocab_call *call)
{
    long grain = ts_max_long(1, 8192 / call->vocab);
    ts_parallel_for(log_sum_exp_range, (void *)(uintptr_t)call, call->rows, grain);
    return TS_OK;
}
