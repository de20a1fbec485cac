// The backend of a virtual card: a stream that computes on ggml's CPU backend.
//
// Owns streams, their pool charge and the process's context charge. The device that makes them: device.hpp.
#pragma once

#include "card.hpp"

namespace vcard {

ggml_backend_t open_stream(card & owner);  // null when the context does not fit on the card
void           set_thread_count(ggml_backend_t stream, int thread_count);

}  // namespace vcard
