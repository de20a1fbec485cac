// ConditionerSlot: the place of a text encoder in an instance, filled only where the text encoder is what is opened.
//
// Building a conditioner reads its tokenizer's vocabulary, which takes longer than all the rest of opening together;
// an instance for the diffusion model or the VAE never asks it anything.
#pragma once

#include <memory>
#include <utility>

#include "../errors.hpp"
#include "../hooks/scope.hpp"
#include "conditioner.hpp"

namespace sdstage {

template <typename Real>
class ConditionerSlot : public Conditioner {
public:
    template <typename... Arguments>
    explicit ConditionerSlot(Arguments&&... arguments) {
        if (current_scope()->text_encoder) {
            real_ = std::make_unique<Real>(std::forward<Arguments>(arguments)...);
        }
    }

    SDCondition get_learned_condition(int threads, const ConditionerParams& parameters) override {
        if (!real_) {
            throw EngineError("this instance was opened without its text encoder");
        }
        return real_->get_learned_condition(threads, parameters);
    }
    void alloc_params_buffer() override {
        if (real_) real_->alloc_params_buffer();
    }
    void free_params_buffer() override {
        if (real_) real_->free_params_buffer();
    }
    void get_param_tensors(std::map<std::string, ggml_tensor*>& tensors) override {
        if (real_) real_->get_param_tensors(tensors);
    }
    size_t get_params_buffer_size() override { return real_ ? real_->get_params_buffer_size() : 0; }
    void set_max_graph_vram_bytes(size_t bytes) override {
        if (real_) real_->set_max_graph_vram_bytes(bytes);
    }
    void set_flash_attention_enabled(bool enabled) override {
        if (real_) real_->set_flash_attention_enabled(enabled);
    }
    void set_weight_adapter(const std::shared_ptr<WeightAdapter>& adapter) override {
        if (real_) real_->set_weight_adapter(adapter);
    }

private:
    std::unique_ptr<Real> real_;
};

}  // namespace sdstage
