/* What every op needs from the process: threads, scratch memory, the instruction set in use.
 *
 * One thread pool serves all kernel libraries of a process, so that they never compete for cores.
 * The library of the expert ops owns it; other libraries bind to it (`ts_runtime`).
 */
#ifndef TS_RUNTIME_H
#define TS_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define TS_API __attribute__((visibility("default")))

enum { TS_PORTABLE = 0, TS_AVX2 = 1, TS_AVX512_BF16 = 2 };

/* Element types, as the wrappers pass them. */
enum { TS_F32 = 0, TS_BF16 = 1 };

/* Return codes of the API. */
enum { TS_OK = 0, TS_NO_MEMORY = -1, TS_NOT_HELD = -2, TS_BAD_INDEX = -3, TS_NOT_FINITE = -4 };

/* Scratch buffers live as long as the process and grow to the largest call. */
enum { TS_SCRATCH_X, TS_SCRATCH_HIDDEN, TS_SCRATCH_TILES, TS_SCRATCH_PARTIAL, TS_SCRATCH_STATE,
       TS_NUM_SCRATCH };

/* Works on items [begin, end) of a job; `thread` is below ts_num_threads(). */
typedef void (*ts_range_fn)(void *job, long begin, long end, int thread);

/* Every op runs between enter and leave: one caller at a time owns pool and scratch, and
 * denormals are flushed, as vdpbf16ps does whatever the control register says. */
void ts_enter(void);
void ts_leave(void);
void ts_parallel_for(ts_range_fn fn, void *job, long num_items, long grain);
int ts_num_threads(void);
int ts_isa(void);
/* 64-byte aligned, content undefined; NULL when memory is out. Valid until the same slot is asked
 * for again or ts_leave. */
void *ts_scratch(int slot, size_t bytes);
/* Zeroed memory in huge pages where the system has them; NULL when memory is out. */
void *ts_map(size_t bytes);
void ts_unmap(void *memory, size_t bytes);

struct ts_linear_call;
/* `linear` for libraries that do not have it: to be called between enter and leave. */
int ts_run_linear(const struct ts_linear_call *call);

struct ts_runtime {
    void (*enter)(void);
    void (*leave)(void);
    void (*parallel_for)(ts_range_fn fn, void *job, long num_items, long grain);
    int (*num_threads)(void);
    int (*isa)(void);
    void *(*scratch)(int slot, size_t bytes);
    void *(*map)(size_t bytes);
    void (*unmap)(void *memory, size_t bytes);
    int (*run_linear)(const struct ts_linear_call *call);
};

static inline long ts_div_up(long a, long b) { return (a + b - 1) / b; }
static inline long ts_max_long(long a, long b) { return a > b ? a : b; }
static inline long ts_min_long(long a, long b) { return a < b ? a : b; }

#endif
