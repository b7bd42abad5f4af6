// Causal attention backward on tensor cores (bf16, or TF32 for float storage): the gradients of
// attention_mma_forward.cu, after FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//
// Formulas and order of the kernels: attention_backward.cuh. Probabilities are computed twice (7
// products instead of 5), but never leave the registers of the warp that needs them.
//
// -DHS head size, -DWARPS, -DSTREAM rows per streamed tile, -DDKDV_TILES and -DDQ_TILES own tiles
// of 16 rows per warp, -DDKDV_PARTS blocks that share the columns of one dk and dv.
#include "attention/backward.cuh"
#include "attention/mma.cuh"

constexpr int BLOCK_KEYS = 16 * DKDV_TILES * WARPS;
constexpr int BLOCK_QUERIES = 16 * DQ_TILES * WARPS;
constexpr int STAGE = 2 * STREAM * PITCH;  // elements of one pair of streamed tiles
constexpr int PART = HS / DKDV_PARTS;      // columns of dk and dv that one block computes
constexpr int SUMMED_ROWS = 64;            // of dqkv, in one row of sums

// Rows of a tile taken at once: as many as registers allow beside the own rows and the sums.
template <int M>
constexpr int CHUNK_ROWS = IS_BF16 && M == 1 && HS <= 64 ? 32 : 16;

static_assert(BLOCK_KEYS % STREAM == 0, "the first query tile starts at the block's first key");
static_assert(PART % 16 == 0, "columns are computed in pairs of eight");

// Copies lse and dot of queries [first, first + STREAM); zero from T on, where dout is zero too and
// nothing is added.
__device__ __forceinline__ void copy_statistics(float2* statistics, const float2* lse_dot,
                                                int first, int T) {
    auto* to = reinterpret_cast<float*>(statistics);
    auto* from = reinterpret_cast<const float*>(lse_dot + first);
    for (int i = threadIdx.x; i < 2 * STREAM; i += THREADS) {
        const bool inside = first + i / 2 < T;
        cp_async4_zfill(to + i, inside ? from + i : from, inside ? 4 : 0);
    }
}

// Sums over the block's rows of factor * values, for rows below T; `first` is the warp's first row.
// A tile of 16 rows per warp makes one part of 64 rows of the block, two make two.
template <int M, int COLUMNS>
__device__ __forceinline__ void store_block_sums(float* sums, const float (&values)[M][COLUMNS][4],
                                                 float factor, int first, int T, int NH) {
    const int group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;
    const int block_first = first / (16 * M * WARPS) * (16 * M * WARPS);
    store_column_sums<M, 8 * COLUMNS, 2 * COLUMNS, 4>(
        sums, 3 * NH * HS, (T - block_first + SUMMED_ROWS - 1) / SUMMED_ROWS,
        [&](int i) { return i / 2 * 8 + 2 * member + i % 2; },
        [&](int i) {
            float sum = 0.0f;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (first + 16 * m + 8 * half + group < T)
                        sum += values[m][i / 2][2 * half + i % 2];
            return factor * sum;
        });
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX, and their sums. Read: dout
// (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse_dot (B, NH, T).
// Grid: B * NH * ceil(T / BLOCK_KEYS) * DKDV_PARTS.
// Dynamic shared memory: 2 * STAGE elements and 4 * STREAM floats.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS<DKDV_TILES>)
    attention_mma_dkdv(floatX* dqkv, float* sums, const floatX* __restrict__ dout,
                       const floatX* __restrict__ qkv, const float2* __restrict__ lse_dot, int T,
                       int NH) {
    extern __shared__ __align__(16) floatX smem[];
    constexpr int CHUNK = CHUNK_ROWS<DKDV_TILES>;
    float2* statistics = reinterpret_cast<float2*>(smem + 2 * STAGE);
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
    floatX* dkeys = dqkv + b * T * stride + (NH + h) * HS;
    floatX* dvalues = dkeys + NH * HS;
    const float2* head_lse_dot = lse_dot + (long long)head_row * T;

    const int first_key = block * BLOCK_KEYS + 16 * DKDV_TILES * warp;  // of this warp
    const int first_tile = block * BLOCK_KEYS / STREAM;
    const int num_tiles = (T + STREAM - 1) / STREAM;

    auto start_copy = [&](int tile) {
        floatX* stage = smem + tile % 2 * STAGE;
        copy_tile<STREAM>(stage, queries, stride, tile * STREAM, T);
        copy_tile<STREAM>(stage + STAGE / 2, douts, dout_stride, tile * STREAM, T);
        copy_statistics(statistics + tile % 2 * STREAM, head_lse_dot, tile * STREAM, T);
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
        const float2* tile_statistics = statistics + tile % 2 * STREAM;
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
                const float2* of_queries = tile_statistics + chunk + 8 * n + 2 * member;
                const float4 pair = *reinterpret_cast<const float4*>(of_queries);
#pragma unroll
                for (int m = 0; m < DKDV_TILES; m++)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        float query_lse = r % 2 ? pair.z : pair.x;
                        float query_dot = r % 2 ? pair.w : pair.y;
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
    float* block_sums = sums_of_part(sums, b, h, block * BLOCK_KEYS, SUMMED_ROWS, T, NH);
    block_sums += part * PART;
    store_block_sums(block_sums + NH * HS, dk, scale, first_key, T, NH);
    store_block_sums(block_sums + 2 * NH * HS, dv, 1.0f, first_key, T, NH);
}

// Written: the dq rows of dqkv (B, T, 3, NH, HS) floatX, and their sums; lse_dot (B, NH, T).
// Read: dout, out (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / BLOCK_QUERIES). Dynamic shared memory: 2 * STAGE elements.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS<DQ_TILES>)
    attention_mma_dq(floatX* dqkv, float* sums, float2* lse_dot, const floatX* __restrict__ dout,
                     const floatX* __restrict__ out, const floatX* __restrict__ qkv,
                     const float* __restrict__ lse, int T, int NH) {
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
    const floatX* outs = out + b * T * dout_stride + h * HS;
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
            const int query = first_query + 16 * m + 8 * half + group, row = min(query, T - 1);
            const float row_log = lse[(long long)head_row * T + row];
            row_lse[m][half] = LOG2E * row_log;
            row_dot[m][half] = row_product<4>(douts + row * dout_stride, outs + row * dout_stride);
            if (member == 0 && query < T)
                lse_dot[(long long)head_row * T + query] = make_float2(row_log, row_dot[m][half]);
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
        // Behind this barrier the tile is complete, and nobody reads the previous one any more.
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
    float* block_sums = sums_of_part(sums, b, h, block * BLOCK_QUERIES, SUMMED_ROWS, T, NH);
    store_block_sums(block_sums, dq, scale, first_query, T, NH);
}
