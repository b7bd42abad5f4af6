// What the backward kernels of attention have in common, on CUDA cores and on tensor cores.
//
// With P = exp(scale * q k^T - lse), dP = dout v^T and dot = rowsum(dout * out):
//   dv = P^T dout,  dS = P * (dP - dot),  dk = scale * dS^T q,  dq = scale * dS k.
// Two kernels: dq walks over the keys of its queries, and computes their dot on the way; dkdv walks
// over the queries of its keys, and needs the dot of all of them: it must run second. P is computed
// twice, but each sum has one owner: no atomics, results repeat bit for bit.
//
// Both leave, besides their rows of dqkv, the sums of these rows over parts of up to 64 rows: added
// up, they are the gradient of the bias of the qkv layer.
//
// -DHS head size. Blocks of 128 threads.
#pragma once
#include "lib/packs.cuh"

constexpr int BLOCK_WARPS = 4;

// dot product of two rows of HS elements by SHARERS neighbouring lanes: the same in all of them.
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

// Sums of a block's rows, column by column, in PARTS parts of neighbouring warps: row p of `sums`
// gets those of part p, where p < num_parts. A thread has `count` columns, the same in the lanes
// that are a multiple of DISTANCE apart: place(i) is the i-th of them, below WIDTH, and value(i)
// the sum over the thread's own rows. `stride` is the distance of two rows of `sums`.
template <int PARTS, int WIDTH, int COUNT, int DISTANCE, class Place, class Value>
__device__ __forceinline__ void store_column_sums(float* sums, int stride, int num_parts,
                                                  Place place, Value value) {
    constexpr int WARPS_OF_PART = BLOCK_WARPS / PARTS;
    __shared__ float of_warp[BLOCK_WARPS][WIDTH];
    const int warp = threadIdx.x / WARP;
    __syncthreads();  // a call before this one has been read
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float sum = value(i);
#pragma unroll
        for (int distance = DISTANCE; distance < WARP; distance *= 2)
            sum += __shfl_xor_sync(FULL_WARP, sum, distance);
        if (threadIdx.x % WARP < DISTANCE) of_warp[warp][place(i)] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < PARTS * WIDTH; i += BLOCK_WARPS * WARP) {
        const int part = i / WIDTH, column = i % WIDTH;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS_OF_PART; w++) sum += of_warp[part * WARPS_OF_PART + w][column];
        if (part < num_parts) sums[(long long)part * stride + column] = sum;
    }
}

// Where the sums of dq rows [first, first + part_rows) of head h belong, in sums
// (B, ceil(T / part_rows), 3, NH, HS); those of dk and dv are NH * HS and 2 * NH * HS behind.
__device__ __forceinline__ float* sums_of_part(float* sums, int b, int h, int first, int part_rows,
                                               int T, int NH) {
    const int parts = (T + part_rows - 1) / part_rows;
    return sums + (((long long)b * parts + first / part_rows) * 3 * NH + h) * HS;
}
