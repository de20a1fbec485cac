// The tape: every output of the diffusion model, in order, in a file that survives the process.
//
// Sampling is a pure function of (request, embeddings, outputs of the model so far): replaying the recorded outputs
// into the same call brings any sampler back to the very step at which it was interrupted, bit for bit.
//
// File: 16 bytes of magic, 32 bytes of owner (a digest of the request, so that no image goes on from another's tape),
// then records: u32 dimensions, i64 extents (engine order), f32 data, u32 CRC-32 of all of the record before it. A
// record torn by a crash is cut off when the tape is opened; another owner's tape is begun anew. Each record is handed
// to the kernel in one write, which is enough to survive the process; power loss may cost the last steps.
//
// A tape that cannot be opened or written is given up, and sampling goes on: it is the safety net, not the image.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "diffusion_model.hpp"

namespace sdstage {

class Tape {
public:
    Tape(const std::string& path, const std::string& owner) : owner_(owner) {
        owner_.resize(owner_bytes_, '\0');
        file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
        if (file_ < 0) {
            give_up(std::strerror(errno));
        } else {
            start();
        }
    }
    ~Tape() {
        if (file_ >= 0) {
            ::close(file_);
        }
    }
    Tape(const Tape&)            = delete;
    Tape& operator=(const Tape&) = delete;

    // Why nothing more is recorded, or empty.
    const std::string& error() const { return error_; }

    // The next recorded output, or an empty tensor when the recording has ended.
    sd::Tensor<float> replay() {
        std::vector<char> record;
        std::vector<int64_t> shape;
        if (!error_.empty() || recording_ || !read_record(record, shape)) {
            begin_recording();
            return {};
        }
        sd::Tensor<float> output(shape);
        const size_t header = sizeof(uint32_t) + shape.size() * sizeof(int64_t);
        std::memcpy(output.data(), record.data() + header, static_cast<size_t>(output.numel()) * sizeof(float));
        return output;
    }

    void record(const sd::Tensor<float>& output) {
        if (!error_.empty()) {
            return;
        }
        const auto& shape          = output.shape();
        const uint32_t dimensions  = static_cast<uint32_t>(shape.size());
        const size_t data_bytes    = static_cast<size_t>(output.numel()) * sizeof(float);
        const size_t header_bytes  = sizeof(dimensions) + shape.size() * sizeof(int64_t);
        std::vector<char> bytes(header_bytes + data_bytes + sizeof(uint32_t));
        std::memcpy(bytes.data(), &dimensions, sizeof(dimensions));
        std::memcpy(bytes.data() + sizeof(dimensions), shape.data(), shape.size() * sizeof(int64_t));
        std::memcpy(bytes.data() + header_bytes, output.data(), data_bytes);
        const uint32_t crc = crc32(bytes.data(), header_bytes + data_bytes);
        std::memcpy(bytes.data() + header_bytes + data_bytes, &crc, sizeof(crc));
        if (write_all(bytes.data(), bytes.size())) {
            complete_bytes_ += static_cast<off_t>(bytes.size());
        }
    }

private:
    static constexpr char magic_[17]       = "tidegate tape 2\n";
    static constexpr size_t magic_bytes_   = 16;
    static constexpr size_t owner_bytes_   = 32;
    static constexpr off_t header_bytes_   = magic_bytes_ + owner_bytes_;
    static constexpr uint32_t dimensions_max_ = 5;
    static constexpr int64_t extent_max_   = 1 << 20;

    // Nothing more is recorded; what is complete stays, without the torn end.
    void give_up(const std::string& why) {
        error_ = why.empty() ? "unknown error" : why;
        if (file_ >= 0 && recording_) {
            [[maybe_unused]] const int cut = ::ftruncate(file_, complete_bytes_);
        }
    }

    void start() {
        char found[header_bytes_];
        const ssize_t got   = ::pread(file_, found, header_bytes_, 0);
        const bool is_tape  = got >= static_cast<ssize_t>(magic_bytes_) && std::memcmp(found, magic_, magic_bytes_) == 0;
        const bool is_whole = is_tape && got == header_bytes_;
        if (is_whole && std::memcmp(found + magic_bytes_, owner_.data(), owner_bytes_) == 0) {
            ::lseek(file_, header_bytes_, SEEK_SET);
        } else if (got < 0) {
            give_up(std::strerror(errno));
        } else if (!is_tape && got >= static_cast<ssize_t>(magic_bytes_)) {
            give_up("it is another file, which is left alone");
        } else {
            complete_bytes_ = 0;
            begin_recording();
            if (write_all(magic_, magic_bytes_) && write_all(owner_.data(), owner_bytes_)) {
                complete_bytes_ = header_bytes_;
            }
        }
    }

    void begin_recording() {
        if (recording_ || !error_.empty()) {
            return;
        }
        recording_ = true;
        if (::ftruncate(file_, complete_bytes_) != 0 || ::lseek(file_, complete_bytes_, SEEK_SET) < 0) {
            give_up(std::strerror(errno));
        }
    }

    // Reads one whole, undamaged record; false at the end or at a torn or damaged one.
    bool read_record(std::vector<char>& record, std::vector<int64_t>& shape) {
        uint32_t dimensions = 0;
        if (!read_all(&dimensions, sizeof(dimensions)) || dimensions == 0 || dimensions > dimensions_max_) {
            return false;
        }
        shape.resize(dimensions);
        if (!read_all(shape.data(), dimensions * sizeof(int64_t))) {
            return false;
        }
        int64_t count = 1;
        for (int64_t extent : shape) {
            if (extent <= 0 || extent > extent_max_ || count > (int64_t{1} << 32) / extent) {
                return false;
            }
            count *= extent;
        }
        const size_t header_bytes = sizeof(dimensions) + dimensions * sizeof(int64_t);
        const size_t data_bytes   = static_cast<size_t>(count) * sizeof(float);
        if (::lseek(file_, 0, SEEK_CUR) + static_cast<off_t>(data_bytes) > size()) {
            return false;  // torn, or a damaged header that asks for more than there is
        }
        record.resize(header_bytes + data_bytes);
        std::memcpy(record.data(), &dimensions, sizeof(dimensions));
        std::memcpy(record.data() + sizeof(dimensions), shape.data(), dimensions * sizeof(int64_t));
        uint32_t crc = 0;
        if (!read_all(record.data() + header_bytes, data_bytes) || !read_all(&crc, sizeof(crc)) ||
            crc != crc32(record.data(), record.size())) {
            return false;
        }
        complete_bytes_ = ::lseek(file_, 0, SEEK_CUR);
        return true;
    }

    off_t size() const {
        struct stat status {};
        return ::fstat(file_, &status) == 0 ? status.st_size : 0;
    }

    bool read_all(void* into, size_t size) {
        char* at = static_cast<char*>(into);
        while (size > 0) {
            const ssize_t got = ::read(file_, at, size);
            if (got < 0 && errno == EINTR) {
                continue;
            }
            if (got <= 0) {
                return false;
            }
            at += got;
            size -= static_cast<size_t>(got);
        }
        return true;
    }

    bool write_all(const char* from, size_t size) {
        while (size > 0) {
            const ssize_t put = ::write(file_, from, size);
            if (put < 0 && errno == EINTR) {
                continue;
            }
            if (put < 0) {
                give_up(std::strerror(errno));
                return false;
            }
            from += put;
            size -= static_cast<size_t>(put);
        }
        return true;
    }

    static uint32_t crc32(const char* data, size_t size) {
        static const std::array<uint32_t, 256> table = [] {
            std::array<uint32_t, 256> t{};
            for (uint32_t i = 0; i < 256; ++i) {
                uint32_t c = i;
                for (int k = 0; k < 8; ++k) {
                    c = (c & 1) ? 0xEDB88320u ^ (c >> 1) : c >> 1;
                }
                t[i] = c;
            }
            return t;
        }();
        uint32_t crc = 0xFFFFFFFFu;
        for (size_t i = 0; i < size; ++i) {
            crc = table[(crc ^ static_cast<uint8_t>(data[i])) & 0xFF] ^ (crc >> 8);
        }
        return crc ^ 0xFFFFFFFFu;
    }

    std::string owner_, error_;
    int file_             = -1;
    bool recording_       = false;
    off_t complete_bytes_ = header_bytes_;  // header and whole records
};

// A diffusion model that plays the tape to its end and then records what the real one computes.
class TapedModel : public DiffusionModel {
public:
    TapedModel(std::shared_ptr<DiffusionModel> model, const std::string& path, const std::string& owner)
        : model_(std::move(model)), tape_(path, owner) {}

    const std::string& tape_error() const { return tape_.error(); }

    sd::Tensor<float> compute(int threads, const DiffusionParams& parameters) override {
        sd::Tensor<float> output = tape_.replay();
        if (!output.empty()) {
            return output;
        }
        output = model_->compute(threads, parameters);
        if (!output.empty()) {
            tape_.record(output);
        }
        return output;
    }

    std::string get_desc() override { return model_->get_desc(); }
    void alloc_params_buffer() override { model_->alloc_params_buffer(); }
    void free_params_buffer() override { model_->free_params_buffer(); }
    void free_compute_buffer() override { model_->free_compute_buffer(); }
    void get_param_tensors(std::map<std::string, ggml_tensor*>& tensors) override { model_->get_param_tensors(tensors); }
    size_t get_params_buffer_size() override { return model_->get_params_buffer_size(); }
    void set_weight_adapter(const std::shared_ptr<WeightAdapter>& adapter) override { model_->set_weight_adapter(adapter); }
    int64_t get_adm_in_channels() override { return model_->get_adm_in_channels(); }
    void set_flash_attention_enabled(bool enabled) override { model_->set_flash_attention_enabled(enabled); }
    void set_max_graph_vram_bytes(size_t bytes) override { model_->set_max_graph_vram_bytes(bytes); }
    void set_circular_axes(bool x, bool y) override { model_->set_circular_axes(x, y); }

private:
    std::shared_ptr<DiffusionModel> model_;
    Tape tape_;
};

}  // namespace sdstage
