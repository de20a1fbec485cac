// One component of a checkpoint, opened on one device: the engine's context with that component's weights alone.
//
// A component that leaves takes its whole instance along: weights, compute buffers, backend, and with the backend the
// device's scratch pool, which no call of the engine gives back. That is why there is one instance per component and
// not one context for all. Opening costs no file reading after the first (ParsedHeaders) and no memory to speak of.
#pragma once

#include <memory>
#include <string>

#include "hooks/scope.hpp"
#include "types.hpp"

namespace sdstage {

// The headers of all files of a checkpoint, read by the first instance and shared by the next ones.
// Opaque here because it holds the engine's loader (stage/loader.hpp).
struct ParsedHeaders;
std::shared_ptr<ParsedHeaders> no_headers_yet();

struct Seat {
    MeteredDevice* runtime = nullptr;  // where graphs run
    MeteredDevice* ram     = nullptr;  // where streamed weights rest
    bool stream            = false;    // weights rest in RAM and visit the device
    int64_t budget_bytes   = 0;        // stream: aim of the engine's segments; 0 = the whole component at once
    bool vae_encoder       = false;    // open the VAE's encoder too
    bool text_encoder      = false;    // open the text encoder; it takes longest and only its own stage needs it
};

class Instance {
public:
    static std::unique_ptr<Instance> open(const Files& files, const Options& options, const Seat& seat,
                                          std::shared_ptr<ParsedHeaders> headers);
    virtual ~Instance() = default;

    virtual ModelFacts facts() const = 0;
    // Throws InvalidRequest, naming what is wrong, before anything is computed.
    virtual void check(const Request& request) const = 0;

    // Weights: memory first (OutOfMemory), then contents from the files (InvalidModel). A dry run stops after the first.
    virtual void allocate(Component component) = 0;
    virtual void read(Component component)     = 0;

    // The stages. On failure the compute buffers of the call are freed; the weights stay.
    virtual Arrays encode(const Request& request)                                                             = 0;
    virtual Array encode_image(const Request& request, const Pixels& image, int tile, const Progress& progress) = 0;
    virtual Array denoise(const Request& request, const Arrays& embeddings, const Array* init_latent,
                          const TapeFile& tape, const Progress& progress)                                     = 0;
    // Why the tape of the last denoise() could not be kept, or empty.
    virtual const std::string& tape_error() const = 0;
    virtual Pixels decode(const Request& request, const Array& latent, int tile, const Progress& progress)    = 0;
    // An all-zero latent of the request's size, for dry runs.
    virtual Array empty_latent(const Request& request) const = 0;
};

// Names the user may give.
std::vector<std::string> sampler_names();
std::vector<std::string> scheduler_names();

}  // namespace sdstage
