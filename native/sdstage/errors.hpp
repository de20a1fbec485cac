// The engine's refusals by kind. module.cpp gives each its Python exception; nothing here knows Python.
#pragma once

#include <stdexcept>
#include <string>

namespace sdstage {

struct EngineError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct InvalidModel : EngineError {
    using EngineError::EngineError;
};
struct InvalidRequest : EngineError {
    using EngineError::EngineError;
};
struct Unsupported : EngineError {
    using EngineError::EngineError;
};
struct OutOfMemory : EngineError {
    using EngineError::EngineError;
};
struct NotFinite : EngineError {
    using EngineError::EngineError;
};
struct Cancelled : EngineError {
    using EngineError::EngineError;
};

}  // namespace sdstage
