// The shim: what our Python needs of llama.cpp and only its C++ interface tells. Plain C, so that ctypes can call it.
//
// Owns how the engine's figures become rows of bytes. Does not own what is asked for (which file, how many layers): that
// is done with the engine's own C interface, by tidegate_engines/llama.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;

// What one buffer type holds for one purpose: one row is one allocation on its device, if it holds any bytes at all.
struct llamaext_row {
    char     device[64];       // as ggml names it: "CPU", "VCARD0", "CUDA0"; empty for memory that belongs to no device
    char     buffer_type[64];  // "CPU", "CPU_REPACK", "VCARD0", "VCARD0_Host"
    char     purpose[16];      // "weights", "kv", "compute"
    int32_t  on_card;          // 1: memory of a GPU; 0: RAM, pinned or not
    int32_t  reserved;
    uint64_t bytes;
    uint64_t granularity_bytes;  // an allocation is charged rounded up to it, 1 where that is not known
};

// "llama-cpp-python==0.3.36 ggml-0.25.3-... native=ON cuda=OFF ...": goes into fingerprints of saved states.
const char * llamaext_build(void);

// Which ggml this library was compiled against; the virtual card's plugin must say the same before it is loaded.
const char * llamaext_ggml_id(void);

// The rows of a context, made with `no_alloc` or not; the count, or -1 when there are more than `rows_max`.
int32_t llamaext_breakdown(const struct llama_context * context, struct llamaext_row * rows, int32_t rows_max);

#ifdef __cplusplus
}
#endif
