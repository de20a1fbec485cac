// The engine, whole, in this one translation unit: its stage functions are file-local, so the seams are reached by
// including the source and not by changing it. Two names are redirected while it is read, each for one reason:
//   ModelLoader             -> HeaderLoader: opening reads headers only, once (loader.hpp)
//   sd_get_default_backend  -> the device of the current scope (hooks/devices.h)
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

#include "loader.hpp"

#define ModelLoader sdstage::HeaderLoader
#define sd_get_default_backend sdstage::init_default_backend
#include "stable-diffusion.cpp"
#undef sd_get_default_backend
#undef ModelLoader
