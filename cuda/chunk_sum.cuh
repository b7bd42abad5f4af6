// The first step of sums over the rows of a matrix: those of chunks of rows. column_sum.cuh has the
// second.
#pragma once
#include "common.cuh"

constexpr int MAX_SUM_THREADS = 256;  // of a block
constexpr int ROWS_AHEAD = 4;  // of one thread, whose loads are under way together

// partials[chunk, :] = sum over the rows of chunk blockIdx.y of what `rows` yields; partials
// (chunks, C). `rows` loads what it needs of a pack at an offset of the matrix, ROWS_AHEAD of them
// before the first is used, and then finishes the packs one by one. Threads (x, y): pack x of row
// y, in strides; dynamic shared memory of a pack of floats per thread where there are several y.
template <class Rows>
__device__ __forceinline__ void sum_chunk(float* partials, const Rows& rows, int N, int C,
                                          int chunk_rows) {
    extern __shared__ __align__(16) float smem[];
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * LANES;
    long long start = (long long)blockIdx.y * chunk_rows + threadIdx.y;
    long long stop = min((long long)(blockIdx.y + 1) * chunk_rows, (long long)N);
    Pack sum = filled<LANES>(0.0f);
    if (column < C) {
        for (long long row = start; row < stop; row += ROWS_AHEAD * blockDim.y) {
            typename Rows::Loaded loaded[ROWS_AHEAD];
#pragma unroll
            for (int i = 0; i < ROWS_AHEAD; i++) {
                long long at = row + i * blockDim.y;
                if (at < stop) loaded[i] = rows.load(at * C + column);
            }
#pragma unroll
            for (int i = 0; i < ROWS_AHEAD; i++) {
                long long at = row + i * blockDim.y;
                if (at >= stop) continue;
                Pack x = rows.finish(loaded[i], at * C + column);
#pragma unroll
                for (int k = 0; k < LANES; k++) sum[k] += x[k];
            }
        }
    }
    if (blockDim.y > 1) {  // rows 1, 2, ... of the block go through shared memory
        float* mine = smem + (threadIdx.y * blockDim.x + threadIdx.x) * LANES;
        store(mine, sum);
        __syncthreads();
        if (threadIdx.y > 0) return;
        for (int y = 1; y < blockDim.y; y++) {
            Pack other = load<LANES>(mine + y * blockDim.x * LANES);
#pragma unroll
            for (int k = 0; k < LANES; k++) sum[k] += other[k];
        }
    }
    if (column < C) store(partials + (long long)blockIdx.y * C + column, sum);
}
