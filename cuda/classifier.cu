// Softmax cross-entropy, loss and gradient; contract in ops/classifier.py.
//
// A block keeps its row in shared memory between reading it and writing its gradient, and fetches
// the next row into the places that become free: there is always something to wait for in the
// background. Each thread works on the packs that it fetched itself, so that they need no barrier.
// What shared memory does not hold of a long row is read twice. Maximum and sum are taken together
// (online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867).
#include "lib/reduce.cuh"
#include "lib/ptx.cuh"

constexpr int MAX_THREADS = PACK_SIZE == 4 ? 1024 : 768;  // twice on a multiprocessor
constexpr float LOWEST = -1e38f;  // finite, also times LOG2_E: LOWEST - LOWEST is 0, not NaN
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// The softmax of x is 2^(x LOG2_E - shift) / denominator.
struct Softmax {
    float shift, denominator;
    __device__ __forceinline__ float exponent(float x) const { return fmaf(x, LOG2_E, -shift); }
    __device__ __forceinline__ float loss(float target_logit) const {
        return logf(denominator) - LN_2 * exponent(target_logit);
    }
};

// Columns from V on, in the pack that begins at column `first`, become `value`.
__device__ __forceinline__ void mask(Pack& x, int first, int V, float value) {
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++)
        if (first + k >= V) x[k] = value;
}

__device__ __forceinline__ void add(Softmax& softmax, const Pack& x) {
    float largest = x[0];
#pragma unroll
    for (int k = 1; k < PACK_SIZE; k++) largest = fmaxf(largest, x[k]);
    const float raise = softmax.exponent(largest);
    if (raise > 0.0f) {
        softmax.denominator *= exp2_approx(-raise);
        softmax.shift = largest * LOG2_E;
    }
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) softmax.denominator += exp2_approx(softmax.exponent(x[k]));
}

// Softmax over columns below V; read(pack) yields a pack of logits. All threads of the block get
// it; it holds barriers.
template <class Read>
__device__ __forceinline__ Softmax softmax_of_row(const Read& read, int V) {
    Softmax softmax = {LOWEST * LOG2_E, 0.0f};
    const int whole_packs = V / PACK_SIZE;
    int pack = threadIdx.x;
#pragma unroll 4
    for (; pack < whole_packs; pack += blockDim.x) add(softmax, read(pack));
    if (pack * PACK_SIZE < V) {
        Pack x = read(pack);
        mask(x, pack * PACK_SIZE, V, LOWEST);
        add(softmax, x);
    }
    float shift = block_max(softmax.shift);
    return {shift, block_sum(softmax.denominator * exp2_approx(softmax.shift - shift))};
}

// losses[n] += loss of row n, and logits[n, :] = its gradient times dloss, 0 from column V on.
// logits (N, Vp), targets (N), -1 for rows that do not count. Whole warps; dynamic shared memory
// holds the first num_kept packs of a row.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2)
    classifier(float* losses, floatX* logits, const int* targets, int N, int V, int Vp,
               int num_kept, float dloss) {
    extern __shared__ __align__(16) uint4 smem[];
    const int whole_packs = V / PACK_SIZE, num_packs = Vp / PACK_SIZE;
    long long n = blockIdx.x;
    for (int pack = threadIdx.x; pack < num_kept; pack += blockDim.x)
        cp_async16(smem + pack, logits + n * Vp + pack * PACK_SIZE);
    cp_async_commit();
    int next_target = targets[n];
    for (; n < N; n += gridDim.x) {
        const int target = next_target;
        const bool counts = target >= 0;  // the same in all threads
        const long long next = n + gridDim.x;
        if (next < N) next_target = targets[next];
        floatX* row = logits + n * Vp;
        auto read = [&](int pack) {
            return pack < num_kept ? unpack({smem[pack]}) : load_pack(row + pack * PACK_SIZE);
        };
        // Before the barriers of softmax_of_row: after them the row is overwritten.
        const float target_logit = counts ? to_float(row[target]) : 0.0f, before = losses[n];
        cp_async_wait<0>();
        Softmax softmax = {0.0f, 1.0f};
        if (counts) softmax = softmax_of_row(read, V);
        if (threadIdx.x == 0 && counts) losses[n] = before + softmax.loss(target_logit);

        const float scale = counts ? dloss / softmax.denominator : 0.0f;
        auto probability = [&](float x) { return exp2_approx(softmax.exponent(x)) * scale; };
        auto write = [&](int pack, const Pack& x) {
            store_streaming(row + pack * PACK_SIZE, x);
            if (pack < num_kept && next < N)
                cp_async16(smem + pack, logits + next * Vp + pack * PACK_SIZE);
        };
        int pack = threadIdx.x;
#pragma unroll 2
        for (; counts && pack < whole_packs; pack += blockDim.x) {
            Pack x = read(pack);
#pragma unroll
            for (int k = 0; k < PACK_SIZE; k++) x[k] = probability(x[k]);
            write(pack, x);
        }
        for (; pack < num_packs; pack += blockDim.x) {  // padding, or a row that does not count
            Pack x = filled<PACK_SIZE>(0.0f);
            if (counts && pack == whole_packs) {
                x = read(pack);
#pragma unroll
                for (int k = 0; k < PACK_SIZE; k++) x[k] = probability(x[k]);
                mask(x, pack * PACK_SIZE, V, 0.0f);
            }
            write(pack, x);
        }
        if (counts &&
            target / PACK_SIZE % blockDim.x == threadIdx.x)  // the thread that wrote its pack
            row[target] = from_float<floatX>(probability(target_logit) - dloss);
        cp_async_commit();
    }
}

// losses[n] += loss of row n; the logits stay. One block per row, of whole warps.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    classifier_loss(float* losses, const floatX* logits, const int* targets, int V, int Vp) {
    long long n = blockIdx.x;
    const floatX* row = logits + n * Vp;
    int target = targets[n];
    if (target < 0) return;  // the same in all threads
    auto read = [&](int pack) { return load_pack(row + pack * PACK_SIZE); };
    Softmax softmax = softmax_of_row(read, V);
    if (threadIdx.x == 0) losses[n] += softmax.loss(to_float(row[target]));
}
