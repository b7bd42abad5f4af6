// What a launch asks of the memory of a GPU: the accesses of the lanes of a warp are put together
// to requests again, and requests are counted by their place in the code.
#pragma once
#include <cstddef>
#include <cstdint>

#include "iterations.h"

namespace emu {

constexpr unsigned kMostPlaces = 4096, kMostMeetings = 1024, kMostBasicBlocks = 16384;
constexpr unsigned kMostShared = 1024;
// Loads of one place that may be under way at once: see Counters::rounds.
constexpr unsigned kUnderWay[] = {1, 2, 4, 8, 16};
constexpr unsigned kNumUnderWay = sizeof kUnderWay / sizeof *kUnderWay;

// The kinds of an access beside those of emulator_abi.h.
constexpr int kAsyncCopy = 3;

// Where an access went.
struct Target {
    enum Space : uint8_t { nowhere, global, shared } space = nowhere;
    uint32_t array = 0;       // index of the argument, or of the shared array
    uint32_t allocation = 0;  // arguments may be views of one allocation
    uint64_t offset = 0;      // in bytes, in the allocation or in the shared array
};

// All structs here are mirrored by counted.py.
// A stride that is not the same for all neighbouring lanes; one of which nothing is known.
constexpr int64_t kMixedStride = INT64_MIN, kNoStride = INT64_MIN + 1;

// An access in the code. Sums over all requests of the launch.
struct PlaceCounts {
    uint64_t pc;  // an offset into the kernel's library
    int32_t kind, space;
    uint32_t bytes;  // of one lane's access
    uint32_t array;
    uint64_t requests, lanes;
    uint64_t sectors, lines;                 // global: different 32-byte sectors, 128-byte lines
    uint64_t turns, parts;                   // shared: turns taken, and those of an access at best
    uint64_t joined_requests, joined_turns;  // shared, if neighbouring reads become one wide read
    int64_t stride;                          // bytes between neighbouring lanes
};
// A barrier of a block, or an operation that the lanes of a warp do together.
struct MeetingCounts {
    uint64_t pc, count;
    char operation[32];
};
struct BasicBlockCounts {
    uint64_t pc;
    uint64_t lanes, warps;
};
struct Counters {
    uint32_t num_places, num_meetings, num_basic_blocks, num_warps;
    uint64_t read_sectors, written_sectors;  // different ones, over the whole launch
    uint64_t fetched_sectors;                // different ones that are read, for each block
    uint64_t rounds[kNumUnderWay];           // of the warp that has the most
    uint8_t shared_used[kMostShared];        // by shared array
    PlaceCounts places[kMostPlaces];
    MeetingCounts meetings[kMostMeetings];
    BasicBlockCounts basic_blocks[kMostBasicBlocks];
};

// Null in runs that do not count.
extern Counters* counters;

// Mirrored by launching.py: where the counts go, and what is known of the code.
struct CountingRequest {
    Counters* result;
    const BlockInLoop* blocks;
    uint64_t num_blocks;
    const LoopAround* loops;
};
void start_counting(const CountingRequest& request, size_t warps_of_block);

// One access of the running thread.
void count_access(uintptr_t pc, const Target& target, size_t bytes, int kind);

// All lanes of a warp, or all threads of a block, are at one operation.
void count_warp_meeting(unsigned warp, const char* operation, uint64_t pc);
void count_barrier(uint64_t pc);
// All threads of a block have returned.
void count_end_of_block();

}  // namespace emu
