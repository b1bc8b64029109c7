// Rows of gradients for all tables, and products with turned weights by dots of pairs: lanes are columns,
// and the members of a pair are row i and row 16 + i of a pair of the weight's tiles.

namespace slmq::SLMQ_ISA {
namespace {  // members of its types, too, stay in this object

static void largest_scales(Format format, const uint8_t* weight, int groups, int pair,
                           float* most) {
  of_format(format, std::make_integer_sequence<int, kFormats>(),
            [&]<Format Name>() { most_scales<Name>(weight, groups, pair, most); });
}

// Rows times the scales of their columns, beside the largest of each; zeros behind their columns.
static void level_rows(const float* x, ptrdiff_t stride, int columns, int m, const float* most,
                       LeveledRows* to) {
  const int readable = (columns + kGroup - 1) / kGroup * kGroup;
  for (int t = 0; t < m; ++t, x += stride) {
    float* row = to->x[t];
    f32x16 largest = splat(0.0f), spoiled = largest;
    for (int c = 0; c < readable; c += kLanes) {
      prefetch(x + kPanelRows * stride + c);  // of the next rows: too short for hardware to guess
      const f32x16 values = mul(load(x + c), load(most + c));
      largest = max(largest, abs(values));
      spoiled = fma(values, splat(0.0f), spoiled);
      store(row + c, values);
    }
    const float found = reduce_max(largest);
    const float inverse = found < kLeastLeveled ? 0.0f : kMostSteps / found;
    int c = 0;
    for (; c < readable; c += kLanes) store(row + c, mul(load(row + c), splat(inverse)));
    for (; c % kTurnedWhole != 0; c += kLanes) store(row + c, splat(0.0f));
    to->scale[t] = found * (1.0f / kMostSteps) + reduce_add(spoiled);
  }
}

static constexpr int kTurnedTiles = kIntSums >= 16 ? 2 : 1;  // whose sums stay in registers
static constexpr int kTurnedRows = kIntSums / kTurnedTiles;  // beside each

struct StepPairs {
  alignas(64) int16_t steps[kPanelRows][kSlabRows];
  float offsets[kPanelRows];
};

// M rows from the tth on and N tiles.
template <int M, int N>
static inline void turned_few(const TurnedArgs& args, const TurnedGroup& w, int part, int tile,
                              const StepPairs& rows, int t, float* y) {
  i32x16 sums[N][M];
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) sums[n][i] = splat_i32(0);
  const int16_t* steps = rows.steps[t];
  const int pairs = (args.rows + kPairRows - 1) / kPairRows * kLanes;
  for (int pair = 0; pair < pairs; ++pair, steps += 2) {
    i16x32 codes[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) codes[n] = load_pairs(w.codes[tile + n] + 4 * kLanes * pair);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const i16x32 of = splat_pair(steps + i * kSlabRows);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sums[n][i] = pinned(dot_pairs(codes[n], of, sums[n][i]));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    const float scale = args.x->scale[t + i];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n)
      add_turned(to_f32(sums[n][i]), scale * w.largest[part], scale * rows.offsets[t + i],
                 !args.add, y + (t + i) * args.y_row + n * kLanes);
  }
}

template <int M, int N>
static inline void turned_tiles(const TurnedArgs& args, const TurnedGroup& w, int part, int tile,
                                const StepPairs& rows, int t, float* y) {
  for (; t + M <= args.m; t += M) turned_few<M, N>(args, w, part, tile, rows, t, y);
  if constexpr (M > 1)
    if (t < args.m) turned_tiles<M / 2, N>(args, w, part, tile, rows, t, y);
}

static void product_turned(const TurnedArgs& args) {
  StepPairs rows;
  for (int group = 0; group < args.count; ++group) {
    const TurnedGroup& w = args.w[group];
    float* y = args.y + group * kGroup;
    for (int part = 0; part < args.parts; ++part) {
      step_all<2>(args, w, part, 2 * kSlabRows * kLanes, kStepsStart, rows.offsets,
                  [&rows](int t, int row, const f32x16(&values)[2]) {
                    store_pairs(rows.steps[t] + row, values[0], values[1]);
                  });
      int tile = part;
      const int end = args.parts == 1 ? 2 : part + 1;
      for (; tile + kTurnedTiles <= end; tile += kTurnedTiles)
        turned_tiles<kTurnedRows, kTurnedTiles>(args, w, part, tile, rows, 0, y + tile * kLanes);
      for (; tile < end; ++tile)
        turned_tiles<kTurnedRows, 1>(args, w, part, tile, rows, 0, y + tile * kLanes);
    }
  }
}

}  // namespace
}  // namespace slmq::SLMQ_ISA
