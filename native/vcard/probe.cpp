// vcard_probe: a process on a virtual card, driven line by line over its standard input.
//
// Tests and people use it to hold, free, compute, storm and die on a card without an image engine. One command per line,
// one answer per line: `ok ...`, `refused`, `failed ...` or `error ...`. It starts with `ready PID`, or `error ...` and
// exit code 2. Commands (CARD is an index, ID and STREAM come from answers):
//   info CARD                      name, granularity, context, pool, alignment, largest, free, total
//   build                          the build id            misfit          attach with another build id
//   attach PATH                    attach to another ledger
//   label TEXT                     this process's label
//   alloc CARD BYTES               ok ID                   free ID
//   pin CARD BYTES                 ok ID, pinned host memory
//   stream CARD                    ok STREAM               close STREAM
//   compute STREAM COUNT           adds two vectors of COUNT floats on the card, ok SUM
//   roundtrip CARD BYTES           write, copy on the card, read, compare
//   cross CARD CARD BYTES          the same from one card to another
//   fresh CARD BYTES               the first byte of untouched memory
//   padded CARD TYPE ELEMENTS      bytes of one row of TYPE (as ggml names it)
//   touch ID                       dereference device memory from the host
//   storm CARD SEED COUNT MAX THREADS   random allocs and frees; ok GRANTED REFUSED
//   witness FILE SLOT              from now on also count held bytes in FILE, apart from the ledger
//   held CARD                      bytes this process believes it holds, rounded as the card rounds
//   fork                           a child that waits for ever; ok PID
#include "vcard.h"

#include <ggml-alloc.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

struct held_buffer {
    ggml_backend_buffer_t buffer;
    uint64_t              charged_bytes;
    size_t                card;
};

struct probe {
    ggml_backend_reg_t             reg = nullptr;
    std::map<int, held_buffer>     buffers;
    std::map<int, ggml_backend_t>  streams;
    int                            last_id = 0;
    std::mutex                     mutex;
    std::atomic<uint64_t> *        witness = nullptr;  // 64 slots, one per process
    size_t                         slot    = 0;
    std::atomic<bool>              overrun{false};

    ggml_backend_dev_t device(size_t card) const { return ggml_backend_reg_dev_get(reg, card); }
};

using arguments = std::istringstream;

// The probe's own arithmetic: it must not agree with the ledger by sharing its code.
uint64_t rounded_up(uint64_t bytes, uint64_t grain) {
    return ((bytes - 1) / grain + 1) * grain;
}

// The witness is raised after a grant and lowered before a free, so its sum never exceeds what the ledger granted: if it
// exceeds the capacity, the ledger granted too much.
void testify(probe & me, uint64_t bytes, size_t card) {
    if (me.witness == nullptr) {
        return;
    }
    me.witness[me.slot].fetch_add(bytes);
    uint64_t sum = 0;
    for (size_t i = 0; i < 64; i++) {
        sum += me.witness[i].load();
    }
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(me.device(card), &free, &total);
    if (sum > total) {
        me.overrun = true;
    }
}

int hold(probe & me, size_t card, size_t bytes) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(me.device(card)), bytes);
    if (buffer == nullptr) {
        return 0;
    }
    const uint64_t charged = rounded_up(bytes, vcard_granularity(me.device(card)));
    testify(me, charged, card);
    std::lock_guard<std::mutex> guard(me.mutex);
    me.buffers[++me.last_id] = {buffer, charged, card};
    return me.last_id;
}

bool let_go(probe & me, int id) {
    held_buffer held = {};
    {
        std::lock_guard<std::mutex> guard(me.mutex);
        auto                        found = me.buffers.find(id);
        if (found == me.buffers.end()) {
            return false;
        }
        held = found->second;
        me.buffers.erase(found);
    }
    if (me.witness != nullptr) {
        me.witness[me.slot].fetch_sub(held.charged_bytes);
    }
    ggml_backend_buffer_free(held.buffer);
    return true;
}

// ------------------------------------------------------------------------------------------------------------ commands

std::string do_info(probe & me, arguments & words) {
    size_t card = 0, free = 0, total = 0;
    words >> card;
    if (card >= ggml_backend_reg_dev_count(me.reg)) {
        return "error no such card";
    }
    ggml_backend_dev_t         device = me.device(card);
    ggml_backend_buffer_type_t type   = ggml_backend_dev_buffer_type(device);
    ggml_backend_dev_memory(device, &free, &total);
    std::ostringstream text;
    text << "ok " << ggml_backend_dev_name(device) << " " << vcard_granularity(device) << " "
         << vcard_context_bytes(device) << " " << vcard_pool_bytes(device) << " "
         << ggml_backend_buft_get_alignment(type) << " " << ggml_backend_buft_get_max_size(type) << " " << free << " "
         << total;
    return text.str();
}

std::string do_alloc(probe & me, arguments & words) {
    size_t card = 0, bytes = 0;
    words >> card >> bytes;
    const int id = hold(me, card, bytes);
    return id != 0 ? "ok " + std::to_string(id) : "refused";
}

std::string do_free(probe & me, arguments & words) {
    int id = 0;
    words >> id;
    return let_go(me, id) ? "ok" : "error no such buffer";
}

std::string do_pin(probe & me, arguments & words) {
    size_t card = 0, bytes = 0;
    words >> card >> bytes;
    ggml_backend_buffer_t buffer =
        ggml_backend_buft_alloc_buffer(ggml_backend_dev_host_buffer_type(me.device(card)), bytes);
    if (buffer == nullptr) {
        return "refused";
    }
    me.buffers[++me.last_id] = {buffer, 0, card};
    return "ok " + std::to_string(me.last_id);
}

std::string do_stream(probe & me, arguments & words) {
    size_t card = 0;
    words >> card;
    ggml_backend_t stream = ggml_backend_dev_init(me.device(card), nullptr);
    if (stream == nullptr) {
        return "refused";
    }
    me.streams[++me.last_id] = stream;
    return "ok " + std::to_string(me.last_id);
}

std::string do_close(probe & me, arguments & words) {
    int id = 0;
    words >> id;
    auto found = me.streams.find(id);
    if (found == me.streams.end()) {
        return "error no such stream";
    }
    ggml_backend_free(found->second);
    me.streams.erase(found);
    return "ok";
}

ggml_context * tensors_only(size_t count) {
    return ggml_init({ggml_tensor_overhead() * count + ggml_graph_overhead(), nullptr, true});
}

std::string do_compute(probe & me, arguments & words) {
    int     id    = 0;
    int64_t count = 0;
    words >> id >> count;
    if (me.streams.count(id) == 0) {
        return "error no such stream";
    }
    ggml_backend_t stream = me.streams[id];
    ggml_context * tensors = tensors_only(8);
    ggml_tensor *  left    = ggml_new_tensor_1d(tensors, GGML_TYPE_F32, count);
    ggml_tensor *  right   = ggml_new_tensor_1d(tensors, GGML_TYPE_F32, count);
    ggml_tensor *  total   = ggml_sum(tensors, ggml_add(tensors, left, right));
    ggml_cgraph *  graph   = ggml_new_graph(tensors);
    ggml_build_forward_expand(graph, total);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(tensors, stream);
    if (buffer == nullptr) {
        ggml_free(tensors);
        return "refused";
    }
    std::vector<float> ones(static_cast<size_t>(count), 1.0f), twos(static_cast<size_t>(count), 2.0f);
    ggml_backend_tensor_set(left, ones.data(), 0, ones.size() * sizeof(float));
    ggml_backend_tensor_set_async(stream, right, twos.data(), 0, twos.size() * sizeof(float));
    const enum ggml_status status = ggml_backend_graph_compute(stream, graph);
    float                  sum    = 0;
    ggml_backend_tensor_get(total, &sum, 0, sizeof sum);
    ggml_backend_buffer_free(buffer);
    ggml_free(tensors);
    return status == GGML_STATUS_SUCCESS ? "ok " + std::to_string(static_cast<long long>(sum)) :
                                           "failed " + std::to_string(static_cast<int>(status));
}

std::string carry_over(probe & me, size_t from_card, size_t to_card, int64_t bytes) {
    ggml_context * here = tensors_only(2);
    ggml_context * there = tensors_only(2);
    ggml_tensor *  from  = ggml_new_tensor_1d(here, GGML_TYPE_I8, bytes);
    ggml_tensor *  to    = ggml_new_tensor_1d(there, GGML_TYPE_I8, bytes);
    ggml_backend_buffer_t source =
        ggml_backend_alloc_ctx_tensors_from_buft(here, ggml_backend_dev_buffer_type(me.device(from_card)));
    ggml_backend_buffer_t target =
        ggml_backend_alloc_ctx_tensors_from_buft(there, ggml_backend_dev_buffer_type(me.device(to_card)));
    std::string answer = "refused";
    if (source != nullptr && target != nullptr) {
        std::vector<char> sent(static_cast<size_t>(bytes)), came(static_cast<size_t>(bytes));
        for (size_t i = 0; i < sent.size(); i++) {
            sent[i] = static_cast<char>(i * 31 + 7);
        }
        ggml_backend_tensor_set(from, sent.data(), 0, sent.size());
        ggml_backend_tensor_copy(from, to);
        ggml_backend_tensor_get(to, came.data(), 0, came.size());
        answer = sent == came ? "ok" : "failed bytes differ";
    }
    ggml_backend_buffer_free(source);
    ggml_backend_buffer_free(target);
    ggml_free(here);
    ggml_free(there);
    return answer;
}

std::string do_roundtrip(probe & me, arguments & words) {
    size_t  card  = 0;
    int64_t bytes = 0;
    words >> card >> bytes;
    return carry_over(me, card, card, bytes);
}

std::string do_cross(probe & me, arguments & words) {
    size_t  from = 0, to = 0;
    int64_t bytes = 0;
    words >> from >> to >> bytes;
    return carry_over(me, from, to, bytes);
}

std::string do_fresh(probe & me, arguments & words) {
    size_t  card  = 0;
    int64_t bytes = 0;
    words >> card >> bytes;
    ggml_context *        tensors = tensors_only(1);
    ggml_tensor *         tensor  = ggml_new_tensor_1d(tensors, GGML_TYPE_I8, bytes);
    ggml_backend_buffer_t buffer =
        ggml_backend_alloc_ctx_tensors_from_buft(tensors, ggml_backend_dev_buffer_type(me.device(card)));
    std::string answer = "refused";
    if (buffer != nullptr) {
        unsigned char first = 0;
        ggml_backend_tensor_get(tensor, &first, 0, 1);
        answer = "ok " + std::to_string(first);
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(tensors);
    return answer;
}

std::string do_padded(probe & me, arguments & words) {
    size_t      card = 0;
    std::string type_name;
    int64_t     elements = 0;
    words >> card >> type_name >> elements;
    ggml_context * tensors = tensors_only(1);
    std::string    answer  = "error no such type";
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        const char * name = ggml_type_name(static_cast<ggml_type>(type));
        if (name != nullptr && type_name == name) {
            ggml_tensor * tensor = ggml_new_tensor_1d(tensors, static_cast<ggml_type>(type), elements);
            answer               = "ok " + std::to_string(ggml_backend_buft_get_alloc_size(
                                 ggml_backend_dev_buffer_type(me.device(card)), tensor));
            break;
        }
    }
    ggml_free(tensors);
    return answer;
}

std::string do_touch(probe & me, arguments & words) {
    int id = 0;
    words >> id;
    if (me.buffers.count(id) == 0) {
        return "error no such buffer";
    }
    auto * byte = static_cast<volatile unsigned char *>(ggml_backend_buffer_get_base(me.buffers[id].buffer));
    return "ok " + std::to_string(*byte);
}

void storm_thread(probe & me, size_t card, uint64_t seed, int count, uint64_t bytes_max, std::atomic<uint64_t> * tally) {
    std::mt19937_64  random(seed);
    std::vector<int> mine;
    for (int i = 0; i < count; i++) {
        if (!mine.empty() && random() % 100 < 45) {
            const size_t place = random() % mine.size();
            let_go(me, mine[place]);
            mine[place] = mine.back();
            mine.pop_back();
            continue;
        }
        const int id = hold(me, card, 1 + random() % bytes_max);
        tally[id != 0 ? 0 : 1]++;
        if (id != 0) {
            mine.push_back(id);
        }
    }
}

std::string do_storm(probe & me, arguments & words) {
    size_t   card = 0;
    uint64_t seed = 0, bytes_max = 1;
    int      count = 0, thread_count = 1;
    words >> card >> seed >> count >> bytes_max >> thread_count;
    std::atomic<uint64_t>    tally[2] = {};
    std::vector<std::thread> threads;
    for (int i = 0; i < thread_count; i++) {
        threads.emplace_back(storm_thread, std::ref(me), card, seed + static_cast<uint64_t>(i), count, bytes_max, tally);
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    return me.overrun ? "failed the witness saw more than the card has" :
                        "ok " + std::to_string(tally[0]) + " " + std::to_string(tally[1]);
}

std::string do_witness(probe & me, arguments & words) {
    std::string path;
    words >> path >> me.slot;
    const int fd  = open(path.c_str(), O_RDWR | O_CLOEXEC);
    void *    map = fd < 0 ? MAP_FAILED : mmap(nullptr, 64 * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED || me.slot >= 64) {
        return "error no such witness";
    }
    me.witness = static_cast<std::atomic<uint64_t> *>(map);
    return "ok";
}

std::string do_held(probe & me, arguments & words) {
    size_t card = 0;
    words >> card;
    uint64_t sum = 0;
    for (const auto & [id, held] : me.buffers) {
        sum += held.card == card ? held.charged_bytes : 0;
    }
    return "ok " + std::to_string(sum);
}

std::string do_fork(probe &, arguments &) {
    const pid_t child = fork();
    if (child == 0) {
        for (;;) {
            pause();
        }
    }
    return child > 0 ? "ok " + std::to_string(child) : "refused";
}

std::string do_attach(probe &, arguments & words) {
    std::string path, error;
    words >> path;
    return vcard_attach(path.c_str(), &error) != nullptr ? "ok" : "error " + error;
}

std::string do_misfit(probe &, arguments &) {
    std::string error;
    return vcard_attach_checked("nowhere", "ggml 0.0.0 name=64", &error) != nullptr ? "ok" : "error " + error;
}

std::string do_build(probe &, arguments &) {
    return "ok " + vcard_build_id();
}

std::string do_label(probe &, arguments & words) {
    std::string text;
    std::getline(words >> std::ws, text);
    vcard_set_label(text);
    return "ok";
}

using command = std::string (*)(probe &, arguments &);

const std::map<std::string, command> commands = {
    {"info", do_info},           {"build", do_build},   {"misfit", do_misfit},   {"attach", do_attach},
    {"label", do_label},         {"alloc", do_alloc},   {"free", do_free},       {"pin", do_pin},
    {"stream", do_stream},       {"close", do_close},   {"compute", do_compute}, {"roundtrip", do_roundtrip},
    {"cross", do_cross},         {"fresh", do_fresh},   {"padded", do_padded},   {"touch", do_touch},
    {"storm", do_storm},         {"held", do_held},     {"fork", do_fork},       {"witness", do_witness},
};

void say(const std::string & line) {
    std::cout << line << std::endl;
}

}  // namespace

int main(int count, char ** words) {
    if (count != 2) {
        fprintf(stderr, "usage: vcard_probe LEDGER   (commands come by standard input; see the head of probe.cpp)\n");
        return 2;
    }
    ggml_log_set([](enum ggml_log_level, const char *, void *) {}, nullptr);  // refusals are answers here, not news
    probe       me;
    std::string error;
    me.reg = vcard_attach(words[1], &error);
    if (me.reg == nullptr) {
        say("error " + error);
        return 2;
    }
    say("ready " + std::to_string(getpid()));
    for (std::string line; std::getline(std::cin, line);) {
        arguments   rest(line);
        std::string name;
        rest >> name;
        const auto found = commands.find(name);
        say(found != commands.end() ? found->second(me, rest) : "error no such command: " + name);
    }
    return 0;
}
