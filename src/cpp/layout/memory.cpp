#include "layout/memory.h"

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>

#include "layout/formats.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <io.h>
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace slmq {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

void* map_pages(size_t bytes) {
#if defined(_WIN32)
  return VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
#else
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
#endif
}

void unmap_pages(void* p, [[maybe_unused]] size_t bytes) {
#if defined(_WIN32)
  VirtualFree(p, 0, MEM_RELEASE);
#else
  munmap(p, bytes);
#endif
}

// Bytes read by one call, 0 at the end of the file, negative for an error.
int64_t read_some(int descriptor, uint64_t offset, uint8_t* to, size_t bytes) {
#if defined(_WIN32)
  OVERLAPPED place = {};
  place.Offset = static_cast<DWORD>(offset);
  place.OffsetHigh = static_cast<DWORD>(offset >> 32);
  DWORD done = 0;
  const auto file = reinterpret_cast<HANDLE>(_get_osfhandle(descriptor));
  if (ReadFile(file, to, static_cast<DWORD>(bytes), &done, &place)) return done;
  return GetLastError() == ERROR_HANDLE_EOF ? 0 : -1;
#else
  for (;;) {
    const ssize_t done = pread(descriptor, to, bytes, static_cast<off_t>(offset));
    if (done >= 0 || errno != EINTR) return done;
  }
#endif
}

}  // namespace

bool read_file(int descriptor, uint64_t offset, uint8_t* to, size_t bytes) {
  while (bytes > 0) {
    const int64_t done = read_some(descriptor, offset, to, std::min(bytes, size_t{1} << 30));
    if (done <= 0) return false;
    offset += static_cast<uint64_t>(done);
    to += done;
    bytes -= static_cast<size_t>(done);
  }
  return true;
}

Memory::Memory(size_t bytes, bool huge) : size_(bytes) {
  if (bytes == 0) return;
  if (bytes > SIZE_MAX / 4) throw std::bad_alloc();  // sums below must not wrap
  const size_t alignment = huge ? kHugePage : 4096;
  base_bytes_ =
      static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 4096)) + (huge ? kHugePage : 0);
  base_ = map_pages(base_bytes_);
  if (base_ == nullptr) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(base_);
  data_ = static_cast<uint8_t*>(base_) + ((alignment - address % alignment) % alignment);
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, bytes, MADV_HUGEPAGE);  // a hint: failing costs speed only
#endif
}

Memory::~Memory() {
  if (base_ != nullptr) unmap_pages(base_, base_bytes_);
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      base_(std::exchange(other.base_, nullptr)),
      base_bytes_(std::exchange(other.base_bytes_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(base_, other.base_);
  std::swap(base_bytes_, other.base_bytes_);
  return *this;
}

}  // namespace slmq
