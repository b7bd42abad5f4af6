// Causal attention backward on tensor cores, in bf16, or in TF32 for float32 arrays: from the
// gradient of attention's output, dO, those of its queries, keys and values. attention/backward.cuh
// has the formulas. Two kernels compute them, in this order. A block owns rows of one head, each of
// its warps owns some of these, and tiles of other rows of the head stream past:
//
//    attention_mma_dq      owns 16 * DQ_TILES * WARPS queries; keys and values stream past
//    attention_mma_dkdv    owns 16 * DKDV_TILES * WARPS keys and values; queries and dO stream past
//
// A warp takes a tile in chunks of 16 or 32 rows: for a whole tile, it does not have registers. It
// skips a chunk with no query at or after any of its keys, and masks single scores where only some
// keys are after a query. Here is the second block of a head with T = 160, one tile of 16 rows for
// each warp, TILE_ROWS = 32, chunks of 16: ## all scores count, \ masked, empty: skipped.
//
//    dq                         keys and values
//                      tiles 0, 1       tile 2           tile 3
//                         0-63      64-79   80-95   96-111 112-127
//                    +------------+-------+-------+-------+-------+
//    queries  64-79  |     ##     |   \   |       |       |       |  warp 0
//             80-95  |     ##     |  ##   |   \   |       |       |  warp 1
//            96-111  |     ##     |  ##   |  ##   |   \   |       |  warp 2
//           112-127  |     ##     |  ##   |  ##   |  ##   |   \   |  warp 3
//                    +------------+-------+-------+-------+-------+
//
//    dkdv                                 queries and dO
//                         tile 2          tile 3        tile 4
//                     64-79   80-95   96-111 112-127   128-159
//                    +-------+-------+-------+-------+------------+
//    keys     64-79  |   \   |  ##   |  ##   |  ##   |     ##     |  warp 0
//             80-95  |       |   \   |  ##   |  ##   |     ##     |  warp 1
//            96-111  |       |       |   \   |  ##   |     ##     |  warp 2
//           112-127  |       |       |       |   \   |     ##     |  warp 3
//                    +-------+-------+-------+-------+------------+
//
// What a warp does with a chunk, and what it keeps in registers. The probabilities P are computed
// again in both kernels, from the scores and the lse that the forward pass kept: seven products
// instead of five, but P and dS never leave the warp that needs them.
//
//                          dq: rows are queries           dkdv: rows are keys, all is transposed
//    scores                Q K^T                          K Q^T
//    dP                    dO V^T                         V dO^T
//    P, then dS            P * (dP - delta)               the same
//    sums                  dq += dS K                     dv += P^T dO, dk += dS^T Q
//    own operands          Q, dO                          K, V
//    lse, delta            of the own rows: registers     of the columns: shared memory
//
// Shared memory has two stages for a pair of streamed tiles: while one is used, the next pair is
// copied to the other, as in the time line of mma_forward.cu.
//
// Column splits: if dk and dv of a warp's keys do not fit its registers, COLUMN_SPLITS blocks own
// the same keys. Each of them computes all scores of these keys, but HS / COLUMN_SPLITS columns of
// dk and dv:
//
//               columns of dk and dv
//              0 ...  63   64 ... 127
//            +-----------+-----------+
//    keys    |  block 0  |  block 1  |
//            +-----------+-----------+
//
// For the gradient of the bias, a block adds up its rows of dq, or of dk and dv, column by column,
// before they are rounded to floatX: a lane its own rows, then eight lanes by shuffles, then the
// warps of a row group through shared memory.
//
// -D constants, from ops/attention.py: HS head size; WARPS of a block; TILE_ROWS of a tile that
// streams past; DQ_TILES and DKDV_TILES of 16 rows that a warp owns; COLUMN_SPLITS.
//
// Sources: FlashAttention (Dao et al. 2022, arXiv:2205.14135), FlashAttention-2 (Dao 2023,
// arXiv:2307.08691).
#include "attention/backward.cuh"
#include "attention/mma.cuh"
#include "attention/rows.cuh"

constexpr int WARP_KEYS = 16 * DKDV_TILES;
constexpr int WARP_QUERIES = 16 * DQ_TILES;
constexpr int BLOCK_KEYS = WARP_KEYS * WARPS;
constexpr int BLOCK_QUERIES = WARP_QUERIES * WARPS;
constexpr int TILE = TILE_ROWS * PITCH;  // elements
constexpr int STAGE = 2 * TILE;
constexpr int SPLIT_COLUMNS = HS / COLUMN_SPLITS;  // of dk and dv, that one block computes
constexpr int ROW_GROUP = 64;                      // rows of dqkv, in one row of sums

// Rows of a chunk, for a warp that owns M tiles of 16 rows: as many as registers allow, next to the
// own rows and the sums.
template <int M>
constexpr int CHUNK_ROWS = IS_BF16 && M == 1 && HS <= 64 ? 32 : 16;

static_assert(BLOCK_KEYS % TILE_ROWS == 0, "the first query tile starts at the block's first key");
static_assert(SPLIT_COLUMNS % 16 == 0, "columns are computed in pairs of eight");

// ---- both kernels -------------------------------------------------------------------------------

// Writes the sums of factor * values over the rows of each row group, as far as these are below T.
// `first` is the warp's first row. With 16 rows for each warp, the block is one row group; with 32,
// it is two.
template <int M, int COLUMNS>
__device__ __forceinline__ void store_block_sums(float* sums, const float (&values)[M][COLUMNS][4],
                                                 float factor, int first, int T, int NH) {
    const int row = first + lane_row(), member = threadIdx.x % 4;
    const int block_first = first / (16 * M * WARPS) * (16 * M * WARPS);
    store_column_sums<M, 8 * COLUMNS, 2 * COLUMNS, 4>(
        sums, 3 * NH * HS, (T - block_first + ROW_GROUP - 1) / ROW_GROUP,
        [&](int i) { return i / 2 * 8 + 2 * member + i % 2; },
        [&](int i) {
            float sum = 0.0f;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (row + 16 * m + 8 * half < T) sum += values[m][i / 2][2 * half + i % 2];
            return factor * sum;
        });
}

// ---- dq: rows are queries, columns are keys -----------------------------------------------------

// What a lane knows of its rows, [m][half].
struct RowStats {
    float lse[DQ_TILES][2];    // times LOG2E
    float delta[DQ_TILES][2];  // rowsum(dO * O)
};

// Reads lse of the lane's rows and computes their delta; `query` is the first of them. Member 0 of
// the four lanes that share a row writes both to lse_delta (B, NH, T), for attention_mma_dkdv.
__device__ __forceinline__ void load_statistics(RowStats& rows, float2* lse_delta, const float* lse,
                                                const floatX* douts, const floatX* outs,
                                                long long dout_stride, int bh, int query,
                                                int member, int T) {
#pragma unroll
    for (int m = 0; m < DQ_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int own_row = query + 16 * m + 8 * half, row = min(own_row, T - 1);
            const float row_lse = lse[(long long)bh * T + row];
            rows.lse[m][half] = LOG2E * row_lse;
            rows.delta[m][half] =
                row_product<4>(douts + row * dout_stride, outs + row * dout_stride);
            if (member == 0 && own_row < T)
                lse_delta[(long long)bh * T + own_row] = make_float2(row_lse, rows.delta[m][half]);
        }
}

// Turns dP of a chunk into dS, in dscores. The lane's first score is that of `query` and `key`; on
// the diagonal, keys after the query get probability 0.
template <int N>
__device__ __forceinline__ void to_dscores(const float (&scores)[DQ_TILES][N][4],
                                           float (&dscores)[DQ_TILES][N][4], const RowStats& rows,
                                           int query, int key, bool diagonal,
                                           float exponent_scale) {
#pragma unroll
    for (int m = 0; m < DQ_TILES; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                float prob = exp2_approx(scores[m][n][r] * exponent_scale - rows.lse[m][r / 2]);
                if (diagonal && key + 8 * n + r % 2 > query + 16 * m + 8 * (r / 2)) prob = 0.0f;
                dscores[m][n][r] = prob * (dscores[m][n][r] - rows.delta[m][r / 2]);
            }
}

// Written: the dq rows of dqkv (B, T, 3, NH, HS) floatX, and their sums; lse_delta (B, NH, T).
// Read: dout, out (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse (B, NH, T) float.
// Grid: B * NH * ceil(T / BLOCK_QUERIES). Block: THREADS. Dynamic shared memory: STAGES * STAGE
// elements.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS<DQ_TILES>)
    attention_mma_dq(floatX* dqkv, float* sums, float2* lse_delta, const floatX* __restrict__ dout,
                     const floatX* __restrict__ out, const floatX* __restrict__ qkv,
                     const float* __restrict__ lse, int T, int NH) {
    extern __shared__ __align__(16) floatX smem[];
    constexpr int CHUNK = CHUNK_ROWS<DQ_TILES>;
    const int warp = threadIdx.x / WARP, row = lane_row(), member = threadIdx.x % 4;

    const BlockRows block = block_of_queries<BLOCK_QUERIES>(T, NH);
    const long long stride = qkv_stride(NH), dout_stride = out_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = block.slot(dout, T, dout_stride, block.h);
    const floatX* outs = block.slot(out, T, dout_stride, block.h);
    floatX* dqueries = block.slot(dqkv, T, stride, block.h);

    const int first_query = block.first + WARP_QUERIES * warp;  // of this warp
    const int num_keys = min(block.first + BLOCK_QUERIES, T);
    const int num_tiles = (num_keys + TILE_ROWS - 1) / TILE_ROWS;

    auto start_copy = [&](int tile) {
        floatX* stage = smem + tile % STAGES * STAGE;
        copy_tile<TILE_ROWS>(stage, keys, stride, tile * TILE_ROWS, T);
        copy_tile<TILE_ROWS>(stage + TILE, values, stride, tile * TILE_ROWS, T);
        cp_async_commit();
    };
    start_copy(0);
    unsigned own_queries[DQ_TILES][HEAD_STEPS][4], own_douts[DQ_TILES][HEAD_STEPS][4];
    load_own_rows(own_queries, queries, stride, first_query, T);
    load_own_rows(own_douts, douts, dout_stride, first_query, T);
    RowStats rows;
    load_statistics(rows, lse_delta, lse, douts, outs, dout_stride, block.bh, first_query + row,
                    member, T);

    float dq[DQ_TILES][HS / 8][4] = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int tile = 0; tile < num_tiles; tile++) {
        floatX* key_tile = smem + tile % STAGES * STAGE;
        const floatX* value_tile = key_tile + TILE;
        wait_for_stage<TILE_ROWS>(key_tile);
        if (tile + 1 < num_tiles) start_copy(tile + 1);

#pragma unroll 1
        for (int chunk = 0; chunk < TILE_ROWS; chunk += CHUNK) {
            const int first_key = tile * TILE_ROWS + chunk;
            if (first_key >= first_query + WARP_QUERIES) break;  // after all queries of this warp
            float scores[DQ_TILES][CHUNK / 8][4], dscores[DQ_TILES][CHUNK / 8][4];
            multiply_rows(scores, own_queries, key_tile + chunk * PITCH);
            multiply_rows(dscores, own_douts, value_tile + chunk * PITCH);
            // Keys from T on are after every query below T: the mask hides the padding too.
            const bool diagonal = first_key + CHUNK - 1 > first_query;
            to_dscores(scores, dscores, rows, first_query + row, first_key + 2 * member, diagonal,
                       exponent_scale);
            add_product(dq, dscores, key_tile + chunk * PITCH);
        }
    }
    store_rows(dqueries, stride, first_query, T, dq, scale);
    float* block_sums = sums_of_group(sums, block.b, block.h, block.first, ROW_GROUP, T, NH);
    store_block_sums(block_sums, dq, scale, first_query, T, NH);
}

// ---- dk and dv: rows are keys, columns are queries ----------------------------------------------

// Starts copying lse and delta of queries [first, first + TILE_ROWS); zero from T on, where dout is
// zero too and nothing is added.
__device__ __forceinline__ void copy_statistics(float2* statistics, const float2* lse_delta,
                                                int first, int T) {
    auto* to = reinterpret_cast<float*>(statistics);
    auto* from = reinterpret_cast<const float*>(lse_delta + first);
    for (int i = threadIdx.x; i < 2 * TILE_ROWS; i += THREADS) {
        const bool inside = first + i / 2 < T;
        cp_async4_zfill(to + i, inside ? from + i : from, inside ? 4 : 0);
    }
}

// Turns the scores of a chunk into P^T, in probs, and dP^T into dS^T, in dscores. `statistics` are
// lse and delta of the lane's first query. The lane's first score is that of `key` and `query`; on
// the diagonal, keys after the query get probability 0.
template <int N>
__device__ __forceinline__ void to_transposed_dscores(float (&probs)[DKDV_TILES][N][4],
                                                      float (&dscores)[DKDV_TILES][N][4],
                                                      const float2* statistics, int key, int query,
                                                      bool diagonal, float exponent_scale) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        const float4 pair = *reinterpret_cast<const float4*>(statistics + 8 * n);
#pragma unroll
        for (int m = 0; m < DKDV_TILES; m++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float lse = r % 2 ? pair.z : pair.x, delta = r % 2 ? pair.w : pair.y;
                float prob = exp2_approx(probs[m][n][r] * exponent_scale - lse * LOG2E);
                if (diagonal && key + 16 * m + 8 * (r / 2) > query + 8 * n + r % 2) prob = 0.0f;
                probs[m][n][r] = prob;
                dscores[m][n][r] = prob * (dscores[m][n][r] - delta);
            }
    }
}

// Written: the dk and dv rows of dqkv (B, T, 3, NH, HS) floatX, and their sums. Read: dout
// (B, T, NH, HS), qkv (B, T, 3, NH, HS) floatX; lse_delta (B, NH, T). Grid: B * NH * ceil(T /
// BLOCK_KEYS) * COLUMN_SPLITS. Block: THREADS. Dynamic shared memory: STAGES * STAGE elements, then
// lse and delta, a float2, of STAGES * TILE_ROWS queries.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS<DKDV_TILES>)
    attention_mma_dkdv(floatX* dqkv, float* sums, const floatX* __restrict__ dout,
                       const floatX* __restrict__ qkv, const float2* __restrict__ lse_delta, int T,
                       int NH) {
    extern __shared__ __align__(16) floatX smem[];
    constexpr int CHUNK = CHUNK_ROWS<DKDV_TILES>;
    float2* statistics = reinterpret_cast<float2*>(smem + STAGES * STAGE);
    const int warp = threadIdx.x / WARP, row = lane_row(), member = threadIdx.x % 4;

    const BlockRows block = block_of_keys<BLOCK_KEYS, COLUMN_SPLITS>(T, NH);
    const int split = blockIdx.x % COLUMN_SPLITS;
    const long long stride = qkv_stride(NH), dout_stride = out_stride(NH);
    const floatX* queries = block.slot(qkv, T, stride, block.h);
    const floatX* keys = queries + NH * HS;
    const floatX* values = keys + NH * HS;
    const floatX* douts = block.slot(dout, T, dout_stride, block.h);
    floatX* dkeys = block.slot(dqkv, T, stride, NH + block.h);
    floatX* dvalues = dkeys + NH * HS;
    const float2* head_lse_delta = block.statistics(lse_delta, T);

    const int first_key = block.first + WARP_KEYS * warp;  // of this warp
    const int first_tile = block.first / TILE_ROWS;
    const int num_tiles = (T + TILE_ROWS - 1) / TILE_ROWS;

    auto start_copy = [&](int tile) {
        floatX* stage = smem + tile % STAGES * STAGE;
        copy_tile<TILE_ROWS>(stage, queries, stride, tile * TILE_ROWS, T);
        copy_tile<TILE_ROWS>(stage + TILE, douts, dout_stride, tile * TILE_ROWS, T);
        copy_statistics(statistics + tile % STAGES * TILE_ROWS, head_lse_delta, tile * TILE_ROWS,
                        T);
        cp_async_commit();
    };
    start_copy(first_tile);
    unsigned own_keys[DKDV_TILES][HEAD_STEPS][4], own_values[DKDV_TILES][HEAD_STEPS][4];
    load_own_rows(own_keys, keys, stride, first_key, T);
    load_own_rows(own_values, values, stride, first_key, T);

    float dk[DKDV_TILES][SPLIT_COLUMNS / 8][4] = {}, dv[DKDV_TILES][SPLIT_COLUMNS / 8][4] = {};
    const float scale = 1.0f / sqrtf(float(HS));
    const float exponent_scale = scale * LOG2E;

    for (int tile = first_tile; tile < num_tiles; tile++) {
        floatX* query_tile = smem + tile % STAGES * STAGE;
        const floatX* dout_tile = query_tile + TILE;
        const float2* tile_statistics = statistics + tile % STAGES * TILE_ROWS;
        wait_for_stage<TILE_ROWS>(query_tile);
        if (tile + 1 < num_tiles) start_copy(tile + 1);

#pragma unroll 1
        for (int chunk = 0; chunk < TILE_ROWS; chunk += CHUNK) {
            const int first_query = tile * TILE_ROWS + chunk;
            if (first_query + CHUNK <= first_key) continue;  // before all keys of this warp
            const floatX* chunk_queries = query_tile + chunk * PITCH;
            const floatX* chunk_douts = dout_tile + chunk * PITCH;

            float probs[DKDV_TILES][CHUNK / 8][4], dscores[DKDV_TILES][CHUNK / 8][4];
            multiply_rows(probs, own_keys, chunk_queries);
            multiply_rows(dscores, own_values, chunk_douts);
            const bool diagonal = first_query < first_key + WARP_KEYS - 1;
            to_transposed_dscores(probs, dscores, tile_statistics + chunk + 2 * member,
                                  first_key + row, first_query + 2 * member, diagonal,
                                  exponent_scale);
            add_product(dv, probs, chunk_douts + split * SPLIT_COLUMNS);
            add_product(dk, dscores, chunk_queries + split * SPLIT_COLUMNS);
        }
    }
    store_rows(dkeys + split * SPLIT_COLUMNS, stride, first_key, T, dk, scale);
    store_rows(dvalues + split * SPLIT_COLUMNS, stride, first_key, T, dv, 1.0f);
    float* block_sums = sums_of_group(sums, block.b, block.h, block.first, ROW_GROUP, T, NH);
    block_sums += split * SPLIT_COLUMNS;
    store_block_sums(block_sums + NH * HS, dk, scale, first_key, T, NH);
    store_block_sums(block_sums + 2 * NH * HS, dv, 1.0f, first_key, T, NH);
}
