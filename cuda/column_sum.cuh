// The second step of sums over the rows of a matrix, for the gradients of biases and of LayerNorm's
// parameters: blocks have left partial sums of their rows, and these are added up here. Two steps,
// so that many blocks can share the rows and the order is still fixed.
#pragma once
#include "common.cuh"

constexpr int SUM_COLUMNS = WARP;  // of one block
constexpr int SUM_ROWS = 32;

// out[column] += sum over parts of partials[part, column], for the 32 columns of this block;
// partials (num_parts, C). Block of 1024 threads.
__device__ __forceinline__ void add_column_sums(float* out, const float* partials, int num_parts,
                                                int C) {
    __shared__ float sums[SUM_ROWS][SUM_COLUMNS + 1];
    int x = threadIdx.x % SUM_COLUMNS, y = threadIdx.x / SUM_COLUMNS;
    int first = blockIdx.x * SUM_COLUMNS, column = first + x;
    float sum = 0.0f;
    if (column < C) {
#pragma unroll 8
        for (int part = y; part < num_parts; part += SUM_ROWS)
            sum += partials[(long long)part * C + column];
    }
    sums[y][x] = sum;
    __syncthreads();
    sum = warp_sum(sums[x][y]);  // warp y has column y
    if (x == 0 && first + y < C) out[first + y] += sum;
}
