// Small kernels whose requests, sectors and turns can be worked out by hand. An H100 has counted
// the same: tests/golden/counters_h100.json. Change nothing here without measuring again.
#include "lib/ptx.cuh"

#define KERNEL extern "C" __global__ void

// The index of this thread in the grid, and its warp in the block.
__device__ __forceinline__ int self() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int first_of_warp() { return self() / 32 * 32; }

// Global memory: who reads what. Each thread writes its own element.
KERNEL copy(float* out, const float* in) { out[self()] = in[self()]; }
KERNEL copy2(float2* out, const float2* in) { out[self()] = in[self()]; }
KERNEL copy4(float4* out, const float4* in) { out[self()] = in[self()]; }
KERNEL copy_bf16(unsigned short* out, const unsigned short* in) { out[self()] = in[self()]; }
KERNEL copy_byte(unsigned char* out, const unsigned char* in) { out[self()] = in[self()]; }
KERNEL stride2(float* out, const float* in) { out[self()] = in[2 * self()]; }
KERNEL stride32(float* out, const float* in) { out[self()] = in[32 * self()]; }
KERNEL stride2_4(float4* out, const float4* in) { out[self()] = in[2 * self()]; }
KERNEL misaligned(float* out, const float* in) { out[self()] = in[self() + 1]; }
KERNEL scattered(float* out, const float* in, const int* where) { out[self()] = in[where[self()]]; }
KERNEL broadcast(float* out, const float* in) { out[self()] = in[warp() + blockIdx.x]; }
KERNEL broadcast4(float4* out, const float4* in) { out[self()] = in[warp()]; }
KERNEL pairs4(float4* out, const float4* in) { out[self()] = in[first_of_warp() + lane() / 2]; }
KERNEL halves4(float4* out, const float4* in) { out[self()] = in[first_of_warp() + lane() % 16]; }

// A transposition by tiles of 32 x 32 elements; a block has 32 x 8 threads.
KERNEL transpose_naive(float* out, const float* in, int n) {
    const int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8) out[column * n + row + i] = in[(row + i) * n + column];
}
template <int PADDING>
__device__ __forceinline__ void transpose(float* out, const float* in, int n) {
    __shared__ float tile[32][32 + PADDING];
    const int x = threadIdx.x, y = threadIdx.y;
    const int column = blockIdx.x * 32, row = blockIdx.y * 32;
    for (int i = 0; i < 32; i += 8) tile[y + i][x] = in[(row + y + i) * n + column + x];
    __syncthreads();
    for (int i = 0; i < 32; i += 8) out[(column + y + i) * n + row + x] = tile[x][y + i];
}
KERNEL transpose_plain(float* out, const float* in, int n) { transpose<0>(out, in, n); }
KERNEL transpose_padded(float* out, const float* in, int n) { transpose<1>(out, in, n); }

// Shared memory: one warp fills it in a row, and reads every STRIDE-th element of it.
template <int STRIDE, class T>
__device__ __forceinline__ void read_with_stride(T* out, const T* in) {
    __shared__ __align__(16) T memory[32 * STRIDE];
    for (int i = threadIdx.x; i < 32 * STRIDE; i += 32) memory[i] = in[i];
    __syncthreads();
    out[self()] = memory[threadIdx.x * STRIDE];
}
KERNEL bank1(float* out, const float* in) { read_with_stride<1>(out, in); }
KERNEL bank2(float* out, const float* in) { read_with_stride<2>(out, in); }
KERNEL bank8(float* out, const float* in) { read_with_stride<8>(out, in); }
KERNEL bank32(float* out, const float* in) { read_with_stride<32>(out, in); }
KERNEL bank33(float* out, const float* in) { read_with_stride<33>(out, in); }
KERNEL bank64bit(float2* out, const float2* in) { read_with_stride<1>(out, in); }
KERNEL bank64bit_2(float2* out, const float2* in) { read_with_stride<2>(out, in); }
KERNEL bank128bit(float4* out, const float4* in) { read_with_stride<1>(out, in); }
KERNEL bank128bit_2(float4* out, const float4* in) { read_with_stride<2>(out, in); }
KERNEL bank_bf16(unsigned short* out, const unsigned short* in) { read_with_stride<1>(out, in); }

// Shared memory: lanes that read the same element.
enum Sharing { ALL, PAIRS, HALVES, QUARTERS };
template <Sharing SHARING, class T>
__device__ __forceinline__ void read_the_same(T* out, const T* in) {
    __shared__ __align__(16) T memory[32];
    const int lane = threadIdx.x;
    memory[lane] = in[lane];
    __syncthreads();
    const int element = SHARING == ALL      ? blockIdx.x % 32
                        : SHARING == PAIRS  ? lane / 2
                        : SHARING == HALVES ? lane % 16
                                            : lane % 8;
    out[self()] = memory[element];
}
KERNEL same32(float* out, const float* in) { read_the_same<ALL>(out, in); }
KERNEL same64(float2* out, const float2* in) { read_the_same<ALL>(out, in); }
KERNEL same128(float4* out, const float4* in) { read_the_same<ALL>(out, in); }
KERNEL pairs64(float2* out, const float2* in) { read_the_same<PAIRS>(out, in); }
KERNEL pairs128(float4* out, const float4* in) { read_the_same<PAIRS>(out, in); }
KERNEL halves64(float2* out, const float2* in) { read_the_same<HALVES>(out, in); }
KERNEL halves128(float4* out, const float4* in) { read_the_same<HALVES>(out, in); }
KERNEL quarters128(float4* out, const float4* in) { read_the_same<QUARTERS>(out, in); }

// Atomics: how often each of 64 values comes.
KERNEL histogram_global(int* bins, const int* values) { atomicAdd(&bins[values[self()]], 1); }
KERNEL histogram_shared(int* bins, const int* values) {
    __shared__ int own[64];
    if (threadIdx.x < 64) own[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&own[values[self()]], 1);
    __syncthreads();
    if (threadIdx.x < 64) atomicAdd(&bins[threadIdx.x], own[threadIdx.x]);
}

// Lanes that go different ways.
KERNEL divergent(float* out, const float* a, const float* b) {
    float x;
    if (threadIdx.x % 2)
        x = sqrtf(a[self()]) * 2.0f;
    else
        x = __expf(b[self()]) + 1.0f;
    out[self()] = x;
}
// One to four rounds, by lane.
KERNEL ragged_loop(float* out, const float* in, int n) {
    float sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i <= threadIdx.x % 4; i++) sum += in[i * n + self()];
    out[self()] = sum;
}
// One to three rounds of the inner loop, by lane and by round of the outer one.
KERNEL ragged_nest(float* out, const float* in, int n) {
    float sum = 0.0f;
#pragma unroll 1
    for (int outer = 0; outer < 3; outer++)
#pragma unroll 1
        for (int i = 0; i <= (threadIdx.x + outer) % 3; i++)
            sum += in[(outer * 3 + i) * n + self()];
    out[self()] = sum;
}

// Sums: of a block by halving, of a column and of a row by one thread.
KERNEL reduce_tree(float* out, const float* in) {
    __shared__ float sums[256];
    sums[threadIdx.x] = in[self()];
    __syncthreads();
#pragma unroll 1
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}
KERNEL column_sum(float* out, const float* in, int rows, int columns) {
    float sum = 0.0f;
    for (int row = 0; row < rows; row++) sum += in[row * columns + self()];
    out[self()] = sum;
}
KERNEL row_sum(float* out, const float* in, int columns) {
    float sum = 0.0f;
    for (int column = 0; column < columns; column++) sum += in[self() * columns + column];
    out[self()] = sum;
}

// cp.async, and ldmatrix from rows of 64 bytes, which meet in banks, or of 80, which do not.
KERNEL async16(float4* out, const float4* in) {
    __shared__ __align__(16) float4 memory[256];
    cp_async16(&memory[threadIdx.x], &in[self()]);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    out[self()] = memory[threadIdx.x ^ 1];
}
template <int ROW_BYTES>
__device__ __forceinline__ void read_matrices(uint4* out, const uint4* in) {
    __shared__ __align__(16) unsigned char tile[32 * ROW_BYTES];
    unsigned char* row = tile + threadIdx.x * ROW_BYTES;
    *reinterpret_cast<uint4*>(row) = in[threadIdx.x];
    __syncthreads();
    unsigned received[4];
    ldmatrix_x4(received, row);
    out[self()] = make_uint4(received[0], received[1], received[2], received[3]);
}
KERNEL ldmatrix_64(uint4* out, const uint4* in) { read_matrices<64>(out, in); }
KERNEL ldmatrix_80(uint4* out, const uint4* in) { read_matrices<80>(out, in); }
