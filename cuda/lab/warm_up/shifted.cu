// Warm-up: the copy begins one number later: no warp starts at a multiple of 32 bytes any more.
// lab: grid = N // 256, block = 256
extern "C" __global__ void shifted(float* out, const float* inp, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < N) out[i] = inp[(i + 1) % N];
}
