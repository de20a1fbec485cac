#include "device.hpp"
#include "backend.hpp"
#include "buffer.hpp"

#include <ggml-impl.h>

namespace vcard {

namespace {

card & card_in(ggml_backend_dev_t device) {
    return *static_cast<card *>(device->context);
}

ggml_backend_dev_t cpu_device() {
    static ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return device;
}

const char * device_name(ggml_backend_dev_t device) {
    return card_in(device).name.c_str();
}

const char * device_description(ggml_backend_dev_t device) {
    return card_in(device).description.c_str();
}

void device_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    const card_memory memory = card_in(device).books->memory(card_in(device).index);
    *free                    = memory.free_bytes;
    *total                   = memory.total_bytes;
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

// Newer ggml trees ask one thing more; which tree this is compiled in, only its structs know.
template <typename caps> auto claim_mmap_support(caps & of, int) -> decltype(of.mmap_support = true, void()) {}

template <typename caps> void claim_mmap_support(caps &, long) {}

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    props->name        = device_name(device);
    props->description = device_description(device);
    props->type        = device_type(device);
    props->device_id   = nullptr;
    device_memory(device, &props->memory_free, &props->memory_total);
    props->caps                      = {};
    props->caps.async                = true;
    props->caps.host_buffer          = true;
    props->caps.buffer_from_host_ptr = false;
    props->caps.events               = true;
    claim_mmap_support(props->caps, 0);
}

ggml_backend_t device_open_stream(ggml_backend_dev_t device, const char *) {
    return open_stream(card_in(device));
}

ggml_backend_buffer_type_t device_memory_type(ggml_backend_dev_t device) {
    return &card_in(device).memory_type;
}

ggml_backend_buffer_type_t device_pinned_type(ggml_backend_dev_t device) {
    return &card_in(device).pinned_type;
}

bool device_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return ggml_backend_dev_supports_op(cpu_device(), op);
}

bool device_supports_type(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    return type == &card_in(device).memory_type;
}

// Weights in RAM are worth carrying over from 32 rows on: the rule of ggml's CUDA backend.
bool device_offloads_op(ggml_backend_dev_t, const ggml_tensor * op) {
    constexpr int64_t rows_min = 32;
    switch (op->op) {
        case GGML_OP_GET_ROWS:
            return false;
        case GGML_OP_MUL_MAT:
            return op->ne[1] >= rows_min;
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:
            return op->ne[2] >= rows_min;
        default:
            return ggml_nrows(op) >= rows_min;
    }
}

ggml_backend_event_t event_new(ggml_backend_dev_t device) {
    return new ggml_backend_event{device, nullptr};
}

void event_free(ggml_backend_dev_t, ggml_backend_event_t event) {
    delete event;
}

void event_synchronize(ggml_backend_dev_t, ggml_backend_event_t) {}

}  // namespace

void describe_device(card & owner, ggml_backend_reg_t registry) {
    ggml_backend_device_i & calls = owner.device.iface;
    calls.get_name                = device_name;
    calls.get_description         = device_description;
    calls.get_memory              = device_memory;
    calls.get_type                = device_type;
    calls.get_props               = device_props;
    calls.init_backend            = device_open_stream;
    calls.get_buffer_type         = device_memory_type;
    calls.get_host_buffer_type    = device_pinned_type;
    calls.supports_op             = device_supports_op;
    calls.supports_buft           = device_supports_type;
    calls.offload_op              = device_offloads_op;
    calls.event_new               = event_new;
    calls.event_free              = event_free;
    calls.event_synchronize       = event_synchronize;
    owner.device.reg              = registry;
    owner.device.context          = &owner;
    describe_memory_type(owner);
    describe_pinned_type(owner);
}

card * card_behind(ggml_backend_dev_t device) {
    return device != nullptr && device->iface.get_memory == device_memory ? &card_in(device) : nullptr;
}

}  // namespace vcard
