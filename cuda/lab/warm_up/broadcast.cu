// Warm-up: all lanes of a warp read the same number.
// lab: grid = N // 256, block = 256
extern "C" __global__ void broadcast(float* out, const float* inp, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < N) out[i] = inp[i / 32];
}
