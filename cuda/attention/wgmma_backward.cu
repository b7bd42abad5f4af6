// Causal attention backward in bf16 on Hopper's tensor cores (wgmma): the gradients of
// attention_wgmma_forward.cu. The two kernels of attention_mma_backward.cu; a block is one
// warpgroup and owns 64 rows, and products run while it computes.
//
// -DHS head size, -DSTAGES pairs of streamed tiles in shared memory, -DDKDV_BLOCKS and -DDQ_BLOCKS
// that an SM should hold.
#include "attention/backward.cuh"
#include "lib/wgmma_tiles.cuh"

constexpr int STREAM = 64;         // rows of a streamed tile
constexpr int TILE = STREAM * HS;  // elements of a tile
constexpr int AHEAD = STAGES - 1;  // pairs under way beside this one
constexpr float LOG2E = 1.4426950408889634f;

static_assert(STREAM == GROUP_ROWS, "the first tile, and no other, needs a mask");
static_assert(2 * STREAM == WARPGROUP, "each thread copies lse or dot of one query");
static_assert(AHEAD >= 1, "a pair is copied while another one is read");

// Two tiles that belong together, by turn.
__device__ __forceinline__ floatX* pair(floatX* pairs, int turn) {
    return pairs + turn % STAGES * (2 * TILE);
}

// Sums over the block's rows of factor * values, for those of its rows that are below T.
__device__ __forceinline__ void store_block_sums(float* sums, const float (&values)[HS / 8][4],
                                                 float factor, int rows_left) {
    const int row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4, member = threadIdx.x % 4;
    store_column_sums<1, HS, HS / 4, 4>(
        sums, 0, 1, [&](int i) { return i / 2 * 8 + 2 * member + i % 2; },
        [&](int i) {
            const float (&pairs)[4] = values[i / 2];
            return factor * ((row < rows_left ? pairs[i % 2] : 0.0f) +
                             (row + 8 < rows_left ? pairs[2 + i % 2] : 0.0f));
        });
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX, and their sums. Read: dout
// (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse_dot (B, NH, T).
// Grid: B * NH * ceil(T / 64).
// Dynamic shared memory: 2 * (1 + STAGES) tiles, 2 * STAGES * STREAM floats.
extern "C" __global__ void __launch_bounds__(WARPGROUP, DKDV_BLOCKS)
    attention_wgmma_dkdv(floatX* dqkv, float* sums, const floatX* __restrict__ dout,
                         const floatX* __restrict__ qkv, const float2* __restrict__ lse_dot, int T,
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

    const int first_key = block * GROUP_ROWS;
    const int num_turns = (T + STREAM - 1) / STREAM - block;

    // Of a turn: lse and dot of its queries, a float of them copied by each thread.
    auto turn_statistics = [&](int turn) { return statistics + turn % STAGES * (2 * STREAM); };
    auto* head_statistics = reinterpret_cast<const float*>(lse_dot + (long long)head_row * T);
    // Commits a group even for no tile, so that counting groups counts turns.
    auto start_copy = [&](int turn) {
        if (turn < num_turns) {
            const int first = (block + turn) * STREAM;
            copy_tile<STREAM>(pair(pairs, turn), queries, stride, first, T);
            copy_tile<STREAM>(pair(pairs, turn) + TILE, douts, dout_stride, first, T);
            // Zero from T on, where dout is zero too and nothing is added.
            const int statistic = 2 * first + int(threadIdx.x);
            cp_async4_zfill(turn_statistics(turn) + threadIdx.x, head_statistics + statistic,
                            statistic < 2 * T ? 4 : 0);
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
        start_copy(turn + AHEAD);
        wgmma_wait<0>(probs);
        // lse and dot of this thread's columns 8 n and 8 n + 1.
        auto* columns = reinterpret_cast<const float4*>(turn_statistics(turn)) + threadIdx.x % 4;
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++) {
            const float4 pair = columns[4 * n];
            const float low = pair.x * LOG2E, high = pair.z * LOG2E;
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
        // In bf16 they take half the registers: with more beside dscores, the compiler would let
        // each product wait for the one before.
        to_left_operand(left_probs, probs);
        start_scores(dscores, own_values, dout_tile);
        start_sums(dv, left_probs, dout_tile);
        wgmma_commit();
        wgmma_wait<0>(dscores);
        wgmma_wait<0>(dv);
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++) {
            const float4 pair = columns[4 * n];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float low, high;  // of two neighbouring queries, as they were multiplied
                unpack_bfloat16(low, high, left_probs.at(n / 2)[n % 2 * 2 + half]);
                float (&gradients)[4] = dscores[n];
                gradients[2 * half] = low * (gradients[2 * half] - pair.y);
                gradients[2 * half + 1] = high * (gradients[2 * half + 1] - pair.w);
            }
        }
        to_left_operand(left_dscores, dscores);
        start_sums(dk, left_dscores, query_tile);
        wgmma_commit();
        wgmma_wait<0>(dk);
    }
    floatX* dkeys = dqkv + first_row * stride + (NH + h) * HS;
    store_rows(dkeys, stride, first_key, T, dk, {scale, scale});
    store_rows(dkeys + NH * HS, stride, first_key, T, dv, {1.0f, 1.0f});
    float* block_sums = sums_of_part(sums, b, h, first_key, GROUP_ROWS, T, NH) + NH * HS;
    store_block_sums(block_sums, dk, scale, T - first_key);
    store_block_sums(block_sums + NH * HS, dv, 1.0f, T - first_key);
}

// Written: the dq rows of dqkv (B, T, 3, NH, HS) floatX, and their sums; lse_dot (B, NH, T).
// Read: dout, out (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / 64).
// Dynamic shared memory: 2 * (1 + STAGES) tiles.
extern "C" __global__ void __launch_bounds__(WARPGROUP, DQ_BLOCKS)
    attention_wgmma_dq(floatX* dqkv, float* sums, float2* lse_dot, const floatX* __restrict__ dout,
                       const floatX* __restrict__ out, const floatX* __restrict__ qkv,
                       const float* __restrict__ lse, int T, int NH) {
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
    const floatX* outs = out + first_row * dout_stride + h * HS;
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
        const int query = first_query + row + 8 * half;
        const long long inside = min(query, T - 1), statistic = (long long)head_row * T + inside;
        const float row_log = lse[statistic];
        row_lse[half] = LOG2E * row_log;
        row_dot[half] = row_product<4>(douts + inside * dout_stride, outs + inside * dout_stride);
        if (threadIdx.x % 4 == 0 && query < T)
            lse_dot[statistic] = make_float2(row_log, row_dot[half]);
    }

    float dq[HS / 8][4] = {};
    LeftOperand<STREAM / STEP> left;
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int turn = 0; turn < num_turns; turn++) {
        // Behind this barrier the turn's tiles are complete, and nobody reads those of the turn
        // before any more.
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
    store_block_sums(sums_of_part(sums, b, h, first_query, GROUP_ROWS, T, NH), dq, scale,
                     T - first_query);
}
