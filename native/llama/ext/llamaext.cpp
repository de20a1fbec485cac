#include "llamaext.h"

#include "build_id.hpp"

#include <llama-context.h>
#include <llama-ext.h>
#include <llama-kv-cache-iswa.h>
#include <llama-memory-hybrid-iswa.h>
#include <llama-memory-hybrid.h>

#include <cstdio>
#include <string>
#include <vector>

#define LLAMAEXT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using sizes = std::map<ggml_backend_buffer_type_t, size_t>;

// The virtual card says to what it rounds; ggml has no word for that.
uint64_t granularity_of(ggml_backend_dev_t device) {
    using ask_t = size_t (*)(ggml_backend_dev_t);
    if (device == nullptr) {
        return 1;
    }
    auto ask = reinterpret_cast<ask_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "vcard_granularity"));
    return ask != nullptr ? ask(device) : 1;
}

bool is_card(ggml_backend_dev_t device) {
    return device != nullptr && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU;
}

llamaext_row row_of(ggml_backend_buffer_type_t type, const char * purpose, size_t bytes) {
    llamaext_row       row    = {};
    ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
    snprintf(row.device, sizeof row.device, "%s", device != nullptr ? ggml_backend_dev_name(device) : "");
    snprintf(row.buffer_type, sizeof row.buffer_type, "%s", ggml_backend_buft_name(type));
    snprintf(row.purpose, sizeof row.purpose, "%s", purpose);
    row.on_card           = is_card(device) && !ggml_backend_buft_is_host(type) ? 1 : 0;
    row.granularity_bytes = row.on_card ? granularity_of(device) : 1;
    row.bytes             = bytes;
    return row;
}

class table {
  public:
    table(llamaext_row * rows, int32_t rows_max) : rows_(rows), rows_max_(rows_max) {}

    void add(ggml_backend_buffer_type_t type, const char * purpose, size_t bytes) {
        if (bytes == 0) {
            return;
        }
        if (count_ < rows_max_) {
            rows_[count_] = row_of(type, purpose, bytes);
        }
        count_++;
    }

    void add(const sizes & of, const char * purpose) {
        for (const auto & [type, bytes] : of) {
            add(type, purpose, bytes);
        }
    }

    int32_t count() const { return count_ <= rows_max_ ? count_ : -1; }

  private:
    llamaext_row * rows_;
    int32_t        rows_max_;
    int32_t        count_ = 0;
};

// Caches made of several caches allocate a buffer for each: the engine's own figure adds them up, and an allocation
// that is rounded up is rounded up for each of them.
void add_memory(table & into, const llama_memory_i * memory) {
    if (memory == nullptr) {
        return;
    }
    if (const auto * split = dynamic_cast<const llama_kv_cache_iswa *>(memory)) {
        add_memory(into, split->get_base());
        add_memory(into, split->get_swa());
    } else if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid *>(memory)) {
        add_memory(into, hybrid->get_mem_attn());
        add_memory(into, hybrid->get_mem_recr());
    } else if (const auto * both = dynamic_cast<const llama_memory_hybrid_iswa *>(memory)) {
        add_memory(into, both->get_mem_attn());
        add_memory(into, both->get_mem_recr());
    } else {
        into.add(memory->memory_breakdown(), "kv");
    }
}

}  // namespace

LLAMAEXT_EXPORT const char * llamaext_build(void) {
    static const std::string text = std::string(TIDEGATE_ENGINE_SOURCES) + " ggml-" + ggml_version() + "-" + ggml_commit() +
                                    " " TIDEGATE_ENGINE_FLAGS;
    return text.c_str();
}

LLAMAEXT_EXPORT const char * llamaext_ggml_id(void) {
    static const std::string text = vcard_host_build_id();
    return text.c_str();
}

LLAMAEXT_EXPORT int32_t llamaext_breakdown(const llama_context * context, llamaext_row * rows, int32_t rows_max) {
    table into(rows, rows_max);
    for (const auto & [type, part] : llama_get_memory_breakdown(context)) {
        into.add(type, "weights", part.model);
        into.add(type, "compute", part.compute);
    }
    add_memory(into, llama_get_memory(context));
    return into.count();
}
