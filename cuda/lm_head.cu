// The language-model head on Hopper's tensor cores (wgmma), bf16: the loss and the gradient of the
// logits, inp x wte^T, without storing the logits; contract in ops/lm_head.py.
//
// The logits are computed twice. The first kernel keeps of each row only what softmax needs, a
// maximum and a sum. The last kernel turns each tile of logits into its gradient while it is in
// registers. For few channels this costs less than writing the logits and reading them again:
// with 128 channels a product takes as long as writing half of its result. dinp and dwte are
// products of the gradient, which cuBLASLt computes.
//
//    lm_head_statistics    logits -> largest, denominator (vocab splits, N); target_logits (N)
//    lm_head_losses        joins the vocab splits -> losses (N), lse (N)
//    lm_head_gradient      logits, lse -> dlogits (N, Vp)
//
// A block has GROUPS * 64 rows and a vocab split, a share of the columns. It goes through the
// columns in rounds of pairs of tiles; the columns of the logits are rows of wte. For two splits:
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
//    time ------------------------------------------------------------------------------->
//    copies        | pair 1                       | pair 2                       | pair 3
//    tensor cores  | p0 tile 0    | p0 tile 1     | p1 tile 0    | p1 tile 1     |
//    other units                  | finish p0 t0  | finish p0 t1 | finish p1 t0  | finish p1 t1
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
// scores[n][2 * half + r] is in row thread_row + 8 * half and column thread_column + 8 * n + r.
using Scores = float[COLUMNS / 8][4];

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

// The first of this thread's two rows; the other lies 8 below.
__device__ __forceinline__ int thread_row(const LogitsRange& range) {
    const int thread = threadIdx.x % WARPGROUP;
    return range.first_row + threadIdx.x / WARPGROUP * GROUP_ROWS + thread / WARP * WARP_ROWS +
           thread % WARP / 4;
}
__device__ __forceinline__ int thread_column() { return threadIdx.x % 4 * 2; }

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

// Computes the logits of the block's rows and vocab split and calls finish(scores, first column)
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
    LeftOperand<C / STEP> own;
    load_left_operand(own, inp, C, range.first_row + int(threadIdx.x) / WARPGROUP * GROUP_ROWS, N);

    Scores scores0, scores1;  // of the two tiles of a pair
    for (int round = 0; round < range.num_pairs; round += ROUND_PAIRS) {
#pragma unroll
        for (int i = 0; i < ROUND_PAIRS; i++) {
            const int pair = round + i, first = range.first_column + pair * PAIR_COLUMNS;
            // After this barrier the tiles of this pair are complete, and no thread reads those of
            // two pairs ago any more: the next copy overwrites them.
            wait_for_tiles<PREFETCH_PAIRS - 1>();
            start_copy(pair + PREFETCH_PAIRS);
            start_scores(scores0, own, tile(pair, 0));
            wgmma_commit();
            if (i > 0) {
                wgmma_wait<1>(scores1);  // of the pair before
                finish(scores1, first - COLUMNS);
            }
            start_scores(scores1, own, tile(pair, 1));
            wgmma_commit();
            wgmma_wait<1>(scores0);
            finish(scores0, first);
        }
        // ptxas does not let a product run in parallel with other work across the end of a loop.
        wgmma_wait<0>(scores1);
        finish(scores1, range.first_column + (round + ROUND_PAIRS) * PAIR_COLUMNS - COLUMNS);
    }
}

// Calls use(n, r) where one of the thread's columns of a tile is the target; its columns begin at
// `first`.
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
__device__ __forceinline__ void mask_padding(Scores& scores, int first, int V) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (first + 8 * n + r % 2 >= V) scores[n][r] = MASKED;
}

// Takes a tile's logits of one of the thread's rows into account: `sum` becomes the sum of
// 2^(logit * LOG2E - highest) over the columns so far, where highest is the largest logit * LOG2E.
__device__ __forceinline__ void add_to_softmax(float& highest, float& sum, const Scores& scores,
                                               int half) {
    float max_logit = scores[0][2 * half];
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
        max_logit = fmaxf(max_logit, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    const float shift = fmaxf(highest, max_logit * LOG2E);
    float total = sum * exp2_approx(highest - shift);
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
        total += exp2_approx(scores[n][2 * half] * LOG2E - shift) +
                 exp2_approx(scores[n][2 * half + 1] * LOG2E - shift);
    highest = shift;
    sum = total;
}

// Joins the results of the four lanes that share a row; all of them get the result.
__device__ __forceinline__ void join_lanes(float& highest, float& sum) {
    float new_highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, 1));
    new_highest = fmaxf(new_highest, __shfl_xor_sync(FULL_WARP, new_highest, 2));
    float total = sum * exp2_approx(highest - new_highest);
    total += __shfl_xor_sync(FULL_WARP, total, 1);
    total += __shfl_xor_sync(FULL_WARP, total, 2);
    highest = new_highest;
    sum = total;
}

// For each row and vocab split, over the columns below V: largest = the largest logit * LOG2E,
// and denominator = the sum of 2^(logit * LOG2E - largest). Written: largest, denominator (num
// splits, N), target_logits (N) of rows with a target. Read: inp (N, C), wte (Vp, C), targets
// (N), -1 for none. Vp is a multiple of 128, and no split is empty. Grid: num splits * ceil(N /
// BLOCK_ROWS). Block: THREADS. Dynamic shared memory: 2 * STAGES tiles.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    lm_head_statistics(float* __restrict__ largest, float* __restrict__ denominator,
                       float* __restrict__ target_logits, const floatX* __restrict__ inp,
                       const floatX* __restrict__ wte, const int* __restrict__ targets, int N,
                       int V, int Vp) {
    const LogitsRange range(N, Vp);
    const int row = thread_row(range);
    int target[2];
    float highest[2] = {MASKED, MASKED}, sum[2] = {};  // of this thread's columns
#pragma unroll
    for (int half = 0; half < 2; half++)
        target[half] = row + 8 * half < N ? targets[row + 8 * half] : NO_TARGET;

    for_all_logits(range, inp, wte, N, Vp, [&](Scores& scores, int tile_first) {
        const int first = tile_first + thread_column();
        if (first + COLUMNS > V) mask_padding(scores, first, V);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if_target(target[half], first, [&](int n, int r) {
                target_logits[row + 8 * half] = scores[n][2 * half + r];
            });
            add_to_softmax(highest[half], sum[half], scores, half);
        }
    });

#pragma unroll
    for (int half = 0; half < 2; half++) {
        join_lanes(highest[half], sum[half]);
        const long long index = (long long)range.vocab_split * N + row + 8 * half;
        if (threadIdx.x % 4 == 0 && row + 8 * half < N) {
            largest[index] = highest[half];
            denominator[index] = sum[half];
        }
    }
}

// ---- losses -------------------------------------------------------------------------------------

// losses[n] += the loss of row n, and lse[n] = log2 of the sum of exp(logit) over its columns
// below V. Rows without a target get no loss, and an lse that makes all their probabilities 0.
// Accumulated: losses (N). Written: lse (N). Read: largest, denominator (num_splits, N) and
// target_logits (N) of lm_head_statistics, targets (N). One thread for each row.
extern "C" __global__ void lm_head_losses(float* losses, float* lse, const float* largest,
                                          const float* denominator, const float* target_logits,
                                          const int* targets, int N, int num_splits) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N) return;
    if (targets[row] < 0) {
        lse[row] = -MASKED;
        return;
    }
    float highest = MASKED, sum = 0.0f;
    for (int split = 0; split < num_splits; split++)
        highest = fmaxf(highest, largest[(long long)split * N + row]);
    for (int split = 0; split < num_splits; split++) {
        const long long index = (long long)split * N + row;
        sum += denominator[index] * exp2f(largest[index] - highest);
    }
    const float total = highest + log2f(sum);
    losses[row] += total * LN2 - target_logits[row];
    lse[row] = total;
}

// ---- gradient -----------------------------------------------------------------------------------

// scores = dloss * softmax in one of the thread's rows, 0 from column V on. The thread's columns
// begin at `first`, those of the tile at tile_first.
__device__ __forceinline__ void to_probabilities(Scores& scores, int half, float shift, int first,
                                                 int tile_first, int V) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (int r = 2 * half; r < 2 * half + 2; r++) {
            scores[n][r] = exp2_approx(scores[n][r] * LOG2E - shift);
            if (tile_first + COLUMNS > V && first + 8 * n + r % 2 >= V) scores[n][r] = 0.0f;
        }
}

// Puts one of the thread's rows of a tile into a warp's part of shared memory, as bf16.
__device__ __forceinline__ void gather(floatX* to, const Scores& scores, int half) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
        *reinterpret_cast<unsigned*>(to + 8 * n) =
            pack_bfloat16(scores[n][2 * half], scores[n][2 * half + 1]);
}

// Writes the gathered round of a warp's 16 rows to memory, a row of the round at a time: 512
// bytes in a row. The warp's rows begin at warp_row, this lane's pack of them at `column`.
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
// from column V on. Written: dlogits (N, Vp). Read: lse (N) of lm_head_losses; the rest, grid and
// block as for lm_head_statistics. Dynamic shared memory: 2 * STAGES tiles, and WARP_ROWS *
// ROUND_PITCH elements for each warp, where it gathers a round of its rows. If the threads wrote
// each tile to memory, 128 bytes at a time, its order would cost the memory twice the time.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    lm_head_gradient(floatX* __restrict__ dlogits, const float* __restrict__ lse,
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
        shift[half] = (inside ? lse[row + 8 * half] : -MASKED) - log2_dloss;
    }

    for_all_logits(range, inp, wte, N, Vp, [&](Scores& scores, int tile_first) {
        const int first = tile_first + thread_column();
        const int round_column = (tile_first - range.first_column) % ROUND_COLUMNS;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            to_probabilities(scores, half, shift[half], first, tile_first, V);
            if_target(target[half], first, [&](int n, int r) { scores[n][2 * half + r] -= dloss; });
            gather(gathered + (lane / 4 + 8 * half) * ROUND_PITCH + round_column + thread_column(),
                   scores, half);
        }
        if (round_column + COLUMNS < ROUND_COLUMNS) return;
        __syncwarp();
        write_round(dlogits, gathered + lane * PACK_SIZE, row - lane / 4,
                    tile_first + COLUMNS - ROUND_COLUMNS + lane * PACK_SIZE, N, Vp);
        // The next round is gathered only after a barrier of the block.
    });
}
