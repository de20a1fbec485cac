// The exports that make this backend a plugin which `ggml_backend_load` takes. Compiled into the shared object only.
//
// A plugin is given no arguments, so the ledger's path comes from the environment, unless the host attached it before by
// `vcard_plugin_attach`. Hosts compare `vcard_plugin_build_id` with their own before they load it: what ggml calls next
// already depends on the struct layouts.
#ifdef VCARD_PLUGIN

#include "vcard.h"

#include <ggml-impl.h>

#include <cstdlib>

#define VCARD_EXPORT extern "C" __attribute__((visibility("default")))

VCARD_EXPORT const char * vcard_plugin_build_id() {
    static const std::string text = vcard_build_id();
    return text.c_str();
}

// A host that wants to know why a ledger cannot be used attaches first, by this door; null is success, anything else one
// sentence that is valid until the next call. `ggml_backend_load` then registers what was attached.
VCARD_EXPORT const char * vcard_plugin_attach(const char * path) {
    static std::string error;
    error.clear();
    return vcard_attach(path, &error) != nullptr ? nullptr : error.c_str();
}

// The same with hollow cards of the kind of those in the ledger `like`, or of CUDA's kind for an empty path.
VCARD_EXPORT const char * vcard_plugin_attach_hollow(const char * like) {
    static std::string error;
    error.clear();
    return vcard_attach_hollow(like, &error) != nullptr ? nullptr : error.c_str();
}

VCARD_EXPORT int ggml_backend_score() {
    return vcard_attached() != nullptr || getenv("TIDEGATE_VCARD_LEDGER") != nullptr ? 1 : 0;
}

VCARD_EXPORT ggml_backend_reg_t ggml_backend_init() {
    if (ggml_backend_reg_t attached = vcard_attached()) {
        return attached;
    }
    const char * path = getenv("TIDEGATE_VCARD_LEDGER");
    std::string  error;
    if (path == nullptr) {
        GGML_LOG_ERROR("virtual card: TIDEGATE_VCARD_LEDGER names no ledger\n");
        return nullptr;
    }
    ggml_backend_reg_t made = vcard_attach(path, &error);
    if (made == nullptr) {
        GGML_LOG_ERROR("virtual card: %s\n", error.c_str());
    }
    return made;
}

#endif
