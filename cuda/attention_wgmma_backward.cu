// Causal attention backward in bf16 on Hopper's tensor cores (wgmma): the gradients of
// attention_wgmma_forward.cu. The two kernels of attention_mma_backward.cu, with its formulas and
// its reasons; a block is one warpgroup and owns 64 rows, and products run while it computes.
//
// attention_dot (attention.cu) leaves dot = rowsum(dout * out) in the first four bytes of every dq
// row: the kernels must run in the order attention_dot, attention_wgmma_dkdv, attention_wgmma_dq.
//
// -DHS head size, -DSTAGES pairs of streamed tiles in shared memory, -DDKDV_BLOCKS and -DDQ_BLOCKS
// that an SM should hold.
#include "wgmma.cuh"

constexpr int STREAM = 64;          // rows of a streamed tile
constexpr int TILE = STREAM * HS;   // elements of a tile
constexpr int AHEAD = STAGES - 1;   // pairs under way beside this one
constexpr float LOG2E = 1.4426950408889634f;

static_assert(STREAM == GROUP_ROWS, "the first tile, and no other, needs a mask");
static_assert(2 * STREAM == WARPGROUP, "each thread copies lse or dot of one query");
static_assert(AHEAD >= 1, "a pair is copied while another one is read");

// Two tiles that belong together, by turn.
__device__ __forceinline__ floatX* pair(floatX* pairs, int turn) {
    return pairs + turn % STAGES * (2 * TILE);
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX. Read: dot in its dq rows;
// dout (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / 64).
// Dynamic shared memory: 2 * (1 + STAGES) tiles, 2 * STAGES * STREAM floats.
extern "C" __global__ void
__launch_bounds__(WARPGROUP, DKDV_BLOCKS)
    attention_wgmma_dkdv(floatX* dqkv, const floatX* __restrict__ dout,
                         const floatX* __restrict__ qkv, const float* __restrict__ lse, int T,
                         int NH) {
    extern __shared__ __align__(1024) floatX smem[];
    floatX* pairs = smem + 2 * TILE;
    float* statistics = reinterpret_cast<float*>(pairs + 2 * STAGES * TILE);

    // The first keys have the most queries and come first.
    const int num_blocks = (T + GROUP_ROWS - 1) / GROUP_ROWS;
    const int block = blockIdx.x % num_blocks;
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;

    const int stride = 3 * NH * HS, dout_stride = NH * HS;
    const long long first_row = (long long)b * T;
    const floatX* queries = qkv + first_row * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = dout + first_row * dout_stride + h * HS;
    floatX* dqueries = dqkv + first_row * stride + h * HS;
    floatX* dkeys = dqueries + NH * HS;
    floatX* dvalues = dkeys + NH * HS;

    const int first_key = block * GROUP_ROWS;
    const int num_turns = (T + STREAM - 1) / STREAM - block;

    // Of a turn: lse of its queries, then dot. One copied by 64 threads, the other by the next 64.
    auto turn_statistics = [&](int turn) { return statistics + turn % STAGES * (2 * STREAM); };
    const bool copies_lse = threadIdx.x < STREAM;
    const auto* statistic =
        copies_lse ? lse + (long long)head_row * T : reinterpret_cast<const float*>(dqueries);
    const int statistic_stride = copies_lse ? 1 : stride / 2;  // in floats
    // Commits a group even for no tile, so that counting groups counts turns.
    auto start_copy = [&](int turn) {
        if (turn < num_turns) {
            const int first = (block + turn) * STREAM;
            copy_tile<STREAM>(pair(pairs, turn), queries, stride, first, T);
            copy_tile<STREAM>(pair(pairs, turn) + TILE, douts, dout_stride, first, T);
            // Zero from T on, where dout is zero too and nothing is added.
            const int query = first + int(threadIdx.x) % STREAM;
            cp_async4_zfill(turn_statistics(turn) + threadIdx.x,
                            statistic + (long long)query * statistic_stride, query < T ? 4 : 0);
        }
        cp_async_commit();
    };
    copy_tile<GROUP_ROWS>(smem, keys, stride, first_key, T);
    copy_tile<GROUP_ROWS>(smem + TILE, values, stride, first_key, T);
#pragma unroll
    for (int turn = 0; turn < AHEAD; turn++) start_copy(turn);  // the first with keys and values
    const AlongRows<GROUP_ROWS> own_keys(smem);
    const AlongRows<GROUP_ROWS> own_values(smem + TILE);

    LeftOperand<STREAM / STEP> left_probs, left_dscores;
    float dk[HS / 8][4] = {}, dv[HS / 8][4] = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int turn = 0; turn < num_turns; turn++) {
        // Behind this barrier the turn's tiles are complete, and nobody reads those of the turn
        // before any more.
        wait_for_tiles<AHEAD - 1>();
        // Transposed: rows are keys, columns queries.
        float probs[STREAM / 8][4], dscores[STREAM / 8][4];
        const floatX* query_tile = pair(pairs, turn);
        const floatX* dout_tile = query_tile + TILE;
        start_scores(probs, own_keys, query_tile);
        wgmma_commit();
        start_scores(dscores, own_values, dout_tile);
        wgmma_commit();
        start_copy(turn + AHEAD);
        wgmma_wait<1>(probs);
        const float* column = turn_statistics(turn) + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++) {
            const float2 lse2 = *reinterpret_cast<const float2*>(column + 8 * n);
            const float low = lse2.x * LOG2E, high = lse2.y * LOG2E;
#pragma unroll
            for (int r = 0; r < 4; r++)
                probs[n][r] = exp2_approx(probs[n][r] * exponent_scale - (r % 2 ? high : low));
        }
        if (turn == 0) {
            const int key = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
            const int query = threadIdx.x % 4 * 2;
#pragma unroll
            for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    if (key + r / 2 * 8 > query + 8 * n + r % 2) probs[n][r] = 0.0f;
        }
        wgmma_wait<0>(dscores);
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++) {
            const float2 dot2 = *reinterpret_cast<const float2*>(column + STREAM + 8 * n);
#pragma unroll
            for (int r = 0; r < 4; r++)
                dscores[n][r] = probs[n][r] * (dscores[n][r] - (r % 2 ? dot2.y : dot2.x));
        }
        to_left_operand(left_probs, probs);
        start_sums(dv, left_probs, dout_tile);
        to_left_operand(left_dscores, dscores);
        start_sums(dk, left_dscores, query_tile);
        wgmma_commit();
        wgmma_wait<0>(dv);
        wgmma_wait<0>(dk);
    }
    store_rows(dkeys, stride, first_key, T, dk, {scale, scale});
    store_rows(dvalues, stride, first_key, T, dv, {1.0f, 1.0f});
}

// Written: the dq rows of dqkv (B, T, 3, NH, HS) floatX, over the dot that they hold on entry.
// Read: dout (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / 64).
// Dynamic shared memory: 2 * (1 + STAGES) tiles.
extern "C" __global__ void
__launch_bounds__(WARPGROUP, DQ_BLOCKS)
    attention_wgmma_dq(floatX* dqkv, const floatX* __restrict__ dout,
                       const floatX* __restrict__ qkv, const float* __restrict__ lse, int T,
                       int NH) {
    extern __shared__ __align__(1024) floatX smem[];
    floatX* pairs = smem + 2 * TILE;

    // The last queries have the most keys and come first.
    const int num_blocks = (T + GROUP_ROWS - 1) / GROUP_ROWS;
    const int block = num_blocks - 1 - int(blockIdx.x % num_blocks);
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;

    const int stride = 3 * NH * HS, dout_stride = NH * HS;
    const long long first_row = (long long)b * T;
    const floatX* queries = qkv + first_row * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = dout + first_row * dout_stride + h * HS;
    floatX* dqueries = dqkv + first_row * stride + h * HS;

    // Tiles come from the last one down: the first is the one that needs a mask.
    const int first_query = block * GROUP_ROWS, num_turns = block + 1;

    auto start_copy = [&](int turn) {
        const int first = (num_turns - 1 - turn) * STREAM;
        if (first >= 0) {
            copy_tile<STREAM>(pair(pairs, turn), keys, stride, first, T);
            copy_tile<STREAM>(pair(pairs, turn) + TILE, values, stride, first, T);
        }
        cp_async_commit();
    };
    copy_tile<GROUP_ROWS>(smem, queries, stride, first_query, T);
    copy_tile<GROUP_ROWS>(smem + TILE, douts, dout_stride, first_query, T);
#pragma unroll
    for (int turn = 0; turn < AHEAD; turn++) start_copy(turn);  // the first with own rows
    const AlongRows<GROUP_ROWS> own_queries(smem);
    const AlongRows<GROUP_ROWS> own_douts(smem + TILE);

    const int row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    float row_lse[2], row_dot[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = min(first_query + row + 8 * half, T - 1);
        row_lse[half] = LOG2E * lse[(long long)head_row * T + query];
        row_dot[half] = *reinterpret_cast<const float*>(dqueries + (long long)query * stride);
    }

    float dq[HS / 8][4] = {};
    LeftOperand<STREAM / STEP> left;
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int turn = 0; turn < num_turns; turn++) {
        // Behind this barrier the turn's tiles are complete, nobody reads those of the turn
        // before any more, and every thread has its dot: from here on dq rows may be written.
        wait_for_tiles<AHEAD - 1>();
        start_copy(turn + AHEAD);
        float probs[STREAM / 8][4], dscores[STREAM / 8][4];
        const floatX* key_tile = pair(pairs, turn);
        start_scores(probs, own_queries, key_tile);
        wgmma_commit();
        start_scores(dscores, own_douts, key_tile + TILE);
        wgmma_commit();
        wgmma_wait<1>(probs);
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                probs[n][r] = exp2_approx(probs[n][r] * exponent_scale - row_lse[r / 2]);
        if (turn == 0) {
            // Keys from T on are after every query below T, so this also hides the padding.
            const int key = threadIdx.x % 4 * 2;
#pragma unroll
            for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    if (key + 8 * n + r % 2 > row + r / 2 * 8) probs[n][r] = 0.0f;
        }
        wgmma_wait<0>(dscores);
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                dscores[n][r] = probs[n][r] * (dscores[n][r] - row_dot[r / 2]);
        to_left_operand(left, dscores);
        start_sums(dq, left, key_tile);
        wgmma_commit();
        wgmma_wait<0>(dq);
    }
    store_rows(dqueries, stride, first_query, T, dq, {scale, scale});
}
