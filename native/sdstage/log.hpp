// Where the engine's own messages go: a file descriptor, or nowhere. They may come from any of its threads, so they
// never enter Python.
#pragma once

namespace sdstage {

// Installs callbacks so that the engine and ggml print nothing by themselves.
void quiet_engine();

// Writes the engine's messages (warnings and errors of ggml too) to `descriptor`, one write per message; -1: nowhere.
void set_log_file(int descriptor);

}  // namespace sdstage
