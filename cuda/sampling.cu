// Draws a token from logits: temperature, top-k, top-p; contract in ops/sampling.py.
//
// Probabilities become integers (WEIGHT_ONE for the largest), so that every sum is exact and the
// order of additions does not matter. Nothing is sorted: top-k, top-p and the draw each ask for a
// head of the order "largest logit first, then lowest id", whose last logit is found bit by bit.
#include "lib/reduce.cuh"

typedef unsigned long long u64;
constexpr float WEIGHT_ONE = 1099511627776.0f;  // 2^40: 2^16 tokens of it stay below 2^64

// Unsigned integers in the order of the floats.
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

// A head of the order: all tokens of a larger key, and the first `ties` ids that have this key.
struct Head {
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

// The smallest head whose number or weight reaches `needed`, which must be at least 1 and at most
// the amount of the whole row. All threads of the block take part and get it.
__device__ Head head_of(const Row& row, u64 needed, bool by_weight) {
    unsigned key = 0;
    for (int bit = 31; bit >= 0; bit--)
        if (amount_from(row, key | 1u << bit, by_weight) >= needed) key |= 1u << bit;
    u64 tie_weight = 0;
    for (int i = threadIdx.x; i < row.V; i += blockDim.x)
        if (row.key(i) == key) tie_weight = row.weight(i);
    tie_weight = block_reduce<Max, 0>(tie_weight, 0ull);
    // No key is 0xffffffff but a NaN's.
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

// token[0] = an id below V drawn with uniform[0] in [0, 1); logits (V). Temperature 0 takes the
// largest logit, the lowest id among equals. top_k 0 and top_p 1 keep all. One block of whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    sample_token(int* token, const floatX* logits, const float* uniform, int V, float temperature,
                 int top_k, float top_p) {
    u64 best = 0;  // key, then ids in descending order
    for (int i = threadIdx.x; i < V; i += blockDim.x)
        best =
            Max::join(best, (u64)key_of(to_float(logits[i])) << 32 | (0xffffffffu - (unsigned)i));
    best = block_reduce<Max, 0>(best, 0ull);
    int likeliest = (int)(0xffffffffu - (unsigned)best);
    if (threadIdx.x == 0) token[0] = likeliest;
    if (temperature == 0.0f) return;  // the same in all threads

    Row row = {logits, V, to_float(logits[likeliest]), 1.0f / temperature};
    u64 kept =
        0 < top_k && top_k < V ? head_of(row, top_k, false).weight : amount_from(row, 0, true);
    if (top_p < 1.0f)
        kept = head_of(row, max((u64)ceil((double)top_p * (double)kept), 1ull), true).weight;
    u64 position = min((u64)((double)uniform[0] * (double)kept), kept - 1);
    Head drawn = head_of(row, position + 1, true);

    // The token is the last of this head: the id with number drawn.ties among those with its key.
    int chunk = (V + (int)blockDim.x - 1) / (int)blockDim.x;
    int start = min((int)threadIdx.x * chunk, V), stop = min(start + chunk, V);
    u64 ties = 0;
    for (int i = start; i < stop; i++) ties += row.key(i) == drawn.key;
    ties = sum_before(ties);
    for (int i = start; i < stop; i++)
        if (row.key(i) == drawn.key && ++ties == drawn.ties) token[0] = i;  // after many barriers
}
