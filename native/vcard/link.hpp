// The link between host and card: a transfer takes as long as it would over a bus of the ledger's rate.
//
// One link per card and process; transfers queue up behind each other, as on a bus. Between processes the link is not
// shared (stated in docs/explanation/virtual-card.md).
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>

namespace vcard {

class link {
  public:
    void carry(uint64_t bytes, uint64_t bytes_per_second);

  private:
    std::mutex                            mutex_;
    std::chrono::steady_clock::time_point busy_until_{};
};

}  // namespace vcard
