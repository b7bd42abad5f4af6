// The language-model head on Hopper's tensor cores (wgmma), bf16: the losses, and the gradient of
// the logits, without storing the logits, which are inp x wte^T; contract in ops/lm_head.py.
//
// The logits are computed twice. The first kernel keeps of each row only what softmax needs, a
// maximum and a sum. The last kernel turns each tile of logits into its gradient while it is in
// registers. For few channels this costs less than writing the logits and reading them again. At
// the peak rates of an H100, a logit of 128 channels, 256 operations, takes 0.26 ps of the tensor
// cores (989 Tflop/s); writing its two bytes takes 0.6 ps (3.35 TB/s), and so does reading them.
// dinp and dwte are products of the gradient, which cuBLASLt computes.
//
//    lm_head_statistics    logits -> shifts, denominators (vocab splits, N); target_logits (N)
//    lm_head_losses        joins the vocab splits -> losses (N), log2_sums (N)
//    lm_head_gradient      logits, log2_sums -> dlogits (N, Vp)
//
// The softmax of a logit is 2^(logit * LOG2E - shift) / denominator, where shift is the largest
// logit of the columns concerned times LOG2E, and log2_sum = shift + log2(denominator) of all
// columns.
//
// A block has GROUPS * 64 rows and a vocab split, a share of the columns; the columns of the logits
// are rows of wte. The block goes through its columns in rounds of 256, which are two pairs of
// tiles of 64. The tiles come in pairs because a warpgroup has two accumulators that take turns:
// while it finishes one, the tensor cores fill the other. For two splits:
//
//                          columns of the logits
//                      |     vocab split 0     |     vocab split 1     |
//                      | round | round | round | round | round | round |
//    GROUPS * 64 rows  |        block 0        |        block 2        |
//    GROUPS * 64 rows  |        block 1        |        block 3        |
//
//    a round           | tile 0 | tile 1 | tile 0 | tile 1 |
//                       `---- pair ----'  `---- pair ----'
//
// The rows of inp stay in registers, as the left operand. Shared memory has STAGES places for pairs
// of tiles of wte: for the pair in use, for the one before it, and for those that are being copied.
// A product is 64 rows x one tile for each warpgroup. While the tensor cores compute one, the other
// units finish the one before it: for the statistics the exponentials and their sum, for the
// gradient the exponentials and the output.
//
// The time line of a warpgroup; "p0 t1" is tile 1 of pair 0. Each | is a barrier, after which the
// pair named next to it is complete in shared memory:
//
//    time ------------------------------------------------------------------------------------->
//                  |  pair 0          |  pair 1                   |  pair 2
//    copies        |  pair 1          |  pair 2                   |  pair 3
//    tensor cores  |  p0 t0   p0 t1   |  p1 t0   p1 t1   (none)   |  p2 t0   p2 t1
//    other units   |          p0 t0   |  p0 t1   p1 t0   p1 t1    |          p2 t0
//                   `------------------ a round -----------------'
//
// While the warpgroup finishes the last tile of a round, none of its products is in flight. Then
// the tensor cores work for other warpgroups.
//
// -D constants, from ops/lm_head.py: C channels, 64 or 128; GROUPS warpgroups of a block; STAGES;
// PAIR_COLUMNS and ROUND_COLUMNS, columns of a pair and of a round; ROUND_PITCH, elements between
// two rows of a round in shared memory.
#include "lib/constants.cuh"

constexpr int HS = C;  // the columns of a tile in wgmma_tiles.cuh
#include "lib/wgmma_tiles.cuh"

constexpr int THREADS = WARPGROUP * GROUPS;
constexpr int BLOCK_ROWS = GROUP_ROWS * GROUPS;
constexpr int COLUMNS = PAIR_COLUMNS / 2;   // of one product: tokens, rows of a tile of wte
constexpr int TILE = COLUMNS * C;           // elements
constexpr int PREFETCH_PAIRS = STAGES - 2;  // that are being copied
constexpr int ROUND_PAIRS = ROUND_COLUMNS / PAIR_COLUMNS;
constexpr int WARP_ROWS = 16;  // of a warp in a product
constexpr int NO_TARGET = -1;

static_assert(COLUMNS % 8 == 0 && ROUND_COLUMNS % PAIR_COLUMNS == 0, "whole tiles and pairs");
static_assert(ROUND_COLUMNS == WARP * PACK_SIZE, "a warp stores one row of a round at a time");
static_assert(PREFETCH_PAIRS >= 1, "a pair of tiles is copied while another is used");

// ---- who computes which logits ------------------------------------------------------------------

// The logits of 64 rows and one tile. A thread has those of two rows, which are 8 apart:
// logits[n][2 * half + r] is in row thread_row(range) + 8 * half of all N, and in column
// accumulator_column() + 8 * n + r of the tile.
using Logits = float[COLUMNS / 8][4];

// The rows and the vocab split of a block. Neighbouring blocks have the same split, so they find
// its rows of wte in the L2 cache.
struct LogitsRange {
    int first_row, vocab_split, first_column, num_pairs;
    __device__ __forceinline__ LogitsRange(int N, int Vp) {
        const int num_row_blocks = (N + BLOCK_ROWS - 1) / BLOCK_ROWS;
        const int num_splits = gridDim.x / num_row_blocks;
        const int num_rounds = (Vp + ROUND_COLUMNS - 1) / ROUND_COLUMNS;
        first_row = int(blockIdx.x) % num_row_blocks * BLOCK_ROWS;
        vocab_split = blockIdx.x / num_row_blocks;
        const int first_round = int((long long)vocab_split * num_rounds / num_splits);
        const int last_round = int((long long)(vocab_split + 1) * num_rounds / num_splits);
        first_column = first_round * ROUND_COLUMNS;
        num_pairs = (last_round - first_round) * ROUND_PAIRS;
    }
};

// The first of this thread's two rows of all N, which is accumulator_row(range.first_row);
// the other lies 8 below.
__device__ __forceinline__ int thread_row(const LogitsRange& range) {
    const int thread = threadIdx.x % WARPGROUP;
    return range.first_row + threadIdx.x / WARPGROUP * GROUP_ROWS + thread / WARP * WARP_ROWS +
           thread % WARP / 4;
}

// ---- computing the logits -----------------------------------------------------------------------

// Rows [first, first + 64) of a matrix in global memory as this warpgroup's left operand; rows from
// `limit` on are zeros.
__device__ __forceinline__ void load_left_operand(LeftOperand<C / STEP>& left, const floatX* source,
                                                  long long stride, int first, int limit) {
    const int thread = threadIdx.x % WARPGROUP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + thread / WARP * WARP_ROWS + half * 8 + thread % WARP / 4;
        auto* words = reinterpret_cast<const unsigned*>(source + row * stride) + thread % 4;
#pragma unroll
        for (int step = 0; step < C / STEP; step++)
#pragma unroll
            for (int side = 0; side < 2; side++)
                left.steps[step][half + 2 * side] = row < limit ? words[8 * step + 4 * side] : 0u;
    }
}

// Computes the logits of the block's rows and vocab split and calls finish(logits, first column)
// for each tile. While a warpgroup finishes one product, the tensor cores compute its next one,
// or those of other warpgroups.
template <class Finish>
__device__ __forceinline__ void for_all_logits(const LogitsRange& range, const floatX* inp,
                                               const floatX* wte, int N, int Vp, Finish finish) {
    extern __shared__ __align__(1024) floatX smem[];
    auto tile = [&](int pair, int side) { return smem + (pair % STAGES * 2 + side) * TILE; };
    auto start_copy = [&](int pair) {
        if (pair < range.num_pairs) {
            const int first = range.first_column + pair * PAIR_COLUMNS;
            copy_tile<COLUMNS, THREADS>(tile(pair, 0), wte, C, first, Vp);
            copy_tile<COLUMNS, THREADS>(tile(pair, 1), wte, C, first + COLUMNS, Vp);
        }
        cp_async_commit();  // one group for each pair, even an empty one: groups are counted
    };
#pragma unroll
    for (int pair = 0; pair < PREFETCH_PAIRS; pair++) start_copy(pair);
    LeftOperand<C / STEP> left;
    load_left_operand(left, inp, C, range.first_row + int(threadIdx.x) / WARPGROUP * GROUP_ROWS, N);

    Logits logits0, logits1;  // of the two tiles of a pair
    for (int round = 0; round < range.num_pairs; round += ROUND_PAIRS) {
#pragma unroll
        for (int i = 0; i < ROUND_PAIRS; i++) {
            const int pair = round + i, first = range.first_column + pair * PAIR_COLUMNS;
            // After this barrier the tiles of this pair are complete, and no thread reads those of
            // two pairs ago any more: the next copy overwrites them.
            wait_for_tiles<PREFETCH_PAIRS - 1>();
            start_copy(pair + PREFETCH_PAIRS);
            start_row_products(logits0, left, tile(pair, 0));
            wgmma_commit();
            if (i > 0) {
                wgmma_wait<1>(logits1);  // of the pair before
                finish(logits1, first - COLUMNS);
            }
            start_row_products(logits1, left, tile(pair, 1));
            wgmma_commit();
            wgmma_wait<1>(logits0);
            finish(logits0, first);
        }
        // ptxas does not let a product run in parallel with other work across iterations of a loop
        // that is not unrolled.
        wgmma_wait<0>(logits1);
        finish(logits1, range.first_column + (round + ROUND_PAIRS) * PAIR_COLUMNS - COLUMNS);
    }
}

// Calls use(n, r) if one of the thread's columns of a tile, first + 8 n + r, is the target.
template <class Use>
__device__ __forceinline__ void if_target(int target, int first, Use use) {
    if ((unsigned)(target - first) < (unsigned)COLUMNS) {
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                if (first + 8 * n + r == target) use(n, r);
    }
}

// ---- statistics ---------------------------------------------------------------------------------

// The padding gets no probability.
__device__ __forceinline__ void mask_padding(Logits& logits, int first, int V) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (first + 8 * n + r % 2 >= V) logits[n][r] = MASKED;
}

// Takes a tile's logits of one of the thread's rows into account: `sum` becomes the sum of
// 2^(logit * LOG2E - shift) over the columns so far, where shift is the largest logit * LOG2E.
__device__ __forceinline__ void add_to_softmax(float& shift, float& sum, const Logits& logits,
                                               int half) {
    float largest = logits[0][2 * half];
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
        largest = fmaxf(largest, fmaxf(logits[n][2 * half], logits[n][2 * half + 1]));
    const float new_shift = fmaxf(shift, largest * LOG2E);
    float total = sum * exp2_approx(shift - new_shift);
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
        total += exp2_approx(logits[n][2 * half] * LOG2E - new_shift) +
                 exp2_approx(logits[n][2 * half + 1] * LOG2E - new_shift);
    shift = new_shift;
    sum = total;
}

// Joins the results of the four lanes that share a row; all of them get the result.
__device__ __forceinline__ void join_lanes(float& shift, float& sum) {
    float new_shift = fmaxf(shift, __shfl_xor_sync(FULL_WARP, shift, 1));
    new_shift = fmaxf(new_shift, __shfl_xor_sync(FULL_WARP, new_shift, 2));
    float total = sum * exp2_approx(shift - new_shift);
    total += __shfl_xor_sync(FULL_WARP, total, 1);
    total += __shfl_xor_sync(FULL_WARP, total, 2);
    shift = new_shift;
    sum = total;
}

// For each row and vocab split, over the columns below V: shift = the largest logit * LOG2E, and
// denominator = the sum of 2^(logit * LOG2E - shift). Written: shifts, denominators (num splits,
// N), target_logits (N) of rows with a target. Read: inp (N, C), wte (Vp, C), targets (N), -1 for
// none. Vp is a multiple of 128, and no split is empty. Grid: num splits * ceil(N / BLOCK_ROWS).
// Block: THREADS. Dynamic shared memory: 2 * STAGES tiles.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    lm_head_statistics(float* __restrict__ shifts, float* __restrict__ denominators,
                       float* __restrict__ target_logits, const floatX* __restrict__ inp,
                       const floatX* __restrict__ wte, const int* __restrict__ targets, int N,
                       int V, int Vp) {
    const LogitsRange range(N, Vp);
    const int row = thread_row(range);
    int target[2];
    float shift[2] = {MASKED, MASKED}, sum[2] = {};  // of this thread's columns
#pragma unroll
    for (int half = 0; half < 2; half++)
        target[half] = row + 8 * half < N ? targets[row + 8 * half] : NO_TARGET;

    for_all_logits(range, inp, wte, N, Vp, [&](Logits& logits, int tile_first) {
        const int first = tile_first + accumulator_column();
        if (first + COLUMNS > V) mask_padding(logits, first, V);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if_target(target[half], first, [&](int n, int r) {
                target_logits[row + 8 * half] = logits[n][2 * half + r];
            });
            add_to_softmax(shift[half], sum[half], logits, half);
        }
    });

#pragma unroll
    for (int half = 0; half < 2; half++) {
        join_lanes(shift[half], sum[half]);
        const long long index = (long long)range.vocab_split * N + row + 8 * half;
        if (threadIdx.x % 4 == 0 && row + 8 * half < N) {
            shifts[index] = shift[half];
            denominators[index] = sum[half];
        }
    }
}

// ---- losses -------------------------------------------------------------------------------------

// losses[n] += the loss of row n, and log2_sums[n] = log2 of the sum of exp(logit) over its columns
// below V. Rows without a target get no loss, and a log2_sum that makes all their probabilities 0.
// Accumulated: losses (N). Written: log2_sums (N). Read: shifts, denominators (num_splits, N) and
// target_logits (N) of lm_head_statistics, targets (N). One thread for each row.
extern "C" __global__ void lm_head_losses(float* losses, float* log2_sums, const float* shifts,
                                          const float* denominators, const float* target_logits,
                                          const int* targets, int N, int num_splits) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N) return;
    if (targets[row] < 0) {
        log2_sums[row] = -MASKED;
        return;
    }
    float shift = MASKED, sum = 0.0f;  // of all columns
    for (int split = 0; split < num_splits; split++)
        shift = fmaxf(shift, shifts[(long long)split * N + row]);
    for (int split = 0; split < num_splits; split++) {
        const long long index = (long long)split * N + row;
        sum += denominators[index] * exp2f(shifts[index] - shift);
    }
    const float log2_sum = shift + log2f(sum);
    losses[row] += log2_sum * LN2 - target_logits[row];
    log2_sums[row] = log2_sum;
}

// ---- gradient -----------------------------------------------------------------------------------

// logits -> dloss * softmax in one of the thread's rows, 0 from column V on. The thread's columns
// begin at `first`, those of the tile at tile_first.
__device__ __forceinline__ void to_scaled_probabilities(Logits& logits, int half, float shift,
                                                        int first, int tile_first, int V) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (int r = 2 * half; r < 2 * half + 2; r++) {
            logits[n][r] = exp2_approx(logits[n][r] * LOG2E - shift);
            if (tile_first + COLUMNS > V && first + 8 * n + r % 2 >= V) logits[n][r] = 0.0f;
        }
}

// Puts one of the thread's rows of a tile into a warp's part of shared memory, as bf16.
__device__ __forceinline__ void gather(floatX* to, const Logits& dlogits, int half) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
        *reinterpret_cast<unsigned*>(to + 8 * n) =
            pack_bfloat16(dlogits[n][2 * half], dlogits[n][2 * half + 1]);
}

// Writes the gathered round of a warp's 16 rows to memory, a row of the round at a time: 512
// contiguous bytes. The warp's rows begin at warp_row, this lane's pack of them at `column`.
__device__ __forceinline__ void write_round(floatX* dlogits, const floatX* from, int warp_row,
                                            int column, int N, int Vp) {
    floatX* to = dlogits + (long long)warp_row * Vp + column;
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++)
        if (warp_row + i < N && column < Vp)
            *reinterpret_cast<uint4*>(to + (long long)i * Vp) =
                *reinterpret_cast<const uint4*>(from + i * ROUND_PITCH);
}

// dlogits = dloss times the gradient of the loss, dloss * (softmax - [column is the target]); 0
// from column V on. Written: dlogits (N, Vp). Read: log2_sums (N) of lm_head_losses; the rest, grid
// and block as for lm_head_statistics. Dynamic shared memory: 2 * STAGES tiles, and WARP_ROWS *
// ROUND_PITCH elements for each warp, where it gathers a round of its rows. If a warp wrote each
// tile to memory at once, 128 bytes of a row at a time, the writes would take twice the time.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    lm_head_gradient(floatX* __restrict__ dlogits, const float* __restrict__ log2_sums,
                     const floatX* __restrict__ inp, const floatX* __restrict__ wte,
                     const int* __restrict__ targets, int N, int V, int Vp, float dloss) {
    extern __shared__ __align__(1024) floatX smem[];
    const int lane = threadIdx.x % WARP;
    floatX* gathered = smem + 2 * STAGES * TILE + threadIdx.x / WARP * (WARP_ROWS * ROUND_PITCH);

    const LogitsRange range(N, Vp);
    const int row = thread_row(range);
    const float log2_dloss = log2f(dloss);
    int target[2];
    float shift[2];  // dloss * softmax = 2^(logit * LOG2E - shift)
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const bool inside = row + 8 * half < N;
        target[half] = inside ? targets[row + 8 * half] : NO_TARGET;
        shift[half] = (inside ? log2_sums[row + 8 * half] : -MASKED) - log2_dloss;
    }

    for_all_logits(range, inp, wte, N, Vp, [&](Logits& logits, int tile_first) {
        const int first = tile_first + accumulator_column();
        const int round_column = (tile_first - range.first_column) % ROUND_COLUMNS;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            to_scaled_probabilities(logits, half, shift[half], first, tile_first, V);
            if_target(target[half], first, [&](int n, int r) { logits[n][2 * half + r] -= dloss; });
            gather(gathered + (lane / 4 + 8 * half) * ROUND_PITCH + round_column +
                       accumulator_column(),
                   logits, half);
        }
        if (round_column + COLUMNS < ROUND_COLUMNS) return;
        __syncwarp();
        write_round(dlogits, gathered + lane * PACK_SIZE, row - lane / 4,
                    tile_first + COLUMNS - ROUND_COLUMNS + lane * PACK_SIZE, N, Vp);
        // The next round is gathered only after a barrier of the block.
    });
}
