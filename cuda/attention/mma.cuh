// Building blocks of attention on tensor cores: how a warp loads matrices, multiplies them with the
// instruction mma, and writes the result. bf16 uses mma.m16n8k16; float32 uses mma.m16n8k8, which
// rounds its operands to TF32. Sums, softmax and everything between two products are float32.
//
// mma computes C += A B for small matrices. All 32 lanes of a warp hold a share of each of them, in
// registers: four of A, two of B, four of C. "5:1" stands for register 1 of lane 5.
//
//    A, 16 x 16 bf16: a register holds two neighbours of a row
//
//        column    0-1   2-3   4-5   6-7    8-9  10-11 12-13 14-15
//        row  0  |  0:0   1:0   2:0   3:0 |  0:2   1:2   2:2   3:2 |
//             1  |  4:0   5:0   6:0   7:0 |  4:2   5:2   6:2   7:2 |
//            ... |                        |                        |
//             7  | 28:0  29:0  30:0  31:0 | 28:2  29:2  30:2  31:2 |
//                +------------------------+------------------------+
//             8  |  0:1   1:1   2:1   3:1 |  0:3   1:3   2:3   3:3 |
//            ... |                        |                        |
//            15  | 28:1  29:1  30:1  31:1 | 28:3  29:3  30:3  31:3 |
//
//    B, 16 x 8 bf16: two neighbours of a column    C, 16 x 8 float32: one number
//
//        column     0     1   ...    7             column    0     1     2     3   ...   6     7
//        row  0-1 |  0:0   4:0 ...  28:0 |         row  0 |  0:0   0:1   1:0   1:1 ...  3:0   3:1 |
//             2-3 |  1:0   5:0 ...  29:0 |              1 |  4:0   4:1   5:0   5:1 ...  7:0   7:1 |
//             4-5 |  2:0   6:0 ...  30:0 |             ...|                                       |
//             6-7 |  3:0   7:0 ...  31:0 |              7 | 28:0  28:1  29:0  29:1 ... 31:0  31:1 |
//                 +----------------------+                +---------------------------------------+
//             8-9 |  0:1   4:1 ...  28:1 |              8 |  0:2   0:3   1:2   1:3 ...  3:2   3:3 |
//             ... |                      |             ...|                                       |
//           14-15 |  3:1   7:1 ...  31:1 |             15 | 28:2  28:3  29:2  29:3 ... 31:2  31:3 |
//
// For TF32, a register of A or B holds one float32 in place of two bf16. The grids stay the same,
// but A is 16 x 8 and B is 8 x 8. So one mma takes 32 bytes of a row in both cases, a tile in
// shared memory is read as blocks of 8 rows x 16 bytes in both cases, and most of the code below
// serves both.
//
// Attention multiplies twice: scores = Q K^T, then sums += P V, where P comes from the scores. C of
// the first product is A of the second, and no number moves to another lane:
//
//    bf16  Two C next to each other are 16 columns of P. Lane 5 has row 1, columns 2 and 3, in its
//          registers 0 and 1 of the left C, and these are the two numbers that register 0 of A
//          takes. Registers 2, 3 of the left C become register 1 of A; registers 0, 1 of the right
//          C become register 2; registers 2, 3 of the right C become register 3.
//    TF32  One C is 8 columns of P. Lane 5 has columns 2 and 3 of row 1, but A takes columns 1 and
//          5 from it. A sum may take its terms in any order. So the columns of A are the columns
//          0 2 4 6 1 3 5 7 of P, and the rows of B are the rows 0 2 4 6 1 3 5 7 of V.
//
// -D constants, from ops/attention.py: HS head size, a multiple of 16; WARPS of a block.
//
// Sources: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "Matrix
// Fragments for mma.m16n8k8"; FlashAttention-2 (Dao 2023, arXiv:2307.08691) for warps that own rows
// and for C as the next A.
#pragma once

#include "lib/constants.cuh"
#include "lib/packs.cuh"
#include "lib/ptx.cuh"

constexpr bool IS_BF16 = sizeof(floatX) == 2;
constexpr int STEP = 32 / sizeof(floatX);  // terms of each sum of products that one mma adds up
constexpr int HEAD_STEPS = HS / STEP;
constexpr int THREADS = WARP * WARPS;
constexpr int STAGES = 2;  // pairs of tiles in shared memory: one is used while the other arrives

// Elements from one row of a tile to the next in shared memory. HS is a multiple of 16, so this is
// an odd number of packs: the packs of eight rows lie in eight different groups of four banks, and
// ldmatrix reads them at once. The scalar loads of TF32 meet 32 different banks too, as the pitch
// is 4 or 20 modulo 32 words.
constexpr int PITCH = HS + PACK_SIZE;

// Blocks that an SM should hold at once, for __launch_bounds__, where a warp owns M tiles of 16
// rows: as many as leave the kernels enough registers not to spill (as reported by ptxas).
template <int M>
constexpr int RESIDENT_BLOCKS = M > 1 || HS > 64 ? 2 : (HS <= 32 ? 3 : 2) + (IS_BF16 ? 1 : 0);

static_assert(WARPS == 4, "RESIDENT_BLOCKS counts blocks of 128 threads");
static_assert(HS % 16 == 0, "tensor-core attention takes head sizes that are multiples of 16");

// ---- lanes and fragments -----------------------------------------------------------------------

// Of C, a lane has the columns lane_column() and lane_column() + 1, in the rows lane_row() and
// lane_row() + 8. c[2 * half + r] is column lane_column() + r of row lane_row() + 8 * half.
__device__ __forceinline__ int lane_row() { return threadIdx.x % WARP / 4; }
__device__ __forceinline__ int lane_column() { return 2 * (threadIdx.x % 4); }

// c += a b.
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (IS_BF16)
        mma_m16n8k16_bf16(c, a, b, c);
    else
        mma_m16n8k8_tf32(c, a, b, c);
}

// ---- tiles: global memory -> shared memory -----------------------------------------------------

// Calls work(row, column) for this thread's packs of a tile.
template <int ROWS, class Work>
__device__ __forceinline__ void for_own_packs(Work work) {
    constexpr int PACKS = HS / PACK_SIZE, TOTAL = ROWS * PACKS;
#pragma unroll
    for (int first = 0; first < TOTAL; first += THREADS) {
        int i = first + threadIdx.x;
        if (TOTAL % THREADS == 0 || i < TOTAL) work(i / PACKS, i % PACKS * PACK_SIZE);
    }
}

// Starts copying rows [first, first + ROWS) of one head to `tile`; rows from `limit` on become
// zeros. `source` is row 0; the next row is `stride` elements behind it.
template <int ROWS>
__device__ __forceinline__ void copy_tile(floatX* tile, const floatX* source, long long stride,
                                          int first, int limit) {
    const floatX* base = source + first * stride;  // 64 bits here, 32 within the tile
    for_own_packs<ROWS>([&](int row, int column) {
        bool inside = first + row < limit;
        const floatX* from = inside ? base + (row * int(stride) + column) : source;
        cp_async16_zfill(tile + row * PITCH + column, from, inside ? 16 : 0);
    });
}

// Rounds to TF32 what this thread copied: once for each element, instead of once for each use. The
// thread must have waited for its copies; other threads see the result after the next barrier.
template <int ROWS>
__device__ __forceinline__ void round_copied(floatX* tile) {
    if constexpr (!IS_BF16)
        for_own_packs<ROWS>([&](int row, int column) {
            auto* pack = reinterpret_cast<uint4*>(tile + row * PITCH + column);
            uint4 bits = *pack;
            bits.x = tf32_round(__uint_as_float(bits.x));
            bits.y = tf32_round(__uint_as_float(bits.y));
            bits.z = tf32_round(__uint_as_float(bits.z));
            bits.w = tf32_round(__uint_as_float(bits.w));
            *pack = bits;
        });
}

// Waits until the two tiles of a stage are complete for all threads of the block. After it, no
// thread reads the other stage any more: the next copy may overwrite it.
template <int ROWS>
__device__ __forceinline__ void wait_for_stage(floatX* stage) {
    cp_async_wait<0>();
    round_copied<ROWS>(stage);
    round_copied<ROWS>(stage + ROWS * PITCH);
    __syncthreads();
}

// ---- operands in registers ---------------------------------------------------------------------

// Rows [first, first + 16 * M) of a matrix in global memory as A; rows from `limit` on are zeros.
// These are a warp's own rows: it reads them once and keeps them in registers, while tiles of the
// other matrix pass through shared memory.
template <int M>
__device__ __forceinline__ void load_own_rows(unsigned (&a)[M][HEAD_STEPS][4], const floatX* source,
                                              long long stride, int first, int limit) {
    const int first_word = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + 16 * m + 8 * half + lane_row();
            auto* words = reinterpret_cast<const unsigned*>(source + row * stride) + first_word;
#pragma unroll
            for (int step = 0; step < HEAD_STEPS; step++)
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    unsigned word = row < limit ? words[8 * step + 4 * side] : 0u;
                    a[m][step][half + 2 * side] =
                        IS_BF16 ? word : tf32_round(__uint_as_float(word));
                }
        }
}

// B of two neighbouring C: the columns 0 to 7 of the product, and 8 to 15.
struct ColumnPair {
    unsigned low[2], high[2];
};

// B = 16 rows of a tile, transposed: the columns of the product are rows of the tile, and a step
// takes 32 bytes of each. `corner` is the first element of these rows.
__device__ __forceinline__ ColumnPair load_rows(const floatX* corner) {
    const int lane = threadIdx.x % WARP;
    unsigned r[4];
    ldmatrix_x4(r, corner + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * PACK_SIZE);
    return {{r[0], r[1]}, {r[2], r[3]}};
}

// B = 16 columns of STEP rows of a tile: a step takes STEP numbers of each column. `corner` is the
// first element. For TF32, row k of B is row 2 k of the tile (k < 4) or 2 (k - 4) + 1: the order in
// which to_left_operand gives the columns of A.
__device__ __forceinline__ ColumnPair load_columns(const floatX* corner) {
    const int lane = threadIdx.x % WARP;
    if constexpr (IS_BF16) {
        unsigned r[4];
        ldmatrix_x4_trans(r, corner + lane % 16 * PITCH + lane / 16 * PACK_SIZE);
        return {{r[0], r[1]}, {r[2], r[3]}};
    } else {
        auto* even = reinterpret_cast<const unsigned*>(corner) + lane % 4 * 2 * PITCH + lane / 4;
        auto* odd = even + PITCH;
        return {{even[0], odd[0]}, {even[8], odd[8]}};
    }
}

// Columns [step * STEP, (step + 1) * STEP) of a product as A of the next product; they are two C
// for bf16, and one for TF32.
template <int N>
__device__ __forceinline__ void to_left_operand(unsigned (&a)[4], const float (&scores)[N][4],
                                                int step) {
    if constexpr (IS_BF16) {
        const float (&left)[4] = scores[2 * step], (&right)[4] = scores[2 * step + 1];
        a[0] = pack_bfloat16(left[0], left[1]);
        a[1] = pack_bfloat16(left[2], left[3]);
        a[2] = pack_bfloat16(right[0], right[1]);
        a[3] = pack_bfloat16(right[2], right[3]);
    } else {
        a[0] = tf32_round(scores[step][0]);
        a[1] = tf32_round(scores[step][2]);
        a[2] = tf32_round(scores[step][1]);
        a[3] = tf32_round(scores[step][3]);
    }
}

// ---- products ----------------------------------------------------------------------------------

// scores = own rows x (8 N rows of a tile)^T, sums over the HS columns of both.
template <int M, int N>
__device__ __forceinline__ void multiply_rows(float (&scores)[M][N][4],
                                              const unsigned (&own)[M][HEAD_STEPS][4],
                                              const floatX* tile) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int r = 0; r < 4; r++) scores[m][n][r] = 0.0f;
#pragma unroll
    for (int step = 0; step < HEAD_STEPS; step++)
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            ColumnPair b = load_rows(tile + 8 * n * PITCH + step * STEP);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(scores[m][n], own[m][step], b.low);
                mma(scores[m][n + 1], own[m][step], b.high);
            }
        }
}

// sums += scores x tile, sums over 8 N rows of the tile. The product has 8 COLUMNS columns; `tile`
// points to the first of them.
template <int M, int N, int COLUMNS>
__device__ __forceinline__ void add_product(float (&sums)[M][COLUMNS][4],
                                            const float (&scores)[M][N][4], const floatX* tile) {
#pragma unroll
    for (int step = 0; step < 8 * N / STEP; step++) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) to_left_operand(a[m], scores[m], step);
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 2) {
            ColumnPair b = load_columns(tile + step * STEP * PITCH + 8 * n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(sums[m][n], a[m], b.low);
                mma(sums[m][n + 1], a[m], b.high);
            }
        }
    }
}

// ---- results -----------------------------------------------------------------------------------

// Writes factor * sums to rows [first, first + 16 * M) of a matrix in global memory, except for
// rows from `limit` on.
template <int M, int COLUMNS>
__device__ __forceinline__ void store_rows(floatX* target, long long stride, int first, int limit,
                                           const float (&sums)[M][COLUMNS][4], float factor) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + 16 * m + 8 * half + lane_row();
            if (row >= limit) continue;
            floatX* to = target + row * stride + lane_column();
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                float low = factor * sums[m][n][2 * half], high = factor * sums[m][n][2 * half + 1];
                if constexpr (IS_BF16)
                    *reinterpret_cast<unsigned*>(to + 8 * n) = pack_bfloat16(low, high);
                else
                    *reinterpret_cast<float2*>(to + 8 * n) = make_float2(low, high);
            }
        }
}
