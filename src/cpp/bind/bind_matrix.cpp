// Matrix and Arena: packed weights in Python's hands.
#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "layout/matrix.h"
#include "layout/pack_blocks.h"
#include "layout/pack_parts.h"
#include "layout/row_table.h"
#include "threads/pool.h"
#include "kernels/dispatch.h"
#include "probes/tuned.h"
#include "plan/attention.h"
#include "plan/checks.h"
#include "plan/recording.h"

namespace slmq {
namespace {

constexpr const char* kSourceNames[kSources] = {"f32", "f16", "bf16", "q4_0", "q4_1", "q8_0"};
constexpr int kLargestDimension = 1 << 28;

Source source_named(const std::string& name) {
  for (int i = 0; i < kSources; ++i)
    if (name == kSourceNames[i]) return static_cast<Source>(i);
  std::string known = "f32, f16, bf16, q4_0, q4_1, q8_0";
  for (const BlocksInfo& blocks : kBlocksInfo) known += std::string(", ") + blocks.name;
  throw py::value_error("expected a source type, one of " + known + ", got '" + name + "'");
}

void check_shape(int64_t n, int64_t k) {
  if (n < 1 || k < 1 || n > kLargestDimension || k > kLargestDimension) {
    throw py::value_error("expected a matrix of 1..2^28 rows and columns, got " +
                          std::to_string(n) + " x " + std::to_string(k));
  }
}

// What a format's runs need, beside check_shape().
void check_runs(Format format, int64_t k) {
  const int columns = info(format).columns;
  if (k % columns != 0) {
    throw py::value_error("expected k to be a multiple of " + std::to_string(columns) + " for " +
                          info(format).name + ", got " + std::to_string(k));
  }
}

// Packs on all threads of the pool, pairs handed out by a counter. Throws what the packer finds.
template <class Args>
void pack_in_parallel(PackStatus (*packer)(const Args&, int, int), const Args& args, int threads) {
  struct Shared {
    PackStatus (*packer)(const Args&, int, int);
    const Args& args;
    std::atomic<int> next{0};
    std::atomic<int> status{0};
  } shared{packer, args};
  const auto task = [](void* opaque, int) {
    auto& s = *static_cast<Shared*>(opaque);
    const int pairs = matrix_pairs(s.args.n);
    for (int pair; (pair = s.next.fetch_add(1)) < pairs && s.status.load() == 0;) {
      const PackStatus status = s.packer(s.args, pair, pair + 1);
      if (status != PackStatus::ok) s.status.store(static_cast<int>(status));
    }
  };
  {
    Released release;
    shared_pool(threads)->run(task, &shared);
  }
  switch (static_cast<PackStatus>(shared.status.load())) {
    case PackStatus::ok: return;
    case PackStatus::not_finite:
      throw py::value_error("expected finite weights, found NaN or infinity");
    case PackStatus::too_large:
      throw py::value_error("a weight or its scale is too large for float16; use format=\"f32\"");
    case PackStatus::beyond_bits:
      throw py::value_error("codes: expected integers of " +
                            std::to_string(info(args.format).bits) + " bits, found a larger one");
  }
}

std::vector<int32_t> row_order(const py::object& order, int64_t n) {
  std::vector<int32_t> rows;
  if (order.is_none()) return rows;
  rows = checked_vector<int32_t>(order, n, "order");
  for (const int32_t row : rows)
    if (row < 0 || row >= n) throw py::value_error("order: row out of range");
  return rows;
}

std::shared_ptr<Matrix> allocate(Format format, int n, int k, const std::shared_ptr<Arena>& arena) {
  auto matrix = std::make_shared<Matrix>(Matrix{format, n, k, nullptr, nullptr});
  if (arena != nullptr) {
    matrix->data = arena->take(matrix->bytes());
    if (matrix->data == nullptr) {
      throw py::value_error("the arena is full: expected room for " +
                            std::to_string(matrix->bytes()) + " bytes, " +
                            std::to_string(arena->size() - arena->used()) + " are left");
    }
    matrix->owner = arena;
  } else {
    auto memory = std::make_shared<Memory>(matrix->bytes(), matrix->bytes() >= (size_t{4} << 20));
    matrix->data = memory->data();
    matrix->owner = std::move(memory);
  }
  return matrix;
}

// Rows of GGUF blocks into the one format that holds their values.
std::shared_ptr<Matrix> pack_rows_of_blocks(Blocks blocks, const py::object& rows, int64_t n,
                                            int64_t k, const std::string& format_name,
                                            const py::object& order,
                                            const std::shared_ptr<Arena>& arena, int threads) {
  const BlocksInfo& from = info(blocks);
  const Format format = format_named(format_name);
  check_shape(n, k);
  if (format != from.format) {
    throw py::value_error(std::string("expected the format ") + info(from.format).name + " for " +
                          from.name + ", got " + format_name);
  }
  if (k % from.columns != 0) {
    throw py::value_error("expected k to be a multiple of " + std::to_string(from.columns) +
                          " for " + from.name + ", got " + std::to_string(k));
  }
  const auto bytes = static_cast<py::ssize_t>(n * (k / from.columns) * from.bytes);
  const auto data = checked_array<uint8_t>(rows, {bytes}, "rows");
  const std::vector<int32_t> in_order = row_order(order, n);
  auto matrix = allocate(format, static_cast<int>(n), static_cast<int>(k), arena);
  const BlocksArgs args{blocks,      format,    data.data(),
                        matrix->n,   matrix->k, in_order.empty() ? nullptr : in_order.data(),
                        matrix->data};
  pack_in_parallel(&pack_blocks, args, threads);
  return matrix;
}

std::shared_ptr<Matrix> pack(const std::string& source_name, const py::object& rows, int64_t n,
                             int64_t k, const std::string& format_name, const py::object& order,
                             const std::shared_ptr<Arena>& arena, int threads) {
  for (int i = 0; i < kBlocks; ++i) {
    if (source_name == kBlocksInfo[i].name)
      return pack_rows_of_blocks(static_cast<Blocks>(i), rows, n, k, format_name, order, arena,
                                 threads);
  }
  const Source source = source_named(source_name);
  const Format format = format_named(format_name);
  check_shape(n, k);
  if (static_cast<int>(source) >= static_cast<int>(Source::q4_0) && k % kGroup != 0)
    throw py::value_error("expected k to be a multiple of 32 for " + source_name + ", got " +
                          std::to_string(k));
  if (!rounds(format)) {
    throw py::value_error(format_name +
                          " only holds weights quantized elsewhere; expected a format to round to: "
                          "q4g32s, q4g32a, q8g32s, q8rs, f16 or f32");
  }
  const size_t bytes = source_row_bytes(source, static_cast<int>(k)) * static_cast<size_t>(n);
  const auto data = checked_array<uint8_t>(rows, {static_cast<py::ssize_t>(bytes)}, "rows");
  const std::vector<int32_t> in_order = row_order(order, n);
  auto matrix = allocate(format, static_cast<int>(n), static_cast<int>(k), arena);
  const PackArgs args{format,      source,    data.data(),
                      matrix->n,   matrix->k, in_order.empty() ? nullptr : in_order.data(),
                      matrix->data};
  pack_in_parallel(&pack_pairs, args, threads);
  return matrix;
}

// The bytes of an array of 8-bit factors, given as int8 or as uint8 below 128.
const void* checked_factors(const py::object& object, const std::vector<py::ssize_t>& shape,
                            const char* what) {
  if (!py::isinstance<py::array_t<uint8_t>>(object))
    return checked_array<int8_t>(object, shape, what).data();
  const auto values = checked_array<uint8_t>(object, shape, what);
  if (std::any_of(values.data(), values.data() + values.size(), [](uint8_t v) { return v > 127; }))
    throw py::value_error(std::string(what) + ": expected factors of 0..127, found a larger one");
  return values.data();
}

const uint16_t* checked_halves(const py::object& object, const std::vector<py::ssize_t>& shape,
                               const char* what) {
  detail::check_array(object, py::dtype("e"), "float16", shape, what);
  return static_cast<const uint16_t*>(py::reinterpret_borrow<py::array>(object).data());
}

// Checks that what a format has not is None, and what it has is there: the data or null.
template <class Check>
auto if_wanted(bool wanted, const py::object& object, const char* what, Check check)
    -> decltype(check()) {
  if (wanted) return check();
  if (!object.is_none())
    throw py::value_error(std::string(what) + ": expected None for this format, got " +
                          describe_array(object));
  return nullptr;
}

// What keeps the bytes of an array alive, from any thread.
std::shared_ptr<const void> holder(const py::array_t<uint8_t>& bytes) {
  return {new py::array_t<uint8_t>(bytes), [](const py::array_t<uint8_t>* p) {
            const py::gil_scoped_acquire acquire;
            delete p;
          }};
}

std::shared_ptr<RowTable> row_table(const std::string& source_name, const py::object& rows,
                                    int64_t n, int64_t k, const std::string& format_name) {
  check_shape(n, k);
  auto table = std::make_shared<RowTable>(RowTable{Source::f32, std::nullopt,
                                                   format_named(format_name), static_cast<int>(n),
                                                   static_cast<int>(k), nullptr, nullptr});
  int columns = 1;
  for (int i = 0; i < kBlocks; ++i)
    if (source_name == kBlocksInfo[i].name) table->blocks = static_cast<Blocks>(i);
  if (table->blocks) {
    columns = info(*table->blocks).columns;
  } else {
    table->source = source_named(source_name);
    if (static_cast<int>(table->source) >= static_cast<int>(Source::q4_0)) columns = kGroup;
  }
  const bool fits =
      table->blocks ? table->format == info(*table->blocks).format : rounds(table->format);
  if (!fits)
    throw py::value_error("a table of " + source_name + " has no rows of format " + format_name);
  if (k % columns != 0) {
    throw py::value_error("expected k to be a multiple of " + std::to_string(columns) + " for " +
                          source_name + ", got " + std::to_string(k));
  }
  const auto bytes = static_cast<py::ssize_t>(table->row_bytes() * static_cast<size_t>(n));
  const auto data = checked_array<uint8_t>(rows, {bytes}, "rows");
  table->rows = data.data();
  table->owner = holder(data);
  return table;
}

std::shared_ptr<Matrix> from_parts(const std::string& format_name, int64_t n, int64_t k,
                                   const py::object& codes, const py::object& scales,
                                   const py::object& mins, const py::object& d,
                                   const py::object& dmin, const py::object& order,
                                   const std::shared_ptr<Arena>& arena, int threads) {
  const Format format = format_named(format_name);
  const FormatInfo& layout = info(format);
  check_shape(n, k);
  check_runs(format, k);
  if (!layout.quantized)
    throw py::value_error(format_name + " has no parts; expected a format of integers");
  const auto groups = static_cast<py::ssize_t>(matrix_groups(static_cast<int>(k)));
  const std::vector<py::ssize_t> runs{n, groups / run_groups(format, static_cast<int>(groups))};
  const std::vector<py::ssize_t> factors{n, groups * layout.parts};
  const bool two_level = layout.two_level, offset = layout.has_offset;
  const auto values = checked_array<uint8_t>(codes, {n, k}, "codes");
  PartsArgs args{format,
                 static_cast<int>(n),
                 static_cast<int>(k),
                 values.data(),
                 nullptr,
                 nullptr,
                 nullptr,
                 nullptr,
                 nullptr,
                 nullptr};
  args.scales = two_level ? checked_factors(scales, factors, "scales")
                          : checked_halves(scales, runs, "scales");
  args.mins = if_wanted(offset, mins, "mins", [&]() -> const void* {
    if (two_level) return checked_factors(mins, factors, "mins");
    if (layout.offset == Offset::min) return checked_halves(mins, runs, "mins");
    return checked_array<uint8_t>(mins, runs, "mins").data();
  });
  args.d = if_wanted(two_level, d, "d", [&] { return checked_halves(d, runs, "d"); });
  args.dmin = if_wanted(two_level && offset, dmin, "dmin",
                        [&] { return checked_halves(dmin, runs, "dmin"); });
  const std::vector<int32_t> in_order = row_order(order, n);
  args.order = in_order.empty() ? nullptr : in_order.data();
  auto matrix = allocate(format, args.n, args.k, arena);
  args.out = matrix->data;
  pack_in_parallel(&pack_parts, args, threads);
  return matrix;
}

std::shared_ptr<Matrix> from_packed(const std::string& format_name, int64_t n, int64_t k,
                                    const py::object& packed) {
  check_shape(n, k);
  check_runs(format_named(format_name), k);
  auto matrix = std::make_shared<Matrix>(Matrix{format_named(format_name), static_cast<int>(n),
                                                static_cast<int>(k), nullptr, nullptr});
  const auto data =
      checked_array<uint8_t>(packed, {static_cast<py::ssize_t>(matrix->bytes())}, "packed");
  if (reinterpret_cast<uintptr_t>(data.data()) % 64 == 0) {
    matrix->data = const_cast<uint8_t*>(data.data());  // kernels only read
    matrix->owner = holder(data);
  } else {
    auto copy = allocate(matrix->format, matrix->n, matrix->k, nullptr);
    std::copy(data.data(), data.data() + data.size(), copy->data);
    return copy;
  }
  return matrix;
}

// Fills the arena with the bytes of a file from `offset` on, on all threads of the pool: a page is
// cleared and filled by the same thread while it is in its cache.
void read_arena(const std::shared_ptr<Arena>& arena, int descriptor, uint64_t offset, int threads) {
  struct Shared {
    Arena& arena;
    int descriptor;
    uint64_t offset;
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
  } shared{*arena, descriptor, offset};
  const auto task = [](void* opaque, int) {
    constexpr size_t kPiece = size_t{2} << 20;
    auto& s = *static_cast<Shared*>(opaque);
    for (size_t begin; (begin = s.next.fetch_add(kPiece)) < s.arena.size() && !s.failed.load();) {
      const size_t bytes = std::min(kPiece, s.arena.size() - begin);
      if (!read_file(s.descriptor, s.offset + begin, s.arena.data() + begin, bytes))
        s.failed.store(true);
    }
  };
  {
    Released release;
    shared_pool(threads)->run(task, &shared);
  }
  if (shared.failed.load())
    throw py::value_error("expected " + std::to_string(arena->size()) + " bytes from offset " +
                          std::to_string(offset) + " on: the file is truncated or cannot be read");
}

std::shared_ptr<Matrix> matrix_in(const std::shared_ptr<Arena>& arena,
                                  const std::string& format_name, int64_t n, int64_t k,
                                  size_t offset) {
  check_shape(n, k);
  check_runs(format_named(format_name), k);
  auto matrix = std::make_shared<Matrix>(
      Matrix{format_named(format_name), static_cast<int>(n), static_cast<int>(k), nullptr, arena});
  if (offset % 64 != 0 || offset > arena->size() || matrix->bytes() > arena->size() - offset) {
    throw py::value_error("expected " + std::to_string(matrix->bytes()) +
                          " bytes at a multiple of 64 within an arena of " +
                          std::to_string(arena->size()) + ", got offset " + std::to_string(offset));
  }
  matrix->data = arena->data() + offset;
  return matrix;
}

py::array_t<uint8_t> packed_bytes(const std::shared_ptr<Matrix>& m) {
  auto* held = new std::shared_ptr<Matrix>(m);
  const py::capsule owner(held, [](void* p) { delete static_cast<std::shared_ptr<Matrix>*>(p); });
  py::array_t<uint8_t> view(static_cast<py::ssize_t>(m->bytes()), m->data, owner);
  view.attr("flags").attr("writeable") = false;
  return view;
}

py::array_t<float> dequantize(const Matrix& m, int64_t begin, int64_t end) {
  if (begin < 0 || end < begin || end > m.n)
    throw py::value_error("expected rows within 0.." + std::to_string(m.n));
  py::array_t<float> out({static_cast<py::ssize_t>(end - begin), static_cast<py::ssize_t>(m.k)});
  float* values = out.mutable_data();
  {
    Released release;
    active_kernels().dequantize[static_cast<int>(m.format)](
        m.data, m.groups(), m.k, static_cast<int>(begin), static_cast<int>(end), values, m.k);
  }
  return out;
}

}  // namespace

Format format_named(const std::string& name) {
  for (int i = 0; i < kFormats; ++i)
    if (name == kFormatInfo[i].name) return static_cast<Format>(i);
  std::string known;
  for (int i = 0; i < kFormats; ++i)
    known += std::string(i == 0 ? "" : i + 1 < kFormats ? ", " : " or ") + kFormatInfo[i].name;
  throw py::value_error("expected a format " + known + ", got '" + name + "'");
}

LowRankType low_rank_type_named(const std::string& name) {
  return static_cast<LowRankType>(place_of(name, kLowRankNames, "type of an adapter"));
}

Activations activations_named(const std::string& name) {
  return static_cast<Activations>(place_of(name, kActivationNames, "activations"));
}

Unary unary_named(const std::string& name) {
  return static_cast<Unary>(place_of(name, kUnaryNames, "activation"));
}

Gate gate_named(const std::string& name) {
  return static_cast<Gate>(place_of(name, kGateNames, "activation of a gate"));
}

Pool pool_named(const std::string& name) {
  return static_cast<Pool>(place_of(name, kPoolNames, "pool"));
}

Scores scores_named(const std::string& name) {
  return static_cast<Scores>(place_of(name, kScoresNames, "scores"));
}

KvType kv_type_named(const std::string& name) {
  return static_cast<KvType>(place_of(name, kKvTypeNames, "kv_type"));
}

// x @ m.T with one ISA's kernels: rows are quantized once, pairs are handed out by a counter.
py::array_t<float> matmul(const Kernels& kernels, const Matrix& m, const py::object& object,
                          int threads, Activations activations) {
  const auto x = checked_array<float>(object, {-1, m.k}, "x");
  const int rows = static_cast<int>(x.shape(0)), width = m.groups() * kGroup;
  const int out_width = m.pairs() * kPairRows;
  if (info(m.format).quantized) check_quantized_width(width);
  py::array_t<float> out({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(m.n)});
  if (rows == 0) return out;
  const float* values = x.data();
  float* result = out.mutable_data();
  {
    Released release;
    std::vector<float> padded(static_cast<size_t>(rows) * width, 0.0f);
    for (int r = 0; r < rows; ++r)
      std::copy(values + static_cast<size_t>(r) * m.k, values + static_cast<size_t>(r + 1) * m.k,
                padded.data() + static_cast<size_t>(r) * width);
    std::vector<float> y(static_cast<size_t>(rows) * out_width);
    std::vector<uint8_t> panel;
    LinearArgs args{
        m.data,        m.groups(), rows,     nullptr,
        padded.data(), width,      y.data(), out_width,
        nullptr,       nullptr,    0,        active_tuning(kernels).ahead(m.format, rows)};
    if (info(m.format).quantized) {
      panel.resize(static_cast<size_t>(rows) * m.groups() * kActivationBytes);
      quantizer(kernels, m.format, activations)(padded.data(), width, m.groups(), rows, 0, rows,
                                                panel.data());
      args.panel = panel.data();
    }
    struct Shared {
      const Matrix& m;
      const LinearArgs& args;
      void (*linear)(const LinearArgs&, int, int);
      std::atomic<int> next{0};
    } shared{m, args, kernels.linear[static_cast<int>(m.format)]};
    const auto task = [](void* opaque, int) {
      auto& s = *static_cast<Shared*>(opaque);
      for (int pair; (pair = s.next.fetch_add(1)) < s.m.pairs();) s.linear(s.args, pair, pair + 1);
    };
    shared_pool(threads)->run(task, &shared);
    for (int r = 0; r < rows; ++r)
      std::copy(y.data() + static_cast<size_t>(r) * out_width,
                y.data() + static_cast<size_t>(r) * out_width + m.n,
                result + static_cast<size_t>(r) * m.n);
  }
  return out;
}

void bind_matrix(py::module_& m) {
  py::class_<Arena, std::shared_ptr<Arena>>(m, "Arena")
      .def(py::init([](size_t bytes, bool huge) {
             Released release;
             return std::make_shared<Arena>(bytes, huge);
           }),
           py::arg("nbytes"), py::arg("huge") = true)
      .def("read", &read_arena, py::arg("descriptor"), py::arg("offset"), py::arg("threads") = 1)
      .def("matrix", &matrix_in, py::arg("format"), py::arg("n"), py::arg("k"), py::arg("offset"))
      .def_property_readonly("nbytes", &Arena::size)
      .def_property_readonly("used", &Arena::used);
  py::class_<Matrix, std::shared_ptr<Matrix>>(m, "Matrix")
      .def_static("pack", &pack, py::arg("source"), py::arg("rows"), py::arg("n"), py::arg("k"),
                  py::arg("format"), py::arg("order") = py::none(),
                  py::arg("arena") = std::shared_ptr<Arena>(), py::arg("threads") = 1)
      .def_static("from_parts", &from_parts, py::arg("format"), py::arg("n"), py::arg("k"),
                  py::arg("codes"), py::arg("scales"), py::arg("mins") = py::none(),
                  py::arg("d") = py::none(), py::arg("dmin") = py::none(),
                  py::arg("order") = py::none(), py::arg("arena") = std::shared_ptr<Arena>(),
                  py::arg("threads") = 1)
      .def_static("from_packed", &from_packed, py::arg("format"), py::arg("n"), py::arg("k"),
                  py::arg("packed"))
      .def_property_readonly("format",
                             [](const Matrix& x) { return std::string(info(x.format).name); })
      .def_readonly("n", &Matrix::n)
      .def_readonly("k", &Matrix::k)
      .def_property_readonly("nbytes", &Matrix::bytes)
      .def_property_readonly("packed", &packed_bytes)
      .def("dequantize", &dequantize, py::arg("row_begin"), py::arg("row_end"))
      .def(
          "matmul",
          [](const Matrix& self, const py::object& x, int threads, const std::string& activations) {
            return matmul(active_kernels(), self, x, threads, activations_named(activations));
          },
          py::arg("x"), py::arg("threads") = 1, py::arg("activations") = kDefaultActivations);
  py::class_<RowTable, std::shared_ptr<RowTable>>(m, "RowTable")
      .def(py::init(&row_table), py::arg("source"), py::arg("rows"), py::arg("n"), py::arg("k"),
           py::arg("format"))
      .def_property_readonly("format",
                             [](const RowTable& x) { return std::string(info(x.format).name); })
      .def_readonly("n", &RowTable::n)
      .def_readonly("k", &RowTable::k);
  m.def(
      "packed_bytes",
      [](const std::string& format, int64_t n, int64_t k) {
        check_shape(n, k);
        check_runs(format_named(format), k);
        return matrix_bytes(format_named(format), static_cast<int>(n), static_cast<int>(k));
      },
      py::arg("format"), py::arg("n"), py::arg("k"));
}

}  // namespace slmq
