// What the backward kernels of attention have in common, on CUDA cores and on tensor cores.
//
// With P = exp(scale * q k^T - lse), dP = dout v^T and delta = rowsum(dout * out), the gradients
// are
//
//   dv = P^T dout,   dS = P * (dP - delta),   dk = scale * dS^T q,   dq = scale * dS k.
//
// Two kernels compute them, in this order:
//
//   dq     owns queries, walks over keys     uses    q, k, v, dout, out, lse
//                                            leaves  dq and lse_delta = (lse, delta)
//   dkdv   owns keys, walks over queries     uses    q, k, v, dout, lse_delta
//                                            leaves  dk and dv
//
// P is computed twice, once in each kernel, but every sum has one owner: no atomics, and results
// repeat bit for bit.
//
// The gradient of the qkv layer's bias is the sum of all rows of dqkv. It is taken before these are
// rounded to floatX: each block also leaves the sums of its row groups, groups of up to 64
// neighbouring rows, in
//
//   sums (B, ceil(T / rows of a group), 3, NH, HS) float32
//
// -DHS head size. Blocks have four warps.
#pragma once
#include "lib/packs.cuh"

constexpr int BLOCK_WARPS = 4;

// Dot product of two rows of HS elements by SHARERS neighbouring lanes: the same in all of them.
template <int SHARERS>
__device__ __forceinline__ float row_product(const floatX* a, const floatX* b) {
    float sum = 0.0f;
#pragma unroll
    for (int d = 0; d < HS; d += SHARERS * PACK_SIZE) {
        const int column = d + int(threadIdx.x) % SHARERS * PACK_SIZE;
        if (column >= HS) continue;
        const Pack x = load_pack(a + column), y = load_pack(b + column);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) sum += x[k] * y[k];
    }
#pragma unroll
    for (int distance = 1; distance < SHARERS; distance *= 2)
        sum += __shfl_xor_sync(FULL_WARP, sum, distance);
    return sum;
}

// The sums of the row group that begins at row `first` of head h, for groups of `group_rows` rows:
// those of dq. Those of dk and dv are NH * HS and 2 * NH * HS elements behind, the next group's are
// 3 * NH * HS behind.
__device__ __forceinline__ float* sums_of_group(float* sums, int b, int h, int first,
                                                int group_rows, int T, int NH) {
    const int num_groups = (T + group_rows - 1) / group_rows;
    return sums + (((long long)b * num_groups + first / group_rows) * 3 * NH + h) * HS;
}

// Adds up a block's rows column by column, in GROUPS row groups of equally many neighbouring warps.
// Row g of `sums`, `stride` elements from the next, gets the sums of group g < num_groups.
//
// A thread holds COUNT columns: column_of(i) is the i-th of them, below WIDTH, and value(i) its sum
// over the thread's own rows. Lanes that are a multiple of DISTANCE apart hold the same columns.
//
//   thread: value(i) --shuffles--> warp: of_warp[warp][column] --barrier--> group: sums[g][column]
template <int GROUPS, int WIDTH, int COUNT, int DISTANCE, class ColumnOf, class Value>
__device__ __forceinline__ void store_column_sums(float* sums, int stride, int num_groups,
                                                  ColumnOf column_of, Value value) {
    constexpr int WARPS_OF_GROUP = BLOCK_WARPS / GROUPS;
    __shared__ float of_warp[BLOCK_WARPS][WIDTH];
    const int warp = threadIdx.x / WARP;
    __syncthreads();  // what a call before this one left has been read
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float sum = value(i);
#pragma unroll
        for (int distance = DISTANCE; distance < WARP; distance *= 2)
            sum += __shfl_xor_sync(FULL_WARP, sum, distance);
        if (threadIdx.x % WARP < DISTANCE) of_warp[warp][column_of(i)] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < GROUPS * WIDTH; i += BLOCK_WARPS * WARP) {
        const int group = i / WIDTH, column = i % WIDTH;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS_OF_GROUP; w++) sum += of_warp[group * WARPS_OF_GROUP + w][column];
        if (group < num_groups) sums[(long long)group * stride + column] = sum;
    }
}
