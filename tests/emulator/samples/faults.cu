// Kernels with one fault each; the line that must be reported carries the kernel's name.

extern "C" __global__ void endless_loop(volatile int* flag) {
    while (*flag == 0) {  // FAULT: endless_loop
    }
}

extern "C" __global__ void divides_by_zero(int* out, int divisor) {
    out[threadIdx.x] = (7 + threadIdx.x) / divisor;  // FAULT: divides_by_zero
}

extern "C" __global__ void null_pointer(float* out) {
    out[threadIdx.x] = 1.0f;  // FAULT: null_pointer
}

__device__ __noinline__ int deep(int n, int* out) {
    volatile int frame[256];
    frame[n % 256] = n;
    return n > 1 ? deep(n - 1, out) + frame[n % 256] : 0;
}
extern "C" __global__ void overflows_stack(int* out, int n) { out[threadIdx.x] = deep(n, out); }

extern "C" __global__ void asserts(const int* inp) {
    assert(inp[threadIdx.x] < 3);  // FAULT: asserts
}

extern "C" __global__ void traps(const int* inp) {
    if (inp[threadIdx.x] >= 3) __trap();  // FAULT: traps
}

extern "C" __global__ void warps_at_different_places(int* out) {
    int v = threadIdx.x;
    if (threadIdx.x % 32 < 16)
        v += __shfl_xor_sync(0xffffffffu, v, 1);  // FAULT: warps_at_different_places
    else
        v += __shfl_xor_sync(0xffffffffu, v, 2);  // FAULT: warps_at_different_places
    out[threadIdx.x] = v;
}

extern "C" __global__ void barrier_against_shuffle(int* out) {
    int v = threadIdx.x;
    if (threadIdx.x < 16)
        v += __shfl_xor_sync(0xffffffffu, v, 1);  // FAULT: barrier_against_shuffle
    else
        __syncthreads();  // FAULT: barrier_against_shuffle
    out[threadIdx.x] = v;
}

extern "C" __global__ void leaves_before_shuffle(int* out) {
    int v = threadIdx.x;
    if (threadIdx.x == 3) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, v, 1);  // FAULT: leaves_before_shuffle
}

extern "C" __global__ void partial_mask(int* out, unsigned mask) {
    if (threadIdx.x < 16)
        out[threadIdx.x] = __shfl_xor_sync(mask, threadIdx.x, 1);  // FAULT: partial_mask
}

__device__ int counter;
extern "C" __global__ void writes_device_variable(int* out) {
    if (threadIdx.x == 0) counter = out[0];  // FAULT: writes_device_variable
}

// Writes outside its view, but inside the allocation of which the view is a part.
extern "C" __global__ void leaves_its_view(float* view, int n) {
    view[n + threadIdx.x] = 1.0f;  // FAULT: leaves_its_view
}

// Each block of 32 threads reads what its neighbour block writes.
extern "C" __global__ void reads_other_block(float* data, float* out) {
    const int i = blockIdx.x * 32 + threadIdx.x;
    data[i] = 1.0f;  // FAULT: reads_other_block
    out[i] = data[(i + 32) % (gridDim.x * 32)];  // FAULT: reads_other_block
}

// The address is half a 128-bit vector off.
extern "C" __global__ void misaligned_global(float4* out, const float* inp) {
    out[threadIdx.x] = *(const float4*)(inp + 2 + 4 * threadIdx.x);  // FAULT: misaligned_global
}

extern "C" __global__ void smashes_memory(char* out, long long offset) {
    for (long long i = 0; i < 64; i++) out[offset + i * 4096] = 77;  // FAULT: smashes_memory
}
