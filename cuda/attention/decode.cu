// Attention for text generation: a few new positions attend to all positions before them, whose
// keys and values are kept in a cache. Nothing that was computed for an old position is computed
// again.
//
// A block has one new position and one head. Its 16 row lanes (lanes.cuh) take turns at the keys;
// the eight threads of a row lane share the columns of the head:
//
//     keys         0   1   2  ...  15 | 16  17  ...  31 | 32  33 ...
//     row lane     0   1   2  ...  15 |  0   1  ...  15 |  0   1 ...
//
// Each row lane has an online softmax of its keys (see cuda_cores.cu). At the end the 16 results
// are merged, always in the same order.
//
// -DHS head size, -DTHREADS of a block.
#include "attention/lanes.cuh"

// Softmax over the keys of a row lane, and its sum of values in this thread's columns.
struct RowLaneSum {
    float largest;      // score so far
    float denominator;  // sum of exp(score - largest)
    float sums[COLUMNS];

    // One more key, with its row of values; of `value_row`, this thread's columns.
    __device__ __forceinline__ void add(float score, const floatX* value_row) {
        const float highest = fmaxf(largest, score);
        const float correction = expf(largest - highest), prob = expf(score - highest);
        largest = highest;
        denominator = denominator * correction + prob;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            sums[c] =
                sums[c] * correction + prob * to_float(value_row[COLUMN_LANES * c + column_lane()]);
    }
};

// out[HS] = the sum of values of all row lanes, divided by their denominators.
__device__ __forceinline__ void merge_row_lanes(floatX* out, const RowLaneSum& own) {
    __shared__ float lane_largest[ROW_LANES], lane_denominator[ROW_LANES];
    __shared__ float lane_sums[ROW_LANES][HS];
    if (column_lane() == 0) {
        lane_largest[row_lane()] = own.largest;
        lane_denominator[row_lane()] = own.denominator;
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        lane_sums[row_lane()][COLUMN_LANES * c + column_lane()] = own.sums[c];
    __syncthreads();
    for (int d = threadIdx.x; d < HS; d += THREADS) {
        float highest = lane_largest[0], denominator = 0.0f, sum = 0.0f;
        for (int y = 1; y < ROW_LANES; y++) highest = fmaxf(highest, lane_largest[y]);
        // A row lane that saw no key has `largest` MASKED and so weight 0.
        for (int y = 0; y < ROW_LANES; y++) {
            const float weight = expf(lane_largest[y] - highest);
            denominator += weight * lane_denominator[y];
            sum += weight * lane_sums[y][d];
        }
        out[d] = from_float<floatX>(sum / denominator);
    }
}

// Attention of T new positions, start to start + T - 1, over a cache of all before them.
// Written: out (T, NH, HS) floatX; cache (2, NH, maxT, HS) floatX at the new positions (keys, then
// values). Read: qkv (T, 3, NH, HS) floatX, the cache before `start`. Grid: T * NH.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_decode(floatX* __restrict__ out, floatX* cache, const floatX* __restrict__ qkv,
                     int start, int T, int maxT, int NH) {
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

    float own_query[COLUMNS];
    RowLaneSum own = {MASKED, 0.0f, {}};
    const float scale = 1.0f / sqrtf(float(HS));
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        own_query[c] = scale * to_float(query[COLUMN_LANES * c + column_lane()]);
    // All lanes of a warp take the same number of steps, as their shuffles demand.
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
        own.add(score, value_row);
    }
    merge_row_lanes(out + ((long long)t * NH + h) * HS, own);
}
