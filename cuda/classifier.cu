// Softmax cross-entropy, loss and gradient; contract in ops/classifier.py.
//
// A block goes through every G-th row, where G is the number of blocks. It needs a row twice, for
// the sum of the exponentials and for the gradient, so it keeps the row in shared memory. The
// next row is loaded with cp.async while the gradient of the current row is computed and written.
//
//    time -------------------------------------------------------------------------------->
//    row n      | softmax: max, sum | gradient: write pack 0, 1, 2, ...  |
//    row n + G                      [ copy pack 0, 1, 2, ... ........... | softmax | gradient ...
//    row n + 2G                                                                    [ copy ...
//
//    shared memory while the gradient of row n is written; it holds num_kept packs:
//
//    pack        0       1       2       3       4       5
//             [ n+G ] [ n+G ] [ n+G ] [  n  ] [  n  ] [  n  ]      [ n+G ]: its copy has started
//                                        ^ read, turned into the gradient, written to memory; then
//                                          the copy of this pack of row n + G starts
//
// Each thread works on the packs that it copied itself, so the copies need no barrier. If a row is
// longer than shared memory, the rest of it is read from memory twice.
//
// Maximum and sum are taken in one pass over the row (online softmax, Milakov and Gimelshein
// 2018, arXiv:1805.02867): a thread sums 2^(x LOG2E - shift), where shift is the largest x LOG2E so
// far. When a larger x raises the shift, the sum so far is multiplied by 2^(old shift - new shift).
//
// -DMAX_THREADS: the most threads of a block, from ops/classifier.py.
#include "lib/constants.cuh"
#include "lib/block_reduce.cuh"
#include "lib/ptx.cuh"

// ---- the softmax of one row ---------------------------------------------------------------------

// The softmax of x is 2^(x LOG2E - shift) / denominator.
struct Softmax {
    float shift, denominator;
    __device__ __forceinline__ float exponent(float x) const { return fmaf(x, LOG2E, -shift); }
    __device__ __forceinline__ float loss(float target_logit) const {
        return logf(denominator) - LN2 * exponent(target_logit);
    }
};

// Columns from V on, in the pack that begins at column `first`, become `value`.
__device__ __forceinline__ void mask(Pack& x, int first, int V, float value) {
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++)
        if (first + k >= V) x[k] = value;
}

// Takes a pack of logits into account.
__device__ __forceinline__ void add(Softmax& softmax, const Pack& x) {
    float largest = x[0];
#pragma unroll
    for (int k = 1; k < PACK_SIZE; k++) largest = fmaxf(largest, x[k]);
    const float raise = softmax.exponent(largest);  // of the shift
    if (raise > 0.0f) {
        softmax.denominator *= exp2_approx(-raise);
        softmax.shift = largest * LOG2E;
    }
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) softmax.denominator += exp2_approx(softmax.exponent(x[k]));
}

// Softmax over the columns below V; read(pack) returns a pack of logits. Each thread takes every
// blockDim-th pack, then the threads' results are joined. All threads of the block get the result;
// there are barriers inside.
template <class Read>
__device__ __forceinline__ Softmax softmax_of_row(const Read& read, int V) {
    Softmax softmax = {MASKED * LOG2E, 0.0f};
    const int whole_packs = V / PACK_SIZE;
    int pack = threadIdx.x;
#pragma unroll 4
    for (; pack < whole_packs; pack += blockDim.x) add(softmax, read(pack));
    if (pack * PACK_SIZE < V) {
        Pack x = read(pack);
        mask(x, pack * PACK_SIZE, V, MASKED);
        add(softmax, x);
    }
    float shift = block_max(softmax.shift);
    return {shift, block_sum(softmax.denominator * exp2_approx(softmax.shift - shift))};
}

// ---- the gradient of one row --------------------------------------------------------------------

// Writes scaled_probability(logit) to the columns below V of a row, and 0 to the others; 0 to all
// if the row does not count. read(pack) returns logits, write(pack, x) takes the gradient. The
// first whole_packs of the num_packs packs of a row have all their columns below V.
template <class Read, class Write, class ScaledProbability>
__device__ __forceinline__ void write_gradient(const Read& read, const Write& write,
                                               const ScaledProbability& scaled_probability,
                                               bool counts, int V, int whole_packs, int num_packs) {
    int pack = threadIdx.x;
#pragma unroll 2
    for (; counts && pack < whole_packs; pack += blockDim.x) {
        Pack x = read(pack);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) x[k] = scaled_probability(x[k]);
        write(pack, x);
    }
    for (; pack < num_packs; pack += blockDim.x) {  // padding, or a row that does not count
        Pack x = filled<PACK_SIZE>(0.0f);
        if (counts && pack == whole_packs) {
            x = read(pack);
#pragma unroll
            for (int k = 0; k < PACK_SIZE; k++) x[k] = scaled_probability(x[k]);
            mask(x, pack * PACK_SIZE, V, 0.0f);
        }
        write(pack, x);
    }
}

// ---- the kernels --------------------------------------------------------------------------------

// losses[n] += the loss of row n, and logits[n, :] = its gradient times dloss, 0 from column V
// on. A row with target -1 does not count: no loss, gradient 0. Accumulated: losses (N). Updated
// in place: logits (N, Vp). Read: targets (N). Grid: at most N blocks. Block: whole warps, at
// most MAX_THREADS threads. Dynamic shared memory: num_kept packs, the first of a row.
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
        // Read before the barriers of softmax_of_row: behind them the row is overwritten.
        const float target_logit = counts ? to_float(row[target]) : 0.0f, before = losses[n];

        // Step 1: wait for the row, compute its softmax and its loss.
        cp_async_wait<0>();
        Softmax softmax = {0.0f, 1.0f};
        if (counts) softmax = softmax_of_row(read, V);
        if (threadIdx.x == 0 && counts) losses[n] = before + softmax.loss(target_logit);

        // Step 2: write the gradient, the softmax times dloss, and copy the next row.
        const float scale = counts ? dloss / softmax.denominator : 0.0f;
        auto scaled_probability = [&](float x) { return exp2_approx(softmax.exponent(x)) * scale; };
        // Writes a pack of the gradient; the place of its logits is free for the next row's.
        auto write = [&](int pack, const Pack& x) {
            store_streaming(row + pack * PACK_SIZE, x);
            if (pack < num_kept && next < N)
                cp_async16(smem + pack, logits + next * Vp + pack * PACK_SIZE);
        };
        write_gradient(read, write, scaled_probability, counts, V, whole_packs, num_packs);

        // Step 3: subtract dloss at the target, by the thread that wrote its pack.
        if (counts && target / PACK_SIZE % blockDim.x == threadIdx.x)
            row[target] = from_float<floatX>(scaled_probability(target_logit) - dloss);
        cp_async_commit();
    }
}

// losses[n] += the loss of row n. Accumulated: losses (N). Read: logits (N, Vp), targets (N).
// Grid: N blocks, one for each row. Block: whole warps, at most MAX_THREADS threads.
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
