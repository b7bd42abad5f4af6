// Attention for text generation: a new position attends to all positions before it, whose keys and
// values are kept in a cache. Nothing that was computed for an old position is computed again.
//
// A block has one head of one new position. Its threads form groups; a group reads one key, and
// its value, with one or two 128-bit loads per thread. For bfloat16 and head size 64 that takes
// 8 threads, so a block of 512 threads has 64 groups. They take the keys in turn, four at a
// time, so that each thread has eight loads in flight:
//
//     keys      0    1   ...   63 | 64   65  ...  127 | ... 255 | 256  257 ...
//     group     0    1   ...   63 |  0    1  ...   63 | ...  63 |   0    1 ...
//               `---------------- one step ---------------------' `-- the next
//
// Each group has an online softmax of its keys (see cuda_cores.cu). At the end the groups of a warp
// are merged, then the warps, always in the same order.
//
// With one prompt there are few heads, and a long past would keep few multiprocessors busy. Then
// the keys are split: a block has one split of the keys and leaves what it found in `partials`, and
// attention_decode_merge joins the splits, in their order.
//
// Several tokens of one text may be new, as in a prompt. Their keys are not in the cache yet: while
// one block writes them there, others read them from qkv.
//
//     position       0     1     2     3     4     5     6
//                  `------ cache ------' `--- new: in qkv ---'
//                                  start = 4         position = 6, say
//
// -DHS head size, -DTHREADS of a block.
#include "lib/constants.cuh"
#include "lib/packs.cuh"

__device__ constexpr int largest_power_of_two(int limit) {
    int power = 1;
    while (2 * power <= limit) power *= 2;
    return power;
}

constexpr int MOST_GROUP_LANES = 16;  // with head size 128 in float32, each has two packs
constexpr int HEAD_PACKS = HS / PACK_SIZE;
constexpr int GROUP_LANES = largest_power_of_two(HEAD_PACKS < 16 ? HEAD_PACKS : MOST_GROUP_LANES);
constexpr int PACKS = (HEAD_PACKS + GROUP_LANES - 1) / GROUP_LANES;  // of a thread
constexpr int GROUPS = THREADS / GROUP_LANES;
constexpr int WARPS = THREADS / WARP;
constexpr int KEYS_IN_FLIGHT = 4;     // of a group
constexpr int PARTIAL_SIZE = HS + 2;  // sums of values, then largest score and denominator

static_assert(HS % 8 == 0 && HS <= 128, "head sizes are multiples of 8 up to 128");

__device__ __forceinline__ int group() { return threadIdx.x / GROUP_LANES; }
// Column of this thread's pack p; beyond HS the thread has no such pack.
__device__ __forceinline__ int pack_column(int p) {
    return (p * GROUP_LANES + (int)threadIdx.x % GROUP_LANES) * PACK_SIZE;
}

using HeadPacks = RawPack[PACKS];

__device__ __forceinline__ void load_head(HeadPacks& packs, const floatX* row) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        packs[p] = RawPack{};
        if (pack_column(p) < HS) packs[p] = load_raw(row + pack_column(p));
    }
}

// Softmax over some keys, and their sum of values in this thread's columns.
struct KeySum {
    float largest;      // score so far, times log2(e)
    float denominator;  // sum of exp2(score - largest)
    Pack sums[PACKS];

    __device__ __forceinline__ void rescale(float highest) {
        const float correction = exp2f(largest - highest);
        largest = highest;
        denominator *= correction;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int i = 0; i < PACK_SIZE; i++) sums[p][i] *= correction;
    }
    __device__ __forceinline__ void add(float score, const HeadPacks& value) {
        const float prob = exp2f(score - largest);
        denominator += prob;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const Pack columns = unpack(value[p]);
#pragma unroll
            for (int i = 0; i < PACK_SIZE; i++) sums[p][i] += prob * columns[i];
        }
    }
    // Joins the groups of a warp. The first group has the result.
    __device__ __forceinline__ void merge_groups() {
#pragma unroll
        for (int distance = GROUP_LANES; distance < WARP; distance *= 2) {
            const float other = __shfl_xor_sync(FULL_WARP, largest, distance);
            rescale(fmaxf(largest, other));
            denominator += __shfl_xor_sync(FULL_WARP, denominator, distance);
#pragma unroll
            for (int p = 0; p < PACKS; p++)
#pragma unroll
                for (int i = 0; i < PACK_SIZE; i++)
                    sums[p][i] += __shfl_xor_sync(FULL_WARP, sums[p][i], distance);
        }
    }
};

// What one block computes, and where its keys and values lie.
struct Query {
    int n, h, position, start, NH;
    const floatX* qkv;
    floatX* old_keys;                  // of this head, position 0
    long long old_values, new_values;  // distance from a key to its value

    // The key of a position; its value lies `value_distance` behind.
    __device__ __forceinline__ const floatX* key_row(int key) const {
        if (key < start) return old_keys + (long long)key * HS;
        return qkv + (long long)(n - (position - key)) * 3 * NH * HS + (NH + h) * HS;
    }
    __device__ __forceinline__ long long value_distance(int key) const {
        return key < start ? old_values : new_values;
    }
    // Puts the new key and value into the cache.
    __device__ __forceinline__ void store_new() const {
        const floatX* key = key_row(position);
        floatX* target = old_keys + (long long)position * HS;
        for (int i = threadIdx.x * PACK_SIZE; i < HS; i += THREADS * PACK_SIZE) {
            store_raw(target + i, load_raw(key + i));
            store_raw(target + old_values + i, load_raw(key + new_values + i));
        }
    }
};

// The softmax of this thread's group over its keys from `first` to before `past`.
__device__ __forceinline__ KeySum sum_of_keys(const Query& query, int first, int past) {
    KeySum own = {MASKED, 0.0f, {}};
    Pack scaled[PACKS];
    HeadPacks packs;
    load_head(packs, query.qkv + (long long)query.n * 3 * query.NH * HS + query.h * HS);
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        scaled[p] = unpack(packs[p]);
#pragma unroll
        for (int i = 0; i < PACK_SIZE; i++) scaled[p][i] *= LOG2E / sqrtf(float(HS));
    }
    // All lanes of a warp take the same number of steps, as their shuffles demand.
    for (int step = first; step < past; step += GROUPS * KEYS_IN_FLIGHT) {
        HeadPacks keys[KEYS_IN_FLIGHT], values[KEYS_IN_FLIGHT];
        float scores[KEYS_IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < KEYS_IN_FLIGHT; k++) {
            const int key = min(step + k * GROUPS + group(), past - 1);
            const floatX* row = query.key_row(key);
            load_head(keys[k], row);
            load_head(values[k], row + query.value_distance(key));
        }
        float highest = own.largest;
#pragma unroll
        for (int k = 0; k < KEYS_IN_FLIGHT; k++) {
            float score = 0.0f;
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const Pack columns = unpack(keys[k][p]);
#pragma unroll
                for (int i = 0; i < PACK_SIZE; i++) score += scaled[p][i] * columns[i];
            }
#pragma unroll
            for (int lanes = 1; lanes < GROUP_LANES; lanes *= 2)
                score += __shfl_xor_sync(FULL_WARP, score, lanes);
            scores[k] = step + k * GROUPS + group() < past ? score : MASKED;
            highest = fmaxf(highest, scores[k]);
        }
        // A group that has seen no key yet has `largest` MASKED: what it adds up meanwhile gets
        // weight 0 when it is rescaled or merged.
        own.rescale(highest);
#pragma unroll
        for (int k = 0; k < KEYS_IN_FLIGHT; k++) own.add(scores[k], values[k]);
    }
    return own;
}

// Attention of N new positions, each over all positions of its text up to its own. Written: out
// (N, NH, HS) floatX or, if there are several splits, partials (N, NH, splits, PARTIAL_SIZE) float;
// cache (R, 2, NH, maxT, HS) floatX at the new positions (keys, then values). Read: qkv
// (N, 3, NH, HS) floatX; rows, positions, starts (N), the row of the cache, the position, and the
// first position of that row that is new; the cache before `starts`. The new positions of a row are
// neighbours, in their order. Grid: N * NH * splits; a split has split_keys keys.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_decode(floatX* __restrict__ out, float* __restrict__ partials, floatX* cache,
                     const floatX* __restrict__ qkv, const int* rows, const int* positions,
                     const int* starts, int NH, int maxT, int splits, int split_keys) {
    __shared__ float warp_largest[WARPS], warp_denominator[WARPS], warp_sums[WARPS][HS];
    const int split = blockIdx.x % splits, nh = blockIdx.x / splits, n = nh / NH, h = nh % NH;
    const long long head_size = (long long)maxT * HS;
    const Query query = {n,
                         h,
                         positions[n],
                         starts[n],
                         NH,
                         qkv,
                         cache + ((long long)rows[n] * 2 * NH + h) * head_size,
                         NH * head_size,
                         (long long)NH * HS};
    const int first = split * split_keys, past = min(first + split_keys, query.position + 1);
    if (first <= query.position && query.position < past) query.store_new();

    KeySum own = sum_of_keys(query, first, past);
    own.merge_groups();
    const int warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP < GROUP_LANES) {
        if (threadIdx.x % WARP == 0) {
            warp_largest[warp] = own.largest;
            warp_denominator[warp] = own.denominator;
        }
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int i = 0; i < PACK_SIZE; i++)
                if (pack_column(p) < HS) warp_sums[warp][pack_column(p) + i] = own.sums[p][i];
    }
    __syncthreads();
    for (int d = threadIdx.x; d < HS; d += THREADS) {
        float highest = warp_largest[0], denominator = 0.0f, sum = 0.0f;
        for (int w = 1; w < WARPS; w++) highest = fmaxf(highest, warp_largest[w]);
        for (int w = 0; w < WARPS; w++) {
            const float weight = exp2f(warp_largest[w] - highest);
            denominator += weight * warp_denominator[w];
            sum += weight * warp_sums[w][d];
        }
        if (splits == 1) {
            out[(long long)nh * HS + d] = from_float<floatX>(sum / denominator);
            continue;
        }
        float* partial = partials + (long long)blockIdx.x * PARTIAL_SIZE;
        partial[d] = sum;
        if (d == 0) partial[HS] = highest, partial[HS + 1] = denominator;
    }
}

// out (N, NH, HS) floatX = the splits of `partials` joined. Grid: N * NH.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_decode_merge(floatX* out, const float* partials, int splits) {
    const float* of_head = partials + (long long)blockIdx.x * splits * PARTIAL_SIZE;
    for (int d = threadIdx.x; d < HS; d += THREADS) {
        float highest = of_head[HS], denominator = 0.0f, sum = 0.0f;
        for (int s = 1; s < splits; s++) highest = fmaxf(highest, of_head[s * PARTIAL_SIZE + HS]);
        for (int s = 0; s < splits; s++) {
            const float* partial = of_head + s * PARTIAL_SIZE;
            // A split behind the position has `largest` MASKED and so weight 0.
            const float weight = exp2f(partial[HS] - highest);
            denominator += weight * partial[HS + 1];
            sum += weight * partial[d];
        }
        out[(long long)blockIdx.x * HS + d] = from_float<floatX>(sum / denominator);
    }
}
