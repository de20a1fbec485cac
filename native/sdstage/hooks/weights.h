// Lets a model be opened without its weights.
//
// The engine allocates every component while it opens a checkpoint. While a scope defers weights, that allocation
// answers "no" (the engine logs it and goes on); each component is then allocated and loaded when a stage needs it.
#pragma once

#include "ggml-alloc.h"
#include "ggml-backend.h"

namespace sdstage {
ggml_backend_buffer_t allocate_tensors(ggml_context* context, ggml_backend_t backend);
}

#define ggml_backend_alloc_ctx_tensors sdstage::allocate_tensors
