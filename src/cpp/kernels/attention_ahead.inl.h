// What attention works on, and what it asks memory for meanwhile.

namespace slmq::SLMQ_ISA {

// The part of the cache that one call works on: a KV head's keys and values, page by page.
struct PartView {
  const AttentionShape& shape;
  uint8_t* const* pages;  // of the part
  size_t offset;          // of the head in a page

  const uint8_t* keys(int page) const { return pages[page] + offset; }
  const uint8_t* values(int page) const { return pages[page] + offset + shape.value_offset; }
};
static constexpr int kPartPages = kPartPositions / kPagePositions;
static inline PartView view_part(const AttentionShape& shape, uint8_t* const* pages, int kv_head,
                                 int part) {
  return {shape, pages + part * kPartPages,
          shape.layer_offset + static_cast<size_t>(kv_head) * shape.head_bytes};
}

// What is fetched into the second-level cache while something before it is computed: keys of the pages
// [first, last] of a part, then their values, then keys of what follows. A piece is one page's. Pages
// lie megabytes apart: no hardware looks so far.
struct PiecesAhead {
  const PartView& view;
  const int first, last;
  const Following& following;
  static constexpr int kPieces = 2;  // ahead of the one that is computed
  int at = kPieces;

  // The next piece, or null
  const uint8_t* next() {
    const int pages = last - first + 1, piece = at++;
    if (piece < pages) return view.keys(first + piece);
    if (piece < 2 * pages) return view.values(first + piece - pages);
    const int behind = piece - 2 * pages;
    return behind < smaller(kPieces, following.count) ? following.pages[behind] + following.offset
                                                      : nullptr;
  }
};

// The same for parts whose arithmetic takes about as long as their bytes, and further ahead. Memory must never
// pause, so lines are asked for while scores are computed, exponentiated and rounded and while values are
// added: everywhere as many as memory gives meanwhile, or a few more. They come in the order in which they
// are used, as hardware expects it.
class FetchAhead {
 public:
  // Lines of memory side by side.
  struct Lines {
    const uint8_t* at = nullptr;
    int count = 0;
  };
  // How many while the scores of a query and a page are exponentiated, and while they are rounded.
  static constexpr int kSoftening = 8, kRounding = 4;

  FetchAhead(const PartView& view, int first, int last, int n_queries, const Following& following)
      : view_(view),
        following_(following),
        first_(first),
        pages_(last - first + 1),
        keys_(static_cast<int>(view.shape.value_offset / 64)),
        values_(static_cast<int>((view.shape.head_bytes - view.shape.value_offset) / 64)) {
    const int page = keys_ + values_, elsewhere = (kSoftening + kRounding) * n_queries;
    loop_ = larger(page - elsewhere, page / 4) / 2;
    const int ahead = larger(1, kAheadBytes / 64 / keys_);
    end_ = 2 * pages_ + smaller(ahead, 2 * following.count);
    if (following.not_asked) {
      ask(next());
      ask(next());
    } else {
      piece_ = smaller(ahead, 2 * pages_);
    }
  }
  FetchAhead(const FetchAhead&) = delete;
  FetchAhead& operator=(const FetchAhead&) = delete;
  // At the end, for who computes what follows counts on all of it. No destructor here and in Asking: it
  // would need a table of exceptions.
  void finish() {
    for (Lines lines = next(); lines.count > 0; lines = next()) ask(lines);
  }

  // For a loop over the keys or the values of a page, or one of so many parts of them: not more than one
  // piece has, and the rest at once.
  Lines for_loop(int parts = 1) {
    const int wanted = loop_ / parts;
    const Lines lines = next();
    if (lines.count > wanted) {
      give_back({lines.at + 64 * wanted, lines.count - wanted});
      return {lines.at, wanted};
    }
    const Lines more = next();
    const int rest = smaller(more.count, wanted - lines.count);
    ask({more.at, rest});
    give_back({more.at + 64 * rest, more.count - rest});
    return lines;
  }
  // What is left of the piece that was begun, or the next; no lines behind the last.
  SLMQ_INLINE_MEMBER Lines next() {
    if (begun_.count > 0) {
      const Lines lines = begun_;
      begun_.count = 0;
      return lines;
    }
    if (piece_ == end_) return {};
    const int piece = piece_++, behind = piece - 2 * pages_,
              values_behind = behind - following_.count;
    if (piece < pages_) return {view_.keys(first_ + piece), keys_};
    if (behind < 0) return {view_.values(first_ + piece - pages_), values_};
    if (values_behind < 0) return {following_.pages[behind] + following_.offset, keys_};
    return {following_.pages[values_behind] + following_.offset + view_.shape.value_offset,
            values_};
  }
  SLMQ_INLINE_MEMBER void give_back(Lines lines) { begun_ = lines; }

 private:
  static constexpr int kAheadBytes = 64 << 10;  // of two parts, a second-level cache has room

  static void ask(Lines lines) {
    for (int i = 0; i < lines.count; ++i) prefetch_second_level(lines.at + 64 * i);
  }

  const PartView& view_;
  const Following& following_;
  const int first_, pages_, keys_, values_;  // lines of a page's keys and values
  int loop_;                                 // lines for the loop over either
  int piece_ = 0, end_;
  Lines begun_;
};

// Asks for lines evenly over the steps of a loop.
class Spread {
 public:
  SLMQ_INLINE_MEMBER Spread(FetchAhead::Lines lines, int steps)
      : at_(lines.at), rate_(256 * lines.count / steps) {}
  SLMQ_INLINE_MEMBER void ask() {
    for (due_ += rate_; due_ >= 256; due_ -= 256, at_ += 64) prefetch_second_level(at_);
  }

 private:
  const uint8_t* at_;
  const int rate_;
  int due_ = 255;  // in 256ths
};

// Asks for so many lines at every step of a loop, from one piece after the other.
class Asking {
 public:
  SLMQ_INLINE_MEMBER Asking(FetchAhead* ahead, int lines)
      : ahead_(ahead), step_(ahead != nullptr ? lines : 0) {}
  Asking(const Asking&) = delete;
  Asking& operator=(const Asking&) = delete;
  SLMQ_INLINE_MEMBER void finish() {
    if (lines_.count > 0) ahead_->give_back(lines_);
  }
  // No call: it would push the loop's numbers out of their registers.
  SLMQ_INLINE_MEMBER void ask() {
    for (int n = step_; n > 0; --n, lines_.at += 64, --lines_.count) {
      if (lines_.count == 0) lines_ = ahead_->next();
      if (lines_.count == 0) {
        step_ = 0;
        return;
      }
      prefetch_second_level(lines_.at);
    }
  }

 private:
  FetchAhead* const ahead_;
  int step_;
  FetchAhead::Lines lines_;
};

}  // namespace slmq::SLMQ_ISA
