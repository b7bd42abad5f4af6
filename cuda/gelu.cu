// GELU and its gradient, element by element; the formula in lib/gelu.cuh, contract in ops/gelu.py.
#include "lib/chunk_sums.cuh"
#include "lib/gelu.cuh"

// out = gelu(inp); both num_packs * PACK_SIZE floatX. One thread per pack.
extern "C" __global__ void gelu_forward(floatX* out, const floatX* inp, long long num_packs) {
    long long pack = global_thread();
    if (pack >= num_packs) return;
    Pack x = load_pack(inp + pack * PACK_SIZE);
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) x[k] *= logistic_of_2u(x[k]);
    store(out + pack * PACK_SIZE, x);
}

// gradient * gelu'(x). With s = logistic(2u): gelu'(x) = s (1 + x (1 - s) (2u)').
__device__ __forceinline__ Pack gelu_gradient(const Pack& x, Pack gradient) {
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) {
        float s = logistic_of_2u(x[k]);
        float slope = SCALE + 3.0f * SCALE * CUBIC * x[k] * x[k];
        gradient[k] *= s * (1.0f + x[k] * (1.0f - s) * slope);
    }
    return gradient;
}

// dinp *= gelu'(inp), in place. One thread per pack.
extern "C" __global__ void gelu_backward(floatX* dinp, const floatX* inp, long long num_packs) {
    long long pack = global_thread();
    if (pack >= num_packs) return;
    Pack x = load_pack(inp + pack * PACK_SIZE), gradient = load_pack(dinp + pack * PACK_SIZE);
    store(dinp + pack * PACK_SIZE, gelu_gradient(x, gradient));
}

// The elements of dinp *= gelu'(inp), for sum_chunk; each is also stored.
struct GeluGradient {
    struct Raw {
        RawPack x, gradient;
    };
    floatX* dinp;
    const floatX* inp;
    __device__ __forceinline__ Raw load(long long offset) const {
        return {load_raw(inp + offset), load_raw(dinp + offset)};
    }
    __device__ __forceinline__ Pack finish(const Raw& raw, long long offset) const {
        Pack gradient = gelu_gradient(unpack(raw.x), unpack(raw.gradient));
        store(dinp + offset, gradient);
        return gradient;
    }
};

// dinp *= gelu'(inp), in place, and partials[chunk, :] = sum of the new dinp[rows of the chunk, :];
// dinp, inp (N, OC), partials (chunks, OC). Launch and chunks as in bias.cu.
extern "C" __global__ void __launch_bounds__(SUM_THREADS, 3)
    gelu_backward_partials(floatX* dinp, float* partials, const floatX* inp, int N, int OC,
                           int chunk_rows) {
    sum_chunk<ROWS_IN_FLIGHT>(partials, GeluGradient{dinp, inp}, N, OC, chunk_rows);
}
