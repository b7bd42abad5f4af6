// Causal attention forward in bf16 on Hopper's tensor cores (wgmma), one pass, never storing T x T.
// After FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608): while the tensor cores multiply the
// probabilities of one tile with its values, a warpgroup computes those of the next tile.
//
// -DHS head size, -DGROUPS warpgroups of a block, -DKEYS keys per streamed tile, -DSTAGES tiles in
// shared memory, -DBLOCKS that an SM should hold. Each warpgroup owns 64 queries; they stay in
// registers, with their scores and output rows.
#include "wgmma.cuh"

constexpr int THREADS = WARPGROUP * GROUPS;
constexpr int BLOCK_QUERIES = GROUP_ROWS * GROUPS;
constexpr int TILE = KEYS * HS;            // elements of one tile of keys, or of values
constexpr int AHEAD = STAGES - 2;          // tiles under way beside this one and the one before
constexpr float LOG2E = 1.4426950408889634f;
constexpr float MASKED = -1e30f;           // score of a key after the query: exp2 makes it 0

static_assert(KEYS % GROUP_ROWS == 0, "only a warpgroup's last tile holds keys after its queries");
static_assert(AHEAD >= 1, "a tile's values are read one turn later than its keys");

// What a thread knows of its two rows (one in each half of its warp's 16).
struct Rows {
    float largest[2] = {MASKED, MASKED};  // score so far
    float denominator[2] = {};            // this thread's share of it
    float correction[2];                  // of sums made with the largest score before
};

// Replaces scores by probabilities, up to the denominator.
template <int N>
__device__ __forceinline__ void to_probabilities(float (&scores)[N][4], Rows& rows,
                                                 float exponent_scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        // Finite from the first tile on, which holds the query's own key.
        float highest = rows.largest[half];
#pragma unroll
        for (int n = 0; n < N; n++)
            highest = fmaxf(highest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, 2));
        const float shift = highest * exponent_scale;
        rows.correction[half] = exp2_approx(rows.largest[half] * exponent_scale - shift);
        rows.largest[half] = highest;

        float sum = rows.denominator[half] * rows.correction[half];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int r = 2 * half; r < 2 * half + 2; r++) {
                scores[n][r] = exp2_approx(scores[n][r] * exponent_scale - shift);
                sum += scores[n][r];
            }
        rows.denominator[half] = sum;
    }
}

// out[b, t] = sum over s <= t of softmax(q_t . k_s / sqrt(HS)) v_s, per head.
// Written: out (B, T, NH, HS) floatX; lse (B, NH, T) float, log of the sum of exp(scaled score).
// Read: qkv (B, T, 3, NH, HS) floatX. Grid: B * NH * ceil(T / BLOCK_QUERIES).
// Dynamic shared memory: 2 * STAGES tiles.
extern "C" __global__ void
__launch_bounds__(THREADS, BLOCKS)
    attention_wgmma_forward(floatX* __restrict__ out, float* __restrict__ lse,
                            const floatX* __restrict__ qkv, int T, int NH) {
    extern __shared__ __align__(1024) floatX smem[];

    // Blocks of one head are neighbours and share its keys in the L2 cache. The last queries have
    // the most keys: they come first, so that the tail of the launch is made of short blocks.
    const int num_blocks = (T + BLOCK_QUERIES - 1) / BLOCK_QUERIES;
    const int block = num_blocks - 1 - int(blockIdx.x % num_blocks);
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;

    const long long stride = 3LL * NH * HS;
    const floatX* queries = qkv + b * T * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;

    // Tiles come from the last one down: a warpgroup begins with the one that needs a mask.
    const int first_query = block * BLOCK_QUERIES + threadIdx.x / WARPGROUP * GROUP_ROWS;
    const int num_tiles = (min((block + 1) * BLOCK_QUERIES, T) + KEYS - 1) / KEYS;
    const int first_turn = max(num_tiles - 1 - first_query / KEYS, 0);  // of this warpgroup

    auto key_tile = [&](int turn) { return smem + turn % STAGES * (2 * TILE); };
    auto value_tile = [&](int turn) { return key_tile(turn) + TILE; };
    // Commits a group even for no tile, so that counting groups counts turns.
    auto start_copy = [&](int turn) {
        const int tile = num_tiles - 1 - turn;
        if (tile >= 0) {
            copy_tile<KEYS, THREADS>(key_tile(turn), keys, stride, tile * KEYS, T);
            copy_tile<KEYS, THREADS>(value_tile(turn), values, stride, tile * KEYS, T);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int turn = 0; turn < AHEAD; turn++) start_copy(turn);
    LeftOperand<HS / STEP> own;
    load_left_operand(own, queries, stride, first_query, T);

    float scores[KEYS / 8][4], sums[HS / 8][4] = {};
    LeftOperand<KEYS / STEP> probs;  // of the turn before
    Rows rows;
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;  // exp(scale * s) = exp2(exponent_scale * s)

    for (int turn = 0; turn < num_tiles; turn++) {
        // Behind this barrier the turn's tiles are complete, and nobody reads those of two turns
        // ago any more.
        wait_for_tiles<AHEAD - 1>();
        start_copy(turn + AHEAD);
        if (turn < first_turn) continue;  // keys after all queries of this warpgroup

        start_scores(scores, own, key_tile(turn));
        wgmma_commit();
        if (turn == first_turn) {
            wgmma_wait<0>(scores);
            // Keys from T on are after every query below T, so this also hides the padding.
            const int thread = threadIdx.x % WARPGROUP;
            const int first_key = (num_tiles - 1 - turn) * KEYS + thread % 4 * 2;
            const int query = first_query + thread / WARP * 16 + thread % WARP / 4;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    if (first_key + 8 * n + r % 2 > query + r / 2 * 8) scores[n][r] = MASKED;
            to_probabilities(scores, rows, exponent_scale);
        } else {
            start_sums(sums, probs, value_tile(turn - 1));
            wgmma_commit();
            wgmma_wait<1>(scores);
            to_probabilities(scores, rows, exponent_scale);
            wgmma_wait<0>(sums);
#pragma unroll
            for (int n = 0; n < HS / 8; n++)
#pragma unroll
                for (int r = 0; r < 4; r++) sums[n][r] *= rows.correction[r / 2];
        }
        to_left_operand(probs, scores);
    }
    start_sums(sums, probs, value_tile(num_tiles - 1));
    wgmma_commit();
    wgmma_wait<0>(sums);

    const int thread = threadIdx.x % WARPGROUP;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = rows.denominator[half];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        inverse[half] = 1.0f / sum;
        int query = first_query + thread / WARP * 16 + half * 8 + thread % WARP / 4;
        if (thread % 4 == 0 && query < T)
            lse[(long long)head_row * T + query] = rows.largest[half] * scale + logf(sum);
    }
    store_rows(out + ((long long)b * T * NH + h) * HS, (long long)NH * HS, first_query, T, sums,
               inverse);
}
