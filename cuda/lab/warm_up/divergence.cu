// Warm-up: every fourth lane takes the logarithm, the others copy.
// lab: grid = N // 256, block = 256
extern "C" __global__ void divergence(float* out, const float* inp, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i % 4 == 0)
        out[i] = logf(inp[i] * inp[i] + 1.0f);
    else
        out[i] = inp[i];
}
