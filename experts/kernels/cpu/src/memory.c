/* Scratch that grows to the largest call, and huge-page memory for weights and caches. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

#define HUGE_PAGE ((size_t)2 << 20)

/* Owned by whoever is between ts_enter and ts_leave. */
static struct {
    void *memory;
    size_t bytes;
} scratch[TS_NUM_SCRATCH];

#if defined(__SANITIZE_ADDRESS__)
/* From the heap and without slack, so that every access outside is seen. */
#include <stdlib.h>
#include <string.h>

void *ts_map(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes) != 0)
        return NULL;
    return memset(memory, 0, bytes);
}

void ts_unmap(void *memory, size_t bytes)
{
    (void)bytes;
    free(memory);
}

static size_t grown(size_t bytes) { return bytes; }

static int is_enough(size_t have, size_t bytes) { return have == bytes; }
#else
void *ts_map(size_t bytes)
{
    int huge = bytes >= HUGE_PAGE;
    /* Over-allocate to start on a huge page, then give back both ends. */
    size_t size = huge ? bytes + HUGE_PAGE : bytes;
    char *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    if (!huge)
        return start;
    size_t head = (HUGE_PAGE - (uintptr_t)start % HUGE_PAGE) % HUGE_PAGE;
    if (head)
        munmap(start, head);
    char *aligned = start + head;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), used = (bytes + page - 1) / page * page;
    if (size - head > used)
        munmap(aligned + used, size - head - used);
    madvise(aligned, bytes, MADV_HUGEPAGE); /* a wish: ordinary pages serve too */
    return aligned;
}

void ts_unmap(void *memory, size_t bytes)
{
    if (memory)
        munmap(memory, bytes);
}

static size_t grown(size_t bytes) { return bytes + bytes / 4 + 4096; }

static int is_enough(size_t have, size_t bytes) { return have >= bytes; }
#endif

void *ts_scratch(int slot, size_t bytes)
{
    if (!is_enough(scratch[slot].bytes, bytes)) {
        ts_unmap(scratch[slot].memory, scratch[slot].bytes);
        scratch[slot].bytes = 0;
        scratch[slot].memory = ts_map(grown(bytes));
        if (scratch[slot].memory)
            scratch[slot].bytes = grown(bytes);
    }
    return scratch[slot].memory;
}
