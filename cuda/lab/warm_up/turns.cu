// Warm-up: a tile of 32 x 32 in shared memory is written by rows and read by columns.
// lab: grid = N // 1024, block = (32, 32)
extern "C" __global__ void turns(float* out, const float* inp, int N) {
    __shared__ float tile[32][32];
    const int x = threadIdx.x, y = threadIdx.y, first = blockIdx.x * 1024;
    tile[y][x] = inp[first + 32 * y + x];
    __syncthreads();
    out[first + 32 * y + x] = tile[x][y];
}
