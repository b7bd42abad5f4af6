// Causal attention forward on Hopper, in bf16: for each query, the softmax of its scores with all
// keys up to its own position, times the values of these keys. A block of one warpgroup owns 64
// queries of one head. Their keys and values stream past in tiles; scores, probabilities and the 64
// rows of the output stay in registers, and the T x T scores are never stored.
//
// Causality: the tiles on the diagonal get a mask, those above it are skipped. Numbers are the
// order in which a block takes its tiles; \ is the mask (here KEYS = 64):
//
//                               keys and values
//                        0-63    64-127  128-191  192-255
//                      +-------+-------+-------+-------+
//    queries    0-63   |  0 \  |       |       |       |    a block for each row
//              64-127  |  1    |  0 \  |       |       |
//             128-191  |  2    |  1    |  0 \  |       |
//             192-255  |  3    |  2    |  1    |  0 \  |    most tiles: first of its head
//                      +-------+-------+-------+-------+
//
// The softmax of a tile needs its scores, Q K^T, complete. So that the tensor cores do not wait for
// it, they multiply the probabilities P of the tile before by its values V in the meantime. Here is
// the time line of a block with three tiles. Each | is a barrier, after which the tile named next
// to it is complete in shared memory; the last product comes after the loop, without a barrier:
//
//    time ------------------------------------------------------------------------------------->
//                  |  kv_tile 0          |  kv_tile 1           |  kv_tile 2              after
//    copies        |  K1 V1              |  K2 V2               |
//    tensor cores  |  Q K0^T             |  Q K1^T  P0 V0       |  Q K2^T  P1 V1          P2 V2
//    other units   |          softmax 0  |          softmax 1   |          softmax 2
//
// During kv_tile 1, the stages of shared memory hold K1 and V1, V0 of the tile before, and the
// copies of K2 and V2: at least three stages. While a block waits, the other blocks on its SM
// compute: small blocks, several on an SM, wait less at barriers than large ones.
//
// The softmax is "online": sums so far are relative to a reference, the largest score of the row
// when the reference last moved. When a later score exceeds it too far, the reference moves to this
// score, and the sums of the row are multiplied by a correction.
//
// -D constants, from ops/attention.py: HS head size; KEYS of a tile; STAGES, buffers for a tile of
// keys and one of values each; BLOCKS that an SM should hold.
//
// Sources: FlashAttention (Dao et al. 2022, arXiv:2205.14135) for the online softmax,
// FlashAttention-2 (Dao 2023, arXiv:2307.08691) for blocks that own queries, FlashAttention-3 (Shah
// et al. 2024, arXiv:2407.08608) for the overlap of P V with the next softmax.
#include "attention/rows.cuh"
#include "lib/constants.cuh"
#include "lib/wgmma_tiles.cuh"

constexpr int TILE = KEYS * HS;  // elements of one tile of keys, or of values
// Copies that are under way while a tile's products run. Two more stages hold this tile and the
// values of the tile before.
constexpr int PREFETCH_TILES = STAGES - 2;

// A row's reference stays as it is while no exp(scale * score) exceeds exp(scale * reference) by
// more than a factor of 2^SLACK, where scale = 1 / sqrt(HS): nothing can overflow, and the sums
// need no correction. After the first tiles, this is nearly always so.
constexpr float SLACK = 8.0f;

static_assert(KEYS % GROUP_ROWS == 0, "only the last tile holds keys after the block's queries");
static_assert(PREFETCH_TILES >= 1, "a tile is copied while another one is used");

using Scores = float[KEYS / 8][4];
using Outputs = float[HS / 8][4];

// ---- softmax ----------------------------------------------------------------------------------

// What a thread knows of its two rows, 8 apart.
struct RowStats {
    float reference[2] = {MASKED, MASKED};  // the same in the four lanes of a row
    float denominator[2] = {};              // sum over this thread's columns
    float correction[2];  // for sums made with the reference before; valid if it has just moved
};

// Masks the keys after each query. Keys from T on are after every query below T, so this also hides
// the padding.
__device__ __forceinline__ void mask_later_keys(Scores& scores, int first_query, int first_key) {
    const int key = first_key + accumulator_column(), query = accumulator_row(first_query);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (key + 8 * n + r % 2 > query + r / 2 * 8) scores[n][r] = MASKED;
}

// The largest score of this thread in one of its rows.
__device__ __forceinline__ float largest_score(const Scores& scores, int half) {
    float largest = fmaxf(scores[0][2 * half], scores[0][2 * half + 1]);
#pragma unroll
    for (int n = 1; n < KEYS / 8; n++)
        largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    return largest;
}

// Takes a larger score of the row as its reference if it exceeds `limit`. Another row of the warp
// may be the reason for the call: then nothing changes.
__device__ __forceinline__ void move_reference(RowStats& rows, int half, float highest, float limit,
                                               float exponent_scale) {
    float largest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
    const float reference = largest > limit ? largest : rows.reference[half];
    rows.correction[half] = exp2_approx((rows.reference[half] - reference) * exponent_scale);
    rows.reference[half] = reference;
    rows.denominator[half] *= rows.correction[half];
}

// score -> exp(scale * (score - reference)) in one of the thread's rows; adds them to the
// denominator.
__device__ __forceinline__ void exponentials(Scores& scores, RowStats& rows, int half,
                                             float exponent_scale) {
    const float shift = rows.reference[half] * exponent_scale;
    float even = 0.0f, odd = 0.0f;  // two chains of sums: less waiting
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
        float &low = scores[n][2 * half], &high = scores[n][2 * half + 1];
        low = exp2_approx(low * exponent_scale - shift);
        high = exp2_approx(high * exponent_scale - shift);
        even += low, odd += high;
    }
    rows.denominator[half] += even + odd;
}

// Replaces scores by probabilities, not yet divided by the denominator. Returns whether the sums of
// this warp must be multiplied by rows.correction, which is only then valid. Only a row's own
// scores decide about its reference.
__device__ __forceinline__ bool to_probabilities(Scores& scores, RowStats& rows,
                                                 float exponent_scale) {
    float highest[2];
#pragma unroll
    for (int half = 0; half < 2; half++) highest[half] = largest_score(scores, half);
    const float limit[2] = {rows.reference[0] + SLACK / exponent_scale,
                            rows.reference[1] + SLACK / exponent_scale};
    const bool corrects = __any_sync(FULL_WARP, highest[0] > limit[0] || highest[1] > limit[1]);
    if (corrects) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            move_reference(rows, half, highest[half], limit[half], exponent_scale);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) exponentials(scores, rows, half, exponent_scale);
    return corrects;
}

// Makes the sums relative to the new references.
__device__ __forceinline__ void apply_corrections(Outputs& sums, const RowStats& rows) {
#pragma unroll
    for (int n = 0; n < HS / 8; n++)
#pragma unroll
        for (int r = 0; r < 4; r++) sums[n][r] *= rows.correction[r / 2];
}

// ---- the steps of a tile ----------------------------------------------------------------------

// The first tile: there are no values to multiply yet. The scores are under way.
template <class StartNextCopy>
__device__ __forceinline__ void softmax_of_diagonal(Scores& scores, RowStats& rows, int first_query,
                                                    int first_key, float exponent_scale,
                                                    StartNextCopy start_next_copy) {
    start_next_copy();
    wgmma_wait<0>(scores);
    mask_later_keys(scores, first_query, first_key);
    to_probabilities(scores, rows, exponent_scale);
}

// The other tiles. The scores are under way; `probs` and `values_before` are of the tile before.
// While the tensor cores multiply these, the other units compute this tile's probabilities.
template <class StartNextCopy>
__device__ __forceinline__ void softmax_and_sums(Scores& scores, RowStats& rows, Outputs& sums,
                                                 const LeftOperand<KEYS / STEP>& probs,
                                                 const floatX* values_before, float exponent_scale,
                                                 StartNextCopy start_next_copy) {
    start_sums(sums, probs, values_before);
    wgmma_commit();
    start_next_copy();
    wgmma_wait<1>(scores);
    const bool corrects = to_probabilities(scores, rows, exponent_scale);
    wgmma_wait<0>(sums);
    if (corrects) apply_corrections(sums, rows);
}

// ---- results ----------------------------------------------------------------------------------

// Writes lse (B, NH, T) of this thread's rows. inverse = 1 / denominator of each.
__device__ __forceinline__ void store_lse(float* lse, float (&inverse)[2], const RowStats& rows,
                                          int bh, int first_query, int T, float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = rows.denominator[half];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        inverse[half] = 1.0f / sum;
        const int query = accumulator_row(first_query) + half * 8;
        if (threadIdx.x % 4 == 0 && query < T)
            lse[(long long)bh * T + query] = rows.reference[half] * scale + logf(sum);
    }
}

// ---- the kernel -------------------------------------------------------------------------------

// out[b, t] = sum over s <= t of softmax(q_t . k_s / sqrt(HS)) v_s, per head.
// Written: out (B, T, NH, HS) floatX; lse (B, NH, T) float, log of the sum of exp(scaled score).
// Read: qkv (B, T, 3, NH, HS) floatX. Grid: B * NH * ceil(T / GROUP_ROWS). Block: WARPGROUP.
// Dynamic shared memory: the queries and 2 * STAGES tiles.
extern "C" __global__ void __launch_bounds__(WARPGROUP, BLOCKS)
    attention_wgmma_forward(floatX* __restrict__ out, float* __restrict__ lse,
                            const floatX* __restrict__ qkv, int T, int NH) {
    extern __shared__ __align__(1024) floatX smem[];
    floatX* stages = smem + GROUP_ROWS * HS;

    const BlockRows block = block_of_queries<GROUP_ROWS>(T, NH);
    const int stride = qkv_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;

    // kv_tile 0 is the last one, on the diagonal.
    const int first_query = block.first, num_tiles = first_query / KEYS + 1;

    auto key_tile = [&](int kv_tile) { return stages + kv_tile % STAGES * (2 * TILE); };
    auto value_tile = [&](int kv_tile) { return key_tile(kv_tile) + TILE; };
    // Commits a group for each tile, even for none: groups are counted.
    auto start_copy = [&](int kv_tile) {
        const int tile = num_tiles - 1 - kv_tile;
        if (tile >= 0) {
            copy_tile<KEYS>(key_tile(kv_tile), keys, stride, tile * KEYS, T);
            copy_tile<KEYS>(value_tile(kv_tile), values, stride, tile * KEYS, T);
        }
        cp_async_commit();
    };
    copy_tile<GROUP_ROWS>(smem, queries, stride, first_query, T);  // in one group with kv_tile 0
#pragma unroll
    for (int kv_tile = 0; kv_tile < PREFETCH_TILES; kv_tile++) start_copy(kv_tile);
    const AlongRows<GROUP_ROWS> own_queries(smem);

    Scores scores;
    Outputs sums = {};
    LeftOperand<KEYS / STEP> probs;  // of the tile before
    RowStats rows;
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;  // exp(scale * s) = exp2(exponent_scale * s)

    for (int kv_tile = 0; kv_tile < num_tiles; kv_tile++) {
        // After this barrier the tile is complete, and no thread reads the tile of two before any
        // more: the next copy overwrites it.
        wait_for_tiles<PREFETCH_TILES - 1>();
        start_row_products(scores, own_queries, key_tile(kv_tile));
        wgmma_commit();
        auto start_next_copy = [&] { start_copy(kv_tile + PREFETCH_TILES); };
        if (kv_tile == 0)
            softmax_of_diagonal(scores, rows, first_query, (num_tiles - 1) * KEYS, exponent_scale,
                                start_next_copy);
        else
            softmax_and_sums(scores, rows, sums, probs, value_tile(kv_tile - 1), exponent_scale,
                             start_next_copy);
        to_left_operand(probs, scores);
    }
    start_sums(sums, probs, value_tile(num_tiles - 1));
    wgmma_commit();
    wgmma_wait<0>(sums);

    float inverse[2];
    store_lse(lse, inverse, rows, block.bh, first_query, T, scale);
    store_rows(block.slot(out, T, out_stride(NH), block.h), NH * HS, first_query, T, sums, inverse);
}
