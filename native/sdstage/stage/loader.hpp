// HeaderLoader: the engine's model loader, stopped after the headers.
//
// The engine opens a checkpoint by reading headers, renaming tensors, building its runners, and loading all weights.
// Here the headers of a checkpoint are parsed once and shared by every instance; loading is left to the instance,
// component by component.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "../errors.hpp"
#include "model.h"

namespace sdstage {

class HeaderLoader;

struct ParsedHeaders {
    std::shared_ptr<HeaderLoader> loader;  // names converted, no types overridden; null until the first opening
};

class HeaderLoader : public ModelLoader {
public:
    // Set while an instance opens.
    struct Opening {
        ParsedHeaders* headers;
        bool prediction_given;
        std::shared_ptr<HeaderLoader> loader;  // out: the loader as the engine left it, types overridden
    };
    static Opening*& opening() {
        static Opening* current = nullptr;  // one opening at a time: guarded by the engine lock
        return current;
    }

    // What the engine's opening function constructs.
    HeaderLoader() {
        if (opening() != nullptr && opening()->headers->loader) {
            copy_from(*opening()->headers->loader);
        }
    }
    HeaderLoader(const HeaderLoader& other) : ModelLoader() { copy_from(other); }
    HeaderLoader& operator=(const HeaderLoader&) = delete;

    // The following shadow the base class in the engine's opening function.

    bool init_from_file(const std::string& path, const std::string& prefix = "") {
        if (!parsed_ && !ModelLoader::init_from_file(path, prefix)) {
            throw InvalidModel(path + " cannot be read as a model file");
        }
        return true;
    }
    void convert_tensors_name() {
        if (!parsed_) {
            ModelLoader::convert_tensors_name();
            parsed_                    = true;
            opening()->headers->loader = std::make_shared<HeaderLoader>(*this);
        }
    }
    SDVersion get_sd_version() {
        const SDVersion version = ModelLoader::get_sd_version();
        // The engine would find out by running the UNet while opening, which has no weights yet.
        if (sd_version_is_sd2(version) && !opening()->prediction_given) {
            throw InvalidRequest("an SD 2.x file does not say what it predicts; give the prediction, eps or v");
        }
        return version;
    }
    bool load_tensors(std::map<std::string, ggml_tensor*>&, std::set<std::string> = {}, int = 0, bool = false) {
        opening()->loader = std::make_shared<HeaderLoader>(*this);
        return true;
    }
    using ModelLoader::load_tensors;

private:
    // Entry by entry: the engine's ordered map copies its index as it stands, pointing into the list it was copied from.
    void copy_from(const HeaderLoader& other) {
        version_    = other.version_;
        file_paths_ = other.file_paths_;
        parsed_     = other.parsed_;
        for (const auto& [name, storage] : other.tensor_storage_map) {
            tensor_storage_map[name] = storage;
        }
    }

    bool parsed_ = false;
};

}  // namespace sdstage
