// Sums of activations, the same on every table of x86-64: for the inside of its namespace.

// Sums of 32 int8 values: of those at 4j and 4j + 1, and of those at 4j + 2 and 4j + 3.
static inline void sum_pairs(const int8_t* p, int32_t (&sums)[2]) {
  const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), values);
  const __m128i by8 =
      _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  const __m128i by4 = _mm_add_epi16(by8, _mm_shuffle_epi32(by8, 0x4e));
  const __m128i by2 = _mm_add_epi16(by4, _mm_shuffle_epi32(by4, 0xb1));
  sums[0] = static_cast<int16_t>(_mm_extract_epi16(by2, 0));
  sums[1] = static_cast<int16_t>(_mm_extract_epi16(by2, 1));
}

// Sum of 16 int8 values.
static inline int32_t sum_16(const int8_t* p) {
  const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i above = _mm_xor_si128(values, _mm_set1_epi8(-128));  // plus 128, unsigned
  const __m128i sums = _mm_sad_epu8(above, _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
}
