#include "backend.hpp"
#include "buffer.hpp"

#include <ggml-impl.h>

#include <algorithm>
#include <thread>

namespace vcard {

namespace {

struct stream {
    card *                 owner;
    ggml_backend_t         cpu;
    std::optional<receipt> pool;
};

stream & stream_in(ggml_backend_t backend) {
    return *static_cast<stream *>(backend->context);
}

ggml_guid_t stream_guid() {
    static ggml_guid guid = {'t', 'i', 'd', 'e', 'g', 'a', 't', 'e', '-', 'v', 'c', 'a', 'r', 'd', '-', '1'};
    return &guid;
}

const char * stream_name(ggml_backend_t backend) {
    return stream_in(backend).owner->name.c_str();
}

void stream_free(ggml_backend_t backend) {
    stream * closing = &stream_in(backend);
    ggml_backend_free(closing->cpu);
    if (closing->pool) {
        closing->owner->books->refund(*closing->pool);
    }
    delete closing;
    delete backend;
}

void stream_set(ggml_backend_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    write_tensor(tensor, data, offset, size);
}

void stream_get(ggml_backend_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    read_tensor(tensor, data, offset, size);
}

// Everything is done when a call returns, so waiting and recording have nothing to do.
void stream_synchronize(ggml_backend_t) {}

void stream_record(ggml_backend_t, ggml_backend_event_t) {}

void stream_wait(ggml_backend_t, ggml_backend_event_t) {}

bool charge_pool(stream & computing) {
    const card_section & section = computing.owner->section();
    if (section.pool_bytes == 0 || computing.pool) {
        return true;
    }
    computing.pool = computing.owner->books->charge(computing.owner->index, charge_kind::pool, section.pool_bytes);
    if (!computing.pool && section.pool_aborts != 0) {
        GGML_ABORT("%s: a pool of %llu bytes does not fit", computing.owner->name.c_str(),
                   static_cast<unsigned long long>(section.pool_bytes));
    }
    return computing.pool.has_value();
}

enum ggml_status stream_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    stream & computing = stream_in(backend);
    if (!charge_pool(computing)) {
        return GGML_STATUS_ALLOC_FAILED;
    }
    if (computing.owner->books->hollow()) {
        return GGML_STATUS_SUCCESS;
    }
    window open;
    return ggml_backend_graph_compute(computing.cpu, graph);
}

ggml_backend_i stream_interface() {
    ggml_backend_i made   = {};
    made.get_name         = stream_name;
    made.free             = stream_free;
    made.set_tensor_async = stream_set;
    made.get_tensor_async = stream_get;
    made.synchronize      = stream_synchronize;
    made.graph_compute    = stream_compute;
    made.event_record     = stream_record;
    made.event_wait       = stream_wait;
    return made;
}

// A context stays until the process ends, whatever it frees: nobody keeps the receipt.
bool charge_context(card & owner) {
    std::lock_guard<std::mutex> guard(owner.context_mutex);
    const uint64_t              bytes = owner.section().context_bytes;
    if (bytes != 0 && !owner.context_is_charged) {
        owner.context_is_charged = owner.books->charge(owner.index, charge_kind::context, bytes).has_value();
        return owner.context_is_charged;
    }
    return true;
}

}  // namespace

ggml_backend_t open_stream(card & owner) {
    ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    if (cpu == nullptr) {
        return nullptr;
    }
    if (!charge_context(owner)) {
        GGML_LOG_ERROR("%s: the context of this process does not fit on %s\n", __func__, owner.name.c_str());
        ggml_backend_free(cpu);
        return nullptr;
    }
    auto * made = new ggml_backend{stream_guid(), stream_interface(), &owner.device, new stream{&owner, cpu, {}}};
    set_thread_count(made, static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    return made;
}

void set_thread_count(ggml_backend_t backend, int thread_count) {
    ggml_backend_t     cpu      = stream_in(backend).cpu;
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu));
    auto               set      = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
    if (set != nullptr) {
        set(cpu, thread_count);
    }
}

}  // namespace vcard
