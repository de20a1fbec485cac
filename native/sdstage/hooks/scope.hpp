// What the hooks consult: the devices of the component being opened or run, and what happened meanwhile.
// One scope is active per thread at a time; stages set it for their duration (see ScopeGuard).
#pragma once

#include <cstddef>

#include "ggml-backend.h"

namespace sdstage {

class MeteredDevice;

struct Scope {
    MeteredDevice* runtime = nullptr;  // where graphs run
    MeteredDevice* ram     = nullptr;  // where the engine keeps weights it streams
    bool defer_weights     = false;    // opening headers only
    bool text_encoder      = false;    // the text encoder is the component that is opened
    size_t non_finite      = 0;        // outputs that held a NaN or an infinity
};

// Where loading threads of the engine must see the scope too, it is a process-wide pointer, guarded by the one
// engine lock (engine.hpp): only one stage runs at a time in a process.
Scope*& current_scope();

class ScopeGuard {
public:
    explicit ScopeGuard(Scope& scope) : previous_(current_scope()) { current_scope() = &scope; }
    ~ScopeGuard() { current_scope() = previous_; }
    ScopeGuard(const ScopeGuard&)            = delete;
    ScopeGuard& operator=(const ScopeGuard&) = delete;

private:
    Scope* previous_;
};

}  // namespace sdstage
