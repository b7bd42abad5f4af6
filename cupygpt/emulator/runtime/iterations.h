// Which lanes of a warp are together: where each one is in the loops of the kernel.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

struct Thread;

// Mirrored by launching.py. A basic block of the kernel, and a loop.
struct BlockInLoop {
    uint64_t pc;
    int32_t innermost;  // the loop that holds it, or -1
    int32_t begins;     // the loop whose rounds begin there, or -1
};
struct LoopAround {
    int32_t parent, depth;  // the outermost loops have depth 0
};

// One number out of two, so that different pairs hardly ever give the same.
inline uint64_t mixed(uint64_t a, uint64_t b) {
    uint64_t x = (a ^ (b + 0x9e3779b97f4a7c15)) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

void start_iterations(const BlockInLoop* blocks, size_t num_blocks, const LoopAround* loops,
                      size_t warps_of_block);

// Equal for two lanes of a warp that are in the same iteration of the same loops.
uint64_t iteration_key(const Thread& thread);

// The lanes of the warp are at one place: what they did before is no longer compared.
void forget_iterations(unsigned warp);

}  // namespace emu
