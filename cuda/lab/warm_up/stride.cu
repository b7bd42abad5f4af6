// Warm-up: neighbouring lanes read every fourth number.
// lab: grid = N // 256, block = 256
extern "C" __global__ void stride(float* out, const float* inp, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < N) out[i] = inp[4LL * i % N];
}
