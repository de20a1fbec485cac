// Instances: opening a checkpoint without its weights, and loading one component into it.
// The stages themselves are in stages.hpp, which belongs to this translation unit (see engine_unit.hpp).
#include "../instance.hpp"

#include <atomic>
#include <mutex>
#include <optional>

#include "../errors.hpp"
#include "../meter.hpp"
#include "conditions.hpp"
#include "engine_unit.hpp"
#include "tape.hpp"

namespace sdstage {

std::shared_ptr<ParsedHeaders> no_headers_yet() {
    return std::make_shared<ParsedHeaders>();
}

std::vector<std::string> sampler_names() {
    return {std::begin(sample_method_to_str), std::end(sample_method_to_str)};
}

std::vector<std::string> scheduler_names() {
    return {std::begin(scheduler_to_str), std::end(scheduler_to_str)};
}

namespace {

#include "stages.hpp"

sd_type_t weight_type_of(const std::string& name) {
    if (name.empty()) {
        return SD_TYPE_COUNT;
    }
    const sd_type_t type = str_to_sd_type(name.c_str());
    if (type == SD_TYPE_COUNT) {
        throw InvalidRequest("'" + name + "' is no weight type the engine knows");
    }
    return type;
}

prediction_t prediction_of(const std::string& name) {
    if (name.empty()) {
        return PREDICTION_COUNT;
    }
    const prediction_t prediction = str_to_prediction(name.c_str());
    if (prediction == PREDICTION_COUNT) {
        throw InvalidRequest("'" + name + "' is no prediction the engine knows; eps or v is usual");
    }
    return prediction;
}

sd_ctx_params_t context_parameters(const Files& files, const Options& options, const Seat& seat) {
    sd_ctx_params_t p;
    sd_ctx_params_init(&p);
    p.model_path              = files.model.c_str();
    p.diffusion_model_path    = files.diffusion_model.c_str();
    p.clip_l_path             = files.clip_l.c_str();
    p.clip_g_path             = files.clip_g.c_str();
    p.t5xxl_path              = files.t5xxl.c_str();
    p.llm_path                = files.llm.c_str();
    p.vae_path                = files.vae.c_str();
    p.taesd_path              = files.taesd.c_str();
    p.n_threads               = options.threads;
    p.wtype                   = weight_type_of(options.weight_type);
    p.prediction              = prediction_of(options.prediction);
    p.flash_attn              = options.flash_attention;
    p.diffusion_flash_attn    = options.flash_attention;
    p.vae_conv_direct         = options.direct_convolution;
    p.diffusion_conv_direct   = options.direct_convolution;
    p.vae_decode_only         = !seat.vae_encoder;
    p.offload_params_to_cpu   = seat.stream;
    p.max_vram                = static_cast<float>(static_cast<double>(seat.budget_bytes) / (1024.0 * 1024.0 * 1024.0));
    p.free_params_immediately = false;  // it leaves tensors pointing at freed memory; an instance leaves whole instead
    return p;
}

void refuse_unsupported(SDVersion version) {
    const std::string family = model_version_to_str[version];
    if (sd_version_supports_video_generation(version)) {
        throw Unsupported(family + " makes videos; tidegate makes images only so far");
    }
    if (sd_version_is_inpaint_or_unet_edit(version)) {
        throw Unsupported(family + " needs a mask or a reference image; inpainting and editing models are not supported yet");
    }
}

}  // namespace

std::unique_ptr<Instance> Instance::open(const Files& files, const Options& options, const Seat& seat,
                                         std::shared_ptr<ParsedHeaders> headers) {
    auto instance = std::make_unique<StagedInstance>(files, options, seat, std::move(headers));
    const sd_ctx_params_t parameters = context_parameters(instance->files(), options, seat);

    HeaderLoader::Opening opening{instance->headers(), !options.prediction.empty(), nullptr};
    HeaderLoader::opening() = &opening;
    struct Reset {
        ~Reset() { HeaderLoader::opening() = nullptr; }
    } reset;
    ScopeGuard guard(instance->scope());
    instance->scope().defer_weights = true;
    const bool opened               = instance->engine()->init(&parameters);
    instance->scope().defer_weights = false;
    if (!opened || !opening.loader) {
        throw InvalidModel("the files hold no model of a family the engine knows");
    }
    refuse_unsupported(instance->engine()->version);
    instance->adopt(opening.loader);
    return instance;
}

}  // namespace sdstage
