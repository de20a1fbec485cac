// Embeddings between the engine's SDCondition and named arrays: every field of every condition, nothing assumed.
#pragma once

#include <string>

#include "../errors.hpp"
#include "../types.hpp"
#include "conditioner.hpp"

namespace sdstage {

inline std::vector<int64_t> reversed(const std::vector<int64_t>& shape) {
    return {shape.rbegin(), shape.rend()};
}

inline Array to_array(const sd::Tensor<float>& tensor) {
    return {reversed(tensor.shape()), {tensor.data(), tensor.data() + tensor.numel()}, {}, false};
}
inline Array to_array(const sd::Tensor<int32_t>& tensor) {
    return {reversed(tensor.shape()), {}, {tensor.data(), tensor.data() + tensor.numel()}, true};
}

inline sd::Tensor<float> to_tensor(const Array& array) {
    if (array.is_integer) {
        throw InvalidRequest("an array of floats was expected, not of integers");
    }
    sd::Tensor<float> tensor(reversed(array.shape));
    std::copy(array.floats.begin(), array.floats.end(), tensor.data());
    return tensor;
}
inline sd::Tensor<int32_t> to_integer_tensor(const Array& array) {
    if (!array.is_integer) {
        throw InvalidRequest("an array of integers was expected, not of floats");
    }
    sd::Tensor<int32_t> tensor(reversed(array.shape));
    std::copy(array.integers.begin(), array.integers.end(), tensor.data());
    return tensor;
}

inline void put(Arrays& arrays, const std::string& name, const SDCondition& condition) {
    auto put_one = [&](const char* field, const auto& tensor) {
        if (!tensor.empty()) {
            arrays[name + "." + field] = to_array(tensor);
        }
    };
    put_one("c_crossattn", condition.c_crossattn);
    put_one("c_vector", condition.c_vector);
    put_one("c_concat", condition.c_concat);
    put_one("c_t5_ids", condition.c_t5_ids);
    put_one("c_t5_weights", condition.c_t5_weights);
    for (size_t i = 0; i < condition.extra_c_crossattns.size(); ++i) {
        put_one(("extra_c_crossattns." + std::to_string(i)).c_str(), condition.extra_c_crossattns[i]);
    }
}

inline SDCondition take(const Arrays& arrays, const std::string& name) {
    auto find = [&](const std::string& field) -> const Array* {
        auto found = arrays.find(name + "." + field);
        return found == arrays.end() ? nullptr : &found->second;
    };
    auto floats = [&](const std::string& field) {
        const Array* array = find(field);
        return array == nullptr ? sd::Tensor<float>() : to_tensor(*array);
    };
    SDCondition condition;
    condition.c_crossattn = floats("c_crossattn");
    condition.c_vector    = floats("c_vector");
    condition.c_concat    = floats("c_concat");
    if (const Array* ids = find("c_t5_ids")) {
        condition.c_t5_ids = to_integer_tensor(*ids);
    }
    condition.c_t5_weights = floats("c_t5_weights");
    for (size_t i = 0; find("extra_c_crossattns." + std::to_string(i)) != nullptr; ++i) {
        condition.extra_c_crossattns.push_back(floats("extra_c_crossattns." + std::to_string(i)));
    }
    return condition;
}

}  // namespace sdstage
