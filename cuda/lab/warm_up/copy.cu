// Warm-up: each thread copies one number; neighbouring lanes copy neighbours.
// lab: grid = N // 256, block = 256
extern "C" __global__ void copy(float* out, const float* inp, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < N) out[i] = inp[i];
}
