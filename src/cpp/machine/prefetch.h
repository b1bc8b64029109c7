// Asks for memory that will soon be read.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__) && defined(_M_X64)
#include <immintrin.h>
#endif
#include <cstddef>

namespace slmq {

inline void fetch_lines(const void* p, size_t bytes) {
  const auto* lines = static_cast<const char*>(p);
  for (size_t line = 0; line < bytes; line += 64) {
#if defined(_MSC_VER) && !defined(__clang__)
#if defined(_M_X64)
    _mm_prefetch(lines + line, _MM_HINT_T0);
#else
    __prefetch(lines + line);
#endif
#else
    __builtin_prefetch(lines + line);
    asm volatile("");  // GCC drops calls of functions that do nothing else
#endif
  }
}

}  // namespace slmq
