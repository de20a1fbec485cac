#include "meter.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "../vcard/vcard.h"
#include "ggml-backend-impl.h"

namespace sdstage {

void Meter::charge(size_t size) {
    live_bytes += static_cast<int64_t>(rounded(size));
    peak_bytes = std::max(peak_bytes, live_bytes);
}

void Meter::refund(size_t size) {
    live_bytes -= static_cast<int64_t>(rounded(size));
}

struct MeteredDevice::Parts {
    ggml_backend_dev_t behind;
    Mode mode;
    int thread_count;
    Meter meter;
    ggml_backend_device device;
    ggml_backend_reg registry;
    ggml_backend_buffer_type buffer_type;
};

namespace {

// A real buffer keeps its own interface but for `free_buffer`: these are the originals to call and the bytes to refund.
struct RealBuffer {
    void (*free_buffer)(ggml_backend_buffer_t);
    Meter* meter;
    size_t size;
};
std::mutex real_buffers_lock;
std::unordered_map<ggml_backend_buffer_t, RealBuffer>& real_buffers() {
    static std::unordered_map<ggml_backend_buffer_t, RealBuffer> buffers;
    return buffers;
}

void free_real_buffer(ggml_backend_buffer_t buffer) {
    RealBuffer record;
    {
        std::lock_guard<std::mutex> lock(real_buffers_lock);
        auto found = real_buffers().find(buffer);
        record     = found->second;
        real_buffers().erase(found);
    }
    record.meter->refund(record.size);
    if (record.free_buffer != nullptr) {
        record.free_buffer(buffer);
    }
}

struct DryBuffer {
    void* base;
    size_t mapped_bytes;
    Meter* meter;
    size_t size;
};

void dry_free(ggml_backend_buffer_t buffer) {
    auto* dry = static_cast<DryBuffer*>(buffer->context);
    munmap(dry->base, dry->mapped_bytes);
    dry->meter->refund(dry->size);
    delete dry;
}
void* dry_base(ggml_backend_buffer_t buffer) {
    return static_cast<DryBuffer*>(buffer->context)->base;
}
void dry_memset(ggml_backend_buffer_t, ggml_tensor*, uint8_t, size_t, size_t) {}
void dry_set(ggml_backend_buffer_t, ggml_tensor*, const void*, size_t, size_t) {}
void dry_get(ggml_backend_buffer_t, const ggml_tensor*, void* data, size_t, size_t size) {
    std::memset(data, 0, size);
}
bool dry_copy(ggml_backend_buffer_t, const ggml_tensor*, ggml_tensor*) {
    return true;
}
void dry_clear(ggml_backend_buffer_t, uint8_t) {}

ggml_backend_buffer_i dry_buffer_interface() {
    ggml_backend_buffer_i i = {};
    i.free_buffer           = dry_free;
    i.get_base              = dry_base;
    i.memset_tensor         = dry_memset;
    i.set_tensor            = dry_set;
    i.get_tensor            = dry_get;
    i.cpy_tensor            = dry_copy;
    i.clear                 = dry_clear;
    return i;
}

const char* dry_backend_name(ggml_backend_t) {
    return "dry";
}
void dry_backend_free(ggml_backend_t backend) {
    delete backend;
}
ggml_status dry_compute(ggml_backend_t, ggml_cgraph*) {
    return GGML_STATUS_SUCCESS;
}
ggml_guid_t dry_guid() {
    static ggml_guid guid = {'t', 'i', 'd', 'e', 'g', 'a', 't', 'e', '-', 'd', 'r', 'y', '-', 'r', 'u', 'n'};
    return &guid;
}

}  // namespace

// The interfaces of ggml pass the device or buffer type; our Parts hang on its context.
struct MeterInterface {
    using P = MeteredDevice::Parts;
    static P* of(ggml_backend_dev_t device) { return static_cast<P*>(device->context); }
    static P* of(ggml_backend_buffer_type_t type) { return static_cast<P*>(type->context); }
    static ggml_backend_buffer_type_t behind_type(P* p) { return ggml_backend_dev_buffer_type(p->behind); }

    static const char* device_name(ggml_backend_dev_t d) { return ggml_backend_dev_name(of(d)->behind); }
    static const char* device_description(ggml_backend_dev_t d) { return ggml_backend_dev_description(of(d)->behind); }
    static void device_memory(ggml_backend_dev_t d, size_t* free, size_t* total) {
        ggml_backend_dev_memory(of(d)->behind, free, total);
    }
    static enum ggml_backend_dev_type device_type(ggml_backend_dev_t d) { return ggml_backend_dev_type(of(d)->behind); }
    static void device_props(ggml_backend_dev_t d, ggml_backend_dev_props* props) {
        ggml_backend_dev_get_props(of(d)->behind, props);
    }
    static ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t d) { return &of(d)->buffer_type; }
    static bool supports_op(ggml_backend_dev_t d, const ggml_tensor* op) {
        return ggml_backend_dev_supports_op(of(d)->behind, op);
    }
    static bool supports_type(ggml_backend_dev_t d, ggml_backend_buffer_type_t type) {
        P* p = of(d);
        return type == &p->buffer_type || ggml_backend_dev_supports_buft(p->behind, type);
    }
    static bool offload_op(ggml_backend_dev_t d, const ggml_tensor* op) {
        return ggml_backend_dev_offload_op(of(d)->behind, op);
    }

    static const char* type_name(ggml_backend_buffer_type_t t) { return ggml_backend_buft_name(behind_type(of(t))); }
    static size_t type_alignment(ggml_backend_buffer_type_t t) { return ggml_backend_buft_get_alignment(behind_type(of(t))); }
    static size_t type_max_size(ggml_backend_buffer_type_t t) { return ggml_backend_buft_get_max_size(behind_type(of(t))); }
    static size_t type_alloc_size(ggml_backend_buffer_type_t t, const ggml_tensor* tensor) {
        return ggml_backend_buft_get_alloc_size(behind_type(of(t)), tensor);
    }
    static bool type_is_host(ggml_backend_buffer_type_t t) { return ggml_backend_buft_is_host(behind_type(of(t))); }

    static ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
        P* p = of(type);
        return p->mode == MeteredDevice::Mode::dry ? allocate_dry(p, type, size) : allocate_real(p, size);
    }
    static ggml_backend_buffer_t allocate_real(P* p, size_t size) {
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(behind_type(p), size);
        if (buffer == nullptr) {
            p->meter.refused_bytes = size;
            return nullptr;
        }
        std::lock_guard<std::mutex> lock(real_buffers_lock);
        real_buffers()[buffer]    = {buffer->iface.free_buffer, &p->meter, size};
        buffer->iface.free_buffer = free_real_buffer;
        p->meter.charge(size);
        return buffer;
    }
    static ggml_backend_buffer_t allocate_dry(P* p, ggml_backend_buffer_type_t type, size_t size) {
        const size_t mapped = (size + 4095) / 4096 * 4096;
        // Host-type memory may be written through its pointer (scalars of a graph), so it is writable but unreserved;
        // a card's memory never is: PROT_NONE costs nothing at any size and proves that nobody looks.
        const int access = type_is_host(type) ? PROT_READ | PROT_WRITE : PROT_NONE;
        void* base       = mmap(nullptr, mapped, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) {
            p->meter.refused_bytes = size;
            return nullptr;
        }
        p->meter.charge(size);
        return ggml_backend_buffer_init(type, dry_buffer_interface(), new DryBuffer{base, mapped, &p->meter, size}, size);
    }
    static const char* registry_name(ggml_backend_reg_t) { return "metered"; }
    static void* no_procedure(ggml_backend_reg_t, const char*) { return nullptr; }
};

MeteredDevice::MeteredDevice(ggml_backend_dev_t behind, Mode mode, size_t granularity_bytes, int thread_count)
    : parts_(std::make_unique<Parts>()) {
    Parts* p                   = parts_.get();
    p->behind                  = behind;
    p->mode                    = mode;
    p->thread_count            = thread_count;
    p->meter.granularity_bytes = std::max<size_t>(1, granularity_bytes);

    using M                        = MeterInterface;
    p->registry                    = {};
    p->registry.api_version        = GGML_BACKEND_API_VERSION;
    p->registry.iface.get_name     = M::registry_name;
    p->registry.iface.get_proc_address = M::no_procedure;

    p->device                       = {};
    p->device.context               = p;
    // A dry backend must not be handed to the real registry's procedures (set_n_threads casts its context).
    p->device.reg                   = mode == Mode::dry ? &p->registry : ggml_backend_dev_backend_reg(behind);
    p->device.iface.get_name        = M::device_name;
    p->device.iface.get_description = M::device_description;
    p->device.iface.get_memory      = M::device_memory;
    p->device.iface.get_type        = M::device_type;
    p->device.iface.get_props       = M::device_props;
    p->device.iface.get_buffer_type = M::device_buffer_type;
    p->device.iface.supports_op     = M::supports_op;
    p->device.iface.supports_buft   = M::supports_type;
    p->device.iface.offload_op      = M::offload_op;

    p->buffer_type                      = {};
    p->buffer_type.device               = &p->device;
    p->buffer_type.context              = p;
    p->buffer_type.iface.get_name       = M::type_name;
    p->buffer_type.iface.alloc_buffer   = M::allocate;
    p->buffer_type.iface.get_alignment  = M::type_alignment;
    p->buffer_type.iface.get_max_size   = M::type_max_size;
    p->buffer_type.iface.get_alloc_size = M::type_alloc_size;
    p->buffer_type.iface.is_host        = M::type_is_host;
}

MeteredDevice::~MeteredDevice() = default;

ggml_backend_t MeteredDevice::open_backend() {
    if (parts_->mode == Mode::dry) {
        ggml_backend_i interface = {};
        interface.get_name       = dry_backend_name;
        interface.free           = dry_backend_free;
        interface.graph_compute  = dry_compute;
        return new ggml_backend{dry_guid(), interface, &parts_->device, nullptr};
    }
    ggml_backend_t backend = ggml_backend_dev_init(parts_->behind, nullptr);
    if (backend != nullptr) {
        backend->device = &parts_->device;  // so that the engine's default buffer type is the metered one
        vcard_set_thread_count(backend, parts_->thread_count);
    }
    return backend;
}

std::string MeteredDevice::name() const {
    return ggml_backend_dev_name(parts_->behind);
}

bool MeteredDevice::is_cpu() const {
    return ggml_backend_dev_type(parts_->behind) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

Meter& MeteredDevice::meter() {
    return parts_->meter;
}

}  // namespace sdstage
