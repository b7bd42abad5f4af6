// Sums over the rows of a matrix, in two steps, so that many blocks can share the rows and the order
// is still fixed: sum_chunk leaves partial sums of chunks of rows, add_column_sums adds these up.
#pragma once
#include "lib/packs.cuh"
#include "lib/reduce.cuh"

constexpr int MAX_SUM_THREADS = 256;  // of a block
constexpr int ROWS_AHEAD = 4;         // of one thread, whose loads are under way together

// partials[chunk, :] = sum over the rows of chunk blockIdx.y of what `rows` yields; partials
// (chunks, C). `rows` loads what it needs of a pack at an offset of the matrix, ROWS_AHEAD of them
// before the first is used, and then finishes the packs one by one. Threads (x, y): pack x of row
// y, in strides; dynamic shared memory of a pack of floats per thread where there are several y.
template <class Rows>
__device__ __forceinline__ void sum_chunk(float* partials, const Rows& rows, int N, int C,
                                          int chunk_rows) {
    extern __shared__ __align__(16) float smem[];
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * PACK_SIZE;
    long long start = (long long)blockIdx.y * chunk_rows + threadIdx.y;
    long long stop = min((long long)(blockIdx.y + 1) * chunk_rows, (long long)N);
    Pack sum = filled<PACK_SIZE>(0.0f);
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
                for (int k = 0; k < PACK_SIZE; k++) sum[k] += x[k];
            }
        }
    }
    if (blockDim.y > 1) {  // rows 1, 2, ... of the block go through shared memory
        float* mine = smem + (threadIdx.y * blockDim.x + threadIdx.x) * PACK_SIZE;
        store(mine, sum);
        __syncthreads();
        if (threadIdx.y > 0) return;
        for (int y = 1; y < blockDim.y; y++) {
            Pack other = load<PACK_SIZE>(mine + y * blockDim.x * PACK_SIZE);
#pragma unroll
            for (int k = 0; k < PACK_SIZE; k++) sum[k] += other[k];
        }
    }
    if (column < C) store(partials + (long long)blockIdx.y * C + column, sum);
}

// ---- the second step ---------------------------------------------------------------------------

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
