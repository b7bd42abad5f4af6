// Sums over the rows of a matrix, for the gradients of biases and LayerNorm parameters.
//
// Two steps, so that many blocks can share the rows and the order is still fixed: partial sums of
// chunks of rows, then the sum of those.
#pragma once
#include "common.cuh"

constexpr int SUM_COLUMNS = 32;  // of one block in the second step
constexpr int SUM_ROWS = 8;

// out[column] += sum over parts of partials[part, column], for the 32 columns of this block;
// partials (num_parts, C). Block of 256 threads.
__device__ __forceinline__ void add_column_sums(float* out, const float* partials, int num_parts,
                                                int C) {
    __shared__ float sums[SUM_ROWS][SUM_COLUMNS];
    int x = threadIdx.x % SUM_COLUMNS, y = threadIdx.x / SUM_COLUMNS;
    int column = blockIdx.x * SUM_COLUMNS + x;
    float sum = 0.0f;
    if (column < C) {
#pragma unroll 8
        for (int part = y; part < num_parts; part += SUM_ROWS)
            sum += partials[(long long)part * C + column];
    }
    sums[y][x] = sum;
    __syncthreads();
    if (y == 0 && column < C) {
        for (int row = 1; row < SUM_ROWS; row++) sum += sums[row][x];
        out[column] += sum;
    }
}
