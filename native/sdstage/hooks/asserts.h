// Turns the engine's own assertions into C++ exceptions.
//
// The stock text encoder aborts the process when its compute buffer is refused (GGML_ASSERT on an empty result).
// An exception unwinds to the stage, which frees what it holds and reports; ggml's internal assertions still abort.
#pragma once

#include "ggml.h"

namespace sdstage {
[[noreturn]] void engine_assertion_failed(const char* file, int line, const char* expression);
}

#undef GGML_ASSERT
#undef GGML_ABORT
#define GGML_ASSERT(x)                                                     \
    do {                                                                   \
        if (!(x)) sdstage::engine_assertion_failed(__FILE__, __LINE__, #x); \
    } while (0)
#define GGML_ABORT(...) sdstage::engine_assertion_failed(__FILE__, __LINE__, "" #__VA_ARGS__)
