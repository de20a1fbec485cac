// The virtual card's door: everything a host of this backend needs, and nothing else.
//
// `vcard_attach` registers the cards of an existing ledger file with ggml, under the names the ledger gives them. It must
// come before the engine first looks for devices. One ledger per process: a second call with the same path returns the
// same registry, with another path it is refused.
#pragma once

#include "build_id.hpp"

#include <ggml-backend.h>

#include <cstddef>
#include <string>

std::string        vcard_build_id();
ggml_backend_reg_t vcard_attach_checked(const char * ledger_path, const std::string & host_build_id, std::string * error);

// Null, and one sentence in `error`, when the ledger cannot be used or host and card were compiled apart.
static inline ggml_backend_reg_t vcard_attach(const char * ledger_path, std::string * error) {
    return vcard_attach_checked(ledger_path, vcard_host_build_id(), error);
}

// Hollow cards of the kind of those in the ledger `like`, or of CUDA's kind for an empty path: an engine that runs on them
// takes what it would take, and nothing is stored, computed or charged to anybody.
ggml_backend_reg_t vcard_attach_hollow_checked(const char * like, const std::string & host_build_id, std::string * error);

static inline ggml_backend_reg_t vcard_attach_hollow(const char * like, std::string * error) {
    return vcard_attach_hollow_checked(like, vcard_host_build_id(), error);
}

ggml_backend_reg_t vcard_attached();  // the registry of the ledger this process is attached to; null before that

bool   is_vcard(ggml_backend_dev_t device);
size_t vcard_granularity(ggml_backend_dev_t device);    // a buffer is charged rounded up to it; 1 for any other device
size_t vcard_context_bytes(ggml_backend_dev_t device);  // charged at a process's first stream; 0 for any other device
size_t vcard_pool_bytes(ggml_backend_dev_t device);     // charged at a stream's first compute; 0 for any other device
void   vcard_set_thread_count(ggml_backend_t stream, int thread_count);  // does nothing for any other backend
void   vcard_set_label(const std::string & label);      // what outside readers see next to this process's bytes
