// The ledger file: what is where. Python (runtime/cards/ledger_file.py) creates the file from the same numbers.
//
// All fields are little-endian and naturally aligned; every number is an unsigned 64-bit word unless it says otherwise,
// so that one store is never torn. Changing anything here means a new `layout_version` on both sides.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vcard {

constexpr uint64_t layout_magic   = 0x4452414356454754ull;  // "TGEVCARD" read as little-endian
constexpr uint32_t layout_version = 1;
constexpr uint32_t cards_max      = 8;
constexpr uint32_t rows_max       = 64;

// Byte-range locks lie far behind the end of the file: they are numbers for the kernel, not places in the file.
constexpr int64_t lock_of_ledger  = 1ll << 20;
constexpr int64_t lock_of_row_0   = lock_of_ledger + 1;

enum header_flag : uint64_t {
    flag_strict = 1,  // device memory is PROT_NONE outside of set, get, copy and compute
    flag_poison = 2,  // fresh device memory is filled with 0xFF, which is NaN in f32, f16 and bf16
    flag_hollow = 4,  // device memory has an address and a size and no content: nothing is stored, nothing is computed
};

struct header {
    uint64_t magic;             // written last by the creator
    uint32_t version;
    uint32_t card_count;
    uint32_t row_count;
    uint32_t unused;
    uint64_t edition;           // odd while a writer is inside; readers retry until they saw one even value twice
    uint64_t allocation_count;  // every attempt on any card, the index that fail_at speaks of
    uint64_t fail_at;           // the attempt that is refused, counted from 1; 0 is off
    uint64_t fail_count;        // how many attempts in a row are refused from there on; 0 means 1
    uint64_t fired_count;       // attempts refused because of fail_at
    uint64_t claim_count;       // rows ever claimed; a claim number names an incarnation of a row
    uint64_t flags;
    uint8_t  rest[4096 - 80];
};

struct card_section {
    char     name[32];
    uint64_t capacity_bytes;
    uint64_t foreign_bytes;             // held by somebody who is no tenant of this ledger
    uint64_t granularity_bytes;         // a charge is rounded up to a multiple of it
    uint64_t alignment_bytes;           // of a tensor inside a buffer
    uint64_t padding_elements;          // a quantised row is padded to a multiple of it; 0 is off
    uint64_t context_bytes;             // charged once per process, at its first stream
    uint64_t pool_bytes;                // charged once per stream, at its first compute
    uint64_t pool_aborts;               // 1: a pool that does not fit aborts the process, as CUDA's does
    uint64_t largest_allocation_bytes;  // 0 is no limit
    uint64_t link_bytes_per_second;     // 0 is no transfer time
    uint64_t peak_bytes;                // most ever held, foreign bytes included
    uint64_t tenants_peak_bytes;        // most ever held by rows alone
    uint64_t alloc_count;
    uint64_t refused_count;
    uint8_t  rest[512 - 32 - 14 * 8];
};

struct holding {                   // what one process holds on one card
    uint64_t used_bytes;           // buffers + context + pools: the one word that counts
    uint64_t peak_bytes;
    uint64_t buffers_bytes;        // the part that the engine asked for by itself
    uint64_t buffers_peak_bytes;
    uint64_t context_bytes;
    uint64_t pool_bytes;
    uint64_t pinned_bytes;         // host memory, not charged to the card
    uint64_t alloc_count;
    uint64_t refused_count;
    uint64_t rest[7];
};

struct row {                       // one process
    int64_t  pid;
    uint64_t claim;                // 0: never used
    uint64_t ended;                // 1: somebody saw that its process is gone
    uint64_t unused;
    char     label[48];
    uint8_t  rest[128 - 32 - 48];
    holding  cards[cards_max];
};

struct ledger_file {
    struct header header;
    card_section  cards[cards_max];
    row           rows[rows_max];
};

static_assert(sizeof(header) == 4096 && offsetof(header, edition) == 24 && offsetof(header, flags) == 72, "header");
static_assert(sizeof(card_section) == 512 && offsetof(card_section, refused_count) == 136, "card section");
static_assert(sizeof(holding) == 128 && offsetof(row, label) == 32 && offsetof(row, cards) == 128, "row");
static_assert(sizeof(row) == 1152 && sizeof(ledger_file) == 81920, "file");

}  // namespace vcard
