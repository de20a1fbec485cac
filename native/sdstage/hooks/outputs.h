// Watches what leaves a graph: a NaN or an infinity in any float output is noted for the running stage.
//
// It has to be here: the engine clamps decoded floats to [0, 1], and std::min(1, NaN) is 1, so a broken decode would
// arrive as a flawless white image.
#pragma once

#include <cstddef>

#include "ggml-backend.h"

namespace sdstage {
bool all_finite(const float* values, size_t count);
void read_output(const ggml_tensor* tensor, void* data, size_t offset, size_t size);
}

#define ggml_backend_tensor_get sdstage::read_output
