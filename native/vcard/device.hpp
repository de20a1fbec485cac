// The device of a virtual card: what ggml asks a GPU about itself.
#pragma once

#include "card.hpp"

namespace vcard {

void   describe_device(card & owner, ggml_backend_reg_t registry);  // fills owner.device and both buffer types
card * card_behind(ggml_backend_dev_t device);                      // null for any other device

}  // namespace vcard
