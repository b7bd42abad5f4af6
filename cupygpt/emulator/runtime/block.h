// The block that is running: its threads, its warps, and the order in which they run.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

#include "emulator_abi.h"
#include "fibers.h"
#include "report.h"

namespace emu {

enum class State : uint8_t { ready, at_barrier, at_warp, finished };

struct AsyncCopy {
    char* shared;
    const char* global;
    size_t bytes, source_bytes;
    uint64_t pc;
};

struct Thread {
    Context context;
    uint3 index;
    unsigned linear, lane, warp;
    State state;
    Place place;  // the barrier or warp operation where it waits
    const char* operation;
    void* warp_data;
    // Committed groups, oldest first; the last one is open.
    std::vector<std::vector<AsyncCopy>> copies;
};

struct Warp {
    uint32_t present, arrived, exited;
    uint32_t epoch;  // number of __syncwarp passed
};

struct Block {
    uint3 index;
    uint32_t number;  // linear index in the grid
    dim3 size, grid;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::deque<unsigned> ready;
    Thread* running = nullptr;
    Thread* first_at_barrier;  // meaningful while at_barrier > 0
    unsigned at_barrier, finished;
    uint32_t barrier_epoch;  // number of __syncthreads passed
    char* stacks;
    Context launcher;
    void (*body)(void**);
    void** arguments;
};

extern Block block;

inline uint3 unravel(unsigned linear, const dim3& size) {
    return {linear % size.x, linear / size.x % size.y, linear / size.x / size.y};
}

// Runs all threads of the block `index` until they end.
void run_block(uint3 index, uint32_t number);

// Calls fail() if the thread has not waited for all of its copies.
void check_no_copies_left(Thread& thread);

}  // namespace emu
