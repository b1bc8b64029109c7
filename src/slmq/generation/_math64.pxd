# cython: language_level=3, cdivision=True
"""exp and log in float64 out of + - * / alone: the C library's differ from machine to machine.

Compile with floating-point contraction off, or the last bits change where the CPU has a fused
multiply-add.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline double slmq_double_of(uint64_t bits) {
        double x; memcpy(&x, &bits, sizeof x); return x;
    }
    static inline uint64_t slmq_double_bits(double x) {
        uint64_t bits; memcpy(&bits, &x, sizeof bits); return bits;
    }
    """
    double double_of "slmq_double_of"(uint64_t bits) noexcept nogil
    uint64_t double_bits "slmq_double_bits"(double x) noexcept nogil


cdef inline double exp_double(double x) noexcept nogil:
    """exp(x) for x <= 0 within 1 ulp, without the C library: 2^k times a Taylor series."""
    cdef double shifted, k, r, y
    x = x if x > -708.0 else -708.0     # 3e-308, which no sum from 1 up can feel
    shifted = x * 1.4426950408889634 + 6755399441055744.0   # the low bits now hold x / log(2)
    k = shifted - 6755399441055744.0
    r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    y = 1.0 / 6227020800.0
    y = y * r + 1.0 / 479001600.0
    y = y * r + 1.0 / 39916800.0
    y = y * r + 1.0 / 3628800.0
    y = y * r + 1.0 / 362880.0
    y = y * r + 1.0 / 40320.0
    y = y * r + 1.0 / 5040.0
    y = y * r + 1.0 / 720.0
    y = y * r + 1.0 / 120.0
    y = y * r + 1.0 / 24.0
    y = y * r + 1.0 / 6.0
    y = y * r + 0.5
    y = y * r + 1.0
    y = y * r + 1.0
    return y * double_of((double_bits(shifted) + 1023) << 52)


cdef inline double log_double(double x) noexcept nogil:
    """log(x) for finite x >= 1, without the C library: 2 atanh of a reduced argument."""
    cdef uint64_t bits = double_bits(x)
    cdef int64_t exponent = <int64_t>(bits >> 52) - 1023
    cdef double m = double_of((bits & 0xFFFFFFFFFFFFFU) | 0x3FF0000000000000U)
    cdef double s, s2, y = 0.0
    cdef int i
    if m > 1.4142135623730951:
        m = m * 0.5
        exponent += 1
    s = (m - 1.0) / (m + 1.0)
    s2 = s * s
    for i in range(23, 0, -2):
        y = y * s2 + 1.0 / i
    y = exponent * 1.90821492927058770002e-10 + 2.0 * s * y
    return y + exponent * 6.93147180369123816490e-01
