// Sums of the columns of a matrix of floats, in a fixed order: step 2 of chunk_sums.cuh.
//
// A block has WARP columns and WARP warps. Each warp adds up its share of the rows, lane by lane:
// lane x has column x. So the sum of a column is spread over the warps. A transposition in shared
// memory brings all shares of a column to one warp (drawn with 4 instead of 32):
//
//                 lane 0  lane 1  lane 2  lane 3                  lane 0  lane 1  lane 2  lane 3
//        column:       0       1       2       3     rows of warp:     0       1       2       3
//    warp 0           a0      b0      c0      d0     warp 0           a0      a1      a2      a3
//    warp 1           a1      b1      c1      d1     warp 1           b0      b1      b2      b3
//    warp 2           a2      b2      c2      d2     warp 2           c0      c1      c2      c3
//    warp 3           a3      b3      c3      d3     warp 3           d0      d1      d2      d3
//
//                 written as shares[warp][lane]      read as shares[lane][warp], added by warp_sum
#pragma once
#include "lib/reduce.cuh"

constexpr int SQUARE_THREADS = WARP * WARP;  // of a block

// out[column] += the sum over all rows of partials[row, column], for the WARP columns of this
// block; partials (num_rows, C). Block: SQUARE_THREADS threads. Warp y takes every WARP-th row
// from y on.
__device__ __forceinline__ void add_column_sums(float* out, const float* partials, int num_rows,
                                                int C) {
    __shared__ float shares[WARP][WARP + 1];  // an odd pitch: a column lies in different banks
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int first = blockIdx.x * WARP, column = first + lane;
    float share = 0.0f;
    if (column < C) {
#pragma unroll 8
        for (int row = warp; row < num_rows; row += WARP)
            share += partials[(long long)row * C + column];
    }
    shares[warp][lane] = share;
    __syncthreads();
    const float sum = warp_sum(shares[lane][warp]);
    if (lane == 0 && first + warp < C) out[first + warp] += sum;
}
