// Forced into the engine's model loader alone: it waits for its reading threads in naps of 200 ms, which would make
// every load of a component a multiple of that. Two milliseconds cost nothing and are not felt.
#pragma once

#include <chrono>

#define milliseconds(count) milliseconds((count) == 200 ? 2 : (count))
