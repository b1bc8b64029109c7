# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Ruling tokens out, before anything else looks at their logits.

A mask has a bit for each token. Within a string nearly all of them are set, within a keyword nearly
none, and tokens of a kind are neighbours: most blocks need no look at single bits.
"""

from libc.stdint cimport int32_t, int64_t

from slmq.generation._selection cimport order

cdef extern from *:
    """
    #include <math.h>
    static const uint32_t kSlmqBits[32] = {
        1u << 0, 1u << 1, 1u << 2, 1u << 3, 1u << 4, 1u << 5, 1u << 6, 1u << 7,
        1u << 8, 1u << 9, 1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
        1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
        1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};
    #define SLMQ_NONE 0xff800000u  /* the bits of -inf */

    /* y = x where the bit is set, -inf elsewhere; without a branch, so that compilers do several
       at a time. */
    static inline void slmq_mask_word(const float* x, int count, uint32_t bits, float* y) {
        for (int i = 0; i < count; ++i) {
            uint32_t value, keep = (bits & kSlmqBits[i]) ? ~0u : 0u;
            memcpy(&value, x + i, sizeof value);
            value = (value & keep) | (SLMQ_NONE & ~keep);
            memcpy(y + i, &value, sizeof value);
        }
    }
    /* The same of all logits; mends the maxima of blocks and returns the greatest. */
    static int32_t slmq_mask(
        const float* x, const int32_t* mask, int64_t n, float* y, int32_t* block_max
    ) {
        const uint32_t none = SLMQ_NONE;
        const int32_t none_order = slmq_order(-INFINITY);
        int32_t top = INT32_MIN;
        for (int64_t first = 0; first < n; first += SLMQ_BLOCK) {
            const int count = (int)(n - first < SLMQ_BLOCK ? n - first : SLMQ_BLOCK);
            const uint32_t low = (uint32_t)mask[first / 32];
            const uint32_t high = count > 32 ? (uint32_t)mask[first / 32 + 1] : 0;
            int32_t* key = block_max + first / SLMQ_BLOCK;
            if (count == SLMQ_BLOCK && (low & high) == ~0u) {
                memcpy(y + first, x + first, SLMQ_BLOCK * sizeof(float));
            } else if ((low | high) == 0) {
                for (int i = 0; i < count; ++i) memcpy(y + first + i, &none, sizeof none);
                *key = none_order;
            } else if (count == SLMQ_BLOCK) {
                SlmqMet met = {0.0f, 0};
                slmq_mask_word(x + first, 32, low, y + first);
                slmq_mask_word(x + first + 32, 32, high, y + first + 32);
                *key = slmq_order(slmq_compare_block(y + first, &met));
            } else {
                SlmqMet met = {0.0f, 0};
                slmq_mask_word(x + first, count < 32 ? count : 32, low, y + first);
                slmq_mask_word(x + first + 32, count - 32, high, y + first + 32);
                *key = slmq_order(slmq_compare(y + first, count, &met));
            }
            top = *key > top ? *key : top;
        }
        return top;
    }
    """
    int32_t mask_blocks "slmq_mask"(
        const float* x, const int32_t* mask, int64_t n, float* y, int32_t* block_max
    ) noexcept nogil
