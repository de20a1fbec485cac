// Forced into every engine source (-include): the whole list of places where the engine is intercepted.
//
// The engine's model runners live in headers, so each of its translation units carries weak copies of them.
// A hook seen by some units and not by others would be chosen by the linker's mood: therefore all or none.
// ggml itself is compiled without any of this.
#pragma once

#ifdef __cplusplus
#include "asserts.h"
#include "devices.h"
#include "outputs.h"
#include "weights.h"
#endif
