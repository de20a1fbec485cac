#include "ledger.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace vcard {

namespace {

// Shared words are read and written as single machine words; the ledger lock orders them between processes.
uint64_t load(const uint64_t & word) {
    return __atomic_load_n(&word, __ATOMIC_RELAXED);
}

void store(uint64_t & word, uint64_t value) {
    __atomic_store_n(&word, value, __ATOMIC_RELAXED);
}

void raise_to(uint64_t & word, uint64_t value) {
    if (load(word) < value) {
        store(word, value);
    }
}

struct flock byte_lock(short type, int64_t start) {
    struct flock lock = {};
    lock.l_type       = type;
    lock.l_whence     = SEEK_SET;
    lock.l_start      = start;
    lock.l_len        = 1;
    return lock;
}

bool lock_wait(int fd, int64_t start) {
    struct flock lock = byte_lock(F_WRLCK, start);
    int          code = 0;
    do {
        code = fcntl(fd, F_OFD_SETLKW, &lock);
    } while (code != 0 && errno == EINTR);
    return code == 0;
}

bool lock_try(int fd, int64_t start) {
    struct flock lock = byte_lock(F_WRLCK, start);
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

void unlock(int fd, int64_t start) {
    struct flock lock = byte_lock(F_UNLCK, start);
    fcntl(fd, F_OFD_SETLK, &lock);
}

// A new file description of the same file, even if its name meanwhile belongs to another one.
int reopen(int fd) {
    char name[32];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    return open(name, O_RDWR | O_CLOEXEC);
}

void copy_name(char * to, size_t size, const std::string & from) {
    memset(to, 0, size);
    memcpy(to, from.data(), std::min(size - 1, from.size()));
}

std::string own_process_name() {
    char name[32] = {};
    int  fd       = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return "";
    }
    ssize_t count = read(fd, name, sizeof name - 1);
    close(fd);
    std::string text(name, count > 0 ? static_cast<size_t>(count) : 0);
    return text.substr(0, text.find('\n'));
}

// Only what makes the kind of the cards is taken over, not who holds what on them.
bool read_kind(const std::string & path, ledger_file & into, std::string * error) {
    const int  fd    = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const bool whole = fd >= 0 && read(fd, &into, sizeof into) == static_cast<ssize_t>(sizeof into);
    if (!whole) {
        *error = "the virtual card's ledger " + path + " cannot be read: " + strerror(errno);
    }
    close(fd);
    memset(into.rows, 0, sizeof into.rows);
    into.header.edition = into.header.claim_count = into.header.allocation_count = into.header.fired_count = 0;
    return whole;
}

// The constants of ggml's CUDA backend and of CUDA's driver.
bool describe_cuda(ledger_file & into) {
    into.header.magic      = layout_magic;
    into.header.version    = layout_version;
    into.header.card_count = 1;
    card_section & card    = into.cards[0];
    copy_name(card.name, sizeof card.name, "VCARD0");
    card.granularity_bytes = 2 << 20;
    card.alignment_bytes   = 128;
    card.padding_elements  = 512;
    return true;
}

// The fork handlers need the one ledger of this process; they are installed once and outlive it harmlessly.
ledger * forking = nullptr;

}  // namespace

// Holds the threads' mutex and the ledger lock, and marks the edition as being written.
class ledger::writer {
  public:
    explicit writer(ledger & owner) : owner_(owner), guard_(owner.mutex_) {
        entered_ = owner_.locks_fd_ >= 0 && lock_wait(owner_.locks_fd_, lock_of_ledger);
        if (!entered_) {
            return;
        }
        // A predecessor that was killed inside has left an odd number: keep it odd, yet let it differ.
        uint64_t edition = load(owner_.file_->header.edition);
        store(owner_.file_->header.edition, edition + (edition % 2 == 0 ? 1 : 2));
        std::atomic_thread_fence(std::memory_order_release);
        entered_ = owner_.row_index_ >= 0 || owner_.claim_row();
        if (!entered_) {
            leave();
        }
    }
    ~writer() {
        if (entered_) {
            leave();
        }
    }
    writer(const writer &)             = delete;
    writer & operator=(const writer &) = delete;

    bool      entered() const { return entered_; }
    holding & own(uint32_t card) { return owner_.file_->rows[owner_.row_index_].cards[card]; }

  private:
    void leave() {
        uint64_t & edition = owner_.file_->header.edition;
        __atomic_store_n(&edition, load(edition) + 1, __ATOMIC_RELEASE);
        unlock(owner_.locks_fd_, lock_of_ledger);
    }

    ledger &                    owner_;
    std::lock_guard<std::mutex> guard_;
    bool                        entered_ = false;
};

// ------------------------------------------------------------------------------------------------ opening and leaving

std::unique_ptr<ledger> ledger::open(const std::string & path, std::string * error) {
    int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        *error = "the virtual card's ledger " + path + " cannot be opened: " + strerror(errno);
        return nullptr;
    }
    struct stat status = {};
    if (fstat(fd, &status) != 0 || static_cast<size_t>(status.st_size) != sizeof(ledger_file)) {
        *error = path + " is " + std::to_string(status.st_size) + " bytes long, a virtual card's ledger has " +
                 std::to_string(sizeof(ledger_file)) + ": it was cut off or is something else; create it anew";
        close(fd);
        return nullptr;
    }
    void *    map   = mmap(nullptr, sizeof(ledger_file), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const int locks = reopen(fd);
    close(fd);
    if (map == MAP_FAILED) {
        *error = "the virtual card's ledger " + path + " cannot be mapped: " + strerror(errno);
        return nullptr;
    }
    auto * file = static_cast<ledger_file *>(map);
    std::unique_ptr<ledger> made(new ledger(path, file, locks));
    if (!shape_is_valid(*file, path, error)) {
        return nullptr;
    }
    if (!writer(*made).entered()) {
        *error = "no row of the virtual card's ledger " + path + " is free: " + std::to_string(file->header.row_count) +
                 " living processes hold them all (or its locks are refused: " + strerror(errno) + ")";
        return nullptr;
    }
    static const int installed = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    forking                    = installed == 0 ? made.get() : nullptr;
    return made;
}

std::unique_ptr<ledger> ledger::hollow(const std::string & like, std::string * error) {
    // More than any machine has, and far from where sums overflow.
    constexpr uint64_t endless_bytes = 1ull << 50;
    auto               copy          = std::make_unique<ledger_file>();
    if (!(like.empty() ? describe_cuda(*copy) : read_kind(like, *copy, error))) {
        return nullptr;
    }
    copy->header.flags     = flag_hollow;
    copy->header.row_count = 1;
    copy->header.fail_at   = 0;
    for (card_section & card : copy->cards) {
        card.capacity_bytes        = endless_bytes;
        card.foreign_bytes         = 0;
        card.context_bytes         = 0;
        card.pool_bytes            = 0;
        card.link_bytes_per_second = 0;
        card.peak_bytes            = 0;
        card.tenants_peak_bytes    = 0;
    }
    const int fd = memfd_create("tidegate-hollow-card", MFD_CLOEXEC);
    if (fd < 0 || write(fd, copy.get(), sizeof(ledger_file)) != static_cast<ssize_t>(sizeof(ledger_file))) {
        *error = std::string("no memory for a hollow card's ledger: ") + strerror(errno);
        close(fd);
        return nullptr;
    }
    std::unique_ptr<ledger> made = open("/proc/self/fd/" + std::to_string(fd), error);
    close(fd);
    return made;
}

ledger::~ledger() {
    if (forking == this) {
        forking = nullptr;
    }
    if (locks_fd_ >= 0) {
        close(locks_fd_);
    }
    munmap(file_, sizeof(ledger_file));
}

bool ledger::shape_is_valid(const ledger_file & file, const std::string & path, std::string * error) {
    const header & head = file.header;
    if (__atomic_load_n(&head.magic, __ATOMIC_ACQUIRE) != layout_magic) {
        *error = path + " is not a virtual card's ledger, or was never finished; create it anew";
        return false;
    }
    if (head.version != layout_version) {
        *error = path + " is a ledger of version " + std::to_string(head.version) + ", this engine reads version " +
                 std::to_string(layout_version) + "; create it anew with the tidegate that belongs to this engine";
        return false;
    }
    if (head.card_count < 1 || head.card_count > cards_max || head.row_count < 1 || head.row_count > rows_max) {
        *error = path + " names " + std::to_string(head.card_count) + " cards and " + std::to_string(head.row_count) +
                 " rows, which no ledger has; create it anew";
        return false;
    }
    for (uint32_t i = 0; i < head.card_count; i++) {
        const card_section & card      = file.cards[i];
        const uint64_t       alignment = card.alignment_bytes;
        if (card.granularity_bytes < 1 || alignment < 1 || (alignment & (alignment - 1)) != 0 || alignment > 4096) {
            *error = path + " gives card " + std::to_string(i) + " a granularity of " +
                     std::to_string(card.granularity_bytes) + " and an alignment of " + std::to_string(alignment) +
                     " bytes; the first must be positive, the second a power of two up to 4096";
            return false;
        }
    }
    return true;
}

void ledger::before_fork() {
    if (forking != nullptr) {
        forking->mutex_.lock();
    }
}

void ledger::after_fork_in_parent() {
    if (forking != nullptr) {
        forking->mutex_.unlock();
    }
}

// The child shares the parent's file description: let go of it, so that the parent's row dies with the parent.
void ledger::after_fork_in_child() {
    if (forking == nullptr) {
        return;
    }
    const int shared    = forking->locks_fd_;
    forking->locks_fd_  = reopen(shared);
    forking->row_index_ = -1;
    forking->incarnation_++;
    close(shared);
    forking->mutex_.unlock();
}

// --------------------------------------------------------------------------------------------------------------- rows

bool ledger::row_is_held(uint32_t index) const {
    if (static_cast<int>(index) == row_index_) {
        return true;
    }
    struct flock lock = byte_lock(F_WRLCK, lock_of_row_0 + index);
    // An answer that fails must not free bytes that may be held.
    return fcntl(locks_fd_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

// Under the ledger lock. Never-used rows first, then the one that ended longest ago: its figures were for later readers.
bool ledger::claim_row() {
    uint32_t best       = rows_max;
    uint64_t best_claim = UINT64_MAX;
    for (uint32_t i = 0; i < file_->header.row_count; i++) {
        const row & candidate = file_->rows[i];
        if (candidate.claim >= best_claim || (candidate.claim != 0 && candidate.ended == 0 && row_is_held(i))) {
            continue;
        }
        best       = i;
        best_claim = candidate.claim;
    }
    if (best == rows_max || !lock_try(locks_fd_, lock_of_row_0 + best)) {
        return false;
    }
    row & mine = file_->rows[best];
    mine.ended = 1;
    memset(mine.cards, 0, sizeof mine.cards);
    mine.pid = getpid();
    copy_name(mine.label, sizeof mine.label, own_process_name());
    store(file_->header.claim_count, load(file_->header.claim_count) + 1);
    store(mine.claim, load(file_->header.claim_count));
    store(mine.ended, 0);
    row_index_ = static_cast<int>(best);
    return true;
}

// Under the ledger lock. Rows of the dead are marked in passing, so that nobody asks the kernel about them again.
uint64_t ledger::tenants_bytes(uint32_t card) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < file_->header.row_count; i++) {
        row & tenant = file_->rows[i];
        if (load(tenant.claim) == 0 || load(tenant.ended) != 0) {
            continue;
        }
        if (!row_is_held(i)) {
            store(tenant.ended, 1);
            continue;
        }
        sum += load(tenant.cards[card].used_bytes);
    }
    return sum;
}

void ledger::set_label(const std::string & label) {
    writer pen(*this);
    if (pen.entered()) {
        copy_name(file_->rows[row_index_].label, sizeof file_->rows[row_index_].label, label);
    }
}

// -------------------------------------------------------------------------------------------------------------- bytes

uint64_t ledger::rounded(uint32_t card, uint64_t bytes) const {
    const uint64_t grain = load(file_->cards[card].granularity_bytes);
    return (bytes + grain - 1) / grain * grain;
}

card_memory ledger::memory(uint32_t card) {
    const uint64_t total = load(file_->cards[card].capacity_bytes);
    writer         pen(*this);
    if (!pen.entered()) {
        return {total, 0};
    }
    const uint64_t used = tenants_bytes(card) + load(file_->cards[card].foreign_bytes);
    return {total, used < total ? total - used : 0};
}

bool ledger::fault_is_due(uint64_t attempt) {
    const uint64_t first = load(file_->header.fail_at);
    const uint64_t count = load(file_->header.fail_count);
    if (first == 0 || attempt < first || attempt - first >= (count == 0 ? 1 : count)) {
        return false;
    }
    store(file_->header.fired_count, load(file_->header.fired_count) + 1);
    return true;
}

std::optional<receipt> ledger::charge(uint32_t index, charge_kind kind, uint64_t bytes) {
    writer pen(*this);
    if (!pen.entered()) {
        return std::nullopt;
    }
    card_section & card    = file_->cards[index];
    holding &      own     = pen.own(index);
    const uint64_t attempt = load(file_->header.allocation_count) + 1;
    store(file_->header.allocation_count, attempt);

    const uint64_t capacity = load(card.capacity_bytes);
    const uint64_t largest  = load(card.largest_allocation_bytes);
    const uint64_t charged  = bytes > capacity ? bytes : rounded(index, bytes);
    const uint64_t tenants  = tenants_bytes(index);
    const uint64_t held     = tenants + load(card.foreign_bytes);
    const bool     planted  = fault_is_due(attempt);
    const bool     too_big  = kind == charge_kind::buffer && largest != 0 && bytes > largest;
    if (planted || too_big || held > capacity || charged > capacity - held) {
        store(own.refused_count, load(own.refused_count) + 1);
        store(card.refused_count, load(card.refused_count) + 1);
        return std::nullopt;
    }
    store(own.alloc_count, load(own.alloc_count) + 1);
    store(card.alloc_count, load(card.alloc_count) + 1);
    uint64_t & part = kind == charge_kind::buffer ? own.buffers_bytes :
                      kind == charge_kind::pool   ? own.pool_bytes : own.context_bytes;
    store(part, load(part) + charged);
    raise_to(own.buffers_peak_bytes, load(own.buffers_bytes));
    raise_to(own.peak_bytes, load(own.used_bytes) + charged);
    raise_to(card.tenants_peak_bytes, tenants + charged);
    raise_to(card.peak_bytes, held + charged);
    store(own.used_bytes, load(own.used_bytes) + charged);  // the commit
    return receipt{index, kind, charged, incarnation_};
}

void ledger::refund(const receipt & paid) {
    if (paid.incarnation != incarnation_) {
        return;
    }
    writer pen(*this);
    if (!pen.entered()) {
        return;
    }
    holding &  own  = pen.own(paid.card);
    uint64_t & part = paid.kind == charge_kind::buffer ? own.buffers_bytes :
                      paid.kind == charge_kind::pool   ? own.pool_bytes : own.context_bytes;
    store(own.used_bytes, load(own.used_bytes) - paid.bytes);
    store(part, load(part) - paid.bytes);
}

void ledger::pin(uint32_t card, int64_t bytes) {
    writer pen(*this);
    if (pen.entered()) {
        uint64_t & pinned = pen.own(card).pinned_bytes;
        store(pinned, load(pinned) + static_cast<uint64_t>(bytes));
    }
}

}  // namespace vcard
