// Causal attention forward on tensor cores, in bf16, or in TF32 for float32 arrays: for each query,
// the softmax of its scores with all keys up to its own position, times the values of these keys. A
// block owns 16 * TILES * WARPS queries of one head, and each of its warps owns 16 * TILES of them.
// The keys and values up to the block's last query stream past in tiles. A warp keeps its queries,
// their scores with one tile and their rows of the output in registers; the T x T scores are never
// stored.
//
// Causality: a warp skips a tile of which all keys are after all of its queries. It masks single
// scores where some keys of the tile are after some of its queries. Here is the second block of a
// head with TILES = 1, WARPS = 4, KEYS = 32: ## all scores count, \ masked, empty: skipped.
//
//                                  keys and values
//                          0-31    32-63   64-95  96-127
//                         tile 0  tile 1  tile 2  tile 3
//                       +-------+-------+-------+-------+
//      queries   64-79  |  ##   |  ##   |   \   |       |  warp 0
//                80-95  |  ##   |  ##   |   \   |       |  warp 1
//               96-111  |  ##   |  ##   |  ##   |   \   |  warp 2
//              112-127  |  ##   |  ##   |  ##   |   \   |  warp 3
//                       +-------+-------+-------+-------+
//
// Shared memory has two stages for a tile of keys and a tile of values, K and V. Each | is a
// barrier, after which a stage is complete and the other one is free for the next copy:
//
//    time ------------------------------------------------------------------------------->
//                  |           | tile 0         | tile 1         | tile 2         | tile 3
//    stage 0       | copy K0 V0| use K0 V0      | copy K2 V2     | use K2 V2      |
//    stage 1       |           | copy K1 V1     | use K1 V1      | copy K3 V3     | use K3 V3
//
// A warp uses a tile in four steps: scores = Q K^T; the mask, if it needs one; the softmax, which
// turns scores into probabilities; sums += P V. Warps meet at the barriers only.
//
// The softmax is "online": a row's probabilities, their sum and the sums of values are relative to
// its largest score so far. When a tile has a larger one, the older sums are multiplied by
// exp(old largest - new largest). At the end they are divided by the sum of the probabilities.
//
// -D constants, from ops/attention.py: HS head size; WARPS of a block; TILES of 16 queries that a
// warp owns; KEYS of a tile that streams past.
//
// Sources: FlashAttention (Dao et al. 2022, arXiv:2205.14135) for the online softmax,
// FlashAttention-2 (Dao 2023, arXiv:2307.08691) for blocks and warps that own queries.
#include "attention/mma.cuh"
#include "attention/rows.cuh"

constexpr int WARP_QUERIES = 16 * TILES;
constexpr int BLOCK_QUERIES = WARP_QUERIES * WARPS;
constexpr int TILE = KEYS * PITCH;  // elements of one tile of keys, or of values
constexpr int STAGE = 2 * TILE;

// A warp's scores with a tile, and its rows of the output. [m][n][2 * half + r] of a lane is row
// 16 m + 8 half + lane_row() and column 8 n + lane_column() + r.
using Scores = float[TILES][KEYS / 8][4];
using Outputs = float[TILES][HS / 8][4];

// Starts copying the keys [first_key, first_key + KEYS) and their values to a stage.
__device__ __forceinline__ void start_copy(floatX* stage, const floatX* keys, const floatX* values,
                                           long long stride, int first_key, int T) {
    copy_tile<KEYS>(stage, keys, stride, first_key, T);
    copy_tile<KEYS>(stage + TILE, values, stride, first_key, T);
    cp_async_commit();
}

// ---- softmax -----------------------------------------------------------------------------------

// What a lane knows of its rows, [m][half].
struct RowStats {
    float largest[TILES][2];           // score so far
    float denominator[TILES][2] = {};  // this lane's share: the sum over its columns
    __device__ __forceinline__ RowStats() {
#pragma unroll
        for (int m = 0; m < TILES; m++) largest[m][0] = largest[m][1] = MASKED;
    }
};

// Masks the keys after each query; the lane's first score is that of `query` and `key`. Keys from T
// on are after every query below T, so this also hides the padding.
__device__ __forceinline__ void mask_later_keys(Scores& scores, int query, int key) {
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                if (key + 8 * n + r % 2 > query + 16 * m + 8 * (r / 2)) scores[m][n][r] = MASKED;
}

// The larger of `largest` and the row's scores with this tile, the same in the row's four lanes. It
// is a real score from the first tile on: every query sees key 0.
__device__ __forceinline__ float largest_score(float largest, const Scores& scores, int m,
                                               int half) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
        largest = fmaxf(largest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
    return fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
}

// Replaces scores by probabilities, up to the denominator: exp(scale * (score - largest)). Makes
// the denominator and `sums`, which contain earlier tiles, relative to the new largest score.
__device__ __forceinline__ void to_probabilities(Scores& scores, RowStats& rows, Outputs& sums,
                                                 float exponent_scale) {
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float largest = largest_score(rows.largest[m][half], scores, m, half);
            const float shift = largest * exponent_scale;
            const float correction = exp2_approx(rows.largest[m][half] * exponent_scale - shift);
            rows.largest[m][half] = largest;

            float sum = rows.denominator[m][half] * correction;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int r = 2 * half; r < 2 * half + 2; r++) {
                    scores[m][n][r] = exp2_approx(scores[m][n][r] * exponent_scale - shift);
                    sum += scores[m][n][r];
                }
            rows.denominator[m][half] = sum;
#pragma unroll
            for (int n = 0; n < HS / 8; n++) {
                sums[m][n][2 * half] *= correction;
                sums[m][n][2 * half + 1] *= correction;
            }
        }
}

// ---- results -----------------------------------------------------------------------------------

// Divides the sums of values by the denominators, and writes lse (B, NH, T) of the warp's queries;
// `query` is the lane's first one, and member 0 of the four lanes that share a row writes.
__device__ __forceinline__ void finish_softmax(Outputs& sums, float* lse, const RowStats& rows,
                                               int bh, int query, int member, int T, float scale) {
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = rows.denominator[m][half];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            const float inverse = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < HS / 8; n++) {
                sums[m][n][2 * half] *= inverse;
                sums[m][n][2 * half + 1] *= inverse;
            }
            const int row = query + 16 * m + 8 * half;
            if (member == 0 && row < T)
                lse[(long long)bh * T + row] = rows.largest[m][half] * scale + logf(sum);
        }
}

// ---- the kernel --------------------------------------------------------------------------------

// out[b, t] = sum over s <= t of softmax(q_t . k_s / sqrt(HS)) v_s, per head.
// Written: out (B, T, NH, HS) floatX; lse (B, NH, T) float, log of the sum of exp(scaled score).
// Read: qkv (B, T, 3, NH, HS) floatX. Grid: B * NH * ceil(T / BLOCK_QUERIES). Block: THREADS.
// Dynamic shared memory: STAGES * STAGE elements.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS<TILES>)
    attention_mma_forward(floatX* __restrict__ out, float* __restrict__ lse,
                          const floatX* __restrict__ qkv, int T, int NH) {
    extern __shared__ __align__(16) floatX smem[];
    const int warp = threadIdx.x / WARP, row = lane_row(), member = threadIdx.x % 4;

    const BlockRows block = block_of_queries<BLOCK_QUERIES>(T, NH);
    const long long stride = qkv_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;

    const int first_query = block.first + WARP_QUERIES * warp;
    const int num_keys = min(block.first + BLOCK_QUERIES, T);
    const int num_tiles = (num_keys + KEYS - 1) / KEYS;

    start_copy(smem, keys, values, stride, 0, T);
    unsigned own_queries[TILES][HEAD_STEPS][4];
    load_own_rows(own_queries, queries, stride, first_query, T);

    Outputs sums = {};
    RowStats rows;
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;  // exp(scale * s) = exp2(exponent_scale * s)

    for (int tile = 0; tile < num_tiles; tile++) {
        floatX* key_tile = smem + tile % STAGES * STAGE;
        const floatX* value_tile = key_tile + TILE;
        wait_for_stage<KEYS>(key_tile);
        if (tile + 1 < num_tiles) {
            floatX* next_stage = smem + (tile + 1) % STAGES * STAGE;
            start_copy(next_stage, keys, values, stride, (tile + 1) * KEYS, T);
        }
        const int first_key = tile * KEYS;
        if (first_key >= first_query + WARP_QUERIES) continue;  // after all queries of this warp

        Scores scores;
        multiply_rows(scores, own_queries, key_tile);
        if (first_key + KEYS - 1 > first_query)
            mask_later_keys(scores, first_query + row, first_key + 2 * member);
        to_probabilities(scores, rows, sums, exponent_scale);
        add_product(sums, scores, value_tile);
    }
    finish_softmax(sums, lse, rows, block.bh, first_query + row, member, T, scale);
    store_rows(block.slot(out, T, out_stride(NH), block.h), out_stride(NH), first_query, T, sums,
               1.0f);
}
