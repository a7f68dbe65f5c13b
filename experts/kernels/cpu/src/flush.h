/* Denormals are flushed, in and out: vdpbf16ps always does, and the other paths must follow it. */
#ifndef TS_FLUSH_H
#define TS_FLUSH_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

/* Return the control word to restore. */
static inline uint64_t ts_flush_denormals(void)
{
    unsigned before = _mm_getcsr();
    /* All exceptions masked, round to nearest even, flush to zero, denormals are zero. */
    _mm_setcsr(0x1f80u | 0x8000u | 0x0040u);
    return before;
}

static inline void ts_restore_control(uint64_t before) { _mm_setcsr((unsigned)before); }

#elif defined(__aarch64__)

static inline uint64_t ts_flush_denormals(void)
{
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)1 << 24));
    return before;
}

static inline void ts_restore_control(uint64_t before)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
}

#else

static inline uint64_t ts_flush_denormals(void) { return 0; }
static inline void ts_restore_control(uint64_t before) { (void)before; }

#endif
#endif
