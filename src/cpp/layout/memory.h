// Zeroed memory in whole pages, given to the process only when touched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slmq {

class Memory {
 public:
  Memory() = default;
  // Throws std::bad_alloc. `huge` asks for 2 MiB pages where the system has them.
  explicit Memory(size_t bytes, bool huge = false);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  void* base_ = nullptr;
  size_t base_bytes_ = 0;
};

// Reads bytes [offset, offset + bytes) of an open file, whoever else reads it. False if the file ends
// before that or cannot be read.
bool read_file(int descriptor, uint64_t offset, uint8_t* to, size_t bytes);

}  // namespace slmq
