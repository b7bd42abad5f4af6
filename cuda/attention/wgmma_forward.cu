// Causal attention forward in bf16 on Hopper's tensor cores (wgmma), one pass, never storing T x T.
// After FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608): while the tensor cores multiply the
// probabilities of one tile with its values, a warpgroup computes those of the next tile.
//
// -DHS head size, -DKEYS keys per streamed tile, -DSTAGES pairs of tiles in shared memory, -DBLOCKS
// that an SM should hold. A block is one warpgroup and owns 64 queries of one head; their scores,
// probabilities and output rows stay in registers. Small blocks, several on an SM, wait less at
// barriers than large ones and keep the units busy in turn.
#include "lib/wgmma_tiles.cuh"

constexpr int TILE = KEYS * HS;    // elements of one tile of keys, or of values
constexpr int AHEAD = STAGES - 2;  // tiles under way beside this one and the one before
constexpr float LOG2E = 1.4426950408889634f;
constexpr float MASKED = -1e30f;  // score of a key after the query: exp2 makes it 0

// Sums are kept relative to exp(reference), the largest score of a row when it was last looked at.
// While no exp exceeds it by more than a factor of 2^SLACK, nothing can overflow and the sums
// need not be scaled anew: after the first tiles, that is nearly always.
constexpr float SLACK = 8.0f;

static_assert(KEYS % GROUP_ROWS == 0, "only the last tile holds keys after the block's queries");
static_assert(AHEAD >= 1, "a tile's values are read one turn later than its keys");

// What a thread knows of its two rows (one in each half of its warp's 16).
struct Rows {
    float reference[2] = {MASKED, MASKED};
    float denominator[2] = {};  // this thread's share of it
    float correction[2];        // of sums made with the reference before
};

// Replaces scores by probabilities, up to the denominator. Returns whether this warp's sums are to
// be multiplied by the rows' corrections. A row's own scores alone decide over its reference.
template <int N>
__device__ __forceinline__ bool to_probabilities(float (&scores)[N][4], Rows& rows,
                                                 float exponent_scale) {
    float highest[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        highest[half] = fmaxf(scores[0][2 * half], scores[0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < N; n++)
            highest[half] =
                fmaxf(highest[half], fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    }
    const float limit[2] = {rows.reference[0] + SLACK / exponent_scale,
                            rows.reference[1] + SLACK / exponent_scale};
    const bool scales = __any_sync(FULL_WARP, highest[0] > limit[0] || highest[1] > limit[1]);
    if (scales) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = fmaxf(highest[half], __shfl_xor_sync(FULL_WARP, highest[half], 1));
            largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
            // Elsewhere in the warp a row may have grown: one that has not keeps its reference.
            const float reference = largest > limit[half] ? largest : rows.reference[half];
            rows.correction[half] =
                exp2_approx((rows.reference[half] - reference) * exponent_scale);
            rows.reference[half] = reference;
            rows.denominator[half] *= rows.correction[half];
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float shift = rows.reference[half] * exponent_scale;
        float even = 0.0f, odd = 0.0f;  // two chains of sums: less waiting
#pragma unroll
        for (int n = 0; n < N; n++) {
            float &low = scores[n][2 * half], &high = scores[n][2 * half + 1];
            low = exp2_approx(low * exponent_scale - shift);
            high = exp2_approx(high * exponent_scale - shift);
            even += low, odd += high;
        }
        rows.denominator[half] += even + odd;
    }
    return scales;
}

// out[b, t] = sum over s <= t of softmax(q_t . k_s / sqrt(HS)) v_s, per head.
// Written: out (B, T, NH, HS) floatX; lse (B, NH, T) float, log of the sum of exp(scaled score).
// Read: qkv (B, T, 3, NH, HS) floatX. Grid: B * NH * ceil(T / GROUP_ROWS).
// Dynamic shared memory: the queries and 2 * STAGES tiles.
extern "C" __global__ void __launch_bounds__(WARPGROUP, BLOCKS)
    attention_wgmma_forward(floatX* __restrict__ out, float* __restrict__ lse,
                            const floatX* __restrict__ qkv, int T, int NH) {
    extern __shared__ __align__(1024) floatX smem[];
    floatX* pairs = smem + GROUP_ROWS * HS;

    // Blocks of one head are neighbours and share its keys in the L2 cache. The last queries have
    // the most keys: they come first, so that the tail of the launch is made of short blocks.
    const int num_blocks = (T + GROUP_ROWS - 1) / GROUP_ROWS;
    const int block = num_blocks - 1 - int(blockIdx.x % num_blocks);
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;

    const int stride = 3 * NH * HS;
    const floatX* queries = qkv + (long long)b * T * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;

    // Tiles come from the last one down: the first is the one that needs a mask.
    const int first_query = block * GROUP_ROWS;
    const int num_tiles = first_query / KEYS + 1;

    auto key_tile = [&](int turn) { return pairs + turn % STAGES * (2 * TILE); };
    auto value_tile = [&](int turn) { return key_tile(turn) + TILE; };
    // Commits a group even for no tile, so that counting groups counts turns.
    auto start_copy = [&](int turn) {
        const int tile = num_tiles - 1 - turn;
        if (tile >= 0) {
            copy_tile<KEYS>(key_tile(turn), keys, stride, tile * KEYS, T);
            copy_tile<KEYS>(value_tile(turn), values, stride, tile * KEYS, T);
        }
        cp_async_commit();
    };
    copy_tile<GROUP_ROWS>(smem, queries, stride, first_query, T);
#pragma unroll
    for (int turn = 0; turn < AHEAD; turn++) start_copy(turn);  // the first with the queries
    const AlongRows<GROUP_ROWS> own(smem);

    float scores[KEYS / 8][4], sums[HS / 8][4] = {};
    LeftOperand<KEYS / STEP> probs;  // of the turn before
    Rows rows;
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;  // exp(scale * s) = exp2(exponent_scale * s)

    for (int turn = 0; turn < num_tiles; turn++) {
        // Behind this barrier the turn's tiles are complete, and nobody reads those of two turns
        // ago any more.
        wait_for_tiles<AHEAD - 1>();
        start_scores(scores, own, key_tile(turn));
        wgmma_commit();
        if (turn == 0) {
            start_copy(AHEAD);
            wgmma_wait<0>(scores);
            // Keys from T on are after every query below T, so this also hides the padding.
            const int key = (num_tiles - 1) * KEYS + threadIdx.x % 4 * 2;
            const int query = first_query + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    if (key + 8 * n + r % 2 > query + r / 2 * 8) scores[n][r] = MASKED;
            to_probabilities(scores, rows, exponent_scale);
        } else {
            start_sums(sums, probs, value_tile(turn - 1));
            wgmma_commit();
            start_copy(turn + AHEAD);
            wgmma_wait<1>(scores);
            const bool scales = to_probabilities(scores, rows, exponent_scale);
            wgmma_wait<0>(sums);
            if (scales)
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

    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = rows.denominator[half];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        inverse[half] = 1.0f / sum;
        int query = first_query + threadIdx.x / WARP * 16 + half * 8 + threadIdx.x % WARP / 4;
        if (threadIdx.x % 4 == 0 && query < T)
            lse[(long long)head_row * T + query] = rows.reference[half] * scale + logf(sum);
    }
    store_rows(out + ((long long)b * T * NH + h) * HS, NH * HS, first_query, T, sums, inverse);
}
