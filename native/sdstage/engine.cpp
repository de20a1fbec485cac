#include "engine.hpp"

#include <algorithm>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "../vcard/vcard.h"
#include "errors.hpp"

namespace sdstage {

namespace {

ggml_backend_dev_t device_named(const std::string& name) {
    ggml_backend_dev_t device = ggml_backend_dev_by_name(name.c_str());
    if (device == nullptr) {
        std::string known;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            known += (i > 0 ? ", " : "") + std::string(ggml_backend_dev_name(ggml_backend_dev_get(i)));
        }
        throw InvalidRequest("there is no device " + name + "; there are: " + known);
    }
    return device;
}

Component component_of(Stage stage) {
    switch (stage) {
        case Stage::encode: return Component::text_encoder;
        case Stage::denoise: return Component::diffusion;
        case Stage::encode_image:
        case Stage::decode: break;
    }
    return Component::vae;
}

const char* name_of(Component component) {
    switch (component) {
        case Component::text_encoder: return "text_encoder";
        case Component::diffusion: return "diffusion";
        case Component::vae: break;
    }
    return "vae";
}

}  // namespace

std::mutex& engine_lock() {
    static std::mutex lock;
    return lock;
}

Engine::Engine(Files files, Options options, const std::string& device, size_t granularity_bytes)
    : files_(std::move(files)), options_(std::move(options)), device_name_(device), granularity_bytes_(granularity_bytes) {
    std::lock_guard<std::mutex> lock(engine_lock());
    card_device_ = device_named(device);
    cpu_device_  = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    card_        = std::make_unique<MeteredDevice>(card_device_, MeteredDevice::Mode::real, granularity_of(card_device_), options_.threads);
    ram_         = std::make_unique<MeteredDevice>(cpu_device_, MeteredDevice::Mode::real, 1, options_.threads);
    headers_     = no_headers_yet();
    // Opened dry on the CPU: whatever the card's state, reading headers must work.
    facts_device_   = std::make_unique<MeteredDevice>(cpu_device_, MeteredDevice::Mode::dry, 1);
    facts_instance_ = Instance::open(files_, options_, {facts_device_.get(), facts_device_.get()}, headers_);
    facts_          = facts_instance_->facts();
}

Engine::~Engine() {
    std::lock_guard<std::mutex> lock(engine_lock());
    loaded_.clear();
    facts_instance_.reset();
}

// Real cards hand out memory in pages of 2 MiB (CUDA's allocation granularity); the virtual card says what it does.
size_t Engine::granularity_of(ggml_backend_dev_t device) const {
    if (granularity_bytes_ > 0) {
        return granularity_bytes_;
    }
    if (is_vcard(device)) {
        return vcard_granularity(device);
    }
    return ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU ? 1 : size_t{2} << 20;
}

void Engine::demand_component(Component component) const {
    if (facts_.components.count(name_of(component)) == 0) {
        throw InvalidModel(std::string("the files hold no ") + name_of(component));
    }
}

void Engine::load(Component component, Placement placement, int64_t budget_bytes, bool encoder) {
    std::lock_guard<std::mutex> lock(engine_lock());
    demand_component(component);
    auto present = loaded_.find(component);
    if (present != loaded_.end()) {
        if (present->second.placement == placement && (present->second.encoder || !encoder)) {
            return;
        }
        loaded_.erase(present);
    }
    MeteredDevice* runtime = placement == Placement::cpu ? ram_.get() : card_.get();
    const Seat seat{runtime, ram_.get(), placement == Placement::stream, budget_bytes, encoder,
                    component == Component::text_encoder};
    auto instance = Instance::open(files_, options_, seat, headers_);
    instance->allocate(component);
    instance->read(component);
    loaded_[component] = Loaded{placement, encoder, std::move(instance)};
}

void Engine::release(Component component) {
    std::lock_guard<std::mutex> lock(engine_lock());
    loaded_.erase(component);
#ifdef __GLIBC__
    // Tables of the tokenizer and scratch of the loading threads lie in arenas, which keep tens of MiB for next time.
    malloc_trim(0);
#endif
}

std::map<Component, Placement> Engine::loaded() const {
    std::lock_guard<std::mutex> lock(engine_lock());
    std::map<Component, Placement> placements;
    for (const auto& [component, entry] : loaded_) {
        placements[component] = entry.placement;
    }
    return placements;
}

Instance& Engine::ready(Component component, bool encoder) {
    auto found = loaded_.find(component);
    if (found == loaded_.end() || (encoder && !found->second.encoder)) {
        throw InvalidRequest(std::string("the ") + name_of(component) + (encoder ? "'s encoder" : "") + " is not loaded");
    }
    return *found->second.instance;
}

Arrays Engine::encode(const Request& request) {
    std::lock_guard<std::mutex> lock(engine_lock());
    return ready(Component::text_encoder, false).encode(request);
}

Array Engine::encode_image(const Request& request, const Pixels& image, int tile, const Progress& progress) {
    std::lock_guard<std::mutex> lock(engine_lock());
    return ready(Component::vae, true).encode_image(request, image, tile, progress);
}

Array Engine::denoise(const Request& request, const Arrays& embeddings, const Array* init_latent, const TapeFile& tape,
                      const Progress& progress) {
    std::lock_guard<std::mutex> lock(engine_lock());
    Instance& instance = ready(Component::diffusion, false);
    tape_error_.clear();
    Array latent = instance.denoise(request, embeddings, init_latent, tape, progress);
    tape_error_  = instance.tape_error();
    return latent;
}

std::string Engine::tape_error() const {
    std::lock_guard<std::mutex> lock(engine_lock());
    return tape_error_;
}

Pixels Engine::decode(const Request& request, const Array& latent, int tile, const Progress& progress) {
    std::lock_guard<std::mutex> lock(engine_lock());
    return ready(Component::vae, false).decode(request, latent, tile, progress);
}

void Engine::check(const Request& request) const {
    std::lock_guard<std::mutex> lock(engine_lock());
    facts_instance_->check(request);
}

// Embeddings of the right shapes, from a dry encode on the side. The last ones are kept: a plan asks for many
// executions of one request.
const Arrays& Engine::dry_embeddings(const Request& request) {
    const auto same = [&](const Request& r) {
        return r.prompt == request.prompt && r.negative == request.negative && r.cfg == request.cfg &&
               r.clip_skip == request.clip_skip && r.width == request.width && r.height == request.height;
    };
    if (!dry_request_ || !same(*dry_request_)) {
        MeteredDevice aside(cpu_device_, MeteredDevice::Mode::dry, 1);
        auto encoder = Instance::open(files_, options_, {&aside, &aside, false, 0, false, true}, headers_);
        encoder->allocate(Component::text_encoder);
        dry_embeddings_ = encoder->encode(request);
        dry_request_    = request;
    }
    return dry_embeddings_;
}

Footprint Engine::predict(Stage stage, const Request& request, Placement placement, int tile, int64_t budget_bytes) {
    std::lock_guard<std::mutex> lock(engine_lock());
    const Component component = component_of(stage);
    demand_component(component);
    const bool on_cpu = placement == Placement::cpu;
    MeteredDevice card(card_device_, MeteredDevice::Mode::dry, granularity_of(card_device_));
    MeteredDevice ram(cpu_device_, MeteredDevice::Mode::dry, 1);
    MeteredDevice& runtime = on_cpu ? ram : card;
    const Seat seat{&runtime, &ram, placement == Placement::stream, budget_bytes, stage == Stage::encode_image,
                    component == Component::text_encoder};

    Request one_step = request;
    one_step.steps   = 1;  // every step needs the same
    int64_t weights  = 0;
    {
        auto instance = Instance::open(files_, options_, seat, headers_);
        instance->allocate(component);
        weights = runtime.meter().live_bytes + (on_cpu ? 0 : ram.meter().live_bytes);
        switch (stage) {
            case Stage::encode: instance->encode(one_step); break;
            case Stage::decode: instance->decode(one_step, instance->empty_latent(one_step), tile, {}); break;
            case Stage::encode_image: {
                const Pixels grey{request.width, request.height,
                                  std::vector<uint8_t>(size_t{3} * static_cast<size_t>(request.width) * static_cast<size_t>(request.height), 128)};
                instance->encode_image(one_step, grey, tile, {});
                break;
            }
            case Stage::denoise: instance->denoise(one_step, dry_embeddings(one_step), nullptr, {}, {}); break;
        }
    }
    Footprint footprint;
    footprint.weights_bytes   = weights;
    footprint.card_peak_bytes = on_cpu ? 0 : card.meter().peak_bytes;
    footprint.ram_peak_bytes  = ram.meter().peak_bytes;
    footprint.compute_bytes   = runtime.meter().peak_bytes - (placement == Placement::stream ? 0 : weights);
    return footprint;
}

StageBytes Engine::bytes() const {
    StageBytes bytes;
    bytes.card_bytes      = card_->meter().live_bytes;
    bytes.card_peak_bytes = card_->meter().peak_bytes;
    bytes.ram_bytes       = ram_->meter().live_bytes;
    bytes.ram_peak_bytes  = ram_->meter().peak_bytes;
    return bytes;
}

void Engine::reset_peaks() {
    std::lock_guard<std::mutex> lock(engine_lock());
    card_->meter().reset_peak();
    ram_->meter().reset_peak();
}

}  // namespace sdstage
