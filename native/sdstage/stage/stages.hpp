// StagedInstance: the engine's image pipeline cut at its seams. Included by instance.cpp inside its namespaces; each
// stage repeats exactly the part of generate_image() that belongs to it, in its order, because the random numbers a
// stage draws depend on what was drawn before.
//
// Where the stock function would go on with what a failed part left behind, the stage throws instead.

// Installs the engine's progress and preview callbacks for one call and takes them away again.
class ProgressGuard {
public:
    explicit ProgressGuard(const Progress& progress) : progress_(progress) {
        sd_set_progress_callback(&ProgressGuard::on_step, this);
        if (progress_) {
            sd_set_preview_callback(&ProgressGuard::on_preview, PREVIEW_PROJ, 1, true, false, this);
        }
    }
    ~ProgressGuard() {
        // A callback stays installed, and does nothing: without any the engine prints a progress bar.
        sd_set_progress_callback([](int, int, float, void*) {}, nullptr);
        sd_set_preview_callback(nullptr, PREVIEW_NONE, 1, false, false, nullptr);
    }
    ProgressGuard(const ProgressGuard&)            = delete;
    ProgressGuard& operator=(const ProgressGuard&) = delete;

private:
    static void on_step(int step, int steps, float, void* data) {
        auto* self = static_cast<ProgressGuard*>(data);
        if (self->progress_ && !self->progress_(step, steps, self->preview_)) {
            throw Cancelled("cancelled at step " + std::to_string(step) + " of " + std::to_string(steps));
        }
    }
    static void on_preview(int, int count, sd_image_t* frames, bool, void* data) {
        auto* self = static_cast<ProgressGuard*>(data);
        if (count < 1 || frames == nullptr || frames[0].data == nullptr) {
            return;
        }
        const sd_image_t& frame = frames[0];
        self->preview_.width    = static_cast<int>(frame.width);
        self->preview_.height   = static_cast<int>(frame.height);
        self->preview_.rgb.assign(frame.data, frame.data + size_t{frame.width} * frame.height * frame.channel);
    }

    const Progress& progress_;
    Pixels preview_;
};

const Progress no_progress;

class StagedInstance : public Instance {
public:
    StagedInstance(const Files& files, const Options& options, const Seat& seat, std::shared_ptr<ParsedHeaders> headers)
        : files_(files), options_(options), headers_(std::move(headers)) {
        scope_.runtime      = seat.runtime;
        scope_.ram          = seat.ram;
        scope_.text_encoder = seat.text_encoder;
        context_.sd         = &engine_;
    }

    const Files& files() const { return files_; }
    ParsedHeaders* headers() { return headers_.get(); }
    StableDiffusionGGML* engine() { return &engine_; }
    Scope& scope() { return scope_; }

    void adopt(std::shared_ptr<HeaderLoader> loader) {
        loader_ = std::move(loader);
        engine_.tensors.erase("alphas_cumprod");  // it pointed into a context that lived only during opening
    }

    ModelFacts facts() const override {
        auto* engine = const_cast<StableDiffusionGGML*>(&engine_);
        ModelFacts facts;
        facts.family          = model_version_to_str[engine->version];
        facts.latent_channels = engine->get_latent_channel();
        facts.latent_factor   = engine->get_vae_scale_factor();
        facts.size_multiple   = engine->get_vae_scale_factor() * engine->get_diffusion_model_down_factor();
        facts.default_sampler = sample_method_to_str[sd_get_default_sample_method(&context_)];
        facts.has_taesd       = !files_.taesd.empty();
        for (const auto& [name, storage] : loader_->get_tensor_storage_map()) {
            const char* component = component_of(name);
            if (component != nullptr) {
                ComponentFacts& c = facts.components[component];
                c.tensor_count += 1;
                c.file_bytes += storage.nbytes_to_read();
                c.types[ggml_type_name(storage.type)] += 1;
            }
        }
        return facts;
    }

    void check(const Request& r) const override {
        auto* engine       = const_cast<StableDiffusionGGML*>(&engine_);
        const int multiple = engine->get_vae_scale_factor() * engine->get_diffusion_model_down_factor();
        if (r.width <= 0 || r.height <= 0 || r.width % multiple != 0 || r.height % multiple != 0) {
            throw InvalidRequest("width and height must be positive multiples of " + std::to_string(multiple) + ", not " +
                                 std::to_string(r.width) + "x" + std::to_string(r.height));
        }
        if (int64_t{r.width} * r.height > pixels_max) {
            throw InvalidRequest("at most " + std::to_string(pixels_max) + " pixels are possible");
        }
        if (r.steps < 1 || r.steps > steps_max) {
            throw InvalidRequest("steps must be between 1 and " + std::to_string(steps_max) + ", not " + std::to_string(r.steps));
        }
        if (r.seed < 0) {
            throw InvalidRequest("the seed must not be negative; choose a random one beforehand");
        }
        if (!r.sampler.empty() && str_to_sample_method(r.sampler.c_str()) == SAMPLE_METHOD_COUNT) {
            throw InvalidRequest("'" + r.sampler + "' is no sampler");
        }
        if (!r.scheduler.empty() && str_to_scheduler(r.scheduler.c_str()) == SCHEDULER_COUNT) {
            throw InvalidRequest("'" + r.scheduler + "' is no scheduler");
        }
    }

    void allocate(Component component) override {
        ScopeGuard guard(scope_);
        const auto tensors = tensors_of(component);
        if (tensors.empty()) {
            throw InvalidModel(std::string("the files hold no ") + component_name(component));
        }
        scope_.runtime->meter().refused_bytes = 0;
        switch (component) {
            case Component::text_encoder: engine_.cond_stage_model->alloc_params_buffer(); break;
            case Component::diffusion: engine_.diffusion_model->alloc_params_buffer(); break;
            case Component::vae: engine_.first_stage_model->alloc_params_buffer(); break;
        }
        // The engine ignores a refused allocation; its loader would then write through a null pointer.
        for (const auto& [name, tensor] : tensors) {
            if (tensor->data == nullptr) {
                fail(std::string("the weights of the ") + component_name(component) + " do not fit");
            }
        }
    }

    void read(Component component) override {
        ScopeGuard guard(scope_);
        ProgressGuard quiet(no_progress);
        auto tensors = tensors_of(component);
        std::set<std::string> found;
        std::string wrong_shape;
        std::mutex lock;  // the engine's loader calls back from several threads
        auto place = [&](const TensorStorage& storage, ggml_tensor** destination) -> bool {
            auto entry = tensors.find(storage.name);
            if (entry == tensors.end()) {
                return true;
            }
            std::lock_guard<std::mutex> hold(lock);
            found.insert(storage.name);
            if (!std::equal(storage.ne, storage.ne + GGML_MAX_DIMS, entry->second->ne)) {
                wrong_shape = storage.name + " has shape " + shape_text(storage.ne) + " where the model needs " +
                              shape_text(entry->second->ne);
                return false;
            }
            *destination = entry->second;
            return true;
        };
        const bool loaded = loader_->load_tensors(place, engine_.n_threads, false);
        if (!wrong_shape.empty()) {
            throw InvalidModel(wrong_shape);
        }
        if (!loaded) {
            throw InvalidModel(std::string("the weights of the ") + component_name(component) + " cannot be read");
        }
        for (const auto& [name, tensor] : tensors) {
            // SD 2.x files leave out the last CLIP layer, which the engine skips by default.
            if (found.count(name) == 0 && name.find("text_model.encoder.layers.23") == std::string::npos) {
                throw InvalidModel("tensor " + name + " is missing");
            }
        }
    }

    Arrays encode(const Request& request) override {
        Call call(*this, request, 0, no_progress);
        ImageGenerationLatents no_images;
        auto embeds = prepare_image_generation_embeds(&context_, &call.parameters, &call.request, &call.plan, &no_images);
        if (!embeds) {
            fail("the prompt could not be encoded");
        }
        demand_finite("the embeddings");
        Arrays arrays;
        put(arrays, "cond", embeds->cond);
        put(arrays, "uncond", embeds->uncond);
        put(arrays, "img_cond", embeds->img_cond);
        put(arrays, "id_cond", embeds->id_cond);
        return arrays;
    }

    Array encode_image(const Request& request, const Pixels& image, int tile, const Progress& progress) override {
        Call call(*this, request, tile, progress);
        sd_image_t view{static_cast<uint32_t>(image.width), static_cast<uint32_t>(image.height), 3,
                        const_cast<uint8_t*>(image.rgb.data())};
        auto pixels = sd_image_to_tensor(view, request.width, request.height);
        auto latent = unwinding([&] { return engine_.encode_first_stage(pixels); });
        if (latent.empty()) {
            fail("the image could not be encoded");
        }
        demand_finite("the latent");
        return to_array(latent);
    }

    Array denoise(const Request& request, const Arrays& embeddings, const Array* init_latent, const TapeFile& tape,
                  const Progress& progress) override {
        for (const auto& [name, array] : embeddings) {
            demand_finite(array, "the embeddings");
        }
        Call call(*this, request, 0, progress);
        auto latents = prepare_image_generation_latents(&context_, &call.parameters, &call.request, &call.plan);
        if (!latents) {
            fail("the latent could not be prepared");
        }
        if (init_latent != nullptr) {
            start_from(*latents, *init_latent, call);
        }
        const SDCondition cond = take(embeddings, "cond"), uncond = take(embeddings, "uncond"),
                          img_cond = take(embeddings, "img_cond"), id_cond = take(embeddings, "id_cond");
        std::shared_ptr<DiffusionModel> model = engine_.diffusion_model;
        std::shared_ptr<TapedModel> taped;
        if (!tape.path.empty()) {
            model = taped = std::make_shared<TapedModel>(model, tape.path, tape.owner);
        }
        engine_.rng->manual_seed(request.seed);
        engine_.sampler_rng->manual_seed(request.seed);
        auto noise  = sd::randn_like<float>(latents->init_latent, engine_.rng);
        auto latent = unwinding([&] {
            return engine_.sample(model, true, latents->init_latent, std::move(noise), cond, uncond, img_cond, id_cond,
                                  latents->control_image, call.request.control_strength, call.request.guidance,
                                  call.plan.eta, call.request.shifted_timestep, call.plan.sample_method,
                                  engine_.is_flow_denoiser(), call.plan.sigmas, call.plan.start_merge_step,
                                  latents->ref_latents, call.request.increase_ref_index, latents->denoise_mask,
                                  sd::Tensor<float>(), 1.f, call.request.cache_params);
        });
        tape_error_ = taped ? taped->tape_error() : "";
        if (latent.empty()) {
            fail("sampling failed");
        }
        demand_finite("a sampling step");
        return to_array(latent);
    }

    Pixels decode(const Request& request, const Array& latent, int tile, const Progress& progress) override {
        Call call(*this, request, tile, progress);
        const Array empty = empty_latent(request);
        if (latent.shape != empty.shape) {
            throw InvalidRequest("the latent does not have the shape of a " + std::to_string(request.width) + "x" +
                                 std::to_string(request.height) + " image");
        }
        // A decoder may swallow them: a ReLU makes 0 of a NaN, tanh 1 of an infinity.
        demand_finite(latent, "the latent");
        ImageVaeAxesGuard axes(&context_, &call.parameters, call.request);
        auto image = unwinding([&] { return engine_.decode_first_stage(to_tensor(latent)); });
        if (image.empty()) {
            fail("the latent could not be decoded");
        }
        demand_finite("the decoded image");
        sd_image_t out = tensor_to_sd_image(image);
        Pixels pixels{static_cast<int>(out.width), static_cast<int>(out.height),
                      {out.data, out.data + size_t{out.width} * out.height * out.channel}};
        free(out.data);
        return pixels;
    }

    const std::string& tape_error() const override { return tape_error_; }

    Array empty_latent(const Request& request) const override {
        return to_array(const_cast<StableDiffusionGGML&>(engine_).generate_init_latent(request.width, request.height));
    }

private:
    static constexpr int64_t pixels_max = 8192 * 8192;
    static constexpr int steps_max      = 1000;

    // What every stage sets up before its own part of generate_image().
    struct Call {
        ScopeGuard scope;
        ProgressGuard progress;
        sd_img_gen_params_t parameters;
        GenerationRequest request;
        SamplePlan plan;

        Call(StagedInstance& self, const Request& r, int tile, const Progress& on_progress)
            : scope(self.scope_),
              progress(on_progress),
              parameters(self.prepared_parameters(r, tile)),
              request(&self.context_, &parameters),
              plan(&self.context_, &parameters, request) {
            self.scope_.non_finite                      = 0;
            self.scope_.runtime->meter().refused_bytes  = 0;
            self.engine_.vae_tiling_params              = parameters.vae_tiling_params;
            self.engine_.rng->manual_seed(request.seed);
            self.engine_.sampler_rng->manual_seed(request.seed);
        }
    };

    sd_img_gen_params_t prepared_parameters(const Request& r, int tile) {
        check(r);
        sd_img_gen_params_t p;
        sd_img_gen_params_init(&p);
        p.prompt          = r.prompt.c_str();
        p.negative_prompt = r.negative.c_str();
        p.clip_skip       = r.clip_skip;
        p.width           = r.width;
        p.height          = r.height;
        p.seed            = r.seed;
        p.batch_count     = 1;
        p.strength        = r.strength;

        p.sample_params.sample_steps                = r.steps;
        p.sample_params.guidance.txt_cfg            = r.cfg;
        p.sample_params.guidance.distilled_guidance = r.guidance;
        p.sample_params.eta                         = r.eta;
        p.sample_params.flow_shift                  = r.flow_shift;
        if (!r.sampler.empty()) {
            p.sample_params.sample_method = str_to_sample_method(r.sampler.c_str());
        }
        if (!r.scheduler.empty()) {
            p.sample_params.scheduler = str_to_scheduler(r.scheduler.c_str());
        }
        p.vae_tiling_params.enabled     = tile > 0;
        p.vae_tiling_params.tile_size_x = tile;
        p.vae_tiling_params.tile_size_y = tile;
        engine_.set_flow_shift(r.flow_shift);  // before the plan: the noise schedule depends on it
        return p;
    }

    // img2img: sampling starts part of the way, as prepare_image_generation_latents() does when it is given the image
    // itself (there it would need the VAE, which has left by now).
    static void start_from(ImageGenerationLatents& latents, const Array& init_latent, Call& call) {
        demand_finite(init_latent, "the initial latent");
        auto latent = to_tensor(init_latent);
        if (latent.shape() != latents.init_latent.shape()) {
            throw InvalidRequest("the initial latent does not have the shape of the requested image");
        }
        latents.init_latent = std::move(latent);
        if (call.request.strength >= 1.f) {
            return;
        }
        size_t encoded = static_cast<size_t>(static_cast<float>(call.plan.sample_steps) * call.request.strength);
        if (encoded == static_cast<size_t>(call.plan.sample_steps)) {
            encoded -= 1;
        }
        const auto first       = call.plan.sigmas.begin() + (call.plan.sample_steps - static_cast<int64_t>(encoded) - 1);
        call.plan.sigmas       = std::vector<float>(first, call.plan.sigmas.end());
        call.plan.sample_steps = static_cast<int>(call.plan.sigmas.size()) - 1;
    }

    // Frees the compute buffers when the engine is left by an exception (a cancelled step, a failed assertion).
    template <typename F>
    auto unwinding(F&& run) -> decltype(run()) {
        try {
            return run();
        } catch (...) {
            engine_.diffusion_model->free_compute_buffer();
            engine_.first_stage_model->free_compute_buffer();
            throw;
        }
    }

    [[noreturn]] void fail(const std::string& what) {
        const size_t refused = scope_.runtime->meter().refused_bytes;
        if (refused > 0) {
            throw OutOfMemory(what + ": " + std::to_string(refused) + " bytes were refused on " + scope_.runtime->name());
        }
        throw EngineError(what);
    }

    void demand_finite(const char* what) const {
        if (scope_.non_finite > 0) {
            throw NotFinite(std::string(what) + " held NaN or infinite values");
        }
    }
    static void demand_finite(const Array& array, const char* what) {
        if (!all_finite(array.floats.data(), array.floats.size())) {
            throw NotFinite(std::string(what) + " held NaN or infinite values");
        }
    }

    std::map<std::string, ggml_tensor*> tensors_of(Component component) {
        std::map<std::string, ggml_tensor*> text, diffusion;
        engine_.cond_stage_model->get_param_tensors(text);
        engine_.diffusion_model->get_param_tensors(diffusion);
        switch (component) {
            case Component::text_encoder: return text;
            case Component::diffusion: return diffusion;
            case Component::vae: break;
        }
        std::map<std::string, ggml_tensor*> vae;
        for (const auto& [name, tensor] : engine_.tensors) {
            if (text.count(name) == 0 && diffusion.count(name) == 0) {
                vae.emplace(name, tensor);
            }
        }
        return vae;
    }

    static const char* component_name(Component component) {
        switch (component) {
            case Component::text_encoder: return "text_encoder";
            case Component::diffusion: return "diffusion model";
            case Component::vae: return "vae";
        }
        return "component";
    }

    static const char* component_of(const std::string& name) {
        if (is_cond_stage_model_name(name)) {
            return "text_encoder";
        }
        if (is_diffusion_model_name(name)) {
            return "diffusion";
        }
        return is_first_stage_model_name(name) || starts_with(name, "tae.") ? "vae" : nullptr;
    }

    static std::string shape_text(const int64_t* extents) {
        std::string text = "[";
        for (int i = GGML_MAX_DIMS - 1; i >= 0; --i) {
            text += std::to_string(extents[i]) + (i > 0 ? ", " : "]");
        }
        return text;
    }

    Files files_;
    Options options_;
    std::shared_ptr<ParsedHeaders> headers_;
    std::shared_ptr<HeaderLoader> loader_;
    Scope scope_;
    StableDiffusionGGML engine_;
    sd_ctx_t context_;
    std::string tape_error_;
};
