// Sums of the columns of a matrix, step 1 of 2: a row of partial sums for each chunk of rows.
//
// Many blocks share a matrix, and yet each sum is added in a fixed order, without atomics: training
// repeats bit for bit.
//
//                 matrix (N, C)                          partials (chunks, C)         out (C)
//             +----------+----------+
//    chunk 0  |  block   |  block   |     sum_chunk    [ (0, 0) | (1, 0) ] --.
//    of rows  |  (0, 0)  |  (1, 0)  |     --------->                         |
//             +----------+----------+                                        | add_column_sums
//    chunk 1  |  block   |  block   |                  [ (0, 1) | (1, 1) ] --+------------> [ += ]
//             |  (0, 1)  |  (1, 1)  |     --------->                         |
//             +----------+----------+                                        |
//      ...    |          |          |     --------->          ...          --'
//
// A chunk is chunk_rows consecutive rows. Thread (x, y) of a block adds up one pack of columns over
// the rows y, y + blockDim.y, y + 2 blockDim.y, ... of the chunk. Step 2 is in column_sums.cuh.
#pragma once
#include "lib/packs.cuh"

// sum += IN_FLIGHT rows of one pack of columns: row, row + blockDim.y, ..., as far as they are
// below `stop`. Loads take long, so all are started before the first is used.
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

// partials[chunk, :] = the sum of the chunk's rows of a matrix (N, C); partials (chunks, C). The
// source defines the matrix: load(offset) starts to read the pack at an offset of the matrix and
// returns the raw data, still unconverted, of type Source::Raw; finish(raw, offset) makes floats
// of them. Grid (groups of columns, chunks). Dynamic shared memory, if blockDim.y > 1: a pack of
// floats for each thread. RowSums in ops/bias.py computes the launch; SUM_DEFINES there are its
// constants: -DSUM_THREADS, the most threads of a block, and -DROWS_IN_FLIGHT, for IN_FLIGHT.
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
