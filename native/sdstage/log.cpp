#include "log.hpp"

#include <unistd.h>

#include <atomic>
#include <cstring>

#include "ggml.h"
#include "stable-diffusion.h"

namespace sdstage {

namespace {

std::atomic<int> log_descriptor{-1};

void write_message(const char* text) {
    const int descriptor = log_descriptor.load();
    if (descriptor >= 0 && text != nullptr) {
        // A log that cannot be written is no reason to stop an image.
        [[maybe_unused]] const ssize_t written = ::write(descriptor, text, std::strlen(text));
    }
}

void on_engine_message(sd_log_level_t, const char* text, void*) {
    write_message(text);
}

void on_ggml_message(ggml_log_level level, const char* text, void*) {
    if (level >= GGML_LOG_LEVEL_WARN) {
        write_message(text);
    }
}

}  // namespace

void quiet_engine() {
    sd_set_log_callback(&on_engine_message, nullptr);
    sd_set_progress_callback([](int, int, float, void*) {}, nullptr);
    ggml_log_set(&on_ggml_message, nullptr);
}

void set_log_file(int descriptor) {
    log_descriptor.store(descriptor);
}

}  // namespace sdstage
