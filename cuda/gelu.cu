// GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415); contract in ops/gelu.py.
#include "common.cuh"

// 2u = SCALE * (x + CUBIC * x^3); 0.5 (1 + tanh u) is the logistic function of 2u.
constexpr float SCALE = 1.5957691216057308f;  // 2 sqrt(2 / pi)
constexpr float CUBIC = 0.044715f;

// Fast exp and division are harmless: both keep 22 bits where the logistic is not negligible.
__device__ __forceinline__ float logistic_of_2u(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-SCALE * x * (1.0f + CUBIC * x * x)));
}

// out = gelu(inp); both num_packs * LANES floatX. One thread per pack.
extern "C" __global__ void gelu_forward(floatX* out, const floatX* inp, long long num_packs) {
    long long pack = global_thread();
    if (pack >= num_packs) return;
    Pack x = load_pack(inp + pack * LANES);
#pragma unroll
    for (int k = 0; k < LANES; k++) x[k] *= logistic_of_2u(x[k]);
    store(out + pack * LANES, x);
}

// dinp *= gelu'(inp), in place. With s = logistic(2u): gelu' = s (1 + x (1 - s) (2u)').
extern "C" __global__ void gelu_backward(floatX* dinp, const floatX* inp, long long num_packs) {
    long long pack = global_thread();
    if (pack >= num_packs) return;
    Pack x = load_pack(inp + pack * LANES), gradient = load_pack(dinp + pack * LANES);
#pragma unroll
    for (int k = 0; k < LANES; k++) {
        float s = logistic_of_2u(x[k]);
        float slope = SCALE + 3.0f * SCALE * CUBIC * x[k] * x[k];
        gradient[k] *= s * (1.0f + x[k] * (1.0f - s) * slope);
    }
    store(dinp + pack * LANES, gradient);
}
