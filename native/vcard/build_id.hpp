// The build id: which ggml a translation unit was compiled against, in one string.
//
// Two ggml trees call their backend API version 2 and lay out its structs differently; a wrong pairing is accepted by
// ggml and crashes later. The string is computed in each translation unit by itself (hence `static`), so that a host and
// this backend can compare what each of them believes.
#pragma once

#include <ggml-backend-impl.h>
#include <ggml.h>

#include <cstddef>
#include <string>

static inline std::string vcard_host_build_id() {
    std::string text = std::string("ggml ") + ggml_version() + " name=" + std::to_string(GGML_MAX_NAME);
    auto        add  = [&text](const char * what, size_t size) { text += std::string(" ") + what + "=" + std::to_string(size); };
    add("tensor", sizeof(struct ggml_tensor));
    add("reg", sizeof(struct ggml_backend_reg));
    add("device", sizeof(struct ggml_backend_device));
    add("backend", sizeof(struct ggml_backend));
    add("buffer", sizeof(struct ggml_backend_buffer));
    add("buffer_type", sizeof(struct ggml_backend_buffer_type));
    add("props", sizeof(struct ggml_backend_dev_props));
    add("compute", offsetof(struct ggml_backend_i, graph_compute));
    return text;
}
