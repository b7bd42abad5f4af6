// Causal attention forward on tensor cores (bf16, or TF32 for float storage), one pass, never
// storing T x T: FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//
// -DHS head size, -DWARPS, -DTILES query tiles of 16 rows per warp, -DKEYS keys per streamed tile.
// A block owns 16 * TILES * WARPS queries of one head; each warp keeps its queries, scores and
// output rows in registers, so warps meet only where a tile of keys and values changes hands.
#include "attention/mma.cuh"

constexpr int BLOCK_QUERIES = 16 * TILES * WARPS;
constexpr int STAGE = 2 * KEYS * PITCH;  // elements of one tile of keys and one of values
constexpr float MASKED = -1e30f;         // score of a key after the query: exp2 makes it 0

// out[b, t] = sum over s <= t of softmax(q_t . k_s / sqrt(HS)) v_s, per head.
// Written: out (B, T, NH, HS) floatX; lse (B, NH, T) float, log of the sum of exp(scaled score).
// Read: qkv (B, T, 3, NH, HS) floatX. Grid: B * NH * ceil(T / BLOCK_QUERIES).
// Dynamic shared memory: 2 * STAGE elements.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS<TILES>)
    attention_mma_forward(floatX* __restrict__ out, float* __restrict__ lse,
                          const floatX* __restrict__ qkv, int T, int NH) {
    extern __shared__ __align__(16) floatX smem[];
    const int warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;

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

    const int first_query = block * BLOCK_QUERIES + 16 * TILES * warp;  // of this warp
    const int num_keys = min((block + 1) * BLOCK_QUERIES, T);
    const int num_tiles = (num_keys + KEYS - 1) / KEYS;

    copy_tile<KEYS>(smem, keys, stride, 0, T);
    copy_tile<KEYS>(smem + STAGE / 2, values, stride, 0, T);
    cp_async_commit();
    unsigned own[TILES][HEAD_STEPS][4];
    load_own_rows(own, queries, stride, first_query, T);

    float sums[TILES][HS / 8][4] = {};
    // Per row of a tile (group and group + 8): largest score so far, and this lane's share of the
    // denominator.
    float largest[TILES][2], denominator[TILES][2] = {};
#pragma unroll
    for (int m = 0; m < TILES; m++) largest[m][0] = largest[m][1] = MASKED;
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;  // exp(scale * s) = exp2(exponent_scale * s)

    for (int tile = 0; tile < num_tiles; tile++) {
        floatX* key_tile = smem + tile % 2 * STAGE;
        floatX* value_tile = key_tile + STAGE / 2;
        cp_async_wait<0>();
        round_copied<KEYS>(key_tile);
        round_copied<KEYS>(value_tile);
        // Behind this barrier the tile is complete, and nobody reads the previous one any more.
        __syncthreads();
        if (tile + 1 < num_tiles) {
            floatX* next = smem + (tile + 1) % 2 * STAGE;
            copy_tile<KEYS>(next, keys, stride, (tile + 1) * KEYS, T);
            copy_tile<KEYS>(next + STAGE / 2, values, stride, (tile + 1) * KEYS, T);
            cp_async_commit();
        }
        const int first_key = tile * KEYS;
        if (first_key >= first_query + 16 * TILES) continue;  // after all queries of this warp

        float scores[TILES][KEYS / 8][4];
        multiply_rows(scores, own, key_tile);
        if (first_key + KEYS - 1 > first_query) {
            // Keys from T on are after every query below T, so this also hides the padding.
#pragma unroll
            for (int m = 0; m < TILES; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        int key = first_key + 8 * n + 2 * member + r % 2;
                        int query = first_query + 16 * m + 8 * (r / 2) + group;
                        if (key > query) scores[m][n][r] = MASKED;
                    }
        }
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                // Finite from the first tile on: every query sees key 0.
                float highest = largest[m][half];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
                    highest =
                        fmaxf(highest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, 2));
                float shift = highest * exponent_scale;
                float correction = exp2_approx(largest[m][half] * exponent_scale - shift);
                largest[m][half] = highest;

                float sum = denominator[m][half] * correction;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int r = 2 * half; r < 2 * half + 2; r++) {
                        scores[m][n][r] = exp2_approx(scores[m][n][r] * exponent_scale - shift);
                        sum += scores[m][n][r];
                    }
                denominator[m][half] = sum;
#pragma unroll
                for (int n = 0; n < HS / 8; n++) {
                    sums[m][n][2 * half] *= correction;
                    sums[m][n][2 * half + 1] *= correction;
                }
            }
        add_product(sums, scores, value_tile);
    }

#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = denominator[m][half];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            float inverse = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < HS / 8; n++) {
                sums[m][n][2 * half] *= inverse;
                sums[m][n][2 * half + 1] *= inverse;
            }
            int query = first_query + 16 * m + 8 * half + group;
            if (member == 0 && query < T)
                lse[(long long)head_row * T + query] = largest[m][half] * scale + logf(sum);
        }
    store_rows(out + ((long long)b * T * NH + h) * HS, (long long)NH * HS, first_query, T, sums,
               1.0f);
}
