// A ggml device that stands in front of another and counts every byte of every buffer.
//
// Real: buffers and graphs go to the device behind it unchanged, so what is counted is what the device was asked for.
// Dry:  buffers are address space that is never touched and graphs are not computed, so the engine's own code tells
//       what a stage would need, for any size, without weights and without the memory. That is the whole of exact
//       prediction: no second model of the engine's behaviour exists.
//
// Bytes are rounded up to the card's granularity per buffer, as the card charges them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "ggml-backend.h"

namespace sdstage {

struct Meter {
    size_t granularity_bytes = 1;
    int64_t live_bytes       = 0;
    int64_t peak_bytes       = 0;
    size_t refused_bytes     = 0;  // the last allocation that the device refused, 0 if none

    size_t rounded(size_t size) const { return (size + granularity_bytes - 1) / granularity_bytes * granularity_bytes; }
    void charge(size_t size);
    void refund(size_t size);
    void reset_peak() { peak_bytes = live_bytes; refused_bytes = 0; }
};

class MeteredDevice {
public:
    enum class Mode { real, dry };

    // thread_count is for a virtual card, which computes on the CPU; the engine sets the CPU's own.
    MeteredDevice(ggml_backend_dev_t behind, Mode mode, size_t granularity_bytes, int thread_count = 1);
    ~MeteredDevice();
    MeteredDevice(const MeteredDevice&)            = delete;
    MeteredDevice& operator=(const MeteredDevice&) = delete;

    // A backend whose default buffer type is the metered one; null when the device has no room for its context.
    // The caller frees it with ggml_backend_free. The device must outlive it and every buffer.
    ggml_backend_t open_backend();

    std::string name() const;
    bool is_cpu() const;
    Meter& meter();

private:
    friend struct MeterInterface;  // ggml's callbacks, in meter.cpp
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

}  // namespace sdstage
