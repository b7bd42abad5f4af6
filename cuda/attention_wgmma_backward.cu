// Causal attention backward in bf16 on Hopper's tensor cores (wgmma): the gradients of
// attention_wgmma_forward.cu. The two kernels of attention_mma_backward.cu, with its formulas and
// its reasons; a warpgroup owns 64 rows, and products run while it computes.
//
// attention_dot (attention.cu) leaves dot = rowsum(dout * out) in the first four bytes of every dq
// row: the kernels must run in the order attention_dot, attention_wgmma_dkdv, attention_wgmma_dq.
//
// -DHS head size, -DSTAGES pairs of streamed tiles in shared memory; -DDKDV_GROUPS and -DDQ_GROUPS
// warpgroups of a block, -DDKDV_BLOCKS and -DDQ_BLOCKS that an SM should hold.
#include "wgmma.cuh"

constexpr int STREAM = 64;          // rows of a streamed tile
constexpr int TILE = STREAM * HS;   // elements of a tile
constexpr int AHEAD = STAGES - 1;   // pairs under way beside this one
constexpr float LOG2E = 1.4426950408889634f;

static_assert(STREAM == GROUP_ROWS, "one tile of each warpgroup needs a mask");
static_assert(AHEAD >= 1, "a pair is copied while another one is read");

// Two tiles that belong together, by turn.
__device__ __forceinline__ floatX* pair(floatX* pairs, int turn) {
    return pairs + turn % STAGES * (2 * TILE);
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX. Read: dot in its dq rows;
// dout (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / (64 * DKDV_GROUPS)).
// Dynamic shared memory: 2 * (DKDV_GROUPS + STAGES) tiles, 2 * STAGES * STREAM floats.
extern "C" __global__ void
__launch_bounds__(WARPGROUP * DKDV_GROUPS, DKDV_BLOCKS)
    attention_wgmma_dkdv(floatX* dqkv, const floatX* __restrict__ dout,
                         const floatX* __restrict__ qkv, const float* __restrict__ lse, int T,
                         int NH) {
    constexpr int THREADS = WARPGROUP * DKDV_GROUPS, BLOCK_KEYS = GROUP_ROWS * DKDV_GROUPS;
    extern __shared__ __align__(1024) floatX smem[];
    floatX* pairs = smem + 2 * DKDV_GROUPS * TILE;
    float* statistics = reinterpret_cast<float*>(pairs + 2 * STAGES * TILE);
    const int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP;

    // The first keys have the most queries and come first.
    const int num_blocks = (T + BLOCK_KEYS - 1) / BLOCK_KEYS;
    const int block = blockIdx.x % num_blocks;
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;

    const long long stride = 3LL * NH * HS, dout_stride = (long long)NH * HS;
    const floatX* queries = qkv + b * T * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = dout + b * T * dout_stride + h * HS;
    floatX* dqueries = dqkv + b * T * stride + h * HS;
    floatX* dkeys = dqueries + NH * HS;
    floatX* dvalues = dkeys + NH * HS;
    const float* head_lse = lse + (long long)head_row * T;

    const int first_key = block * BLOCK_KEYS + group * GROUP_ROWS;  // of this warpgroup
    const int first_tile = block * DKDV_GROUPS;
    const int num_turns = (T + STREAM - 1) / STREAM - first_tile;

    // Of turn `turn`: lse of its queries, then dot.
    auto turn_statistics = [&](int turn) { return statistics + turn % STAGES * (2 * STREAM); };
    // Commits a group even for no tile, so that counting groups counts turns.
    auto start_copy = [&](int turn) {
        if (turn < num_turns) {
            const int first = (first_tile + turn) * STREAM;
            copy_tile<STREAM, THREADS>(pair(pairs, turn), queries, stride, first, T);
            copy_tile<STREAM, THREADS>(pair(pairs, turn) + TILE, douts, dout_stride, first, T);
            if (threadIdx.x < 2 * STREAM) {
                // Zero from T on, where dout is zero too and nothing is added.
                const int query = first + int(threadIdx.x) % STREAM;
                const void* from = head_lse + query;
                if (threadIdx.x >= STREAM) from = dqueries + query * stride;
                const bool inside = query < T;
                cp_async4_zfill(turn_statistics(turn) + threadIdx.x, inside ? from : head_lse,
                                inside ? 4 : 0);
            }
        }
        cp_async_commit();
    };
#pragma unroll
    for (int g = 0; g < DKDV_GROUPS; g++) {
        const int first = block * BLOCK_KEYS + g * GROUP_ROWS;
        copy_tile<GROUP_ROWS, THREADS>(smem + 2 * g * TILE, keys, stride, first, T);
        copy_tile<GROUP_ROWS, THREADS>(smem + (2 * g + 1) * TILE, values, stride, first, T);
    }
#pragma unroll
    for (int turn = 0; turn < AHEAD; turn++) start_copy(turn);  // the first with keys and values
    const AlongRows<GROUP_ROWS> own_keys(smem + 2 * group * TILE);
    const AlongRows<GROUP_ROWS> own_values(smem + (2 * group + 1) * TILE);

    LeftOperand<STREAM / STEP> left_probs, left_dscores;
    float dk[HS / 8][4] = {}, dv[HS / 8][4] = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int turn = 0; turn < num_turns; turn++) {
        // Behind this barrier the turn's tiles are complete, and nobody reads those of the turn
        // before any more.
        wait_for_tiles<AHEAD - 1>();
        start_copy(turn + AHEAD);
        if (turn < group) continue;  // queries before all keys of this warpgroup

        // Transposed: rows are keys, columns queries.
        float probs[STREAM / 8][4], dscores[STREAM / 8][4];
        const floatX* query_tile = pair(pairs, turn);
        const floatX* dout_tile = query_tile + TILE;
        start_scores(probs, own_keys, query_tile);
        wgmma_commit();
        start_scores(dscores, own_values, dout_tile);
        wgmma_commit();
        wgmma_wait<1>(probs);
        const float* column = turn_statistics(turn) + thread % 4 * 2;
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++) {
            const float2 lse2 = *reinterpret_cast<const float2*>(column + 8 * n);
            const float low = lse2.x * LOG2E, high = lse2.y * LOG2E;
#pragma unroll
            for (int r = 0; r < 4; r++)
                probs[n][r] = exp2_approx(probs[n][r] * exponent_scale - (r % 2 ? high : low));
        }
        if (turn == group) {
            const int key = thread / WARP * 16 + thread % WARP / 4, query = thread % 4 * 2;
#pragma unroll
            for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    if (key + r / 2 * 8 > query + 8 * n + r % 2) probs[n][r] = 0.0f;
        }
        to_left_operand(left_probs, probs);
        start_sums(dv, left_probs, dout_tile);
        wgmma_commit();
        wgmma_wait<1>(dscores);
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++) {
            const float2 dot2 = *reinterpret_cast<const float2*>(column + STREAM + 8 * n);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float low, high;
                unpack(low, high, left_probs, n, half);
                dscores[n][2 * half] = low * (dscores[n][2 * half] - dot2.x);
                dscores[n][2 * half + 1] = high * (dscores[n][2 * half + 1] - dot2.y);
            }
        }
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
// Grid: B * NH * ceil(T / (64 * DQ_GROUPS)).
// Dynamic shared memory: 2 * (DQ_GROUPS + STAGES) tiles.
extern "C" __global__ void
__launch_bounds__(WARPGROUP * DQ_GROUPS, DQ_BLOCKS)
    attention_wgmma_dq(floatX* dqkv, const floatX* __restrict__ dout,
                       const floatX* __restrict__ qkv, const float* __restrict__ lse, int T,
                       int NH) {
    constexpr int THREADS = WARPGROUP * DQ_GROUPS, BLOCK_QUERIES = GROUP_ROWS * DQ_GROUPS;
    extern __shared__ __align__(1024) floatX smem[];
    floatX* pairs = smem + 2 * DQ_GROUPS * TILE;
    const int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP;

    // The last queries have the most keys and come first.
    const int num_blocks = (T + BLOCK_QUERIES - 1) / BLOCK_QUERIES;
    const int block = num_blocks - 1 - int(blockIdx.x % num_blocks);
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;

    const long long stride = 3LL * NH * HS, dout_stride = (long long)NH * HS;
    const floatX* queries = qkv + b * T * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = dout + b * T * dout_stride + h * HS;
    floatX* dqueries = dqkv + b * T * stride + h * HS;

    // Tiles come from the last one down: a warpgroup begins with the one that needs a mask.
    const int first_query = block * BLOCK_QUERIES + group * GROUP_ROWS;  // of this warpgroup
    const int num_turns = (min((block + 1) * BLOCK_QUERIES, T) + STREAM - 1) / STREAM;
    const int first_turn = max(num_turns - 1 - first_query / STREAM, 0);

    auto start_copy = [&](int turn) {
        const int first = (num_turns - 1 - turn) * STREAM;
        if (first >= 0) {
            copy_tile<STREAM, THREADS>(pair(pairs, turn), keys, stride, first, T);
            copy_tile<STREAM, THREADS>(pair(pairs, turn) + TILE, values, stride, first, T);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int g = 0; g < DQ_GROUPS; g++) {
        const int first = block * BLOCK_QUERIES + g * GROUP_ROWS;
        copy_tile<GROUP_ROWS, THREADS>(smem + 2 * g * TILE, queries, stride, first, T);
        copy_tile<GROUP_ROWS, THREADS>(smem + (2 * g + 1) * TILE, douts, dout_stride, first, T);
    }
#pragma unroll
    for (int turn = 0; turn < AHEAD; turn++) start_copy(turn);  // the first with own rows
    const AlongRows<GROUP_ROWS> own_queries(smem + 2 * group * TILE);
    const AlongRows<GROUP_ROWS> own_douts(smem + (2 * group + 1) * TILE);

    const int row = thread / WARP * 16 + thread % WARP / 4;
    float row_lse[2], row_dot[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = min(first_query + row + 8 * half, T - 1);
        row_lse[half] = LOG2E * lse[(long long)head_row * T + query];
        row_dot[half] = *reinterpret_cast<const float*>(dqueries + query * stride);
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
        if (turn < first_turn) continue;  // keys after all queries of this warpgroup

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
        if (turn == first_turn) {
            // Keys from T on are after every query below T, so this also hides the padding.
            const int query = first_query + row;
            const int key = (num_turns - 1 - turn) * STREAM + thread % 4 * 2;
#pragma unroll
            for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    if (key + 8 * n + r % 2 > query + r / 2 * 8) probs[n][r] = 0.0f;
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
