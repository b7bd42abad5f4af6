// Column sum, rung 1: one block for each column. Its threads walk down the column.
//
// Two numbers of a column lie OC elements apart. Each lane asks for a sector of its own, 32 bytes
// for 2 or 4 that it uses, and the neighbouring column's block asks for the same sector again.
// lab: grid = OC, block = 256
#include "lib/block_reduce.cuh"

extern "C" __global__ void column_sum_1(float* dbias, const floatX* dout, int N, int OC) {
    const int column = blockIdx.x;
    float sum = 0.0f;
    for (int n = threadIdx.x; n < N; n += blockDim.x)
        sum += to_float(dout[(long long)n * OC + column]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) dbias[column] += sum;
}
