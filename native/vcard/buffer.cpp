#include "buffer.hpp"

#include <ggml-impl.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

namespace vcard {

struct allocation {
    uint64_t number;  // never used twice, as an address may be
    card *   owner;
    void *   base;
    size_t   mapped_bytes;
    receipt  paid;
    int      window_count;
};

namespace {

constexpr unsigned char poison_byte = 0xFF;

// Every allocation of this process, so that a computation can open them all. Leaked on purpose: engines free their last
// buffers from static destructors, whose order against ours is unknown.
struct live_allocations {
    std::mutex                       mutex;
    std::map<uint64_t, allocation *> all;
    uint64_t                         last_number = 0;
};

live_allocations & live() {
    static auto * instance = new live_allocations;
    return *instance;
}

void open_window(allocation & memory) {
    if (memory.window_count++ == 0) {
        mprotect(memory.base, memory.mapped_bytes, PROT_READ | PROT_WRITE);
    }
}

void close_window(allocation & memory) {
    if (--memory.window_count == 0) {
        mprotect(memory.base, memory.mapped_bytes, PROT_NONE);
    }
}

card & card_of(ggml_backend_buffer_type_t type) {
    return *static_cast<card *>(type->context);
}

size_t whole_pages(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}

// ------------------------------------------------------------------------------------------------------ memory buffer

allocation & allocation_in(ggml_backend_buffer_t buffer) {
    return *static_cast<allocation *>(buffer->context);
}

void * memory_base(ggml_backend_buffer_t buffer) {
    return allocation_in(buffer).base;
}

// Unmap first, refund second: bytes are free on the card only when they really are.
void memory_free(ggml_backend_buffer_t buffer) {
    allocation * memory = &allocation_in(buffer);
    {
        std::lock_guard<std::mutex> guard(live().mutex);
        live().all.erase(memory->number);
    }
    munmap(memory->base, memory->mapped_bytes);
    memory->owner->books->refund(memory->paid);
    delete memory;
}

bool is_hollow(ggml_backend_buffer_t buffer) {
    return allocation_in(buffer).owner->books->hollow();
}

void memory_fill(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    if (is_hollow(buffer)) {
        return;
    }
    window open(buffer);
    memset(static_cast<char *>(tensor->data) + offset, value, size);
}

void memory_set(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    if (is_hollow(buffer)) {
        return;
    }
    window open(buffer);
    allocation_in(buffer).owner->carry(size);
    memcpy(static_cast<char *>(tensor->data) + offset, data, size);
}

void memory_get(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    if (is_hollow(buffer)) {
        memset(data, 0, size);
        return;
    }
    window open(buffer);
    allocation_in(buffer).owner->carry(size);
    memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
}

// From card to card only, as CUDA does; ggml copies through set and get when this declines.
bool memory_copy(ggml_backend_buffer_t, const ggml_tensor * from, ggml_tensor * to) {
    allocation * source = allocation_of(buffer_of(from));
    if (source == nullptr || source->owner->books->hollow()) {
        return source != nullptr;
    }
    window open(buffer_of(from), buffer_of(to));
    if (source->owner != allocation_in(buffer_of(to)).owner) {
        source->owner->carry(ggml_nbytes(from));
    }
    memcpy(to->data, from->data, ggml_nbytes(from));
    return true;
}

void memory_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    allocation & memory = allocation_in(buffer);
    if (memory.owner->books->hollow()) {
        return;
    }
    window open(buffer);
    // Untouched pages read as zero: dropping them clears without making memory of a buffer that nobody uses.
    if (value != 0 || madvise(memory.base, memory.mapped_bytes, MADV_DONTNEED) != 0) {
        memset(memory.base, value, buffer->size);
    }
}

ggml_backend_buffer_i memory_interface() {
    ggml_backend_buffer_i made = {};
    made.free_buffer           = memory_free;
    made.get_base              = memory_base;
    made.memset_tensor         = memory_fill;
    made.set_tensor            = memory_set;
    made.get_tensor            = memory_get;
    made.cpy_tensor            = memory_copy;
    made.clear                 = memory_clear;
    return made;
}

// -------------------------------------------------------------------------------------------------- memory buffer type

const char * memory_type_name(ggml_backend_buffer_type_t type) {
    return card_of(type).name.c_str();
}

size_t memory_type_alignment(ggml_backend_buffer_type_t type) {
    return card_of(type).section().alignment_bytes;
}

size_t memory_type_max(ggml_backend_buffer_type_t type) {
    const uint64_t largest = card_of(type).section().largest_allocation_bytes;
    return largest == 0 ? SIZE_MAX : largest;
}

bool memory_type_is_host(ggml_backend_buffer_type_t) {
    return false;  // what makes engines take every path they take on a real card
}

size_t memory_type_size_of(ggml_backend_buffer_type_t type, const ggml_tensor * tensor) {
    const auto elements = static_cast<int64_t>(card_of(type).section().padding_elements);
    size_t     size     = ggml_nbytes(tensor);
    if (elements != 0 && ggml_is_quantized(tensor->type) && tensor->ne[0] % elements != 0) {
        size += ggml_row_size(tensor->type, elements - tensor->ne[0] % elements);
    }
    return size;
}

ggml_backend_buffer_t memory_type_alloc(ggml_backend_buffer_type_t type, size_t size) {
    card &                       owner = card_of(type);
    const std::optional<receipt> paid  = owner.books->charge(owner.index, charge_kind::buffer, size);
    if (!paid) {
        GGML_LOG_ERROR("%s: %zu bytes do not fit on %s\n", __func__, size, owner.name.c_str());
        return nullptr;
    }
    const size_t mapped = whole_pages(size);
    const int    access = owner.books->hollow() ? PROT_NONE : PROT_READ | PROT_WRITE;
    void *       base   = mmap(nullptr, mapped, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        owner.books->refund(*paid);
        GGML_LOG_ERROR("%s: the host gives no %zu bytes for %s\n", __func__, mapped, owner.name.c_str());
        return nullptr;
    }
    if (owner.books->poison()) {
        memset(base, poison_byte, mapped);
    }
    auto * memory = new allocation{0, &owner, base, mapped, *paid, 0};
    {
        std::lock_guard<std::mutex> guard(live().mutex);
        memory->number             = ++live().last_number;
        live().all[memory->number] = memory;
        if (owner.books->strict()) {
            mprotect(base, mapped, PROT_NONE);
        }
    }
    return ggml_backend_buffer_init(type, memory_interface(), memory, size);
}

// ------------------------------------------------------------------------------------------------- pinned host memory

const char * pinned_type_name(ggml_backend_buffer_type_t type) {
    return card_of(type).pinned_name.c_str();
}

void pinned_free(ggml_backend_buffer_t buffer) {
    card & owner = card_of(buffer->buft);
    free(buffer->context);
    owner.books->pin(owner.index, -static_cast<int64_t>(buffer->size));
}

ggml_backend_buffer_t pinned_type_alloc(ggml_backend_buffer_type_t type, size_t size) {
    card & owner = card_of(type);
    void * base  = nullptr;
    if (posix_memalign(&base, static_cast<size_t>(sysconf(_SC_PAGESIZE)), size) != 0) {
        return nullptr;
    }
    owner.books->pin(owner.index, static_cast<int64_t>(size));
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(base, size);
    buffer->buft                 = type;
    buffer->context              = base;
    buffer->iface.free_buffer    = pinned_free;
    return buffer;
}

}  // namespace

// -------------------------------------------------------------------------------------------------------- for neighbours

void describe_memory_type(card & owner) {
    ggml_backend_buffer_type_i & calls = owner.memory_type.iface;
    calls.get_name                     = memory_type_name;
    calls.alloc_buffer                 = memory_type_alloc;
    calls.get_alignment                = memory_type_alignment;
    calls.get_max_size                 = memory_type_max;
    calls.get_alloc_size               = memory_type_size_of;
    calls.is_host                      = memory_type_is_host;
    owner.memory_type.device           = &owner.device;
    owner.memory_type.context          = &owner;
}

void describe_pinned_type(card & owner) {
    owner.pinned_type.iface              = ggml_backend_cpu_buffer_type()->iface;
    owner.pinned_type.iface.get_name     = pinned_type_name;
    owner.pinned_type.iface.alloc_buffer = pinned_type_alloc;
    owner.pinned_type.device             = &owner.device;
    owner.pinned_type.context            = &owner;
}

allocation * allocation_of(ggml_backend_buffer_t buffer) {
    return buffer != nullptr && buffer->iface.get_base == memory_base ? &allocation_in(buffer) : nullptr;
}

ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor) {
    return tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
}

void write_tensor(ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    memory_set(buffer_of(tensor), tensor, data, offset, size);
}

void read_tensor(const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    memory_get(buffer_of(tensor), tensor, data, offset, size);
}

window::window(ggml_backend_buffer_t first, ggml_backend_buffer_t second) {
    for (ggml_backend_buffer_t buffer : {first, second}) {
        allocation * memory = allocation_of(buffer);
        if (memory == nullptr || !memory->owner->books->strict()) {
            continue;
        }
        std::lock_guard<std::mutex> guard(live().mutex);
        open_window(*memory);
        opened_.push_back(memory->number);
    }
}

window::window() {
    std::lock_guard<std::mutex> guard(live().mutex);
    for (const auto & [number, memory] : live().all) {
        if (memory->owner->books->strict()) {
            open_window(*memory);
            opened_.push_back(number);
        }
    }
}

window::~window() {
    if (opened_.empty()) {
        return;
    }
    std::lock_guard<std::mutex> guard(live().mutex);
    for (uint64_t number : opened_) {
        const auto found = live().all.find(number);
        // Another thread may have freed it while this one computed.
        if (found != live().all.end()) {
            close_window(*found->second);
        }
    }
}

}  // namespace vcard
