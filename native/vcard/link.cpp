#include "link.hpp"

#include <algorithm>
#include <thread>

namespace vcard {

void link::carry(uint64_t bytes, uint64_t bytes_per_second) {
    using clock = std::chrono::steady_clock;
    if (bytes_per_second == 0) {
        return;
    }
    const double      seconds  = static_cast<double>(bytes) / static_cast<double>(bytes_per_second);
    const auto        duration = std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(seconds));
    clock::time_point done;
    {
        std::lock_guard<std::mutex> guard(mutex_);
        busy_until_ = std::max(busy_until_, clock::now()) + duration;
        done        = busy_until_;
    }
    // A sleep costs some fifty microseconds by itself: small transfers run up a debt that a later one pays.
    if (done - clock::now() > std::chrono::milliseconds(1)) {
        std::this_thread::sleep_until(done);
    }
}

}  // namespace vcard
