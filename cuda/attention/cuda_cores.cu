// Causal attention on CUDA cores, in float32 whatever floatX is, for any head size that is a
// multiple of 8: the kernels that every GPU runs, and the ones to read first.
//
// The T x T scores are never stored. A block owns some queries and walks over the keys, tile by
// tile. It keeps three things for each query: the largest score so far, the sum of exp(score -
// largest) (the denominator of softmax), and the sum of exp(score - largest) * value. When a larger
// score comes, the two sums are multiplied by exp(old largest - new largest). Backward computes the
// probabilities again, from the logarithm of the denominator. This is FlashAttention (Dao et al.
// 2022, arXiv:2205.14135) with the loop order of FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//
// Pictures: rows.cuh (which rows a block owns, which tiles causality skips), lanes.cuh (the 16 x 8
// threads), cuda_cores.cuh (the two products of a tile), backward.cuh (formulas of the gradients).
//
// Constants: those of cuda_cores.cuh.
#include "attention/backward.cuh"
#include "attention/cuda_cores.cuh"

// ---- forward ---------------------------------------------------------------------------------

// What a thread knows of each of its queries.
struct Softmax {
    float largest[ROWS];           // score so far
    float denominator[ROWS] = {};  // sum of exp(score - largest) over this thread's keys
};

// Replaces the scores of a tile by exp(scaled score - largest), masked where the key is after the
// query, and rescales what was summed before to the new largest.
__device__ __forceinline__ void online_softmax(float (&scores)[ROWS][SCORES],
                                               float (&sums)[ROWS][COLUMNS], Softmax& softmax,
                                               float scale, int first_query, int first_key) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = own_row(first_query, i);
        float highest = softmax.largest[i];
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
            int key = own_column(first_key, j);
            scores[i][j] = key <= query ? scale * scores[i][j] : MASKED;
            highest = fmaxf(highest, scores[i][j]);
        }
        // A score from the first tile on: every query sees key 0.
        highest = row_max(highest);
        const float correction = expf(softmax.largest[i] - highest);
        softmax.largest[i] = highest;
        softmax.denominator[i] *= correction;
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
            scores[i][j] = expf(scores[i][j] - highest);
            softmax.denominator[i] += scores[i][j];
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) sums[i][c] *= correction;
    }
}

// out[b, t] = sum over s <= t of softmax(q_t . k_s / sqrt(HS)) v_s, per head.
// Written: out (B, T, NH, HS) floatX; lse (B, NH, T) float, log of the sum of exp(scaled score).
// Read: qkv (B, T, 3, NH, HS) floatX. Grid: B * NH * ceil(T / BLOCK_ROWS).
// Dynamic shared memory: own queries, a tile of keys, a tile of values, scores.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_forward(floatX* __restrict__ out, float* __restrict__ lse,
                      const floatX* __restrict__ qkv, int T, int NH) {
    extern __shared__ __align__(16) float smem[];
    float* own_queries = smem;
    float* key_tile = own_queries + BLOCK_ROWS * PITCH;
    float* value_tile = key_tile + TILE_ROWS * PITCH;
    float* shared_scores = value_tile + TILE_ROWS * PITCH;

    const BlockRows block = block_of_queries<BLOCK_ROWS>(T, NH);
    const int first_query = block.first;
    const long long stride = qkv_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;

    load_tile<BLOCK_ROWS>(own_queries, queries, stride, first_query, T);
    float sums[ROWS][COLUMNS] = {};
    Softmax softmax;
#pragma unroll
    for (int i = 0; i < ROWS; i++) softmax.largest[i] = MASKED;
    const float scale = 1.0f / sqrtf(float(HS));
    const int num_keys = min(first_query + BLOCK_ROWS, T);

    for (int first_key = 0; first_key < num_keys; first_key += TILE_ROWS) {
        __syncthreads();  // the previous tile has been read
        load_tile<TILE_ROWS>(key_tile, keys, stride, first_key, T);
        load_tile<TILE_ROWS>(value_tile, values, stride, first_key, T);
        __syncthreads();

        float scores[ROWS][SCORES];
        multiply_rows(scores, own_queries, key_tile);
        online_softmax(scores, sums, softmax, scale, first_query, first_key);
        share_scores(shared_scores, scores);
        add_product(sums, shared_scores, value_tile);
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = own_row(first_query, i);
        const float sum = row_sum(softmax.denominator[i]);
        if (query >= T) continue;
        if (column_lane() == 0)
            lse[(long long)block.bh * T + query] = softmax.largest[i] + logf(sum);
        store_row(out + (((long long)block.b * T + query) * NH + block.h) * HS, sums[i],
                  1.0f / sum);
    }
}

// ---- backward --------------------------------------------------------------------------------
// Formulas, and why there are two kernels: backward.cuh. A row group is the rows of a block.

static_assert(THREADS == BLOCK_WARPS * WARP, "backward.cuh is written for these blocks");

// Sums over a block's rows of factor * values, for those of its rows that are below T.
__device__ __forceinline__ void store_block_sums(float* sums, const float (&values)[ROWS][COLUMNS],
                                                 float factor, int rows_left) {
    store_column_sums<1, HS, COLUMNS, COLUMN_LANES>(
        sums, 0, 1,
        [](int c) { return (c / VECTOR * COLUMN_LANES + column_lane()) * VECTOR + c % VECTOR; },
        [&](int c) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                if (own_row(0, i) < rows_left) sum += values[i][c];
            return factor * sum;
        });
}

// Written: the dq rows of dqkv (B, T, 3, NH, HS) floatX, and their sums; lse_delta (B, NH, T).
// Read: dout, out (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / BLOCK_ROWS). Dynamic shared memory: own queries, own dout, a tile of
// keys, a tile of values, scores.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_dq(floatX* dqkv, float* sums, float2* lse_delta, const floatX* __restrict__ dout,
                 const floatX* __restrict__ out, const floatX* __restrict__ qkv,
                 const float* __restrict__ lse, int T, int NH) {
    extern __shared__ __align__(16) float smem[];
    float* own_queries = smem;
    float* own_douts = own_queries + BLOCK_ROWS * PITCH;
    float* key_tile = own_douts + BLOCK_ROWS * PITCH;
    float* value_tile = key_tile + TILE_ROWS * PITCH;
    float* shared_scores = value_tile + TILE_ROWS * PITCH;

    const BlockRows block = block_of_queries<BLOCK_ROWS>(T, NH);
    const int first_query = block.first;
    const long long stride = qkv_stride(NH), dout_stride = out_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = block.slot(dout, T, dout_stride, block.h);
    const floatX* outs = block.slot(out, T, dout_stride, block.h);
    floatX* dqueries = block.slot(dqkv, T, stride, block.h);

    load_tile<BLOCK_ROWS>(own_queries, queries, stride, first_query, T);
    load_tile<BLOCK_ROWS>(own_douts, douts, dout_stride, first_query, T);
    float row_lse[ROWS], row_delta[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = own_row(first_query, i), row = min(query, T - 1);
        row_lse[i] = lse[(long long)block.bh * T + row];
        row_delta[i] =
            row_product<COLUMN_LANES>(douts + row * dout_stride, outs + row * dout_stride);
        if (column_lane() == 0 && query < T)
            lse_delta[(long long)block.bh * T + query] = make_float2(row_lse[i], row_delta[i]);
    }
    float dq[ROWS][COLUMNS] = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const int num_keys = min(first_query + BLOCK_ROWS, T);

    for (int first_key = 0; first_key < num_keys; first_key += TILE_ROWS) {
        __syncthreads();  // the previous tile has been read
        load_tile<TILE_ROWS>(key_tile, keys, stride, first_key, T);
        load_tile<TILE_ROWS>(value_tile, values, stride, first_key, T);
        __syncthreads();

        float probs[ROWS][SCORES], dscores[ROWS][SCORES];
        multiply_rows(probs, own_queries, key_tile);
        multiply_rows(dscores, own_douts, value_tile);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const int query = own_row(first_query, i);
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                const int key = own_column(first_key, j);
                const float prob = key <= query ? expf(scale * probs[i][j] - row_lse[i]) : 0.0f;
                dscores[i][j] = prob * (dscores[i][j] - row_delta[i]);
            }
        }
        share_scores(shared_scores, dscores);
        add_product(dq, shared_scores, key_tile);
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = own_row(first_query, i);
        if (query < T) store_row(dqueries + query * stride, dq[i], scale);
    }
    store_block_sums(sums_of_group(sums, block.b, block.h, first_query, BLOCK_ROWS, T, NH), dq,
                     scale, T - first_query);
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX, and their sums. Read: dout
// (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse_delta (B, NH, T).
// Grid: B * NH * ceil(T / BLOCK_ROWS). Dynamic shared memory: own keys, own values, a tile of
// queries, a tile of dout, scores.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_dkdv(floatX* dqkv, float* sums, const floatX* __restrict__ dout,
                   const floatX* __restrict__ qkv, const float2* __restrict__ lse_delta, int T,
                   int NH) {
    extern __shared__ __align__(16) float smem[];
    float* own_keys = smem;
    float* own_values = own_keys + BLOCK_ROWS * PITCH;
    float* query_tile = own_values + BLOCK_ROWS * PITCH;
    float* dout_tile = query_tile + TILE_ROWS * PITCH;
    float* shared_scores = dout_tile + TILE_ROWS * PITCH;

    const BlockRows block = block_of_keys<BLOCK_ROWS>(T, NH);
    const int first_key = block.first;
    const long long stride = qkv_stride(NH), dout_stride = out_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = block.slot(dout, T, dout_stride, block.h);
    // Written out: through slot() the compiler spills registers here (float32, HS 64, sm_90).
    floatX* dkeys = dqkv + block.b * T * stride + (NH + block.h) * HS;
    floatX* dvalues = dkeys + NH * HS;

    load_tile<BLOCK_ROWS>(own_keys, keys, stride, first_key, T);
    load_tile<BLOCK_ROWS>(own_values, values, stride, first_key, T);
    float dk[ROWS][COLUMNS] = {}, dv[ROWS][COLUMNS] = {};
    const float scale = 1.0f / sqrtf(float(HS));

    for (int first_query = first_key; first_query < T; first_query += TILE_ROWS) {
        __syncthreads();  // the previous tile has been read
        load_tile<TILE_ROWS>(query_tile, queries, stride, first_query, T);
        load_tile<TILE_ROWS>(dout_tile, douts, dout_stride, first_query, T);
        __syncthreads();

        // Transposed: rows are keys, columns queries.
        float probs[ROWS][SCORES], dscores[ROWS][SCORES];
        multiply_rows(probs, own_keys, query_tile);
        multiply_rows(dscores, own_values, dout_tile);
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
            const int query = own_column(first_query, j);
            const float2 of_query = lse_delta[(long long)block.bh * T + min(query, T - 1)];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int key = own_row(first_key, i);
                const bool seen = key <= query && query < T;
                probs[i][j] = seen ? expf(scale * probs[i][j] - of_query.x) : 0.0f;
                dscores[i][j] = probs[i][j] * (dscores[i][j] - of_query.y);
            }
        }
        share_scores(shared_scores, probs);
        add_product(dv, shared_scores, dout_tile);
        share_scores(shared_scores, dscores);
        add_product(dk, shared_scores, query_tile);
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int key = own_row(first_key, i);
        if (key >= T) continue;
        store_row(dkeys + key * stride, dk[i], scale);
        store_row(dvalues + key * stride, dv[i], 1.0f);
    }
    float* block_sums = sums_of_group(sums, block.b, block.h, first_key, BLOCK_ROWS, T, NH);
    store_block_sums(block_sums + NH * HS, dk, scale, T - first_key);
    store_block_sums(block_sums + 2 * NH * HS, dv, 1.0f, T - first_key);
}
