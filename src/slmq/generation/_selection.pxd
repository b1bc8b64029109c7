# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Finding the greatest of many floats without sorting them.

Floats are compared as integers of the same order, so equal means equal on every machine, and
the value where a selection cuts is found digit by digit (radix search), in time that does not
depend on the values. Among equals the lower index comes first.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint32_t slmq_float_bits(float x) {
        uint32_t bits; memcpy(&bits, &x, sizeof bits); return bits;
    }
    static inline float slmq_float_of(int32_t order) {
        int32_t bits = order ^ (int32_t)((uint32_t)(order >> 31) & 0x7fffffffu);
        float x; memcpy(&x, &bits, sizeof x); return x;
    }
    /* Orders floats as integers: -inf first, -0 equal to +0, NaNs beyond both infinities. */
    static inline int32_t slmq_order(float x) {
        int32_t bits = (int32_t)slmq_float_bits(x + 0.0f);
        return bits ^ (int32_t)((uint32_t)(bits >> 31) & 0x7fffffffu);
    }

    #define SLMQ_BLOCK 64  /* logits that share one maximum */
    /* Greatest order of every 64 logits; ends[0] and ends[1]: the greatest and the least of all. */
    #define SLMQ_SCAN(name, attributes)                                                    \\
        attributes static void name(const float* x, int64_t n, int32_t* block_max, int32_t* ends) { \\
            int32_t top = INT32_MIN, bottom = INT32_MAX;                                   \\
            for (int64_t first = 0; first < n; first += SLMQ_BLOCK) {                      \\
                const int64_t count = n - first < SLMQ_BLOCK ? n - first : SLMQ_BLOCK;     \\
                int32_t high = INT32_MIN, low = INT32_MAX;                                 \\
                for (int64_t i = 0; i < count; ++i) {                                      \\
                    const int32_t key = slmq_order(x[first + i]);                          \\
                    high = key > high ? key : high;                                        \\
                    low = key < low ? key : low;                                           \\
                }                                                                          \\
                block_max[first / SLMQ_BLOCK] = high;                                      \\
                top = high > top ? high : top;                                             \\
                bottom = low < bottom ? low : bottom;                                      \\
            }                                                                              \\
            ends[0] = top;                                                                 \\
            ends[1] = bottom;                                                              \\
        }
    /* Wheels are compiled for any x86-64, which has no vectors of greatest integers. */
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    SLMQ_SCAN(slmq_scan_plain, )
    SLMQ_SCAN(slmq_scan_avx2, __attribute__((target("avx2"))))
    static void slmq_scan(const float* x, int64_t n, int32_t* block_max, int32_t* ends) {
        (__builtin_cpu_supports("avx2") ? slmq_scan_avx2 : slmq_scan_plain)(x, n, block_max, ends);
    }
    #else
    SLMQ_SCAN(slmq_scan, )
    #endif
    """
    uint32_t float_bits "slmq_float_bits"(float x) noexcept nogil
    int32_t order "slmq_order"(float x) noexcept nogil
    float float_of "slmq_float_of"(int32_t order) noexcept nogil
    void scan_blocks "slmq_scan"(
        const float* x, int64_t n, int32_t* block_max, int32_t* ends
    ) noexcept nogil

cdef enum:
    PLUS_INFINITY = 0x7F800000      # order(+inf)
    MINUS_INFINITY = -0x7F800001    # order(-inf)
    BLOCK = 64                      # logits that share one maximum


cdef inline (int32_t, int32_t) scan(
    const float* x, Py_ssize_t n, int32_t* block_max
) noexcept nogil:
    """Greatest order of every 64 logits; returns the greatest and the least order of all."""
    cdef int32_t[2] ends
    scan_blocks(x, n, block_max, ends)
    return ends[0], ends[1]


cdef inline Py_ssize_t first_with(
    const float* x, Py_ssize_t n, const int32_t* block_max, int32_t key
) noexcept nogil:
    """Lowest id whose logit has the order `key`, which is the maximum of its block."""
    cdef Py_ssize_t i = 0
    while block_max[i // BLOCK] != key:
        i += BLOCK
    while i < n - 1 and order(x[i]) != key:
        i += 1
    return i


cdef inline uint64_t find_cut(
    const uint32_t* keys, const uint64_t* weights, Py_ssize_t n, uint64_t need,
    int32_t* members, uint32_t* cut
) noexcept nogil:
    """Finds the key where the heaviest-first sum of weights reaches `need`.

    Sets `cut` so that weight(key > cut) < need <= weight(key >= cut), and returns the weight that
    must still come from keys equal to `cut`. `weights` NULL counts every key as one. `members`
    is scratch for n indices. The sum of all weights must be at least `need`, and `need` >= 1.
    """
    cdef uint64_t sums[2048]
    cdef int shifts[3]
    cdef Py_ssize_t count = n, kept, i, at
    cdef uint32_t digit, mask = 2047
    cdef int level
    shifts[0] = 21
    shifts[1] = 10
    shifts[2] = 0
    cut[0] = 0
    for level in range(3):
        mask = 2047 if level < 2 else 1023
        memset(sums, 0, sizeof(sums))
        for i in range(count):
            at = i if level == 0 else members[i]
            sums[(keys[at] >> shifts[level]) & mask] += 1 if weights is NULL else weights[at]
        digit = mask
        while sums[digit] < need:
            need -= sums[digit]
            digit -= 1
        cut[0] |= digit << shifts[level]
        kept = 0
        for i in range(count):
            at = i if level == 0 else members[i]
            if (keys[at] >> shifts[level]) & mask == digit:
                members[kept] = <int32_t>at
                kept += 1
        count = kept
    return need


cdef inline int32_t lower_bound(
    const int32_t* block_max, Py_ssize_t n_blocks, Py_ssize_t k, uint32_t* keys, int32_t* members
) noexcept nogil:
    """An order that at least k logits reach: the k-th greatest block maximum (needs k blocks)."""
    cdef uint32_t cut
    cdef Py_ssize_t i
    for i in range(n_blocks):
        keys[i] = <uint32_t>block_max[i] ^ 0x80000000U
    find_cut(keys, NULL, n_blocks, <uint64_t>k, members, &cut)
    return <int32_t>(cut ^ 0x80000000U)


cdef inline Py_ssize_t collect(
    const float* x, Py_ssize_t n, const int32_t* block_max, int32_t least, int32_t* ids,
    uint32_t* keys
) noexcept nogil:
    """Ids, ascending, of the logits whose order is at least `least`, and their unsigned keys."""
    cdef Py_ssize_t block, i, count = 0
    cdef int32_t key
    for block in range((n + BLOCK - 1) // BLOCK):
        if block_max[block] < least:
            continue
        for i in range(block * BLOCK, min((block + 1) * BLOCK, n)):
            key = order(x[i])
            ids[count] = <int32_t>i
            keys[count] = <uint32_t>key ^ 0x80000000U
            count += key >= least
    return count


cdef inline Py_ssize_t keep_greatest(
    int32_t* ids, uint32_t* keys, Py_ssize_t count, Py_ssize_t k, int32_t* members
) noexcept nogil:
    """Keeps the k greatest keys in place, lower ids first among equals; returns how many."""
    cdef uint32_t cut
    cdef uint64_t ties
    cdef Py_ssize_t i, kept = 0
    if count <= k:
        return count
    ties = find_cut(keys, NULL, count, <uint64_t>k, members, &cut)
    for i in range(count):
        if keys[i] > cut or (keys[i] == cut and ties > 0):
            ties -= keys[i] == cut
            ids[kept] = ids[i]
            keys[kept] = keys[i]
            kept += 1
    return kept


cdef inline Py_ssize_t select_top(
    const float* x, Py_ssize_t n, const int32_t* block_max, Py_ssize_t k, int32_t* ids,
    uint32_t* keys, int32_t* members
) noexcept nogil:
    """Ids, ascending, of the k >= 1 greatest finite logits."""
    cdef Py_ssize_t n_blocks = (n + BLOCK - 1) // BLOCK
    cdef int32_t least = MINUS_INFINITY + 1
    if k <= n_blocks:
        least = max(least, lower_bound(block_max, n_blocks, k, keys, members))
    return keep_greatest(ids, keys, collect(x, n, block_max, least, ids, keys), k, members)
