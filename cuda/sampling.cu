// Draws a token from logits: temperature, top-k, top-p; contract in ops/sampling.py.
//
// Order the tokens by falling logit, equal logits by rising id. Top-k, top-p and the draw then ask
// the same question: how long is the shortest prefix of this order whose length, or whose weight,
// reaches a given amount? For six logits with temperature 1, a token's weight is
// exp(logit - largest logit):
//
//    token id          2      0      3      5      1      4
//    logit            3.0    2.0    2.0    1.0    0.0   -1.0
//    weight          1.00   0.37   0.37   0.14   0.05   0.02
//    prefix weight   1.00   1.37   1.74   1.87   1.92   1.94
//
//    top-k 4       |---------------------------|               4 tokens, weight 1.87
//    top-p 0.9     |--------------------|                      weight >= 0.9 * 1.87: 3 tokens
//    uniform 0.7   |-------------|                             weight > 0.7 * 1.74: 2 tokens, and
//                                                              the second, token 0, is drawn
//
// Nothing is sorted. A binary search over the 32 bits of a logit finds the last logit of a prefix:
// 32 times, all threads count (or weigh) the tokens whose logit is at least a candidate. Tokens 0
// and 3 tie, so a prefix also says how many of the ids with its last logit belong to it. The prefix
// of 2 tokens has one of the two.
//
// Weights are integers (WEIGHT_ONE for the largest logit), so sums are exact and the order of
// additions does not matter.
#include "lib/block_reduce.cuh"

typedef unsigned long long u64;
constexpr float LARGEST_FLOAT = 3.402823466e38f;
constexpr u64 NOT_FINITE = ~0ull;               // above the entry of every finite logit
constexpr float WEIGHT_ONE = 1099511627776.0f;  // 2^40: 2^20 of them are below 2^64

// Unsigned integers that are ordered as the floats are.
__device__ __forceinline__ unsigned key_of(float x) {
    unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u64 sum_of_block(u64 value) {
    u64 sum = block_reduce<Sum, 0>(value, 0ull);
    __syncthreads();  // it is called in a loop
    return sum;
}

struct Row {
    const floatX* logits;
    int V;
    float largest, inverse_temperature;

    __device__ __forceinline__ unsigned key(int i) const { return key_of(to_float(logits[i])); }
    __device__ __forceinline__ u64 weight(int i) const {
        return (u64)(expf((to_float(logits[i]) - largest) * inverse_temperature) * WEIGHT_ONE);
    }
};

// A prefix of the order: all tokens with a larger key, and the first `ties` ids with this key.
struct Prefix {
    unsigned key;
    u64 ties;
    u64 weight;  // of all its tokens
};

// Number (by_weight false) or weight (true) of the tokens whose key is at least this one.
__device__ __forceinline__ u64 amount_from(const Row& row, unsigned key, bool by_weight) {
    u64 amount = 0;
    for (int i = threadIdx.x; i < row.V; i += blockDim.x)
        if (row.key(i) >= key) amount += by_weight ? row.weight(i) : 1;
    return sum_of_block(amount);
}

// The shortest prefix whose number of tokens or weight reaches `needed`, which must be at least 1
// and at most the amount of the whole row. All threads of the block take part and get the result.
__device__ Prefix shortest_prefix(const Row& row, u64 needed, bool by_weight) {
    // The largest key from which on the tokens reach `needed`, bit by bit.
    unsigned key = 0;
    for (int bit = 31; bit >= 0; bit--)
        if (amount_from(row, key | 1u << bit, by_weight) >= needed) key |= 1u << bit;
    u64 tie_weight = 0;  // of one token with this key
    for (int i = threadIdx.x; i < row.V; i += blockDim.x)
        if (row.key(i) == key) tie_weight = row.weight(i);
    tie_weight = block_reduce<Max, 0>(tie_weight, 0ull);
    // key + 1 does not overflow: only a NaN has the key 0xffffffff.
    u64 missing = needed - amount_from(row, key + 1, by_weight);
    u64 ties = by_weight ? (missing + tie_weight - 1) / max(tie_weight, 1ull) : missing;
    return {key, ties, amount_from(row, key + 1, true) + ties * tie_weight};
}

// Sum of the values of all threads before this one.
__device__ u64 sum_before(u64 value) {
    __shared__ u64 of_warp[MAX_WARPS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u64 sum = value;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        u64 left = __shfl_up_sync(FULL_WARP, sum, distance);
        if (lane >= distance) sum += left;
    }
    if (lane == WARP - 1) of_warp[warp] = sum;
    __syncthreads();
    for (int i = 0; i < warp; i++) sum += of_warp[i];
    return sum - value;
}

// token[0] = the id at place `index` (from 1) among the ids with this key.
__device__ __forceinline__ void write_id(int* token, const Row& row, unsigned key, u64 index) {
    int chunk = (row.V + (int)blockDim.x - 1) / (int)blockDim.x;
    int start = min((int)threadIdx.x * chunk, row.V), stop = min(start + chunk, row.V);
    u64 ties = 0;
    for (int i = start; i < stop; i++) ties += row.key(i) == key;
    ties = sum_before(ties);
    for (int i = start; i < stop; i++)
        if (row.key(i) == key && ++ties == index) token[0] = i;
}

// token[0] = an id below V drawn with uniform[0] in [0, 1); logits (V). Temperature 0 takes the
// largest logit, the lowest id among equals. top_k 0 and top_p 1 keep all. -1 is written if a logit
// is NaN or infinite. One block, whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    sample_token(int* token, const floatX* logits, const float* uniform, int V, float temperature,
                 int top_k, float top_p) {
    u64 best = 0;  // the key, and below it the id, inverted: the maximum has the lowest id
    for (int i = threadIdx.x; i < V; i += blockDim.x) {
        float logit = to_float(logits[i]);
        u64 entry = (u64)key_of(logit) << 32 | (0xffffffffu - (unsigned)i);
        best = Max::join(best, fabsf(logit) <= LARGEST_FLOAT ? entry : NOT_FINITE);
    }
    best = block_reduce<Max, 0>(best, 0ull);
    int best_id = best == NOT_FINITE ? -1 : (int)(0xffffffffu - (unsigned)best);
    // With a temperature, write_id overwrites it: there are barriers between the two writes.
    if (threadIdx.x == 0) token[0] = best_id;
    if (temperature == 0.0f || best_id < 0) return;  // all threads return together

    Row row = {logits, V, to_float(logits[best_id]), 1.0f / temperature};
    u64 kept = 0 < top_k && top_k < V ? shortest_prefix(row, top_k, false).weight
                                      : amount_from(row, 0, true);
    if (top_p < 1.0f)
        kept =
            shortest_prefix(row, max((u64)ceil((double)top_p * (double)kept), 1ull), true).weight;
    u64 position = min((u64)((double)uniform[0] * (double)kept), kept - 1);
    Prefix drawn = shortest_prefix(row, position + 1, true);
    write_id(token, row, drawn.key, drawn.ties);  // the last token of the prefix
}
