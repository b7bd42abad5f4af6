// Causal attention on CUDA cores, in float32 whatever floatX is, for any head size that is a
// multiple of 8: online softmax forward, recomputed probabilities backward, never T x T in memory
// (FlashAttention, Dao et al. 2022, arXiv:2205.14135; loop order of Dao 2023, arXiv:2307.08691).
// Also attention for decoding.
//
// -DHS head size, -DROWS score rows per thread, -DSTREAM rows per streamed tile.
// 128 threads = 16 row lanes x 8 column lanes. Row lane y owns score rows y, y + 16, ..., column
// lane x score columns x, x + 8, ...; of a sum over head columns it owns every eighth group.
// The rows of a warp (four row lanes) are its own, so probabilities pass through shared memory
// without meeting other warps.
#include "attention/backward.cuh"
#include "lib/packs.cuh"
#include "lib/reduce.cuh"

constexpr int THREADS = 128;
constexpr int ROW_LANES = 16, COLUMN_LANES = 8;
constexpr int BLOCK_ROWS = ROW_LANES * ROWS;
constexpr int SCORES = STREAM / COLUMN_LANES;  // score columns per thread
constexpr int COLUMNS = HS / COLUMN_LANES;     // head columns per thread
// Head columns of a thread are neighbours in groups as wide as HS allows, up to 128 bits.
constexpr int GROUP = HS % 32 == 0 ? 4 : HS % 16 == 0 ? 2 : 1;
// Four floats more than the row: pitch / 16 bytes is odd, so eight rows meet eight bank groups.
constexpr int PITCH = HS + 4;
constexpr int SCORE_PITCH = STREAM + 4;
constexpr float MASKED = -1e30f;  // score of a key after the query: exp makes it 0

static_assert(HS % 8 == 0 && HS <= 128, "head sizes are multiples of 8 up to 128");
static_assert(STREAM % COLUMN_LANES == 0 && BLOCK_ROWS % STREAM == 0, "tiles line up");

struct alignas(4 * GROUP) Group {
    float value[GROUP];
};

__device__ __forceinline__ int row_lane() { return threadIdx.x / COLUMN_LANES; }
__device__ __forceinline__ int column_lane() { return threadIdx.x % COLUMN_LANES; }

// Sum and maximum over the eight column lanes of a row, the same in all of them.
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
    for (int lanes = 1; lanes < COLUMN_LANES; lanes *= 2)
        value += __shfl_xor_sync(FULL_WARP, value, lanes);
    return value;
}
__device__ __forceinline__ float row_max(float value) {
#pragma unroll
    for (int lanes = 1; lanes < COLUMN_LANES; lanes *= 2)
        value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, lanes));
    return value;
}

// tile[row] = rows [first, first + COUNT) of one head; rows from `limit` on become zeros.
// `source` is row 0, `stride` the distance of two rows in elements.
template <int COUNT>
__device__ __forceinline__ void load_tile(float* tile, const floatX* source, long long stride,
                                          int first, int limit) {
    constexpr int PACKS = HS / PACK_SIZE;
    for (int i = threadIdx.x; i < COUNT * PACKS; i += THREADS) {
        int row = i / PACKS, column = i % PACKS * PACK_SIZE;
        Pack pack = filled<PACK_SIZE>(0.0f);
        if (first + row < limit) pack = load_pack(source + (first + row) * stride + column);
        store(tile + row * PITCH + column, pack);
    }
}

// scores[i][j] = own row (y + 16 i) . streamed row (x + 8 j).
__device__ __forceinline__ void multiply_rows(float (&scores)[ROWS][SCORES], const float* own,
                                              const float* streamed) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < SCORES; j++) scores[i][j] = 0.0f;
#pragma unroll 4
    for (int d = 0; d < HS; d += 4) {
        float4 a[ROWS], b[SCORES];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            a[i] = *reinterpret_cast<const float4*>(own + (row_lane() + ROW_LANES * i) * PITCH + d);
#pragma unroll
        for (int j = 0; j < SCORES; j++)
            b[j] = *reinterpret_cast<const float4*>(streamed +
                                                    (column_lane() + COLUMN_LANES * j) * PITCH + d);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                scores[i][j] += a[i].x * b[j].x;
                scores[i][j] += a[i].y * b[j].y;
                scores[i][j] += a[i].z * b[j].z;
                scores[i][j] += a[i].w * b[j].w;
            }
    }
}

// Hands a warp's scores to all its lanes. Nobody else reads or writes these rows.
__device__ __forceinline__ void share_scores(float* shared_scores,
                                             const float (&scores)[ROWS][SCORES]) {
    __syncwarp();  // the lanes have done with what the rows held before
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < SCORES; j++)
            shared_scores[(row_lane() + ROW_LANES * i) * SCORE_PITCH + column_lane() +
                          COLUMN_LANES * j] = scores[i][j];
    __syncwarp();
}

// sums[i][c] += scores of row (y + 16 i) x column c of the streamed tile.
__device__ __forceinline__ void add_product(float (&sums)[ROWS][COLUMNS],
                                            const float* shared_scores, const float* streamed) {
#pragma unroll 2
    for (int s = 0; s < STREAM; s += 4) {
        float scores[ROWS][4];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            *reinterpret_cast<float4*>(scores[i]) = *reinterpret_cast<const float4*>(
                shared_scores + (row_lane() + ROW_LANES * i) * SCORE_PITCH + s);
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c += GROUP) {
                const Group group = *reinterpret_cast<const Group*>(
                    streamed + (s + k) * PITCH + c * COLUMN_LANES + column_lane() * GROUP);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int e = 0; e < GROUP; e++) sums[i][c + e] += scores[i][k] * group.value[e];
            }
    }
}

// Row (y + 16 i) of a head gets factor * sums[i].
__device__ __forceinline__ void store_row(floatX* row, const float (&sums)[COLUMNS], float factor) {
    struct alignas(GROUP * sizeof(floatX)) Stored {
        floatX value[GROUP];
    };
#pragma unroll
    for (int c = 0; c < COLUMNS; c += GROUP) {
        Stored stored;
#pragma unroll
        for (int e = 0; e < GROUP; e++) stored.value[e] = from_float<floatX>(factor * sums[c + e]);
        *reinterpret_cast<Stored*>(row + c * COLUMN_LANES + column_lane() * GROUP) = stored;
    }
}

// ---- forward ---------------------------------------------------------------------------------

// out[b, t] = sum over s <= t of softmax(q_t . k_s / sqrt(HS)) v_s, per head.
// Written: out (B, T, NH, HS) floatX; lse (B, NH, T) float, log of the sum of exp(scaled score).
// Read: qkv (B, T, 3, NH, HS) floatX. Grid: B * NH * ceil(T / BLOCK_ROWS).
// Dynamic shared memory: (BLOCK_ROWS + 2 * STREAM) * PITCH + BLOCK_ROWS * SCORE_PITCH floats.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_forward(floatX* __restrict__ out, float* __restrict__ lse,
                      const floatX* __restrict__ qkv, int T, int NH) {
    extern __shared__ __align__(16) float smem[];
    float* own_queries = smem;
    float* key_tile = own_queries + BLOCK_ROWS * PITCH;
    float* value_tile = key_tile + STREAM * PITCH;
    float* shared_scores = value_tile + STREAM * PITCH;

    // The last queries have the most keys: they come first, so that short blocks end the launch.
    const int num_blocks = (T + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int first_query = (num_blocks - 1 - int(blockIdx.x % num_blocks)) * BLOCK_ROWS;
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;
    const long long stride = 3LL * NH * HS;
    const floatX* queries = qkv + b * T * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;

    load_tile<BLOCK_ROWS>(own_queries, queries, stride, first_query, T);
    float sums[ROWS][COLUMNS] = {}, largest[ROWS], denominator[ROWS] = {};
#pragma unroll
    for (int i = 0; i < ROWS; i++) largest[i] = MASKED;
    const float scale = 1.0f / sqrtf(float(HS));
    const int num_keys = min(first_query + BLOCK_ROWS, T);

    for (int first_key = 0; first_key < num_keys; first_key += STREAM) {
        __syncthreads();  // the previous tile has been read
        load_tile<STREAM>(key_tile, keys, stride, first_key, T);
        load_tile<STREAM>(value_tile, values, stride, first_key, T);
        __syncthreads();

        float scores[ROWS][SCORES];
        multiply_rows(scores, own_queries, key_tile);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const int query = first_query + row_lane() + ROW_LANES * i;
            float highest = largest[i];
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                int key = first_key + column_lane() + COLUMN_LANES * j;
                scores[i][j] = key <= query ? scale * scores[i][j] : MASKED;
                highest = fmaxf(highest, scores[i][j]);
            }
            // A score from the first tile on: every query sees key 0.
            highest = row_max(highest);
            const float correction = expf(largest[i] - highest);
            largest[i] = highest;
            denominator[i] *= correction;
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                scores[i][j] = expf(scores[i][j] - highest);
                denominator[i] += scores[i][j];
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) sums[i][c] *= correction;
        }
        share_scores(shared_scores, scores);
        add_product(sums, shared_scores, value_tile);
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = first_query + row_lane() + ROW_LANES * i;
        const float sum = row_sum(denominator[i]);
        if (query >= T) continue;
        if (column_lane() == 0) lse[(long long)head_row * T + query] = largest[i] + logf(sum);
        store_row(out + (((long long)b * T + query) * NH + h) * HS, sums[i], 1.0f / sum);
    }
}

// ---- backward --------------------------------------------------------------------------------
// Formulas and order of the kernels: attention_backward.cuh. The sums are those of whole blocks.

// Sums over a block's rows of factor * values, for those of its rows that are below T.
__device__ __forceinline__ void store_block_sums(float* sums, const float (&values)[ROWS][COLUMNS],
                                                 float factor, int rows_left) {
    store_column_sums<1, HS, COLUMNS, COLUMN_LANES>(
        sums, 0, 1,
        [](int c) { return (c / GROUP * COLUMN_LANES + column_lane()) * GROUP + c % GROUP; },
        [&](int c) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                if (row_lane() + ROW_LANES * i < rows_left) sum += values[i][c];
            return factor * sum;
        });
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX, and their sums. Read: dout
// (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse_dot (B, NH, T).
// Grid: B * NH * ceil(T / BLOCK_ROWS). Dynamic shared memory: (2 * BLOCK_ROWS + 2 * STREAM) *
// PITCH + BLOCK_ROWS * SCORE_PITCH floats.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_dkdv(floatX* dqkv, float* sums, const floatX* __restrict__ dout,
                   const floatX* __restrict__ qkv, const float2* __restrict__ lse_dot, int T,
                   int NH) {
    extern __shared__ __align__(16) float smem[];
    float* own_keys = smem;
    float* own_values = own_keys + BLOCK_ROWS * PITCH;
    float* query_tile = own_values + BLOCK_ROWS * PITCH;
    float* dout_tile = query_tile + STREAM * PITCH;
    float* shared_scores = dout_tile + STREAM * PITCH;

    // The first keys have the most queries and come first.
    const int num_blocks = (T + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int first_key = blockIdx.x % num_blocks * BLOCK_ROWS;
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;
    const long long stride = 3LL * NH * HS, dout_stride = (long long)NH * HS;
    const floatX* queries = qkv + b * T * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = dout + b * T * dout_stride + h * HS;
    floatX* dkeys = dqkv + b * T * stride + (NH + h) * HS;
    floatX* dvalues = dkeys + NH * HS;

    load_tile<BLOCK_ROWS>(own_keys, keys, stride, first_key, T);
    load_tile<BLOCK_ROWS>(own_values, values, stride, first_key, T);
    float dk[ROWS][COLUMNS] = {}, dv[ROWS][COLUMNS] = {};
    const float scale = 1.0f / sqrtf(float(HS));

    for (int first_query = first_key; first_query < T; first_query += STREAM) {
        __syncthreads();  // the previous tile has been read
        load_tile<STREAM>(query_tile, queries, stride, first_query, T);
        load_tile<STREAM>(dout_tile, douts, dout_stride, first_query, T);
        __syncthreads();

        // Transposed: rows are keys, columns queries.
        float probs[ROWS][SCORES], dscores[ROWS][SCORES];
        multiply_rows(probs, own_keys, query_tile);
        multiply_rows(dscores, own_values, dout_tile);
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
            const int query = first_query + column_lane() + COLUMN_LANES * j;
            const float2 of_query = lse_dot[(long long)head_row * T + min(query, T - 1)];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int key = first_key + row_lane() + ROW_LANES * i;
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
        const int key = first_key + row_lane() + ROW_LANES * i;
        if (key >= T) continue;
        store_row(dkeys + key * stride, dk[i], scale);
        store_row(dvalues + key * stride, dv[i], 1.0f);
    }
    float* block_sums = sums_of_part(sums, b, h, first_key, BLOCK_ROWS, T, NH);
    store_block_sums(block_sums + NH * HS, dk, scale, T - first_key);
    store_block_sums(block_sums + 2 * NH * HS, dv, 1.0f, T - first_key);
}

// Written: the dq rows of dqkv (B, T, 3, NH, HS) floatX, and their sums; lse_dot (B, NH, T).
// Read: dout, out (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid and dynamic shared memory as attention_dkdv.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_dq(floatX* dqkv, float* sums, float2* lse_dot, const floatX* __restrict__ dout,
                 const floatX* __restrict__ out, const floatX* __restrict__ qkv,
                 const float* __restrict__ lse, int T, int NH) {
    extern __shared__ __align__(16) float smem[];
    float* own_queries = smem;
    float* own_douts = own_queries + BLOCK_ROWS * PITCH;
    float* key_tile = own_douts + BLOCK_ROWS * PITCH;
    float* value_tile = key_tile + STREAM * PITCH;
    float* shared_scores = value_tile + STREAM * PITCH;

    // The last queries have the most keys and come first.
    const int num_blocks = (T + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int first_query = (num_blocks - 1 - int(blockIdx.x % num_blocks)) * BLOCK_ROWS;
    const int head_row = blockIdx.x / num_blocks;  // b * NH + h
    const int b = head_row / NH, h = head_row % NH;
    const long long stride = 3LL * NH * HS, dout_stride = (long long)NH * HS;
    const floatX* queries = qkv + b * T * stride + h * HS;
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = dout + b * T * dout_stride + h * HS;
    const floatX* outs = out + b * T * dout_stride + h * HS;
    floatX* dqueries = dqkv + b * T * stride + h * HS;

    load_tile<BLOCK_ROWS>(own_queries, queries, stride, first_query, T);
    load_tile<BLOCK_ROWS>(own_douts, douts, dout_stride, first_query, T);
    float row_lse[ROWS], row_dot[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = first_query + row_lane() + ROW_LANES * i, row = min(query, T - 1);
        row_lse[i] = lse[(long long)head_row * T + row];
        row_dot[i] = row_product<COLUMN_LANES>(douts + row * dout_stride, outs + row * dout_stride);
        if (column_lane() == 0 && query < T)
            lse_dot[(long long)head_row * T + query] = make_float2(row_lse[i], row_dot[i]);
    }
    float dq[ROWS][COLUMNS] = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const int num_keys = min(first_query + BLOCK_ROWS, T);

    for (int first_key = 0; first_key < num_keys; first_key += STREAM) {
        __syncthreads();  // the previous tile has been read
        load_tile<STREAM>(key_tile, keys, stride, first_key, T);
        load_tile<STREAM>(value_tile, values, stride, first_key, T);
        __syncthreads();

        float probs[ROWS][SCORES], dscores[ROWS][SCORES];
        multiply_rows(probs, own_queries, key_tile);
        multiply_rows(dscores, own_douts, value_tile);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const int query = first_query + row_lane() + ROW_LANES * i;
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                const int key = first_key + column_lane() + COLUMN_LANES * j;
                const float prob = key <= query ? expf(scale * probs[i][j] - row_lse[i]) : 0.0f;
                dscores[i][j] = prob * (dscores[i][j] - row_dot[i]);
            }
        }
        share_scores(shared_scores, dscores);
        add_product(dq, shared_scores, key_tile);
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = first_query + row_lane() + ROW_LANES * i;
        if (query < T) store_row(dqueries + query * stride, dq[i], scale);
    }
    store_block_sums(sums_of_part(sums, b, h, first_query, BLOCK_ROWS, T, NH), dq, scale,
                     T - first_query);
}

// ---- decoding --------------------------------------------------------------------------------

// Attention of T new positions, start to start + T - 1, over a cache of all before them.
// Written: out (T, NH, HS) floatX; cache (2, NH, maxT, HS) floatX at the new positions (keys, then
// values). Read: qkv (T, 3, NH, HS) floatX, the cache before `start`. Grid: T * NH, 128 threads.
// Each group of eight lanes walks over every 16th key; the 16 results are merged in order.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_decode(floatX* __restrict__ out, floatX* cache, const floatX* __restrict__ qkv,
                     int start, int T, int maxT, int NH) {
    __shared__ float group_largest[ROW_LANES], group_denominator[ROW_LANES];
    __shared__ float group_sums[ROW_LANES][HS];
    const int t = blockIdx.x / NH, h = blockIdx.x % NH, position = start + t;
    const long long stride = 3LL * NH * HS;
    const floatX* query = qkv + t * stride + h * HS;
    const floatX* new_keys = qkv + (NH + h) * HS;
    const floatX* new_values = new_keys + NH * HS;
    floatX* old_keys = cache + (long long)h * maxT * HS;
    floatX* old_values = old_keys + (long long)NH * maxT * HS;

    for (int d = threadIdx.x; d < HS; d += THREADS) {
        old_keys[(long long)position * HS + d] = new_keys[t * stride + d];
        old_values[(long long)position * HS + d] = new_values[t * stride + d];
    }

    float own_query[COLUMNS], sums[COLUMNS] = {}, largest = MASKED, denominator = 0.0f;
    const float scale = 1.0f / sqrtf(float(HS));
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        own_query[c] = scale * to_float(query[COLUMN_LANES * c + column_lane()]);
    // All lanes of a warp take the same number of steps, for the shuffles' sake.
    for (int first_key = 0; first_key <= position; first_key += ROW_LANES) {
        const int key = min(first_key + row_lane(), position);
        // Other blocks are writing the new positions into the cache: take these from qkv.
        const bool old = key < start;
        const floatX* key_row =
            old ? old_keys + (long long)key * HS : new_keys + (key - start) * stride;
        const floatX* value_row =
            old ? old_values + (long long)key * HS : new_values + (key - start) * stride;
        float score = 0.0f;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            score += own_query[c] * to_float(key_row[COLUMN_LANES * c + column_lane()]);
        score = row_sum(score);
        if (first_key + row_lane() > position) score = MASKED;
        const float highest = fmaxf(largest, score);
        const float correction = expf(largest - highest), prob = expf(score - highest);
        largest = highest;
        denominator = denominator * correction + prob;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            sums[c] =
                sums[c] * correction + prob * to_float(value_row[COLUMN_LANES * c + column_lane()]);
    }

    if (column_lane() == 0) {
        group_largest[row_lane()] = largest;
        group_denominator[row_lane()] = denominator;
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        group_sums[row_lane()][COLUMN_LANES * c + column_lane()] = sums[c];
    __syncthreads();
    for (int d = threadIdx.x; d < HS; d += THREADS) {
        float highest = group_largest[0], sum = 0.0f, total = 0.0f;
        for (int g = 1; g < ROW_LANES; g++) highest = fmaxf(highest, group_largest[g]);
        // A group that saw no key has `largest` MASKED and so weight 0.
        for (int g = 0; g < ROW_LANES; g++) {
            const float weight = expf(group_largest[g] - highest);
            sum += weight * group_denominator[g];
            total += weight * group_sums[g][d];
        }
        out[((long long)t * NH + h) * HS + d] = from_float<floatX>(total / sum);
    }
}
