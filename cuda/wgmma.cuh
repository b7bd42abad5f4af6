// Tiles of bf16 in shared memory as wgmma reads them, and products with them.
//
// A tile is made of panels of 64 columns; a row of a panel is 128 bytes, rows follow one another.
// The 16-byte unit u of row r lies at place u ^ (r % 8) of its row: so eight rows' units of one
// column are in eight different bank groups, and wgmma can read a tile along its rows and down them
// at full speed. This is its "128-byte swizzle". It wants tiles to begin at multiples of 1024 bytes.
//
// -DHS columns of a tile: 64 or 128; floatX is bf16.
#pragma once

#include "common.cuh"
#include "ptx_hopper.cuh"

constexpr int WARPGROUP = 128;       // threads
constexpr int GROUP_ROWS = 64;       // rows of one wgmma
constexpr int PANEL = 64;            // columns
constexpr int PANELS = HS / PANEL;
constexpr int STEP = 16;             // contraction of one wgmma
constexpr int SWIZZLE_BYTES = 1024;  // eight rows of a panel: the pattern repeats behind them

static_assert(sizeof(floatX) == 2, "bf16 only");
static_assert(HS % PANEL == 0, "whole panels");

// ---- tiles -----------------------------------------------------------------------------------

// Starts copying rows [first, first + ROWS) of one head to `tile`, by all THREADS threads of the
// block; rows from `limit` on become zeros. `source` is row 0, `stride` the distance of two rows.
template <int ROWS, int THREADS>
__device__ __forceinline__ void copy_tile(floatX* tile, const floatX* source, long long stride,
                                          int first, int limit) {
    constexpr int UNITS = HS / LANES;
    // A thread takes the same unit of rows that are a multiple of eight apart: its place in them is
    // the same.
    static_assert(THREADS % (8 * UNITS) == 0);
    const int row = threadIdx.x / UNITS, unit = threadIdx.x % UNITS;
    floatX* to = tile + unit / 8 * (ROWS * PANEL) + row * PANEL + (unit % 8 ^ row % 8) * LANES;
    const floatX* from = source + (first + row) * stride + unit * LANES;
#pragma unroll
    for (int down = 0; down < ROWS; down += THREADS / UNITS) {
        if (ROWS % (THREADS / UNITS) != 0 && row + down >= ROWS) break;
        bool inside = first + row + down < limit;
        cp_async16_zfill(to + down * PANEL, inside ? from + down * stride : source,
                         inside ? 16 : 0);
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

// Names a place in a tile. Both strides are in bytes: from eight rows to the next eight, and, only
// where columns of the product run over several panels, from panel to panel.
__device__ __forceinline__ MatrixDescriptor describe(const floatX* place, int panel_bytes) {
    constexpr MatrixDescriptor SWIZZLE_128 = 1ull << 62;
    return SWIZZLE_128 | (MatrixDescriptor)(SWIZZLE_BYTES >> 4) << 32 |
           (MatrixDescriptor)(panel_bytes >> 4) << 16 | (shared_address(place) & 0x3ffff) >> 4;
}

// A tile of ROWS rows, contraction along the row; the product's rows or columns are the tile's rows.
template <int ROWS>
struct AlongRows {
    MatrixDescriptor base;
    __device__ __forceinline__ explicit AlongRows(const floatX* tile) : base(describe(tile, 16)) {}
    __device__ __forceinline__ MatrixDescriptor at(int step) const {
        constexpr int STEPS = PANEL / STEP;  // of one panel
        int bytes = step / STEPS * (ROWS * PANEL * 2) + step % STEPS * (STEP * 2);
        return base + (bytes >> 4);
    }
};

// A tile of ROWS rows, contraction down the rows; the product's columns are the tile's columns.
template <int ROWS>
struct DownRows {
    MatrixDescriptor base;
    __device__ __forceinline__ explicit DownRows(const floatX* tile)
        : base(describe(tile, ROWS * PANEL * 2)) {}
    __device__ __forceinline__ MatrixDescriptor at(int step) const {
        return base + (step * (STEP * PANEL * 2) >> 4);
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
            const float(&pair)[4] = values[2 * step + r / 2];
            left.steps[step][r] = pack_bfloat16(pair[r % 2 * 2], pair[r % 2 * 2 + 1]);
        }
    touch_registers(left.steps);  // packed here, not between a fence and its products
}

// Rows [first, first + 64) of a matrix in global memory as this warpgroup's left operand; rows from
// `limit` on are zeros.
__device__ __forceinline__ void load_left_operand(LeftOperand<HS / STEP>& left,
                                                  const floatX* source, long long stride,
                                                  int first, int limit) {
    const int thread = threadIdx.x % WARPGROUP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + thread / WARP * 16 + half * 8 + thread % WARP / 4;
        auto* words = reinterpret_cast<const unsigned*>(source + row * stride) + thread % 4;
#pragma unroll
        for (int step = 0; step < HS / STEP; step++)
#pragma unroll
            for (int side = 0; side < 2; side++)
                left.steps[step][half + 2 * side] = row < limit ? words[8 * step + 4 * side] : 0u;
    }
}

// The two numbers of register r of step `step`, as floats.
template <int K>
__device__ __forceinline__ void unpack(float& low, float& high, const LeftOperand<K>& left, int n, int half) {
    unpack_bfloat16(low, high, left.steps[n / 2][n % 2 * 2 + half]);
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
// `limit` only.
__device__ __forceinline__ void store_rows(floatX* target, long long stride, int first, int limit,
                                           const float (&sums)[HS / 8][4], const float (&factor)[2]) {
    const int thread = threadIdx.x % WARPGROUP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + thread / WARP * 16 + half * 8 + thread % WARP / 4;
        if (row >= limit) continue;
        floatX* to = target + row * stride + thread % 4 * 2;
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
            *reinterpret_cast<unsigned*>(to + 8 * n) = pack_bfloat16(
                factor[half] * sums[n][2 * half], factor[half] * sums[n][2 * half + 1]);
    }
}
