// When a cell of memory was last accessed, and whether that access is ordered before one now.
#pragma once
#include <cstdint>

#include "block.h"

namespace emu {

// One 64-bit word: block + 1 | __syncthreads passed | __syncwarp passed | thread | flags.
// Zero means never. The counters wrap around, which can hide a race only between accesses that are
// exactly one period apart.
typedef uint64_t Stamp;

constexpr int kThreadShift = 4, kWarpShift = 14, kBarrierShift = 26, kBlockShift = 42;
constexpr uint64_t kThreadMask = 1023, kWarpMask = 4095, kBarrierMask = 65535;

// On a write:
constexpr Stamp kAtomic = 1;
// On a read: other threads have read too, ...
constexpr Stamp kOtherLane = 2;   // of the same warp, since its last __syncwarp
constexpr Stamp kOtherWarp = 4;   // of the same block, since its last __syncthreads
constexpr Stamp kOtherBlock = 8;  // of the same grid

inline uint32_t block_of(Stamp s) { return uint32_t(s >> kBlockShift) - 1; }
inline uint32_t thread_of(Stamp s) { return s >> kThreadShift & kThreadMask; }

inline bool same_block(Stamp a, Stamp b) { return a >> kBlockShift == b >> kBlockShift; }
inline bool same_barrier(Stamp a, Stamp b) { return !((a ^ b) >> kBarrierShift & kBarrierMask); }
inline bool same_warp(Stamp a, Stamp b) { return thread_of(a) / 32 == thread_of(b) / 32; }
inline bool same_warp_sync(Stamp a, Stamp b) { return !((a ^ b) >> kWarpShift & kWarpMask); }

inline Stamp stamp_now() {
    const Thread& thread = *block.running;
    return Stamp(block.number + 1) << kBlockShift |
           (block.barrier_epoch & kBarrierMask) << kBarrierShift |
           (block.warps[thread.warp].epoch & kWarpMask) << kWarpShift |
           Stamp(thread.linear) << kThreadShift;
}

// Is the access `before` ordered before one now? Blocks of a grid are not ordered. In a block only
// __syncthreads orders, in a warp also __syncwarp.
inline bool ordered(Stamp before, Stamp now) {
    if (!same_block(before, now)) return false;
    if (!same_barrier(before, now)) return true;
    if (thread_of(before) == thread_of(now)) return true;
    return same_warp(before, now) && !same_warp_sync(before, now);
}

// The flags of a new read stamp that follows the stamp `last`.
inline Stamp other_readers(Stamp last, Stamp now) {
    if (!last) return 0;
    if (!same_block(last, now)) return kOtherBlock;
    Stamp flags = last & kOtherBlock;
    if (!same_barrier(last, now)) return flags;
    flags |= last & kOtherWarp;
    if (!same_warp(last, now)) return flags | kOtherWarp;
    if (!same_warp_sync(last, now)) return flags;
    return flags | (thread_of(last) == thread_of(now) ? last & kOtherLane : kOtherLane);
}

// Are all reads that `last` records ordered before a write now?
inline bool all_reads_ordered(Stamp last, Stamp now) {
    if (!last) return true;
    if (last & kOtherBlock || !same_block(last, now)) return false;
    if (!same_barrier(last, now)) return true;
    if (last & kOtherWarp || !same_warp(last, now)) return false;
    if (!same_warp_sync(last, now)) return true;
    return !(last & kOtherLane) && thread_of(last) == thread_of(now);
}

}  // namespace emu
