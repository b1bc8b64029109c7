// GGUF blocks straight into the packed format that holds their values: integers move, nothing rounds.
#pragma once

#include <cstdint>

#include "layout/pack.h"

namespace slmq {

enum class Blocks : int { q5_0, q5_1, iq4_nl, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_xs };
inline constexpr int kBlocks = 9;

struct BlocksInfo {
  const char* name;
  int columns, bytes;  // of a block
  Format format;       // that holds its values
};

inline constexpr BlocksInfo kBlocksInfo[kBlocks] = {
    {"q5_0", 32, 22, Format::q5g32s},   {"q5_1", 32, 24, Format::q5g32a},
    {"iq4_nl", 32, 18, Format::n4g32s}, {"q2_k", 256, 84, Format::q2k},
    {"q3_k", 256, 110, Format::q6k},    {"q4_k", 256, 144, Format::q4k},
    {"q5_k", 256, 176, Format::q5k},    {"q6_k", 256, 210, Format::q6k},
    {"iq4_xs", 256, 136, Format::n4k},
};

inline constexpr const BlocksInfo& info(Blocks b) { return kBlocksInfo[static_cast<int>(b)]; }

struct BlocksArgs {
  Blocks blocks;
  Format format;         // info(blocks).format
  const uint8_t* rows;   // n rows of k / columns * bytes; any alignment
  int n, k;              // k is a multiple of the block's columns
  const int32_t* order;  // row r of the matrix is source row order[r]; null: r
  uint8_t* out;          // all pairs, zeroed
};

// Packs pairs [pair_begin, pair_end).
PackStatus pack_blocks(const BlocksArgs& args, int pair_begin, int pair_end);

}  // namespace slmq
