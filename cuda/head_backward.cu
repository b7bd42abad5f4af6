// The head's gradients from its stored logits, for few channels; contract in ops/head.py.
//
// With G = exp(logit - lse) - (1 at the target), 0 in padding columns and in rows without target:
//   dlnf = dloss * G wte,  dwte += dloss * G^T lnf.
// G, as large as the logits, exists only in registers: each kernel reads the logits once, which is
// what takes its time, and forms the fragments of G right where mma takes them. dloss comes last,
// so that G is below 1 whatever it is.
//
// -DCOLUMN_WARPS 1 or 2: a warp has 32 rows of a tile and all columns, or 64 rows and half of them;
// then it reads half as much of the other operand, but every element of G is formed twice.
// -DSTAGES of the pipeline.
#include "head_tiles.cuh"

constexpr int WARP_ROWS = 32 * COLUMN_WARPS, WARP_COLUMNS = CHANNELS / COLUMN_WARPS;
constexpr int ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8;
constexpr int STAGE = SLAB + DEPTH * CHANNELS;  // floats: a slab of logits, one of wte or lnf

static_assert(WARP_COLUMNS % 32 == 0, "columns come in fours of tiles");

using Sums = float[ROW_TILES][COLUMN_TILES][4];
using LeftOperand = unsigned[ROW_TILES][4];

__device__ __forceinline__ int warp_row() { return threadIdx.x / WARP / COLUMN_WARPS * WARP_ROWS; }
__device__ __forceinline__ int warp_column() {
    return threadIdx.x / WARP % COLUMN_WARPS * WARP_COLUMNS;
}

// An element of G as an operand.
__device__ __forceinline__ unsigned gradient(float logit, float lse) {
    return tf32_round_number(exp2_approx(logit * LOG2E - lse));
}
__device__ __forceinline__ unsigned special_gradient(float logit, float lse, int column, int target,
                                                     int V) {
    float value = exp2_approx(logit * LOG2E - lse);
    if (column == target) value -= 1.0f;
    return tf32_round_number(column < V ? value : 0.0f);
}

// sums += a x (rows k to k + 7 of a tile of DEPTH rows). Column i of n-tile 4 q + j is column
// 32 q + 4 i + j of the warp: one 128-bit load brings the operands of four tiles, and a thread gets
// eight neighbouring columns.
__device__ __forceinline__ void multiply_rows(Sums& sums, const LeftOperand& a, const float* tile,
                                              int k) {
    const int group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;
#pragma unroll
    for (int first = 0; first < COLUMN_TILES; first += 4) {
        const int column = warp_column() + 8 * first + 4 * group;
        Floats<4> low = load<4>(tile + place<FourRows, CHANNELS>(k + member, column));
        Floats<4> high = load<4>(tile + place<FourRows, CHANNELS>(k + member + 4, column));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            unsigned b[2] = {tf32_round_number(low[j]), tf32_round_number(high[j])};
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
                mma_m16n8k8_tf32(sums[m][first + j], a[m], b, sums[m][first + j]);
        }
    }
}

// The eight neighbouring columns [32 q + 8 member, ...) that this thread has of a row.
__device__ __forceinline__ Floats<8> result(const Sums& sums, int m, int half, int q) {
    Floats<8> columns;
#pragma unroll
    for (int k = 0; k < 8; k++) columns[k] = sums[m][4 * q + k % 4][2 * half + k / 4];
    return columns;
}

// Part number `part` of G wte, over its share of the columns of G.
// Written: sums (parts, N, C). Read: logits (N, Vp), wte (Vp, C), lse (N) of head_softmax,
// targets (N). Grid: ceil(N / TILE) * parts. Dynamic shared memory: STAGES * STAGE + TILE floats.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    head_dlnf(float* __restrict__ sums_of_parts, const float* __restrict__ logits,
              const float* __restrict__ wte, const float* __restrict__ lse,
              const int* __restrict__ targets, int N, int V, int Vp, int parts) {
    extern __shared__ __align__(16) float smem[];
    const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4;

    // Neighbouring blocks have the same columns: they find a tile of wte in the L2 cache.
    const int row_blocks = (N + TILE - 1) / TILE;
    const int first_row = blockIdx.x % row_blocks * TILE, part = blockIdx.x / row_blocks;
    const int first_slab = Vp / DEPTH * part / parts, last_slab = Vp / DEPTH * (part + 1) / parts;

    auto start_copy = [&](int slab) {
        if (slab < last_slab) {
            float* stage = smem + slab % STAGES * STAGE;
            copy_tile<EightRows, TILE, DEPTH>(
                stage, logits + ((long long)first_row * Vp + slab * DEPTH), Vp, N - first_row);
            copy_tile<FourRows, DEPTH, CHANNELS>(
                stage + SLAB, wte + (long long)slab * DEPTH * CHANNELS, CHANNELS, DEPTH);
        }
        cp_async_commit();
    };
    int* block_targets = reinterpret_cast<int*>(smem + STAGES * STAGE);  // they are rarely needed
    const int* warp_targets = block_targets + warp_row();
    cp_async4(block_targets + threadIdx.x, targets + min(first_row + int(threadIdx.x), N - 1));
    for (int ahead = 0; ahead < STAGES - 1; ahead++) start_copy(first_slab + ahead);

    // Of this thread's rows, 16 m + 8 half + group of the warp's. Rows from N on are computed with
    // whatever the last row has, and not stored.
    float row_lse[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            row_lse[m][half] = lse[min(first_row + warp_row() + 16 * m + 8 * half + group, N - 1)];

    Sums sums = {};
#pragma unroll 1
    for (int slab = first_slab; slab < last_slab; slab++) {
        const float* stage = smem + slab % STAGES * STAGE;
        cp_async_wait<STAGES - 2>();
        // Behind this barrier the stage is complete, and nobody reads the previous one any more.
        __syncthreads();
        start_copy(slab + STAGES - 1);

        const int first_column = slab * DEPTH;
        bool is_special = first_column + DEPTH > V;
#pragma unroll
        for (int i = 0; i < WARP_ROWS / WARP; i++)
            is_special |= unsigned(warp_targets[WARP * i + lane] - first_column) < unsigned(DEPTH);
        is_special = __any_sync(FULL_WARP, is_special);

#pragma unroll
        for (int k = 0; k < DEPTH; k += 8) {
            LeftOperand a;
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
                ldmatrix_x4(a[m], stage + (warp_row() + 16 * m) * DEPTH +
                                      place<EightRows, DEPTH>(lane % 16, k + lane / 16 * 4));
            if (is_special) {
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
                    for (int r = 0; r < 4; r++)
                        a[m][r] = special_gradient(
                            __uint_as_float(a[m][r]), row_lse[m][r % 2],
                            first_column + k + member + r / 2 * 4,
                            warp_targets[16 * m + r % 2 * 8 + group], V);
            } else {
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
                    for (int r = 0; r < 4; r++)
                        a[m][r] = gradient(__uint_as_float(a[m][r]), row_lse[m][r % 2]);
            }
            multiply_rows(sums, a, stage + SLAB, k);
        }
    }

#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row + warp_row() + 16 * m + 8 * half + group;
            if (row >= N) continue;
            float* to = sums_of_parts + ((long long)part * N + row) * CHANNELS;
#pragma unroll
            for (int q = 0; q < COLUMN_TILES / 4; q++)
                store(to + warp_column() + 32 * q + 8 * member, result(sums, m, half, q));
        }
}

// dlnf = dloss * the sum of the parts, in their order.
// Written: dlnf, num_packs * 4 floats. Read: sums_of_parts (parts, as many). One thread per pack.
extern "C" __global__ void head_dlnf_sum(float* dlnf, const float* sums_of_parts, float dloss,
                                         long long num_packs, int parts) {
    const long long pack = global_thread();
    if (pack >= num_packs) return;
    Floats<4> sum = load<4>(sums_of_parts + 4 * pack);
    for (int part = 1; part < parts; part++) {
        Floats<4> next = load<4>(sums_of_parts + 4 * (part * num_packs + pack));
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += next[i];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] *= dloss;
    store(dlnf + 4 * pack, sum);
}

// dwte += dloss * G^T lnf. Each block owns TILE rows of dwte and walks over all rows of G.
// Accumulated: dwte (Vp, C). Read: logits (N, Vp), lnf (N, C), lse (N) of head_softmax,
// targets (N). Grid: Vp / TILE. Dynamic shared memory: STAGES * (STAGE + 2 * DEPTH) floats.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    head_dwte(float* __restrict__ dwte, const float* __restrict__ logits,
              const float* __restrict__ lnf, const float* __restrict__ lse,
              const int* __restrict__ targets, float dloss, int N, int V, int Vp) {
    extern __shared__ __align__(16) float smem[];
    constexpr int ROWS_STAGE = STAGE + 2 * DEPTH;  // and lse and target of each row
    const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4;
    const int first_column = blockIdx.x * TILE;        // of G; a row of dwte
    const int own_column = first_column + warp_row();  // of this warp
    const int num_slabs = (N + DEPTH - 1) / DEPTH;

    // Rows from N on are zeros: those of lnf let G be there what it will.
    auto start_copy = [&](int slab) {
        if (slab < num_slabs) {
            const int first_row = slab * DEPTH, rows_left = N - first_row;
            float* stage = smem + slab % STAGES * ROWS_STAGE;
            copy_tile<FourRows, DEPTH, TILE>(
                stage, logits + ((long long)first_row * Vp + first_column), Vp, rows_left);
            copy_tile<FourRows, DEPTH, CHANNELS>(
                stage + SLAB, lnf + (long long)first_row * CHANNELS, CHANNELS, rows_left);
            if (threadIdx.x < 2 * DEPTH) {
                const int row = threadIdx.x % DEPTH, bytes = row < rows_left ? 4 : 0;
                const int from = bytes ? first_row + row : 0;
                const void* source = threadIdx.x < DEPTH
                                         ? static_cast<const void*>(lse + from)
                                         : static_cast<const void*>(targets + from);
                cp_async4_zfill(stage + STAGE + threadIdx.x, source, bytes);
            }
        }
        cp_async_commit();
    };
    for (int ahead = 0; ahead < STAGES - 1; ahead++) start_copy(ahead);

    Sums sums = {};
#pragma unroll 1
    for (int slab = 0; slab < num_slabs; slab++) {
        const float* stage = smem + slab % STAGES * ROWS_STAGE;
        const float* row_lse = stage + STAGE;
        const int* row_target = reinterpret_cast<const int*>(row_lse + DEPTH);
        cp_async_wait<STAGES - 2>();
        // Behind this barrier the stage is complete, and nobody reads the previous one any more.
        __syncthreads();
        start_copy(slab + STAGES - 1);

        bool is_special = own_column + WARP_ROWS > V;
        is_special |= unsigned(row_target[lane] - own_column) < unsigned(WARP_ROWS);
        is_special = __any_sync(FULL_WARP, is_special);

#pragma unroll 2  // whole, it would take more registers than there are
        for (int k = 0; k < DEPTH; k += 8) {
            // Row g + 8 half of m-tile m is column 32 (m / 2) + 4 g + 2 (m % 2) + half of G: one
            // 128-bit load brings two m-tiles.
            LeftOperand a;
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const int row = k + member + 4 * side;
                const float its_lse = row_lse[row];
#pragma unroll
                for (int four = 0; four < ROW_TILES / 2; four++) {
                    const int offset = 32 * four + 4 * group;
                    Floats<4> own =
                        load<4>(stage + place<FourRows, TILE>(row, warp_row() + offset));
                    unsigned elements[4];
                    if (is_special) {
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            elements[i] = special_gradient(own[i], its_lse, own_column + offset + i,
                                                           row_target[row], V);
                    } else {
#pragma unroll
                        for (int i = 0; i < 4; i++) elements[i] = gradient(own[i], its_lse);
                    }
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        a[2 * four + i / 2][i % 2 + 2 * side] = elements[i];
                }
            }
            multiply_rows(sums, a, stage + SLAB, k);
        }
    }

#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = own_column + 32 * (m / 2) + 4 * group + 2 * (m % 2) + half;
            float* to = dwte + (long long)row * CHANNELS + warp_column() + 8 * member;
#pragma unroll
            for (int q = 0; q < COLUMN_TILES / 4; q++) {
                Floats<8> total = load<8>(to + 32 * q), sum = result(sums, m, half, q);
#pragma unroll
                for (int i = 0; i < 8; i++) total[i] += dloss * sum[i];
                store(to + 32 * q, total);
            }
        }
}
