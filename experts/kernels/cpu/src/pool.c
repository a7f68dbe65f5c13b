/* The thread pool: persistent workers that spin briefly for the next job, then sleep.
 *
 * A job is claimed in grains from one 64-bit word, (generation, next item), by compare and swap: a
 * worker that wakes late finds another generation there and can never touch a job that is over. So
 * the caller waits for the items, not for the workers.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "flush.h"
#include "runtime.h"

/* Between two calls of a decode step lie 10 to 250 us of Python: a worker that slept through them
 * would cost some 50 us to wake, each time. An idle pool burns one such spin and no more. */
enum { SPIN_NS = 300 * 1000, MAX_THREADS = 256 };
/* How long a caller spins for workers before it offers them its core. */
enum { YIELD_NS = 50 * 1000 };
/* A wait that no sound worker causes, how long its caller goes on alone, and after how many jobs
 * without one it is forgotten. */
enum { STALL_NS = 2 * 1000 * 1000, LEAST_ALONE_NS = 5 * 1000 * 1000, MOST_ALONE_NS = 80 * 1000 * 1000,
       GOOD_JOBS = 256 };
#define CLOSED 0xffffffffu

static struct {
    _Atomic uint64_t claim; /* generation << 32 | next item */
    _Atomic(ts_range_fn) fn;
    _Atomic(void *) job;
    _Atomic long num_items, grain, done;
    _Atomic int num_sleeping, stop;
    int num_threads, num_workers;
    long alone_until_ns, alone_ns; /* after a worker has lost its core; see `note_wait` */
    int good_jobs;
    pthread_t workers[MAX_THREADS];
    pthread_mutex_t owner; /* held from ts_enter to ts_leave */
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
} pool = {
    .num_threads = 1,
    .owner = PTHREAD_MUTEX_INITIALIZER,
    .sleep_lock = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
};

static long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Take grains of the open job until none is left. */
static void work(int thread)
{
    uint64_t seen = atomic_load_explicit(&pool.claim, memory_order_acquire);
    for (;;) {
        uint32_t next = (uint32_t)seen;
        if (next == CLOSED) { /* a few stores long: the caller is writing the next job */
            pause_cpu();
            seen = atomic_load_explicit(&pool.claim, memory_order_acquire);
            continue;
        }
        ts_range_fn fn = atomic_load_explicit(&pool.fn, memory_order_relaxed);
        void *job = atomic_load_explicit(&pool.job, memory_order_relaxed);
        long num_items = atomic_load_explicit(&pool.num_items, memory_order_relaxed);
        long grain = atomic_load_explicit(&pool.grain, memory_order_relaxed);
        if ((long)next >= num_items)
            return;
        /* Smaller towards the end, so that the threads end together. */
        long share = (num_items - next) / (2L * pool.num_threads);
        long end = next + ts_max_long(1, ts_min_long(grain, share));
        uint64_t taken = (seen & ~(uint64_t)CLOSED) | (uint64_t)end;
        if (!atomic_compare_exchange_weak_explicit(&pool.claim, &seen, taken, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        fn(job, next, end, thread);
        atomic_fetch_add_explicit(&pool.done, end - next, memory_order_release);
        seen = atomic_load_explicit(&pool.claim, memory_order_acquire);
    }
}

static uint32_t generation(void)
{
    return (uint32_t)(atomic_load_explicit(&pool.claim, memory_order_acquire) >> 32);
}

/* Wait for another generation than `seen`: spin, then sleep. */
static void wait_for_job(uint32_t seen)
{
    long until = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if (generation() != seen || atomic_load(&pool.stop))
                return;
            pause_cpu();
        }
    } while (now_ns() < until);
    pthread_mutex_lock(&pool.sleep_lock);
    atomic_fetch_add(&pool.num_sleeping, 1);
    while (generation() == seen && !atomic_load(&pool.stop))
        pthread_cond_wait(&pool.wake, &pool.sleep_lock);
    atomic_fetch_sub(&pool.num_sleeping, 1);
    pthread_mutex_unlock(&pool.sleep_lock);
}

static void *worker_main(void *arg)
{
    int thread = (int)(intptr_t)arg;
    ts_flush_denormals();
    uint32_t seen = generation();
    work(thread);
    while (!atomic_load(&pool.stop)) {
        wait_for_job(seen);
        seen = generation();
        work(thread);
    }
    return NULL;
}

static void wake_sleepers(void)
{
    if (atomic_load(&pool.num_sleeping) == 0)
        return;
    pthread_mutex_lock(&pool.sleep_lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep_lock);
}

static void stop_workers(void)
{
    atomic_store(&pool.stop, 1);
    pthread_mutex_lock(&pool.sleep_lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep_lock);
    for (int i = 0; i < pool.num_workers; i++)
        pthread_join(pool.workers[i], NULL);
    pool.num_workers = 0;
    atomic_store(&pool.stop, 0);
}

/* Start what is missing; with fewer threads than asked for the work is done all the same. */
static void start_workers(void)
{
    while (pool.num_workers < pool.num_threads - 1) {
        pthread_t *slot = &pool.workers[pool.num_workers];
        if (pthread_create(slot, NULL, worker_main, (void *)(intptr_t)(pool.num_workers + 1)) != 0)
            return;
        pool.num_workers++;
    }
}

/* Another process wants a core: a worker was taken off while it held a claim, and its caller waited
 * for a whole time slice (not for the short turn of one that sends a token on: to be alone costs more
 * than to wait for that). Work alone for a while, the longer the more often it happens. */
static void note_wait(long work_ns, long wait_ns)
{
    if (wait_ns > STALL_NS + work_ns) {
        pool.alone_ns = ts_min_long(MOST_ALONE_NS, ts_max_long(LEAST_ALONE_NS, 2 * pool.alone_ns));
        pool.alone_until_ns = now_ns() + pool.alone_ns;
        pool.good_jobs = 0;
    } else if (pool.alone_ns && ++pool.good_jobs == GOOD_JOBS) {
        pool.alone_ns = 0;
    }
}

static int is_alone(void)
{
    if (pool.alone_until_ns && now_ns() >= pool.alone_until_ns)
        pool.alone_until_ns = 0;
    return pool.alone_until_ns != 0;
}

static void wait_for_workers(long num_items, long start_ns)
{
    if (atomic_load_explicit(&pool.done, memory_order_acquire) == num_items)
        return;
    long from_ns = now_ns(), at_ns = from_ns;
    while (atomic_load_explicit(&pool.done, memory_order_acquire) < num_items) {
        pause_cpu();
        at_ns = now_ns();
        if (at_ns > from_ns + YIELD_NS)
            sched_yield(); /* a worker lost its core: give it this one */
    }
    note_wait(from_ns - start_ns, at_ns - from_ns);
}

void ts_parallel_for(ts_range_fn fn, void *job, long num_items, long grain)
{
    if (num_items <= 0)
        return;
    if (pool.num_threads == 1 || num_items <= grain || is_alone()) {
        fn(job, 0, num_items, 0);
        return;
    }
    start_workers();
    long start_ns = now_ns();
    uint64_t next_generation = (uint64_t)(generation() + 1) << 32;
    /* Closed first: no worker may read half of this job under the old generation. */
    atomic_store(&pool.claim, next_generation | CLOSED);
    atomic_store_explicit(&pool.fn, fn, memory_order_relaxed);
    atomic_store_explicit(&pool.job, job, memory_order_relaxed);
    atomic_store_explicit(&pool.num_items, num_items, memory_order_relaxed);
    atomic_store_explicit(&pool.grain, grain, memory_order_relaxed);
    atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
    atomic_store(&pool.claim, next_generation);
    wake_sleepers();
    work(0);
    wait_for_workers(num_items, start_ns);
}

int ts_num_threads(void) { return pool.num_threads; }

TS_API int ts_threads(void) { return pool.num_threads; }

TS_API int ts_set_threads(int num_threads)
{
    pthread_mutex_lock(&pool.owner);
    num_threads = num_threads < 1 ? 1 : num_threads > MAX_THREADS ? MAX_THREADS : num_threads;
    if (num_threads != pool.num_threads)
        stop_workers();
    pool.num_threads = num_threads;
    pthread_mutex_unlock(&pool.owner);
    return num_threads;
}

static _Thread_local uint64_t caller_control;

void ts_enter(void)
{
    pthread_mutex_lock(&pool.owner);
    caller_control = ts_flush_denormals();
}

void ts_leave(void)
{
    ts_restore_control(caller_control);
    pthread_mutex_unlock(&pool.owner);
}

static void before_fork(void) { pthread_mutex_lock(&pool.owner); }

static void after_fork_parent(void) { pthread_mutex_unlock(&pool.owner); }

/* The child has no workers; the next job starts them. */
static void after_fork_child(void)
{
    pool.num_workers = 0;
    atomic_store(&pool.num_sleeping, 0);
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.sleep_lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}
