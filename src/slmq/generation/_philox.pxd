# cython: language_level=3, cdivision=True
"""Random numbers: Philox4x64-10, where number i of a seed is a function of (seed, i) alone.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011. Number i of a seed is output i of `numpy.random.Philox(key=seed).random_raw()`.
"""

from libc.stdint cimport uint64_t


cdef inline uint64_t high_product(uint64_t a, uint64_t b) noexcept nogil:
    """Upper 64 bits of a * b, by halves: not every compiler has a 128-bit integer."""
    cdef uint64_t a_low = a & 0xFFFFFFFFU, a_high = a >> 32
    cdef uint64_t b_low = b & 0xFFFFFFFFU, b_high = b >> 32
    cdef uint64_t low = a_low * b_low
    cdef uint64_t middle = a_high * b_low + (low >> 32)
    cdef uint64_t other = a_low * b_high + (middle & 0xFFFFFFFFU)
    return a_high * b_high + (middle >> 32) + (other >> 32)


cdef inline void philox(uint64_t* counter, uint64_t key0, uint64_t key1) noexcept nogil:
    """Ten rounds of Philox4x64 over the four words of `counter`, in place."""
    cdef uint64_t high0, low0, high2, low2
    cdef int i
    for i in range(10):
        high0 = high_product(0xD2E7470EE14C6C93U, counter[0])
        low0 = <uint64_t>0xD2E7470EE14C6C93U * counter[0]
        high2 = high_product(0xCA5A826395121157U, counter[2])
        low2 = <uint64_t>0xCA5A826395121157U * counter[2]
        counter[0] = high2 ^ counter[1] ^ key0
        counter[1] = low2
        counter[2] = high0 ^ counter[3] ^ key1
        counter[3] = low0
        key0 += <uint64_t>0x9E3779B97F4A7C15U
        key1 += <uint64_t>0xBB67AE8584CAA73BU


cdef inline uint64_t draw_word(uint64_t seed, uint64_t index) noexcept nogil:
    cdef uint64_t block[4]
    block[0] = (index >> 2) + 1       # numpy steps the counter before its first block
    block[1] = block[2] = block[3] = 0
    philox(block, seed, 0)
    return block[index & 3]
