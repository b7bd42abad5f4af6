// Warm-up: a matrix of 32 columns is transposed. Reads are side by side, and writes?
// lab: grid = N // 256, block = 256
extern "C" __global__ void transpose(float* out, const float* inp, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, rows = N / 32;
    if (i < N) out[i % 32 * rows + i / 32] = inp[i];
}
