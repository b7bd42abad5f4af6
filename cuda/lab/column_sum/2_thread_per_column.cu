// Column sum, rung 2: one thread for each column. Neighbouring lanes read neighbouring columns.
//
// Every byte that moves is used. But a matrix of 768 columns has 768 threads, where a large GPU
// holds 270,000, and each waits for one load after the other: on most GPUs this is slower than rung
// 1.
// lab: grid = ceil_div(OC, 256), block = 256
#include "lib/packs.cuh"

extern "C" __global__ void column_sum_2(float* dbias, const floatX* dout, int N, int OC) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= OC) return;
    float sum = 0.0f;
    for (int n = 0; n < N; n++) sum += to_float(dout[(long long)n * OC + column]);
    dbias[column] += sum;
}
