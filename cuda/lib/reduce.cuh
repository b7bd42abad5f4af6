// Reductions over a warp, in a fixed order: training repeats bit for bit.
//
// Lanes exchange values without shared memory. In each step a lane joins its value with that of
// lane ^ distance, so after each step a value stands for twice as many lanes. Here 8 lanes, which
// begin with the values a to h:
//
//    lane           0      1      2      3      4      5      6      7
//    distance 4     ae     bf     cg     dh     ae     bf     cg     dh
//    distance 2     aecg   bfdh   aecg   bfdh   aecg   bfdh   aecg   bfdh
//    distance 1     all    all    all    all    all    all    all    all
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

// Every lane gets the result; all 32 lanes must call it.
template <class Op, class T>
__device__ __forceinline__ T warp_reduce(T value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = Op::join(value, __shfl_xor_sync(FULL_WARP, value, distance));
    return value;
}
__device__ __forceinline__ float warp_sum(float value) { return warp_reduce<Sum>(value); }
__device__ __forceinline__ float warp_max(float value) { return warp_reduce<Max>(value); }
