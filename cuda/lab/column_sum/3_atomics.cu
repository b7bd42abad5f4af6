// Column sum, rung 3: many blocks share the rows, and meet in an atomic addition.
//
// Now there are threads enough. But blocks finish in any order, and a float sum depends on its
// order: two runs give two results. Training that repeats bit for bit cannot use this.
// lab: grid = (ceil_div(OC, 256), min(64, N)), block = 256
#include "lib/packs.cuh"

extern "C" __global__ void column_sum_3(float* dbias, const floatX* dout, int N, int OC) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= OC) return;
    float sum = 0.0f;
    for (int n = blockIdx.y; n < N; n += gridDim.y)
        sum += to_float(dout[(long long)n * OC + column]);
    atomicAdd(&dbias[column], sum);
}
