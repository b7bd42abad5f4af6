// Draws the next token of each text from its logits: temperature, top-k, top-p; contract in
// ops/sampling.py.
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
// The vocabulary is not sorted. A token goes into a bin by how far its logit lies below the
// largest; the bins' amounts, added up one after the other, tell in which bin a prefix ends. Only
// the tokens of that bin are collected, and each of them counts what stands before it:
//
//    bins        | 0      | 1              | 2        | 3 ...
//    tokens      | 2      | 0 3            | 5        | 1 4
//    uniform 0.7            ^ ends here: 1.00 < 0.7 * 1.74 <= 1.74, so 0 and 3 are collected
//
// If a bin has too many tokens (all logits nearly alike), a binary search over the 32 bits of a
// logit finds the last logit of the prefix instead: 32 times, all threads weigh the tokens whose
// logit is at least a candidate. Tokens 0 and 3 tie, so such a prefix also says how many of the ids
// with its last logit belong to it.
//
// Weights are integers (WEIGHT_ONE for the largest logit), so sums are exact and the order of
// additions does not matter: both ways find the same token.
//
// -DBINS, -DMOST_COLLECTED tokens of a bin.
#include "lib/block_reduce.cuh"

typedef unsigned long long u64;
constexpr float LARGEST_FLOAT = 3.402823466e38f;
constexpr u64 NOT_FINITE = ~0ull;               // above the entry of every finite logit
constexpr float WEIGHT_ONE = 1099511627776.0f;  // 2^40: 2^20 of them are below 2^64
constexpr float WEIGHTY_RANGE = 28.0f;          // exp(-28) * WEIGHT_ONE is below 1: weight 0

// Unsigned integers that are ordered as the floats are.
__device__ __forceinline__ unsigned key_of(float x) {
    unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(unsigned key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}
// A token in the order of falling logit, equal logits by rising id: a larger entry stands before.
__device__ __forceinline__ u64 entry_of(float logit, int id) {
    return (u64)key_of(logit) << 32 | (0xffffffffu - (unsigned)id);
}
__device__ __forceinline__ int id_of(u64 entry) { return (int)(0xffffffffu - (unsigned)entry); }

__device__ __forceinline__ u64 sum_of_block(u64 value) {
    u64 sum = block_reduce<Sum, 0>(value, 0ull);
    __syncthreads();  // it is called in a loop
    return sum;
}

// Sum of the values of all threads before this one. Between two calls there must be a barrier.
__device__ __forceinline__ u64 sum_before(u64 value) {
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

struct Row {
    const floatX* logits;
    int V;
    float largest, inverse_temperature;
    float bins_per_logit;

    __device__ __forceinline__ unsigned key(int i) const { return key_of(to_float(logits[i])); }
    __device__ __forceinline__ u64 weight_of(float logit) const {
        return (u64)(expf((logit - largest) * inverse_temperature) * WEIGHT_ONE);
    }
    __device__ __forceinline__ u64 weight(int i) const { return weight_of(to_float(logits[i])); }
    // A larger logit never has a higher bin. If there are tokens without weight, the last bin has
    // them; else the bins cover the logits down to the smallest.
    __device__ __forceinline__ int bin(float logit) const {
        return (int)fminf((largest - logit) * bins_per_logit, BINS - 1);
    }
    __device__ __forceinline__ void cut_bins(float smallest) {
        const float range = fminf(WEIGHTY_RANGE / inverse_temperature, largest - smallest);
        bins_per_logit = BINS / fmaxf(range, 1e-30f);
    }
    // Calls visit(id, logit) for this thread's share of the vocabulary, in packs.
    template <class Visit>
    __device__ __forceinline__ void for_tokens(const Visit& visit) const {
#pragma unroll 4
        for (int i = threadIdx.x * PACK_SIZE; i < V; i += blockDim.x * PACK_SIZE) {
            const Pack pack = load_pack(logits + i);  // rows are padded to whole packs
#pragma unroll
            for (int k = 0; k < PACK_SIZE; k++)
                if (i + k < V) visit(i + k, pack[k]);
        }
    }
};

// ---- the bins -----------------------------------------------------------------------------------

// The last token of a prefix, and the weight of all its tokens.
struct alignas(16) Prefix {
    int last;
    u64 weight;
};

struct Bins {
    // First the amounts of each bin, weights as two words; then all that stands before each bin.
    unsigned counts[BINS + 1], low[BINS], high[BINS];
    u64 weight_before[BINS + 1];
    // The tokens of one bin.
    u64 entries[MOST_COLLECTED];
    int collected, bin;
    Prefix found;
};

__device__ __forceinline__ void fill_bins(Bins& bins, const Row& row) {
    for (int b = threadIdx.x; b < BINS; b += blockDim.x)
        bins.counts[b] = bins.low[b] = bins.high[b] = 0;
    __syncthreads();
    row.for_tokens([&](int, float logit) {
        const int b = row.bin(logit);
        const u64 weight = row.weight_of(logit);
        atomicAdd(&bins.counts[b], 1u);
        if (weight == 0) return;
        const unsigned low = (unsigned)weight, before = atomicAdd(&bins.low[b], low);
        const unsigned high = (unsigned)(weight >> 32) + (before + low < before);
        if (high != 0) atomicAdd(&bins.high[b], high);
    });
    __syncthreads();
    // A thread has neighbouring bins.
    const int share = (BINS + blockDim.x - 1) / blockDim.x;
    const int start = min((int)threadIdx.x * share, BINS), stop = min(start + share, BINS);
    u64 weight = 0, count = 0;
    for (int b = start; b < stop; b++) {
        weight += (u64)bins.high[b] << 32 | bins.low[b];
        count += bins.counts[b];
    }
    weight = sum_before(weight);
    __syncthreads();
    count = sum_before(count);
    for (int b = start; b < stop; b++) {
        const unsigned own = bins.counts[b];
        bins.weight_before[b] = weight;
        bins.counts[b] = (unsigned)count;
        weight += (u64)bins.high[b] << 32 | bins.low[b];
        count += own;
        if (b == BINS - 1) bins.weight_before[BINS] = weight, bins.counts[BINS] = (unsigned)count;
    }
    __syncthreads();
}

// Step 1 of a question: the bin in which the prefix ends.
__device__ __forceinline__ void find_bin(Bins& bins, u64 needed, bool by_weight) {
    for (int b = threadIdx.x; b < BINS; b += blockDim.x) {
        const u64 before = by_weight ? bins.weight_before[b] : bins.counts[b];
        const u64 through = by_weight ? bins.weight_before[b + 1] : bins.counts[b + 1];
        if (before < needed && needed <= through) bins.bin = b;
    }
    if (threadIdx.x == 0) bins.collected = 0;
    __syncthreads();
}

// Step 2: collect its tokens, in any order. False if they are too many.
__device__ __forceinline__ bool collect(Bins& bins, const Row& row) {
    const int bin = bins.bin;
    row.for_tokens([&](int id, float logit) {
        if (row.bin(logit) != bin) return;
        const int place = atomicAdd(&bins.collected, 1);
        if (place < MOST_COLLECTED) bins.entries[place] = entry_of(logit, id);
    });
    __syncthreads();
    return bins.collected <= MOST_COLLECTED;
}

// Step 3: each token counts what stands before it; the one with which the amount is reached is the
// last.
__device__ __forceinline__ void rank(Bins& bins, const Row& row, u64 needed, bool by_weight) {
    const int n = bins.collected;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const u64 own = bins.entries[i];
        u64 count = bins.counts[bins.bin], weight = bins.weight_before[bins.bin];
        for (int j = 0; j < n; j++) {
            const u64 other = bins.entries[j];
            if (other <= own) continue;
            count++;
            weight += row.weight_of(logit_of((unsigned)(other >> 32)));
        }
        const u64 own_weight = row.weight_of(logit_of((unsigned)(own >> 32)));
        const u64 before = by_weight ? weight : count, amount = by_weight ? own_weight : 1;
        if (before < needed && needed <= before + amount)
            bins.found = {id_of(own), weight + own_weight};
    }
    __syncthreads();
}

// ---- without bins -------------------------------------------------------------------------------

// Number (by_weight false) or weight (true) of the tokens whose key is at least this one.
__device__ __forceinline__ u64 amount_from(const Row& row, unsigned key, bool by_weight) {
    u64 amount = 0;
    for (int i = threadIdx.x; i < row.V; i += blockDim.x)
        if (row.key(i) >= key) amount += by_weight ? row.weight(i) : 1;
    return sum_of_block(amount);
}

// Step 2 and 3 for a bin with too many tokens, by binary search over all tokens.
__device__ __forceinline__ void search(Bins& bins, const Row& row, u64 needed, bool by_weight) {
    // The largest key from which on the tokens reach `needed`, bit by bit.
    unsigned key = 0;
    for (int bit = 31; bit >= 0; bit--)
        if (amount_from(row, key | 1u << bit, by_weight) >= needed) key |= 1u << bit;
    const u64 tie_weight = row.weight_of(logit_of(key));  // of one token with this key
    // key + 1 does not overflow: only a NaN has the key 0xffffffff.
    const u64 missing = needed - amount_from(row, key + 1, by_weight);
    const u64 ties = by_weight ? (missing + tie_weight - 1) / max(tie_weight, 1ull) : missing;
    const u64 weight = amount_from(row, key + 1, true) + ties * tie_weight;
    // The last token is the one at place `ties` among the ids with this key.
    const int share = (row.V + (int)blockDim.x - 1) / (int)blockDim.x;
    const int start = min((int)threadIdx.x * share, row.V), stop = min(start + share, row.V);
    u64 place = 0;
    for (int i = start; i < stop; i++) place += row.key(i) == key;
    place = sum_before(place);
    for (int i = start; i < stop; i++)
        if (row.key(i) == key && ++place == ties) bins.found = {i, weight};
    __syncthreads();
}

// Steps 2 and 3.
__device__ __forceinline__ Prefix end_in_bin(Bins& bins, const Row& row, u64 needed,
                                             bool by_weight) {
    if (collect(bins, row))
        rank(bins, row, needed, by_weight);
    else
        search(bins, row, needed, by_weight);
    return bins.found;
}

// The shortest prefix whose weight reaches `needed`, which must be at least 1 and at most the
// weight of the whole row. All threads of the block take part and get the result.
__device__ __forceinline__ Prefix prefix_of_weight(Bins& bins, const Row& row, u64 needed) {
    find_bin(bins, needed, true);
    return end_in_bin(bins, row, needed, true);
}

// The weight of the first `count` tokens.
__device__ __forceinline__ u64 weight_of_first(Bins& bins, const Row& row, int count) {
    find_bin(bins, count, false);
    const u64 before = bins.weight_before[bins.bin], all = bins.weight_before[BINS];
    __syncthreads();  // all have read bins.bin
    // The tokens of the last bins have no weight, and they may be many.
    return before == all ? all : end_in_bin(bins, row, count, false).weight;
}

// ---- the kernel ---------------------------------------------------------------------------------

// An id below V drawn with `uniform` in [0, 1), or -1 if a logit is NaN or infinite; the same in
// all threads.
__device__ __forceinline__ int draw(Bins& bins, const floatX* logits, int V, float uniform,
                                    float temperature, int top_k, float top_p) {
    Row row = {logits, V, 0.0f, 0.0f, 0.0f};
    u64 best = 0;
    unsigned smallest = ~0u;  // key
    row.for_tokens([&](int id, float logit) {
        const u64 entry = fabsf(logit) <= LARGEST_FLOAT ? entry_of(logit, id) : NOT_FINITE;
        best = Max::join(best, entry);
        smallest = min(smallest, key_of(logit));
    });
    best = block_reduce<Max, 0>(best, 0ull);
    if (best == NOT_FINITE) return -1;
    if (temperature == 0.0f) return id_of(best);  // all threads return together

    row.largest = logit_of((unsigned)(best >> 32));
    row.inverse_temperature = 1.0f / temperature;
    row.cut_bins(logit_of(~block_reduce<Max, 0>(~smallest, 0u)));
    fill_bins(bins, row);
    u64 kept = bins.weight_before[BINS];
    if (0 < top_k && top_k < V) kept = weight_of_first(bins, row, top_k);
    if (top_p < 1.0f) {
        const u64 needed = max((u64)ceil((double)top_p * (double)kept), 1ull);
        kept = prefix_of_weight(bins, row, needed).weight;
    }
    const u64 position = min((u64)((double)uniform * (double)kept), kept - 1);
    return prefix_of_weight(bins, row, position + 1).last;
}

// Draws the next token of each text and gets everything ready for the step after it. With the
// counter of a text c = counts[n] and slot = c % slots: drawn[slot, n] = the token, decided by
// uniforms[slot, n]; tokens[n] = the same, or 0 for -1; positions[n] += 1, up to last_position;
// counts[n] = c + 1. Written: drawn (slots, N), of which one entry for each text; tokens (N).
// Updated in place: positions, counts (N). Read: logits (N, Vp), of which V count; uniforms
// (slots, N). Temperature 0 takes the largest logit, the lowest id among equals; top_k 0 and
// top_p 1 keep all. Grid: N. Block: whole warps.
extern "C" __global__ void __launch_bounds__(1024, 1)
    sample_token(int* drawn, int* tokens, int* positions, int* counts, const floatX* logits,
                 const float* uniforms, int slots, int V, int Vp, int last_position,
                 float temperature, int top_k, float top_p) {
    __shared__ Bins bins;
    const int n = blockIdx.x, N = gridDim.x, count = counts[n], slot = count % slots;
    const int token = draw(bins, logits + (long long)n * Vp, V, uniforms[slot * N + n], temperature,
                           top_k, top_p);
    if (threadIdx.x != 0) return;
    drawn[slot * N + n] = token;
    tokens[n] = max(token, 0);
    positions[n] = min(positions[n] + 1, last_position);
    counts[n] = count + 1;
}
