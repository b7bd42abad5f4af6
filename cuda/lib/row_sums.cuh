// Sums over the rows of a matrix, in two steps. Many blocks share the rows, and yet each sum is
// added in a fixed order, without atomics: a run repeats bit for bit.
//
//                  matrix (N, C)
//                  columns
//             +----------+----------+---             partials (chunks, C)
//    chunk 0  | block    | block    |     sum_chunk
//    of rows  |   (0, 0) |   (1, 0) |     ------->   [ one row of sums ] --.               out (C)
//             +----------+----------+---                                   | add_column_sums
//    chunk 1  | block    | block    |                                      |
//             |   (0, 1) |   (1, 1) |     ------->   [ one row of sums ] --+------------>  [ += ]
//             +----------+----------+---                                   |
//      ...    |          |          |     ------->          ...          --'
//
// A chunk is chunk_rows consecutive rows. In sum_chunk, thread (x, y) of a block adds up one pack
// of columns over the rows y, y + blockDim.y, y + 2 blockDim.y, ... of the chunk.
#pragma once
#include "lib/packs.cuh"
#include "lib/reduce.cuh"

// ---- step 1: a row of sums for each chunk -------------------------------------------------------

// sum += one pack of columns of rows row, row + blockDim.y, ..., IN_FLIGHT of them, below `stop`.
// Loads take long, so all are started before the first is used.
template <int IN_FLIGHT, class Source>
__device__ __forceinline__ void add_group(Pack& sum, const Source& source, long long row,
                                          long long stop, int column, int C) {
    typename Source::Raw raw[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
        long long at = row + i * blockDim.y;
        if (at < stop) raw[i] = source.load(at * C + column);
    }
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
        long long at = row + i * blockDim.y;
        if (at >= stop) continue;
        Pack x = source.finish(raw[i], at * C + column);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) sum[k] += x[k];
    }
}

// sum += the sums that threads (x, 1), (x, 2), ... have left in shared memory behind `own`, the
// place of thread (x, 0).
__device__ __forceinline__ void add_other_threads(Pack& sum, const float* own) {
    for (int y = 1; y < blockDim.y; y++) {
        Pack other = load<PACK_SIZE>(own + y * blockDim.x * PACK_SIZE);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) sum[k] += other[k];
    }
}

// partials[chunk, :] = the sum over the chunk's rows of what `source` yields; partials (chunks,
// C). The source defines the matrix: load(offset) starts to read the pack at an offset of the
// matrix and returns what waits in registers, a Source::Raw; finish(raw, offset) turns that into
// floats. Grid (packs of columns / blockDim.x, chunks); dynamic shared memory, if blockDim.y > 1: a
// pack of floats for each thread. RowSums in ops/bias.py computes the launch; SUM_DEFINES there
// are the constants for it: -DSUM_THREADS, the most threads of a block, and -DROWS_IN_FLIGHT.
template <int IN_FLIGHT, class Source>
__device__ __forceinline__ void sum_chunk(float* partials, const Source& source, int N, int C,
                                          int chunk_rows) {
    extern __shared__ __align__(16) float smem[];
    const int column = (blockIdx.x * blockDim.x + threadIdx.x) * PACK_SIZE;
    const long long start = (long long)blockIdx.y * chunk_rows + threadIdx.y;
    const long long stop = min((long long)(blockIdx.y + 1) * chunk_rows, (long long)N);
    Pack sum = filled<PACK_SIZE>(0.0f);
    if (column < C)
        for (long long row = start; row < stop; row += IN_FLIGHT * blockDim.y)
            add_group<IN_FLIGHT>(sum, source, row, stop, column, C);
    if (blockDim.y > 1) {
        float* own = smem + (threadIdx.y * blockDim.x + threadIdx.x) * PACK_SIZE;
        store(own, sum);
        __syncthreads();
        if (threadIdx.y > 0) return;
        add_other_threads(sum, own);
    }
    if (column < C) store(partials + (long long)blockIdx.y * C + column, sum);
}

// ---- step 2: the sum of these rows --------------------------------------------------------------

constexpr int SQUARE_THREADS = WARP * WARP;  // of a block of add_column_sums

// out[column] += the sum over all rows of partials[row, column], for the WARP columns of this
// block; partials (num_rows, C). Block: SQUARE_THREADS threads. Each warp reads the block's
// columns of rows warp, warp + WARP, ... So a lane has a share of the sum of one column. A
// transposition through shared memory brings the WARP shares of a column to the lanes of one
// warp, which adds them.
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
