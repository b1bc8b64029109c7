# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Logits that survive the filters, and their weights: integers, whose sums have no order."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from slmq.generation._selection cimport BLOCK, find_cut, float_bits, float_of

cdef extern from *:
    """
    #define SLMQ_WEIGHT_ONE 4503599627370496.0  /* 2^52: the weight of probability 1 */
    #define SLMQ_NEGLIGIBLE (-40.0f)            /* exp(-40) < 2^-52: a weight of 0 for certain */
    """
    double WEIGHT_ONE "SLMQ_WEIGHT_ONE"
    float NEGLIGIBLE "SLMQ_NEGLIGIBLE"


cdef inline Py_ssize_t shift(
    const float* x, int32_t* ids, Py_ssize_t count, float top, float scale, float* shifted
) noexcept nogil:
    """x - top of the logits with these ids; drops those whose weight would be 0."""
    cdef Py_ssize_t i, kept = 0
    cdef float value
    for i in range(count):
        value = x[ids[i]] - top
        ids[kept] = ids[i]
        shifted[kept] = value
        kept += value * scale >= NEGLIGIBLE
    return kept


cdef inline Py_ssize_t shift_all(
    const float* x, Py_ssize_t n, const int32_t* block_max, float top, float scale, int32_t* ids,
    float* shifted
) noexcept nogil:
    """`shift` of all logits; sets their ids."""
    cdef Py_ssize_t block, i, kept = 0
    cdef float value
    for block in range((n + BLOCK - 1) // BLOCK):
        if (float_of(block_max[block]) - top) * scale < NEGLIGIBLE:
            continue
        for i in range(block * BLOCK, min((block + 1) * BLOCK, n)):
            value = x[i] - top
            ids[kept] = <int32_t>i
            shifted[kept] = value
            kept += value * scale >= NEGLIGIBLE
    return kept


cdef inline uint64_t weigh(const float* p, Py_ssize_t count, uint64_t* weights) noexcept nogil:
    """Probabilities as multiples of 2^-52 (exact from 2^-29 up, else cut); returns their sum."""
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    cdef float one
    for i in range(count):
        one = p[i] if p[i] < 1.0 else 1.0
        # The comparison is false for NaN, which must not reach the conversion.
        weights[i] = <uint64_t><int64_t>(<double>one * WEIGHT_ONE) if p[i] > 0.0 else 0
        total += weights[i]
    return total


cdef inline uint64_t keep_mass(
    const float* p, uint64_t* weights, Py_ssize_t count, uint64_t total, double top_p,
    int32_t* members, uint32_t* keys, uint64_t* heavy
) noexcept nogil:
    """Zeroes the weights outside the smallest set that holds `top_p` of the mass."""
    cdef uint64_t need = <uint64_t><int64_t>(top_p * <double>total)
    cdef uint64_t least, missing, kept = 0
    cdef uint32_t cut, bits
    cdef Py_ssize_t i, candidates = 0
    need += <double>need < top_p * <double>total        # rounded up
    need = min(max(need, <uint64_t>1), total)
    # All weights up to `least` together cannot exceed what may be left out, so none of them
    # is where the cut falls; a peaked distribution leaves a handful of candidates.
    least = (total - need) // <uint64_t>count
    for i in range(count):
        keys[candidates] = float_bits(p[i])
        heavy[candidates] = weights[i]
        candidates += weights[i] > least
    missing = find_cut(keys, heavy, candidates, need, members, &cut)
    for i in range(count):
        bits = float_bits(p[i])
        if bits == cut and missing > 0:
            missing -= min(missing, weights[i])
        else:
            weights[i] &= <uint64_t>0 - <uint64_t>(bits > cut)   # a mask, not a branch to guess
        kept += weights[i]
    return kept


cdef inline uint64_t keep_near_top(
    const float* p, uint64_t* weights, Py_ssize_t count, double min_p
) noexcept nogil:
    """Zeroes the weights of probabilities below min_p times the greatest; returns the sum."""
    cdef uint64_t kept = 0
    cdef float top = 0.0
    cdef double least
    cdef Py_ssize_t i
    for i in range(count):
        top = p[i] if p[i] > top else top
    least = min_p * <double>top
    for i in range(count):
        weights[i] = weights[i] if <double>p[i] >= least else 0
        kept += weights[i]
    return kept


cdef inline Py_ssize_t pick(const uint64_t* weights, Py_ssize_t count, uint64_t target) noexcept nogil:
    """The index where the running sum first exceeds target (< sum of the weights)."""
    cdef uint64_t running = 0
    cdef Py_ssize_t i
    for i in range(count):
        running += weights[i]
        if running > target:
            return i
    return count - 1
