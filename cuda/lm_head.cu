// The head of the model on Hopper's tensor cores (wgmma), bf16: loss and gradient of the logits
// inp wteᵀ, without storing the logits; contract in ops/head.py.
//
// The logits are computed twice. The first pass keeps of them only what softmax needs, a maximum
// and a sum for each row; the second turns each tile into its gradient while it is in registers.
// For few channels that is cheaper than the way through memory and back: at 128 channels a product
// takes as long as writing half of its result. The sums for dinp and dwte are left to the library.
//
// -DHS channels: 64 or 128 (wgmma.cuh), -DGROUPS warpgroups of a block, 64 rows each, -DSTAGES pairs
// of tiles of the vocabulary in shared memory.
#include "lib/wgmma_tiles.cuh"

constexpr int THREADS = WARPGROUP * GROUPS;
constexpr int BLOCK_ROWS = GROUP_ROWS * GROUPS;
constexpr int COLUMNS = 64;         // of one product: words of the vocabulary
constexpr int TILE = COLUMNS * HS;  // elements; two tiles are streamed at a time
constexpr int AHEAD = STAGES - 2;   // pairs of tiles under way beside this one and the one before
constexpr int ROUND_TURNS = 2;
constexpr int ROUND_COLUMNS = 2 * COLUMNS * ROUND_TURNS;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
constexpr float LOWEST = -1e30f;  // below every logit; exp2 makes it 0
constexpr int NO_TARGET = -1;

static_assert(ROUND_COLUMNS == WARP * PACK_SIZE, "a warp stores one row of a round at a time");
static_assert(AHEAD >= 1, "a pair of tiles is copied while another is used");

using Scores = float[COLUMNS / 8][4];  // logits of 64 rows and 64 columns, a thread's share

// The rows and the share of the vocabulary that a block looks after. Blocks that are neighbours
// have the same share, and find it in the L2 cache.
struct Share {
    int first_row, part, first_column, num_turns;  // a turn is a pair of tiles
    __device__ __forceinline__ Share(int N, int Vp) {
        const int num_row_blocks = (N + BLOCK_ROWS - 1) / BLOCK_ROWS;
        const int num_parts = gridDim.x / num_row_blocks;
        const int num_rounds = (Vp + ROUND_COLUMNS - 1) / ROUND_COLUMNS;
        first_row = int(blockIdx.x) % num_row_blocks * BLOCK_ROWS;
        part = blockIdx.x / num_row_blocks;
        const int first_round = int((long long)part * num_rounds / num_parts);
        const int last_round = int((long long)(part + 1) * num_rounds / num_parts);
        first_column = first_round * ROUND_COLUMNS;
        num_turns = (last_round - first_round) * ROUND_TURNS;
    }
};

// The first of this thread's two rows; the other lies 8 below.
__device__ __forceinline__ int thread_row(const Share& share) {
    const int thread = threadIdx.x % WARPGROUP;
    return share.first_row + threadIdx.x / WARPGROUP * GROUP_ROWS + thread / WARP * 16 +
           thread % WARP / 4;
}
__device__ __forceinline__ int thread_column() { return threadIdx.x % 4 * 2; }

// Rows [first, first + 64) of a matrix in global memory as this warpgroup's left operand; rows from
// `limit` on are zeros.
__device__ __forceinline__ void load_left_operand(LeftOperand<HS / STEP>& left,
                                                  const floatX* source, long long stride, int first,
                                                  int limit) {
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

// Computes the logits of the block's share and calls finish(scores, first column) for every 64 of
// its columns. While a warpgroup finishes one product, the tensor cores compute its other one, or
// those of other warpgroups.
template <class Finish>
__device__ __forceinline__ void for_all_logits(const Share& share, const floatX* inp,
                                               const floatX* wte, int N, int Vp, Finish finish) {
    extern __shared__ __align__(1024) floatX smem[];
    auto tile = [&](int turn, int side) { return smem + (turn % STAGES * 2 + side) * TILE; };
    // Commits a group even for no tile, so that counting groups counts turns.
    auto start_copy = [&](int turn) {
        if (turn < share.num_turns) {
            const int first = share.first_column + turn * 2 * COLUMNS;
            copy_tile<COLUMNS, THREADS>(tile(turn, 0), wte, HS, first, Vp);
            copy_tile<COLUMNS, THREADS>(tile(turn, 1), wte, HS, first + COLUMNS, Vp);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int turn = 0; turn < AHEAD; turn++) start_copy(turn);
    LeftOperand<HS / STEP> own;
    load_left_operand(own, inp, HS, share.first_row + int(threadIdx.x) / WARPGROUP * GROUP_ROWS, N);

    Scores left, right;
    for (int round = 0; round < share.num_turns; round += ROUND_TURNS) {
#pragma unroll
        for (int i = 0; i < ROUND_TURNS; i++) {
            const int turn = round + i, first = share.first_column + turn * 2 * COLUMNS;
            // Behind this barrier the turn's tiles are complete, and nobody reads those of two
            // turns ago any more.
            wait_for_tiles<AHEAD - 1>();
            start_copy(turn + AHEAD);
            start_scores(left, own, tile(turn, 0));
            wgmma_commit();
            if (i > 0) {
                wgmma_wait<1>(right);
                finish(right, first - COLUMNS);
            }
            start_scores(right, own, tile(turn, 1));
            wgmma_commit();
            wgmma_wait<1>(left);
            finish(left, first);
        }
        // ptxas runs no product beside other work across the end of a loop.
        wgmma_wait<0>(right);
        finish(right, share.first_column + (round + ROUND_TURNS) * 2 * COLUMNS - COLUMNS);
    }
}

// largest and denominator (num_parts, N): for each row and part of the vocabulary the largest
// logit, and the sum of exp(logit - largest), over the columns below V. target_logits (N) of rows
// with a target. Read: inp (N, HS), wte (Vp, HS), targets (N). Vp is a multiple of 128, and no part
// is empty. Grid: num_parts * ceil(N / BLOCK_ROWS). Dynamic shared memory: 2 * STAGES tiles.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    head_statistics(float* __restrict__ largest, float* __restrict__ denominator,
                    float* __restrict__ target_logits, const floatX* __restrict__ inp,
                    const floatX* __restrict__ wte, const int* __restrict__ targets, int N, int V,
                    int Vp) {
    const Share share(N, Vp);
    const int row = thread_row(share);
    int target[2];
    float highest[2] = {LOWEST, LOWEST}, sum[2] = {};  // of this thread's columns; logits in log2
#pragma unroll
    for (int half = 0; half < 2; half++)
        target[half] = row + 8 * half < N ? targets[row + 8 * half] : NO_TARGET;

    for_all_logits(share, inp, wte, N, Vp, [&](Scores& scores, int tile_first) {
        const int first = tile_first + thread_column();
        if (first + COLUMNS > V) {  // hide the padding
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    if (first + 8 * n + r % 2 >= V) scores[n][r] = LOWEST;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if ((unsigned)(target[half] - first) < (unsigned)COLUMNS) {
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                    for (int r = 0; r < 2; r++)
                        if (first + 8 * n + r == target[half])
                            target_logits[row + 8 * half] = scores[n][2 * half + r];
            }
            float most = scores[0][2 * half];
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
                most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            const float shift = fmaxf(highest[half], most * LOG2E);
            float total = sum[half] * exp2_approx(highest[half] - shift);
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
                total += exp2_approx(scores[n][2 * half] * LOG2E - shift) +
                         exp2_approx(scores[n][2 * half + 1] * LOG2E - shift);
            highest[half] = shift;
            sum[half] = total;
        }
    });

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = fmaxf(highest[half], __shfl_xor_sync(FULL_WARP, highest[half], 1));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
        float total = sum[half] * exp2_approx(highest[half] - most);
        total += __shfl_xor_sync(FULL_WARP, total, 1);
        total += __shfl_xor_sync(FULL_WARP, total, 2);
        const long long place = (long long)share.part * N + row + 8 * half;
        if (threadIdx.x % 4 == 0 && row + 8 * half < N) {
            largest[place] = most;
            denominator[place] = total;
        }
    }
}

// losses[n] += loss of row n, and lse[n] = log2 of the sum of exp(logits) of row n, from the parts
// above; rows without a target get no loss, and an lse that makes all their probabilities 0.
extern "C" __global__ void head_losses(float* losses, float* lse, const float* largest,
                                       const float* denominator, const float* target_logits,
                                       const int* targets, int N, int num_parts) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N) return;
    if (targets[row] < 0) {
        lse[row] = -LOWEST;
        return;
    }
    float most = LOWEST, sum = 0.0f;
    for (int part = 0; part < num_parts; part++)
        most = fmaxf(most, largest[(long long)part * N + row]);
    for (int part = 0; part < num_parts; part++) {
        const long long place = (long long)part * N + row;
        sum += denominator[place] * exp2f(largest[place] - most);
    }
    const float total = most + log2f(sum);
    losses[row] += total * LN2 - target_logits[row];
    lse[row] = total;
}

// dlogits (N, Vp) = dloss times the gradient of the loss; 0 from column V on. lse (N) as head_losses
// leaves it; the rest as for head_statistics. More dynamic shared memory: 16 * (ROUND_COLUMNS + 8)
// elements for each warp, where it gathers whole rounds of its 16 rows. Written to memory 128 bytes
// at a time, they would reach it in an order that costs it twice the time.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    head_gradient(floatX* __restrict__ dlogits, const float* __restrict__ lse,
                  const floatX* __restrict__ inp, const floatX* __restrict__ wte,
                  const int* __restrict__ targets, int N, int V, int Vp, float dloss) {
    extern __shared__ __align__(1024) floatX smem[];
    constexpr int PITCH = ROUND_COLUMNS + 8;  // eight rows' words of one column: different banks
    const int lane = threadIdx.x % WARP;
    floatX* gathered = smem + 2 * STAGES * TILE + threadIdx.x / WARP * (16 * PITCH);

    const Share share(N, Vp);
    const int row = thread_row(share);
    const float log2_dloss = log2f(dloss);
    int target[2];
    float shift[2];  // dloss * exp(logit - ln(sum)) = exp2(logit * LOG2E - shift)
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const bool inside = row + 8 * half < N;
        target[half] = inside ? targets[row + 8 * half] : NO_TARGET;
        shift[half] = (inside ? lse[row + 8 * half] : -LOWEST) - log2_dloss;
    }

    for_all_logits(share, inp, wte, N, Vp, [&](Scores& scores, int tile_first) {
        const int first = tile_first + thread_column();
        const int round_column = (tile_first - share.first_column) % ROUND_COLUMNS;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float (&gradient)[COLUMNS / 8][4] = scores;
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                for (int r = 2 * half; r < 2 * half + 2; r++) {
                    gradient[n][r] = exp2_approx(scores[n][r] * LOG2E - shift[half]);
                    if (tile_first + COLUMNS > V && first + 8 * n + r % 2 >= V)
                        gradient[n][r] = 0.0f;
                }
            if ((unsigned)(target[half] - first) < (unsigned)COLUMNS) {
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                    for (int r = 0; r < 2; r++)
                        if (first + 8 * n + r == target[half]) gradient[n][2 * half + r] -= dloss;
            }
            floatX* to = gathered + (lane / 4 + 8 * half) * PITCH + round_column + thread_column();
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
                *reinterpret_cast<unsigned*>(to + 8 * n) =
                    pack_bfloat16(gradient[n][2 * half], gradient[n][2 * half + 1]);
        }
        if (round_column + COLUMNS < ROUND_COLUMNS) return;
        __syncwarp();
        const int column = tile_first + COLUMNS - ROUND_COLUMNS + lane * PACK_SIZE;
        const int warp_row = row - lane / 4;
        const floatX* from = gathered + lane * PACK_SIZE;
        floatX* to = dlogits + (long long)warp_row * Vp + column;
#pragma unroll
        for (int i = 0; i < 16; i++)
            if (warp_row + i < N && column < Vp)
                *reinterpret_cast<uint4*>(to + (long long)i * Vp) =
                    *reinterpret_cast<const uint4*>(from + i * PITCH);
        // The next round gathers behind a barrier of the block.
    });
}
