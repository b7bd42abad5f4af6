// Building blocks of attention on tensor cores: bf16 by mma m16n8k16, TF32 (float storage) by
// mma m16n8k8. Sums, softmax and everything between two products are float32.
//
// One mma contracts 32 bytes of a row whatever the element: 16 bf16 or 8 floats. So fragments of
// both kinds are the same 8 x 16-byte matrices, and one addressing serves both; only the operand
// whose contraction runs down the rows of a tile, and the packing of probabilities, differ.
//
// Needs -DHS (a multiple of 16), -DWARPS, floatX. Lane = 4 * group + member throughout.
#pragma once

#include "lib/packs.cuh"
#include "lib/ptx.cuh"

constexpr bool IS_BF16 = sizeof(floatX) == 2;
constexpr int STEP = 32 / sizeof(floatX);  // contraction of one mma, in elements
constexpr int HEAD_STEPS = HS / STEP;
constexpr int THREADS = WARP * WARPS;
constexpr float LOG2E = 1.4426950408889634f;

// Distance of two rows of a tile in shared memory. HS is a multiple of 16, so this is an odd number
// of 16-byte units: eight rows start in eight different bank groups and ldmatrix never waits. The
// scalar loads of TF32 meet 32 different banks too, as the pitch is 4 or 20 modulo 32 words.
constexpr int PITCH = HS + PACK_SIZE;

// Blocks that an SM should hold at once, for __launch_bounds__, where warps own M tiles of 16 rows:
// as many as leave the kernels enough registers not to spill (as reported by ptxas).
template <int M>
constexpr int RESIDENT_BLOCKS = M > 1 || HS > 64 ? 2 : (HS <= 32 ? 3 : 2) + (IS_BF16 ? 1 : 0);

static_assert(WARPS == 4, "RESIDENT_BLOCKS counts blocks of 128 threads");
static_assert(HS % 16 == 0, "tensor-core attention takes head sizes that are multiples of 16");

// d += a b.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (IS_BF16)
        mma_m16n8k16_bf16(d, a, b, d);
    else
        mma_m16n8k8_tf32(d, a, b, d);
}

// ---- tiles: global memory -> shared memory ---------------------------------------------------

// Calls work(row, column) for the 128-bit packs of a tile that fall to this thread.
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
// zeros. `source` is row 0, `stride` the distance of two rows in elements.
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

// Rounds to TF32 what this thread copied, once per element instead of once per use. The thread
// must have waited for its copies; others see the result after the next barrier.
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

// ---- fragments -------------------------------------------------------------------------------

// Rows [first, first + 16 * M) of a matrix in global memory as left operands (A), contraction
// along the row; rows from `limit` on are zeros. These are a warp's own rows: read once, they stay
// in registers while the tiles of the other side stream past.
template <int M>
__device__ __forceinline__ void load_own_rows(unsigned (&a)[M][HEAD_STEPS][4], const floatX* source,
                                              long long stride, int first, int limit) {
    const int group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + 16 * m + 8 * half + group;
            auto* words = reinterpret_cast<const unsigned*>(source + row * stride) + member;
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

// Right operands (B) of two neighbouring groups of eight output columns.
struct ColumnPair {
    unsigned low[2], high[2];
};

// Output columns = the 16 rows of a tile from `corner` on, contraction along the row.
__device__ __forceinline__ ColumnPair load_rows(const floatX* corner) {
    const int lane = threadIdx.x % WARP;
    unsigned r[4];
    ldmatrix_x4(r, corner + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * PACK_SIZE);
    return {{r[0], r[1]}, {r[2], r[3]}};
}

// Output columns = the 16 columns of a tile from `corner` on, contraction down STEP rows.
// For TF32 the k-th index of an mma stands for row 2k (k < 4) or 2(k - 4) + 1, because that is how
// accumulators hold their columns; a sum may take its terms in any order.
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

// Accumulator columns [step * STEP, (step + 1) * STEP) as a left operand.
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

// ---- products --------------------------------------------------------------------------------

// scores = own rows x (8 N rows of a tile)^T.
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

// sums += scores x (8 N rows, 8 COLUMNS columns of a tile).
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

// ---- results ---------------------------------------------------------------------------------

// Writes factor * sums to rows [first, first + 16 * M) of a matrix in global memory, those
// below `limit` only.
template <int M, int COLUMNS>
__device__ __forceinline__ void store_rows(floatX* target, long long stride, int first, int limit,
                                           const float (&sums)[M][COLUMNS][4], float factor) {
    const int group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + 16 * m + 8 * half + group;
            if (row >= limit) continue;
            floatX* to = target + row * stride + 2 * member;
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
