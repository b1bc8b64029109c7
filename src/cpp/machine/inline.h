// Functions that must melt into their callers, so that the sums they return stay in registers. Left to
// itself GCC stops inlining in objects as large as those of the kernels.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#include <math.h>
#include <string.h>

#include <limits>
#define SLMQ_INLINE_MEMBER __forceinline
#define SLMQ_INLINE_LAMBDA
// The kernels' other words of GCC and clang. Functions of <cmath> would be shared symbols there.
#define __builtin_fmaf fmaf
#define __builtin_sqrtf sqrtf
#define __builtin_memcpy memcpy
#define __builtin_memset memset
#define __builtin_inff() (std::numeric_limits<float>::infinity())
#define __builtin_nanf(text) (std::numeric_limits<float>::quiet_NaN())
#else
#define SLMQ_INLINE_MEMBER [[gnu::always_inline]] inline
#define SLMQ_INLINE_LAMBDA __attribute__((always_inline))
#endif
#define SLMQ_INLINE SLMQ_INLINE_MEMBER static

// What was loaded before is loaded again: else the compiler keeps more values over a loop than there are
// registers, on the stack, where they cost stores.
SLMQ_INLINE void forget_loads() {
#if defined(__GNUC__)
  asm volatile("" : : : "memory");
#endif
}
