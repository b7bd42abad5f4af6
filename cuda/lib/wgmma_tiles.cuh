// Matrix products of a warpgroup (128 threads). A block copies tiles of bf16 matrices to shared
// memory, the tensor cores multiply them there with wgmma (lib/ptx_hopper.cuh), and each thread
// finds its share of the product in its registers. Each of the two places has its layout.
//
// In shared memory, a tile lies in panels of 64 columns, one panel after the other. A row of a
// panel has 128 bytes, which are eight packs; the next row follows. Pack p of row r lies at place
// p ^ (r % 8) of its row. The name of this order is "128-byte swizzle". Numbers in the picture are
// packs; rows 8 to 15, 16 to 23, ... look the same:
//
//                        places in the row, 16 bytes each
//                          0   1   2   3   4   5   6   7
//                        +---+---+---+---+---+---+---+---+
//                  row 0 | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
//                      1 | 1 | 0 | 3 | 2 | 5 | 4 | 7 | 6 |
//                      2 | 2 | 3 | 0 | 1 | 6 | 7 | 4 | 5 |
//                      3 | 3 | 2 | 1 | 0 | 7 | 6 | 5 | 4 |
//                      4 | 4 | 5 | 6 | 7 | 0 | 1 | 2 | 3 |
//                      5 | 5 | 4 | 7 | 6 | 1 | 0 | 3 | 2 |
//                      6 | 6 | 7 | 4 | 5 | 2 | 3 | 0 | 1 |
//                      7 | 7 | 6 | 5 | 4 | 3 | 2 | 1 | 0 |
//                        +---+---+---+---+---+---+---+---+
//
// For example, the element in row 5, column 40 of a panel belongs to pack 5. This pack lies at
// place 5 ^ 5 = 0 of its row, and the element at byte 5 * 128 + 0 = 640 of the panel.
//
// A place stands for four of the 32 banks. Look for pack 2: it lies at eight different places in
// the eight rows. So the same pack of eight rows is read as fast as the eight packs of one row, and
// wgmma can read a tile along its rows and down them at full speed.
//
// wgmma computes each address as if the rows were not swizzled, then XORs bits 4 to 6 of the
// address, which are the pack, with bits 7 to 9, which are row % 8. In the example, the address is
// 5 * 128 + 5 * 16 = 720; its bits 4 to 6 and its bits 7 to 9 both hold 5, and the result is 640.
// Two rules follow. Eight rows take 1024 bytes, so a tile must begin at a multiple of 1024 bytes:
// else bits 7 to 9 are not row % 8. And the caller moves along a row as if it were not swizzled:
// 16 columns further is always 32 bytes further.
//
// In registers, an accumulator of 64 rows x 8 N columns is float sums[N][4] in each thread of the
// warpgroup. The picture shows sums[0], which are columns 0 to 7; "5:1" is sums[0][1] of thread 5:
//
//        column    0     1      2     3      4     5      6     7
//       row  0   |  0:0   0:1    1:0   1:1    2:0   2:1    3:0   3:1 |
//            1   |  4:0   4:1    5:0   5:1    6:0   6:1    7:0   7:1 |
//            ... |                                                   |
//            7   | 28:0  28:1   29:0  29:1   30:0  30:1   31:0  31:1 |
//            8   |  0:2   0:3    1:2   1:3    2:2   2:3    3:2   3:3 |  warp 0
//            ... |                                                   |
//           15   | 28:2  28:3   29:2  29:3   30:2  30:3   31:2  31:3 |
//           16   | 32:0  32:1   33:0  33:1   34:0  34:1   35:0  35:1 |  warp 1
//            ... |                                                   |
//
// So a thread has two rows, 8 apart, and four neighbouring lanes share a row: two shuffles add up a
// row. The left operand of wgmma has the same layout in registers, two bf16 in each: a product can
// be the left operand of the next one, and no number moves to another thread.
//
// -DHS columns of a tile: 64 or 128; floatX is bf16.
//
// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions", there
// "Register Fragments", "Shared Memory Matrix Layout" and "Matrix Descriptor Format".
#pragma once

#include "lib/packs.cuh"
#include "lib/ptx_hopper.cuh"

constexpr int WARPGROUP = 128;       // threads
constexpr int GROUP_ROWS = 64;       // rows of one wgmma
constexpr int STEP = 16;             // k of one wgmma: 64 x 16 times 16 x 8 N
constexpr int PANEL = 64;            // columns
constexpr int SWIZZLE_BYTES = 1024;  // eight rows of a panel, after which the pattern repeats

static_assert(sizeof(floatX) == 2, "bf16 only");
static_assert(HS % PANEL == 0, "whole panels");

// ---- tiles ------------------------------------------------------------------------------------

// Starts copying rows [first, first + ROWS) of a matrix to `tile`, by all THREADS threads of the
// block; rows from `limit` on become zeros. `source` is row 0, `stride` the distance of two rows in
// elements.
template <int ROWS, int THREADS = WARPGROUP>
__device__ __forceinline__ void copy_tile(floatX* tile, const floatX* source, int stride, int first,
                                          int limit) {
    constexpr int ROW_PACKS = HS / PACK_SIZE, ROWS_AT_ONCE = THREADS / ROW_PACKS;
    // A thread copies the same pack of rows that are a multiple of eight apart, so it lies at the
    // same place in all of them.
    static_assert(ROWS_AT_ONCE % 8 == 0);
    const int row = threadIdx.x / ROW_PACKS, pack = threadIdx.x % ROW_PACKS;
    floatX* to = tile + pack / 8 * (ROWS * PANEL) + row * PANEL + (pack % 8 ^ row % 8) * PACK_SIZE;
    const floatX* from = source + (long long)(first + row) * stride + pack * PACK_SIZE;
    if (first + ROWS <= limit) {
#pragma unroll
        for (int down = 0; down < ROWS; down += ROWS_AT_ONCE)
            if (ROWS % ROWS_AT_ONCE == 0 || row + down < ROWS)
                cp_async16(to + down * PANEL, from + (long long)down * stride);
    } else {
#pragma unroll
        for (int down = 0; down < ROWS; down += ROWS_AT_ONCE)
            if (ROWS % ROWS_AT_ONCE == 0 || row + down < ROWS)
                cp_async16_zfill(to + down * PANEL, from + (long long)down * stride,
                                 first + row + down < limit ? 16 : 0);
    }
}

// Waits until the copies of all threads of the block are complete, except for the newest
// GROUPS_LEFT groups of each. After it wgmma may read the tiles.
template <int GROUPS_LEFT>
__device__ __forceinline__ void wait_for_tiles() {
    cp_async_wait<GROUPS_LEFT>();
    fence_for_wgmma();
    __syncthreads();
}

// ---- operands in shared memory ----------------------------------------------------------------

// Tells wgmma where a tile lies. The 64 bits are two words; addresses and distances are in units of
// 16 bytes:
//
//    low   bits  0-13   the address in shared memory
//          bits 16-29   PTX's leading byte offset: from a panel to the next one. It counts only in
//                       DownRows, where the columns of the product may run over several panels.
//    high  bits  0-13   PTX's stride byte offset: from eight rows to the next eight
//          bits 30-31   1: 128-byte swizzle
//
// Only the lower word differs between the pieces of a tile.
struct TileDescriptor {
    unsigned low, high;
    __device__ __forceinline__ TileDescriptor(const floatX* tile, int panel_bytes)
        : low((shared_address(tile) & 0x3ffff) >> 4 | unsigned(panel_bytes >> 4) << 16),
          high(1u << 30 | SWIZZLE_BYTES >> 4) {}
    __device__ __forceinline__ MatrixDescriptor plus(int bytes) const {
        return (MatrixDescriptor)high << 32 | (low + (bytes >> 4));
    }
};

// What each step of a product reads of a tile of 64 rows with HS = 64. A step is one wgmma:
//
//        columns  0-15     16-31    32-47    48-63             0-63
//    rows  0-15 | step 0 | step 1 | step 2 | step 3 |        | step 0 |
//    rows 16-31 | step 0 | step 1 | step 2 | step 3 |        | step 1 |
//    rows 32-47 | step 0 | step 1 | step 2 | step 3 |        | step 2 |
//    rows 48-63 | step 0 | step 1 | step 2 | step 3 |        | step 3 |
//                    AlongRows: K in Q K^T             DownRows: V in P V

// A tile of ROWS rows as the left matrix, or as the right matrix transposed: its rows are columns
// of the right matrix. A step reads 16 columns of the tile.
template <int ROWS>
struct AlongRows {
    TileDescriptor descriptor;
    __device__ __forceinline__ explicit AlongRows(const floatX* tile)
        : descriptor(tile, 16) {}  // the distance of panels is ignored here: `at` adds it
    __device__ __forceinline__ MatrixDescriptor at(int step) const {
        constexpr int STEPS = PANEL / STEP;  // of one panel
        return descriptor.plus(step / STEPS * (ROWS * PANEL * 2) + step % STEPS * (STEP * 2));
    }
};

// A tile of ROWS rows as the right matrix. A step reads 16 rows of the tile.
template <int ROWS>
struct DownRows {
    TileDescriptor descriptor;
    __device__ __forceinline__ explicit DownRows(const floatX* tile)
        : descriptor(tile, ROWS * PANEL * 2) {}
    __device__ __forceinline__ MatrixDescriptor at(int step) const {
        return descriptor.plus(step * (STEP * PANEL * 2));
    }
};

// ---- operands in registers --------------------------------------------------------------------

// 64 rows x 16 K columns as the left operand of a warpgroup. In each step a thread has four
// registers of two neighbouring columns: 2 t and 2 t + 1 of its two rows, then 2 t + 8 and 2 t + 9,
// where t is lane % 4.
template <int K>
struct LeftOperand {
    unsigned steps[K][4];
    __device__ __forceinline__ const unsigned (&at(int step) const)[4] { return steps[step]; }
};

// An accumulator of 64 x 8 N as a left operand, rounded to bf16: 16 of its columns make one step.
template <int N>
__device__ __forceinline__ void to_left_operand(LeftOperand<N / 2>& left,
                                                const float (&values)[N][4]) {
#pragma unroll
    for (int step = 0; step < N / 2; step++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float (&columns)[4] = values[2 * step + r / 2];
            left.steps[step][r] = pack_bfloat16(columns[r % 2 * 2], columns[r % 2 * 2 + 1]);
        }
    // Without this, the compiler might pack later, after the fence of the next products: the fence
    // makes only registers ready that were written before it.
    touch_registers(left.steps);
}

// ---- products: started here; the caller commits them and waits for them -----------------------

// products = 64 rows of the left operand x (8 N rows of a tile)^T: the product of each row of the
// one with each row of the other, over their HS columns.
template <int N, class Left>
__device__ __forceinline__ void start_row_products(float (&products)[N][4], const Left& left,
                                                   const floatX* tile) {
    const AlongRows<8 * N> right(tile);
    wgmma_fence(products);
#pragma unroll
    for (int step = 0; step < HS / STEP; step++)
        wgmma_bf16<false>(products, left.at(step), right.at(step), step > 0);
}

// sums += left x tile, sums over the 16 K rows of the tile.
template <int K>
__device__ __forceinline__ void start_sums(float (&sums)[HS / 8][4], const LeftOperand<K>& left,
                                           const floatX* tile) {
    const DownRows<K * STEP> right(tile);
    wgmma_fence(sums);
#pragma unroll
    for (int step = 0; step < K; step++)
        wgmma_bf16<true>(sums, left.at(step), right.at(step), true);
}

// ---- results ----------------------------------------------------------------------------------

// The first of this thread's two rows of an accumulator whose first row is row `first` of a matrix;
// the other one lies 8 below. If a block has several warpgroups, the rows of each follow those of
// the one before.
__device__ __forceinline__ int accumulator_row(int first) {
    return first + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
}

// The first of this thread's columns of an accumulator. The columns are this one + 8 n + (0 or 1).
__device__ __forceinline__ int accumulator_column() { return threadIdx.x % 4 * 2; }

// Writes factor * sums to rows [first, first + 64) of a matrix in global memory, except for rows
// from `limit` on. factor[0] is for the first of the thread's two rows, factor[1] for the second.
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
