// The registry: the cards this process is attached to, behind the door of vcard.h.
//
// Owns attaching, the refusal of a host compiled apart, and what a host may ask by name. One ledger per process.
#include "vcard.h"

#include "backend.hpp"
#include "device.hpp"

#include <cstring>
#include <vector>

namespace vcard {

namespace {

// What this process attached. Leaked on purpose: engines free buffers from static destructors.
struct registry {
    std::mutex                         mutex;
    std::unique_ptr<ledger>            books;
    std::vector<std::unique_ptr<card>> cards;
    ggml_backend_reg                   reg = {};
};

registry & attached() {
    static auto * instance = new registry;
    return *instance;
}

const char * registry_name(ggml_backend_reg_t) {
    return "VCARD";
}

size_t registry_count(ggml_backend_reg_t) {
    return attached().cards.size();
}

ggml_backend_dev_t registry_device(ggml_backend_reg_t, size_t index) {
    return &attached().cards[index]->device;
}

const char * build_id_text() {
    static const std::string text = vcard_build_id();
    return text.c_str();
}

// What a host that loaded this as a plugin can ask for by name.
void * registry_address(ggml_backend_reg_t, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(vcard_set_thread_count);
    }
    if (strcmp(name, "vcard_granularity") == 0) {
        return reinterpret_cast<void *>(vcard_granularity);
    }
    if (strcmp(name, "vcard_context_bytes") == 0) {
        return reinterpret_cast<void *>(vcard_context_bytes);
    }
    if (strcmp(name, "vcard_pool_bytes") == 0) {
        return reinterpret_cast<void *>(vcard_pool_bytes);
    }
    if (strcmp(name, "vcard_build_id") == 0) {
        return reinterpret_cast<void *>(build_id_text);
    }
    return nullptr;
}

void describe_cards(registry & into) {
    into.reg.api_version            = GGML_BACKEND_API_VERSION;
    into.reg.iface.get_name         = registry_name;
    into.reg.iface.get_device_count = registry_count;
    into.reg.iface.get_device       = registry_device;
    into.reg.iface.get_proc_address = registry_address;
    for (uint32_t i = 0; i < into.books->card_count(); i++) {
        auto made         = std::make_unique<card>();
        made->books       = into.books.get();
        made->index       = i;
        made->name        = std::string(made->section().name, strnlen(made->section().name, sizeof made->section().name));
        made->pinned_name = made->name + "_Host";
        made->description = "virtual card in host memory";
        describe_device(*made, &into.reg);
        into.cards.push_back(std::move(made));
    }
}

// What the linked library says of itself against what this backend was compiled with.
bool library_fits(std::string * error) {
    // ggml's private header in front of each tensor (struct ggml_object in ggml.c): two sizes, a pointer, an enum, padding.
    constexpr size_t object_bytes = 32;
    const size_t     linked_bytes = ggml_tensor_overhead() - object_bytes;
    if (linked_bytes != sizeof(ggml_tensor)) {
        *error = "the virtual card was compiled for tensors of " + std::to_string(sizeof(ggml_tensor)) +
                 " bytes, the ggml library in this process has " + std::to_string(linked_bytes) +
                 ": GGML_MAX_NAME or the version differs; build both from the same tree";
        return false;
    }
#ifdef VCARD_GGML_VERSION
    if (strcmp(VCARD_GGML_VERSION, ggml_version()) != 0) {
        *error = std::string("the virtual card was compiled for ggml ") + VCARD_GGML_VERSION +
                 ", the library in this process is " + ggml_version() + "; build both from the same tree";
        return false;
    }
#endif
    return true;
}

}  // namespace

}  // namespace vcard

std::string vcard_build_id() {
    return vcard_host_build_id();
}

namespace {

ggml_backend_reg_t attach(const std::string & path, bool hollow, const std::string & host_build_id, std::string * error) {
    vcard::registry &           mine = vcard::attached();
    std::lock_guard<std::mutex> guard(mine.mutex);
    if (host_build_id != vcard_build_id()) {
        *error = "host and virtual card were compiled apart: the host has [" + host_build_id + "], the card has [" +
                 vcard_build_id() + "]; build both from the same tree";
        return nullptr;
    }
    if (!vcard::library_fits(error)) {
        return nullptr;
    }
    if (mine.books) {
        if (!hollow && mine.books->path() == path) {
            return &mine.reg;
        }
        *error = "this process is attached to the ledger " + mine.books->path() + " already and cannot attach to " + path;
        return nullptr;
    }
    mine.books = hollow ? vcard::ledger::hollow(path, error) : vcard::ledger::open(path, error);
    if (!mine.books) {
        return nullptr;
    }
    vcard::describe_cards(mine);
#ifndef VCARD_PLUGIN
    ggml_backend_register(&mine.reg);  // a plugin's registry is registered by ggml itself
#endif
    return &mine.reg;
}

}  // namespace

ggml_backend_reg_t vcard_attach_checked(const char * path, const std::string & host_build_id, std::string * error) {
    return attach(path, false, host_build_id, error);
}

ggml_backend_reg_t vcard_attach_hollow_checked(const char * like, const std::string & host_build_id, std::string * error) {
    return attach(like, true, host_build_id, error);
}

ggml_backend_reg_t vcard_attached() {
    vcard::registry &           mine = vcard::attached();
    std::lock_guard<std::mutex> guard(mine.mutex);
    return mine.books ? &mine.reg : nullptr;
}

bool is_vcard(ggml_backend_dev_t device) {
    return vcard::card_behind(device) != nullptr;
}

size_t vcard_granularity(ggml_backend_dev_t device) {
    const vcard::card * card = vcard::card_behind(device);
    return card != nullptr ? card->section().granularity_bytes : 1;
}

size_t vcard_context_bytes(ggml_backend_dev_t device) {
    const vcard::card * card = vcard::card_behind(device);
    return card != nullptr ? card->section().context_bytes : 0;
}

size_t vcard_pool_bytes(ggml_backend_dev_t device) {
    const vcard::card * card = vcard::card_behind(device);
    return card != nullptr ? card->section().pool_bytes : 0;
}

void vcard_set_thread_count(ggml_backend_t stream, int thread_count) {
    if (stream != nullptr && is_vcard(ggml_backend_get_device(stream))) {
        vcard::set_thread_count(stream, thread_count);
    }
}

void vcard_set_label(const std::string & label) {
    vcard::registry &           mine = vcard::attached();
    std::lock_guard<std::mutex> guard(mine.mutex);
    if (mine.books) {
        mine.books->set_label(label);
    }
}
