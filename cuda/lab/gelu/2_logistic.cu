// GELU, rung 2: the same number with one exponential.
//
// (1 + tanh(u)) / 2 is the logistic function of 2u, that is 1 / (1 + exp(-2u)). The unit for
// special functions has a fast exponential and a fast reciprocal: __expf and __fdividef. Their
// error is smaller than that of the rounding to floatX where the result is not tiny.
// lab: grid = ceil_div(N, 256), block = 256
#include "lib/packs.cuh"

extern "C" __global__ void gelu_2(floatX* out, const floatX* inp, long long N) {
    const long long i = global_thread();
    if (i >= N) return;
    const float x = to_float(inp[i]);
    const float twice_u = 1.5957691216057308f * x * (1.0f + 0.044715f * x * x);
    out[i] = from_float<floatX>(__fdividef(x, 1.0f + __expf(-twice_u)));
}
