// Buffers on a virtual card: host memory that only set, get, copy and compute may touch, charged to the ledger.
//
// Owns both buffer types (the card's memory, pinned host memory) and the access windows of strict mode.
#pragma once

#include "card.hpp"

#include <vector>

namespace vcard {

struct allocation;

void describe_memory_type(card & owner);  // fills owner.memory_type
void describe_pinned_type(card & owner);  // fills owner.pinned_type

// Null for a buffer that lies on no virtual card.
allocation *          allocation_of(ggml_backend_buffer_t buffer);
ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor);

void write_tensor(ggml_tensor * tensor, const void * data, size_t offset, size_t size);
void read_tensor(const ggml_tensor * tensor, void * data, size_t offset, size_t size);

// While one lives, the memory behind it may be touched. Without strict mode it always may, and a window costs nothing.
class window {
  public:
    explicit window(ggml_backend_buffer_t first, ggml_backend_buffer_t second = nullptr);
    window();  // everything on every virtual card, for a computation
    ~window();
    window(const window &)             = delete;
    window & operator=(const window &) = delete;

  private:
    std::vector<uint64_t> opened_;  // numbers of allocations
};

}  // namespace vcard
