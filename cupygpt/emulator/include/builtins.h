// Thread coordinates, barriers, fences, traps.
#pragma once
#include "emulator_abi.h"

#define threadIdx (emu_thread_index())
#define blockIdx (emu_block_index())
#define blockDim (emu_block_size())
#define gridDim (emu_grid_size())
#define warpSize 32

inline void __syncthreads(EMU_CALL_SITE) { emu_barrier(file, line); }

inline void __threadfence() { emu_fence(); }
// Nothing to do: a block runs on one CPU thread, in order, and __syncthreads tells the checker.
inline void __threadfence_block() {}

[[noreturn]] inline void __trap(EMU_CALL_SITE) { emu_fail("trap", "__trap()", file, line); }

#define __builtin_assume(condition) ((void)0)
#define __CUDA_ALIGN_16__ __align__(16)
