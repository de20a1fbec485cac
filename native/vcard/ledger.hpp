// The ledger: who holds how many bytes of which virtual card, shared by all processes through one mapped file.
//
// Owns charging, refunding and the rows' lives. Buffers are next door in buffer.hpp; what is where in the file: layout.hpp.
//
// Why a SIGKILL at any instant neither loses nor double-counts a byte
//   1. No total is stored anywhere. The bytes on a card are, by definition, its foreign bytes plus `used_bytes` of every
//      row whose byte-range lock is held. A process writes `used_bytes` of no row but its own.
//   2. The kernel drops a row's lock when the last file descriptor of its process goes, which happens after its memory
//      is gone and before it becomes a zombie. From then on the row counts nothing, whatever is written in it.
//   3. A charge commits by one aligned 8-byte store, the last of its order: attempt counters, then peaks, then `used_bytes`.
//      A kill before that store: nothing was charged, and the dead row would not count anyway. A kill after it: as 2.
//      Peaks may therefore include a grant whose owner died within that instant; they are never too small.
//   4. A refund is made after the memory was unmapped: a kill between the two is again case 2.
//   5. Deciding and committing happen under the ledger's own byte-range lock, which the kernel also drops at death. It
//      guards no half-done state: the next owner finds consistent words whatever the last one was doing. `edition`, odd
//      while a writer is inside, only tells readers without a lock to look again; the next writer makes it even.
//   6. A row is claimed under that lock: its own lock first, then zeroes, then pid and label, at last `ended` = 0. Nobody
//      can see another's stale bytes as its own, and a kill in between leaves a row whose lock is free.
// The locks are OFD locks. Their file description is opened apart from the mapping's and closed in forked children, since
// one more reference to it, even from a mapping, would keep a dead process's row alive.
#pragma once

#include "layout.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace vcard {

enum class charge_kind { buffer, context, pool };

// What was charged, kept by its owner until the refund. A forked child may inherit one, but not the bytes behind it.
struct receipt {
    uint32_t    card;
    charge_kind kind;
    uint64_t    bytes;
    uint64_t    incarnation;
};

struct card_memory {
    uint64_t total_bytes;
    uint64_t free_bytes;
};

class ledger {
  public:
    // Maps an existing ledger file and claims a row. On failure returns null and says in one sentence why.
    static std::unique_ptr<ledger> open(const std::string & path, std::string * error);

    // A private ledger of cards of the same kind as those of an existing one, or of CUDA's kind for an empty path: hollow,
    // endless, nobody's neighbour. What an engine would take is what it takes here, and nothing is taken.
    static std::unique_ptr<ledger> hollow(const std::string & like, std::string * error);

    ~ledger();
    ledger(const ledger &)             = delete;
    ledger & operator=(const ledger &) = delete;

    const std::string &  path() const { return path_; }
    uint32_t             card_count() const { return file_->header.card_count; }
    const card_section & card(uint32_t index) const { return file_->cards[index]; }
    bool                 strict() const { return (file_->header.flags & flag_strict) != 0; }
    bool                 poison() const { return (file_->header.flags & flag_poison) != 0; }
    bool                 hollow() const { return (file_->header.flags & flag_hollow) != 0; }

    uint64_t    rounded(uint32_t card, uint64_t bytes) const;
    card_memory memory(uint32_t card);

    // Nothing when the card, or a planted fault, refuses.
    std::optional<receipt> charge(uint32_t card, charge_kind kind, uint64_t bytes);
    void                   refund(const receipt & paid);
    void                   pin(uint32_t card, int64_t bytes);
    void                   set_label(const std::string & label);

  private:
    class writer;

    ledger(std::string path, ledger_file * file, int locks_fd)
        : path_(std::move(path)), file_(file), locks_fd_(locks_fd) {}

    static bool shape_is_valid(const ledger_file & file, const std::string & path, std::string * error);
    static void before_fork();
    static void after_fork_in_parent();
    static void after_fork_in_child();

    bool     claim_row();
    bool     row_is_held(uint32_t index) const;
    uint64_t tenants_bytes(uint32_t card);
    bool     fault_is_due(uint64_t attempt);

    std::string   path_;
    ledger_file * file_;
    std::mutex    mutex_;             // threads of this process share one file description, so OFD locks do not part them
    int           locks_fd_;
    int           row_index_   = -1;
    uint64_t      incarnation_ = 1;   // grows at every fork, so that a child refunds nothing of its parent's
};

}  // namespace vcard
