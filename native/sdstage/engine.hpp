// Engine: an opened checkpoint as tidegate sees it: components that come and go, stages, predictions.
// Decides nothing about memory: it does what it is told, counts, and reports.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "instance.hpp"
#include "meter.hpp"
#include "types.hpp"

namespace sdstage {

// What a stage needs, counted on a dry run of the engine's own code; in bytes.
struct Footprint {
    int64_t weights_bytes   = 0;  // of the component, where they rest
    int64_t compute_bytes   = 0;  // everything else that is allocated at the peak
    int64_t card_peak_bytes = 0;
    int64_t ram_peak_bytes  = 0;
};

struct StageBytes {
    int64_t card_bytes = 0, card_peak_bytes = 0, ram_bytes = 0, ram_peak_bytes = 0;
};

class Engine {
public:
    // `device` is a name from devices(); granularity_bytes is what the card rounds each allocation up to (0: ask it).
    Engine(Files files, Options options, const std::string& device, size_t granularity_bytes);
    ~Engine();

    const ModelFacts& facts() const { return facts_; }
    const std::string& device() const { return device_name_; }

    void load(Component component, Placement placement, int64_t budget_bytes, bool encoder);
    void release(Component component);
    std::map<Component, Placement> loaded() const;

    Arrays encode(const Request& request);
    Array encode_image(const Request& request, const Pixels& image, int tile, const Progress& progress);
    Array denoise(const Request& request, const Arrays& embeddings, const Array* init_latent, const TapeFile& tape,
                  const Progress& progress);
    // Why the tape of the last denoise() could not be kept, or empty.
    std::string tape_error() const;
    Pixels decode(const Request& request, const Array& latent, int tile, const Progress& progress);

    void check(const Request& request) const;
    Footprint predict(Stage stage, const Request& request, Placement placement, int tile, int64_t budget_bytes);
    StageBytes bytes() const;
    void reset_peaks();

private:
    struct Loaded {
        Placement placement;
        bool encoder;
        std::unique_ptr<Instance> instance;
    };

    const Arrays& dry_embeddings(const Request& request);
    Instance& ready(Component component, bool encoder);
    void demand_component(Component component) const;
    size_t granularity_of(ggml_backend_dev_t device) const;

    Files files_;
    Options options_;
    std::string device_name_;
    size_t granularity_bytes_;
    ggml_backend_dev_t card_device_ = nullptr;
    ggml_backend_dev_t cpu_device_  = nullptr;
    // The devices outlive the instances: members are destroyed in reverse order.
    std::unique_ptr<MeteredDevice> card_, ram_;
    std::shared_ptr<ParsedHeaders> headers_;
    std::unique_ptr<MeteredDevice> facts_device_;
    std::unique_ptr<Instance> facts_instance_;
    ModelFacts facts_;
    std::map<Component, Loaded> loaded_;
    std::optional<Request> dry_request_;
    Arrays dry_embeddings_;
    std::string tape_error_;
};

// The engine keeps process-wide state (callbacks, the hooks' scope): one call at a time, whoever calls.
std::mutex& engine_lock();

}  // namespace sdstage
