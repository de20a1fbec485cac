// The engine, whole, in this one translation unit: its stage functions are file-local, so the seams are reached by
// including the source and not by changing it. A few names are redirected while it is read, each for one reason:
//   ModelLoader             -> HeaderLoader: opening reads headers only, once (loader.hpp)
//   sd_get_default_backend  -> the device of the current scope (hooks/devices.h)
//   the conditioner classes -> ConditionerSlot: built only where the text encoder is wanted (conditioner_slot.hpp)
// Nothing of the engine's private or protected parts is widened.
#pragma once

// Every header of the engine comes first; its include guards then keep the redirections out of them.
#include "auto_encoder_kl.hpp"
#include "conditioner.hpp"
#include "control.hpp"
#include "denoiser.hpp"
#include "diffusion_model.hpp"
#include "esrgan.hpp"
#include "ggml_extend.hpp"
#include "lora.hpp"
#include "model.h"
#include "name_conversion.h"
#include "pmid.hpp"
#include "rng.hpp"
#include "rng_mt19937.hpp"
#include "rng_philox.hpp"
#include "sample-cache.h"
#include "stable-diffusion.h"
#include "tae.hpp"
#include "upscaler.h"
#include "util.h"
#include "vae.hpp"

#include "conditioner_slot.hpp"
#include "loader.hpp"

#define ModelLoader sdstage::HeaderLoader
#define sd_get_default_backend sdstage::init_default_backend
#define FrozenCLIPEmbedderWithCustomWords sdstage::ConditionerSlot<FrozenCLIPEmbedderWithCustomWords>
#define SD3CLIPEmbedder sdstage::ConditionerSlot<SD3CLIPEmbedder>
#define FluxCLIPEmbedder sdstage::ConditionerSlot<FluxCLIPEmbedder>
#define T5CLIPEmbedder sdstage::ConditionerSlot<T5CLIPEmbedder>
#define LLMEmbedder sdstage::ConditionerSlot<LLMEmbedder>
#define AnimaConditioner sdstage::ConditionerSlot<AnimaConditioner>
#include "stable-diffusion.cpp"
#undef AnimaConditioner
#undef LLMEmbedder
#undef T5CLIPEmbedder
#undef FluxCLIPEmbedder
#undef SD3CLIPEmbedder
#undef FrozenCLIPEmbedderWithCustomWords
#undef sd_get_default_backend
#undef ModelLoader
