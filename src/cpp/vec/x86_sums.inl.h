// Sums of activations, the same on every table of x86-64: for the inside of its namespace.

// Sums of 32 int8 values, each half apart: of those at 4j and 4j + 1, and of those at 4j + 2 and 4j + 3.
// Read as they were stored, sixteen at a time: a load across two stores waits for both.
static inline void sum_pairs(const int8_t* p, int32_t (&sums)[2][2]) {
  const __m128i ones = _mm_set1_epi8(1);
  const auto* halves = reinterpret_cast<const __m128i*>(p);
  const __m128i a = _mm_maddubs_epi16(ones, _mm_loadu_si128(halves));
  const __m128i b = _mm_maddubs_epi16(ones, _mm_loadu_si128(halves + 1));
  const __m128i by4 = _mm_add_epi16(_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
  const __m128i by2 = _mm_add_epi16(by4, _mm_shuffle_epi32(by4, 0xb1));
  sums[0][0] = static_cast<int16_t>(_mm_extract_epi16(by2, 0));
  sums[0][1] = static_cast<int16_t>(_mm_extract_epi16(by2, 1));
  sums[1][0] = static_cast<int16_t>(_mm_extract_epi16(by2, 4));
  sums[1][1] = static_cast<int16_t>(_mm_extract_epi16(by2, 5));
}
