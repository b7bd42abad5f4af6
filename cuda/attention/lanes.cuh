// How the 128 threads of a block share rows and columns, in the attention kernels for CUDA cores.
//
//                  column lane x = 0 .. 7
//                  0     1     2    ...    7
//               +-----+-----+-----+     +-----+
//             0 |  0  |  1  |  2  | ... |  7  |  \
//  row lane   1 |  8  |  9  | 10  |     | 15  |   | warp 0
//  y = 0..15  2 | 16  | 17  | 18  |     | 23  |   |
//             3 | 24  | 25  | 26  |     | 31  |  /
//             4 | 32  | 33  | 34  |     | 39  |  \
//           ... |     |     |     |     |     |   | warp 1 ...
//               +-----+-----+-----+     +-----+
//
// The eight threads of a row lane are neighbours in one warp: what belongs to a row is added up by
// shuffles. A row lane owns the rows y, y + 16, y + 32, ...; no other warp touches them.
//
// -DHS head size, -DTHREADS of a block.
#pragma once
#include "lib/constants.cuh"
#include "lib/packs.cuh"

constexpr int COLUMN_LANES = 8;
constexpr int ROW_LANES = THREADS / COLUMN_LANES;
constexpr int COLUMNS = HS / COLUMN_LANES;  // head columns of a thread

static_assert(HS % 8 == 0 && HS <= 128, "head sizes are multiples of 8 up to 128");

__device__ __forceinline__ int row_lane() { return threadIdx.x / COLUMN_LANES; }
__device__ __forceinline__ int column_lane() { return threadIdx.x % COLUMN_LANES; }

// Sum and maximum over the eight column lanes of a row, the same in all of them.
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
    for (int lanes = 1; lanes < COLUMN_LANES; lanes *= 2)
        value += __shfl_xor_sync(FULL_WARP, value, lanes);
    return value;
}
__device__ __forceinline__ float row_max(float value) {
#pragma unroll
    for (int lanes = 1; lanes < COLUMN_LANES; lanes *= 2)
        value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, lanes));
    return value;
}
