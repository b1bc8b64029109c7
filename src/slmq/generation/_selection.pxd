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

    /* What a scan has met so far: the least logit, and whether a NaN, whose comparisons say
       nothing. */
    typedef struct { float least; int strange; } SlmqMet;

    static inline float slmq_compare(const float* x, int64_t count, SlmqMet* met) {
        float most = x[0];
        for (int64_t i = 0; i < count; ++i) {
            most = x[i] > most ? x[i] : most;
            met->least = x[i] < met->least ? x[i] : met->least;
            met->strange |= x[i] != x[i];
        }
        return most;
    }
    #if defined(__SSE2__) || defined(_M_X64)
    #include <emmintrin.h>
    /* Of 64 logits, sixteen side by side: what every x86-64 can, and compilers do not find. */
    static inline float slmq_compare_block(const float* x, SlmqMet* met) {
        __m128 high[4], lows[4], low, bad = _mm_setzero_ps();
        for (int k = 0; k < 4; ++k) high[k] = lows[k] = _mm_loadu_ps(x + 4 * k);
        for (int i = 0; i < SLMQ_BLOCK; i += 16) {
            for (int k = 0; k < 4; ++k) {
                const __m128 value = _mm_loadu_ps(x + i + 4 * k);
                high[k] = _mm_max_ps(value, high[k]);
                lows[k] = _mm_min_ps(value, lows[k]);
                bad = _mm_or_ps(bad, _mm_cmpunord_ps(value, value));
            }
        }
        __m128 most = _mm_max_ps(_mm_max_ps(high[0], high[1]), _mm_max_ps(high[2], high[3]));
        most = _mm_max_ps(most, _mm_movehl_ps(most, most));
        low = _mm_min_ps(_mm_min_ps(lows[0], lows[1]), _mm_min_ps(lows[2], lows[3]));
        low = _mm_min_ps(low, _mm_movehl_ps(low, low));
        most = _mm_max_ss(most, _mm_shuffle_ps(most, most, 1));
        low = _mm_min_ss(_mm_min_ss(low, _mm_shuffle_ps(low, low, 1)), _mm_set_ss(met->least));
        met->least = _mm_cvtss_f32(low);
        met->strange |= _mm_movemask_ps(bad);
        return _mm_cvtss_f32(most);
    }
    #else
    static inline float slmq_compare_block(const float* x, SlmqMet* met) {
        return slmq_compare(x, SLMQ_BLOCK, met);
    }
    #endif
    /* Greatest order of every 64 logits; ends[0] and ends[1]: the greatest and the least of all,
       or INT32_MAX where there is a NaN. */
    static void slmq_scan(const float* x, int64_t n, int32_t* block_max, int32_t* ends) {
        SlmqMet met = {x[0], 0};
        int32_t top = INT32_MIN, key;
        for (int64_t first = 0; first < n; first += SLMQ_BLOCK) {
            const int whole = n - first >= SLMQ_BLOCK;
            key = slmq_order(whole ? slmq_compare_block(x + first, &met)
                                   : slmq_compare(x + first, n - first, &met));
            block_max[first / SLMQ_BLOCK] = key;
            top = key > top ? key : top;
        }
        ends[0] = met.strange ? INT32_MAX : top;
        ends[1] = slmq_order(met.least);
    }
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
