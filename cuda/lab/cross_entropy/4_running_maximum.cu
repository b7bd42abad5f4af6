// Cross-entropy, rung 4: maximum and sum in one pass, so the row is read twice and not three times.
//
// A thread sums exp(x - largest so far). When a larger x comes, the sum so far is too large by
// exp(new - old), and is scaled down once (online softmax, Milakov and Gimelshein 2018,
// arXiv:1805.02867). At the end each thread scales its sum to the largest logit of the row.
// lab: grid = N, block = 256
#include "lib/block_reduce.cuh"

constexpr int THREADS = 256;  // known to the compiler, which then unrolls the loops

extern "C" __global__ void cross_entropy_4(float* losses, floatX* logits, const int* targets, int N,
                                           int V, int Vp, float dloss) {
    const int n = blockIdx.x, target = targets[n];
    floatX* row = logits + (long long)n * Vp;
    const float target_logit = target >= 0 ? to_float(row[target]) : 0.0f;
    float own_largest = -1e30f, own_sum = 0.0f;
    for (int v = threadIdx.x; v < V; v += THREADS) {
        const float x = to_float(row[v]);
        if (x > own_largest) {
            own_sum *= __expf(own_largest - x);
            own_largest = x;
        }
        own_sum += __expf(x - own_largest);
    }
    const float largest = block_max(own_largest);
    const float sum = block_sum(own_sum * __expf(own_largest - largest));
    if (threadIdx.x == 0 && target >= 0) losses[n] += logf(sum) - (target_logit - largest);
    for (int v = threadIdx.x; v < Vp; v += THREADS) {
        float gradient = 0.0f;
        if (target >= 0 && v < V)
            gradient = dloss * (__expf(to_float(row[v]) - largest) / sum - (v == target));
        row[v] = from_float<floatX>(gradient);
    }
}
