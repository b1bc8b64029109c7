// Functions that must melt into their callers, so that the sums they return stay in registers. Left to
// itself GCC stops inlining in objects as large as those of the kernels.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#define SLMQ_INLINE_MEMBER __forceinline
#else
#define SLMQ_INLINE_MEMBER [[gnu::always_inline]] inline
#endif
#define SLMQ_INLINE SLMQ_INLINE_MEMBER static
