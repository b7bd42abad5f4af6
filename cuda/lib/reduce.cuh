// Reductions over a warp, in a fixed order: a run repeats bit for bit.
#pragma once
#include "lib/packs.cuh"

struct Sum {
    template <class T>
    static __device__ __forceinline__ T join(T a, T b) {
        return a + b;
    }
};
struct Max {
    template <class T>
    static __device__ __forceinline__ T join(T a, T b) {
        return a < b ? b : a;
    }
};

// Every lane of a full warp gets the result.
template <class Op, class T>
__device__ __forceinline__ T warp_reduce(T value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = Op::join(value, __shfl_xor_sync(FULL_WARP, value, distance));
    return value;
}
__device__ __forceinline__ float warp_sum(float value) { return warp_reduce<Sum>(value); }
__device__ __forceinline__ float warp_max(float value) { return warp_reduce<Max>(value); }
