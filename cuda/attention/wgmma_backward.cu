// Causal attention backward on Hopper, in bf16: from the gradient of attention's output, dO, those
// of its queries, keys and values. attention/backward.cuh has the formulas. Two kernels compute
// them, in this order; their blocks are one warpgroup each and own 64 rows of one head:
//
//    attention_wgmma_dq      owns 64 queries; keys and values stream past        -> dq, delta
//    attention_wgmma_dkdv    owns 64 keys and values; queries and dO stream past -> dk, dv
//
// Both also write the sum of each column of dq, dk or dv over the block's rows, for the gradient of
// the qkv bias (attention/backward.cuh).
//
// Both compute the scores again, and from these and the lse that the forward pass kept, the
// probabilities P. Numbers are the order in which a block takes its tiles: a block of dq owns a row
// of the picture and goes to the left, a block of dkdv owns a column and goes down. \ is the causal
// mask; the tiles above the diagonal are skipped:
//
//                                    keys
//                        0-63    64-127  128-191  192-255
//                      +-------+-------+-------+-------+
//    queries    0-63   |  0 \  |       |       |       |
//              64-127  |  1    |  0 \  |       |       |
//             128-191  |  2    |  1    |  0 \  |       |
//             192-255  |  3    |  2    |  1    |  0 \  |
//                      +-------+-------+-------+-------+
//
// Time line of dq for one tile, between two barriers. P is computed while the tensor cores multiply
// dO by V^T:
//
//    copies        |  next keys and values                       |
//    tensor cores  |  Q K^T   dO V^T              dq += dS K     |
//    other units   |          P           dS                     |
//
// Time line of dkdv. Everything is transposed, rows are keys:
//
//    copies        |          next queries and dO, their lse and delta                  |
//    tensor cores  |  K Q^T          V dO^T   dv += P^T dO           dk += dS^T Q       |
//    other units   |          P^T                            dS^T                       |
//
// The own rows of a block and the streamed tiles lie in shared memory. Sums (dq; dk and dv), P and
// dS stay in registers. In dkdv, P^T and dS^T are needed as left operands; K Q^T and V dO^T leave
// them in just the registers where the next products want them, so they need not go through shared
// memory. While a block waits, the other blocks on its SM compute.
//
// -D constants, from ops/attention.py: HS head size; STAGES, buffers for two streamed tiles each;
// DKDV_BLOCKS and DQ_BLOCKS that an SM should hold.
//
// Sources: FlashAttention (Dao et al. 2022, arXiv:2205.14135), FlashAttention-2 (Dao 2023,
// arXiv:2307.08691), FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608).
#include "attention/backward.cuh"
#include "attention/rows.cuh"
#include "lib/constants.cuh"
#include "lib/wgmma_tiles.cuh"

constexpr int STREAM = 64;                  // rows of a streamed tile
constexpr int TILE = STREAM * HS;           // elements of a tile
constexpr int PREFETCH_TILES = STAGES - 1;  // copies under way while a tile is used

static_assert(STREAM == GROUP_ROWS, "the first tile, and no other, needs a mask");
static_assert(2 * STREAM == WARPGROUP, "each thread copies lse or delta of one query");
static_assert(PREFETCH_TILES >= 1, "a tile is copied while another one is used");

using Products = float[STREAM / 8][4];  // 64 x 64, of own rows and streamed rows
using Sums = float[HS / 8][4];          // 64 x HS

// What a thread holds of one tile's products. The kernels declare it outside their loops: declared
// in the steps of a tile, it would cost dq more registers.
struct TileRegisters {
    Products probs, dscores;  // scores and dO V^T, then P and dS made of them
    LeftOperand<STREAM / STEP> left_probs, left_dscores;  // P and dS, rounded to bf16
};

// The stage of a tile: two tiles of shared memory.
__device__ __forceinline__ floatX* stage_of(floatX* stages, int tile) {
    return stages + tile % STAGES * (2 * TILE);
}

// The lse and delta of a tile's queries, which belong to a stage too.
__device__ __forceinline__ float* statistics_of(float* statistics, int tile) {
    return statistics + tile % STAGES * (2 * STREAM);
}

// Writes the sums of factor * values over the block's rows, as far as these are below T, for each
// column.
__device__ __forceinline__ void store_block_sums(float* sums, const Sums& values, float factor,
                                                 int rows_left) {
    const int row = accumulator_row(0), t = threadIdx.x % 4;
    store_column_sums<1, HS, HS / 4, 4>(
        sums, 0, 1, [&](int i) { return i / 2 * 8 + 2 * t + i % 2; },
        [&](int i) {
            const float (&columns)[4] = values[i / 2];
            return factor * ((row < rows_left ? columns[i % 2] : 0.0f) +
                             (row + 8 < rows_left ? columns[2 + i % 2] : 0.0f));
        });
}

// ---- dk and dv: rows are keys, columns are queries --------------------------------------------

// Scores -> P^T. Float4 4 n + t of a tile's statistics, where t = threadIdx.x % 4, holds lse and
// delta of query 8 n + 2 t, then of query 8 n + 2 t + 1: these are the thread's columns. `columns`
// points to float4 t.
__device__ __forceinline__ void to_transposed_probabilities(Products& probs, const float4* columns,
                                                            float exponent_scale) {
#pragma unroll
    for (int n = 0; n < STREAM / 8; n++) {
        const float4 stats = columns[4 * n];
        const float low = stats.x * LOG2E, high = stats.z * LOG2E;
#pragma unroll
        for (int r = 0; r < 4; r++)
            probs[n][r] = exp2_approx(probs[n][r] * exponent_scale - (r % 2 ? high : low));
    }
}

// For the tile on the diagonal: removes the keys after each query.
__device__ __forceinline__ void mask_earlier_queries(Products& probs) {
    const int key = accumulator_row(0), query = accumulator_column();
#pragma unroll
    for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (key + r / 2 * 8 > query + 8 * n + r % 2) probs[n][r] = 0.0f;
}

// dP^T -> dS^T = P^T * (dP^T - delta). P^T is the one rounded to bf16 for the product with dO, to
// save registers. dq still holds P in float32 and uses it unrounded. So the dS of the two kernels
// differ by the rounding of P; this is intended.
__device__ __forceinline__ void to_transposed_dscores(Products& dscores,
                                                      const LeftOperand<STREAM / STEP>& probs,
                                                      const float4* columns) {
#pragma unroll
    for (int n = 0; n < STREAM / 8; n++) {
        const float4 stats = columns[4 * n];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float low, high;  // of two neighbouring queries
            unpack_bfloat16(low, high, probs.at(n / 2)[n % 2 * 2 + half]);
            float (&gradients)[4] = dscores[n];
            gradients[2 * half] = low * (gradients[2 * half] - stats.y);
            gradients[2 * half + 1] = high * (gradients[2 * half + 1] - stats.w);
        }
    }
}

// dk += dS^T Q and dv += P^T dO for one tile of queries and dO. Calls start_next_copy() as soon as
// the first product is under way.
template <class StartNextCopy>
__device__ __forceinline__ void add_query_tile(Sums& dk, Sums& dv, TileRegisters& tile,
                                               const AlongRows<GROUP_ROWS>& own_keys,
                                               const AlongRows<GROUP_ROWS>& own_values,
                                               floatX* stages, float* statistics, int q_tile,
                                               float exponent_scale,
                                               StartNextCopy start_next_copy) {
    const floatX* query_tile = stage_of(stages, q_tile);
    const floatX* dout_tile = query_tile + TILE;
    start_row_products(tile.probs, own_keys, query_tile);
    wgmma_commit();
    start_next_copy();
    wgmma_wait<0>(tile.probs);
    auto* columns =
        reinterpret_cast<const float4*>(statistics_of(statistics, q_tile)) + threadIdx.x % 4;
    to_transposed_probabilities(tile.probs, columns, exponent_scale);
    if (q_tile == 0) mask_earlier_queries(tile.probs);
    // In bf16 they take half the registers. With more registers in use next to tile.dscores, ptxas
    // serialises the products: each waits for the one before.
    to_left_operand(tile.left_probs, tile.probs);
    start_row_products(tile.dscores, own_values, dout_tile);
    start_sums(dv, tile.left_probs, dout_tile);
    wgmma_commit();
    wgmma_wait<0>(tile.dscores);
    wgmma_wait<0>(dv);
    to_transposed_dscores(tile.dscores, tile.left_probs, columns);
    to_left_operand(tile.left_dscores, tile.dscores);
    start_sums(dk, tile.left_dscores, query_tile);
    wgmma_commit();
    wgmma_wait<0>(dk);
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX, and their column sums. Read: dout
// (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse_delta (B, NH, T).
// Grid: B * NH * ceil(T / 64). Block: WARPGROUP.
// Dynamic shared memory: 2 * (1 + STAGES) tiles, 2 * STAGES * STREAM floats.
extern "C" __global__ void __launch_bounds__(WARPGROUP, DKDV_BLOCKS)
    attention_wgmma_dkdv(floatX* dqkv, float* sums, const floatX* __restrict__ dout,
                         const floatX* __restrict__ qkv, const float2* __restrict__ lse_delta,
                         int T, int NH) {
    extern __shared__ __align__(1024) floatX smem[];
    floatX* stages = smem + 2 * TILE;
    float* statistics = reinterpret_cast<float*>(stages + 2 * STAGES * TILE);

    const BlockRows block = block_of_keys<GROUP_ROWS>(T, NH);
    const int stride = qkv_stride(NH), dout_stride = out_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = block.slot(dout, T, dout_stride, block.h);

    // q_tile 0 is on the diagonal.
    const int first_key = block.first;
    const int num_tiles = (T + STREAM - 1) / STREAM - first_key / GROUP_ROWS;

    auto* head_statistics = reinterpret_cast<const float*>(block.statistics(lse_delta, T));
    // Commits a group for each tile, even for none: groups are counted.
    auto start_copy = [&](int q_tile) {
        if (q_tile < num_tiles) {
            const int first = first_key + q_tile * STREAM;
            copy_tile<STREAM>(stage_of(stages, q_tile), queries, stride, first, T);
            copy_tile<STREAM>(stage_of(stages, q_tile) + TILE, douts, dout_stride, first, T);
            // Each thread copies one float of lse and delta: zero from T on, where dout is zero too
            // and nothing is added.
            const int statistic = 2 * first + int(threadIdx.x);
            cp_async4_zfill(statistics_of(statistics, q_tile) + threadIdx.x,
                            head_statistics + statistic, statistic < 2 * T ? 4 : 0);
        }
        cp_async_commit();
    };
    copy_tile<GROUP_ROWS>(smem, keys, stride, first_key, T);  // in one group with q_tile 0
    copy_tile<GROUP_ROWS>(smem + TILE, values, stride, first_key, T);
#pragma unroll
    for (int q_tile = 0; q_tile < PREFETCH_TILES; q_tile++) start_copy(q_tile);
    const AlongRows<GROUP_ROWS> own_keys(smem);
    const AlongRows<GROUP_ROWS> own_values(smem + TILE);

    TileRegisters tile;
    Sums dk = {}, dv = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int q_tile = 0; q_tile < num_tiles; q_tile++) {
        // After this barrier the tile is complete, and no thread reads the tile before it any more:
        // the next copy overwrites it.
        wait_for_tiles<PREFETCH_TILES - 1>();
        add_query_tile(dk, dv, tile, own_keys, own_values, stages, statistics, q_tile,
                       exponent_scale, [&] { start_copy(q_tile + PREFETCH_TILES); });
    }
    floatX* dkeys = block.slot(dqkv, T, stride, NH + block.h);
    store_rows(dkeys, stride, first_key, T, dk, {scale, scale});
    store_rows(dkeys + NH * HS, stride, first_key, T, dv, {1.0f, 1.0f});
    float* block_sums =
        sums_of_group(sums, block.b, block.h, first_key, GROUP_ROWS, T, NH) + NH * HS;
    store_block_sums(block_sums, dk, scale, T - first_key);
    store_block_sums(block_sums + NH * HS, dv, 1.0f, T - first_key);
}

// ---- dq: rows are queries, columns are keys ---------------------------------------------------

// Computes delta of this thread's two queries, reads their lse and writes both to lse_delta. A
// query from T on gets those of the last one; its results are not stored.
__device__ __forceinline__ void load_statistics(float (&row_lse)[2], float (&row_delta)[2],
                                                float2* lse_delta, const float* lse,
                                                const floatX* douts, const floatX* outs, int stride,
                                                int bh, int first_query, int row, int T) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = first_query + row + 8 * half;
        const long long inside = min(query, T - 1), statistic = (long long)bh * T + inside;
        const float row_log = lse[statistic];
        row_lse[half] = LOG2E * row_log;
        row_delta[half] = row_product<4>(douts + inside * stride, outs + inside * stride);
        if (threadIdx.x % 4 == 0 && query < T)
            lse_delta[statistic] = make_float2(row_log, row_delta[half]);
    }
}

// Scores -> P. row_lse is lse * LOG2E.
__device__ __forceinline__ void to_probabilities(Products& probs, const float (&row_lse)[2],
                                                 float exponent_scale) {
#pragma unroll
    for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            probs[n][r] = exp2_approx(probs[n][r] * exponent_scale - row_lse[r / 2]);
}

// For the tile on the diagonal: removes the keys after each query. Keys from T on are after every
// query below T, so this also hides the padding.
__device__ __forceinline__ void mask_later_keys(Products& probs, int row) {
    const int key = accumulator_column();
#pragma unroll
    for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (key + 8 * n + r % 2 > row + r / 2 * 8) probs[n][r] = 0.0f;
}

// dP -> dS = P * (dP - delta).
__device__ __forceinline__ void to_dscores(Products& dscores, const Products& probs,
                                           const float (&row_delta)[2]) {
#pragma unroll
    for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            dscores[n][r] = probs[n][r] * (dscores[n][r] - row_delta[r / 2]);
}

// dq += dS K for one tile of keys and values.
__device__ __forceinline__ void add_key_tile(Sums& dq, TileRegisters& tile,
                                             const AlongRows<GROUP_ROWS>& own_queries,
                                             const AlongRows<GROUP_ROWS>& own_douts, floatX* stages,
                                             int kv_tile, const float (&row_lse)[2],
                                             const float (&row_delta)[2], int row,
                                             float exponent_scale) {
    const floatX* key_tile = stage_of(stages, kv_tile);
    start_row_products(tile.probs, own_queries, key_tile);
    wgmma_commit();
    start_row_products(tile.dscores, own_douts, key_tile + TILE);
    wgmma_commit();
    wgmma_wait<1>(tile.probs);
    to_probabilities(tile.probs, row_lse, exponent_scale);
    if (kv_tile == 0) mask_later_keys(tile.probs, row);
    wgmma_wait<0>(tile.dscores);
    to_dscores(tile.dscores, tile.probs, row_delta);
    to_left_operand(tile.left_dscores, tile.dscores);
    start_sums(dq, tile.left_dscores, key_tile);
    wgmma_commit();
    wgmma_wait<0>(dq);
}

// Written: the dq rows of dqkv (B, T, 3, NH, HS) floatX, and their column sums;
// lse_delta (B, NH, T).
// Read: dout, out (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / 64). Block: WARPGROUP.
// Dynamic shared memory: 2 * (1 + STAGES) tiles.
extern "C" __global__ void __launch_bounds__(WARPGROUP, DQ_BLOCKS)
    attention_wgmma_dq(floatX* dqkv, float* sums, float2* lse_delta,
                       const floatX* __restrict__ dout, const floatX* __restrict__ out,
                       const floatX* __restrict__ qkv, const float* __restrict__ lse, int T,
                       int NH) {
    extern __shared__ __align__(1024) floatX smem[];
    floatX* stages = smem + 2 * TILE;

    const BlockRows block = block_of_queries<GROUP_ROWS>(T, NH);
    const int stride = qkv_stride(NH), dout_stride = out_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = block.slot(dout, T, dout_stride, block.h);
    const floatX* outs = block.slot(out, T, dout_stride, block.h);
    floatX* dqueries = block.slot(dqkv, T, stride, block.h);

    // kv_tile 0 is the last one, on the diagonal.
    const int first_query = block.first, num_tiles = first_query / STREAM + 1;

    auto start_copy = [&](int kv_tile) {
        const int first = (num_tiles - 1 - kv_tile) * STREAM;
        if (first >= 0) {
            copy_tile<STREAM>(stage_of(stages, kv_tile), keys, stride, first, T);
            copy_tile<STREAM>(stage_of(stages, kv_tile) + TILE, values, stride, first, T);
        }
        cp_async_commit();
    };
    copy_tile<GROUP_ROWS>(smem, queries, stride, first_query, T);  // in one group with kv_tile 0
    copy_tile<GROUP_ROWS>(smem + TILE, douts, dout_stride, first_query, T);
#pragma unroll
    for (int kv_tile = 0; kv_tile < PREFETCH_TILES; kv_tile++) start_copy(kv_tile);
    const AlongRows<GROUP_ROWS> own_queries(smem);
    const AlongRows<GROUP_ROWS> own_douts(smem + TILE);

    const int row = accumulator_row(0);
    float row_lse[2], row_delta[2];
    load_statistics(row_lse, row_delta, lse_delta, lse, douts, outs, dout_stride, block.bh,
                    first_query, row, T);

    TileRegisters tile;
    Sums dq = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int kv_tile = 0; kv_tile < num_tiles; kv_tile++) {
        // After this barrier the tile is complete, and no thread reads the tile before it any more:
        // the next copy overwrites it.
        wait_for_tiles<PREFETCH_TILES - 1>();
        start_copy(kv_tile + PREFETCH_TILES);
        add_key_tile(dq, tile, own_queries, own_douts, stages, kv_tile, row_lse, row_delta, row,
                     exponent_scale);
    }
    store_rows(dqueries, stride, first_query, T, dq, {scale, scale});
    store_block_sums(sums_of_group(sums, block.b, block.h, first_query, GROUP_ROWS, T, NH), dq,
                     scale, T - first_query);
}
