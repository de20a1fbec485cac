// The hooks' bodies. Compiled without the hooks themselves, so each name below is ggml's own.
#include <cmath>
#include <cstring>

#include "../errors.hpp"
#include "../meter.hpp"
#include "devices.h"
#include "outputs.h"
#include "scope.hpp"
#include "weights.h"

#undef ggml_backend_alloc_ctx_tensors
#undef ggml_backend_init_by_type
#undef ggml_backend_tensor_get

namespace sdstage {

Scope*& current_scope() {
    static Scope* scope = nullptr;
    return scope;
}

void engine_assertion_failed(const char* file, int line, const char* expression) {
    const char* name = std::strrchr(file, '/');
    throw EngineError(std::string("the engine stopped at ") + (name ? name + 1 : file) + ":" + std::to_string(line) +
                      ": " + expression);
}

ggml_backend_t init_backend_by_type(enum ggml_backend_dev_type type, const char* params) {
    Scope* scope = current_scope();
    if (type == GGML_BACKEND_DEVICE_TYPE_CPU && scope != nullptr && scope->ram != nullptr) {
        return scope->ram->open_backend();
    }
    return ggml_backend_init_by_type(type, params);
}

ggml_backend_t init_default_backend() {
    Scope* scope = current_scope();
    if (scope == nullptr || scope->runtime == nullptr) {
        throw EngineError("a component was opened outside a stage");
    }
    ggml_backend_t backend = scope->runtime->open_backend();
    if (backend == nullptr) {
        throw OutOfMemory(std::string("no room for the device context on ") + scope->runtime->name());
    }
    return backend;
}

bool all_finite(const float* values, size_t count) {
    // x * 0 is 0 for finite values and NaN otherwise, so that one sum tells.
    float taint = 0.0f;
    for (size_t i = 0; i < count; ++i) {
        taint += values[i] * 0.0f;
    }
    return !std::isnan(taint);
}

void read_output(const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
    ggml_backend_tensor_get(tensor, data, offset, size);
    Scope* scope = current_scope();
    if (scope == nullptr || tensor->type != GGML_TYPE_F32) {
        return;
    }
    if (!all_finite(static_cast<const float*>(data), size / sizeof(float))) {
        scope->non_finite += 1;
    }
}

ggml_backend_buffer_t allocate_tensors(ggml_context* context, ggml_backend_t backend) {
    Scope* scope = current_scope();
    if (scope != nullptr && scope->defer_weights) {
        return nullptr;
    }
    return ggml_backend_alloc_ctx_tensors(context, backend);
}

}  // namespace sdstage
