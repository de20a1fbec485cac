// The Python module: arguments in, arrays out, the GIL released in between, exceptions by kind.
// Documentation of the API is in tidegate_engines/sdstage.pyi, where editors and type checkers look for it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <thread>

#include "../vcard/vcard.h"
#include "architecture.hpp"
#include "engine.hpp"
#include "errors.hpp"
#include "ggml.h"
#include "log.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace sdstage {
namespace {

template <typename T>
nb::object numpy_array(std::vector<T>&& values, const std::vector<int64_t>& shape) {
    auto* owned = new std::vector<T>(std::move(values));
    nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    const std::vector<size_t> extents(shape.begin(), shape.end());
    return nb::cast(nb::ndarray<nb::numpy, T>(owned->data(), extents.size(), extents.data(), owner));
}

nb::object to_python(Array&& array) {
    return array.is_integer ? numpy_array(std::move(array.integers), array.shape)
                            : numpy_array(std::move(array.floats), array.shape);
}

nb::object to_python(Pixels&& pixels) {
    const std::vector<int64_t> shape{pixels.height, pixels.width, 3};
    return numpy_array(std::move(pixels.rgb), shape);
}

using InArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

Array from_python(const InArray& in, const std::string& name) {
    Array array;
    for (size_t i = 0; i < in.ndim(); ++i) {
        array.shape.push_back(static_cast<int64_t>(in.shape(i)));
    }
    if (in.dtype() == nb::dtype<float>()) {
        const auto* data = static_cast<const float*>(in.data());
        array.floats.assign(data, data + in.size());
    } else if (in.dtype() == nb::dtype<int32_t>()) {
        const auto* data = static_cast<const int32_t*>(in.data());
        array.integers.assign(data, data + in.size());
        array.is_integer = true;
    } else {
        throw InvalidRequest(name + " must be float32 or int32");
    }
    return array;
}

Pixels pixels_from_python(const nb::ndarray<const uint8_t, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>& in) {
    Pixels pixels;
    pixels.height = static_cast<int>(in.shape(0));
    pixels.width  = static_cast<int>(in.shape(1));
    pixels.rgb.assign(in.data(), in.data() + in.size());
    return pixels;
}

template <typename E>
E named(const std::vector<std::pair<const char*, E>>& names, const std::string& name, const char* what) {
    std::string known;
    for (const auto& [key, value] : names) {
        if (name == key) {
            return value;
        }
        known += (known.empty() ? "" : ", ") + std::string(key);
    }
    throw InvalidRequest("'" + name + "' is no " + what + "; there are " + known);
}

const std::vector<std::pair<const char*, Component>> component_names = {
    {"text_encoder", Component::text_encoder}, {"diffusion", Component::diffusion}, {"vae", Component::vae}};
const std::vector<std::pair<const char*, Placement>> placement_names = {
    {"card", Placement::card}, {"stream", Placement::stream}, {"cpu", Placement::cpu}};
const std::vector<std::pair<const char*, Stage>> stage_names = {{"encode", Stage::encode},
                                                                {"encode_image", Stage::encode_image},
                                                                {"denoise", Stage::denoise},
                                                                {"decode", Stage::decode}};

template <typename E>
std::string name_of(const std::vector<std::pair<const char*, E>>& names, E value) {
    for (const auto& [key, candidate] : names) {
        if (candidate == value) {
            return key;
        }
    }
    return "";
}

// The Python callback runs on the calling thread, with the GIL; its exception unwinds through the engine.
Progress progress_from_python(const nb::object& callback) {
    if (callback.is_none()) {
        return {};
    }
    return [callback](int step, int steps, const Pixels& preview) {
        nb::gil_scoped_acquire gil;
        nb::object picture = nb::none();
        if (!preview.rgb.empty()) {
            picture = to_python(Pixels(preview));
        }
        return nb::cast<bool>(callback(step, steps, picture));
    };
}

Files files_from_python(const std::map<std::string, std::string>& given) {
    Files files;
    const std::map<std::string, std::string*> slots = {
        {"model", &files.model},   {"diffusion_model", &files.diffusion_model}, {"clip_l", &files.clip_l},
        {"clip_g", &files.clip_g}, {"t5xxl", &files.t5xxl},                     {"llm", &files.llm},
        {"vae", &files.vae},       {"taesd", &files.taesd}};
    for (const auto& [key, path] : given) {
        auto slot = slots.find(key);
        if (slot == slots.end()) {
            throw InvalidRequest("'" + key + "' is no kind of model file");
        }
        *slot->second = path;
    }
    return files;
}

nb::dict components_of(const ModelFacts& facts) {
    nb::dict components;
    for (const auto& [name, c] : facts.components) {
        nb::dict entry;
        entry["tensor_count"] = c.tensor_count;
        entry["file_bytes"]   = c.file_bytes;
        entry["types"]        = nb::cast(c.types);
        components[name.c_str()] = entry;
    }
    return components;
}

struct Device {
    std::string name, description, kind;
    size_t total_bytes, free_bytes;
};

std::vector<Device> devices() {
    std::vector<Device> found;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto type           = ggml_backend_dev_type(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            continue;  // a faster CPU library, not a memory of its own
        }
        Device d{ggml_backend_dev_name(device), ggml_backend_dev_description(device),
                 type == GGML_BACKEND_DEVICE_TYPE_CPU ? "cpu" : "gpu", 0, 0};
        ggml_backend_dev_memory(device, &d.free_bytes, &d.total_bytes);
        found.push_back(std::move(d));
    }
    return found;
}

std::vector<std::string> attach_virtual_card(const std::string& ledger) {
    std::string error;
    ggml_backend_reg_t registry = vcard_attach(ledger.c_str(), &error);
    if (registry == nullptr) {
        throw InvalidRequest(error);
    }
    std::vector<std::string> names;
    for (size_t i = 0; i < ggml_backend_reg_dev_count(registry); ++i) {
        names.emplace_back(ggml_backend_dev_name(ggml_backend_reg_dev_get(registry, i)));
    }
    return names;
}

std::string engine_build() {
    return std::string(TIDEGATE_ENGINE_SOURCES) + " ggml-" + ggml_version() + "-" + ggml_commit() + " " TIDEGATE_ENGINE_FLAGS;
}

void bind_request(nb::module_& m) {
    nb::class_<Request>(m, "Request")
        .def(
            "__init__",
            [](Request* self, std::string prompt, std::string negative, int width, int height, int steps, float cfg,
               float guidance, int64_t seed, std::string sampler, std::string scheduler, int clip_skip, float strength,
               std::optional<float> eta, std::optional<float> flow_shift) {
                new (self) Request{std::move(prompt), std::move(negative), width, height, steps, cfg, guidance, seed,
                                   std::move(sampler), std::move(scheduler), clip_skip, strength,
                                   eta.value_or(INFINITY), flow_shift.value_or(INFINITY)};
            },
            nb::kw_only(), "prompt"_a = "", "negative"_a = "", "width"_a = 512, "height"_a = 512, "steps"_a = 20,
            "cfg"_a = 7.0f, "guidance"_a = 3.5f, "seed"_a = 42, "sampler"_a = "", "scheduler"_a = "",
            "clip_skip"_a = -1, "strength"_a = 0.75f, "eta"_a = nb::none(), "flow_shift"_a = nb::none())
        .def_ro("prompt", &Request::prompt)
        .def_ro("negative", &Request::negative)
        .def_ro("width", &Request::width)
        .def_ro("height", &Request::height)
        .def_ro("steps", &Request::steps)
        .def_ro("cfg", &Request::cfg)
        .def_ro("guidance", &Request::guidance)
        .def_ro("seed", &Request::seed)
        .def_ro("sampler", &Request::sampler)
        .def_ro("scheduler", &Request::scheduler)
        .def_ro("clip_skip", &Request::clip_skip)
        .def_ro("strength", &Request::strength);
}

void bind_stages(nb::class_<Engine>& checkpoint) {
    checkpoint
        .def("encode",
             [](Engine& self, const Request& request) {
                 Arrays arrays;
                 {
                     nb::gil_scoped_release no_gil;
                     arrays = self.encode(request);
                 }
                 nb::dict result;
                 for (auto& [name, array] : arrays) {
                     result[name.c_str()] = to_python(std::move(array));
                 }
                 return result;
             }, "request"_a)
        .def("encode_image",
             [](Engine& self, const Request& request,
                const nb::ndarray<const uint8_t, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>& rgb, int tile,
                const nb::object& progress) {
                 const Pixels pixels       = pixels_from_python(rgb);
                 const Progress on_progress = progress_from_python(progress);
                 Array latent;
                 {
                     nb::gil_scoped_release no_gil;
                     latent = self.encode_image(request, pixels, tile, on_progress);
                 }
                 return to_python(std::move(latent));
             }, "request"_a, "rgb"_a, nb::kw_only(), "tile"_a = 0, "progress"_a = nb::none())
        .def("decode",
             [](Engine& self, const Request& request, const InArray& latent, int tile, const nb::object& progress) {
                 const Array array          = from_python(latent, "latent");
                 const Progress on_progress = progress_from_python(progress);
                 Pixels pixels;
                 {
                     nb::gil_scoped_release no_gil;
                     pixels = self.decode(request, array, tile, on_progress);
                 }
                 return to_python(std::move(pixels));
             }, "request"_a, "latent"_a, nb::kw_only(), "tile"_a = 0, "progress"_a = nb::none());
}

void bind_denoise(nb::class_<Engine>& checkpoint) {
    checkpoint
        .def("denoise",
             [](Engine& self, const Request& request, const std::map<std::string, InArray>& embeddings,
                const std::optional<InArray>& init_latent, const std::string& tape, const nb::bytes& tape_owner,
                const nb::object& progress) {
                 Arrays arrays;
                 for (const auto& [name, array] : embeddings) {
                     arrays[name] = from_python(array, name);
                 }
                 std::optional<Array> start;
                 if (init_latent) {
                     start = from_python(*init_latent, "init_latent");
                 }
                 const Progress on_progress = progress_from_python(progress);
                 const TapeFile file{tape, {tape_owner.c_str(), tape_owner.size()}};
                 Array latent;
                 {
                     nb::gil_scoped_release no_gil;
                     latent = self.denoise(request, arrays, start ? &*start : nullptr, file, on_progress);
                 }
                 return to_python(std::move(latent));
             }, "request"_a, "embeddings"_a, nb::kw_only(), "init_latent"_a = nb::none(), "tape"_a = "",
             "tape_owner"_a = nb::bytes("", 0), "progress"_a = nb::none())
        .def("tape_error", &Engine::tape_error);
}

void bind_memory(nb::class_<Engine>& checkpoint) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    checkpoint
        .def("load",
             [](Engine& self, const std::string& component, const std::string& placement, int64_t budget_bytes, bool encoder) {
                 self.load(named(component_names, component, "component"), named(placement_names, placement, "placement"),
                           budget_bytes, encoder);
             }, "component"_a, "placement"_a = "card", nb::kw_only(), "budget_bytes"_a = 0, "encoder"_a = false, release())
        .def("release",
             [](Engine& self, const std::string& component) { self.release(named(component_names, component, "component")); },
             "component"_a, release())
        .def("loaded",
             [](const Engine& self) {
                 std::map<std::string, std::string> names;
                 for (const auto& [component, placement] : self.loaded()) {
                     names[name_of(component_names, component)] = name_of(placement_names, placement);
                 }
                 return names;
             })
        .def("predict",
             [](Engine& self, const std::string& stage, const Request& request, const std::string& placement, int tile,
                int64_t budget_bytes) {
                 return self.predict(named(stage_names, stage, "stage"), request,
                                     named(placement_names, placement, "placement"), tile, budget_bytes);
             }, "stage"_a, "request"_a, "placement"_a = "card", nb::kw_only(), "tile"_a = 0, "budget_bytes"_a = 0, release())
        .def("check", &Engine::check, "request"_a, release())
        .def("reset_peaks", &Engine::reset_peaks, release())
        .def("stage_bytes", [](const Engine& self) {
            const StageBytes b = self.bytes();
            return std::map<std::string, int64_t>{{"card_bytes", b.card_bytes}, {"card_peak_bytes", b.card_peak_bytes},
                                                  {"ram_bytes", b.ram_bytes}, {"ram_peak_bytes", b.ram_peak_bytes}};
        });
}

void bind_checkpoint(nb::module_& m) {
    nb::class_<Engine> checkpoint(m, "Checkpoint");
    checkpoint
        .def(
            "__init__",
            [](Engine* self, const std::map<std::string, std::string>& files, const std::string& device,
               bool flash_attention, bool direct_convolution, int threads, const std::string& weight_type,
               const std::string& prediction, size_t granularity_bytes) {
                Options options{flash_attention, direct_convolution, threads, weight_type, prediction};
                if (threads <= 0) {
                    options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
                }
                const Files opened = files_from_python(files);
                nb::gil_scoped_release no_gil;
                new (self) Engine(opened, options, device, granularity_bytes);
            },
            "files"_a, nb::kw_only(), "device"_a = "CPU", "flash_attention"_a = true, "direct_convolution"_a = true,
            "threads"_a = 0, "weight_type"_a = "", "prediction"_a = "", "granularity_bytes"_a = 0)
        .def_prop_ro("family", [](const Engine& self) { return self.facts().family; })
        .def_prop_ro("device", &Engine::device)
        .def_prop_ro("size_multiple", [](const Engine& self) { return self.facts().size_multiple; })
        .def_prop_ro("default_sampler", [](const Engine& self) { return self.facts().default_sampler; })
        .def_prop_ro("components", [](const Engine& self) { return components_of(self.facts()); })
        .def("latent_shape",
             [](const Engine& self, int width, int height) {
                 const ModelFacts& f = self.facts();
                 return nb::make_tuple(f.latent_channels, height / f.latent_factor, width / f.latent_factor);
             }, "width"_a, "height"_a);
    bind_memory(checkpoint);
    bind_stages(checkpoint);
    bind_denoise(checkpoint);
}

void bind_errors(nb::module_& m) {
    auto base = nb::exception<EngineError>(m, "EngineError", PyExc_RuntimeError);
    nb::exception<InvalidModel>(m, "InvalidModel", base.ptr());
    nb::exception<InvalidRequest>(m, "InvalidRequest", base.ptr());
    nb::exception<Unsupported>(m, "Unsupported", base.ptr());
    nb::exception<OutOfMemory>(m, "OutOfMemory", base.ptr());
    nb::exception<NotFinite>(m, "NotFinite", base.ptr());
    nb::exception<Cancelled>(m, "Cancelled", base.ptr());
}

}  // namespace

NB_MODULE(sdstage, m) {
    m.doc() = "stable-diffusion.cpp in stages: encode, denoise, decode, each on the device it is told, counted to the byte";
    bind_errors(m);
    nb::class_<Device>(m, "Device")
        .def_ro("name", &Device::name)
        .def_ro("description", &Device::description)
        .def_ro("kind", &Device::kind)
        .def_ro("total_bytes", &Device::total_bytes)
        .def_ro("free_bytes", &Device::free_bytes);
    nb::class_<Footprint>(m, "Footprint")
        .def_ro("weights_bytes", &Footprint::weights_bytes)
        .def_ro("compute_bytes", &Footprint::compute_bytes)
        .def_ro("card_peak_bytes", &Footprint::card_peak_bytes)
        .def_ro("ram_peak_bytes", &Footprint::ram_peak_bytes);
    bind_request(m);
    bind_checkpoint(m);
    m.def("devices", &devices);
    m.def("attach_virtual_card", &attach_virtual_card, "ledger_path"_a);
    m.def("vcard_build_id", &vcard_build_id);
    m.def("engine_build", &engine_build);
    m.def("samplers", &sampler_names);
    m.def("schedulers", &scheduler_names);
    m.def("architecture", [](const std::string& family, const std::string& component) {
        std::vector<TensorShape> shapes;
        {
            nb::gil_scoped_release no_gil;
            shapes = architecture(family, component);
        }
        nb::list result;
        for (auto& s : shapes) {
            nb::list extents;
            for (int64_t extent : s.shape) extents.append(extent);
            result.append(nb::make_tuple(s.name, s.type, nb::tuple(extents)));
        }
        return result;
    }, "family"_a, "component"_a);
    m.def("set_log_file", &set_log_file, "descriptor"_a);
    quiet_engine();
}

}  // namespace sdstage
