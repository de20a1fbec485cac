// Redirects the engine's search for a CPU backend to the device that the current scope has chosen.
//
// The engine asks the registry for "the CPU" when it keeps weights in RAM. Answering with our metered device lets
// the same code run dry (nothing allocated) and be counted to the byte. See devices.cpp for the scope.
#pragma once

#include "ggml-backend.h"

namespace sdstage {
ggml_backend_t init_backend_by_type(enum ggml_backend_dev_type type, const char* params);
ggml_backend_t init_default_backend();  // in place of sd_get_default_backend(), in the stage unit alone
}  // namespace sdstage

#define ggml_backend_init_by_type sdstage::init_backend_by_type
