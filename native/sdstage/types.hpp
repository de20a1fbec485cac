// Plain values that cross between the stages (which know the engine) and the module (which knows Python).
// Shapes are in NumPy order (slowest first); the engine's own order is the reverse, the memory is the same.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace sdstage {

enum class Component { text_encoder, diffusion, vae };
enum class Placement { card, stream, cpu };
enum class Stage { encode, encode_image, denoise, decode };

// A float32 or int32 array; exactly one of the two vectors is in use.
struct Array {
    std::vector<int64_t> shape;
    std::vector<float> floats;
    std::vector<int32_t> integers;
    bool is_integer = false;
};
using Arrays = std::map<std::string, Array>;

// 8-bit RGB, row by row.
struct Pixels {
    int width  = 0;
    int height = 0;
    std::vector<uint8_t> rgb;
};

struct Request {
    std::string prompt;
    std::string negative;
    int width      = 512;
    int height     = 512;
    int steps      = 20;
    float cfg      = 7.0f;
    float guidance = 3.5f;  // distilled guidance (Flux)
    int64_t seed   = 42;
    std::string sampler;    // empty: the model's default
    std::string scheduler;  // empty: the model's default
    int clip_skip    = -1;
    float strength   = 0.75f;  // img2img only
    float eta        = INFINITY;  // INFINITY: the sampler's default
    float flow_shift = INFINITY;  // INFINITY: the model's default
};

struct Files {
    std::string model, diffusion_model, clip_l, clip_g, t5xxl, llm, vae, taesd;
};

struct Options {
    bool flash_attention    = true;
    bool direct_convolution = true;
    int threads             = 1;
    std::string weight_type;  // empty: as in the file
    std::string prediction;   // empty: as the engine finds; "eps" or "v" for SD 2.x, whose files do not say
};

struct ComponentFacts {
    int64_t tensor_count = 0;
    int64_t file_bytes   = 0;
    std::map<std::string, int64_t> types;  // ggml type name -> tensors
};

struct ModelFacts {
    std::string family;
    bool has_taesd      = false;
    int latent_channels = 4;
    int latent_factor   = 8;   // pixels per latent pixel
    int size_multiple   = 64;  // width and height must be multiples of it
    std::map<std::string, ComponentFacts> components;
    std::string default_sampler;
};

// Where the outputs of the diffusion model are recorded. `path` empty: nowhere.
struct TapeFile {
    std::string path;
    std::string owner;  // up to 32 bytes; a tape of another owner is not replayed
};

// Called between steps with a projected preview (may be empty). False asks the stage to stop.
using Progress = std::function<bool(int step, int steps, const Pixels& preview)>;

}  // namespace sdstage
