// Warm-up: each thread copies four numbers at once, 16 bytes.
// lab: grid = N // 1024, block = 256
extern "C" __global__ void packs(float* out, const float* inp, int N) {
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i < N) *(float4*)(out + i) = *(const float4*)(inp + i);
}
