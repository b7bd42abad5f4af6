// Tiles of bf16 in shared memory as wgmma reads them, and products with them.
//
// A tile is made of panels of 64 columns; a row of a panel is 128 bytes, rows follow one another.
// The 16-byte unit u of row r lies at place u ^ (r % 8) of its row: so eight rows' units of one
// column are in eight different bank groups, and wgmma can read a tile along its rows and down them
// at full speed. This is its "128-byte swizzle"; tiles begin at multiples of 1024 bytes.
//
// -DHS columns of a tile: 64 or 128; floatX is bf16.
#pragma once

#include "lib/packs.cuh"
#include "lib/ptx_hopper.cuh"

constexpr int WARPGROUP = 128;       // threads
constexpr int GROUP_ROWS = 64;       // rows of one wgmma
constexpr int STEP = 16;             // contraction of one wgmma
constexpr int PANEL = 64;            // columns
constexpr int SWIZZLE_BYTES = 1024;  // eight rows of a panel: the pattern repeats behind them

static_assert(sizeof(floatX) == 2, "bf16 only");
static_assert(HS % PANEL == 0, "whole panels");

// ---- tiles -----------------------------------------------------------------------------------

// Starts copying rows [first, first + ROWS) of a matrix to `tile`, by all THREADS threads of the
// block; rows from `limit` on become zeros. `source` is row 0, `stride` the distance of two rows in
// elements.
template <int ROWS, int THREADS = WARPGROUP>
__device__ __forceinline__ void copy_tile(floatX* tile, const floatX* source, int stride, int first,
                                          int limit) {
    constexpr int UNITS = HS / PACK_SIZE, ROUND = THREADS / UNITS;  // rows copied at once
    // A thread takes the same unit of rows that are a multiple of eight apart: its place in them is
    // the same.
    static_assert(ROUND % 8 == 0);
    const int row = threadIdx.x / UNITS, unit = threadIdx.x % UNITS;
    floatX* to = tile + unit / 8 * (ROWS * PANEL) + row * PANEL + (unit % 8 ^ row % 8) * PACK_SIZE;
    const floatX* from = source + (long long)(first + row) * stride + unit * PACK_SIZE;
    if (first + ROWS <= limit) {
#pragma unroll
        for (int down = 0; down < ROWS; down += ROUND)
            if (ROWS % ROUND == 0 || row + down < ROWS)
                cp_async16(to + down * PANEL, from + (long long)down * stride);
    } else {
#pragma unroll
        for (int down = 0; down < ROWS; down += ROUND)
            if (ROWS % ROUND == 0 || row + down < ROWS)
                cp_async16_zfill(to + down * PANEL, from + (long long)down * stride,
                                 first + row + down < limit ? 16 : 0);
    }
}

// Waits for this thread's copies but the newest GROUPS_LEFT groups, and for those of all others:
// behind it wgmma may read them.
template <int GROUPS_LEFT>
__device__ __forceinline__ void wait_for_tiles() {
    cp_async_wait<GROUPS_LEFT>();
    fence_for_wgmma();
    __syncthreads();
}

// ---- operands in shared memory ---------------------------------------------------------------

// Names a tile. Besides its address a descriptor holds the distance in bytes of eight rows from the
// next eight and, of use only where columns of the product run over several panels, that of panels.
// Only the address, in the lower word, differs from place to place.
struct TileName {
    unsigned low, high;
    __device__ __forceinline__ TileName(const floatX* tile, int panel_bytes)
        : low((shared_address(tile) & 0x3ffff) >> 4 | unsigned(panel_bytes >> 4) << 16),
          high(1u << 30 | SWIZZLE_BYTES >> 4) {}  // the swizzle of 128 bytes
    __device__ __forceinline__ MatrixDescriptor plus(int bytes) const {
        return (MatrixDescriptor)high << 32 | (low + (bytes >> 4));
    }
};

// A tile of ROWS rows, contraction along the row: the product's rows or columns are those rows.
template <int ROWS>
struct AlongRows {
    TileName name;
    __device__ __forceinline__ explicit AlongRows(const floatX* tile) : name(tile, 16) {}
    __device__ __forceinline__ MatrixDescriptor at(int step) const {
        constexpr int STEPS = PANEL / STEP;  // of one panel
        return name.plus(step / STEPS * (ROWS * PANEL * 2) + step % STEPS * (STEP * 2));
    }
};

// A tile of ROWS rows, contraction down the rows: the product's columns are the tile's columns.
template <int ROWS>
struct DownRows {
    TileName name;
    __device__ __forceinline__ explicit DownRows(const floatX* tile)
        : name(tile, ROWS * PANEL * 2) {}
    __device__ __forceinline__ MatrixDescriptor at(int step) const {
        return name.plus(step * (STEP * PANEL * 2));
    }
};

// ---- operands in registers -------------------------------------------------------------------

// 64 rows of a warpgroup as left operand: 16 K columns, see ptx_hopper.cuh.
template <int K>
struct LeftOperand {
    unsigned steps[K][4];
    __device__ __forceinline__ const unsigned (&at(int step) const)[4] { return steps[step]; }
};

// Accumulators of 64 x 8 N as a left operand, rounded to bf16.
template <int N>
__device__ __forceinline__ void to_left_operand(LeftOperand<N / 2>& left,
                                                const float (&values)[N][4]) {
#pragma unroll
    for (int step = 0; step < N / 2; step++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float (&pair)[4] = values[2 * step + r / 2];
            left.steps[step][r] = pack_bfloat16(pair[r % 2 * 2], pair[r % 2 * 2 + 1]);
        }
    touch_registers(left.steps);  // packed here, not between a fence and its products
}

// ---- products: started here, committed and awaited by the caller -----------------------------

// scores = own rows x (8 N rows of a tile)^T, over the head.
template <int N, class Own>
__device__ __forceinline__ void start_scores(float (&scores)[N][4], const Own& own,
                                             const floatX* tile) {
    const AlongRows<8 * N> right(tile);
    wgmma_fence(scores);
#pragma unroll
    for (int step = 0; step < HS / STEP; step++)
        wgmma_bf16<false>(scores, own.at(step), right.at(step), step > 0);
}

// sums += left x tile, over the 16 K rows of the tile.
template <int K>
__device__ __forceinline__ void start_sums(float (&sums)[HS / 8][4], const LeftOperand<K>& left,
                                           const floatX* tile) {
    const DownRows<K * STEP> right(tile);
    wgmma_fence(sums);
#pragma unroll
    for (int step = 0; step < K; step++)
        wgmma_bf16<true>(sums, left.at(step), right.at(step), true);
}

// ---- results ---------------------------------------------------------------------------------

// Writes factor * sums to rows [first, first + 64) of a matrix in global memory, those below
// `limit` only; factor[1] is for the second eight rows of each warp.
__device__ __forceinline__ void store_rows(floatX* target, int stride, int first, int limit,
                                           const float (&sums)[HS / 8][4],
                                           const float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + int(threadIdx.x) / WARP * 16 + half * 8 + int(threadIdx.x) % WARP / 4;
        if (row >= limit) continue;
        floatX* to = target + (long long)row * stride + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
            *reinterpret_cast<unsigned*>(to + 8 * n) = pack_bfloat16(
                factor[half] * sums[n][2 * half], factor[half] * sums[n][2 * half + 1]);
    }
}
