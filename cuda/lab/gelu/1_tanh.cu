// GELU, rung 1: the formula as it stands in the paper, one thread for each element.
//
// gelu(x) = x / 2 * (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3). tanhf is exact to the last
// bits for every x, and pays for it: some twenty instructions and two ways through them.
// lab: grid = ceil_div(N, 256), block = 256
#include "lib/packs.cuh"

extern "C" __global__ void gelu_1(floatX* out, const floatX* inp, long long N) {
    const long long i = global_thread();
    if (i >= N) return;
    const float x = to_float(inp[i]);
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    out[i] = from_float<floatX>(0.5f * x * (1.0f + tanhf(u)));
}
