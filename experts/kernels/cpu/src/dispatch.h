/* Op files are compiled once per instruction set; their functions get its name as a suffix. */
#ifndef TS_DISPATCH_H
#define TS_DISPATCH_H

#include "runtime.h"

#define TS_CONCAT_(a, b) a##_##b
#define TS_CONCAT(a, b) TS_CONCAT_(a, b)
#define TS_FN(name) TS_CONCAT(name, TS_SUFFIX)

/* Declare the versions of an op, and name the one to run. */
#if defined(__x86_64__) && !defined(TS_PORTABLE_ONLY)
#define TS_VERSIONS(type, name, args) \
    type name##_portable args;        \
    type name##_avx2 args;            \
    type name##_avx512 args
#define TS_PICK(name)                           \
    (ts_isa() == TS_AVX512_BF16 ? name##_avx512 \
     : ts_isa() == TS_AVX2      ? name##_avx2   \
                                : name##_portable)
#else
#define TS_VERSIONS(type, name, args) type name##_portable args
#define TS_PICK(name) (name##_portable)
#endif

#endif
