// Softmax cross-entropy, loss and gradient; contract in ops/classifier.py. One block per row.
//
// The row is read once for its maximum and sum together (online softmax, Milakov and Gimelshein
// 2018, arXiv:1805.02867), and once more, from its end, to write the gradient: the second reading
// finds the end of the row in the cache. The gradient is stored past it: the rows that other blocks
// are about to read again must stay (990 instead of 1067 us on an H200 at 8192 x 50304 floats).
// After llm.c fused_classifier.cuh.
#include "block_reduce.cuh"

constexpr float LOWEST = -3.402823466e38f;  // finite: exp(LOWEST - LOWEST) is 1, not NaN

struct Softmax {
    float largest, denominator;
};

// Adds the element to a running maximum and a sum of exp(x - maximum).
__device__ __forceinline__ void raise_largest(Softmax& softmax, float x) {
    if (x > softmax.largest) {
        softmax.denominator *= __expf(softmax.largest - x);
        softmax.largest = x;
    }
}

// Softmax over columns below V. All threads of the block get it; it holds barriers.
__device__ __forceinline__ Softmax softmax_of_row(const floatX* row, int V) {
    Softmax softmax = {LOWEST, 0.0f};
    int whole_packs = V / LANES;
#pragma unroll 4
    for (int pack = threadIdx.x; pack < whole_packs; pack += blockDim.x) {
        Pack x = load_pack(row + pack * LANES);
        float largest = x[0];
#pragma unroll
        for (int k = 1; k < LANES; k++) largest = fmaxf(largest, x[k]);
        raise_largest(softmax, largest);
#pragma unroll
        for (int k = 0; k < LANES; k++) softmax.denominator += __expf(x[k] - softmax.largest);
    }
    int column = whole_packs * LANES + threadIdx.x;
    if (column < V) {
        float x = to_float(row[column]);
        raise_largest(softmax, x);
        softmax.denominator += __expf(x - softmax.largest);
    }
    float largest = block_max(softmax.largest);
    float sum = block_sum(softmax.denominator * __expf(softmax.largest - largest));
    return {largest, sum};
}

__device__ __forceinline__ float loss_of(const Softmax& softmax, float target_logit) {
    return logf(softmax.denominator) - (target_logit - softmax.largest);
}

// losses[n] += loss of row n, and logits[n, :] = its gradient times dloss, 0 from column V on.
// logits (N, Vp), targets (N), -1 for rows that do not count. Whole warps.
extern "C" __global__ void classifier(float* losses, floatX* logits, const int* targets, int V,
                                      int Vp, float dloss) {
    long long n = blockIdx.x;
    floatX* row = logits + n * Vp;
    int target = targets[n];
    if (target < 0) {  // the same in all threads
        for (int pack = threadIdx.x; pack < Vp / LANES; pack += blockDim.x)
            store(row + pack * LANES, filled<LANES>(0.0f));
        return;
    }
    // Read before softmax_of_row: after its barriers other threads overwrite the row.
    float target_logit = threadIdx.x == 0 ? to_float(row[target]) : 0.0f;
    Softmax softmax = softmax_of_row(row, V);
    if (threadIdx.x == 0) losses[n] += loss_of(softmax, target_logit);
    float scale = dloss / softmax.denominator;
#pragma unroll 4
    for (int pack = Vp / LANES - 1 - (int)threadIdx.x; pack >= 0; pack -= blockDim.x) {
        Pack x = load_pack(row + pack * LANES);
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            int column = pack * LANES + k;
            float gradient = __expf(x[k] - softmax.largest) * scale;
            if (column == target) gradient -= dloss;
            x[k] = column < V ? gradient : 0.0f;
        }
        store_streaming(row + pack * LANES, x);
    }
}

// losses[n] += loss of row n; the logits stay. Whole warps.
extern "C" __global__ void classifier_loss(float* losses, const floatX* logits, const int* targets,
                                           int V, int Vp) {
    long long n = blockIdx.x;
    const floatX* row = logits + n * Vp;
    int target = targets[n];
    if (target < 0) return;  // the same in all threads
    Softmax softmax = softmax_of_row(row, V);
    if (threadIdx.x == 0) losses[n] += loss_of(softmax, to_float(row[target]));
}
