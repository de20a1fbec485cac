// The tensors of a family's components, asked of the engine that will load them: name, type and shape.
#pragma once

#include <string>
#include <vector>

namespace sdstage {

struct TensorShape {
    std::string name;
    std::string type;            // ggml type name the engine prefers without a file
    std::vector<int64_t> shape;  // slowest first, as safetensors has it
};

// family: sd1-tiny, sd15, sdxl, sd3; component: text_encoder, diffusion, vae, taesd. Throws InvalidRequest.
std::vector<TensorShape> architecture(const std::string& family, const std::string& component);

}  // namespace sdstage
