// Builds the engine's own models without weights and lists their tensors. Files made from such a list are read by the
// real loader, so no shape is written down a second time.
#include "architecture.hpp"

#include <memory>
#include <optional>

#include "auto_encoder_kl.hpp"
#include "conditioner.hpp"
#include "diffusion_model.hpp"
#include "errors.hpp"
#include "tae.hpp"

namespace sdstage {

namespace {

struct Family {
    const char* name;
    SDVersion version;
};
constexpr Family families[] = {
    {"sd1-tiny", VERSION_SD1_TINY_UNET},
    {"sd15", VERSION_SD1},
    {"sdxl", VERSION_SDXL},
    {"sd3", VERSION_SD3},
};

SDVersion version_of(const std::string& family) {
    for (const Family& f : families) {
        if (family == f.name) {
            return f.version;
        }
    }
    throw InvalidRequest("'" + family + "' is no family with a known architecture; there are sd1-tiny, sd15, sdxl, sd3");
}

// The engine derives depth and parts of some models from the names it finds; these are the least names that say so.
String2TensorStorage hints_for(SDVersion version) {
    String2TensorStorage hints;
    auto say = [&](const std::string& name) { hints[name] = TensorStorage(); };
    if (sd_version_is_sd3(version)) {
        say("model.diffusion_model.joint_blocks.23.x_block.attn.qkv.weight");  // SD3 medium: 24 blocks, no norms on q, k
        say("text_encoders.clip_l.transformer");
        say("text_encoders.clip_g.transformer");
    }
    return hints;
}

std::map<std::string, ggml_tensor*> tensors_of_text_encoder(ggml_backend_t cpu, SDVersion version,
                                                            std::shared_ptr<void>& keep) {
    std::map<std::string, ggml_tensor*> tensors;
    std::shared_ptr<Conditioner> model;
    if (sd_version_is_sd3(version)) {
        model = std::make_shared<SD3CLIPEmbedder>(cpu, false, hints_for(version));
    } else {
        model = std::make_shared<FrozenCLIPEmbedderWithCustomWords>(cpu, false, String2TensorStorage{},
                                                                    std::map<std::string, std::string>{}, version);
    }
    model->get_param_tensors(tensors);
    keep = model;
    return tensors;
}

std::map<std::string, ggml_tensor*> tensors_of_diffusion(ggml_backend_t cpu, SDVersion version, std::shared_ptr<void>& keep) {
    std::map<std::string, ggml_tensor*> tensors;
    std::shared_ptr<DiffusionModel> model;
    if (sd_version_is_sd3(version)) {
        model = std::make_shared<MMDiTModel>(cpu, false, hints_for(version));
    } else {
        model = std::make_shared<UNetModel>(cpu, false, String2TensorStorage{}, version);
    }
    model->get_param_tensors(tensors);
    keep = model;
    return tensors;
}

std::map<std::string, ggml_tensor*> tensors_of_vae(ggml_backend_t cpu, SDVersion version, bool tiny, std::shared_ptr<void>& keep) {
    std::map<std::string, ggml_tensor*> tensors;
    std::shared_ptr<VAE> model;
    if (tiny) {
        model = std::make_shared<TinyImageAutoEncoder>(cpu, false, String2TensorStorage{}, "decoder.layers", false, version);
    } else {
        model = std::make_shared<AutoEncoderKL>(cpu, false, String2TensorStorage{}, "first_stage_model", false, false, version);
    }
    model->get_param_tensors(tensors, tiny ? "tae" : "first_stage_model");
    keep = model;
    return tensors;
}

}  // namespace

std::vector<TensorShape> architecture(const std::string& family, const std::string& component) {
    const SDVersion version = version_of(family);
    std::unique_ptr<ggml_backend, decltype(&ggml_backend_free)> cpu(
        ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr), &ggml_backend_free);
    std::shared_ptr<void> keep;  // the model owns its tensors
    std::map<std::string, ggml_tensor*> tensors;
    if (component == "text_encoder") {
        tensors = tensors_of_text_encoder(cpu.get(), version, keep);
    } else if (component == "diffusion") {
        tensors = tensors_of_diffusion(cpu.get(), version, keep);
    } else if (component == "vae" || component == "taesd") {
        tensors = tensors_of_vae(cpu.get(), version, component == "taesd", keep);
    } else {
        throw InvalidRequest("'" + component + "' is no component; there are text_encoder, diffusion, vae, taesd");
    }
    std::vector<TensorShape> shapes;
    for (const auto& [name, tensor] : tensors) {
        TensorShape entry{name, ggml_type_name(tensor->type), {}};
        for (int i = ggml_n_dims(tensor) - 1; i >= 0; --i) {
            entry.shape.push_back(tensor->ne[i]);
        }
        shapes.push_back(std::move(entry));
    }
    return shapes;
}

}  // namespace sdstage
