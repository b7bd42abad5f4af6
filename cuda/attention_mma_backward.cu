// Causal attention backward on tensor cores (bf16, or TF32 for float storage): the gradients of
// attention_mma_forward.cu, after FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//
// Two kernels instead of one: attention_mma_dkdv walks over the queries of its keys,
// attention_mma_dq over the keys of its queries. Probabilities are computed twice (7 products
// instead of 5), but each sum has one owner: no atomics, results repeat bit for bit, and
// probabilities never leave the registers of the warp that needs them.
//
// With P = exp(scale * q k^T - lse), dP = dout v^T and dot = rowsum(dout * out):
//   dv = P^T dout,  dS = P * (dP - dot),  dk = scale * dS^T q,  dq = scale * dS k.
// attention_dot (attention.cu) leaves dot in the first four bytes of every dq row: the kernels
// must run in the order attention_dot, attention_mma_dkdv, attention_mma_dq.
//
// -DHS head size, -DWARPS, -DSTREAM rows per streamed tile, -DDKDV_TILES and -DDQ_TILES own tiles
// of 16 rows per warp, -DDKDV_PARTS blocks that share the columns of one dk and dv.
#include "attention_mma.cuh"

constexpr int BLOCK_KEYS = 16 * DKDV_TILES * WARPS;
constexpr int BLOCK_QUERIES = 16 * DQ_TILES * WARPS;
constexpr int STAGE = 2 * STREAM * PITCH;  // elements of one pair of streamed tiles
constexpr int PART = HS / DKDV_PARTS;      // columns of dk and dv that one block computes

// Rows of a tile taken at once: as many as registers allow beside the own rows and the sums.
template <int M>
constexpr int CHUNK_ROWS = IS_BF16 && M == 1 && HS <= 64 ? 32 : 16;

static_assert(BLOCK_KEYS % STREAM == 0, "the first query tile starts at the block's first key");
static_assert(PART % 16 == 0, "columns are computed in pairs of eight");

// Copies lse and dot of queries [first, first + STREAM) to statistics[0 .. STREAM) and behind it;
// zero from T on, where dout is zero too and nothing is added.
__device__ __forceinline__ void copy_statistics(float* statistics, const float* lse,
                                                const floatX* dqueries, long long stride,
                                                int first, int T) {
    for (int i = threadIdx.x; i < STREAM; i += THREADS) {
        bool inside = first + i < T;
        int query = inside ? first + i : 0;
        cp_async4_zfill(statistics + i, lse + query, inside ? 4 : 0);
        cp_async4_zfill(statistics + STREAM + i, dqueries + query * stride, inside ? 4 : 0);
    }
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX. Read: dot in its dq rows;
// dout (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / BLOCK_KEYS) * DKDV_PARTS.
// Dynamic shared memory: 2 * STAGE elements and 4 * STREAM floats.
extern "C" __global__ void
__launch_bounds__(THREADS, RESIDENT_BLOCKS<DKDV_TILES>)
    attention_mma_dkdv(floatX* dqkv, const floatX* __restrict__ dout,
                       const floatX* __restrict__ qkv, const float* __restrict__ lse, int T,
                       int NH) {
    extern __shared__ __align__(16) floatX smem[];
    constexpr int CHUNK = CHUNK_ROWS<DKDV_TILES>;
    float* statistics = reinterpret_cast<float*>(smem + 2 * STAGE);
    const int warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;

    // The first keys have the most queries and come first.
    const int num_blocks = (T + BLOCK_KEYS - 1) / BLOCK_KEYS;
    const int part = blockIdx.x % DKDV_PARTS;
    const int block = blockIdx.x / DKDV_PARTS % num_blocks;
    const int head_row = blockIdx.x / DKDV_PARTS / num_blocks;  // b * NH + h
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

    const int first_key = block * BLOCK_KEYS + 16 * DKDV_TILES * warp;  // of this warp
    const int first_tile = block * BLOCK_KEYS / STREAM;
    const int num_tiles = (T + STREAM - 1) / STREAM;

    auto start_copy = [&](int tile) {
        floatX* stage = smem + tile % 2 * STAGE;
        copy_tile<STREAM>(stage, queries, stride, tile * STREAM, T);
        copy_tile<STREAM>(stage + STAGE / 2, douts, dout_stride, tile * STREAM, T);
        copy_statistics(statistics + tile % 2 * 2 * STREAM, head_lse, dqueries, stride,
                        tile * STREAM, T);
        cp_async_commit();
    };
    start_copy(first_tile);
    unsigned own_keys[DKDV_TILES][HEAD_STEPS][4], own_values[DKDV_TILES][HEAD_STEPS][4];
    load_own_rows(own_keys, keys, stride, first_key, T);
    load_own_rows(own_values, values, stride, first_key, T);

    float dk[DKDV_TILES][PART / 8][4] = {}, dv[DKDV_TILES][PART / 8][4] = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int tile = first_tile; tile < num_tiles; tile++) {
        floatX* query_tile = smem + tile % 2 * STAGE;
        floatX* dout_tile = query_tile + STAGE / 2;
        const float* tile_lse = statistics + tile % 2 * 2 * STREAM;
        cp_async_wait<0>();
        round_copied<STREAM>(query_tile);
        round_copied<STREAM>(dout_tile);
        // Behind this barrier the tile is complete, and nobody reads the previous one any more.
        __syncthreads();
        if (tile + 1 < num_tiles) start_copy(tile + 1);

#pragma unroll 1
        for (int chunk = 0; chunk < STREAM; chunk += CHUNK) {
            const int first_query = tile * STREAM + chunk;
            if (first_query + CHUNK <= first_key) continue;  // before all keys of this warp
            const floatX* chunk_queries = query_tile + chunk * PITCH;
            const floatX* chunk_douts = dout_tile + chunk * PITCH;

            // Transposed: rows are keys, columns queries.
            float probs[DKDV_TILES][CHUNK / 8][4], dscores[DKDV_TILES][CHUNK / 8][4];
            multiply_rows(probs, own_keys, chunk_queries);
            multiply_rows(dscores, own_values, chunk_douts);
            const bool diagonal = first_query < first_key + 16 * DKDV_TILES - 1;
#pragma unroll
            for (int n = 0; n < CHUNK / 8; n++) {
                const float* column = tile_lse + chunk + 8 * n + 2 * member;
                const float2 lse2 = *reinterpret_cast<const float2*>(column);
                const float2 dot2 = *reinterpret_cast<const float2*>(column + STREAM);
#pragma unroll
                for (int m = 0; m < DKDV_TILES; m++)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        float query_lse = r % 2 ? lse2.y : lse2.x;
                        float query_dot = r % 2 ? dot2.y : dot2.x;
                        float prob =
                            exp2_approx(probs[m][n][r] * exponent_scale - query_lse * LOG2E);
                        int query = first_query + 8 * n + 2 * member + r % 2;
                        int key = first_key + 16 * m + 8 * (r / 2) + group;
                        if (diagonal && key > query) prob = 0.0f;
                        probs[m][n][r] = prob;
                        dscores[m][n][r] = prob * (dscores[m][n][r] - query_dot);
                    }
            }
            add_product(dv, probs, chunk_douts + part * PART);
            add_product(dk, dscores, chunk_queries + part * PART);
        }
    }
    store_rows(dkeys + part * PART, stride, first_key, T, dk, scale);
    store_rows(dvalues + part * PART, stride, first_key, T, dv, 1.0f);
}

// Written: the dq rows of dqkv (B, T, 3, NH, HS) floatX, over the dot that they hold on entry.
// Read: dout (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / BLOCK_QUERIES). Dynamic shared memory: 2 * STAGE elements.
extern "C" __global__ void
__launch_bounds__(THREADS, RESIDENT_BLOCKS<DQ_TILES>)
    attention_mma_dq(floatX* dqkv, const floatX* __restrict__ dout,
                     const floatX* __restrict__ qkv, const float* __restrict__ lse, int T,
                     int NH) {
    extern __shared__ __align__(16) floatX smem[];
    constexpr int CHUNK = CHUNK_ROWS<DQ_TILES>;
    const int warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;

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

    const int first_query = block * BLOCK_QUERIES + 16 * DQ_TILES * warp;  // of this warp
    const int num_keys = min((block + 1) * BLOCK_QUERIES, T);
    const int num_tiles = (num_keys + STREAM - 1) / STREAM;

    auto start_copy = [&](int tile) {
        floatX* stage = smem + tile % 2 * STAGE;
        copy_tile<STREAM>(stage, keys, stride, tile * STREAM, T);
        copy_tile<STREAM>(stage + STAGE / 2, values, stride, tile * STREAM, T);
        cp_async_commit();
    };
    start_copy(0);
    unsigned own_queries[DQ_TILES][HEAD_STEPS][4], own_douts[DQ_TILES][HEAD_STEPS][4];
    load_own_rows(own_queries, queries, stride, first_query, T);
    load_own_rows(own_douts, douts, dout_stride, first_query, T);
    float row_lse[DQ_TILES][2], row_dot[DQ_TILES][2];
#pragma unroll
    for (int m = 0; m < DQ_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = min(first_query + 16 * m + 8 * half + group, T - 1);
            row_lse[m][half] = LOG2E * lse[(long long)head_row * T + query];
            row_dot[m][half] = *reinterpret_cast<const float*>(dqueries + query * stride);
        }

    float dq[DQ_TILES][HS / 8][4] = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int tile = 0; tile < num_tiles; tile++) {
        floatX* key_tile = smem + tile % 2 * STAGE;
        floatX* value_tile = key_tile + STAGE / 2;
        cp_async_wait<0>();
        round_copied<STREAM>(key_tile);
        round_copied<STREAM>(value_tile);
        // Behind this barrier the tile is complete, nobody reads the previous one any more, and
        // every thread has its dot: from here on dq rows may be written.
        __syncthreads();
        if (tile + 1 < num_tiles) start_copy(tile + 1);

#pragma unroll 1
        for (int chunk = 0; chunk < STREAM; chunk += CHUNK) {
            const int first_key = tile * STREAM + chunk;
            if (first_key >= first_query + 16 * DQ_TILES) break;  // after all queries of this warp
            float probs[DQ_TILES][CHUNK / 8][4], dscores[DQ_TILES][CHUNK / 8][4];
            multiply_rows(probs, own_queries, key_tile + chunk * PITCH);
            multiply_rows(dscores, own_douts, value_tile + chunk * PITCH);
            // Keys from T on are after every query below T, so this also hides the padding.
            const bool diagonal = first_key + CHUNK - 1 > first_query;
#pragma unroll
            for (int m = 0; m < DQ_TILES; m++)
#pragma unroll
                for (int n = 0; n < CHUNK / 8; n++)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        float prob =
                            exp2_approx(probs[m][n][r] * exponent_scale - row_lse[m][r / 2]);
                        int key = first_key + 8 * n + 2 * member + r % 2;
                        int query = first_query + 16 * m + 8 * (r / 2) + group;
                        if (diagonal && key > query) prob = 0.0f;
                        dscores[m][n][r] = prob * (dscores[m][n][r] - row_dot[m][r / 2]);
                    }
            add_product(dq, dscores, key_tile + chunk * PITCH);
        }
    }
    store_rows(dqueries, stride, first_query, T, dq, scale);
}
