// Building blocks of attention on CUDA cores: tiles in shared memory, products in float32.
//
// A block owns BLOCK_ROWS rows of one head (in forward: queries). Tiles of TILE_ROWS rows of the
// other side (keys and values) stream past. Thread (x, y) of lanes.cuh has this share of the two
// products:
//
//                            streamed tile 1 (keys)
//                            rows x, x + 8, ...
//                           +---------------------+
//                           |  TILE_ROWS x HS     |
//                           +---------------------+
//    own rows (queries)      scores                       streamed tile 2 (values)
//    +-----------------+    +---------------------+      +---------------------+
//  y |                 | y  | x . x + 8 . .       |      |  TILE_ROWS x HS     |
//    | BLOCK_ROWS x HS |    | in registers,       |      +---------------------+
//    |                 | y  | then softmax, then  |       sums
// +16| shared memory   | +16| to shared memory    |      +---------------------+
//    |                 |    | for all eight       |    y | x . . . . . . . x . |
//    +-----------------+    | threads of the row  |      | in registers, in    |
//                           +---------------------+  +16 | vectors of columns  |
//                                                        +---------------------+
//
//   1. multiply_rows: scores = own rows x (tile 1)^T
//   2. softmax, or its gradient, on the thread's scores
//   3. share_scores: the four rows of a warp pass through shared memory; no other warp sees them
//   4. add_product: sums += scores x (tile 2)
//
// -DHS head size, -DTHREADS of a block, -DBLOCK_ROWS rows that a block owns, -DTILE_ROWS rows of a
// streamed tile, -DPITCH and -DSCORE_PITCH floats from one row to the next in shared memory.
#pragma once
#include "attention/lanes.cuh"
#include "attention/rows.cuh"

constexpr int ROWS = BLOCK_ROWS / ROW_LANES;      // of a thread
constexpr int SCORES = TILE_ROWS / COLUMN_LANES;  // of a thread, in one row
// Head columns of a thread are neighbours in vectors as wide as HS allows, up to 128 bits.
constexpr int VECTOR = HS % 32 == 0 ? 4 : HS % 16 == 0 ? 2 : 1;

static_assert(TILE_ROWS % COLUMN_LANES == 0 && BLOCK_ROWS % TILE_ROWS == 0, "tiles line up");
static_assert(PITCH >= HS && PITCH % 8 == 4, "eight rows begin in eight different bank groups");
static_assert(SCORE_PITCH >= TILE_ROWS && SCORE_PITCH % 8 == 4, "so do eight rows of scores");

struct alignas(4 * VECTOR) Vector {
    float value[VECTOR];
};

// Of rows or columns that begin at `first`: the i-th row of this thread, the j-th column of its
// scores.
__device__ __forceinline__ int own_row(int first, int i) {
    return first + row_lane() + ROW_LANES * i;
}
__device__ __forceinline__ int own_column(int first, int j) {
    return first + column_lane() + COLUMN_LANES * j;
}

// tile[row] = rows [first, first + COUNT) of one head; rows from `limit` on become zeros.
// `source` is row 0, `stride` the elements from one row to the next.
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
            a[i] = *reinterpret_cast<const float4*>(own + own_row(0, i) * PITCH + d);
#pragma unroll
        for (int j = 0; j < SCORES; j++)
            b[j] = *reinterpret_cast<const float4*>(streamed + own_column(0, j) * PITCH + d);
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

// Hands the scores of a row to all threads of the row. Nobody else reads or writes these rows.
__device__ __forceinline__ void share_scores(float* shared_scores,
                                             const float (&scores)[ROWS][SCORES]) {
    __syncwarp();  // the lanes have read what the rows held before
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < SCORES; j++)
            shared_scores[own_row(0, i) * SCORE_PITCH + own_column(0, j)] = scores[i][j];
    __syncwarp();
}

// sums[i][c] += scores of row (y + 16 i) x column c of the streamed tile.
__device__ __forceinline__ void add_product(float (&sums)[ROWS][COLUMNS],
                                            const float* shared_scores, const float* streamed) {
#pragma unroll 2
    for (int s = 0; s < TILE_ROWS; s += 4) {
        float scores[ROWS][4];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            *reinterpret_cast<float4*>(scores[i]) =
                *reinterpret_cast<const float4*>(shared_scores + own_row(0, i) * SCORE_PITCH + s);
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c += VECTOR) {
                const Vector vector = *reinterpret_cast<const Vector*>(
                    streamed + (s + k) * PITCH + c * COLUMN_LANES + column_lane() * VECTOR);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int e = 0; e < VECTOR; e++)
                        sums[i][c + e] += scores[i][k] * vector.value[e];
            }
    }
}

// row[this thread's columns] = factor * sums.
__device__ __forceinline__ void store_row(floatX* row, const float (&sums)[COLUMNS], float factor) {
    struct alignas(VECTOR * sizeof(floatX)) Stored {
        floatX value[VECTOR];
    };
#pragma unroll
    for (int c = 0; c < COLUMNS; c += VECTOR) {
        Stored stored;
#pragma unroll
        for (int e = 0; e < VECTOR; e++) stored.value[e] = from_float<floatX>(factor * sums[c + e]);
        *reinterpret_cast<Stored*>(row + c * COLUMN_LANES + column_lane() * VECTOR) = stored;
    }
}
