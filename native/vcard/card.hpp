// One virtual card as this process sees it: its section of the ledger, its link, its names.
//
// Everything ggml holds a pointer to (names, buffer types, device) lives here, for as long as the process.
#pragma once

#include "ledger.hpp"
#include "link.hpp"

#include <ggml-backend-impl.h>

#include <mutex>
#include <string>

namespace vcard {

struct card {
    ledger *    books = nullptr;
    uint32_t    index = 0;
    std::string name;
    std::string pinned_name;
    std::string description;
    link        bus;

    ggml_backend_device      device      = {};
    ggml_backend_buffer_type memory_type = {};
    ggml_backend_buffer_type pinned_type = {};

    std::mutex context_mutex;
    bool       context_is_charged = false;

    const card_section & section() const { return books->card(index); }
    void                 carry(uint64_t bytes) { bus.carry(bytes, section().link_bytes_per_second); }
};

}  // namespace vcard
