/* The runtime of the expert library, under the names that the ops use (see runtime.h).
 *
 * There is one thread pool per process, so this library has none of its own: whoever loads it
 * hands over the other's functions before the first call.
 */
#include "runtime.h"

static const struct ts_runtime *runtime;

TS_API void ts_model_bind(const struct ts_runtime *owner) { runtime = owner; }

void ts_enter(void) { runtime->enter(); }
void ts_leave(void) { runtime->leave(); }
void ts_parallel_for(ts_range_fn fn, void *job, long num_items, long grain)
{
    runtime->parallel_for(fn, job, num_items, grain);
}
int ts_num_threads(void) { return runtime->num_threads(); }
int ts_isa(void) { return runtime->isa(); }
void *ts_scratch(int slot, size_t bytes) { return runtime->scratch(slot, bytes); }
void *ts_map(size_t bytes) { return runtime->map(bytes); }
void ts_unmap(void *memory, size_t bytes) { runtime->unmap(memory, bytes); }
int ts_run_linear(const struct ts_linear_call *call) { return runtime->run_linear(call); }
