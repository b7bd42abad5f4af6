// Cross-entropy, rung 2: one block for each row; its threads join their results in a tree.
//
// Neighbouring lanes read neighbouring columns: 4 sectors for each request. The tree in shared
// memory has a barrier after each of its eight levels, and is climbed twice.
//
//    thread     0    1    2    3  ...  128  129  130  ...  255
//    level 1    0 + 128,   1 + 129,   2 + 130, ...          the lower half adds the upper half
//    level 2    0 + 64,    1 + 65,  ...
// lab: grid = N, block = 256
#include "lib/packs.cuh"

constexpr int THREADS = 256;

// The largest value of all threads, or the sum of all values, for every thread.
template <bool SUM>
__device__ float join(float value, float* shared) {
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            const float other = shared[threadIdx.x + half];
            shared[threadIdx.x] =
                SUM ? shared[threadIdx.x] + other : fmaxf(shared[threadIdx.x], other);
        }
        __syncthreads();
    }
    const float result = shared[0];
    __syncthreads();  // all have read it before the next call writes
    return result;
}

extern "C" __global__ void cross_entropy_2(float* losses, floatX* logits, const int* targets, int N,
                                           int V, int Vp, float dloss) {
    __shared__ float shared[THREADS];
    const int n = blockIdx.x, target = targets[n];
    floatX* row = logits + (long long)n * Vp;
    float largest = -1e30f, sum = 0.0f;
    for (int v = threadIdx.x; v < V; v += THREADS) largest = fmaxf(largest, to_float(row[v]));
    largest = join<false>(largest, shared);
    for (int v = threadIdx.x; v < V; v += THREADS) sum += expf(to_float(row[v]) - largest);
    sum = join<true>(sum, shared);
    if (threadIdx.x == 0 && target >= 0) losses[n] += logf(sum) - (to_float(row[target]) - largest);
    __syncthreads();  // the target's logit is read before it is overwritten
    for (int v = threadIdx.x; v < Vp; v += THREADS) {
        float gradient = 0.0f;
        if (target >= 0 && v < V)
            gradient = dloss * (expf(to_float(row[v]) - largest) / sum - (v == target));
        row[v] = from_float<floatX>(gradient);
    }
}
