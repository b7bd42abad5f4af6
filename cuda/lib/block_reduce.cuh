// Reductions over a block, in a fixed order: training repeats bit for bit.
#pragma once
#include "lib/reduce.cuh"

constexpr int MAX_WARPS = 32;  // of one block

// Each warp reduces its own values and puts the result into shared memory, then every warp reduces
// these. Every thread of a one-dimensional block of whole warps gets the result; `neutral` changes
// no other value. All threads must call it, as there is a barrier inside.
//
// Each Op, SLOT and T have their own array; SLOT has no other effect. Two successive calls with the
// same Op and T need different SLOTs, or a barrier between them: a fast warp may be in the second
// call while a slow one still reads what the first has left in the array.
template <class Op, int SLOT, class T>
__device__ __forceinline__ T block_reduce(T value, T neutral) {
    __shared__ T of_warp[MAX_WARPS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, num_warps = blockDim.x / WARP;
    value = warp_reduce<Op>(value);
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    return warp_reduce<Op>(lane < num_warps ? of_warp[lane] : neutral);
}
template <int SLOT = 0>
__device__ __forceinline__ float block_sum(float value) {
    return block_reduce<Sum, SLOT>(value, 0.0f);
}
// It has only one SLOT: between two calls there must be a barrier.
__device__ __forceinline__ float block_max(float value) {
    return block_reduce<Max, 0>(value, __uint_as_float(0xff800000u));  // -inf
}
